//! Written pages by hashing: a page was written when its hash is another than that of what the store has.
//!
//! What the store has is what was placed, or what was copied out last. The caller learns from a take that a
//! page changed, and copies it out later; between the two the page may be written again, even back to what it
//! was when it was hashed. So [`Hashes::copied_out`] compares the bytes that were really copied with the
//! remembered hash, and a page where they differ is reported by the next take whatever its content is then.
//! Every other write between hash and copy-out leaves a content with another hash, which the next take finds.
//!
//! A segment is locked while it is placed, discarded or hashed, so that a page that is noted as present is
//! present, and to read it here never waits for a fault.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use twox_hash::XxHash3_64;

use super::patiently;
use super::segments::{SEGMENT_SIZE, Segment, Segments, bits, index, runs};
use crate::PAGE_SIZE;
use crate::mapping::Mapping;
use crate::uffd::{CopyMode, Uffd};

/// Written pages of a mapping by their hashes.
#[derive(Debug)]
pub(super) struct Hashes {
    pub(super) segments: Segments,
    /// Where a segment is copied to, to be hashed; also keeps two scans apart, which would slow each other
    /// down.
    room: Mutex<Vec<u8>>,
}

impl Hashes {
    pub(super) fn new(len: usize) -> Hashes {
        Hashes { segments: Segments::new(len), room: Mutex::default() }
    }

    /// Places whole pages and remembers their hashes, before anybody can ask for them.
    pub(super) fn place(
        &self,
        mapping: &Mapping,
        uffd: &Uffd,
        offset: usize,
        bytes: &[u8],
    ) -> io::Result<usize> {
        let mut placed = 0;
        self.segments.visit(offset..offset + bytes.len(), |segment, part| {
            let source = &bytes[part.start - offset..part.end - offset];
            patiently(|done| {
                let (start, source) = (part.start + done, &source[done..]);
                let address = mapping.address() + start;
                uffd.copy_all_noting(address, source, CopyMode::default(), PAGE_SIZE, |at, len| {
                    for (page, content) in source[at..at + len].chunks_exact(PAGE_SIZE).enumerate() {
                        segment.hashes()[index(start + at) + page] = hash(content);
                    }
                    segment.present |= bits(&(start + at..start + at + len));
                    placed += len;
                })
            })
        })?;
        Ok(placed)
    }

    /// The same with pages of zeroes.
    pub(super) fn place_zero(
        &self,
        mapping: &Mapping,
        uffd: &Uffd,
        range: Range<usize>,
    ) -> io::Result<usize> {
        let zero = hash(&[0; PAGE_SIZE]);
        let mut placed = 0;
        self.segments.visit(range, |segment, part| {
            patiently(|done| {
                let start = part.start + done;
                let address = mapping.address() + start;
                uffd.zero_all_noting(address, part.end - start, false, |at, len| {
                    let first = index(start + at);
                    segment.hashes()[first..first + len / PAGE_SIZE].fill(zero);
                    segment.present |= bits(&(start + at..start + at + len));
                    placed += len;
                })
            })
        })?;
        Ok(placed)
    }

    /// Calls `each` for the runs that changed, and remembers what they are now.
    pub(super) fn take(
        &self,
        mapping: &Mapping,
        range: Range<usize>,
        mut each: impl FnMut(Range<usize>),
    ) -> io::Result<()> {
        let mut room = self.room();
        self.segments.visit(range, |segment, part| {
            compare(mapping, &mut room, segment, &part, true)?;
            let written = segment.written & bits(&part);
            segment.written &= !written;
            runs(written, part.start).for_each(&mut each);
            Ok(())
        })
    }

    /// Bytes that a take would report.
    pub(super) fn count(&self, mapping: &Mapping) -> io::Result<usize> {
        let mut room = self.room();
        let mut pages = 0;
        self.segments.visit(self.segments.all(), |segment, part| {
            let changed = compare(mapping, &mut room, segment, &part, false)?;
            pages += (changed | segment.written).count_ones() as usize;
            Ok(())
        })?;
        Ok(pages * PAGE_SIZE)
    }

    /// Has the next take report the whole pages of a copied range that were not what is remembered when they
    /// were copied. See the module.
    pub(super) fn copied_out(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let start = offset.next_multiple_of(PAGE_SIZE);
        let end = (offset + bytes.len()) / PAGE_SIZE * PAGE_SIZE;
        self.segments.visit(start..end.max(start), |segment, part| {
            let content = &bytes[part.start - offset..part.end - offset];
            for (page, content) in (index(part.start)..).zip(content.chunks_exact(PAGE_SIZE)) {
                if segment.present >> page & 1 == 1 && segment.hashes()[page] != hash(content) {
                    segment.written |= 1 << page;
                }
            }
            Ok(())
        })
    }

    fn room(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        room.resize(SEGMENT_SIZE, 0);
        room
    }
}

/// Which of the present pages of a part of a segment have another hash than remembered; with `remember`, the
/// hashes are remembered, and the pages are noted as written.
fn compare(
    mapping: &Mapping,
    room: &mut [u8],
    segment: &mut Segment,
    part: &Range<usize>,
    remember: bool,
) -> io::Result<u64> {
    let mut changed = 0;
    for run in runs(segment.present & bits(part), part.start) {
        let copy = &mut room[..run.len()];
        mapping.copy_out(run.start, copy)?;
        for (page, content) in (index(run.start)..).zip(copy.chunks_exact(PAGE_SIZE)) {
            let hash = hash(content);
            if segment.hashes()[page] != hash {
                changed |= 1 << page;
                if remember {
                    segment.hashes()[page] = hash;
                    segment.written |= 1 << page;
                }
            }
        }
    }
    Ok(changed)
}

fn hash(content: &[u8]) -> u64 {
    XxHash3_64::oneshot(content)
}
