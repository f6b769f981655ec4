//! The servers: ours, nbdkit's file plugin, qemu-nbd.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pagewire_study::bench::Failure;
use pagewire_study::nbd::NbdServerProcess;

/// How long a program may take to be there.
const HANG: Duration = Duration::from_secs(10);

/// The programs, and the Debian packages that have them.
const NEEDED: [(&str, &str); 4] =
    [("nbdkit", "nbdkit"), ("nbdcopy", "libnbd-bin"), ("qemu-nbd", "qemu-utils"), ("fio", "fio")];

/// Sees to it that the programs are there.
pub(crate) fn install() -> Result<(), Failure> {
    let is_there =
        |program: &str| Command::new("which").arg(program).output().is_ok_and(|out| out.status.success());
    for (program, package) in NEEDED.into_iter().filter(|(program, _)| !is_there(program)) {
        eprintln!("installing {package}");
        let mut install = Command::new("apt-get");
        install.args(["install", "-y", "-q", "--no-install-recommends", package]).stdout(Stdio::null());
        if !install.status().is_ok_and(|status| status.success()) || !is_there(program) {
            return Err(format!("'{program}' is needed (Debian: {package})").into());
        }
    }
    Ok(())
}

/// By what a server is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Tcp,
    Unix,
}

impl By {
    pub(crate) fn name(self) -> &'static str {
        match self {
            By::Tcp => "tcp",
            By::Unix => "unix",
        }
    }
}

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pagewire,
    Nbdkit,
    Qemu,
}

/// A server of a file, until this is dropped.
pub(crate) struct Served {
    _process: Process,
    pub(crate) uri: String,
}

enum Process {
    Ours(#[expect(dead_code, reason = "it ends when it is dropped")] NbdServerProcess),
    Other(Child),
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Process::Other(child) = self {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Served {
    pub(crate) fn start(
        kind: Kind,
        by: By,
        file: &Path,
        folder: &Path,
        writable: bool,
    ) -> Result<Self, Failure> {
        let socket = folder.join("socket");
        let _ = std::fs::remove_file(&socket);
        if kind == Kind::Pagewire {
            let address = match by {
                By::Tcp => "nbd://127.0.0.1:0".to_owned(),
                By::Unix => format!("nbd+unix:///?socket={}", socket.display()),
            };
            let process = NbdServerProcess::start(file, &address.parse()?, writable)?;
            let uri = process.address()?.to_string();
            return Ok(Self { _process: Process::Ours(process), uri });
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let uri = match by {
            By::Tcp => format!("nbd://127.0.0.1:{port}"),
            By::Unix => format!("nbd+unix:///?socket={}", socket.display()),
        };
        let (port_text, socket_text) = (port.to_string(), socket.display().to_string());
        let mut command = match (kind, by) {
            (Kind::Nbdkit, By::Tcp) => started("nbdkit", &["-f", "-i", "127.0.0.1", "-p", &port_text]),
            (Kind::Nbdkit, By::Unix) => started("nbdkit", &["-f", "-U", &socket_text]),
            (_, By::Tcp) => started("qemu-nbd", &["-b", "127.0.0.1", "-p", &port_text]),
            (_, By::Unix) => started("qemu-nbd", &["-k", &socket_text]),
        };
        match kind {
            Kind::Nbdkit => command.args((!writable).then_some("-r")).arg("file").arg(file),
            _ => {
                // What is written goes to the page cache, as with the others, and I/O as is best for that.
                command.args(["-t", "-e", "16", "-f", "raw", "--cache=writeback", "--aio=threads"]);
                command.args((!writable).then_some("-r")).arg(file)
            }
        };
        // They tell of the connections that only look whether they listen.
        let process = Process::Other(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let served = Self { _process: process, uri };
        wait_for(by, port, &socket)?;
        Ok(served)
    }
}

fn started(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn wait_for(by: By, port: u16, socket: &PathBuf) -> Result<(), Failure> {
    let begun = Instant::now();
    let listens = || match by {
        By::Tcp => std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(),
        By::Unix => std::os::unix::net::UnixStream::connect(socket).is_ok(),
    };
    while !listens() {
        if begun.elapsed() > HANG {
            return Err("a server does not listen".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
