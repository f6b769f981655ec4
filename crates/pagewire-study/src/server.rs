//! A Pagewire server in a process of its own, as a user would have one.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pagewire::access::serve::{Identity, Server, ServerOptions, ServerTls};
use pagewire::address::{FileAddress, JournalPlace, PeerAddress, StoreAddress};
use pagewire::engine::Region;
use pagewire::store::FileStore;
use pagewire_sys::net::NetNamespace;

use crate::child::{self, Child};
use crate::usage::Memory;

/// The hidden argument.
const ROLE: &str = "--pagewire-study-server";

/// The arguments that let clients read, write, and write without a journal.
const READ_ONLY: &str = "read-only";
const WRITABLE: &str = "writable";
const THROUGH: &str = "through";

/// The region's name.
const REGION: &str = "region";

/// Becomes the server if this process was started by [`ServerProcess::start`]; else returns. A program
/// that uses it begins its `main` with this.
pub fn serve_if_asked() {
    if let Some(arguments) = child::arguments_of(ROLE) {
        child::run(|| match arguments.as_slice() {
            [file, address, mode] => {
                serve(Path::new(file), &address.to_string_lossy(), &mode.to_string_lossy(), None)
            }
            [file, address, certificate, key] => {
                let identity = Identity { certificate: certificate.into(), key: key.into() };
                let tls = ServerTls { identity, clients: None };
                serve(Path::new(file), &address.to_string_lossy(), READ_ONLY, Some(tls))
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        });
    }
}

fn serve(file: &Path, address: &str, mode: &str, tls: Option<ServerTls>) -> io::Result<()> {
    let address: PeerAddress = address.parse().map_err(io::Error::other)?;
    let journal = if mode == THROUGH { JournalPlace::Off } else { JournalPlace::Beside };
    let file = FileAddress { journal, ..FileAddress::new(file) };
    let store = FileStore::at(&file, mode != READ_ONLY).map_err(io::Error::other)?;
    let region = Region::new(REGION, std::sync::Arc::new(store)).map_err(io::Error::other)?;
    let options = ServerOptions { tls, ..ServerOptions::default() };
    let server = Server::new([region], options).map_err(io::Error::other)?;
    let bound = server.listen(&address).map_err(io::Error::other)?;
    child::listening(format!("{bound}/{REGION}"))
}

/// A server process of one file, which is ended when this is dropped.
pub struct ServerProcess {
    child: Child,
}

impl ServerProcess {
    /// Starts a server of `file` that listens on TCP at `host`, any free port, inside `namespace` if
    /// there is one.
    ///
    /// # Errors
    ///
    /// Where the process cannot be started, or the file cannot be served.
    pub fn start(
        file: &Path,
        host: std::net::Ipv4Addr,
        namespace: Option<&NetNamespace>,
    ) -> io::Result<Self> {
        Self::start_as(READ_ONLY, file, host, namespace)
    }

    /// The same for clients that write.
    ///
    /// # Errors
    ///
    /// As [`ServerProcess::start`].
    pub fn start_writable(
        file: &Path,
        host: std::net::Ipv4Addr,
        namespace: Option<&NetNamespace>,
    ) -> io::Result<Self> {
        Self::start_as(WRITABLE, file, host, namespace)
    }

    /// The same for clients that read through TLS, on this host.
    ///
    /// # Errors
    ///
    /// As [`ServerProcess::start`].
    pub fn start_with_tls(file: &Path, identity: &Identity) -> io::Result<Self> {
        let arguments = [
            file.as_os_str(),
            "pw+tls://127.0.0.1:0".as_ref(),
            identity.certificate.as_ref(),
            identity.key.as_ref(),
        ];
        Ok(Self { child: Child::start(ROLE, &arguments, None)? })
    }

    /// The same for clients that write through: there is no journal.
    ///
    /// # Errors
    ///
    /// As [`ServerProcess::start`].
    pub fn start_through(file: &Path, host: std::net::Ipv4Addr) -> io::Result<Self> {
        Self::start_as(THROUGH, file, host, None)
    }

    fn start_as(
        mode: &str,
        file: &Path,
        host: std::net::Ipv4Addr,
        namespace: Option<&NetNamespace>,
    ) -> io::Result<Self> {
        let (file, address) = (PathBuf::from(file), format!("pw://{host}:0"));
        let child = Child::start(ROLE, &[file.as_os_str(), address.as_ref(), mode.as_ref()], namespace)?;
        Ok(Self { child })
    }

    /// Where the region is.
    ///
    /// # Errors
    ///
    /// Where the process said something else.
    pub fn region(&self) -> io::Result<StoreAddress> {
        self.child.address().parse().map_err(io::Error::other)
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Processor time that the process has used since it started.
    ///
    /// # Errors
    ///
    /// Where it has ended.
    pub fn cpu(&mut self) -> io::Result<Duration> {
        self.child.cpu()
    }

    /// The memory of the process.
    ///
    /// # Errors
    ///
    /// Where it has ended.
    pub fn memory(&self) -> io::Result<Memory> {
        Memory::of(self.child.id())
    }
}
