//! A region as an export, and its clients.
//!
//! All clients of an export are one writer: the first that comes takes the region's lease, and the last that
//! leaves flushes, and has it wait for as long as the lapse. So what one of them writes the others read at once,
//! and a flush by one of them covers all. While somebody else has the lease, or where nobody may write, a
//! client reads: the epoch that was the newest when it came, and no other.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::nbd::{BlockSizes, ExportInfo, Headers, MAX_PAYLOAD, TransmissionFlags};

use super::writing::{Seen, Writing};
use crate::engine::{Pin, Region};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Info, STAGED};

/// How an export behaves.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Whether nobody may write, whatever the region can.
    pub read_only: bool,
    /// For how long the lease waits for a client to come back after the last one has left.
    pub lapse: Duration,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self { read_only: false, lapse: Duration::from_secs(10) }
    }
}

/// A region as an export.
pub struct Export {
    region: Arc<Region>,
    options: ExportOptions,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of those who are there and may write.
    writers: usize,
    writing: Option<Arc<Writing>>,
    /// The lease that waits for a client to come back.
    waits: Option<u64>,
}

impl Export {
    /// The region as an export. Nothing is taken before a client comes.
    pub fn new(region: Arc<Region>, options: ExportOptions) -> Arc<Self> {
        Arc::new(Self { region, options, state: Mutex::default() })
    }

    /// The region.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// A client comes: it writes if it `may` and the lease can be had, and reads otherwise.
    ///
    /// # Errors
    ///
    /// Whatever keeps the region from being read.
    pub fn attach(self: &Arc<Self>, may: bool) -> Result<Attachment> {
        let writing = if may { self.join()? } else { None };
        let pin = match &writing {
            Some(writing) => writing.writer.pin(),
            None => self.region.pin()?,
        };
        let seen = writing.as_deref().map(Seen::now).unwrap_or_default();
        let info = pin.info();
        Ok(Attachment { export: self.clone(), pin, info, writing, seen })
    }

    /// What a client would be told of the export now, if it `may` write.
    pub(super) fn describe(&self, may: bool, headers: Headers) -> ExportInfo {
        let info = self.region.info();
        let state = self.lock();
        let length = state.writing.as_ref().map(|writing| writing.writer.stage().length);
        let writes = may && self.is_writable() && (length.is_some() || self.region.is_free_for(state.waits));
        let length = length.filter(|_| writes).unwrap_or(info.length);
        told(&self.region, length, &info, writes, headers)
    }

    fn is_writable(&self) -> bool {
        !self.options.read_only && self.region.info().writable
    }

    /// Joins the clients that write, if there can be any.
    fn join(&self) -> Result<Option<Arc<Writing>>> {
        if !self.is_writable() {
            return Ok(None);
        }
        let mut state = self.lock();
        // One whose lease somebody else has taken over is of no use to who comes now.
        if let Some(writing) = state.writing.as_ref().filter(|writing| writing.writer.is_held()).cloned() {
            state.writers += 1;
            return Ok(Some(writing));
        }
        let owner = format!("the NBD clients of '{}'", self.region.name());
        let resumed = state.waits.take().map(|token| self.region.resume_writer(token, &owner));
        let writer = match resumed {
            Some(Ok(writer)) => Ok(writer),
            Some(Err(_)) | None => self.region.writer(&owner),
        };
        match writer {
            Ok(writer) => {
                let writing = Arc::new(Writing::new(writer));
                state.writers = 1;
                state.writing = Some(writing.clone());
                Ok(Some(writing))
            }
            Err(error) if error.kind() == ErrorKind::Busy => {
                tracing::info!(region = self.region.name(), %error, "an NBD client can only read");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// A client that could write leaves. The last one flushes.
    fn leave(&self, writing: &Arc<Writing>) {
        let mut state = self.lock();
        if !state.writing.as_ref().is_some_and(|current| Arc::ptr_eq(current, writing)) {
            return;
        }
        state.writers -= 1;
        if state.writers > 0 {
            return;
        }
        state.writing = None;
        // Other servers of disks keep what was written and not flushed, too, when a client leaves.
        if writing.is_dirty()
            && let Err(error) = writing.flush()
        {
            tracing::error!(region = self.region.name(), %error, "what NBD clients have written is lost");
        }
        state.waits = Some(writing.writer.token());
        writing.writer.lose(self.options.lapse);
    }

    /// Nobody comes any more: the lease does not wait.
    pub(super) fn close(&self) {
        if let Some(token) = self.lock().waits.take()
            && let Ok(writer) = self.region.resume_writer(token, "an NBD server that ends")
        {
            writer.give_back();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

/// One client's part in an export, until it is dropped.
///
/// ```no_run
/// use std::os::unix::net::UnixStream;
///
/// use pagewire::access::nbd::{Export, ExportOptions, Headers, serve_transmission};
///
/// # fn main() -> pagewire::Result<()> {
/// # let store = std::sync::Arc::new(pagewire::store::MemoryStore::new(1 << 30));
/// let region = pagewire::engine::Region::new("disk", store)?;
/// let export = Export::new(region, ExportOptions::default());
/// let (ours, theirs) = UnixStream::pair().expect("there are descriptors left");
/// let attachment = export.attach(true)?;
/// // What a kernel that is given the other end has to be told.
/// println!("{} bytes, {:?}", attachment.size(), attachment.flags(Headers::Simple));
/// # drop(theirs);
/// serve_transmission(attachment, ours, Headers::Simple)?;
/// # Ok(())
/// # }
/// ```
pub struct Attachment {
    export: Arc<Export>,
    /// What the client sees.
    pin: Pin,
    /// What is known of it since it came.
    info: Info,
    writing: Option<Arc<Writing>>,
    seen: Seen,
}

impl Attachment {
    /// The size of the export, in bytes. It stays what it is.
    pub fn size(&self) -> u64 {
        self.info.length
    }

    /// Whether the client can write.
    pub fn is_writable(&self) -> bool {
        self.writing.is_some()
    }

    /// What the export can do for a client that uses these headers.
    pub fn flags(&self, headers: Headers) -> TransmissionFlags {
        flags(self.region(), &self.info, self.is_writable(), headers)
    }

    /// What the client is told of the export.
    pub(super) fn told(&self, headers: Headers) -> ExportInfo {
        told(self.region(), self.size(), &self.info, self.is_writable(), headers)
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        self.pin.region()
    }

    /// The epoch that the client reads, or [`STAGED`].
    pub(super) fn epoch(&self) -> u64 {
        self.pin.epoch()
    }

    pub(super) fn writing(&self) -> Result<&Arc<Writing>> {
        self.writing.as_ref().ok_or_else(|| Error::new(ErrorKind::Denied, "the export cannot be written to"))
    }

    /// Makes durable what was written by all clients before. Waits for it.
    pub(super) fn flush(&self) -> Result<()> {
        self.writing.as_ref().map_or(Ok(()), |writing| self.seen.flush(writing))
    }

    /// Which pages of `range` were written and not flushed, as runs of bytes, `most` at most.
    pub(super) fn unflushed(&self, range: ByteRange, most: usize) -> Vec<ByteRange> {
        self.writing.as_ref().map_or_else(Vec::new, |writing| writing.unflushed(range, most))
    }

    /// Whether zeroes cost less than to write them: they are only noted then.
    pub(super) fn zeroes_are_fast(&self) -> bool {
        self.info.capabilities.commit
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        debug_assert!(self.writing.is_none() || self.epoch() == STAGED);
        if let Some(writing) = &self.writing {
            self.export.leave(writing);
        }
    }
}

fn flags(region: &Region, info: &Info, writes: bool, headers: Headers) -> TransmissionFlags {
    use TransmissionFlags as Flags;
    let flags = Flags::HAS_FLAGS.with(Flags::SEND_FLUSH).with(Flags::SEND_FUA).with(Flags::SEND_CACHE);
    // Those who write see the same, and a flush covers all. Of those who read while others write each may have come
    // to another epoch.
    let flags = flags.with_if(Flags::CAN_MULTI_CONN, writes || region.is_immutable());
    let flags = flags.with_if(Flags::SEND_DF, headers.chunked());
    let flags = flags.with_if(Flags::BLOCK_STATUS_PAYLOAD, headers.extended());
    if !writes {
        return flags.with(Flags::READ_ONLY);
    }
    let fast = info.capabilities.commit;
    flags.with(Flags::SEND_TRIM).with(Flags::SEND_WRITE_ZEROES).with_if(Flags::SEND_FAST_ZERO, fast)
}

fn told(region: &Region, size: u64, info: &Info, writes: bool, headers: Headers) -> ExportInfo {
    ExportInfo {
        name: Some(region.name().into()),
        description: Some(describe(info)),
        blocks: Some(BlockSizes { minimum: 1, preferred: PAGE_SIZE as u32, maximum: MAX_PAYLOAD }),
        ..ExportInfo::new(size, flags(region, info, writes, headers))
    }
}

/// What a region is, for people and for backups, which ask for what has changed since an epoch.
pub(super) fn describe(info: &Info) -> String {
    format!("Pagewire region {}, epoch {}", info.id, info.epoch)
}
