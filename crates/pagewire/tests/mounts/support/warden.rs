//! A process that takes down what this one has mounted when this one ends, however it ends.
//!
//! A process that is killed writes back what it has mapped, and closes what it has open, before it lets go of
//! `/dev/fuse`. Where that is of a mount of its own it waits for itself, and only the end of the mount's connection ends that.
//! The warden sees that it is about to end, and ends its mounts.
//!
//! It is this program, started again: the one test [`play`], with [`WARD`] set. Without it that test checks that nothing
//! is missing to see how a process is doing.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

/// Whose mounts are taken down: the number of a process.
const WARD: &str = "PAGEWIRE_TEST_WARD";

/// How often to look at the ward.
const LOOK: Duration = Duration::from_millis(50);

/// The bit of a process that is about to end among its flags (`PF_EXITING`).
const EXITING: u64 = 4;

/// The warden of this process.
static WARDEN: LazyLock<Mutex<Child>> = LazyLock::new(|| {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "support::warden::play", "--nocapture"]);
    command.env(WARD, std::process::id().to_string());
    // Not to be interrupted together with its ward, nor to hold the output that others wait for the end of.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    Mutex::new(command.spawn().unwrap())
});

/// Has the mount at `path` taken down at the end of this process, if it is still there then.
pub(crate) fn watch(path: &Path) {
    let mut warden = WARDEN.lock().unwrap();
    writeln!(warden.stdin.as_mut().unwrap(), "{}", path.display()).unwrap();
}

/// Ends the connection of the mount at `path` to the kernel, whatever waits for it, and takes it down.
pub(crate) fn abort(path: &Path) {
    // Most are gone.
    let _ = Command::new("umount").args(["-q", "-f", "-l"]).arg(path).stderr(Stdio::null()).status();
}

#[test]
fn play() {
    match std::env::var(WARD) {
        Ok(ward) => guard(&ward),
        Err(_) => assert!(!is_ending(&std::process::id().to_string())),
    }
}

fn guard(ward: &str) {
    let (sender, told) = channel();
    std::thread::spawn(move || {
        let lines = std::io::stdin().lines();
        lines.map_while(Result::ok).all(|line| sender.send(line).is_ok());
    });
    let mut paths = Vec::new();
    loop {
        match told.recv_timeout(LOOK) {
            Ok(path) => paths.push(path),
            Err(RecvTimeoutError::Timeout) if !is_ending(ward) => {}
            Err(_) => break,
        }
    }
    paths.iter().for_each(|path| abort(Path::new(path)));
}

/// Whether a process is gone, or about to be: as its main thread does.
fn is_ending(process: &str) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{process}/stat")) else { return true };
    // Behind the name, which may hold anything: the state, five numbers, and the flags.
    let (_, behind) = stat.rsplit_once(") ").unwrap();
    behind.split(' ').nth(6).unwrap().parse::<u64>().unwrap() & EXITING != 0
}
