//! Which pages of a range were written, by the ioctl `PAGEMAP_SCAN`.
//!
//! The range must be registered with a userfaultfd that has
//! [`WP_ASYNC`](crate::uffd::Features::WP_ASYNC) and write-protection on; pages that are placed with
//! [`CopyMode::write_protect`](crate::uffd::CopyMode) then start clean.

use std::fs::File;
use std::io;
use std::ops::Range;

use linux_raw_sys::general as raw;

use crate::syscall::{invalid, ioctl};

const PAGEMAP_SCAN: libc::Ioctl = libc::_IOWR::<raw::pm_scan_arg>(b'f' as u32, 16);

/// Regions that one ioctl returns: as many as the kernel gathers before it writes them out. It may not be
/// given more: Linux 6.18 then answers a `walk_end` from before its last gathering, so that the pages behind
/// it are scanned and reported twice.
const REGIONS_PER_CALL: usize = 512;

/// Room for the regions of one ioctl, for those who scan again and again.
#[derive(Debug)]
pub(crate) struct ScanRoom(Box<[raw::page_region]>);

impl ScanRoom {
    pub(crate) fn new() -> ScanRoom {
        ScanRoom(vec![EMPTY_REGION; REGIONS_PER_CALL].into_boxed_slice())
    }
}

const EMPTY_REGION: raw::page_region = raw::page_region { start: 0, end: 0, categories: 0 };

/// A set of the kernel's page categories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Categories(u64);

impl Categories {
    /// None.
    pub const NONE: Categories = Categories(0);
    /// The range is under write-protection tracking.
    pub const WP_ALLOWED: Categories = Categories(raw::PAGE_IS_WPALLOWED as u64);
    /// Written since it was last armed; also true of what never was armed.
    pub const WRITTEN: Categories = Categories(raw::PAGE_IS_WRITTEN as u64);
    /// Backed by a file.
    pub const FILE: Categories = Categories(raw::PAGE_IS_FILE as u64);
    /// In memory.
    pub const PRESENT: Categories = Categories(raw::PAGE_IS_PRESENT as u64);
    /// Swapped out.
    pub const SWAPPED: Categories = Categories(raw::PAGE_IS_SWAPPED as u64);
    /// The shared page of zeroes.
    pub const ZERO: Categories = Categories(raw::PAGE_IS_PFNZERO as u64);
    /// A huge page.
    pub const HUGE: Categories = Categories(raw::PAGE_IS_HUGE as u64);

    /// The categories of either set.
    #[must_use]
    pub const fn union(self, other: Categories) -> Categories {
        Categories(self.0 | other.0)
    }

    /// Whether every category of `other` is in this set.
    pub const fn contains(self, other: Categories) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A run of pages with the same categories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRegion {
    /// Address of the first byte.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// Those that the query asks to return.
    pub categories: Categories,
}

/// Which pages a scan returns, and whether it arms them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanQuery {
    /// All of these must be true of a page (of those in `inverted`: false).
    pub all_of: Categories,
    /// Categories to negate in `all_of` and `any_of`.
    pub inverted: Categories,
    /// At least one of these must be true, when there are any.
    pub any_of: Categories,
    /// What to say about each page that matches.
    pub returned: Categories,
    /// Write-protect the pages that match, in one step with looking at them.
    pub write_protect: bool,
    /// Refuse (permission denied) when a part of the range is not under asynchronous tracking: its pages would all
    /// count as written.
    pub check_tracked: bool,
}

impl ScanQuery {
    /// Pages that were written since they were last armed; with `rearm`, they count as clean from now on.
    ///
    /// Absent pages and untouched zero pages do not match, though the kernel counts both as written: armed, an
    /// absent page could neither be zeroed nor poisoned any more, and who touches it would wait for ever.
    /// Poisoned pages do match until they are armed ([`ScanQuery::poisoned`]): to the kernel they are swapped
    /// out.
    pub fn written(rearm: bool) -> ScanQuery {
        ScanQuery {
            all_of: Categories::WRITTEN.union(Categories::ZERO),
            inverted: Categories::ZERO,
            any_of: Categories::PRESENT.union(Categories::SWAPPED),
            returned: Categories::WRITTEN,
            write_protect: rearm,
            check_tracked: rearm,
        }
    }

    /// Arms pages that were just poisoned, so that they do not count as written; they stay poisoned, and can
    /// be healed. Of pages that are really swapped out it would forget that they were written.
    pub fn poisoned() -> ScanQuery {
        let marked = Categories::WRITTEN.union(Categories::SWAPPED);
        ScanQuery { all_of: marked, write_protect: true, check_tracked: true, ..ScanQuery::default() }
    }

    /// Pages that are not absent.
    pub fn present() -> ScanQuery {
        let there = Categories::PRESENT.union(Categories::SWAPPED);
        ScanQuery { any_of: there, returned: Categories::PRESENT, ..ScanQuery::default() }
    }
}

/// The page table of a process, open for scanning.
#[derive(Debug)]
pub struct PagemapScan {
    pagemap: File,
}

impl PagemapScan {
    /// This process.
    ///
    /// # Errors
    ///
    /// What opening `/proc/self/pagemap` answers.
    pub fn open_self() -> io::Result<PagemapScan> {
        Ok(PagemapScan { pagemap: File::open("/proc/self/pagemap")? })
    }

    /// Another process. Its userfaultfd must have been made in it.
    ///
    /// # Errors
    ///
    /// What opening its pagemap answers: permission denied unless this process may trace it.
    pub fn open_pid(pid: u32) -> io::Result<PagemapScan> {
        Ok(PagemapScan { pagemap: File::open(format!("/proc/{pid}/pagemap"))? })
    }

    /// Appends the runs of matching pages in the range of addresses to `out`, in order; runs that touch are one.
    /// Returns where the walk ended: the end of the range.
    ///
    /// # Errors
    ///
    /// What the ioctl answers: `ENOTTY` before kernel 6.7; `EPERM` for a range that is not tracked
    /// ([`ScanQuery::check_tracked`]); invalid input for an address that is no page's. `out` then holds what was
    /// found (and armed) before.
    pub fn scan(&self, range: Range<u64>, query: ScanQuery, out: &mut Vec<PageRegion>) -> io::Result<u64> {
        let known = out.len();
        let mut found = [EMPTY_REGION; REGIONS_PER_CALL];
        self.scan_into(&mut found, range, query, |region| append(out, known, region))
    }

    /// Calls `each` for the addresses of every run of matching pages, in order. One run may come in pieces.
    pub(crate) fn scan_runs(
        &self,
        room: &mut ScanRoom,
        range: Range<u64>,
        query: ScanQuery,
        mut each: impl FnMut(Range<u64>),
    ) -> io::Result<()> {
        self.scan_into(&mut room.0, range, query, |region| each(region.start..region.end)).map(drop)
    }

    fn scan_into(
        &self,
        found: &mut [raw::page_region],
        range: Range<u64>,
        query: ScanQuery,
        mut each: impl FnMut(&raw::page_region),
    ) -> io::Result<u64> {
        let flag = |on: bool, bit: u32| if on { u64::from(bit) } else { 0 };
        let flags = flag(query.write_protect, raw::PM_SCAN_WP_MATCHING)
            | flag(query.check_tracked, raw::PM_SCAN_CHECK_WPASYNC);
        let mut at = range.start;
        while at < range.end {
            let mut argument = raw::pm_scan_arg {
                size: size_of::<raw::pm_scan_arg>() as u64,
                flags,
                start: at,
                end: range.end,
                walk_end: 0,
                vec: found.as_mut_ptr().expose_provenance() as u64,
                vec_len: found.len() as u64,
                max_pages: 0,
                category_inverted: query.inverted.0,
                category_mask: query.all_of.0,
                category_anyof_mask: query.any_of.0,
                return_mask: query.returned.0,
            };
            // SAFETY: the file is a pagemap. The kernel writes the argument and at most `vec_len` regions to
            // `found`, which is borrowed mutably. Write-protecting pages of a range under asynchronous
            // tracking changes no byte of it.
            let count = unsafe { ioctl(&self.pagemap, PAGEMAP_SCAN, &mut argument) }?;
            for region in &found[..count as usize] {
                each(region);
            }
            if argument.walk_end <= at {
                return Err(invalid("the scan of a page table made no progress"));
            }
            at = argument.walk_end;
        }
        Ok(at)
    }

    /// Appends the pages that were written since they were last armed ([`ScanQuery::written`]).
    ///
    /// # Errors
    ///
    /// As [`PagemapScan::scan`].
    pub fn written_pages(
        &self,
        range: Range<u64>,
        rearm: bool,
        out: &mut Vec<PageRegion>,
    ) -> io::Result<u64> {
        self.scan(range, ScanQuery::written(rearm), out)
    }

    /// Appends the pages that are not absent ([`ScanQuery::present`]).
    ///
    /// # Errors
    ///
    /// As [`PagemapScan::scan`].
    pub fn present_pages(&self, range: Range<u64>, out: &mut Vec<PageRegion>) -> io::Result<u64> {
        self.scan(range, ScanQuery::present(), out)
    }
}

/// Appends a region, or extends the last one (when it is not one of the `known` first) that it touches.
fn append(out: &mut Vec<PageRegion>, known: usize, region: &raw::page_region) {
    let categories = Categories(region.categories);
    if let Some(last) = out[known..].last_mut()
        && last.end == region.start
        && last.categories == categories
    {
        last.end = region.end;
        return;
    }
    out.push(PageRegion { start: region.start, end: region.end, categories });
}
