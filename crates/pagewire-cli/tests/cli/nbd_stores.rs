//! NBD exports of other makers' servers as stores, as a user meets them.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::driving::{Running, pagewire, pattern, run, stdout};

/// Longer than anything here may take.
const HANG: Duration = Duration::from_secs(20);

/// Whether these tests are to run: without the servers they fail, unless `PAGEWIRE_TEST_SKIP` names them.
fn has_nbd() -> bool {
    let skipped = std::env::var("PAGEWIRE_TEST_SKIP").is_ok_and(|names| names.split(',').any(|n| n == "nbd"));
    if skipped {
        eprintln!("skipped: PAGEWIRE_TEST_SKIP names nbd");
    }
    !skipped
}

/// A server with a file, in a folder of its own. It is killed when this goes.
struct Server {
    folder: tempfile::TempDir,
    child: Child,
}

impl Server {
    /// Serves a file of these bytes by nbdkit at a UNIX socket.
    fn nbdkit(bytes: &[u8], options: &[&str]) -> Self {
        Self::start(bytes, |disk, socket| {
            let mut command = Command::new("nbdkit");
            command.args(["-f", "--exit-with-parent", "-U"]).arg(socket).args(options).arg("file").arg(disk);
            command
        })
    }

    /// The same by qemu-nbd, as the export `disk`.
    fn qemu(bytes: &[u8], options: &[&str]) -> Self {
        Self::start(bytes, |disk, socket| {
            let mut command = Command::new("qemu-nbd");
            command.args(["-t", "-f", "raw", "-x", "disk", "-D", "a disk of a test", "-e", "8", "-k"]);
            command.arg(socket).args(options).arg(disk);
            command
        })
    }

    fn start(bytes: &[u8], command: impl Fn(&Path, &Path) -> Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (disk, socket) = (folder.path().join("disk"), folder.path().join("socket"));
        std::fs::write(&disk, bytes).unwrap();
        let child = command(&disk, &socket).stdin(Stdio::null()).spawn().unwrap();
        let server = Self { folder, child };
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(begun.elapsed() < HANG, "the server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        format!("file:{}", self.path(name).display())
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path("socket").display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn exports_are_listed_and_described() {
    if !has_nbd() {
        return;
    }
    let server = Server::qemu(&pattern(65536), &["-r"]);
    let listed = stdout(&["list", &server.uri("")]);
    let expected = "disk      64 KiB  read  a disk of a test";
    assert!(listed.trim_end() == expected, "{listed}");
    let listed: serde_json::Value =
        serde_json::from_str(&stdout(&["list", &server.uri(""), "--json"])).unwrap();
    let disk = &listed["exports"][0];
    assert_eq!((disk["name"].as_str(), disk["length"].as_u64()), (Some("disk"), Some(65536)));
    let info = stdout(&["info", &server.uri("disk")]);
    assert!(info.contains("(65536 bytes)") && info.contains("can          stream"), "{info}");
    for (address, hint) in [
        (server.uri("none"), "it has no export 'none'"),
        ("nbd+unix:///disk".to_owned(), "?socket=PATH"),
        ("nbd+unix:///disk?socket=/nowhere".to_owned(), "cannot connect to nbd+unix:///disk?socket=/nowhere"),
    ] {
        let output = run(&["info", &address]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(hint) && said.lines().count() == 1, "{said}");
    }
    let output = run(&["list", &server.uri("disk")]);
    assert_eq!(output.status.code(), Some(2), "an export is no server");
}

#[test]
fn an_export_is_copied_both_ways_as_nbdcopy_does() {
    if !has_nbd() {
        return;
    }
    let mut bytes = vec![0; 40_000_001];
    bytes[..3_000_000].copy_from_slice(&pattern(3_000_000));
    bytes[30_000_000..30_500_000].copy_from_slice(&pattern(500_000));
    let server = Server::nbdkit(&bytes, &[]);
    // Its zeroes are to be holes.
    let disk = std::fs::OpenOptions::new().write(true).open(server.path("disk")).unwrap();
    disk.set_len(3_000_000).unwrap();
    disk.set_len(bytes.len() as u64).unwrap();
    disk.write_all_at(&bytes[30_000_000..30_500_000], 30_000_000).unwrap();

    stdout(&["copy", &server.uri(""), &server.file("ours"), "-q"]);
    let theirs = server.path("theirs").display().to_string();
    assert!(Command::new("nbdcopy").args([&server.uri(""), &theirs]).status().unwrap().success());
    assert!(std::fs::read(server.path("ours")).unwrap() == bytes);
    assert!(std::fs::read(server.path("theirs")).unwrap() == bytes);
    let blocks = std::fs::metadata(server.path("ours")).unwrap().blocks() * 512;
    assert!(blocks < 8_000_000, "holes have become {blocks} bytes");

    let changed = pattern(40_000_001);
    std::fs::write(server.path("changed"), &changed).unwrap();
    stdout(&["copy", &server.file("changed"), &server.uri(""), "-q"]);
    assert!(std::fs::read(server.path("disk")).unwrap() == changed);
    let output = run(&["copy", &server.file("ours"), "nbd://127.0.0.1:1/x", "-q"]);
    assert_eq!(output.status.code(), Some(1));

    std::fs::write(server.path("long"), vec![1; 40_000_002]).unwrap();
    let output = run(&["copy", &server.file("long"), &server.uri(""), "-q"]);
    assert!(!output.status.success(), "it does not fit");
    assert!(std::fs::read(server.path("disk")).unwrap() == changed, "and nothing of it was written");
}

#[test]
fn an_export_is_offered_to_peers() {
    if !has_nbd() {
        return;
    }
    let bytes = pattern(2 << 20);
    let server = Server::nbdkit(&bytes, &[]);
    let offer = format!("disk={}", server.uri(""));
    let passing = Running::start(&["serve", &offer, "--listen", "pw://127.0.0.1:0"]);
    let region = format!("{}/disk", passing.address);
    stdout(&["copy", &region, &server.file("copy"), "-q"]);
    assert!(std::fs::read(server.path("copy")).unwrap() == bytes);
    let changed: Vec<u8> = bytes.iter().rev().copied().collect();
    std::fs::write(server.path("changed"), &changed).unwrap();
    stdout(&["copy", &server.file("changed"), &region, "-q"]);
    assert!(std::fs::read(server.path("disk")).unwrap() == changed);
    // One that can only be read is offered to readers alone.
    drop(passing);
    let server = Server::qemu(&bytes, &["-r"]);
    let offer = format!("disk={}", server.uri("disk"));
    let output = run(&["serve", &offer, "--listen", "pw://127.0.0.1:0"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--read-only"), "{said}");
    let passing = Running::start(&["serve", &offer, "--listen", "pw://127.0.0.1:0", "--read-only"]);
    stdout(&["copy", &format!("{}/disk", passing.address), &server.file("copy"), "-q"]);
    assert!(std::fs::read(server.path("copy")).unwrap() == bytes);
}

/// A process that mounts, and its mount: both are gone when this goes.
struct Mounted(Child, PathBuf);

impl Mounted {
    fn start(region: &str, path: &Path, extra: &[&str]) -> Self {
        let place = path.to_str().unwrap();
        let mut child =
            pagewire(&[&["mount", region, place], extra].concat()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mounted = Self(child, path.into());
        assert!(line.starts_with("mounted "), "it said {line:?}");
        mounted
    }

    fn end(mut self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What has ended well has left neither.
        let _ = self.0.kill();
        let _ = Command::new("umount").args(["-q", "-l"]).arg(&self.1).stderr(Stdio::null()).status();
        let _ = self.0.wait();
    }
}

#[test]
fn an_export_is_mounted_as_a_file() {
    if !has_nbd() {
        return;
    }
    let bytes = pattern(3 << 20);
    let server = Server::nbdkit(&bytes, &[]);
    let path = server.path("mounted");
    let mounted = Mounted::start(&server.uri(""), &path, &[]);
    assert!(std::fs::read(&path).unwrap() == bytes);
    mounted.end();
    let mounted = Mounted::start(&server.uri(""), &path, &["--writable"]);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.write_all_at(&[7; 10_000], 5000).unwrap();
    file.sync_all().unwrap();
    let mut expected = bytes;
    expected[5000..15_000].fill(7);
    assert!(std::fs::read(server.path("disk")).unwrap() == expected, "what is synced is in the export");
    assert!(std::fs::read(&path).unwrap() == expected);
    drop(file);
    mounted.end();
}
