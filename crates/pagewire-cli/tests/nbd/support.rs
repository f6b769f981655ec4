//! Servers and the programs that are their clients.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::driving::pagewire;

/// The system's own Python, which has the binding of libnbd.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// A server with a file to serve, in a folder of its own. It is killed when this goes.
pub(crate) struct Served {
    pub(crate) folder: tempfile::TempDir,
    child: Option<Child>,
    pub(crate) uris: Vec<String>,
}

impl Served {
    /// Serves the file `disk` of these bytes on a port and a UNIX socket.
    pub(crate) fn new(bytes: &[u8], options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("disk"), bytes).unwrap();
        let mut this = Self { folder, child: None, uris: Vec::new() };
        this.start(options);
        this
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Starts it, or starts it again.
    pub(crate) fn start(&mut self, options: &[&str]) {
        let offer = format!("disk=file:{}", self.text("disk"));
        let socket = format!("nbd+unix:///?socket={}", self.text("socket"));
        let fixed = ["serve", &offer, "--nbd", "nbd://127.0.0.1:0", "--nbd", &socket];
        self.start_as(&[&fixed[..], options].concat(), 2);
    }

    /// Starts a server that listens at so many addresses.
    pub(crate) fn start_as(&mut self, args: &[&str], addresses: usize) {
        let mut child = pagewire(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        self.uris.clear();
        for _ in 0..addresses {
            let line = lines.next().and_then(Result::ok).unwrap_or_default();
            let Some(uri) = line.strip_prefix("listening ") else {
                panic!("pagewire {args:?} said {line:?} and ended with {:?}", child.wait());
            };
            self.uris.push(uri.to_owned());
        }
        self.child = Some(child);
    }

    pub(crate) fn tcp(&self) -> &str {
        &self.uris[0]
    }

    pub(crate) fn unix(&self) -> &str {
        &self.uris[1]
    }

    /// Its process.
    pub(crate) fn pid(&self) -> String {
        self.child.as_ref().unwrap().id().to_string()
    }

    /// Waits until it has ended as it should.
    pub(crate) fn ends(&mut self) {
        assert!(self.child.take().unwrap().wait().unwrap().success());
    }

    /// Kills it without a word.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A test may have done so.
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// Has it end as it should.
    pub(crate) fn terminate(&mut self) {
        if let Some(mut child) = self.child.take() {
            succeed("kill", &["-TERM", &child.id().to_string()]);
            assert!(child.wait().unwrap().success());
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether tests that need this are to run: without it they fail, unless `PAGEWIRE_TEST_SKIP` names it.
pub(crate) fn has(need: &str) -> bool {
    let skipped = std::env::var("PAGEWIRE_TEST_SKIP").is_ok_and(|names| names.split(',').any(|n| n == need));
    if skipped {
        eprintln!("SKIPPED: PAGEWIRE_TEST_SKIP names {need}");
    }
    !skipped
}

/// Runs a program.
pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{program} is needed (./test installs it): {error}"))
}

/// What a program says that must succeed.
pub(crate) fn succeed(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}{errors}");
    said
}

/// What a program says that must fail.
pub(crate) fn fail(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    assert!(!output.status.success(), "{program} {args:?} succeeds");
    [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
}

/// Bytes that no compression, and no search for zeroes, makes less of.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Whether two files hold the same.
pub(crate) fn same(one: &Path, other: &Path) -> bool {
    std::fs::read(one).unwrap() == std::fs::read(other).unwrap()
}
