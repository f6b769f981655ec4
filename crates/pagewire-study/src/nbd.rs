//! Regions as NBD exports, and copies between stores, in processes of their own, as a user would have them.

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire::access::nbd::{NbdOptions, NbdServer};
use pagewire::address::{FileAddress, JournalPlace, NbdAddress, StoreAddress};
use pagewire::engine::Region;
use pagewire::engine::copy::{CopyOptions, copy};
use pagewire::store::{self, FileStore, RemoteOptions};

use pagewire_sys::net::NetNamespace;

use crate::child::{self, Child};
use crate::usage::Memory;

/// The hidden arguments.
const SERVE: &str = "--pagewire-study-nbd-server";
const COPY: &str = "--pagewire-study-copy";

/// Becomes the server or the copy if this process was started as one by this module; else returns. A program
/// that uses it begins its `main` with this.
pub fn run_if_asked() {
    if let Some(arguments) = child::arguments_of(SERVE) {
        child::run(|| match arguments.as_slice() {
            [file, address, mode] => serve(Path::new(file), &address.to_string_lossy(), mode == "writable"),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        });
    }
    if let Some(arguments) = child::arguments_of(COPY) {
        child::run(|| match arguments.as_slice() {
            [from, to] => copy_all(&from.to_string_lossy(), &to.to_string_lossy()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        });
    }
}

fn serve(file: &Path, address: &str, writable: bool) -> io::Result<()> {
    let address: NbdAddress = address.parse().map_err(io::Error::other)?;
    let file = FileAddress { journal: JournalPlace::Off, ..FileAddress::new(file) };
    let store = FileStore::at(&file, writable).map_err(io::Error::other)?;
    let region = Region::new("disk", Arc::new(store)).map_err(io::Error::other)?;
    let options = NbdOptions { read_only: !writable, ..NbdOptions::default() };
    let server = NbdServer::new([region], options).map_err(io::Error::other)?;
    let bound = server.listen(&address).map_err(io::Error::other)?;
    child::listening(bound)
}

fn copy_all(from: &str, to: &str) -> io::Result<()> {
    let open = |text: &str, writable| {
        let address: StoreAddress = text.parse()?;
        Ok((store::open(&address, writable, &RemoteOptions::default())?, address))
    };
    let copied = open(from, false).and_then(|(source, address)| {
        let source = Region::at(&address, source)?;
        let (target, _) = open(to, true)?;
        let options = CopyOptions { target_is_zero: true, ..CopyOptions::default() };
        copy(&source, &target, &options, |_| ())
    });
    copied.map(drop).map_err(|error: pagewire::Error| io::Error::other(error))
}

/// A server process of one file as an NBD export without a journal, which is ended when this is dropped.
pub struct NbdServerProcess {
    child: Child,
}

impl NbdServerProcess {
    /// Starts a server of `file` at `address`, where a port may be 0.
    ///
    /// # Errors
    ///
    /// Where the process cannot be started, or the file cannot be served.
    pub fn start(file: &Path, address: &NbdAddress, writable: bool) -> io::Result<Self> {
        Self::start_in(file, address, writable, None)
    }

    /// The same inside `namespace`, if there is one.
    ///
    /// # Errors
    ///
    /// As [`NbdServerProcess::start`].
    pub fn start_in(
        file: &Path,
        address: &NbdAddress,
        writable: bool,
        namespace: Option<&NetNamespace>,
    ) -> io::Result<Self> {
        let (address, mode) = (address.to_string(), if writable { "writable" } else { "read-only" });
        let child = Child::start(SERVE, &[file.as_os_str(), address.as_ref(), mode.as_ref()], namespace)?;
        Ok(Self { child })
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// Where the process said something else.
    pub fn address(&self) -> io::Result<NbdAddress> {
        self.child.address().parse().map_err(io::Error::other)
    }

    /// The memory of the process.
    ///
    /// # Errors
    ///
    /// Where it has ended.
    pub fn memory(&self) -> io::Result<Memory> {
        Memory::of(self.child.id())
    }

    /// Processor time that the process has used since it started.
    ///
    /// # Errors
    ///
    /// Where it has ended.
    pub fn cpu(&mut self) -> io::Result<Duration> {
        self.child.cpu()
    }
}

/// Copies a store that is zero where nothing is written, in a process, and answers how long that took from its
/// start to its end.
///
/// # Errors
///
/// Where the process fails.
pub fn copy_process(from: &str, to: &str) -> io::Result<Duration> {
    let begun = Instant::now();
    let status = Command::new(std::env::current_exe()?).args([COPY, from, to]).status()?;
    if !status.success() {
        return Err(io::Error::other(format!("a copy from {from} to {to} ended with {status}")));
    }
    Ok(begun.elapsed())
}
