//! The file that is mirrored, as a local copy: what of it has changed since it was pushed is found by hashing.
//!
//! For each page there is the hash of the bytes that were read of it last to be pushed, or found to be at the region. It is
//! set when the bytes are read, not when they are found changed: so it is that of what the region gets, whatever becomes
//! of the page in between, and a page that is another one by then is found changed the next time.
//!
//! The file is mapped, and each page copied to the nearest cache to be hashed there: what others map and write to is no memory of
//! ours, so that no reference to it is made; and a file that is cut ends a copy, not this process. What cannot be had from the
//! mapping, and files that are not to be mapped, are read through the kernel. That is right as well, but a third of
//! the speed: it looks each page up, where a mapping has it in a table.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::delta::{self, Node, Scheme};
use pagewire_sys::file;
use pagewire_sys::file_mapping::FileMapping;
use pagewire_sys::mapping::Protection;

use crate::engine::LocalCopy;
use crate::error::{Error, ErrorKind, Result};

const PAGE: usize = PAGE_SIZE as usize;

/// How much one thread hashes before it takes the next piece.
const PIECE: u64 = 4 << 20;

/// How much is read at once: with the hash's copy of it, it stays in the nearest caches.
const READ: usize = 32 << 10;

/// What no page has as its hash.
const UNKNOWN: Node = Node([0xfe; 16]);

/// A file that is mirrored.
pub(super) struct Watched {
    scheme: Scheme,
    threads: usize,
    state: Mutex<State>,
}

struct State {
    file: Arc<File>,
    /// As much of it as is mirrored; none where it is not to be mapped.
    mapping: Option<FileMapping>,
    /// Device and inode.
    identity: (u64, u64),
    /// The length that is mirrored, in bytes.
    length: u64,
    /// What was pushed of each page.
    leaves: Vec<Node>,
    /// How long the last pass took.
    hashing: Duration,
}

impl Watched {
    pub(super) fn open(path: &Path, scheme: Scheme, threads: Option<usize>) -> Result<Self> {
        let (file, identity) = open(path)?;
        let length = length_of(&file)?;
        let threads = threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from));
        let state = State {
            file: Arc::new(file),
            mapping: None,
            identity,
            length,
            leaves: vec![UNKNOWN; pages(length)],
            hashing: Duration::ZERO,
        };
        Ok(Self { scheme, threads: threads.unwrap_or(1).max(1), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    pub(super) fn scheme(&self) -> Scheme {
        self.scheme
    }

    pub(super) fn threads(&self) -> u32 {
        self.threads.try_into().unwrap_or(u32::MAX)
    }

    pub(super) fn length(&self) -> u64 {
        self.lock().length
    }

    /// How long the last pass over the file took.
    pub(super) fn hashing(&self) -> Duration {
        self.lock().hashing
    }

    /// The hashes of the pages of a window.
    pub(super) fn leaves(&self, window: ByteRange) -> Vec<Node> {
        let (first, end) = ((window.start / PAGE_SIZE) as usize, window.end.div_ceil(PAGE_SIZE) as usize);
        self.lock().leaves[first..end].to_vec()
    }

    /// The hash of everything that was pushed.
    pub(super) fn root(&self) -> Node {
        delta::root(&self.scheme, &self.lock().leaves)
    }

    /// Moves on to the file that is at `path` now, if it is another one. Answers whether it is.
    pub(super) fn reopen(&self, path: &Path) -> Result<bool> {
        let found = std::fs::metadata(path).map_err(|error| cannot("look at", path, &error))?;
        if identity_of(&found) == self.lock().identity {
            return Ok(false);
        }
        let (file, identity) = open(path)?;
        let mut state = self.lock();
        (state.file, state.mapping, state.identity) = (Arc::new(file), None, identity);
        Ok(true)
    }

    /// How long the file is now.
    pub(super) fn look_at_length(&self) -> Result<u64> {
        let file = self.lock().file.clone();
        length_of(&file)
    }

    /// The region is that long now: what is new there is zeroes.
    pub(super) fn set_length(&self, length: u64) {
        let mut state = self.lock();
        if length < state.length && !length.is_multiple_of(PAGE_SIZE) {
            // What was behind the new end is zeroes at the region.
            state.leaves[(length / PAGE_SIZE) as usize] = UNKNOWN;
        }
        state.length = length;
        state.leaves.resize(pages(length), Node::ZERO);
    }

    /// Everything is to be pushed.
    pub(super) fn take_for_changed(&self) {
        self.lock().leaves.fill(UNKNOWN);
    }

    /// What is at the region is not what was found in these ranges.
    pub(super) fn forget(&self, ranges: &[ByteRange]) {
        let mut state = self.lock();
        for range in ranges {
            let pages = (range.start / PAGE_SIZE) as usize..range.end.div_ceil(PAGE_SIZE) as usize;
            state.leaves[pages].fill(UNKNOWN);
        }
    }

    /// Takes the hashes of the file as it is for those of what is at the region.
    pub(super) fn hash_all(&self) -> Result<()> {
        let mut state = self.lock();
        state.map();
        for (first, found) in self.pass(&state)? {
            state.leaves[first..first + found.len()].copy_from_slice(&found);
        }
        Ok(())
    }

    /// Reads and hashes the file, with all threads. Answers the pages whose hashes are others than those that are kept, in
    /// runs: the first one's number, and the hashes.
    fn pass(&self, state: &State) -> Result<Vec<(usize, Vec<Node>)>> {
        let cannot_read = |error: &std::io::Error| Error::io("cannot read the file that is mirrored", error);
        let data = data_of(&state.file, state.length).map_err(|error| cannot_read(&error))?;
        let (next, count) = (AtomicUsize::new(0), state.length.div_ceil(PIECE) as usize);
        let work = || -> Result<Vec<(usize, Vec<Node>)>> {
            let mut found = Vec::new();
            let mut buffer = vec![0; READ];
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok(found);
                }
                let start = index as u64 * PIECE;
                let piece = ByteRange::new(start, start + PIECE).clamp_to(state.length);
                let behind = data.partition_point(|extent| extent.end <= piece.start);
                self.hash(state, piece, &data[behind..], &mut buffer, &mut found)
                    .map_err(|error| cannot_read(&error))?;
            }
        };
        let helpers = self.threads.min(count).saturating_sub(1);
        let mut results = Vec::new();
        std::thread::scope(|scope| {
            let helping: Vec<_> = (0..helpers)
                .filter_map(|_| {
                    let helper = std::thread::Builder::new().name("pw-hash".into());
                    let help = || {
                        crate::schedule::bulk();
                        work()
                    };
                    // Without one, the others do more.
                    helper.spawn_scoped(scope, help).ok()
                })
                .collect();
            results.push(work());
            results.extend(helping.into_iter().map(|helper| helper.join().expect("it does not panic")));
        });
        let mut found: Vec<_> =
            results.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        found.sort_unstable_by_key(|(first, _)| *first);
        Ok(found)
    }

    /// The same for one piece, in which there is this data, and perhaps some behind it. Holes are not read.
    fn hash(
        &self,
        state: &State,
        piece: ByteRange,
        data: &[ByteRange],
        buffer: &mut [u8],
        found: &mut Vec<(usize, Vec<Node>)>,
    ) -> std::io::Result<()> {
        let mut note = |page: usize, node: Node| {
            if state.leaves[page] == node {
                return;
            }
            match found.last_mut() {
                Some((first, nodes)) if *first + nodes.len() == page => nodes.push(node),
                _ => found.push((page, vec![node])),
            }
        };
        let mut at = piece.start;
        let most = if state.mapping.is_some() { PAGE_SIZE } else { READ as u64 };
        for extent in data.iter().take_while(|extent| extent.start < piece.end) {
            // Of a page that is in part a hole, all is read.
            let data = extent.intersect(piece).align_out(PAGE_SIZE);
            let data = ByteRange::new(data.start.max(at), data.end.max(at));
            (at / PAGE_SIZE..data.start / PAGE_SIZE).for_each(|page| note(page as usize, Node::ZERO));
            for part in data.split(most) {
                let length = (part.end.min(state.length) - part.start) as usize;
                let bytes = &mut buffer[..length];
                state.load(part.start, bytes)?;
                let first = (part.start / PAGE_SIZE) as usize;
                bytes.chunks(PAGE).enumerate().for_each(|(n, page)| note(first + n, self.scheme.leaf(page)));
            }
            at = data.end;
        }
        (at / PAGE_SIZE..piece.end.div_ceil(PAGE_SIZE)).for_each(|page| note(page as usize, Node::ZERO));
        Ok(())
    }
}

impl State {
    /// Maps as much of the file as is mirrored, unless that is done. Where it cannot be mapped, it is read.
    fn map(&mut self) {
        if self.mapping.as_ref().is_some_and(|mapping| mapping.len() as u64 == self.length) {
            return;
        }
        self.mapping = file::is_mapped_as_read(self.file.as_fd())
            .ok()
            .filter(|may| *may)
            .and_then(|_| FileMapping::new(self.file.as_fd(), self.length as usize, Protection::Read).ok());
    }

    /// Copies bytes of the file, as [`read`] does.
    fn load(&self, at: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        // What is not in the mapping is none.
        let load = |mapping: &FileMapping| mapping.load_available(at as usize, bytes).ok();
        let got = self.mapping.as_ref().and_then(load).unwrap_or(0);
        read(&self.file, at + got as u64, &mut bytes[got..])
    }
}

/// Where a file has data, in order. It is asked once for all of it: on tmpfs the kernel walks the pages up to the next
/// hole, however short the range is that somebody wants to know of.
fn data_of(file: &File, length: u64) -> std::io::Result<Vec<ByteRange>> {
    if file::allocated(file.as_fd())? >= length {
        return Ok(vec![ByteRange::new(0, length)]);
    }
    let extents = file::data_extents(file.as_fd(), 0..length)?;
    Ok(extents.into_iter().map(|extent| ByteRange::new(extent.start, extent.end)).collect())
}

/// Reads bytes of a file; behind its end are zeroes, until that is the region's end, too.
fn read(file: &File, mut at: u64, mut bytes: &mut [u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match file::pread(file.as_fd(), bytes, at)? {
            0 => {
                bytes.fill(0);
                break;
            }
            got => {
                at += got as u64;
                bytes = &mut bytes[got..];
            }
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<(File, (u64, u64))> {
    let file = File::open(path).map_err(|error| cannot("open", path, &error))?;
    let found = file.metadata().map_err(|error| cannot("look at", path, &error))?;
    if !found.is_file() {
        return Err(Error::new(ErrorKind::Usage, format!("{} is no file", path.display())));
    }
    Ok((file, identity_of(&found)))
}

fn identity_of(found: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (found.dev(), found.ino())
}

fn length_of(file: &File) -> Result<u64> {
    let found = file.metadata().map_err(|error| Error::io("cannot look at the file", &error))?;
    Ok(found.len())
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::io(format!("cannot {what} {}", path.display()), error)
}

fn pages(length: u64) -> usize {
    length.div_ceil(PAGE_SIZE) as usize
}

impl LocalCopy for Watched {
    fn place(&self, _: u64, _: &[u8]) -> Result<()> {
        cannot_place()
    }

    fn place_zero(&self, _: ByteRange) -> Result<()> {
        cannot_place()
    }

    fn wake(&self, _: ByteRange) -> Result<bool> {
        Ok(true)
    }

    fn fail(&self, _: ByteRange) -> Result<()> {
        Ok(())
    }

    fn evict(&self, _: ByteRange) -> Result<()> {
        cannot_place()
    }

    fn read_back(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let mut state = self.lock();
        read(&state.file, offset, bytes)
            .map_err(|error| Error::io("cannot read the file that is mirrored", &error))?;
        let first = (offset / PAGE_SIZE) as usize;
        for (n, page) in bytes.chunks(PAGE).enumerate() {
            // The file may have been cut meanwhile.
            if let Some(leaf) = state.leaves.get_mut(first + n) {
                *leaf = self.scheme.leaf(page);
            }
        }
        Ok(())
    }

    fn take_dirty(&self, ranges: &mut Vec<ByteRange>) -> Result<()> {
        let started = Instant::now();
        let mut state = self.lock();
        state.map();
        for (first, found) in self.pass(&state)? {
            ByteRange::of_pages(first as u64..(first + found.len()) as u64).append_to(ranges);
        }
        state.hashing = started.elapsed();
        Ok(())
    }

    fn count_dirty(&self) -> Result<u64> {
        // Nobody knows before all is hashed.
        Ok(0)
    }
}

fn cannot_place<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "a file that is mirrored is only read"))
}

#[cfg(test)]
mod tests;
