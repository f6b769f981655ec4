//! Written pages by write-protect faults: clean pages are write-protected, and a thread that writes one waits
//! until the page is noted and its protection lifted.
//!
//! Every change of a page's protection is made with its segment locked, together with the change of its bit.
//! So a page whose protection is off has its bit set at any time that somebody else can look, and no write
//! goes by unnoted.

use std::io;
use std::ops::Range;

use super::patiently;
use super::segments::{SEGMENT_SIZE, Segments, bits, runs};
use crate::PAGE_SIZE;
use crate::mapping::Mapping;
use crate::uffd::{CopyMode, Uffd};

/// Written pages of a mapping by write-protect faults.
#[derive(Debug)]
pub(super) struct Faults {
    pub(super) segments: Segments,
}

impl Faults {
    pub(super) fn new(len: usize) -> Faults {
        Faults { segments: Segments::new(len) }
    }

    /// Places whole pages, protected: the kernel does both in one step.
    pub(super) fn place(
        &self,
        mapping: &Mapping,
        uffd: &Uffd,
        offset: usize,
        bytes: &[u8],
    ) -> io::Result<usize> {
        let mode = CopyMode { write_protect: true, dont_wake: false };
        let mut placed = 0;
        self.segments.visit(offset..offset + bytes.len(), |segment, part| {
            let source = &bytes[part.start - offset..part.end - offset];
            patiently(|done| {
                let start = part.start + done;
                uffd.copy_all_noting(
                    mapping.address() + start,
                    &source[done..],
                    mode,
                    PAGE_SIZE,
                    |at, len| {
                        segment.present |= bits(&(start + at..start + at + len));
                        placed += len;
                    },
                )
            })
        })?;
        Ok(placed)
    }

    /// Places zeroes as a copy, which costs memory. A page of `UFFDIO_ZEROPAGE` cannot be placed protected;
    /// if it were protected afterwards, a write of a thread that did not wait for the page could come in
    /// between, unnoted.
    pub(super) fn place_zero(
        &self,
        mapping: &Mapping,
        uffd: &Uffd,
        range: Range<usize>,
    ) -> io::Result<usize> {
        let zeroes = vec![0; range.len().min(SEGMENT_SIZE)];
        let mut placed = 0;
        for start in range.clone().step_by(SEGMENT_SIZE) {
            let len = zeroes.len().min(range.end - start);
            placed += self.place(mapping, uffd, start, &zeroes[..len])?;
        }
        Ok(placed)
    }

    /// Calls `each` for the runs that were written, after they are protected again.
    pub(super) fn take(
        &self,
        mapping: &Mapping,
        uffd: &Uffd,
        range: Range<usize>,
        mut each: impl FnMut(Range<usize>),
    ) -> io::Result<()> {
        self.segments.visit(range, |segment, part| {
            let written = segment.written & bits(&part);
            let Some(first) = runs(written, part.start).next() else { return Ok(()) };
            let end = runs(written, part.start).last().map_or(first.end, |last| last.end);
            // One call from the first page to the last. What lies between is protected already, or absent,
            // which this descriptor does not protect (it has not the feature WP_UNPOPULATED).
            patiently(|_| uffd.write_protect(mapping.address() + first.start, end - first.start, true))?;
            segment.written &= !written;
            runs(written, part.start).for_each(&mut each);
            Ok(())
        })
    }

    /// Bytes that a take would report.
    pub(super) fn count(&self) -> io::Result<usize> {
        let mut pages = 0;
        self.segments.visit(self.segments.all(), |segment, _| {
            pages += segment.written.count_ones() as usize;
            Ok(())
        })?;
        Ok(pages * PAGE_SIZE)
    }

    /// Notes the pages of a range that the kernel has written by way of pins: see [`super::pinned`].
    pub(super) fn written(&self, range: Range<usize>) -> io::Result<()> {
        self.segments.visit(range, |segment, part| {
            segment.written |= bits(&part) & segment.present;
            Ok(())
        })
    }

    /// Notes the page at `offset`, lifts its protection and wakes who waits for it.
    pub(super) fn note(&self, mapping: &Mapping, uffd: &Uffd, offset: usize) -> io::Result<()> {
        let address = mapping.address() + offset;
        self.segments.visit(offset..offset + PAGE_SIZE, |segment, part| {
            // Absent: discarded after the fault. The thread finds so itself and faults again.
            if segment.present & bits(&part) == 0 {
                return uffd.wake(address, PAGE_SIZE).map_err(io::Error::from);
            }
            patiently(|_| uffd.write_protect(address, PAGE_SIZE, false))?;
            segment.written |= bits(&part);
            Ok(())
        })
    }
}
