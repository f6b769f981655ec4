//! What a failure of TLS means to people, and whether trying again can help.

use std::fmt;
use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use crate::error::ErrorKind;

/// A failure that trying again does not mend: it goes through layers that know only errors of I/O.
#[derive(Debug)]
struct Failure {
    kind: ErrorKind,
    text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// What an error says of TLS, if it does, and in a way that trying again does not mend.
pub(crate) fn failure(error: &io::Error) -> Option<(ErrorKind, String)> {
    let failure: &Failure = error.get_ref()?.downcast_ref()?;
    Some((failure.kind, failure.text.clone()))
}

/// An error of a connection that was in use: it is lost, as if its socket had failed.
pub(super) fn lost(error: &Error) -> io::Error {
    let kind = match error {
        Error::HandshakeNotComplete => io::ErrorKind::NotConnected,
        _ => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, format!("TLS: {error}"))
}

/// An error of the handshake, or the peer's word on it that comes after it.
pub(super) fn refused(error: &Error) -> io::Error {
    let (kind, text) = match error {
        Error::InvalidCertificate(error) => (ErrorKind::Denied, about_their_certificate(error)),
        Error::NoCertificatesPresented => (ErrorKind::Denied, "it shows no certificate".into()),
        Error::AlertReceived(alert) => match about_our_side(*alert) {
            Some((kind, text)) => (kind, text.into()),
            None => return lost(error),
        },
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload,
        ) => {
            let text = "it does not speak TLS (an address without TLS begins with pw://)";
            (ErrorKind::Protocol, text.into())
        }
        Error::PeerIncompatible(error) => (ErrorKind::Unsupported, format!("no TLS 1.3 with it: {error:?}")),
        Error::NoApplicationProtocol => (ErrorKind::Protocol, NOT_PW.into()),
        error => return lost(error),
    };
    io::Error::new(io::ErrorKind::InvalidData, Failure { kind, text })
}

/// What came first is no record of TLS.
pub(super) fn not_tls() -> io::Error {
    refused(&Error::InvalidMessage(InvalidMessage::InvalidContentType))
}

/// It speaks TLS and not `pw`.
pub(super) fn not_pw() -> io::Error {
    refused(&Error::NoApplicationProtocol)
}

const NOT_PW: &str = "it speaks TLS, but is no Pagewire process";

fn about_their_certificate(error: &CertificateError) -> String {
    match error {
        // The latter where an authority of the same name has another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "no authority that is trusted here has signed its certificate (--tls-ca names one)".into()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet (do the clocks agree?)".into()
        }
        CertificateError::NotValidForName => "its certificate is not for the name in the address".into(),
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "its certificate is for {}, not for '{}', the name in the address",
            if presented.is_empty() { "no name".into() } else { listed(presented) },
            expected.to_str()
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is for another purpose than this".into()
        }
        error => format!("its certificate cannot be accepted: {error}"),
    }
}

/// Names as people write them: they come as `DnsName("db.example")`, `IpAddress(10.0.0.7)`.
fn listed(presented: &[String]) -> String {
    let inner = |name: &String| {
        let inner = name.split_once('(').map_or(&**name, |(_, rest)| rest.trim_end_matches(')'));
        inner.trim_matches('"').to_owned()
    };
    presented.iter().map(inner).collect::<Vec<_>>().join(", ")
}

/// What the peer says of this side.
fn about_our_side(alert: AlertDescription) -> Option<(ErrorKind, &'static str)> {
    Some(match alert {
        AlertDescription::CertificateRequired => {
            (ErrorKind::Denied, "it wants a certificate of this side (--tls-cert and --tls-key)")
        }
        // The latter where it knows an authority of the same name that has another key.
        AlertDescription::UnknownCA | AlertDescription::DecryptError => (
            ErrorKind::Denied,
            "it does not trust the authority that has signed the certificate of this side (--tls-cert)",
        ),
        AlertDescription::CertificateExpired => {
            (ErrorKind::Denied, "the certificate of this side has expired (--tls-cert)")
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => {
            (ErrorKind::Denied, "it does not accept the certificate of this side (--tls-cert)")
        }
        AlertDescription::NoApplicationProtocol => (ErrorKind::Protocol, NOT_PW),
        AlertDescription::ProtocolVersion | AlertDescription::InsufficientSecurity => {
            (ErrorKind::Unsupported, "it does not speak TLS 1.3")
        }
        _ => return None,
    })
}
