//! What a userfaultfd reports, many events with one read.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use linux_raw_sys::general as raw;

/// One message of a userfaultfd. Addresses are those of the process whose memory is registered.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for a page.
    PageFault {
        /// Of the page; the exact one with [`Features::EXACT_ADDRESS`](super::Features::EXACT_ADDRESS).
        address: u64,
        /// The thread wants to write.
        write: bool,
        /// The page is there and write-protected.
        write_protect: bool,
        /// The page is in the page cache and not yet mapped.
        minor: bool,
        /// The waiting thread, with [`Features::THREAD_ID`](super::Features::THREAD_ID).
        thread: Option<u32>,
    },
    /// Pages were made absent; they fault again when touched. Until this event is read, every placement answers
    /// [`PlaceError::Again`](super::PlaceError::Again), and the process that removes them waits.
    Remove {
        /// First byte.
        start: u64,
        /// Behind the last byte.
        end: u64,
    },
    /// The range is gone.
    Unmap {
        /// First byte.
        start: u64,
        /// Behind the last byte.
        end: u64,
    },
    /// The range moved, with its pages and its registration.
    Remap {
        /// Old address.
        from: u64,
        /// New address.
        to: u64,
        /// Bytes.
        len: u64,
    },
    /// The process forked, and the child's memory is registered too.
    Fork {
        /// The child's userfaultfd. While nobody serves it, the child waits; dropping it lets the child read
        /// zeroes.
        fd: OwnedFd,
    },
}

/// Room for the events of one read; reused from read to read.
#[derive(Debug)]
pub struct EventBuffer {
    messages: Vec<Message>,
    events: Vec<Event>,
    unknown: Option<u8>,
}

impl EventBuffer {
    /// Room for `capacity` events, at least one.
    pub fn new(capacity: usize) -> EventBuffer {
        EventBuffer { messages: vec![Message::EMPTY; capacity.max(1)], events: Vec::new(), unknown: None }
    }

    /// The events of the last read.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Takes the events of the last read out, for those that own a descriptor.
    pub fn take(&mut self) -> std::vec::Drain<'_, Event> {
        self.events.drain(..)
    }

    /// The kind of an event of an earlier read that this version does not know, once.
    pub(super) fn take_unknown(&mut self) -> Option<io::Error> {
        let kind = self.unknown.take()?;
        Some(io::Error::new(io::ErrorKind::InvalidData, format!("unknown userfaultfd event {kind:#x}")))
    }

    /// Where read(2) may put messages, and how many bytes fit.
    pub(super) fn room(&mut self) -> (*mut libc::c_void, usize) {
        (self.messages.as_mut_ptr().cast(), size_of_val(self.messages.as_slice()))
    }

    /// Parses the `bytes` bytes of messages that a read put into the room.
    ///
    /// # Safety
    ///
    /// A userfaultfd must have written them since the last call, so that the descriptors in them are new.
    pub(super) unsafe fn parse(&mut self, bytes: usize, thread_ids: bool) {
        self.events.clear();
        for message in &self.messages[..bytes / size_of::<Message>()] {
            // SAFETY: passed on from the caller.
            match unsafe { parse(&message.0, thread_ids) } {
                Some(event) => self.events.push(event),
                None => self.unknown = Some(message.0.event),
            }
        }
    }
}

impl Default for EventBuffer {
    /// Room for 32 events: a KiB, and more than threads commonly fault at once.
    fn default() -> EventBuffer {
        EventBuffer::new(32)
    }
}

/// The kernel's message. It has no references: any bytes are a valid value.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Message(raw::uffd_msg);

impl Message {
    // SAFETY: the struct and its unions are of integers, for which zeroes are valid.
    const EMPTY: Message = Message(unsafe { std::mem::zeroed() });
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "event {:#x}", self.0.event)
    }
}

/// The event of a message; none when its kind is unknown.
///
/// # Safety
///
/// The message comes from a userfaultfd and is parsed once: a descriptor in it is new and becomes the event's.
unsafe fn parse(message: &raw::uffd_msg, thread_ids: bool) -> Option<Event> {
    let argument = message.arg;
    Some(match u32::from(message.event) {
        raw::UFFD_EVENT_PAGEFAULT => {
            // SAFETY: the union is of integers only, so that every member is valid for any bytes.
            let (fault, thread) = unsafe { (argument.pagefault, argument.pagefault.feat.ptid) };
            let flag = |bit: u32| fault.flags & u64::from(bit) != 0;
            Event::PageFault {
                address: fault.address,
                write: flag(raw::UFFD_PAGEFAULT_FLAG_WRITE),
                write_protect: flag(raw::UFFD_PAGEFAULT_FLAG_WP),
                minor: flag(raw::UFFD_PAGEFAULT_FLAG_MINOR),
                thread: thread_ids.then_some(thread),
            }
        }
        raw::UFFD_EVENT_FORK => {
            // SAFETY: integers, as above.
            let number = unsafe { argument.fork.ufd };
            // SAFETY: the kernel installed this descriptor for this message, and the caller parses it once.
            Event::Fork { fd: unsafe { OwnedFd::from_raw_fd(number as libc::c_int) } }
        }
        raw::UFFD_EVENT_REMAP => {
            // SAFETY: integers, as above.
            let remap = unsafe { argument.remap };
            Event::Remap { from: remap.from, to: remap.to, len: remap.len }
        }
        raw::UFFD_EVENT_REMOVE => {
            // SAFETY: integers, as above.
            let range = unsafe { argument.remove };
            Event::Remove { start: range.start, end: range.end }
        }
        raw::UFFD_EVENT_UNMAP => {
            // SAFETY: integers, as above.
            let range = unsafe { argument.remove };
            Event::Unmap { start: range.start, end: range.end }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_event_is_named_once_and_costs_no_other() {
        let mut buffer = EventBuffer::new(3);
        for (message, kind) in buffer.messages.iter_mut().zip([0x12, 0x77, 0x15]) {
            message.0.event = kind;
        }
        let bytes = buffer.room().1;
        // SAFETY: none of the messages carries a descriptor.
        unsafe { buffer.parse(bytes, false) };
        assert!(matches!(buffer.events(), [Event::PageFault { thread: None, .. }, Event::Remove { .. }]));
        let error = buffer.take_unknown().expect("the unknown event");
        assert!(error.to_string().contains("0x77"), "{error}");
        assert!(buffer.take_unknown().is_none());
    }
}
