//! `pagewire copy --delta` and `--resume` as a user meets them.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::driving::{Running, pagewire, pattern, stdout};

fn copied(args: &[&str]) -> Value {
    let args: Vec<&str> = [&["copy"], args, &["--json"]].concat();
    serde_json::from_str(&stdout(&args)).unwrap()
}

fn at(path: &Path) -> String {
    format!("file:{}", path.display())
}

#[test]
fn only_what_differs_moves_to_a_file_and_to_a_peer() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target, served) =
        (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
    let mut bytes = pattern(3_000_001);
    std::fs::write(&target, &bytes).unwrap();
    std::fs::write(&served, &bytes).unwrap();
    bytes[5000] ^= 1;
    bytes.extend([7; 10_000]);
    std::fs::write(&source, &bytes).unwrap();
    let (from, to) = (at(&source), at(&target));

    let done = copied(&[&from, &to, "--delta"]);
    assert_eq!(done["compared_bytes"], 3_010_001);
    assert!(done["moved_bytes"].as_u64().unwrap() <= 5 * 4096, "{done}");
    assert!(std::fs::read(&target).unwrap() == bytes, "it is in its place when the command has ended");
    assert_eq!(copied(&[&from, &to, "--delta", "--hash", "blake3"])["moved_bytes"], 0);

    let offer = format!("file=file:{}?capacity=4MiB", served.display());
    let server = Running::start(&["serve", &offer, "--listen", "pw://127.0.0.1:0"]);
    let region = format!("{}/file", server.address);
    let done = copied(&[&from, &region, "--delta"]);
    assert!(done["moved_bytes"].as_u64().unwrap() <= 5 * 4096, "{done}");
    let wire = |done: &Value| done["sent_bytes"].as_u64().unwrap() + done["received_bytes"].as_u64().unwrap();
    assert!(wire(&done) < 40_000, "{done}");
    let done = copied(&[&from, &region, "--delta"]);
    assert!(done["moved_bytes"] == 0 && wire(&done) < 4096, "{done}");
    // And back, over a file that is not there, and over one that is.
    let back = folder.path().join("d");
    let done = copied(&[&region, &at(&back), "--delta"]);
    assert!(done["moved_bytes"].is_null() && std::fs::read(&back).unwrap() == bytes);
    let said = stdout(&["copy", &region, &at(&back), "--delta"]);
    assert!(said.contains("moved 0 B") && said.contains("on the wire"), "{said}");
}

/// A copy that has begun: something is in `part`; or that has ended before that was seen.
fn begun(args: &[&str], part: &Path) -> Child {
    let mut child = pagewire(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let blocks = || part.metadata().map_or(0, |found| std::os::unix::fs::MetadataExt::blocks(&found));
    while blocks() < 2048 && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the copy does not begin");
    }
    child
}

#[test]
fn a_copy_that_was_killed_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (folder.path().join("a"), folder.path().join("b"));
    let part = folder.path().join("b.pagewire-part");
    let bytes = pattern(96 << 20);
    std::fs::write(&source, &bytes).unwrap();
    let server = Running::serve(&source);
    let (from, to) = (format!("{}/file", server.address), at(&target));
    let mut child = begun(&["copy", &from, &to, "--resume", "-q"], &part);
    // If it was done already, there is nothing left to go on from, and nothing left to test.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(part.exists() || target.exists());
    if part.exists() {
        assert!(!target.exists());
        // Whatever lies there is not believed.
        let file = std::fs::OpenOptions::new().write(true).open(&part).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"nonsense", 40_000).unwrap();
        drop(file);
        let done = copied(&[&from, &to, "--resume"]);
        assert!(done["moved_bytes"].as_u64().unwrap() < 96 << 20, "{done}");
        assert!(done["moved_bytes"].as_u64().unwrap() >= 4096, "{done}");
    }
    assert!(std::fs::read(&target).unwrap() == bytes);
    assert!(!part.exists());
    // Without --resume, nothing is left of a copy that is told to end.
    let mut child =
        begun(&["copy", &from, &at(&folder.path().join("c")), "-q"], &folder.path().join("c.pagewire-part"));
    let pid = child.id().to_string();
    // It may have ended already.
    std::process::Command::new("kill").arg(pid).stderr(Stdio::null()).status().unwrap();
    child.wait().unwrap();
    assert!(!folder.path().join("c.pagewire-part").exists());
}

#[test]
fn what_is_no_algorithm_is_wrong_usage() {
    let output = crate::driving::run(&["copy", "mem:4K", "mem:4K", "--delta", "--hash", "md5"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("auto, xxh3, or blake3"));
}

#[test]
fn what_is_compressed_is_less_on_the_wire_and_the_same_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (folder.path().join("a"), folder.path().join("b"));
    let bytes: Vec<u8> = (0..3_000_001).map(|at| (at / 1000 % 90 + 1) as u8).collect();
    std::fs::write(&source, &bytes).unwrap();
    let server = Running::serve(&source);
    let region = format!("{}/file", server.address);
    for (how, most) in [("off", u64::MAX), ("auto", u64::MAX), ("lz4", 300_000), ("zstd", 300_000)] {
        let done = copied(&[&region, &at(&target), "--compress", how]);
        assert!(std::fs::read(&target).unwrap() == bytes, "{how}");
        let received = done["received_bytes"].as_u64().unwrap();
        assert!(received < most && (how != "off" || received > 3_000_000), "{how}: {received}");
    }
    let output = crate::driving::run(&["copy", &region, &at(&target), "--compress", "gzip"]);
    assert_eq!(output.status.code(), Some(2));
    drop(server);
    let offer = format!("file=file:{}", source.display());
    let server = Running::start(&["serve", &offer, "--listen", "pw://127.0.0.1:0", "--compress", "off"]);
    let done = copied(&[&format!("{}/file", server.address), &at(&target), "--compress", "zstd"]);
    assert!(done["received_bytes"].as_u64().unwrap() > 3_000_000, "the server lets nobody");
}
