//! One side of a migration: a process, what it says, and what it has mounted.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::driving::{pagewire, stdout};

/// Longer than anything here may take: whatever waits as long as this hangs.
pub(super) const HANG: Duration = Duration::from_secs(30);

/// A process that is gone when this goes.
pub(super) struct Child(pub(super) std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A side of a migration. It is gone when this goes, with its mounts.
pub(super) struct Side {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
    errors: PathBuf,
}

impl Side {
    /// Starts a command in a folder.
    pub(super) fn start(folder: &Path, args: &[&str]) -> Self {
        let errors = tempfile::NamedTempFile::new_in(folder).unwrap().keep().unwrap();
        let mut command = pagewire(args);
        command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors.0);
        let mut child = Child(command.spawn().unwrap());
        let stdout = BufReader::new(child.0.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // It ends with the process, and with those that it has started.
            stdout.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok());
        });
        Self { child, lines, said: Vec::new(), errors: errors.1 }
    }

    /// The next line that begins so.
    pub(super) fn line(&mut self, beginning: &str) -> String {
        let deadline = Instant::now() + HANG;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.said.push(line.clone());
                    if line.starts_with(beginning) {
                        return line;
                    }
                }
                Err(_) => panic!("no line {beginning:?} after {:?}; it said: {}", self.said, self.errors()),
            }
        }
    }

    /// The address of a region that it offers.
    pub(super) fn region(&self, name: &str) -> String {
        let address = self.said.iter().find_map(|line| line.strip_prefix("listening "));
        format!("{}/{name}", address.expect("it listens"))
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    pub(super) fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap().success());
    }

    pub(super) fn kill(&mut self) {
        self.child.0.kill().unwrap();
        self.child.0.wait().unwrap();
    }

    /// How it ends, within a deadline.
    pub(super) fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + HANG;
        loop {
            match self.child.0.try_wait().unwrap() {
                Some(status) => return status,
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                None => panic!("it does not end; it said: {:?}, {}", self.said, self.errors()),
            }
        }
    }

    /// It ends with this code, within a deadline.
    pub(super) fn ends_with(&mut self, code: i32) {
        assert_eq!(self.end().code(), Some(code), "{}", self.errors());
    }

    /// What it has said to standard error.
    pub(super) fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap()
    }
}

/// What `migrate status` says of a region that is offered, or of a record.
pub(super) fn status(of: &str) -> serde_json::Value {
    serde_json::from_str(&stdout(&["migrate", "status", of, "--json"])).unwrap()
}

/// The phase that it says.
pub(super) fn phase(of: &str) -> String {
    status(of)["phase"].as_str().unwrap().to_owned()
}

/// What is mounted in a folder.
pub(super) fn mounts_in(folder: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let places = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    places.filter(|place| place.starts_with(folder)).collect()
}
