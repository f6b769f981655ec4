//! `pagewire mirror` and `pagewire follow` as a user meets them, and killed in the middle of it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::driving::{Running, pagewire, pattern, run, stdout, wait_for};

/// A process that says that it has begun, and is ended with this.
struct Process(Child);

impl Process {
    fn start(args: &[&str], word: &str) -> Self {
        Self::try_start(args, word).unwrap_or_else(|said| panic!("pagewire {args:?} said {said}"))
    }

    /// The same as soon as the lease of another one, that is gone, has lapsed.
    fn start_next(args: &[&str], word: &str) -> Self {
        let mut started = None;
        wait_for("the lease lapses", || {
            match Self::try_start(args, word) {
                Err(said) => assert!(said.contains("has the lease"), "pagewire {args:?} said {said}"),
                Ok(process) => started = Some(process),
            }
            started.is_some()
        });
        started.unwrap()
    }

    /// What it has said instead, where it does not begin.
    fn try_start(args: &[&str], word: &str) -> Result<Self, String> {
        let mut child = pagewire(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let mut process = Self(child);
        if !line.starts_with(word) {
            process.0.kill().unwrap();
            let mut errors = String::new();
            std::io::Read::read_to_string(&mut process.0.stderr.take().unwrap(), &mut errors).unwrap();
            return Err(format!("{line:?} and {errors}"));
        }
        // What it says at its end goes nowhere, and it is not to mind.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Ok(process)
    }

    /// Tells it to end, and waits for that.
    fn end(mut self) -> Option<i32> {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended is gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A hub, and the files around it.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        File::create(place.path("hub")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A hub at an address, whose leases do not outlive their holders for long.
    fn hub(&self, listen: &str) -> Running {
        let offer = format!("state=file:{}?capacity=8MiB", self.path("hub").display());
        Running::start(&["serve", &offer, "--listen", listen, "--lapse", "100ms"])
    }
}

fn is_equal(one: &Path, other: &Path) -> bool {
    std::fs::read(one).unwrap() == std::fs::read(other).unwrap()
}

#[test]
fn one_round_pushes_what_differs_and_one_step_brings_it() {
    let place = Place::new();
    let hub = place.hub("pw://127.0.0.1:0");
    let region = format!("{}/state", hub.address);
    let (file, copy) = (place.path("file"), place.path("copy"));
    std::fs::write(&file, pattern(1_000_000)).unwrap();
    let [file_name, copy_name] = [&file, &copy].map(|path| path.to_str().unwrap());
    let said = stdout(&["mirror", file_name, &region, "--once"]);
    assert_eq!(said, "pushed 976.6 KiB of 976.6 KiB, up to epoch 2\n");
    File::options().write(true).open(&file).unwrap().write_all_at(b"changed", 4090).unwrap();
    let json = stdout(&["mirror", file_name, &region, "--once", "--json", "--hash", "blake3", "--cpu", "50"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["pushed_bytes"].as_u64(), json["epoch"].as_u64()), (Some(8192), Some(3)), "{json}");
    let json = stdout(&["follow", &region, copy_name, "--once", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["epoch"].as_u64(), json["comparisons"].as_u64()), (Some(3), Some(1)), "{json}");
    assert!(is_equal(&file, &copy));
    let said = stdout(&["follow", &region, copy_name, "--once"]);
    assert_eq!(said, "brought 0 B of 976.6 KiB, up to epoch 3\n");
    let in_place = place.path("in-place");
    stdout(&["follow", &region, in_place.to_str().unwrap(), "--once", "--in-place"]);
    assert!(is_equal(&file, &in_place) && !place.path("in-place.pagewire").exists());
}

#[test]
fn what_cannot_be_is_refused() {
    let place = Place::new();
    let hub = place.hub("pw://127.0.0.1:0");
    let region = format!("{}/state", hub.address);
    let missing = run(&["mirror", "/no/such/file", &region]);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(missing.status.code() == Some(1) && said.contains("/no/such/file"), "{said}");
    let folder = place.folder.path().to_str().unwrap();
    assert_eq!(run(&["mirror", folder, &region]).status.code(), Some(2), "a directory is no file");
    let large = place.path("large");
    File::create(&large).unwrap().set_len(9 << 20).unwrap();
    let refused = run(&["mirror", large.to_str().unwrap(), &region, "--once"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("exceeds the region's capacity"), "{said}");
    assert_eq!(run(&["follow", &region, "mem:1MiB", "--in-place"]).status.code(), Some(2));
    assert_eq!(run(&["follow", &region, "pw://nowhere"]).status.code(), Some(2));
}

/// Each of the three roles is killed and started again while a program writes.
#[test]
fn whoever_is_killed_all_are_equal_in_the_end() {
    let place = Place::new();
    let (file, copy) = (place.path("file"), place.path("copy"));
    std::fs::write(&file, pattern(3_000_001)).unwrap();
    let writer = File::options().write(true).open(&file).unwrap();
    let [file_name, copy_name] = [&file, &copy].map(|path| path.to_str().unwrap());
    let mut hub = place.hub("pw://127.0.0.1:0");
    let address = hub.address.clone();
    let region = format!("{address}/state");
    let mirror = ["mirror", file_name, &region, "--interval", "5ms"];
    let follow = || Process::start(&["follow", &region, copy_name], "following ");
    let (mut mirroring, mut following) = (Process::start(&mirror, "mirroring "), follow());
    for round in 0..6u8 {
        let until = Instant::now() + Duration::from_millis(300);
        let mut at = u64::from(round) * 1009;
        while Instant::now() < until {
            writer.write_all_at(&[round; 700], at % 2_999_000).unwrap();
            at += 77_777;
        }
        match round % 3 {
            0 => {
                drop(mirroring);
                mirroring = Process::start_next(&mirror, "mirroring ");
            }
            1 => {
                drop(following);
                following = follow();
            }
            _ => {
                drop(hub);
                hub = place.hub(&address);
            }
        }
    }
    // Its last round is made when it is told to end.
    assert_eq!(mirroring.end(), Some(0));
    wait_for("the follower has everything", || is_equal(&file, &copy));
    assert_eq!(following.end(), Some(0));
    let fetched = place.path("fetched");
    stdout(&["copy", &region, &format!("file:{}", fetched.display())]);
    drop(hub);
    assert!(is_equal(&file, &fetched));
}
