//! Driving the real binary.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary with these arguments.
pub(crate) fn pagewire(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pagewire"));
    command.args(args).env_remove("PAGEWIRE_LOG").stdin(Stdio::null());
    command
}

/// What the binary says to these arguments, and how it ends.
pub(crate) fn run(args: &[&str]) -> Output {
    pagewire(args).output().unwrap()
}

/// What is on standard output of a command that must succeed.
pub(crate) fn stdout(args: &[&str]) -> String {
    let output = run(args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "pagewire {args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A server that has said where it listens. It is killed when this goes.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl Running {
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut child = pagewire(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening ").unwrap_or_else(|| {
            panic!("pagewire {args:?} said {line:?} and ended with {:?}", child.wait());
        });
        Self { address: address.to_owned(), child }
    }

    /// Offers a file under the name `file` on a free port.
    pub(crate) fn serve(path: &Path) -> Self {
        let offer = format!("file=file:{}", path.display());
        Self::start(&["serve", &offer, "--listen", "pw://127.0.0.1:0"])
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that differ from page to page and within a page.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| ((i / 4096) * 31 + i % 251) as u8).collect()
}

/// Waits until `ready`, and fails with `what` when that takes too long.
pub(crate) fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !ready() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
