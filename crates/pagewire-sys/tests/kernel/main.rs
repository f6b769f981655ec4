//! The crate on the real kernel. What a test needs and does not find makes it fail, unless `PAGEWIRE_TEST_SKIP` names
//! it: `userfaultfd`, `hugetlb`, `root`, `netns`, `blockdevice`.

mod event;
mod file;
mod file_mapping;
mod mapping;
mod net;
mod pipe;
mod process;
mod socket;
#[cfg(feature = "sqlite")]
mod sqlite;
mod support;
mod tracked;
mod tracking;
mod uffd;
