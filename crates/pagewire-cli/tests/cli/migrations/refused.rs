//! What is refused, and what is given up: the application goes on where it was.

use pagewire_sys::event::PidFd;

use super::application::NAME;
use super::{Application, Place};
use crate::driving::{run, wait_for};

#[test]
fn words_that_make_no_sense_are_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (offer, at) = (format!("db=file:{}?size=1MiB", path("store")), path("at"));
    let (offer, at) = (offer.as_str(), at.as_str());
    let region = "pw://127.0.0.1:1/db";
    for (args, status, expected) in [
        (&["out", offer, "--mount", at][..], 2, "--on-suspend CMD, or --suspend-pid PID"),
        (&["out", offer, "--on-suspend", "true"], 2, "--mount"),
        (
            &["out", offer, "--mount", at, "--on-suspend", "true", "--listen", "pw://192.0.2.1:7070"],
            2,
            "take over",
        ),
        (&["out", offer, "x=mem:1", "--mount", at, "--on-suspend", "true"], 2, "names none"),
        (&["out", offer, "--mount", at, "--suspend-pid", "1"], 2, "--suspend-pid"),
        (&["out", offer, "--mount", at, "--suspend-pid", "4194305"], 1, "no process 4194305"),
        (&["in", region], 2, "PATH"),
        (&["in", region, at, region], 2, "PATH"),
        (&["in", "db", at], 2, "pw://"),
        (&["in", region, at, "--mode", "fast"], 2, "pre-copy"),
        (&["in", region, at, "--max-downtime", "50"], 2, "ms"),
        (&["in", region, at, "--store", "mem:1", "--store", "mem:1"], 2, "--store"),
        (&["in", region, at, "--store", "pw://127.0.0.1:1/x"], 2, "not of this host"),
        (&["in", region, at, "--suspend-pid", "77"], 2, "--on-suspend"),
        (&["in", region, at, "--listen", "pw://127.0.0.1:0"], 2, "--on-suspend"),
        (&["in", region, at, "--patience", "100ms"], 1, "is the server running"),
        (&["status", region, "--patience", "100ms"], 1, "is the server running"),
        (&["status", at], 1, "tells of no migration"),
        (&["status", "/proc/version"], 1, "no record"),
        (&["abort", at, "--force"], 1, "tells of no migration"),
        (&["resume", at], 1, "begin it again by hand"),
    ] {
        let args = [&["migrate"], args].concat();
        let ended = run(&args);
        let text = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(status) && text.contains(expected), "{args:?}: {ended:?}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn what_is_not_there_is_not_moved() {
    let Place { application, out } = Place::start(&[]);
    let none = run(&["migrate", "in", &out.region("none"), "elsewhere"]);
    assert_eq!(none.status.code(), Some(1), "{none:?}");
    assert!(String::from_utf8_lossy(&none.stderr).contains("no region 'none'"), "{none:?}");
    let status = run(&["migrate", "status", &out.region("none")]);
    assert!(String::from_utf8_lossy(&status.stderr).contains("'none'"), "{status:?}");
    // Somewhere it does not fit.
    let [here, store] = ["here", "small"].map(|name| application.path(name).display().to_string());
    let small = run(&["migrate", "in", &out.region(NAME), &here, "--store", "mem:4KiB"]);
    assert!(small.status.code() == Some(1), "{small:?} {store}");
    application.wait_for_commits(2);
    assert!(!application.is_stopped());
}

/// A command that fails, and one that hangs: the application is resumed, and the next attempt succeeds.
#[test]
fn a_command_that_does_not_suspend_the_application_ends_the_migration() {
    let application = Application::new();
    let (fail, hang, slept) = (application.path("fail"), application.path("hang"), application.path("slept"));
    let command = format!(
        "if [ -e {} ]; then echo it cannot be stopped; exit 7; fi; \
         if [ -e {} ]; then sleep 1000 & echo $! > {}; wait; fi; {}",
        fail.display(),
        hang.display(),
        slept.display(),
        application.script("stop")
    );
    let mut out = application.out(&["--on-suspend", &command, "--hook-timeout", "1s"]);
    application.go_on(&application.path("a"));
    application.wait_for_commits(2);
    let (region, path) = (out.region(NAME), application.path("b"));
    for (cause, expected) in [(&fail, "exit status: 7"), (&hang, "took longer than 1s")] {
        std::fs::write(cause, "").unwrap();
        let failed = run(&["migrate", "in", &region, path.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&failed.stderr);
        assert!(failed.status.code() == Some(1) && text.contains(expected), "{failed:?}");
        std::fs::remove_file(cause).unwrap();
        application.wait_for_commits(2);
    }
    assert!(out.errors().contains("it cannot be stopped"), "{}", out.errors());
    let sleeper: u32 = std::fs::read_to_string(slept).unwrap().trim().parse().unwrap();
    wait_for("what the command has started is gone", || {
        PidFd::open(sleeper).is_err() || pagewire_sys::process::is_stopped(sleeper).unwrap_or(true)
    });
    let mut there = application.arrive(&region, &path, &[]);
    there.line("complete: ");
    out.ends_with(0);
    application.stop();
    application.check(&path);
}

/// The regions are there then: that nobody could start the application does not take them back.
#[test]
fn an_application_that_cannot_be_resumed_is_told() {
    let Place { application, mut out } = Place::start(&[]);
    let path = application.path("b");
    let mut there = application.arrive(&out.region(NAME), &path, &["--on-resume", "exit 3"]);
    there.line("arrived ");
    there.line("complete: ");
    out.ends_with(0);
    assert!(there.errors().contains("resume it by hand"), "{}", there.errors());
    application.go_on(&path);
    application.wait_for_commits(2);
    application.stop();
    application.check(&path);
    there.signal("-TERM");
    assert_eq!(there.end().code(), Some(1), "it has failed in part");
    application.leaves_nothing();
}
