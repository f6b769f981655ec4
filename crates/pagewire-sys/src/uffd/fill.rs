//! From single ioctls to whole ranges: going on after short answers, stepping over pages that exist, and trying again
//! while the mappings change. Knows nothing of the kernel but its answers, so that it is tested with made-up ones.

use std::io;

use super::PlaceError;
use crate::syscall::invalid;

/// How often the calls for whole ranges try again in a row, yielding the processor in between, when the mappings
/// are changing. That passes within microseconds while another thread reads the events; when nobody does, it never
/// passes, and the caller must learn it soon to read them.
pub const AGAIN_RETRIES: u32 = 16;

/// Why the kernel refused a page.
#[derive(Debug)]
pub(super) enum Stop {
    Exists,
    Again,
    NoProcess,
    NotRegistered,
    Os(io::Error),
}

impl Stop {
    pub(super) fn of(error: io::Error) -> Stop {
        match error.raw_os_error() {
            Some(libc::EEXIST) => Stop::Exists,
            Some(libc::EAGAIN) => Stop::Again,
            Some(libc::ESRCH) => Stop::NoProcess,
            Some(libc::ENOENT) => Stop::NotRegistered,
            _ => Stop::Os(error),
        }
    }

    pub(super) fn into_error(self, done: usize) -> PlaceError {
        match self {
            Stop::Exists => PlaceError::Exists { done },
            Stop::Again => PlaceError::Again { done },
            Stop::NoProcess | Stop::NotRegistered => PlaceError::Gone,
            Stop::Os(error) => PlaceError::Os(error),
        }
    }
}

/// What one ioctl did.
#[derive(Debug)]
pub(super) enum Step {
    /// All of it.
    Done,
    /// The first `done` bytes, of its own accord: the next ioctl says why, or goes on.
    Short { done: usize },
    /// Nothing.
    Stopped { why: Stop },
}

impl Step {
    /// From the result of an ioctl and the progress in its argument: a short one is `EAGAIN` with progress.
    pub(super) fn of(result: io::Result<i32>, progress: i64) -> Step {
        match result {
            Ok(_) => Step::Done,
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && progress > 0 => {
                Step::Short { done: progress as usize }
            }
            Err(error) => Step::Stopped { why: Stop::of(error) },
        }
    }
}

/// Calls `place(at, len)` until all `len` bytes are done or one is refused.
pub(super) fn advance(len: usize, mut place: impl FnMut(usize, usize) -> Step) -> Result<(), PlaceError> {
    let mut done = 0;
    while done < len {
        match place(done, len - done) {
            Step::Done => break,
            Step::Short { done: more } => done += more,
            Step::Stopped { why } => return Err(why.into_error(done)),
        }
    }
    Ok(())
}

/// Calls `place(at, len)` over the whole range, and `existing(at)` for each page that exists.
///
/// One ioctl serves a run of absent pages, two more skip a present one. The kernel also answers `ENOENT` when a
/// range spans two mappings that are both registered (one side was mprotected, say), so that this halves the piece
/// until it fits; a single page that is refused is really gone.
pub(super) fn fill(
    dst: usize,
    len: usize,
    page_size: usize,
    mut place: impl FnMut(usize, usize) -> Step,
    mut existing: impl FnMut(usize) -> Result<(), Stop>,
) -> Result<(), PlaceError> {
    let whole_pages = page_size.is_power_of_two() && (dst | len).is_multiple_of(page_size);
    if !whole_pages || dst.checked_add(len).is_none() {
        return Err(PlaceError::Os(invalid("the range is not of whole pages")));
    }
    let mut done = 0;
    let mut piece = len;
    let mut retries = 0;
    let mut gone = false;
    while done < len {
        let size = piece.min(len - done);
        let why = match place(done, size) {
            Step::Done => {
                done += size;
                piece = piece.saturating_mul(2).min(len);
                retries = 0;
                continue;
            }
            Step::Short { done: more } => {
                done += more;
                retries = 0;
                continue;
            }
            Step::Stopped { why: Stop::Exists } => match existing(done) {
                Ok(()) => {
                    done += page_size;
                    retries = 0;
                    continue;
                }
                Err(why) => why,
            },
            Step::Stopped { why } => why,
        };
        match why {
            Stop::Again if retries < AGAIN_RETRIES => {
                retries += 1;
                std::thread::yield_now();
            }
            Stop::NotRegistered if size > page_size => piece = (size / 2).next_multiple_of(page_size),
            Stop::NotRegistered => {
                gone = true;
                done += page_size;
            }
            why => return Err(why.into_error(done)),
        }
    }
    if gone { Err(PlaceError::Gone) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 0x1000;
    const BASE: usize = 0x10_0000;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Page {
        Absent,
        Present,
        Gone,
    }
    use Page::{Absent, Gone, Present};

    /// Answers as the kernel does for a range of pages, of which the two on both sides of `border` are of different
    /// mappings.
    struct Kernel {
        pages: Vec<Page>,
        border: usize,
        calls: usize,
    }

    impl Kernel {
        fn new(pages: &[Page]) -> Kernel {
            Kernel { pages: pages.to_vec(), border: 0, calls: 0 }
        }

        fn place(&mut self, at: usize, len: usize) -> Step {
            self.calls += 1;
            let (first, end) = (at / PAGE, (at + len) / PAGE);
            let range = &mut self.pages[first..end];
            if range.contains(&Gone) || (first < self.border && self.border < end) {
                return Step::Stopped { why: Stop::NotRegistered };
            }
            let free = range.iter().take_while(|page| **page == Absent).count();
            range[..free].fill(Present);
            match free {
                0 => Step::Stopped { why: Stop::Exists },
                free if free < range.len() => Step::Short { done: free * PAGE },
                _ => Step::Done,
            }
        }

        fn fill(&mut self) -> (Result<(), PlaceError>, Vec<usize>) {
            let mut existing = Vec::new();
            let len = self.pages.len() * PAGE;
            let place = |at, len| self.place(at, len);
            let result = fill(BASE, len, PAGE, place, |at| {
                existing.push(at / PAGE);
                Ok(())
            });
            (result, existing)
        }
    }

    #[test]
    fn every_pattern_of_present_pages_is_filled() {
        for pattern in 0u32..1 << 10 {
            let pages: Vec<Page> =
                (0..10).map(|page| if pattern >> page & 1 == 1 { Present } else { Absent }).collect();
            let mut kernel = Kernel::new(&pages);
            let (result, existing) = kernel.fill();
            result.unwrap();
            assert!(kernel.pages.iter().all(|page| *page == Present), "pattern {pattern:b}");
            let expected: Vec<usize> = (0..10).filter(|page| pages[*page] == Present).collect();
            assert_eq!(existing, expected);
            assert!(kernel.calls <= 1 + 2 * existing.len(), "{} calls for {pattern:b}", kernel.calls);
        }
    }

    #[test]
    fn a_border_between_mappings_is_crossed() {
        for border in 1..13 {
            let mut kernel = Kernel { border, ..Kernel::new(&[Absent; 13]) };
            kernel.fill().0.unwrap();
            assert!(kernel.pages.iter().all(|page| *page == Present), "border {border}");
        }
    }

    #[test]
    fn what_is_registered_is_filled_around_what_is_gone() {
        for pattern in 1u32..1 << 9 {
            let pages: Vec<Page> =
                (0..9).map(|page| if pattern >> page & 1 == 1 { Gone } else { Absent }).collect();
            let mut kernel = Kernel::new(&pages);
            assert!(matches!(kernel.fill().0, Err(PlaceError::Gone)), "pattern {pattern:b}");
            for (before, after) in pages.iter().zip(&kernel.pages) {
                assert_eq!(*after, if *before == Gone { Gone } else { Present }, "pattern {pattern:b}");
            }
        }
    }

    #[test]
    fn changing_mappings_are_given_up_on_after_the_bound() {
        let mut calls = 0;
        let place = |at, _| {
            calls += 1;
            if at == 0 { Step::Short { done: PAGE } } else { Step::Stopped { why: Stop::Again } }
        };
        let result = fill(BASE, 4 * PAGE, PAGE, place, |_| Ok(()));
        assert!(matches!(result, Err(PlaceError::Again { done: PAGE })), "{result:?}");
        assert_eq!(calls, 1 + 1 + AGAIN_RETRIES);
    }

    #[test]
    fn changing_mappings_are_outlasted_and_progress_starts_the_count_again() {
        let mut calls = 0;
        let place = |_, _| {
            calls += 1;
            // Every page is refused as often as is allowed, then placed.
            if calls % (AGAIN_RETRIES + 1) == 0 {
                Step::Short { done: PAGE }
            } else {
                Step::Stopped { why: Stop::Again }
            }
        };
        fill(BASE, 4 * PAGE, PAGE, place, |_| Ok(())).unwrap();
        assert_eq!(calls, 4 * (AGAIN_RETRIES + 1));
    }

    #[test]
    fn a_process_that_is_gone_ends_it_at_once() {
        let mut calls = 0;
        let place = |_, _| {
            calls += 1;
            Step::Stopped { why: Stop::NoProcess }
        };
        assert!(matches!(fill(BASE, 64 * PAGE, PAGE, place, |_| Ok(())), Err(PlaceError::Gone)));
        assert_eq!(calls, 1);
    }

    #[test]
    fn parts_of_pages_are_refused() {
        for (dst, len) in [(BASE + 1, PAGE), (BASE, PAGE + 1), (usize::MAX - PAGE + 1, 2 * PAGE)] {
            let result = fill(dst, len, PAGE, |_, _| Step::Done, |_| Ok(()));
            assert!(matches!(result, Err(PlaceError::Os(_))), "{dst:#x} {len:#x}");
        }
    }

    #[test]
    fn one_kind_of_ioctl_stops_at_the_first_page_that_exists() {
        let mut kernel = Kernel::new(&[Absent, Absent, Present, Absent]);
        let result = advance(4 * PAGE, |at, len| kernel.place(at, len));
        assert!(matches!(result, Err(PlaceError::Exists { done }) if done == 2 * PAGE), "{result:?}");
        assert_eq!(kernel.pages, [Present, Present, Present, Absent]);
    }
}
