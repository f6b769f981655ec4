//! Connections to NBD servers, on which TLS is begun in the middle of what is spoken in clear.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use super::connection::{Connection, refused};
use super::credentials::{ClientTls, Identity, Protocol};
use super::tls::Layer;
use crate::address::{NbdAddress, NbdPlace, NbdTls};
use crate::error::{Error, ErrorKind, Result};

impl Connection {
    /// Connects to an NBD server, without TLS.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] where nobody answers within `patience`.
    pub(crate) fn connect_nbd(address: &NbdAddress, patience: Duration) -> Result<Self> {
        let connected = match &address.place {
            NbdPlace::Tcp { host, port } => Self::connect_tcp((host.as_str(), *port), patience),
            NbdPlace::Unix(path) => connect_unix(path).map(Self::from),
        };
        connected.map_err(|error| Error::io(format!("cannot connect to {address}"), &error).with_retry(true))
    }

    /// Begins TLS, which the server expects just now. The timeouts are changed.
    ///
    /// # Errors
    ///
    /// As connecting to a peer through TLS; [`ErrorKind::Usage`] where nothing says which name the server's
    /// certificate is to be for.
    pub(crate) fn begin_nbd_tls(
        self,
        address: &NbdAddress,
        tls: &ClientTls,
        deadline: Instant,
    ) -> Result<Self> {
        let layer = layer(address, tls)?;
        let connection = self.with_tls(layer);
        connection.secure(deadline).map_err(|error| refused(address, &error))?;
        Ok(connection)
    }
}

fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    match path.as_os_str().as_bytes().strip_prefix(b"\0") {
        Some(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?),
        None => UnixStream::connect(path),
    }
}

fn layer(address: &NbdAddress, tls: &ClientTls) -> Result<Layer> {
    let Some(name) = address.server_name() else {
        let text = format!("{address}: name the server's certificate by tls-hostname=NAME");
        return Err(Error::new(ErrorKind::Usage, text));
    };
    let place = if name.contains(':') { format!("[{name}]:0") } else { format!("{name}:0") };
    let tls = address.tls.as_ref().map_or_else(|| tls.clone(), |said| credentials(said, tls));
    Layer::to_server(&place, &tls, Protocol::Nbd).map_err(|error| error.context(address))
}

/// What is said in the address goes before what is said elsewhere.
fn credentials(said: &NbdTls, tls: &ClientTls) -> ClientTls {
    let Some(folder) = &said.certificates else { return tls.clone() };
    let identity =
        Identity { certificate: folder.join("client-cert.pem"), key: folder.join("client-key.pem") };
    ClientTls {
        authorities: Some(folder.join("ca-cert.pem")),
        identity: if identity.certificate.exists() { Some(identity) } else { tls.identity.clone() },
    }
}
