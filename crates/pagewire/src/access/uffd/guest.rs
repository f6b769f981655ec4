//! One VM monitor whose page faults are served: its memory as a local copy, and its events.

mod memory;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use pagewire_sys::event::{EventFd, PidFd};
use pagewire_sys::uffd::Event;

use super::handshake::Handshake;
use super::resolver::{Resolve, Resolver, Soon};
use crate::engine::{Progress, PullOptions, Puller, Region};
use crate::error::{Error, ErrorKind, Result};
use memory::{GuestMemory, Unread, Zeroed};

/// One VM monitor that is served.
pub(super) struct Guest {
    resolver: Resolver,
    puller: Arc<Puller>,
}

impl Guest {
    pub(super) fn start(region: &Arc<Region>, handshake: Handshake, pull: PullOptions) -> Result<Self> {
        let pin = region.pin()?;
        let Handshake { mappings, uffd, pid } = handshake;
        let length = pin.info().length;
        if let Some(mapping) = mappings.iter().find(|mapping| mapping.offset + mapping.size > length) {
            let end = mapping.offset + mapping.size;
            let text = format!("a guest maps {end} bytes of a region that has {length}");
            return Err(Error::new(ErrorKind::OutOfRange, text));
        }
        let process = PidFd::open(pid).map_err(|error| Error::io("cannot watch the VM monitor", &error))?;
        let memory = Arc::new(GuestMemory::new(uffd, mappings, length));
        let puller = Arc::new(Puller::start(pin, memory.clone(), pull)?);
        for range in memory.unmapped(length) {
            puller.supersede(range);
        }
        let events = Events {
            memory,
            puller: puller.clone(),
            process,
            waiting: VecDeque::new(),
            soon: Soon::default(),
        };
        Ok(Self { resolver: Resolver::start("pw-uffd-fault", events)?, puller })
    }

    /// Waits until the VM monitor exits, or the guest is stopped.
    pub(super) fn wait(&mut self) {
        self.resolver.join();
    }

    pub(super) fn stopper(&self) -> Arc<EventFd> {
        self.resolver.stopper()
    }

    pub(super) fn progress(&self) -> Progress {
        self.puller.progress()
    }

    pub(super) fn progress_reader(&self) -> Box<dyn Fn() -> Progress + Send> {
        let puller = Arc::downgrade(&self.puller);
        Box::new(move || puller.upgrade().map(|puller| puller.progress()).unwrap_or_default())
    }
}

struct Events {
    memory: Arc<GuestMemory>,
    puller: Arc<Puller>,
    process: PidFd,
    /// Faults on memory that the guest has given up, which the kernel would not let us answer yet.
    waiting: VecDeque<u64>,
    soon: Soon,
}

impl Resolve for Events {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.memory.descriptor()
    }

    fn end(&self) -> Option<BorrowedFd<'_>> {
        Some(self.process.as_fd())
    }

    fn resolve(&mut self) -> io::Result<bool> {
        loop {
            let Unread { events, removed } = self.memory.take_events()?;
            for range in removed {
                self.puller.supersede(range);
            }
            for event in events {
                match event {
                    Event::PageFault { address, .. } => self.waiting.push_back(address),
                    // Dealt with where they were read.
                    Event::Remove { .. } | Event::Unmap { .. } => {}
                    Event::Remap { from, to, .. } => {
                        let text = format!("a VM monitor has moved its memory from {from:#x} to {to:#x}");
                        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
                    }
                    // The child reads zeroes where nothing has arrived; VM monitors do not fork.
                    Event::Fork { fd } => drop(fd),
                }
            }
            self.answer_waiting();
            // What arrives from now on makes the descriptor readable.
            if !self.memory.has_unread() {
                return Ok(self.soon.check(&self.puller) || !self.waiting.is_empty());
            }
        }
    }
}

impl Events {
    /// Answers the faults that wait, each once; those that cannot be answered yet stay.
    fn answer_waiting(&mut self) {
        for _ in 0..self.waiting.len() {
            let Some(address) = self.waiting.pop_front() else { break };
            match self.memory.zero_if_removed(address) {
                Zeroed::Done => {}
                Zeroed::Again => self.waiting.push_back(address),
                Zeroed::NotRemoved(offset) => self.soon.fault(&self.puller, offset),
                Zeroed::Unknown => {
                    tracing::error!(address, "a VM monitor faults on memory that it has not named");
                }
            }
        }
    }
}
