//! Memory that is read while it is being filled: a mapping, the userfaultfd that fills it, and the
//! reason why its bytes may be lent out as a slice.

use std::io;

use crate::mapping::{Mapping, Protection};
use crate::uffd::{Features, OpenFlags, RegisterModes, Uffd};

/// Private memory that nobody can write to, and that a userfaultfd of its own fills.
///
/// Its bytes are a `&[u8]`, although they are not there yet when it is made: a page that is absent
/// cannot have been read by anybody (who tries waits), and a page that is present never changes,
/// since the mapping is read-only and private to this process, placement refuses present pages
/// (`EEXIST`), and no safe function discards pages while the bytes are lent.
#[derive(Debug)]
pub struct PulledMapping {
    // Unmapped first, then the descriptor is closed: in the other order, a thread that waits for a
    // page would read zeroes.
    mapping: Mapping,
    uffd: Uffd,
    len: usize,
}

impl PulledMapping {
    /// Maps `len` bytes and registers them for missing pages. `wanted` are further features.
    ///
    /// # Errors
    ///
    /// As [`Mapping::anonymous`], [`Uffd::open`] and [`Uffd::register`].
    pub fn new(len: usize, wanted: Features, user_mode_only: bool) -> io::Result<Self> {
        Self::with_flags(len, wanted, OpenFlags { nonblocking: true, user_mode_only })
    }

    /// [`PulledMapping::new`] whose userfaultfd is opened with these flags: one that blocks saves a
    /// poll per fault, to a thread that waits for nothing else.
    ///
    /// # Errors
    ///
    /// As [`PulledMapping::new`].
    pub fn with_flags(len: usize, wanted: Features, flags: OpenFlags) -> io::Result<Self> {
        let mapping = Mapping::anonymous(len, Protection::Read, false)?;
        let uffd = Uffd::open(wanted, flags)?;
        uffd.register(&mapping, RegisterModes { missing: true, ..RegisterModes::default() })?;
        Ok(Self { mapping, uffd, len })
    }

    /// The bytes. To touch one that is absent waits until it is placed; to touch one that is
    /// poisoned is a SIGBUS.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: nobody writes these bytes: the mapping is private and was mapped read-only, so no
        // pointer into it can be written through; `copy_in` refuses read-only mappings; the
        // functions that discard pages under a shared reference are unsafe, and `discard` needs
        // `self` mutably, which no slice outlives; the mapping itself is not given away mutably.
        // What is left is the first placement of a page.
        unsafe { self.mapping.as_slice(self.len) }
    }

    /// Makes whole pages absent again: they fault anew. That this needs `&mut self` shows that nobody
    /// holds the bytes.
    ///
    /// # Errors
    ///
    /// As [`Mapping::discard`].
    pub fn discard(&mut self, offset: usize, len: usize) -> io::Result<()> {
        self.mapping.discard(offset, len)
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory, in whole pages.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// What fills it.
    pub fn uffd(&self) -> &Uffd {
        &self.uffd
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uffd::{CopyMode, Event, EventBuffer};

    #[test]
    fn bytes_can_be_read_while_they_are_placed() {
        let pulled = PulledMapping::new(3 * 4096 + 1, Features::NONE, false).expect("userfaultfd");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = EventBuffer::new(8);
                let mut placed = 0;
                while placed < 4 {
                    let mut items =
                        [crate::event::PollItem::readable(std::os::fd::AsFd::as_fd(pulled.uffd()))];
                    crate::event::poll(&mut items, None).expect("poll");
                    for event in pulled.uffd().read_events(&mut buffer).expect("events") {
                        let Event::PageFault { address, .. } = event else { panic!("{event:?}") };
                        let page = *address as usize & !4095;
                        let number = (page - pulled.mapping().address()) / 4096;
                        pulled
                            .uffd()
                            .copy_all(page, &[number as u8 + 1; 4096], CopyMode::default())
                            .expect("copy");
                        placed += 1;
                    }
                }
            });
            let bytes = pulled.bytes();
            assert_eq!(bytes.len(), 3 * 4096 + 1);
            assert_eq!((bytes[2 * 4096], bytes[0], bytes[4096], bytes[3 * 4096]), (3, 1, 2, 4));
        });
    }

    #[test]
    fn one_that_blocks_waits_for_a_fault() {
        let flags = OpenFlags { nonblocking: false, user_mode_only: false };
        let pulled = PulledMapping::with_flags(4096, Features::NONE, flags).expect("userfaultfd");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = EventBuffer::new(1);
                let events = pulled.uffd().read_events(&mut buffer).expect("an event, waited for");
                assert!(matches!(events, [Event::PageFault { .. }]), "{events:?}");
                pulled
                    .uffd()
                    .copy_all(pulled.mapping().address(), &[7; 4096], CopyMode::default())
                    .expect("copy");
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert_eq!(pulled.bytes()[0], 7);
        });
    }

    #[test]
    fn discarded_pages_are_filled_anew() {
        let mut pulled = PulledMapping::new(2 * 4096, Features::NONE, false).expect("userfaultfd");
        let base = pulled.mapping().address();
        pulled.uffd().copy_all(base, &[1; 2 * 4096], CopyMode::default()).expect("copy");
        assert_eq!(pulled.bytes()[4096], 1);
        pulled.discard(4096, 4096).expect("discard");
        assert!(pulled.discard(1, 4096).is_err() && pulled.discard(4096, 2 * 4096).is_err());
        pulled.uffd().copy_all(base, &[2; 2 * 4096], CopyMode::default()).expect("copy");
        assert_eq!((pulled.bytes()[4095], pulled.bytes()[4096]), (1, 2));
    }

    #[test]
    fn an_empty_one_is_empty() {
        assert!(PulledMapping::new(0, Features::NONE, false).expect("userfaultfd").bytes().is_empty());
    }
}
