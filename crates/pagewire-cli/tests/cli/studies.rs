//! `pagewire study`: every method is measured or says why not, it goes on where it was, and it leaves nothing behind.
//! Nothing here depends on how fast anything is.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::driving::{pagewire, wait_for};

/// The region of these studies, in bytes.
const REGION: f64 = (2 << 20) as f64;

/// Cells of the whole plan that show each method at work on a short and on a longer link.
const ONLY: &str = "in-order.rtt0.,in-order.rtt5.,write1.rtt5.,local-memory.random,local-file.write1.";

/// None where the environment says to go without namespaces.
fn wanted() -> bool {
    let list = std::env::var("PAGEWIRE_TEST_SKIP").unwrap_or_default();
    let skip = list.split(',').any(|name| matches!(name.trim(), "netns" | "userfaultfd" | "root"));
    if skip {
        eprintln!("SKIPPED: PAGEWIRE_TEST_SKIP names what a study needs");
    }
    !skip
}

/// A folder for the results and one for everything temporary, which is empty when nothing is left behind.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("scratch")).unwrap();
        for path in [folder.path().into(), folder.path().join("scratch")] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        }
        Self { folder }
    }

    fn scratch(&self) -> PathBuf {
        self.folder.path().join("scratch")
    }

    fn results(&self) -> PathBuf {
        self.folder.path().join("results")
    }

    /// The command, of a region of 2 MiB. Links are of any quality: others use this machine, too.
    fn study(&self, more: &[&str]) -> Command {
        let results = self.results();
        let mut arguments = vec!["study", "--out", results.to_str().unwrap(), "--size", "2MiB"];
        arguments.extend(["--rounds", "1", "--cap", "6s", "--tolerance", "1000000"]);
        arguments.extend(more);
        let mut command = pagewire(&arguments);
        command.env("TMPDIR", self.scratch());
        command
    }

    fn raw(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.results().join("raw.jsonl")).unwrap();
        assert!(text.ends_with('\n'), "every line is whole");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn cells(&self) -> Vec<Value> {
        self.raw().into_iter().filter(|record| record["record"] == "cell").collect()
    }

    /// Nothing is mounted, no process runs, and no file is there.
    fn is_clear(&self) -> bool {
        let scratch = self.scratch();
        let has = |path: PathBuf| {
            std::fs::read(path)
                .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(scratch.to_str().unwrap()))
        };
        let numbers = std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
        let mut processes = numbers.filter(|path| path.join("cmdline").exists());
        std::fs::read_dir(&scratch).unwrap().count() == 0
            && !has("/proc/self/mountinfo".into())
            && !processes.any(|path| has(path.join("cmdline")) || has(path.join("mountinfo")))
    }
}

fn done(output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
}

fn figure(cell: &Value, name: &str) -> f64 {
    cell["figures"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {cell}"))
}

#[test]
fn every_method_is_measured_and_the_figures_are_sane() {
    if !wanted() {
        return;
    }
    let place = Place::new();
    let output = place.study(&["--seed", "5", "--json", "--only", ONLY]).output().unwrap();
    done(&output);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(place.is_clear(), "something is left behind");
    let cells = place.cells();
    assert_eq!((&summary["cells"], &summary["run"]), (&cells.len().into(), &cells.len().into()));
    let mut measured = BTreeSet::new();
    for cell in &cells {
        let method = cell["method"].as_str().unwrap();
        if method == "nbd" && cell["outcome"] == "unsupported" {
            assert!(cell["reason"].as_str().unwrap().contains("NBD"), "{cell}");
            continue;
        }
        was_run(cell);
        measured.insert(format!("{method} {}", cell["mode"]));
        sane(cell);
    }
    let all = ["uffd", "fuse", "nbd-user"]
        .map(|method| ["direct", "managed"].map(|mode| format!("{method} {mode:?}")));
    for way in all.iter().flatten().map(String::as_str).chain([
        "mirror null",
        "local-memory null",
        "local-file null",
    ]) {
        assert!(measured.contains(way), "{way} was not measured: {measured:?}");
    }
    let links = place.raw().into_iter().filter(|record| record["record"] == "link").collect::<Vec<_>>();
    for link in links {
        let (asked, found) = (link["rtt_ms"].as_f64().unwrap(), link["measured_rtt_s"].as_f64().unwrap());
        assert!(found * 1e3 >= asked && link["accepted"] == true, "{link}");
    }

    // It has all that there is to have.
    let before = place.raw();
    done(&place.study(&["--seed", "5", "--resume", "--only", ONLY]).output().unwrap());
    assert!(place.raw() == before, "a study that is complete is left as it is");
}

/// What is done in time depends on who else uses the machine, and how it is done does not.
fn was_run(cell: &Value) {
    assert!(cell["outcome"] == "measured" || cell["outcome"] == "capped", "{cell}");
}

/// What holds of every measurement, however busy the machine is.
fn sane(cell: &Value) {
    let is_local = cell["method"].as_str().unwrap().starts_with("local-");
    let (is_whole, writes) = (cell["outcome"] == "measured", cell["pattern"] == "write");
    let rtt = cell["rtt_ms"].as_f64().unwrap() / 1e3;
    assert!(figure(cell, "ready_s") <= figure(cell, "total_s"), "{cell}");
    assert!(figure(cell, "touch_p50_s") <= figure(cell, "touch_p99_s"), "{cell}");
    assert!(figure(cell, "slowdown_ratio") > 0.0 && figure(cell, "moved_bytes") > 0.0, "{cell}");
    if cell["pattern"] == "in-order" {
        assert!(figure(cell, "first_byte_s") >= figure(cell, "ready_s"), "{cell}");
    }
    if is_local {
        assert!(cell["figures"].get("wire_to_client_bytes").is_none(), "{cell}");
        return;
    }
    assert!(figure(cell, "client_cpu_s") > 0.0 && figure(cell, "server_cpu_s") > 0.0, "{cell}");
    assert!(figure(cell, "total_s") >= rtt, "faster than the link: {cell}");
    let (to_client, to_server) = (figure(cell, "wire_to_client_bytes"), figure(cell, "wire_to_server_bytes"));
    assert!(to_client > 0.0 && to_server > 0.0, "{cell}");
    if cell["pattern"] == "in-order" && is_whole {
        assert_eq!(figure(cell, "moved_bytes"), REGION, "{cell}");
        assert!(to_client >= REGION && to_server < REGION / 4.0, "{cell}");
    }
    if writes {
        assert!(to_server >= figure(cell, "changed_bytes"), "{cell}");
        // A change is not there before it can have been sent.
        assert!(figure(cell, "staleness_s") >= rtt / 2.0, "{cell}");
        assert!(!cell["samples"]["staleness_s"].as_array().unwrap().is_empty(), "{cell}");
    }
}

/// Cells that take a while, in which something is mounted.
const LONG: &str = "fuse-direct.in-order,fuse-managed.write";

/// A study in the middle of its cells, the first of which are done.
fn under_way(place: &Place) -> Child {
    let mut command = place.study(&["--seed", "9", "--only", LONG]);
    let study = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let raw = place.results().join("raw.jsonl");
    wait_for("the first cells", || {
        std::fs::read_to_string(&raw).is_ok_and(|text| text.matches(r#""record":"cell""#).count() >= 2)
    });
    assert!(!place.is_clear(), "there are processes");
    study
}

#[test]
fn a_study_that_is_interrupted_leaves_nothing_and_goes_on() {
    if !wanted() {
        return;
    }
    let place = Place::new();
    let study = under_way(&place);
    let second = place.study(&["--seed", "9", "--resume", "--only", LONG]).output().unwrap();
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains("another study"), "{second:?}");
    assert!(Command::new("kill").args(["-INT", &study.id().to_string()]).status().unwrap().success());
    let output = study.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--resume"), "{output:?}");
    assert!(place.is_clear(), "something is left behind");
    let before = place.raw();

    let refused = place.study(&["--only", LONG]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--resume"), "{refused:?}");
    // One more cell is enough.
    let text = std::fs::read_to_string(place.results().join("raw.jsonl")).unwrap();
    std::fs::write(place.results().join("raw.jsonl"), format!("{text}{{\"record\":\"ce")).unwrap();
    done(&place.study(&["--resume", "--only", "fuse-managed.write1.rtt0."]).output().unwrap());
    let after = place.raw();
    assert_eq!(after[..before.len()], before[..]);
    let ids: Vec<_> = place.cells().iter().map(|cell| cell["id"].to_string()).collect();
    assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len(), "no cell is measured twice");
}

#[test]
fn a_study_that_is_killed_leaves_nothing_behind() {
    if !wanted() {
        return;
    }
    let place = Place::new();
    let mut study = under_way(&place);
    study.kill().unwrap();
    study.wait().unwrap();
    wait_for("nothing to be left", || place.is_clear());
    let text = std::fs::read_to_string(place.results().join("raw.jsonl")).unwrap();
    assert!(text.lines().filter(|line| line.contains(r#""record":"cell""#)).count() >= 2);
}

/// Runs the rest of the arguments as an ordinary user, who may make no namespaces.
const BOUND: &str = r#"exec setpriv --reuid=65534 --regid=65534 --clear-groups -- \
unshare --user --map-current-user --keep-caps sh -c '
echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --ambient-caps=-all --inh-caps=-all -- "$@"' sh "$@""#;

/// Runs them as an ordinary user.
const ORDINARY: &str = r#"exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@""#;

/// The command as another user, from a folder that this user can read.
fn as_user(script: &str, place: &Place, more: &[&str]) -> Output {
    let binary = place.folder.path().join("pagewire");
    std::fs::copy(env!("CARGO_BIN_EXE_pagewire"), &binary).unwrap();
    let study = place.study(more);
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(&binary).args(study.get_args());
    command.env("TMPDIR", place.scratch()).current_dir(Path::new("/")).output().unwrap()
}

#[test]
fn an_ordinary_user_is_told_what_is_not_permitted() {
    if !wanted() {
        return;
    }
    let place = Place::new();
    let only = "in-order.rtt0.,in-order.rtt5.";
    done(&as_user(BOUND, &place, &["--only", only, "--methods", "uffd,fuse,mirror", "--seed", "2"]));
    assert!(place.is_clear(), "something is left behind");
    let cells = place.cells();
    assert_eq!(cells.len(), 10, "{cells:?}");
    for cell in cells {
        let (method, rtt) = (cell["method"].as_str().unwrap(), cell["rtt_ms"].as_u64().unwrap());
        if rtt == 0 && method != "fuse" {
            was_run(&cell);
            assert!(cell["figures"].get("wire_to_client_bytes").is_none(), "nothing is counted: {cell}");
        } else {
            assert_eq!(cell["outcome"], "not-permitted", "{cell}");
            let word = if rtt == 0 { "mount" } else { "namespaces" };
            assert!(cell["reason"].as_str().unwrap().contains(word), "{cell}");
        }
    }
    let run = &place.raw()[0];
    assert_eq!(run["user"]["uid"], 65534, "{run}");
}

#[test]
fn an_ordinary_user_has_links_where_user_namespaces_are_allowed() {
    if !wanted() {
        return;
    }
    let place = Place::new();
    done(&as_user(
        ORDINARY,
        &place,
        &["--only", "in-order.rtt5.", "--methods", "uffd,mirror", "--seed", "2"],
    ));
    assert!(place.is_clear(), "something is left behind");
    // Most systems let everybody open it; links are out of reach for others' users, and said to be.
    let tun = std::fs::metadata("/dev/net/tun").unwrap();
    let may_open = tun.permissions().mode() & 0o006 == 0o006;
    for cell in place.cells() {
        if may_open {
            was_run(&cell);
            sane(&cell);
        } else {
            assert_eq!(cell["outcome"], "not-permitted", "{cell}");
            assert!(cell["reason"].as_str().unwrap().contains("TUN device"), "{cell}");
        }
    }
}

#[test]
fn links_lose_what_was_asked_for_and_it_is_recorded() {
    if !wanted() {
        return;
    }
    let place = Place::new();
    let only = ["--only", "in-order.rtt5.", "--methods", "uffd"];
    done(&place.study(&[&only[..], &["--loss", "2", "--seed", "3"]].concat()).output().unwrap());
    assert!(place.is_clear(), "something is left behind");
    let raw = place.raw();
    assert_eq!(raw[0]["loss"], 0.02, "{}", raw[0]);
    let link = raw.iter().find(|record| record["record"] == "link").unwrap();
    assert!(link["loss"] == 0.02 && link["measured_loss"].as_f64().unwrap() > 0.0, "{link}");
    for cell in place.cells() {
        assert!(cell["outcome"] == "measured" || cell["outcome"] == "capped", "{cell}");
        sane(&cell);
    }
    let other = place.study(&[&only[..], &["--loss", "1", "--resume"]].concat()).output().unwrap();
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stderr).contains("another --loss (2)"), "{other:?}");
}

#[test]
fn two_studies_are_compared() {
    let place = Place::new();
    done(&place.study(&["--only", "local-memory.random"]).output().unwrap());
    let results = place.results();
    let other = place.folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let compare = |more: &[&str]| {
        let both = ["study", "--out", results.to_str().unwrap(), "--compare", other.to_str().unwrap()];
        pagewire(&[&both[..], more].concat()).output().unwrap()
    };
    let missing = compare(&[]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("raw.jsonl"), "{missing:?}");

    // Made up: its mapping is so slow that a file is better.
    let mut text = std::fs::read_to_string(results.join("raw.jsonl")).unwrap();
    std::fs::write(other.join("raw.jsonl"), &text).unwrap();
    let same = compare(&[]);
    done(&same);
    let said = String::from_utf8_lossy(&same.stdout).into_owned();
    assert!(said.contains("  same     model ") && !said.contains("differs"), "{said}");
    let random = place.cells().remove(0);
    for (id, mode, pattern) in [("made-up.write", "managed", "write"), ("made-up.random", "direct", "random")]
    {
        let mut cell = random.clone();
        cell["id"] = id.into();
        cell["method"] = "uffd".into();
        cell["mode"] = mode.into();
        cell["pattern"] = pattern.into();
        cell["figures"]["touch_p50_s"] = 0.5.into();
        text += &format!("{cell}\n");
    }
    std::fs::write(other.join("raw.jsonl"), text).unwrap();
    let differs = compare(&["--json"]);
    assert_eq!(differs.status.code(), Some(1), "{differs:?}");
    assert!(String::from_utf8_lossy(&differs.stderr).contains("1 of 9 recommendations"), "{differs:?}");
    let agreement: Value = serde_json::from_slice(&differs.stdout).unwrap();
    assert_eq!(agreement["agree"], false);
    for compared in agreement["recommendations"].as_array().unwrap() {
        assert_eq!(compared["agree"], compared["for"] != "state", "{compared}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let place = Place::new();
    for wrong in
        [["--methods", "nfs"], ["--size", "5000"], ["--only", "nothing"], ["--cap", "soon"], ["--loss", "21"]]
    {
        let results = place.results();
        let arguments = [&["study", "--out", results.to_str().unwrap()][..], &wrong[..]].concat();
        let output = pagewire(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
        assert!(!results.exists());
    }
}
