//! What is there, and what has become of it: the part of a cache that reads, writes and its own thread share.
//!
//! What readers need is in the [`View`], whose lock is held for a moment only. Whatever is done to the image and
//! its state is done by one thread ([`keeping`](super::keeping)), one job after the other, so that a page which
//! counts as there stays what it is until a later job.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use pagewire_core::bitmap::BitSet;
use pagewire_core::cache::{Entry, Head};
use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use crate::error::Error;
use crate::store::disk::Disk;
use crate::store::{Part, Urgency};

/// How many bytes may wait to be written to the image before those who bring them in the background have to
/// wait; those who bring what somebody waits for never do, and drop what is more than twice this.
const WAITING: u64 = 32 << 20;

/// Of how many generations it is remembered what they have changed.
const REMEMBERED: usize = 16;

/// The files, and what is known of them.
pub(super) struct Local {
    pub(super) path: PathBuf,
    pub(super) image: Arc<dyn Disk>,
    pub(super) state: Arc<dyn Disk>,
    pub(super) file: Option<Arc<File>>,
    pub(super) in_memory: bool,
    /// The head that was written last. Only the cache's own thread changes it.
    pub(super) head: Mutex<Head>,
    view: Mutex<View>,
    queue: Mutex<Queue>,
    /// There is something to do; there is room; everything is done.
    pub(super) moved: Condvar,
    /// The cache's disk has failed: nothing more is written to the image.
    bypassed: AtomicBool,
    /// Numbers what is kept and what is flushed, by [`Local::next_order`].
    order: AtomicU64,
    /// What flushes have come to that the file of unpushed changes has not been told of.
    pub(super) flushes: Mutex<Flushes>,
    pub(super) cached_bytes: AtomicU64,
    pub(super) remote_bytes: AtomicU64,
}

/// What is there, of which epoch.
pub(super) struct View {
    pub(super) region: [u8; 16],
    pub(super) epoch: u64,
    pub(super) length: u64,
    pub(super) salt: u64,
    /// Grows whenever what a read under way brings may not be the newest any more.
    pub(super) generation: u64,
    /// The last generations, and of which pages that is so; none for all of them.
    recent: VecDeque<(u64, Option<Vec<Range<u64>>>)>,
    /// The pages that the image has at this epoch, as a writer sees them: what is written and not flushed is not
    /// among them.
    pub(super) present: BitSet,
    /// Those whose bytes were looked at, or written, since the cache was opened.
    pub(super) checked: BitSet,
    /// The pages that were written for the next epoch, and for the one whose flush is under way.
    pub(super) written: HashMap<u64, Written>,
    pub(super) flushing: HashMap<u64, Written>,
    /// The shortest length that was staged, where one was, and when that was last.
    pub(super) cut: Option<(u64, u64)>,
}

/// A page that was written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    /// The hash of its bytes, where they are known.
    pub(super) hash: Option<u64>,
    /// Which stage the store was at.
    pub(super) stage: u64,
    /// How many writes of it are on their way.
    pub(super) pending: u32,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    waiting: u64,
    busy: bool,
    closed: bool,
}

/// What flushes of the store have come to.
#[derive(Default)]
pub(super) struct Flushes {
    /// The last one that is known to be done.
    pub(super) done: Option<Done>,
    /// The number and the order of one whose outcome is open.
    pub(super) open: Option<(u64, u64)>,
}

/// A flush that is done: when it was asked for, and what it has made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) order: u64,
    pub(super) epoch: u64,
    pub(super) length: u64,
}

/// Something for the cache's own thread.
pub(super) enum Job {
    /// Bytes that the store gave for an epoch.
    Keep { at: Pulled, range: ByteRange, bytes: Option<Vec<u8>> },
    /// Bytes that were written: whole pages, in their places before they are an epoch's.
    Stage { range: ByteRange, bytes: Option<Vec<u8>> },
    /// The region is shorter, or was: what is behind is gone.
    Cut(u64),
    /// The region is at another epoch.
    Move(Move),
    /// The store has flushed what was written: it is not unpushed any more.
    Release,
}

/// What a read was of when it was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pulled {
    pub(super) epoch: u64,
    pub(super) generation: u64,
    pub(super) salt: u64,
    pub(super) length: u64,
}

/// What has changed with an epoch.
pub(super) struct Move {
    pub(super) head: Head,
    pub(super) generation: u64,
    /// Pages that are not what they were; none for all of them.
    pub(super) stale: Option<Vec<Range<u64>>>,
    /// Pages that are staged in the image, and the hashes of their bytes.
    pub(super) staged: Vec<(u64, u64)>,
}

/// The number of pages of so many bytes.
pub(super) fn pages_of(length: u64) -> u64 {
    length.div_ceil(PAGE_SIZE)
}

/// The pages that a range touches.
pub(super) fn touching(range: ByteRange) -> Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE)
}

impl View {
    pub(super) fn pulled(&self) -> Pulled {
        let &Self { epoch, generation, salt, length, .. } = self;
        Pulled { epoch, generation, salt, length }
    }

    /// `range` in pieces that are there and pieces that are not.
    pub(super) fn split(&self, range: ByteRange, there: &mut Vec<ByteRange>, missing: &mut Vec<ByteRange>) {
        let mut page = range.start / PAGE_SIZE;
        let end = range.end.div_ceil(PAGE_SIZE);
        let known = self.present.len();
        while page < end {
            let has = page < known && self.present.contains(page);
            let next = match has {
                _ if page >= known => end,
                true => self.present.next_gap(page).unwrap_or(known),
                false => self.present.next_member(page).unwrap_or(end),
            };
            let next = next.min(end);
            let piece = ByteRange::of_pages(page..next).intersect(range);
            let pieces = if has && piece.end <= self.length { &mut *there } else { &mut *missing };
            pieces.push(piece);
            page = next;
        }
    }

    /// Pages are not there any more.
    pub(super) fn forget(&mut self, pages: Range<u64>) {
        let pages = pages.start.min(self.present.len())..pages.end.min(self.present.len());
        self.present.remove_range(pages.clone());
        self.checked.remove_range(pages);
    }

    /// The region is of another length.
    pub(super) fn resize(&mut self, length: u64) {
        self.length = length;
        for set in [&mut self.present, &mut self.checked] {
            let mut resized = BitSet::new(pages_of(length));
            for run in set.runs().take_while(|run| run.start < pages_of(length)) {
                resized.insert_range(run.start..run.end.min(pages_of(length)));
            }
            *set = resized;
        }
    }

    /// A new generation begins, in which these pages are not what they were; none for all of them.
    pub(super) fn begin_generation(&mut self, stale: Option<Vec<Range<u64>>>) {
        self.generation += 1;
        self.recent.push_back((self.generation, stale));
        if self.recent.len() > REMEMBERED {
            self.recent.pop_front();
        }
    }

    /// Whether a page is what it was when a read was asked for.
    fn is_current(&self, at: &Pulled, page: u64) -> bool {
        let oldest = self.recent.front().map_or(self.generation, |(first, _)| first - 1);
        at.generation >= oldest
            && self.recent.iter().filter(|(generation, _)| *generation > at.generation).all(|(_, stale)| {
                let stale = stale.as_ref();
                stale.is_some_and(|stale| !stale.iter().any(|pages| pages.contains(&page)))
            })
    }

    /// Whether bytes that were pulled so are still the newest of a page.
    pub(super) fn accepts(&self, at: &Pulled, page: u64) -> bool {
        self.is_current(at, page)
            && page < self.present.len()
            && !self.written.contains_key(&page)
            && !self.flushing.contains_key(&page)
            && self.cut.is_none_or(|(cut, _)| page < cut / PAGE_SIZE)
    }

    /// The first page at or after `from` that is there and was not looked at.
    pub(super) fn next_unchecked(&self, mut from: u64) -> Option<u64> {
        loop {
            let page = self.present.next_member(from)?;
            if !self.checked.contains(page) {
                return Some(page);
            }
            from = self.checked.next_gap(page)?;
        }
    }

    /// Whether every page is there, and was looked at.
    pub(super) fn is_complete(&self) -> bool {
        self.present.is_full() && self.checked.is_full()
    }
}

impl Local {
    pub(super) fn new(files: super::CacheFiles, head: Head, present: BitSet) -> (Self, super::Unpushed) {
        let super::CacheFiles { path, image, state, unpushed, file, in_memory, .. } = files;
        let view = View {
            region: head.region,
            epoch: head.epoch,
            length: head.length,
            salt: head.salt,
            generation: 1,
            recent: VecDeque::new(),
            checked: BitSet::new(present.len()),
            present,
            written: HashMap::new(),
            flushing: HashMap::new(),
            cut: None,
        };
        let local = Self {
            path,
            image,
            state,
            file,
            in_memory,
            head: Mutex::new(head),
            view: Mutex::new(view),
            queue: Mutex::default(),
            moved: Condvar::new(),
            bypassed: AtomicBool::new(false),
            order: AtomicU64::new(1),
            flushes: Mutex::default(),
            cached_bytes: AtomicU64::new(0),
            remote_bytes: AtomicU64::new(0),
        };
        (local, unpushed)
    }

    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().expect("no holder panics")
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder panics")
    }

    /// Greater than every one before it.
    pub(super) fn next_order(&self) -> u64 {
        self.order.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn is_bypassed(&self) -> bool {
        self.bypassed.load(Ordering::Acquire)
    }

    /// The disk has failed. What the image has stays useful; it gets nothing more.
    pub(super) fn bypass(&self, error: &Error) {
        if !self.bypassed.swap(true, Ordering::AcqRel) {
            let cache = self.path.display();
            tracing::warn!(%error, "nothing more is written to the cache {cache} until it is opened again");
        }
        self.moved.notify_all();
    }

    /// Gives bytes of the store to the image, when they have been placed.
    pub(super) fn offer(&self, at: &Pulled, part: &Part<'_>, urgency: Urgency) {
        let range = part.range();
        // The last page of a region is whole with what there is of it.
        let end = if range.end == at.length { pages_of(at.length) } else { range.end / PAGE_SIZE };
        let pages = ByteRange::of_pages(range.start.div_ceil(PAGE_SIZE)..end).clamp_to(at.length);
        if pages.is_empty() || self.is_bypassed() {
            return;
        }
        let waiting = if matches!(part, Part::Bytes { .. }) { pages.len() } else { 0 };
        if !self.make_room(waiting, urgency) {
            return;
        }
        let bytes = match part.cut(pages) {
            Part::Bytes { bytes, .. } => Some(bytes.to_vec()),
            Part::Zero(_) => None,
        };
        self.push(Job::Keep { at: *at, range: pages, bytes }, waiting);
    }

    /// Waits until so many bytes may be added, where waiting is possible. Answers whether they may.
    pub(super) fn make_room(&self, bytes: u64, urgency: Urgency) -> bool {
        let mut queue = self.queue();
        if urgency == Urgency::Demand {
            return queue.waiting + bytes <= 2 * WAITING;
        }
        while queue.waiting > 0 && queue.waiting + bytes > WAITING && !queue.closed && !self.is_bypassed() {
            queue = self.moved.wait(queue).expect("no holder panics");
        }
        !queue.closed
    }

    pub(super) fn push(&self, job: Job, waiting: u64) {
        let mut queue = self.queue();
        queue.jobs.push_back(job);
        queue.waiting += waiting;
        drop(queue);
        self.moved.notify_all();
    }

    /// The next job, when there is one. None when the cache is closed, and everything is done.
    pub(super) fn next(&self) -> Option<Job> {
        let mut queue = self.queue();
        queue.busy = false;
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                queue.busy = true;
                return Some(job);
            }
            self.moved.notify_all();
            if queue.closed {
                return None;
            }
            queue = self.moved.wait(queue).expect("no holder panics");
        }
    }

    /// The next job, if there is one.
    pub(super) fn take(&self) -> Option<Job> {
        self.queue().jobs.pop_front()
    }

    /// Bytes that were waiting are where they belong.
    pub(super) fn done(&self, bytes: u64) {
        self.queue().waiting -= bytes;
        self.moved.notify_all();
    }

    pub(super) fn close(&self) {
        self.queue().closed = true;
        self.moved.notify_all();
    }

    /// Waits until everything that has come is where it belongs.
    pub(super) fn settle(&self) {
        let mut queue = self.queue();
        while !queue.jobs.is_empty() || queue.busy {
            queue = self.moved.wait(queue).expect("no holder panics");
        }
    }
}

/// The entries of pages, as they are in the state file.
pub(super) fn entries(bytes: &[u8]) -> impl Iterator<Item = Entry> {
    bytes.chunks_exact(16).map(|chunk| {
        let mut entry = [0; 16];
        entry.copy_from_slice(chunk);
        Entry::decode(&entry)
    })
}
