//! Imports inside the library run one way: access -> engine -> store -> peer -> transport -> words.

use std::path::{Path, PathBuf};

/// The rooms, from the outside in. Each may import from itself and from those after it.
const ROOMS: [&str; 9] =
    ["access", "engine", "store", "peer", "transport", "sink", "address", "schedule", "error"];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The room that a file is in, by its path below `src`.
fn room(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The rooms that a text imports from, by `crate::ROOM`.
fn imports(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| {
        line.match_indices("crate::").map(move |(at, found)| {
            let rest = &line[at + found.len()..];
            rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        })
    })
    .collect()
}

#[test]
fn imports_run_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rank = |room: &str| ROOMS.iter().position(|known| *known == room);
    let mut seen = 0;
    for file in sources(&root) {
        let from = room(file.strip_prefix(&root).unwrap());
        if from == "lib" {
            continue;
        }
        let from_rank = rank(&from).unwrap_or_else(|| panic!("{} is in no room", file.display()));
        for to in imports(&std::fs::read_to_string(&file).unwrap()) {
            let Some(to_rank) = rank(&to) else { continue };
            seen += 1;
            assert!(to_rank >= from_rank, "{} imports from {to}", file.display());
        }
    }
    assert!(seen > 50, "only {seen} imports were found: the test looks at the wrong place");
}

#[test]
fn an_import_is_found_wherever_it_stands() {
    assert_eq!(imports("use crate::engine::{A, B};\n let x = crate::store::y();"), ["engine", "store"]);
    assert!(imports("//! [`crate::engine`]").is_empty());
}
