//! What a userfaultfd can do, as a set of the kernel's feature bits.

use std::fmt;

use linux_raw_sys::general as raw;

/// A set of userfaultfd features. MISSING and write-protection of anonymous memory need no bit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Features(u64);

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:ident;)*) => {
        impl Features {
            $($(#[$doc])* pub const $name: Features = Features(raw::$bit as u64);)*

            const NAMES: &[(&str, Features)] = &[$((stringify!($name), Features::$name)),*];
        }
    };
}

features! {
    /// Page faults tell write-protection from absence.
    PAGEFAULT_FLAG_WP = UFFD_FEATURE_PAGEFAULT_FLAG_WP;
    /// A fork of the process is an event, with the child's descriptor. Needs `CAP_SYS_PTRACE`.
    EVENT_FORK = UFFD_FEATURE_EVENT_FORK;
    /// `mremap` is an event.
    EVENT_REMAP = UFFD_FEATURE_EVENT_REMAP;
    /// `madvise(MADV_DONTNEED)` and the like are events.
    EVENT_REMOVE = UFFD_FEATURE_EVENT_REMOVE;
    /// Missing pages of hugetlb memory.
    MISSING_HUGETLBFS = UFFD_FEATURE_MISSING_HUGETLBFS;
    /// Missing pages of shared memory.
    MISSING_SHMEM = UFFD_FEATURE_MISSING_SHMEM;
    /// `munmap` is an event.
    EVENT_UNMAP = UFFD_FEATURE_EVENT_UNMAP;
    /// A fault is a SIGBUS instead of an event.
    SIGBUS = UFFD_FEATURE_SIGBUS;
    /// Page faults name the thread.
    THREAD_ID = UFFD_FEATURE_THREAD_ID;
    /// Minor faults of hugetlb memory.
    MINOR_HUGETLBFS = UFFD_FEATURE_MINOR_HUGETLBFS;
    /// Minor faults of shared memory.
    MINOR_SHMEM = UFFD_FEATURE_MINOR_SHMEM;
    /// Page faults carry the exact address, not that of the page.
    EXACT_ADDRESS = UFFD_FEATURE_EXACT_ADDRESS;
    /// Write-protection of hugetlb and shared memory.
    WP_HUGETLBFS_SHMEM = UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    /// Write-protection of empty page-table entries is remembered.
    WP_UNPOPULATED = UFFD_FEATURE_WP_UNPOPULATED;
    /// `UFFDIO_POISON`.
    POISON = UFFD_FEATURE_POISON;
    /// The kernel resolves write-protect faults itself: change tracking by `PAGEMAP_SCAN`.
    WP_ASYNC = UFFD_FEATURE_WP_ASYNC;
    /// `UFFDIO_MOVE`.
    MOVE = UFFD_FEATURE_MOVE;
}

impl Features {
    /// No feature.
    pub const NONE: Features = Features(0);

    /// The set with these of the kernel's bits.
    pub const fn from_bits(bits: u64) -> Features {
        Features(bits)
    }

    /// The kernel's bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether every feature of `other` is in this set.
    pub const fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The kernel's names of those that have one here.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Features::NAMES.iter().filter(move |(_, feature)| self.contains(*feature)).map(|(name, _)| *name)
    }

    /// The features of either set.
    #[must_use]
    pub const fn union(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// The features of both sets.
    #[must_use]
    pub const fn intersect(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }

    /// What of `wanted` is not in this set.
    #[must_use]
    pub const fn missing(self, wanted: Features) -> Features {
        Features(wanted.0 & !self.0)
    }
}

impl std::ops::BitOr for Features {
    type Output = Features;

    fn bitor(self, other: Features) -> Features {
        self.union(other)
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut unnamed = self.0;
        let mut separator = "";
        for (name, feature) in Features::NAMES {
            if self.contains(*feature) {
                write!(f, "{separator}{name}")?;
                separator = " | ";
                unnamed &= !feature.0;
            }
        }
        if unnamed != 0 {
            write!(f, "{separator}{unnamed:#x}")?;
        } else if self.is_empty() {
            f.write_str("none")?;
        }
        Ok(())
    }
}
