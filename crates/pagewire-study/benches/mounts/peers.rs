//! The other programs that make a remote file local, and a mount of each.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pagewire_study::bench::Failure;

/// How long a program may take to be there.
const HANG: Duration = Duration::from_secs(10);

/// The programs, and the Debian packages that have them.
const NEEDED: [(&str, &str); 4] = [
    ("nbdkit", "nbdkit"),
    ("nbdfuse", "nbdfuse"),
    ("qemu-storage-daemon", "qemu-utils"),
    ("fusermount3", "fuse3"),
];

/// Sees to it that the programs are there.
pub(crate) fn install() -> Result<(), Failure> {
    let is_there =
        |program: &str| Command::new("which").arg(program).output().is_ok_and(|o| o.status.success());
    for (program, package) in NEEDED.into_iter().filter(|(program, _)| !is_there(program)) {
        eprintln!("installing {package}");
        let mut install = Command::new("apt-get");
        install.args(["install", "-y", "-q", "--no-install-recommends", package]).stdout(Stdio::null());
        // The package has another name in some releases.
        let installed = install.status().is_ok_and(|status| status.success());
        if !(is_there(program) || installed && is_there(program) || program == "nbdfuse" && install_libnbd())
        {
            return Err(format!("'{program}' is needed (Debian: {package})").into());
        }
    }
    Ok(())
}

fn install_libnbd() -> bool {
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-q", "--no-install-recommends", "libnbd-bin"]).stdout(Stdio::null());
    install.status().is_ok_and(|status| status.success())
}

/// A process that is ended when this is dropped.
pub(crate) struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// nbdkit with a file, and its port.
pub(crate) struct Nbdkit {
    _process: Ended,
    port: u16,
}

impl Nbdkit {
    pub(crate) fn serve(file: &Path) -> Result<Self, Failure> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new("nbdkit");
        command.args(["--exit-with-parent", "-f", "-i", "127.0.0.1", "-p", &port.to_string(), "file"]);
        let process = Ended(command.arg(file).stdin(Stdio::null()).spawn()?);
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if begun.elapsed() > HANG {
                return Err("nbdkit does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { _process: process, port })
    }
}

/// A peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Qemu,
    Nbdfuse,
}

impl Peer {
    pub(crate) const ALL: [Self; 2] = [Self::Qemu, Self::Nbdfuse];
}

/// A file that a peer has mounted, until this is dropped.
pub(crate) struct Mounted {
    process: Option<Ended>,
    mount: PathBuf,
    pub(crate) file: PathBuf,
}

impl Mounted {
    /// Mounts what nbdkit serves, of `size` bytes, below `folder`.
    pub(crate) fn start(
        peer: Peer,
        nbd: &Nbdkit,
        folder: &Path,
        size: u64,
        writable: bool,
    ) -> Result<Self, Failure> {
        let (command, mount, file) = match peer {
            Peer::Qemu => {
                let mount = folder.join("qemu");
                std::fs::write(&mount, [])?;
                let mut command = Command::new("qemu-storage-daemon");
                let node = format!(
                    "driver=nbd,node-name=n,server.type=inet,server.host=127.0.0.1,server.port={}",
                    nbd.port
                );
                let on = if writable { "on" } else { "off" };
                let export =
                    format!("type=fuse,id=e,node-name=n,mountpoint={},writable={on}", mount.display());
                command.args(["--blockdev", &node, "--export", &export]);
                (command, mount.clone(), mount)
            }
            Peer::Nbdfuse => {
                let mount = folder.join("nbdfuse");
                std::fs::create_dir_all(&mount)?;
                let file = mount.join("file");
                let mut command = Command::new("nbdfuse");
                command
                    .args((!writable).then_some("-r"))
                    .arg(&file)
                    .arg(format!("nbd://127.0.0.1:{}", nbd.port));
                (command, mount, file)
            }
        };
        let mut command = command;
        let process = Some(Ended(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?));
        let mounted = Self { process, mount, file };
        let begun = Instant::now();
        while std::fs::metadata(&mounted.file).map_or(0, |found| found.len()) != size {
            if begun.elapsed() > HANG {
                return Err(format!("{peer:?} does not mount").into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What the process does not take down by itself when it is ended.
        drop(self.process.take());
        let _ = pagewire_sys::mount::unmount(&self.mount, true);
    }
}
