//! Writes, and the flush that makes an epoch of them: they go to the store, and on the way to the image.
//!
//! A page that was written does not count as there until it is flushed: then it does, with the bytes that
//! were written, if it is known which they are. Whatever makes that doubtful (a write that failed, one that was
//! on its way at the flush, a store that was restarted, a part of a page) makes the page absent.

use std::collections::HashMap;
use std::ops::Range;

use pagewire_core::cache::{Head, hash_page};
use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use super::CacheStore;
use super::local::{Done, Flushes, Job, Local, Move, View, Written, pages_of, touching};
use crate::error::Result;
use crate::store::{Completion, Flush, Info, Urgency};

impl CacheStore {
    /// Writes to the store.
    pub(super) fn write_through(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        let stage = self.store.stage();
        let mut pages: Vec<(u64, Option<u64>)> = Vec::new();
        let mut jobs = Vec::new();
        let mut rest = bytes;
        for range in ranges {
            let (these, behind) = rest.split_at(range.len() as usize);
            rest = behind;
            for page in touching(*range) {
                let whole = ByteRange::of_pages(page..page + 1).clamp_to(stage.length);
                let is_whole = !whole.is_empty() && range.contains(whole);
                let from = whole.start.saturating_sub(range.start) as usize;
                let hash = is_whole.then(|| hash_page(&these[from..from + whole.len() as usize]));
                pages.push((page, hash));
            }
            let end = if range.end == stage.length { pages_of(range.end) } else { range.end / PAGE_SIZE };
            let whole = ByteRange::of_pages(range.start.div_ceil(PAGE_SIZE)..end).clamp_to(range.end);
            if !whole.is_empty() {
                let from = (whole.start - range.start) as usize;
                jobs.push((whole, Some(&these[from..from + whole.len() as usize])));
            }
        }
        let pages = self.wrote(&pages, stage.number);
        for (range, bytes) in jobs {
            self.stage_in_image(range, bytes);
        }
        let local = self.local.clone();
        let told = Box::new(move |result: Result<()>| {
            local.write_ended(&pages, result.is_ok());
            done(result);
        });
        self.store.write(ranges, bytes, told);
    }

    /// Writes zeroes to the store.
    pub(super) fn zero_through(&self, ranges: &[ByteRange], done: Completion) {
        let stage = self.store.stage();
        let mut pages: Vec<(u64, Option<u64>)> = Vec::new();
        let mut jobs = Vec::new();
        for range in ranges {
            for page in touching(*range) {
                let whole = ByteRange::of_pages(page..page + 1).clamp_to(stage.length);
                let is_whole = !whole.is_empty() && range.contains(whole);
                pages.push((page, is_whole.then(|| hash_page(&[]))));
            }
            let end = if range.end == stage.length { pages_of(range.end) } else { range.end / PAGE_SIZE };
            let whole = ByteRange::of_pages(range.start.div_ceil(PAGE_SIZE)..end).clamp_to(range.end);
            if !whole.is_empty() {
                jobs.push(whole);
            }
        }
        let pages = self.wrote(&pages, stage.number);
        jobs.into_iter().for_each(|range| self.stage_in_image(range, None));
        let local = self.local.clone();
        let told = Box::new(move |result: Result<()>| {
            local.write_ended(&pages, result.is_ok());
            done(result);
        });
        self.store.zero(ranges, told);
    }

    /// Changes the store's length.
    pub(super) fn set_length_through(&self, length: u64, done: Completion) {
        let before = self.store.stage().length;
        let order = self.local.next_order();
        {
            let mut view = self.local.view();
            let shortest = before.min(length);
            let cut = view.cut.map_or(view.length, |(cut, _)| cut).min(shortest);
            view.cut = Some((cut, order));
            let pages = shortest / PAGE_SIZE..view.present.len();
            view.forget(pages);
            let end = pages_of(length);
            view.written.retain(|page, written| *page < end || written.pending > 0);
            // The page that the end is in, or was, is another one with another end.
            if let Some(written) = view.written.get_mut(&(shortest / PAGE_SIZE)) {
                written.hash = None;
            }
        }
        if length < before {
            self.local.push(Job::Cut(length), 0);
        }
        self.store.set_length(length, done);
    }

    /// Flushes the store.
    pub(super) fn flush_through(&self, flush: Flush) {
        let Flush { number, stage, done } = flush;
        let order = self.local.next_order();
        self.local.view().begin_flush();
        self.unpushed().submitted(number);
        self.recovered_submitted(number);
        let (local, recovered) = (self.local.clone(), self.recovered.clone());
        let told = Box::new(move |result: Result<Info>| {
            local.flushed(result.as_ref().ok(), (number, stage, order));
            if result.is_ok() {
                *recovered.lock().expect("no holder panics") = None;
            }
            done(result);
        });
        self.store.flush(Flush { number, stage, done: told });
    }

    /// What was written and not flushed is the store's no more.
    pub(super) fn give_up_written(&self) {
        let mut view = self.local.view();
        // What is on its way may still come after it.
        view.written.retain(|_, written| written.pending > 0);
        view.written.values_mut().for_each(|written| written.hash = None);
        view.cut = None;
        view.begin_generation(None);
    }

    /// Pages are being written. Answers which, for [`Local::write_ended`].
    fn wrote(&self, pages: &[(u64, Option<u64>)], stage: u64) -> Vec<u64> {
        let mut view = self.local.view();
        for (page, hash) in pages {
            view.forget(*page..page + 1);
            let written = Written { hash: *hash, stage, pending: 0 };
            let now = view.written.entry(*page).or_insert(written);
            // Of two writes on their way nobody can say which comes last.
            let hash = hash.filter(|_| now.pending == 0);
            *now = Written { hash, stage, pending: now.pending + 1 };
        }
        pages.iter().map(|(page, _)| *page).collect()
    }

    fn stage_in_image(&self, range: ByteRange, bytes: Option<&[u8]>) {
        if self.local.is_bypassed() {
            return;
        }
        let waiting = bytes.map_or(0, <[u8]>::len) as u64;
        if self.local.make_room(waiting, Urgency::Background) {
            self.local.push(Job::Stage { range, bytes: bytes.map(<[u8]>::to_vec) }, waiting);
        }
    }
}

impl View {
    /// What was written by now is what the flush covers.
    fn begin_flush(&mut self) {
        let covered: Vec<u64> =
            self.written.iter().filter(|(_, written)| written.pending == 0).map(|(page, _)| *page).collect();
        for page in covered {
            if let Some(mut written) = self.written.remove(&page) {
                // Part of two flushes, it is in doubt which has covered it.
                if self.flushing.contains_key(&page) {
                    written.hash = None;
                }
                self.flushing.insert(page, written);
            }
        }
    }
}

impl Local {
    /// Writes have ended.
    fn write_ended(&self, pages: &[u64], done: bool) {
        let mut view = self.view();
        for page in pages {
            if let Some(written) = view.written.get_mut(page) {
                written.pending = written.pending.saturating_sub(1);
                if !done {
                    written.hash = None;
                }
            }
        }
    }

    /// A flush of this number, stage and order has ended: with this, or it has failed.
    fn flushed(&self, info: Option<&Info>, (number, stage, order): (u64, u64, u64)) {
        let mut view = self.view();
        let flushing: HashMap<u64, Written> = std::mem::take(&mut view.flushing);
        let Some(info) = info else {
            // What has become of it is open.
            for (page, written) in flushing {
                view.written.entry(page).or_insert(Written { hash: None, ..written });
            }
            self.flushes.lock().expect("no holder panics").open = Some((number, order));
            return;
        };
        if info.epoch > view.epoch {
            let before = view.length.max(info.length);
            let mut stale: Vec<Range<u64>> = flushing.keys().map(|page| *page..page + 1).collect();
            if let Some((cut, set)) = view.cut {
                stale.push(cut / PAGE_SIZE..pages_of(before));
                view.cut = (set > order).then_some((cut.min(info.length), set));
            }
            stale.sort_by_key(|pages| pages.start);
            let end = pages_of(info.length);
            let is_known = |(page, written): &(u64, Written)| {
                written.stage == stage && *page < end && !view.written.contains_key(page)
            };
            let known = flushing.into_iter().filter(is_known);
            let mut staged: Vec<(u64, u64)> =
                known.filter_map(|(page, written)| Some((page, written.hash?))).collect();
            staged.sort_unstable();
            view.resize(info.length);
            view.epoch = info.epoch;
            view.begin_generation(Some(stale.clone()));
            let &View { region, salt, epoch, length, generation, .. } = &*view;
            let head = Head { sequence: 0, region, salt, epoch, length };
            self.push(Job::Move(Move { head, generation, stale: Some(stale), staged }), 0);
        } else {
            for (page, written) in flushing {
                view.written.entry(page).or_insert(Written { hash: None, ..written });
            }
        }
        drop(view);
        // Known to whoever keeps something before it is known to whoever has asked for the flush.
        let done = Done { order, epoch: info.epoch, length: info.length };
        *self.flushes.lock().expect("no holder panics") = Flushes { done: Some(done), open: None };
        self.push(Job::Release, 0);
    }
}
