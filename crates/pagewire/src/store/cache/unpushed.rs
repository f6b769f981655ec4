//! What was written and not flushed to the store: kept in a file of its own, so that it survives this process.
//! Core's [`cache`](pagewire_core::cache) has the format, and why a local flush is all or nothing.
//!
//! Everything here is done by whoever writes, who may wait for a disk, and by the cache's own thread.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use pagewire_core::cache::{self, COPY_AT, Kept, Stream};
use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::journal::{self, BLOCK, Damaged, Index};

use super::local::Done;
use crate::error::{Error, ErrorKind, Result};
use crate::store::disk::Disk;

const PAGE: usize = PAGE_SIZE as usize;

/// How the file is made, when there is something to put in it.
pub(super) type Make = Box<dyn Fn(&Kept) -> io::Result<Arc<dyn Disk>> + Send + Sync>;

/// The file, and what is kept in it.
pub(super) struct Unpushed {
    name: String,
    make: Make,
    disk: Option<Arc<dyn Disk>>,
    /// The last commit, and the slots that it stands for.
    commit: Kept,
    committed: BTreeMap<u64, Slot>,
    /// What the next commit will say.
    next: Kept,
    pages: BTreeMap<u64, Slot>,
    /// When the length was kept, and when that of the last commit was.
    length_order: u64,
    committed_length_order: u64,
    /// Slots that are neither committed nor to be.
    free: BTreeSet<u64>,
    slots: u64,
    /// Pages whose newest bytes could not be written.
    missing: BTreeSet<u64>,
    /// Why nothing can be kept any more until the file is opened again.
    failed: Option<Error>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    slot: u64,
    hash: u64,
    /// When it was kept, among the flushes of the store: see [`Unpushed::release`].
    order: u64,
}

impl Unpushed {
    /// Reads what is kept.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Changed`] where something was, and cannot be read any more.
    pub(super) fn open(name: String, disk: Option<Arc<dyn Disk>>, make: Make) -> Result<Self> {
        let mut unpushed = Self {
            name,
            make,
            disk,
            commit: Kept::default(),
            committed: BTreeMap::new(),
            next: Kept::default(),
            pages: BTreeMap::new(),
            length_order: 0,
            committed_length_order: 0,
            free: BTreeSet::new(),
            slots: 0,
            missing: BTreeSet::new(),
            failed: None,
        };
        if let Some(disk) = unpushed.disk.clone() {
            let found = read(&*disk).map_err(|error| unpushed.error("read", &error))?;
            let (commit, index) = found.map_err(|damaged| {
                let name = &unpushed.name;
                let text = format!(
                    "{name} cannot be used ({damaged}), and may hold changes that were not pushed; \
                     to give them up, remove it"
                );
                Error::new(ErrorKind::Changed, text)
            })?;
            for (page, slot, hash) in index.pages {
                unpushed.committed.insert(page, Slot { slot, hash, order: 0 });
            }
            unpushed.commit = commit;
        }
        unpushed.revert();
        Ok(unpushed)
    }

    /// What is kept is what was flushed locally last.
    pub(super) fn revert(&mut self) {
        self.next = self.commit;
        // What an earlier writer has kept, any flush of the next one covers.
        for slot in self.committed.values_mut() {
            slot.order = 0;
        }
        self.pages = self.committed.clone();
        (self.length_order, self.committed_length_order) = (0, 0);
        self.missing.clear();
        let used: BTreeSet<u64> = self.committed.values().map(|slot| slot.slot).collect();
        self.slots = used.last().map_or(0, |last| last + 1);
        self.free = (0..self.slots).filter(|slot| !used.contains(slot)).collect();
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The last local flush.
    pub(super) fn committed(&self) -> &Kept {
        &self.commit
    }

    /// Whether nothing is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.next.length == self.next.before && self.next.cut == self.next.before
    }

    /// How many bytes of pages are flushed locally.
    pub(super) fn bytes(&self) -> u64 {
        self.committed.len() as u64 * PAGE_SIZE
    }

    /// The pages that are kept.
    pub(super) fn pages(&self) -> Vec<u64> {
        self.pages.keys().copied().collect()
    }

    /// The shortest length since the epoch that the changes stand on, and the length with them.
    pub(super) fn lengths(&self) -> (u64, u64) {
        (self.next.cut, self.next.length)
    }

    /// The bytes of a page that is kept.
    pub(super) fn read(&self, page: u64) -> Result<Option<Vec<u8>>> {
        let (Some(slot), Some(disk)) = (self.pages.get(&page), &self.disk) else { return Ok(None) };
        let mut bytes = vec![0; PAGE];
        let read = disk.read_exact_at(&mut bytes, Stream::slot_at(slot.slot));
        read.map_err(|error| self.error("read", &error))?;
        if journal::hash(&bytes) != slot.hash {
            return Err(Error::new(ErrorKind::Changed, format!("{} was written to by others", self.name)));
        }
        Ok(Some(bytes))
    }

    /// A writer begins, or goes on, with `token`: changes stand on an epoch of this length, and the flush with
    /// number `submitted` was the last one. What is kept already stays.
    pub(super) fn begin(&mut self, base: &Kept) -> Result<()> {
        let (pages, empty) = (self.pages.len(), self.is_empty());
        let Kept { region, epoch, token, submitted, before, .. } = *base;
        let same = (self.commit.region, self.commit.token) == (region, token) && self.disk.is_some();
        self.next = Kept { region, epoch, token, submitted, before, ..self.next };
        if empty {
            (self.next.length, self.next.cut) = (before, before);
        }
        // The shortest length that the old epoch had stays what it was.
        self.next.cut = self.next.cut.min(before);
        if same && pages == 0 && empty {
            return Ok(());
        }
        self.flush()
    }

    /// A flush of the store was asked for.
    pub(super) fn submitted(&mut self, number: u64) {
        self.next.submitted = self.next.submitted.max(number);
    }

    /// Keeps whole pages; of the region's last one, what there is of it.
    pub(super) fn keep(&mut self, range: ByteRange, bytes: &[u8], order: u64) -> Result<()> {
        let disk = self.disk()?;
        let first = range.start / PAGE_SIZE;
        let count = bytes.len().div_ceil(PAGE) as u64;
        let mut padded = Vec::new();
        let bytes = if bytes.len().is_multiple_of(PAGE) {
            bytes
        } else {
            padded.extend_from_slice(bytes);
            padded.resize(count as usize * PAGE, 0);
            &padded
        };
        let slots: Vec<u64> = (0..count).map(|_| self.take_slot()).collect();
        let mut done = 0;
        while done < slots.len() {
            let run = 1 + slots[done..].windows(2).take_while(|pair| pair[0] + 1 == pair[1]).count();
            let place = ByteRange::new(slots[done] * PAGE_SIZE, (slots[done] + run as u64) * PAGE_SIZE);
            let mut at = done * PAGE;
            let written = Stream::PAGES.places(place).try_for_each(|(place, length)| {
                let piece = &bytes[at..at + length as usize];
                at += length as usize;
                disk.write_all_at(piece, place)
            });
            for index in done..done + run {
                let (page, slot) = (first + index as u64, slots[index]);
                if written.is_err() {
                    self.free.insert(slot);
                    self.missing.insert(page);
                    continue;
                }
                let hash = journal::hash(&bytes[index * PAGE..(index + 1) * PAGE]);
                let old = self.pages.insert(page, Slot { slot, hash, order });
                self.missing.remove(&page);
                self.let_go(page, old);
            }
            if let Err(error) = written {
                for (index, slot) in slots.iter().enumerate().skip(done + run) {
                    self.free.insert(*slot);
                    self.missing.insert(first + index as u64);
                }
                return Err(self.error("write to", &error));
            }
            done += run;
        }
        Ok(())
    }

    /// Keeps another length. What it leaves behind is gone.
    pub(super) fn keep_length(&mut self, length: u64, order: u64) {
        self.next.length = length;
        self.next.cut = self.next.cut.min(length);
        self.length_order = order;
        let behind = self.pages.split_off(&length.div_ceil(PAGE_SIZE));
        for (page, slot) in behind {
            self.let_go(page, Some(slot));
        }
        self.missing.split_off(&length.div_ceil(PAGE_SIZE));
    }

    /// Makes what is kept durable, all of it or nothing.
    pub(super) fn flush(&mut self) -> Result<()> {
        if let Some(page) = self.missing.first() {
            let text = format!("page {page} could not be written to {}", self.name);
            return Err(Error::new(ErrorKind::Io, text));
        }
        let (pages, next) = (self.pages.clone(), self.next);
        self.commit(pages, &next)?;
        self.committed_length_order = self.length_order;
        Ok(())
    }

    /// Makes these pages durable, with what is said of them: both or neither.
    fn commit(&mut self, pages: BTreeMap<u64, Slot>, next: &Kept) -> Result<()> {
        let disk = self.disk()?;
        let index = Index {
            pages: pages.iter().map(|(page, slot)| (*page, slot.slot, slot.hash)).collect(),
            zeroes: Vec::new(),
        };
        let bytes = index.encode();
        let number = self.commit.number + 1;
        let commit = Kept {
            number,
            index: bytes.len() as u64,
            hash: journal::hash(&bytes),
            pages: index.pages.len() as u64,
            ..*next
        };
        let mut at = 0;
        for (place, length) in Stream::index(number).places(ByteRange::new(0, commit.index)) {
            let written = disk.write_all_at(&bytes[at..at + length as usize], place);
            written.map_err(|error| self.error("write to", &error))?;
            at += length as usize;
        }
        let block = commit.encode();
        let synced = disk
            .sync()
            .and_then(|()| disk.write_all_at(&block, cache::commit_at(number)))
            .and_then(|()| disk.sync());
        if let Err(error) = synced {
            // What the disk has of it nobody can say, nor what a later commit would stand on.
            let error = self.error("make changes durable in", &error);
            self.failed = Some(error.clone().context("open the cache again"));
            return Err(error);
        }
        // Where it fails, the block itself is there.
        let _ = disk.write_all_at(&block, COPY_AT);
        self.commit = commit;
        let old = std::mem::replace(&mut self.committed, pages);
        for (page, slot) in old {
            let is_used =
                |pages: &BTreeMap<u64, Slot>| pages.get(&page).is_some_and(|now| now.slot == slot.slot);
            if !is_used(&self.pages) && !is_used(&self.committed) {
                self.free.insert(slot.slot);
            }
        }
        if self.pages.is_empty() && self.committed.is_empty() && self.slots > 0 {
            self.slots = 0;
            self.free.clear();
            // What is behind the blocks is of no use any more; where it stays, it only takes room.
            let _ = disk.set_len(cache::SLOTS_AT);
        }
        Ok(())
    }

    /// The store has flushed what was kept before the flush was asked for. What was kept later stays.
    pub(super) fn release(&mut self, done: &Done) -> Result<()> {
        let Done { order, epoch, length } = *done;
        let covered = self.pages.iter().filter(|(_, slot)| slot.order <= order);
        let gone: Vec<(u64, Slot)> = covered.map(|(page, slot)| (*page, *slot)).collect();
        for (page, slot) in gone {
            self.pages.remove(&page);
            self.let_go(page, Some(slot));
        }
        let follow = |next: &mut Kept, kept: u64| {
            (next.epoch, next.before) = (epoch, length);
            (next.length, next.cut) = match kept <= order {
                true => (length, length),
                false => (next.length, next.cut.min(length)),
            };
        };
        follow(&mut self.next, self.length_order);
        if self.commit.is_empty() {
            return Ok(());
        }
        // Of what was flushed locally, and not of what is to be with the next local flush.
        let mut commit = self.commit;
        follow(&mut commit, self.committed_length_order);
        let mut left = self.committed.clone();
        left.retain(|_, slot| slot.order > order);
        self.commit(left, &commit)
    }

    /// Nothing is kept any more.
    pub(super) fn clear(&mut self) -> Result<()> {
        self.pages.clear();
        self.missing.clear();
        (self.next.length, self.next.cut) = (self.next.before, self.next.before);
        self.flush()
    }

    fn take_slot(&mut self) -> u64 {
        self.free.pop_first().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        })
    }

    /// A slot is not needed for the next commit; it is for the last one, maybe.
    fn let_go(&mut self, page: u64, slot: Option<Slot>) {
        if let Some(slot) = slot
            && self.committed.get(&page).is_none_or(|committed| committed.slot != slot.slot)
        {
            self.free.insert(slot.slot);
        }
    }

    fn disk(&mut self) -> Result<Arc<dyn Disk>> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if let Some(disk) = &self.disk {
            return Ok(disk.clone());
        }
        let first = Kept { number: self.commit.number, ..Kept::default() };
        let made = (self.make)(&first).map_err(|error| self.error("make", &error))?;
        Ok(self.disk.insert(made).clone())
    }

    fn error(&self, what: &str, error: &io::Error) -> Error {
        Error::io(format!("cannot {what} {}", self.name), error)
    }
}

/// The newest commit and its index, if they are whole.
fn read(disk: &dyn Disk) -> io::Result<Result<(Kept, Index), Damaged>> {
    let mut blocks = [[0; BLOCK]; 3];
    let places = [cache::commit_at(0), cache::commit_at(1), COPY_AT];
    for (block, at) in blocks.iter_mut().zip(places) {
        read_or_zero(disk, block, at)?;
    }
    let commit = match Kept::newest([&blocks[0], &blocks[1], &blocks[2]]) {
        Ok(commit) => commit,
        Err(error) => return Ok(Err(error)),
    };
    if commit.pages == 0 {
        return Ok(Ok((commit, Index::default())));
    }
    // Numbers that make no sense are noticed before they cost memory.
    if commit.index > disk.len()? {
        return Ok(Err(Damaged::Hash));
    }
    let mut bytes = vec![0; commit.index as usize];
    let mut at = 0;
    for (place, length) in Stream::index(commit.number).places(ByteRange::new(0, commit.index)) {
        read_or_zero(disk, &mut bytes[at..at + length as usize], place)?;
        at += length as usize;
    }
    let Ok(index) = Index::decode(commit.hash, &bytes) else { return Ok(Err(Damaged::Hash)) };
    let mut page = [0; PAGE];
    for (_, slot, hash) in &index.pages {
        if *slot > disk.len()? / PAGE_SIZE {
            return Ok(Err(Damaged::Hash));
        }
        read_or_zero(disk, &mut page, Stream::slot_at(*slot))?;
        if journal::hash(&page) != *hash {
            return Ok(Err(Damaged::Hash));
        }
    }
    Ok(Ok((commit, index)))
}

/// Reads bytes; behind the end of the file are zeroes.
fn read_or_zero(disk: &dyn Disk, bytes: &mut [u8], at: u64) -> io::Result<()> {
    match disk.read_exact_at(bytes, at) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            bytes.fill(0);
            Ok(())
        }
        result => result,
    }
}
