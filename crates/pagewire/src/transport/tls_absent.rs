//! What stands for TLS in a library that was built without it: nothing can be made of these types, and who
//! asks for TLS is told so.

use std::convert::Infallible;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::{ClientTls, Protocol, ServerTls};
use crate::error::{Error, ErrorKind, Result};

/// The TLS of one connection.
pub(super) struct Layer(Infallible);

/// What a server needs to begin TLS on a connection.
#[derive(Clone)]
pub(crate) struct Acceptor(Infallible);

fn absent() -> Error {
    Error::new(ErrorKind::Unsupported, "this program was built without TLS (the cargo feature 'tls')")
}

impl Acceptor {
    pub(crate) fn load(_: &ServerTls, _: Protocol) -> Result<Self> {
        Err(absent())
    }

    pub(in crate::transport) fn layer(&self) -> Layer {
        match self.0 {}
    }

    pub(crate) fn knows_clients(&self) -> bool {
        match self.0 {}
    }
}

impl Layer {
    pub(super) fn to_server(_: &str, _: &ClientTls, _: Protocol) -> Result<Self> {
        Err(absent())
    }

    pub(super) fn shake_hands(&self, _: &super::Connection, _: Instant) -> io::Result<()> {
        match self.0 {}
    }

    pub(super) fn names(&self) -> Option<&[String]> {
        match self.0 {}
    }

    pub(super) fn send(&self, _: BorrowedFd<'_>, _: &[&[u8]], _: bool) -> io::Result<()> {
        match self.0 {}
    }

    pub(super) fn send_file(
        &self,
        _: BorrowedFd<'_>,
        _: BorrowedFd<'_>,
        _: u64,
        _: u64,
    ) -> (u64, io::Result<()>) {
        match self.0 {}
    }

    pub(super) fn receive(&self, _: BorrowedFd<'_>, _: &mut [u8]) -> io::Result<usize> {
        match self.0 {}
    }

    pub(super) fn receive_exact(&self, _: BorrowedFd<'_>, _: &mut [u8]) -> io::Result<()> {
        match self.0 {}
    }

    pub(super) fn close(&self, _: BorrowedFd<'_>) {
        match self.0 {}
    }
}

/// What an error says of TLS, if it does.
pub(super) fn failure(_: &io::Error) -> Option<(ErrorKind, String)> {
    None
}
