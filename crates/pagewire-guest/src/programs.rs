//! Programs of the host, with the shared libraries that they need.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::output;

/// Where programs are looked for, besides PATH: an ordinary user has no sbin in there.
const BESIDES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where a program is.
pub(crate) fn find(name: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(BESIDES.map(PathBuf::from));
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("there is no {name}: ./test installs it"))
    })
}

/// The files that the program at `path` is loaded with: none, if it needs none.
pub(crate) fn libraries(path: &Path, into: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    let mut command = Command::new("ldd");
    let text = match output(command.arg(path)) {
        Ok(text) => text,
        // It says so of those that are linked statically, and fails.
        Err(error) if error.to_string().contains("not a dynamic executable") => return Ok(()),
        Err(error) => return Err(error),
    };
    for line in text.lines().filter(|line| !line.contains("statically linked")) {
        // NAME => PATH (ADDRESS), PATH (ADDRESS) for the loader, and NAME (ADDRESS) for what the kernel brings.
        let place = line.split_once("=>").map_or(line, |(_, place)| place);
        let place = place.split_whitespace().next().unwrap_or_default();
        if place == "not" {
            return Err(io::Error::other(format!("{}: {}", path.display(), line.trim())));
        }
        if place.starts_with('/') {
            into.insert(place.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_with_its_loader_and_libraries() {
        let mut files = BTreeSet::new();
        libraries(&find("ls").unwrap(), &mut files).unwrap();
        let names: Vec<_> = files.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        assert!(names.iter().any(|name| name.starts_with("libc.so")), "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("ld-linux")), "{names:?}");
        assert!(find("there is no such program").is_err());
    }
}
