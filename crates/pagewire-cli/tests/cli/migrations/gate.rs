//! A command of a migration that is held until the test has done what it wants to do in that moment.

use std::path::PathBuf;

use super::Application;
use super::side::Side;
use crate::driving::wait_for;

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

    pub(super) fn close(&self) {
        for path in [&self.may, &self.begun] {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// An application that is held while it is suspended.
pub(super) fn held() -> (Application, Gate, Side) {
    let application = Application::new();
    let gate = Gate::new(&application, "suspend");
    let out = application.out(&["--on-suspend", &gate.before(&application.script("stop"))]);
    application.go_on(&application.path("a"));
    application.wait_for_commits(2);
    (application, gate, out)
}
