//! The handshake of one connection: core's state machine, driven over a socket.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire_core::nbd::server::{Denied, Exports, Next, ServerHandshake, TlsMode, Transmission};
use pagewire_core::nbd::{ExportInfo, Headers, OptionReplyType};

use super::attachment::{Attachment, describe};
use super::contexts::Context;
use super::{Shared, errno};
use crate::access::serve::Access;
use crate::error::{Error, ErrorKind};
use crate::transport::{Acceptor, Connection, refused};

/// How often a thread that waits for a client looks whether the server stops.
const LOOK_UP: Duration = Duration::from_millis(100);

/// What a handshake has come to.
pub(super) struct Agreed {
    pub(super) connection: Connection,
    pub(super) attachment: Attachment,
    pub(super) headers: Headers,
    pub(super) contexts: Vec<Context>,
}

/// Shakes hands. None where the client has ended it, as it may.
///
/// # Errors
///
/// Where the client has broken the protocol, was not done by the deadline, or is gone.
pub(super) fn shake_hands(
    shared: &Arc<Shared>,
    mut connection: Connection,
    forced: bool,
    deadline: Instant,
) -> Result<Option<Agreed>, Error> {
    let mode = match &shared.tls {
        None => TlsMode::Absent,
        Some(_) if forced => TlsMode::Required,
        Some(_) => TlsMode::Offered,
    };
    let mut handshake = ServerHandshake::new(mode);
    let mut guest = Guest { shared, names: None, attachment: None };
    let (mut incoming, mut outgoing) = (Vec::new(), ServerHandshake::greeting().to_vec());
    loop {
        if !outgoing.is_empty() {
            connection.send(&[&outgoing], false).map_err(gone)?;
            outgoing.clear();
        }
        incoming.resize(handshake.wanted(), 0);
        receive(shared, &connection, &mut incoming, deadline).map_err(gone)?;
        if shared.is_stopping() {
            handshake.stop();
        }
        let next = handshake
            .receive(&incoming, &mut guest, &mut outgoing)
            .map_err(|malformed| Error::new(ErrorKind::Protocol, malformed.to_string()))?;
        if next == Next::Receive {
            continue;
        }
        connection.send(&[&outgoing], false).map_err(gone)?;
        outgoing.clear();
        match next {
            Next::Receive => {}
            Next::StartTls => {
                let acceptor: &Acceptor = shared.tls.as_ref().expect("it was offered");
                connection = connection.accept_tls(acceptor);
                connection.secure(deadline).map_err(|error| refused("a client", &error))?;
                guest.names = connection.names().map(<[_]>::to_vec);
            }
            Next::Close => return Ok(None),
            Next::Transmit(Transmission { headers, contexts, .. }) => {
                let attachment = guest.attachment.take().expect("an export was entered");
                let contexts = contexts.iter().filter_map(|name| Context::parse(name)).collect();
                return Ok(Some(Agreed { connection, attachment, headers, contexts }));
            }
        }
    }
}

fn gone(error: io::Error) -> Error {
    crate::transport::lost("a client", error)
}

/// Fills a buffer by the deadline, however slowly it comes.
fn receive(shared: &Shared, connection: &Connection, buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || shared.is_stopping() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        connection.set_timeouts(Some(left), Some(left.min(LOOK_UP)))?;
        match connection.receive(&mut buffer[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(came) => filled += came,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A client that looks at the exports.
struct Guest<'a> {
    shared: &'a Shared,
    /// The names in its certificate, where it has shown one.
    names: Option<Vec<String>>,
    /// Its part in the export that it has entered.
    attachment: Option<Attachment>,
}

impl Guest<'_> {
    /// What it may do with a region.
    fn access(&self, region: &str) -> Access {
        let permissions = &self.shared.options.permissions;
        permissions
            .as_ref()
            .map_or(Access::Write, |permissions| permissions.of(region, self.names.as_deref()))
    }

    /// The export of this name, and whether it may write to it.
    fn find(&self, name: &str) -> Result<(&Arc<super::Export>, bool), Denied> {
        let unknown = || {
            let message = match name {
                "" => "there is no default export: name one".into(),
                _ => format!("there is no export '{name}'"),
            };
            Denied { kind: OptionReplyType::ERR_UNKNOWN, message }
        };
        let exports = &self.shared.exports;
        let export = match name {
            // The only one is the default.
            "" if exports.len() == 1 => exports.values().next(),
            _ => exports.get(name),
        };
        let export = export.ok_or_else(unknown)?;
        match self.access(export.region().name()) {
            Access::Nothing => Err(unknown()),
            access => Ok((export, access == Access::Write)),
        }
    }
}

impl Exports for Guest<'_> {
    fn list(&mut self) -> Vec<(String, String)> {
        let exports = self.shared.exports.iter();
        let seen = exports.filter(|(name, _)| self.access(name) > Access::Nothing);
        seen.map(|(name, export)| (name.clone(), describe(&export.region().info()))).collect()
    }

    fn info(&mut self, name: &str, headers: Headers) -> Result<ExportInfo, Denied> {
        let (export, may) = self.find(name)?;
        Ok(export.describe(may, headers))
    }

    fn enter(&mut self, name: &str, headers: Headers) -> Result<ExportInfo, Denied> {
        let (export, may) = self.find(name)?;
        let attachment = export.attach(may).map_err(|error| {
            tracing::info!(name, %error, "an NBD client cannot use an export");
            Denied { kind: errno::to_reply(&error), message: error.to_string() }
        })?;
        let info = attachment.told(headers);
        self.attachment = Some(attachment);
        Ok(info)
    }

    fn contexts(&mut self, name: &str, query: Option<&str>, listing: bool) -> Result<Vec<String>, Denied> {
        self.find(name)?;
        Ok(Context::find(query, listing))
    }
}
