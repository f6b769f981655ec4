//! Answering reads of a file: where the bytes of an epoch are, what the page cache has of them, and which of them are
//! holes.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;

use pagewire_core::chunk::ByteRange;
use pagewire_sys::file::FileKind;

use super::Opened;
use super::view::{Piece, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::store::disk::Disk;
use crate::store::gate::Ticket;
use crate::store::{AtOnce, Part, Read, Urgency};

thread_local! {
    /// One piece. It is taken out while in use, so that a sink that reads again gets another.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Opened {
    /// Where the bytes of a read are, and what keeps them there.
    pub(super) fn pieces(&self, read: &Read) -> Result<(Vec<Piece>, Option<Ticket>)> {
        let (pieces, ticket) = match &self.journaled {
            Some(journaled) => {
                let (pieces, ticket) = journaled.resolve(read.epoch, &read.ranges)?;
                (pieces, Some(ticket))
            }
            None => {
                let info = self.info();
                read.ranges.iter().try_for_each(|&range| info.check(range))?;
                let piece =
                    |range: &ByteRange| Piece { range: *range, source: Source::Data, bytes_end: range.end };
                (read.ranges.iter().map(piece).collect(), None)
            }
        };
        Ok((pieces.iter().flat_map(Piece::split).collect(), ticket))
    }

    /// Answers `pieces` as far as the page cache has them where `wait` is false. Gives back what is
    /// left for somebody who may wait.
    pub(super) fn answer(&self, read: &Read, pieces: &[Piece], wait: bool) -> Result<Vec<Piece>> {
        let mut buffer = BUFFER.take();
        let longest = pieces.iter().map(|piece| piece.range.len()).max().unwrap_or(0) as usize;
        if buffer.len() < longest {
            buffer.resize(longest, 0);
        }
        let mut left = Vec::new();
        let mut result = Ok(());
        let holes = read.urgency == Urgency::Background && self.has_holes();
        for piece in pieces {
            let range = piece.range;
            let bytes = &mut buffer[..range.len() as usize];
            let filled = (piece.bytes_end - range.start) as usize;
            bytes[filled..].fill(0);
            let got = match &piece.source {
                Source::Zero => {
                    read.sink.part(Part::Zero(range));
                    continue;
                }
                Source::Image(of, image) => {
                    let from = (range.start - of.start) as usize;
                    let bytes = &image[from..from + bytes.len()];
                    read.sink.part(Part::Bytes { offset: range.start, bytes });
                    continue;
                }
                Source::Data if holes && self.is_hole(ByteRange::new(range.start, piece.bytes_end)) => {
                    match self.check_unchanged() {
                        Ok(()) => read.sink.part(Part::Zero(range)),
                        Err(error) => {
                            result = Err(error);
                            break;
                        }
                    }
                    continue;
                }
                Source::Data => fill(&*self.file, &mut bytes[..filled], range.start, wait),
                Source::Journal(at) => {
                    let journal = self.journaled.as_ref().and_then(|journaled| journaled.sidecar.existing());
                    match journal {
                        Some(journal) => fill(&*journal, &mut bytes[..filled], *at, wait),
                        None => Err(io::ErrorKind::NotFound.into()),
                    }
                }
            };
            match got {
                // A short answer is the edge of what is cached, or the end of a file that shrinks.
                Ok(got) if got < filled => left.push(piece.clone()),
                // Looked at after the bytes were taken, so that what is answered is what was good.
                Ok(_) => match self.check_unchanged() {
                    Ok(()) => read.sink.part(Part::Bytes { offset: range.start, bytes }),
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => left.push(piece.clone()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    result = self.check_unchanged().and_then(|()| {
                        Err(Error::new(ErrorKind::Changed, format!("{} ends early", self.path.display())))
                    });
                    break;
                }
                Err(error) => {
                    result = Err(self.io("read", &error));
                    break;
                }
            }
        }
        BUFFER.set(buffer);
        result.map(|()| left)
    }

    /// Whether it takes less room than it has bytes. To look for holes in others would cost and find nothing.
    pub(super) fn has_holes(&self) -> bool {
        let length = self.length.load(std::sync::atomic::Ordering::Acquire);
        self.identity.kind == FileKind::Regular
            && pagewire_sys::file::allocated(self.file.as_fd()).is_ok_and(|allocated| allocated < length)
    }

    /// Whether a range of the file holds nothing, as far as the file system can tell.
    pub(super) fn is_hole(&self, range: ByteRange) -> bool {
        match pagewire_sys::file::seek_data(self.file.as_fd(), range.start) {
            // Behind the end of a file that has become shorter there is nothing, and no hole either.
            Ok(None) => pagewire_sys::file::size_and_modified(self.file.as_fd())
                .is_ok_and(|(size, _)| size >= range.end),
            Ok(Some(data)) => data >= range.end,
            Err(_) => false,
        }
    }

    /// Where the file has holes in `range`; behind `bytes_end` there are zeroes whatever it has.
    pub(super) fn holes_of_file(&self, range: ByteRange, bytes_end: u64) -> Option<Vec<ByteRange>> {
        if self.identity.kind == FileKind::BlockDevice {
            return None;
        }
        let fd = self.file.as_fd();
        // To look for holes takes long on tmpfs, where the kernel walks the pages.
        if pagewire_sys::file::allocated(fd).is_ok_and(|bytes| bytes >= self.info().length) {
            return Some(Vec::new());
        }
        let data = pagewire_sys::file::data_extents(fd, range.start..bytes_end.min(range.end)).ok()?;
        let mut holes = Vec::with_capacity(data.len() + 1);
        let mut at = range.start;
        for extent in data {
            ByteRange::new(at, extent.start.max(at)).append_to(&mut holes);
            at = extent.end;
        }
        ByteRange::new(at, range.end.max(at)).append_to(&mut holes);
        Some(holes)
    }

    /// Answers `range` where the page cache has all of it.
    pub(super) fn answer_at_once(&self, range: ByteRange, epoch: u64, buffer: &mut [u8]) -> Result<AtOnce> {
        let (pieces, _ticket) = match &self.journaled {
            Some(journaled) => {
                let (pieces, ticket) = journaled.resolve(epoch, &[range])?;
                (pieces, Some(ticket))
            }
            None => {
                self.info().check(range)?;
                (vec![Piece { range, source: Source::Data, bytes_end: range.end }], None)
            }
        };
        if pieces.iter().all(|piece| matches!(piece.source, Source::Zero)) {
            return Ok(AtOnce::Zeroes);
        }
        for piece in &pieces {
            let from = (piece.range.start - range.start) as usize;
            let bytes = &mut buffer[from..from + piece.range.len() as usize];
            let (bytes, zeroes) = bytes.split_at_mut((piece.bytes_end - piece.range.start) as usize);
            zeroes.fill(0);
            let got = match &piece.source {
                Source::Zero => continue,
                Source::Image(of, image) => {
                    let from = (piece.range.start - of.start) as usize;
                    bytes.copy_from_slice(&image[from..from + bytes.len()]);
                    continue;
                }
                Source::Data => fill(&*self.file, bytes, piece.range.start, self.in_memory),
                Source::Journal(at) => {
                    match self.journaled.as_ref().and_then(|journaled| journaled.sidecar.existing()) {
                        Some(journal) => fill(&*journal, bytes, *at, self.in_memory),
                        None => return Ok(AtOnce::NotNow),
                    }
                }
            };
            // What is not there now, and why, is for the read to find out.
            if !got.is_ok_and(|got| got == bytes.len()) {
                return Ok(AtOnce::NotNow);
            }
        }
        // Looked at after the bytes were taken, so that what is answered is what was good.
        self.check_unchanged()?;
        Ok(AtOnce::Bytes)
    }
}

/// Fills a buffer; from the page cache alone where nobody may wait.
fn fill(disk: &dyn Disk, bytes: &mut [u8], at: u64, wait: bool) -> io::Result<usize> {
    if wait {
        return disk.read_exact_at(bytes, at).map(|()| bytes.len());
    }
    disk.read_nowait(bytes, at)
}
