//! NBD servers of other makers, as processes of their own.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pagewire::address::{NbdAddress, NbdPlace, PeerAddress};
use pagewire::store::{NbdStore, RemoteOptions};

/// A server that can be killed and started again at the same address: the socket is the test's, and the
/// server gets it as systemd gives them (`LISTEN_FDS`). So nobody waits for it to listen, and no port is
/// guessed.
pub(crate) struct NbdServer {
    socket: Socket,
    arguments: Vec<String>,
    child: Option<Child>,
    folder: tempfile::TempDir,
    pub(crate) export: String,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// By what a server is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Tcp,
    Unix,
}

impl NbdServer {
    /// Starts `arguments[0]` with the rest.
    pub(crate) fn start(by: By, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = match by {
            By::Tcp => Socket::Tcp(TcpListener::bind("127.0.0.1:0").unwrap()),
            By::Unix => Socket::Unix(UnixListener::bind(folder.path().join("nbd")).unwrap()),
        };
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut server = Self { socket, arguments, child: None, folder, export: String::new() };
        server.go_on();
        server
    }

    /// nbdkit with these arguments.
    pub(crate) fn nbdkit(by: By, arguments: &[&str]) -> Self {
        let fixed = ["nbdkit", "--foreground", "--exit-with-parent"];
        Self::start(by, &[&fixed, arguments].concat())
    }

    /// nbdkit's plugin for files.
    pub(crate) fn nbdkit_file(by: By, path: &Path, arguments: &[&str]) -> Self {
        let (filters, parameters): (Vec<&str>, Vec<&str>) =
            arguments.iter().partition(|argument| argument.starts_with('-'));
        let path = path.to_str().unwrap();
        Self::nbdkit(by, &[&filters[..], &["file", path], &parameters[..]].concat())
    }

    /// qemu-nbd of a raw file.
    pub(crate) fn qemu(by: By, path: &Path, arguments: &[&str]) -> Self {
        let fixed = ["qemu-nbd", "--persistent", "--format=raw", "--export-name=disk"];
        let path = [path.to_str().unwrap()];
        let mut server = Self::start(by, &[&fixed, arguments, &path].concat());
        server.export = "disk".into();
        server
    }

    /// Kills the server, as `kill -9` does. Whoever connects waits.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts the server again.
    pub(crate) fn go_on(&mut self) {
        self.kill();
        let socket: OwnedFd = match &self.socket {
            Socket::Tcp(listener) => listener.try_clone().unwrap().into(),
            Socket::Unix(listener) => listener.try_clone().unwrap().into(),
        };
        let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\" 3<&0 </dev/null";
        let child = Command::new("sh")
            .args(["-c", script, "sh"])
            .args(&self.arguments)
            .stdin(Stdio::from(socket))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// The same with other arguments.
    pub(crate) fn go_on_with(&mut self, change: impl Fn(&mut Vec<String>)) {
        change(&mut self.arguments);
        self.go_on();
    }

    pub(crate) fn address(&self) -> NbdAddress {
        let place = match &self.socket {
            Socket::Tcp(listener) => {
                let port = listener.local_addr().unwrap().port();
                NbdPlace::Tcp { host: "127.0.0.1".into(), port }
            }
            Socket::Unix(_) => NbdPlace::Unix(self.socket_path()),
        };
        NbdAddress { place, export: self.export.clone(), tls: None }
    }

    fn socket_path(&self) -> PathBuf {
        self.folder.path().join("nbd")
    }

    /// Its address for a proxy.
    pub(crate) fn peer(&self) -> PeerAddress {
        let Socket::Tcp(listener) = &self.socket else { panic!("a TCP server") };
        PeerAddress::Tcp(listener.local_addr().unwrap().to_string())
    }

    pub(crate) fn open(&self, writable: bool) -> NbdStore {
        NbdStore::connect(&self.address(), writable, &options()).unwrap()
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What is behind a proxy at `peer`.
pub(crate) fn at(peer: &PeerAddress, export: &str) -> NbdAddress {
    let PeerAddress::Tcp(place) = peer else { panic!("a TCP proxy") };
    format!("nbd://{place}/{export}").parse().unwrap()
}

pub(crate) fn options() -> RemoteOptions {
    RemoteOptions { connections: 2, ..RemoteOptions::default() }
}
