//! Which bytes a reader of an epoch sees, and where they are: in the file, in the journal, kept from before,
//! or nowhere, since they are zeroes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::epoch::{self, BeforeImages};
use pagewire_core::journal::Area;

use crate::error::{Error, Result};
use crate::store::stale;

/// In place of a slot: the page holds zeroes.
pub(super) const ZERO: u64 = u64::MAX;

/// Of how many epochs it is remembered what they have changed.
const REMEMBERED: usize = 64;

/// Where the bytes of a piece are.
#[derive(Clone)]
pub(super) enum Source {
    /// In the file, at the same offset.
    Data,
    /// In the journal, at this offset.
    Journal(u64),
    /// Kept since before they were replaced: those of this range.
    Image(ByteRange, Arc<[u8]>),
    /// They are zeroes.
    Zero,
}

/// A piece of what is read.
#[derive(Clone)]
pub(super) struct Piece {
    pub(super) range: ByteRange,
    pub(super) source: Source,
    /// From here on the piece is zeroes, whatever the source has.
    pub(super) bytes_end: u64,
}

impl Piece {
    /// The same in pieces of a bearable length.
    pub(super) fn split(&self) -> impl Iterator<Item = Piece> {
        self.range.split(super::PIECE).map(|range| {
            let source = match &self.source {
                Source::Journal(at) => Source::Journal(at + (range.start - self.range.start)),
                source => source.clone(),
            };
            let bytes_end = self.bytes_end.clamp(range.start, range.end);
            let source = if bytes_end == range.start { Source::Zero } else { source };
            Piece { range, source, bytes_end }
        })
    }
}

/// Pages that stand in front of what is below them.
pub(super) struct Layer<'a> {
    pub(super) area: Area,
    /// The slot of each page, or [`ZERO`].
    pub(super) slot: &'a dyn Fn(u64) -> Option<u64>,
    /// What is below ends here; behind are zeroes.
    pub(super) cut: u64,
}

/// An epoch that was flushed and is not in its place yet.
pub(super) struct Committed {
    pub(super) epoch: u64,
    /// The slot of each page, or [`ZERO`].
    pub(super) pages: HashMap<u64, u64>,
    pub(super) length: u64,
    /// The shortest that the region was since the epoch before.
    pub(super) cut: u64,
}

impl Committed {
    pub(super) fn area(&self) -> Area {
        Area::of_epoch(self.epoch)
    }
}

/// What readers see.
pub(super) struct View {
    /// The newest epoch, and its length.
    pub(super) epoch: u64,
    pub(super) length: u64,
    /// The length of what is in the file.
    pub(super) placed: u64,
    pub(super) committed: Option<Arc<Committed>>,
    /// What was replaced in the file.
    pub(super) images: BeforeImages<Arc<[u8]>>,
    /// The epochs that readers hold: the length of each, and how many readers.
    pub(super) held: BTreeMap<u64, (u64, usize)>,
    /// What each of the last epochs has changed.
    changed: BTreeMap<u64, Vec<ByteRange>>,
    /// Whether the newest epoch is still on its way to its place, or the journal does not say so yet that it
    /// is there.
    pub(super) placing: bool,
    /// Why what was flushed cannot be put in its place now.
    pub(super) trouble: Option<Error>,
}

impl View {
    /// What is in the file is `epoch`.
    pub(super) fn new(epoch: u64, length: u64) -> Self {
        Self {
            epoch,
            length,
            placed: length,
            committed: None,
            images: BeforeImages::new(epoch),
            held: BTreeMap::new(),
            changed: BTreeMap::new(),
            placing: false,
            trouble: None,
        }
    }

    /// An epoch was flushed.
    pub(super) fn commit(&mut self, committed: Arc<Committed>) {
        let pages = committed.pages.keys().map(|page| ByteRange::of_pages(*page..page + 1));
        let (old, new) = (self.length, committed.length);
        let tail = ByteRange::new(committed.cut, old.max(new));
        let changed = pages.chain((!tail.is_empty()).then_some(tail));
        let changed = changed.map(|range| range.clamp_to(old.max(new))).collect();
        self.changed.insert(committed.epoch, ByteRange::union(changed));
        if self.changed.len() > REMEMBERED {
            self.changed.pop_first();
        }
        self.epoch = committed.epoch;
        self.length = new;
        self.committed = Some(committed);
        self.placing = true;
    }

    pub(super) fn changes(&self, since: u64) -> Option<Vec<ByteRange>> {
        if since == self.epoch {
            return Some(Vec::new());
        }
        let oldest = *self.changed.first_key_value()?.0;
        let known = since < self.epoch && since + 1 >= oldest;
        let changed = self.changed.range(since + 1..).flat_map(|(_, ranges)| ranges.iter().copied());
        known.then(|| ByteRange::union(changed.collect()))
    }

    /// Holds an epoch, and answers its length.
    pub(super) fn hold(&mut self, epoch: u64) -> Result<u64> {
        let length = self.length_of(epoch)?;
        self.held.entry(epoch).or_insert((length, 0)).1 += 1;
        Ok(length)
    }

    pub(super) fn release(&mut self, epoch: u64) {
        if let Some((_, count)) = self.held.get_mut(&epoch) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&epoch);
                self.release_images();
            }
        }
    }

    pub(super) fn release_images(&mut self) {
        let oldest = self.held.first_key_value().map_or(self.epoch, |(epoch, _)| *epoch);
        self.images.release_before(oldest);
    }

    /// The length of an epoch that can be read.
    pub(super) fn length_of(&self, epoch: u64) -> Result<u64> {
        if epoch == self.epoch {
            return Ok(self.length);
        }
        let held = self.held.get(&epoch).filter(|_| epoch >= self.images.oldest());
        held.map(|(length, _)| *length).ok_or_else(|| stale(epoch, self.epoch))
    }

    /// Where the bytes of `range` are at an epoch that can be read. `staged` stands in front, if it is the
    /// newest.
    pub(super) fn resolve(
        &self,
        epoch: u64,
        range: ByteRange,
        staged: Option<&Layer<'_>>,
        out: &mut Vec<Piece>,
    ) -> Result<()> {
        if epoch < self.epoch {
            let length = self.length_of(epoch)?;
            let found = self.images.lookup(epoch, range).map_err(|_| stale(epoch, self.epoch))?;
            for piece in found {
                let range = piece.range();
                match piece {
                    epoch::Piece::Image { of, image, .. } => {
                        push(out, Piece { range, source: Source::Image(of, image), bytes_end: range.end });
                    }
                    epoch::Piece::Current(_) => {
                        push(out, Piece { range, source: Source::Data, bytes_end: range.end.min(length) });
                    }
                }
            }
            return Ok(());
        }
        let committed = self.committed.as_deref();
        let slot = |page: u64| committed?.pages.get(&page).copied();
        let below =
            committed.map(|committed| Layer { area: committed.area(), slot: &slot, cut: committed.cut });
        let layers: Vec<&Layer<'_>> = staged.into_iter().chain(below.as_ref()).collect();
        if layers.is_empty() {
            push(out, Piece { range, source: Source::Data, bytes_end: range.end.min(self.placed) });
            return Ok(());
        }
        let pages = range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE);
        for page in pages {
            push(out, find(ByteRange::of_pages(page..page + 1).intersect(range), page, &layers, self.placed));
        }
        Ok(())
    }
}

/// Where the bytes of a range within one page are.
fn find(range: ByteRange, page: u64, layers: &[&Layer<'_>], placed: u64) -> Piece {
    let mut bytes_end = range.end;
    for layer in layers {
        match (layer.slot)(page) {
            Some(ZERO) => return Piece { range, source: Source::Zero, bytes_end: range.start },
            Some(slot) => {
                let at = layer.area.page_at(slot) + range.start % PAGE_SIZE;
                return Piece { range, source: Source::Journal(at), bytes_end };
            }
            None => bytes_end = bytes_end.min(layer.cut),
        }
        if bytes_end <= range.start {
            return Piece { range, source: Source::Zero, bytes_end: range.start };
        }
    }
    Piece { range, source: Source::Data, bytes_end: bytes_end.min(placed) }
}

/// Adds a piece, to the last one where it goes on with it.
fn push(out: &mut Vec<Piece>, mut piece: Piece) {
    if piece.bytes_end <= piece.range.start {
        piece.source = Source::Zero;
        piece.bytes_end = piece.range.start;
    }
    if piece.range.is_empty() {
        return;
    }
    if let Some(last) = out.last_mut()
        && last.range.end == piece.range.start
    {
        match (&last.source, &piece.source) {
            (Source::Zero, Source::Zero) => {
                last.range.end = piece.range.end;
                return;
            }
            (Source::Data, Source::Data) if last.bytes_end == piece.range.start => {
                (last.range.end, last.bytes_end) = (piece.range.end, piece.bytes_end);
                return;
            }
            (Source::Journal(at), Source::Journal(next))
                if last.bytes_end == piece.range.start && at + last.range.len() == *next =>
            {
                (last.range.end, last.bytes_end) = (piece.range.end, piece.bytes_end);
                return;
            }
            _ => {}
        }
    }
    out.push(piece);
}
