//! Processes that end in the middle of a migration, told to or not: the application runs on one side.

use std::path::PathBuf;

use super::application::NAME;
use super::{Application, Place};
use crate::driving::{run, stdout, wait_for};

/// A command that says that it has begun, and does not end before it may.
pub(super) struct Gate {
    begun: PathBuf,
    may: PathBuf,
}

impl Gate {
    pub(super) fn new(application: &Application, name: &str) -> Self {
        Self {
            begun: application.path(&format!("{name}.begun")),
            may: application.path(&format!("{name}.may")),
        }
    }

    /// The command, in front of another one.
    pub(super) fn before(&self, command: &str) -> String {
        let (begun, may) = (self.begun.display(), self.may.display());
        format!("echo > {begun}; while [ ! -e {may} ]; do sleep 0.01; done; {command}")
    }

    pub(super) fn wait(&self) {
        wait_for("the command is run", || self.begun.exists());
    }

    pub(super) fn open(&self) {
        std::fs::write(&self.may, "").unwrap();
    }

    fn close(&self) {
        for path in [&self.may, &self.begun] {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn status(of: &str) -> serde_json::Value {
    serde_json::from_str(&stdout(&["migrate", "status", of, "--json"])).unwrap()
}

/// An application that is held while it is suspended.
fn held() -> (Application, Gate, super::Side) {
    let application = Application::new();
    let gate = Gate::new(&application, "suspend");
    let out = application.out(&["--on-suspend", &gate.before(&application.script("stop"))]);
    application.go_on(&application.path("a"));
    application.wait_for_commits(2);
    (application, gate, out)
}

#[test]
fn a_destination_that_is_told_to_end_gives_up_and_the_application_goes_on() {
    let (application, gate, mut out) = held();
    let (region, path) = (out.region(NAME), application.path("b"));
    for signal in ["-TERM", "-INT"] {
        let mut there = application.arrive(&region, &path, &[]);
        gate.wait();
        there.signal(signal);
        std::thread::sleep(std::time::Duration::from_millis(50));
        gate.open();
        assert_eq!(there.end().code(), Some(1), "{}", there.errors());
        assert!(there.errors().contains("nothing has moved"), "{}", there.errors());
        application.wait_for_commits(2);
        assert_eq!(status(&region)["phase"], "idle");
        gate.close();
    }
    assert!(!path.exists(), "nothing was mounted");
    gate.open();
    let mut there = application.arrive(&region, &path, &[]);
    there.line("complete: ");
    assert_eq!(out.end().code(), Some(0), "{}", out.errors());
    application.stop();
    application.check(&path);
}

#[test]
fn an_origin_that_is_told_to_end_before_the_switch_keeps_everything() {
    let (application, gate, mut out) = held();
    let mut there = application.arrive(&out.region(NAME), &application.path("b"), &["--patience", "2s"]);
    gate.wait();
    out.signal("-TERM");
    std::thread::sleep(std::time::Duration::from_millis(50));
    gate.open();
    assert_eq!(there.end().code(), Some(1), "{}", there.errors());
    // It was resumed, and has lost its file after that.
    assert_eq!(out.end().code(), Some(0), "{}", out.errors());
    application.stop();
    application.leaves_nothing();
    let again = application.out(&[]);
    application.check(&application.path("a"));
    drop(again);
}

/// Killed while the origin suspends the application: the origin may have told it of the offer, and waits for it.
#[test]
fn a_destination_that_was_killed_in_the_switch_comes_back_or_is_given_up_by_force() {
    for is_forced in [false, true] {
        let (application, gate, mut out) = held();
        let (region, path) = (out.region(NAME), application.path("b"));
        let record = application.path("b.region.arrival");
        let mut there = application.arrive(&region, &path, &[]);
        gate.wait();
        there.kill();
        gate.open();
        wait_for("the application is suspended", || application.is_stopped());
        wait_for("it is known what has become of it", || status(&region)["phase"] != "tracking");
        let found = status(record.to_str().unwrap());
        assert_eq!((&found["side"], &found["phase"]), (&"destination".into(), &"copying".into()));
        let is_in_doubt = status(&region)["phase"] == "in-doubt";
        if is_in_doubt {
            let refused = run(&["migrate", "abort", &region]);
            let text = String::from_utf8_lossy(&refused.stderr);
            assert!(refused.status.code() == Some(1) && text.contains("in doubt"), "{refused:?}");
        }
        if is_forced {
            let aborted = stdout(&["migrate", "abort", record.to_str().unwrap()]);
            assert!(aborted.starts_with("aborted: "), "{aborted}");
            let aborted = stdout(&["migrate", "abort", &region, "--force"]);
            assert!(aborted.starts_with("idle: "), "{aborted}");
            application.wait_for_commits(2);
        }
        // What was not accepted is given up, and begun anew.
        let mut there =
            super::Side::start(application.folder(), &["migrate", "resume", record.to_str().unwrap()]);
        there.line("complete: ");
        assert_eq!(out.end().code(), Some(0), "{}", out.errors());
        application.wait_for_commits(2);
        application.stop();
        application.check(&path);
        there.signal("-TERM");
        assert_eq!(there.end().code(), Some(0), "{}", there.errors());
        application.leaves_nothing();
    }
}

/// Killed after it has accepted, while it has the application resumed: it is the owner, and goes on.
#[test]
fn a_destination_that_was_killed_after_it_has_accepted_goes_on() {
    let Place { application, mut out } = Place::start(&[]);
    let (region, path) = (out.region(NAME), application.path("b"));
    let gate = Gate::new(&application, "resume");
    let record = application.path("b.region.arrival");
    let resume = gate.before(&application.script("start"));
    for mode in ["post-copy", "pre-copy"] {
        let mut there = application.arrive(&region, &path, &["--mode", mode, "--on-resume", &resume]);
        gate.wait();
        there.kill();
        gate.close();
        let found = status(record.to_str().unwrap());
        assert_eq!((&found["side"], &found["phase"]), (&"destination".into(), &"post-copy".into()));
        let refused = run(&["migrate", "abort", record.to_str().unwrap(), "--force"]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("belongs here already"), "{refused:?}");
        assert_ne!(status(&region)["phase"], "idle", "the origin does not take it back");
        assert!(application.is_stopped());
    }
    gate.open();
    let mut there =
        super::Side::start(application.folder(), &["migrate", "resume", record.to_str().unwrap()]);
    there.line("arrived ");
    there.line("complete: ");
    assert_eq!(out.end().code(), Some(0), "{}", out.errors());
    application.wait_for_commits(2);
    application.stop();
    application.check(&path);
    there.signal("-TERM");
    assert_eq!(there.end().code(), Some(0), "{}", there.errors());
    application.leaves_nothing();
}

/// Killed in the moment of the switch: what it has suspended it does not resume, since it may have moved.
#[test]
fn an_origin_that_was_killed_in_the_switch_goes_by_its_record() {
    let application = Application::new();
    let mut out = application.out(&[]);
    application.go_on(&application.path("a"));
    application.wait_for_commits(2);
    let (region, path) = (out.region(NAME), application.path("b"));
    let record = application.path("a.store.migration");
    let gate = Gate::new(&application, "resume");
    let resume = gate.before(&application.script("start"));
    let mut there = application.arrive(&region, &path, &["--mode", "post-copy", "--on-resume", &resume]);
    gate.wait();
    // The destination has accepted, and this side may have heard of it.
    out.kill();
    let found = status(record.to_str().unwrap());
    assert_eq!(found["side"], "origin");
    assert!(found["phase"] == "in-doubt" || found["phase"] == "moved", "{found}");
    let refused = run(&["migrate", "abort", record.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(text.contains("in doubt") || text.contains("has moved"), "{refused:?}");
    let committed = application.committed();
    let address = region.strip_suffix(&format!("/{NAME}")).unwrap();
    let mut again = application.out(&["--listen", address]);
    assert!(again.errors().contains("must not run here"), "{}", again.errors());
    assert!(std::fs::File::options().write(true).open(application.path("a")).unwrap().set_len(1).is_err());
    assert!(application.is_stopped() && application.committed() == committed);
    gate.open();
    there.line("arrived ");
    there.line("complete: ");
    assert_eq!(again.end().code(), Some(0), "{}", again.errors());
    application.wait_for_commits(2);
    application.stop();
    application.check(&path);
    there.signal("-TERM");
    assert_eq!(there.end().code(), Some(0), "{}", there.errors());
    application.leaves_nothing();
}
