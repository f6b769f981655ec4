//! The same by rsync, from one process to its daemon.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pagewire_study::bench::Failure;

use crate::{Cost, Direction, Setup, wire};

/// How long the daemon may take to be there.
const HANG: Duration = Duration::from_secs(10);

/// Any port: nobody else is in the namespace.
const PORT: u16 = 8730;

/// Sees to it that rsync is there.
pub(crate) fn install() -> Result<(), Failure> {
    let is_there = || Command::new("rsync").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !is_there() {
        eprintln!("installing rsync");
        let mut install = Command::new("apt-get");
        install
            .args(["install", "-y", "-q", "--no-install-recommends", "rsync"])
            .stdout(Stdio::null())
            .status()?;
    }
    if is_there() { Ok(()) } else { Err("'rsync' is needed (Debian: rsync)".into()) }
}

/// The daemon, which is ended when this is dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Copies what differs, and sees to it that the copy is good.
pub(crate) fn copy(setup: &Setup, direction: Direction) -> Result<Cost, Failure> {
    let folder = setup.folder();
    let configuration = folder.join("rsyncd.conf");
    let module =
        format!("use chroot = no\nuid = 0\ngid = 0\nread only = no\n[files]\npath = {}\n", folder.display());
    std::fs::write(&configuration, module)?;
    let cost = setup.namespace.run(|| -> Result<Cost, Failure> {
        let mut daemon = Command::new("rsync");
        daemon.args(["--daemon", "--no-detach", "--address=127.0.0.1", &format!("--port={PORT}")]);
        daemon.arg("--config").arg(&configuration).stdin(Stdio::null());
        let _daemon = Daemon(daemon.spawn()?);
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", PORT)).is_err() {
            if begun.elapsed() > HANG {
                return Err("rsync does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(50));
        let there = |name: &str| format!("rsync://127.0.0.1:{PORT}/files/{name}");
        let here = |path: std::path::PathBuf| path.display().to_string();
        let (from, to) = match direction {
            Direction::Push => (here(setup.source()), there("target")),
            Direction::Pull => (there("source"), here(setup.target())),
        };
        let mut rsync = Command::new("rsync");
        rsync.args(["--inplace", "--no-whole-file", "--block-size=4096", "--ignore-times", &from, &to]);
        let (before, begun) = (wire()?, Instant::now());
        if !rsync.status()?.success() {
            return Err("rsync has failed".into());
        }
        Ok(Cost { seconds: begun.elapsed().as_secs_f64(), wire: wire()? - before, frames: 0 })
    })??;
    setup.check()?;
    Ok(cost)
}
