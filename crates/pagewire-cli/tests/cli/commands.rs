//! The commands as a user meets them.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use crate::driving::{Running, pagewire, pattern, run, stdout, wait_for};

fn file(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.path().join(name);
    std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
    path
}

#[test]
fn what_is_served_is_listed_described_and_copied() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = pattern(3_000_001);
    let source = file(&folder, "source", &bytes);
    // Who serves it for writing has it alone.
    let local: serde_json::Value =
        serde_json::from_str(&stdout(&["info", &format!("file:{}", source.display()), "--json"])).unwrap();
    let server = Running::serve(&source);

    let listed = stdout(&["list", &server.address]);
    assert!(listed.contains("file") && listed.contains("2.9 MiB"), "{listed}");
    let listed: serde_json::Value =
        serde_json::from_str(&stdout(&["list", &server.address, "--json"])).unwrap();
    assert_eq!(listed["regions"][0]["name"], "file");
    assert_eq!(listed["regions"][0]["length"], 3_000_001);

    let region = format!("{}/file", server.address);
    assert!(stdout(&["info", &region]).contains("(3000001 bytes)"));
    let info: serde_json::Value = serde_json::from_str(&stdout(&["info", &region, "--json"])).unwrap();
    assert_eq!((info["epoch"].as_u64(), info["length"].as_u64()), (Some(1), Some(3_000_001)));
    assert_eq!(local["id"], info["id"], "a region is the same on both sides");

    let target = folder.path().join("target");
    let to = format!("file:{}", target.display());
    let copied: serde_json::Value = serde_json::from_str(&stdout(&["copy", &region, &to, "--json"])).unwrap();
    assert_eq!(copied["bytes"], 3_000_001);
    assert_eq!(std::fs::read(&target).unwrap(), bytes);
    // Again, over what is there, which is longer.
    std::fs::write(&target, vec![1; 4_000_000]).unwrap();
    stdout(&["copy", &region, &to, "-q"]);
    assert_eq!(std::fs::read(&target).unwrap(), bytes);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside the copy");
}

#[test]
fn holes_stay_holes_on_the_way() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    let sparse = std::fs::File::create(&source).unwrap();
    sparse.set_len(256 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &pattern(100_000), 77 << 20).unwrap();
    let server = Running::serve(&source);
    let target = folder.path().join("target");
    stdout(&["copy", &format!("{}/file", server.address), &format!("file:{}", target.display())]);
    let copy = std::fs::File::open(&target).unwrap();
    let found = copy.metadata().unwrap();
    assert_eq!(found.len(), 256 << 20);
    assert!(found.blocks() * 512 < 4 << 20, "{} blocks", found.blocks());
    let mut middle = vec![0; 100_000];
    std::os::unix::fs::FileExt::read_exact_at(&copy, &mut middle, 77 << 20).unwrap();
    assert_eq!(middle, pattern(100_000));
}

#[test]
fn a_unix_socket_carries_it_too_and_goes_with_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = pattern(100_000);
    let source = file(&folder, "source", &bytes);
    let socket = folder.path().join("socket");
    let listen = format!("pw+unix://{}", socket.display().to_string().replace('/', "%2F"));
    let offer = format!("a b/c=file:{}", source.display());
    let mut server = Running::start(&["serve", &offer, "zeroes=mem:1MiB", "--listen", &listen]);
    assert_eq!(server.address, listen);
    assert_eq!(stdout(&["list", &listen]).lines().count(), 2);
    let target = folder.path().join("target");
    stdout(&["copy", &format!("{listen}/a%20b/c"), &format!("file:{}", target.display())]);
    assert_eq!(std::fs::read(&target).unwrap(), bytes);

    let pid = i32::try_from(server.child.id()).unwrap();
    assert!(std::process::Command::new("kill").arg(pid.to_string()).status().unwrap().success());
    let status = server.child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(0), None), "SIGTERM ends a server cleanly");
    assert!(!socket.exists());
}

#[test]
fn errors_say_in_one_line_what_failed_and_exit_with_a_status() {
    let folder = tempfile::tempdir().unwrap();
    let source = file(&folder, "source", &pattern(10_000));
    let server = Running::serve(&source);
    let here = |name: &str| format!("file:{}", folder.path().join(name).display());
    let there = |name: &str| format!("{}/{name}", server.address);
    let socket = folder.path().join("socket");
    let socket = socket.to_str().unwrap();
    for (args, status, text) in [
        (vec!["serve"], 2, "required"),
        (vec!["serve", "nameless"], 2, "NAME=STORE"),
        (vec!["serve", "a=ftp://x"], 2, "no kind of store"),
        (vec!["serve", "a=mem:1QB"], 2, "no size"),
        (vec!["serve", &format!("a={}", here("missing"))], 1, "missing"),
        (vec!["serve", "a=mem:1K", "a=mem:1K", "--listen", "pw://127.0.0.1:0"], 2, "two regions"),
        (vec!["list", "pw://127.0.0.1:1"], 1, "is the server running"),
        (vec!["info", &there("other")], 1, "no region 'other'"),
        (vec!["info", "somewhere"], 2, "file:somewhere"),
        (vec!["copy", &there("other"), &here("x")], 1, "no region 'other'"),
        (vec!["copy", &there("file"), "mem:1K"], 1, "exceeds the region's capacity"),
        (vec!["copy", &there("file"), &there("other")], 1, "no region 'other'"),
        (vec!["serve", "a=mem:1K", "--listen", "pw://0.0.0.0:0"], 2, "--insecure"),
        (vec!["copy", &there("file"), &here("no/such/folder/x")], 1, "no/such/folder"),
        (vec!["uffd", &there("file"), "--socket", socket, "--chunk", "5000"], 2, "power of two"),
        (vec!["uffd", &there("file"), "--socket", socket, "--connections", "0"], 2, "1..=64"),
        (vec!["uffd", &there("file"), "--socket", "/no/such/folder/socket"], 1, "/no/such/folder"),
        (vec!["uffd", &there("other"), "--socket", socket], 1, "no region 'other'"),
        (vec!["info", &there("file"), "--patience", "soon"], 2, "no time"),
        (vec!["demo", "/no/such/file"], 1, "/no/such/file"),
        (vec!["nonsense"], 2, "unrecognized"),
    ] {
        let output = run(&args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {errors}");
        assert!(errors.contains(text), "{args:?}: {errors}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(status == 2 || errors.lines().count() == 1, "{args:?}: {errors}");
    }
}

#[test]
fn a_copy_from_a_server_that_dies_fails_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    // Large enough that it is not over before the server is.
    std::fs::File::create(&source).unwrap().set_len(64 << 30).unwrap();
    let bytes = pattern(64 << 20);
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::File::options().write(true).open(&source).unwrap(),
        &bytes,
        0,
    )
    .unwrap();
    let mut server = Running::serve(&source);
    let target = folder.path().join("target");
    std::fs::write(&target, b"what was there").unwrap();
    let to = format!("file:{}", target.display());
    let copy = pagewire(&["copy", &format!("{}/file", server.address), &to, "--patience", "300ms"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let part = folder.path().join("target.pagewire-part");
    wait_for("the copy has begun", || part.exists());
    server.child.kill().unwrap();
    let output = copy.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("cannot copy"), "{errors}");
    assert!(!part.exists());
    assert_eq!(std::fs::read(&target).unwrap(), b"what was there");
}

#[test]
fn a_copy_that_is_interrupted_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    std::fs::File::create(&source).unwrap().set_len(256 << 30).unwrap();
    let server = Running::serve(&source);
    let to = format!("file:{}", folder.path().join("target").display());
    let mut copy = pagewire(&["copy", &format!("{}/file", server.address), &to]).spawn().unwrap();
    let part = folder.path().join("target.pagewire-part");
    wait_for("the copy has begun", || part.exists());
    let pid = copy.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(copy.wait().unwrap().code(), Some(130));
    assert!(!part.exists());
}

#[test]
fn the_demonstration_shows_its_main_job() {
    let report: serde_json::Value =
        serde_json::from_str(&stdout(&["demo", "--rows", "20000", "--json"])).unwrap();
    assert_eq!(report["equal"], true);
    assert_eq!(report["query"]["answer"], "2 readings, 28.42 °C");
    assert!(report["first_use_bytes"].as_u64().unwrap() > 0);
    assert!(report["first_use_bytes"].as_u64() < report["bytes"].as_u64());
    assert_eq!(report["written"]["rows"], 2);
    assert_eq!(report["written"]["answer_after_restart"], "2 readings, 38.42 °C");
    let moved = &report["moved"];
    assert_eq!((moved["missing"].as_u64(), moved["doubled"].as_u64()), (Some(0), Some(0)));
    let (before, all) = (moved["committed_before"].as_u64().unwrap(), moved["committed"].as_u64().unwrap());
    assert!(0 < before && before < all, "{moved}");
    assert!(moved["downtime_seconds"].as_f64().unwrap() > 0.0);
    let text = stdout(&["demo", "--rows", "1000", "-q"]);
    assert!(text.contains(": 0 missing, 0 doubled"), "{text}");
    assert!(text.contains("SHA-256 of both sides        equal"), "{text}");
}

#[test]
fn the_demonstration_takes_any_file() {
    let folder = tempfile::tempdir().unwrap();
    for length in [0, 1, 300_001] {
        let path = file(&folder, "any", &pattern(length));
        let report: serde_json::Value =
            serde_json::from_str(&stdout(&["demo", path.to_str().unwrap(), "--json"])).unwrap();
        assert_eq!((report["equal"].as_bool(), report["bytes"].as_u64()), (Some(true), Some(length as u64)));
    }
}

#[test]
fn help_and_completions_are_there_for_every_command() {
    for command in ["serve", "list", "info", "copy", "uffd", "migrate", "doctor", "demo", "completions"] {
        let help = stdout(&[command, "--help"]);
        assert!(help.contains("Example") && help.contains(&format!("pagewire {command}")), "{help}");
    }
    assert!(stdout(&["completions", "bash"]).contains("_pagewire"));
    assert!(stdout(&["--version"]).starts_with("pagewire "));
}
