//! What is between the moment when the destination takes the application over and the one when nobody needs the origin
//! any more: the origin is killed with bytes that nobody else has, or takes the application back.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::channel;

use super::Application;
use super::application::NAME;
use super::gate::held;
use super::link::{ALL, Direction, Link};
use super::side::{HANG, Side, mounts_in, phase, status};
use crate::driving::{pattern, run, stdout, wait_for};

const EIO: i32 = 5;

/// Reads from a file, within a deadline.
fn read_at(file: &File, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let (sender, answer) = channel();
    let file = file.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut bytes = vec![0; length];
        // The test has failed already if nobody listens.
        let _ = sender.send(file.read_exact_at(&mut bytes, offset).map(|()| bytes));
    });
    answer.recv_timeout(HANG).expect("a read hangs")
}

/// Killed while most of the region is there alone: who reads gets an error, and everything when it is back.
#[test]
fn an_origin_that_was_killed_with_bytes_outstanding_serves_them_when_it_is_back() {
    const LENGTH: usize = 24 << 20;
    const WRITTEN: usize = 20 << 20;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut bytes = pattern(LENGTH);
    std::fs::write(path("a.store"), &bytes).unwrap();
    let (offer, a, b) = (format!("data=file:{}", path("a.store")), path("a"), path("b"));
    let offered = |listen: &str| {
        let command = ["migrate", "out", &offer, "--mount", &a, "--on-suspend", "true", "--listen", listen];
        let mut out = Side::start(folder.path(), &command);
        out.line("listening ");
        out
    };
    let mut out = offered("pw://127.0.0.1:0");
    let region = out.region("data");
    let (here, there) = (path("a.store.migration"), path("b.region.arrival"));
    let link = Link::to(&region);
    // Enough for what the sides say to each other.
    link.pass(Direction::FromOrigin, 1 << 20);
    let (from, resume) = (link.region("data"), format!("echo >> {}", path("resumed")));
    let command =
        ["migrate", "in", &from, &b, "--mode", "post-copy", "--patience", "2s", "--on-resume", &resume];
    let mut arrived = Side::start(folder.path(), &command);
    arrived.line("arrived ");
    wait_for("the origin has heard of it", || phase(&region) == "moved");
    out.kill();
    assert_eq!(status(&here)["side"], "origin");
    assert_eq!((phase(&here), phase(&there)), ("moved".into(), "post-copy".into()));

    let file = File::options().read(true).write(true).open(&b).unwrap();
    let failed = read_at(&file, LENGTH as u64 - 65_536, 65_536).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(EIO), "{failed}");
    // Who writes whole pages needs nothing of the origin.
    bytes[WRITTEN..][..8192].fill(0xee);
    file.write_all_at(&bytes[WRITTEN..][..8192], WRITTEN as u64).unwrap();
    wait_for("it is said why", || arrived.errors().contains("what is left at the origin does not come"));
    assert_eq!(phase(&there), "post-copy");
    let refused = run(&["migrate", "abort", &there, "--force"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is another process's"), "{refused:?}");

    link.pass(Direction::FromOrigin, ALL);
    let mut again = offered(region.strip_suffix("/data").unwrap());
    assert!(again.errors().contains("must not run here"), "{}", again.errors());
    arrived.line("complete: ");
    again.ends_with(0);
    assert_eq!((phase(&here), phase(&there)), ("released".into(), "completed".into()));
    let found = read_at(&file, 0, LENGTH).unwrap();
    let differs = found.chunks(4096).zip(bytes.chunks(4096)).position(|(found, page)| found != page);
    assert_eq!(differs, None, "the first page that differs");
    drop(file);
    arrived.signal("-TERM");
    arrived.ends_with(0);
    assert!(std::fs::read(path("b.region")).unwrap() == bytes, "all of it is at home");
    assert_eq!(std::fs::read_to_string(path("resumed")).unwrap().lines().count(), 1);
    assert!(mounts_in(folder.path()).is_empty());
}

/// The destination owns the application and cannot say so; an operator who knows nothing of that takes it back.
#[test]
fn a_destination_whose_application_was_taken_back_by_force_ends_and_leaves_it_to_the_origin() {
    let Taken { application, out: _out, mut there, link: _link } = Taken::back("true");
    there.ends_with(1);
    assert_eq!(lines(&application.path("resumed")), 1);
    assert_eq!(mounts_in(application.folder()), [application.path("a")]);
    application.wait_for_commits(2);
    application.stop();
    application.check(&application.path("a"));
}

/// Its record has to say so, too, before it ends: else whoever begins it again runs the application on both sides.
#[test]
fn a_destination_whose_application_was_taken_back_by_force_suspends_it_says_so_and_can_only_begin_anew() {
    // Who waits for the rest hears of it long before the application is suspended.
    let Taken { application, mut out, mut there, link: _link } = Taken::back("sleep 1");
    there.ends_with(1);
    assert!(there.errors().contains("taken the application back by force"), "{}", there.errors());
    assert_eq!(lines(&application.path("suspended")), 1);
    let record = application.record("b.region.arrival");
    assert_eq!((phase(&record), phase(&out.region(NAME))), ("aborted".into(), "idle".into()));
    let mut there = application.resume(&record);
    there.line("complete: ");
    out.ends_with(0);
    assert_eq!(lines(&application.path("resumed")), 2);
    assert_eq!(lines(&application.path("suspended")), 1);
    let path = application.path("b");
    application.go_on(&path);
    application.runs_and_ends(&path, &mut there);
}
/// An application that was taken back by force, from a destination that hears of it now.
struct Taken {
    application: Application,
    out: Side,
    there: Side,
    link: Link,
}

impl Taken {
    /// The destination's command to suspend has this one in front.
    fn back(first: &str) -> Self {
        let (application, gate, out) = held();
        let region = out.region(NAME);
        let link = Link::to(&region);
        let (from, path) = (link.region(NAME), application.record("b"));
        let record = application.record("b.region.arrival");
        // The application itself is at the origin: what runs here only takes note of that.
        let note = |name: &str| format!("echo >> {}", application.path(name).display());
        let (resume, suspend) = (note("resumed"), format!("{first}; {}", note("suspended")));
        let hooks = ["--on-resume", &resume, "--on-suspend", &suspend, "--mode", "post-copy"];
        let mut there =
            Side::start(application.folder(), &[&["migrate", "in", &from, &path], &hooks[..]].concat());
        gate.wait();
        link.pass(Direction::ToOrigin, 0);
        gate.open();
        there.line("arrived ");
        wait_for("the origin waits for a word", || phase(&region) == "in-doubt");
        assert_eq!(phase(&record), "post-copy");
        assert!(application.is_stopped());
        assert_eq!((lines(&application.path("resumed")), lines(&application.path("suspended"))), (1, 0));
        let refused = run(&["migrate", "abort", &region]);
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && text.contains("in doubt"), "{refused:?}");
        let taken = stdout(&["migrate", "abort", &region, "--force"]);
        assert!(taken.starts_with("idle: "), "{taken}");
        application.wait_for_commits(2);
        link.pass(Direction::ToOrigin, ALL);
        Self { application, out, there, link }
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}
