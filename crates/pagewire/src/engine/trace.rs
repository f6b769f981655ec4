//! Which bytes a program needed first, second, and so on: recorded in one run, so that the background pull of the
//! next one brings them in that order.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use pagewire_core::chunk::{ByteRange, ChunkIndex, ChunkSize};
use pagewire_core::pull::{PullOrder, Trace as Order};

use crate::error::{Error, Result};

/// A trace that is being recorded. It is written when it is dropped, and by [`Trace::save`].
#[derive(Debug)]
pub struct Trace {
    path: PathBuf,
    chunk: ChunkSize,
    needed: Mutex<Needed>,
}

#[derive(Debug, Default)]
struct Needed {
    seen: HashSet<u64>,
    order: Vec<ChunkIndex>,
}

impl Trace {
    /// A trace in chunks of `chunk`, to be written to the file at `path`.
    ///
    /// # Errors
    ///
    /// If the file cannot be made.
    pub fn record_to(path: &Path, chunk: ChunkSize) -> Result<Self> {
        let trace = Self { path: path.into(), chunk, needed: Mutex::default() };
        trace.save()?;
        Ok(trace)
    }

    /// A program needs `range` now.
    pub fn record(&self, range: ByteRange) {
        let mut needed = self.needed.lock().expect("no holder panics");
        let size = self.chunk.bytes();
        for chunk in range.start / size..range.end.div_ceil(size) {
            if needed.seen.insert(chunk) {
                needed.order.push(ChunkIndex(chunk));
            }
        }
    }

    /// Writes what was recorded by now. The file is replaced as a whole.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn save(&self) -> Result<()> {
        let failed = |error| Error::io(format!("cannot write the trace {}", self.path.display()), &error);
        let chunks = self.needed.lock().expect("no holder panics").order.clone();
        let text = Order { chunk: self.chunk, chunks }.to_string();
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let write = || {
            std::fs::File::create(&new)?.write_all(text.as_bytes())?;
            std::fs::rename(&new, &self.path)
        };
        write().map_err(failed)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Err(error) = self.save() {
            tracing::error!(%error, "a trace is lost");
        }
    }
}

/// The order that was recorded to the file at `path`, for a pull in chunks of `chunk`.
///
/// # Errors
///
/// If the file cannot be read; [`ErrorKind::Usage`](crate::ErrorKind::Usage) if it is no trace.
pub fn recorded(path: &Path, chunk: ChunkSize) -> Result<PullOrder> {
    let failed = |error| Error::io(format!("cannot read the trace {}", path.display()), &error);
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let order: Order = text.parse().map_err(|error| {
        let text = format!("{} is no trace: {error}", path.display());
        Error::new(crate::ErrorKind::Usage, text)
    })?;
    Ok(PullOrder::List(order.in_chunks_of(chunk)))
}
