//! The thread that reads a userfaultfd's events.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pagewire_sys::event::{EventFd, PollItem, poll};

use crate::engine::{Fault, Puller};
use crate::error::{Error, Result};
use crate::schedule::{self, Wait};

/// A thread that waits for events until it is told to stop, and then has ended when this is dropped.
pub(super) struct Resolver {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// What a [`Resolver`]'s thread does.
pub(super) trait Resolve: Send + 'static {
    /// The descriptor that becomes readable when there is something to do.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// A second descriptor whose readability is the end: of the process whose memory this is.
    fn end(&self) -> Option<BorrowedFd<'_>>;

    /// There is something to do. Answers whether to come back soon even without an event.
    ///
    /// # Errors
    ///
    /// What ends the thread.
    fn resolve(&mut self) -> io::Result<bool>;
}

impl Resolver {
    pub(super) fn start(name: &str, mut work: impl Resolve) -> Result<Self> {
        let stop = EventFd::new().map_err(|error| Error::io("cannot make an event", &error))?;
        let stop = Arc::new(stop);
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                schedule::demand();
                if let Err(error) = run(&mut work, &stopped) {
                    tracing::error!(%error, "page faults are not served any more");
                }
            })
            .map_err(|error| Error::io("cannot start a thread", &error))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Waits until the thread has ended by itself.
    pub(super) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // One that has panicked has ended, too.
            let _ = thread.join();
        }
    }

    /// What makes the thread stop.
    pub(super) fn stopper(&self) -> Arc<EventFd> {
        self.stop.clone()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        // An event that cannot be signalled is one that is signalled already.
        let _ = self.stop.signal();
        self.join();
    }
}

fn run(work: &mut impl Resolve, stop: &EventFd) -> io::Result<()> {
    let mut soon = false;
    loop {
        let over = {
            let timeout = soon.then_some(Duration::from_millis(1));
            let (faults, stop, end) = (work.descriptor(), stop.as_fd(), work.end());
            let mut items = [faults, stop, end.unwrap_or(stop)].map(PollItem::readable);
            let items = if end.is_some() { &mut items[..] } else { &mut items[..2] };
            schedule::wait(|how| match how {
                Wait::Look if poll(items, Some(Duration::ZERO))? == 0 => {
                    Err(io::ErrorKind::WouldBlock.into())
                }
                Wait::Look => Ok(0),
                Wait::Sleep => poll(items, timeout),
            })?;
            items[1..].iter().any(PollItem::is_ready) || items[0].is_hung_up()
        };
        if over {
            return Ok(());
        }
        soon = work.resolve()?;
    }
}

/// Faults that wait for what the background pull is about to bring.
#[derive(Default)]
pub(super) struct Soon {
    waiting: Vec<(Instant, u64)>,
}

impl Soon {
    /// Hands a fault to the puller, and keeps it if it is to be handed in again.
    pub(super) fn fault(&mut self, puller: &Puller, offset: u64) {
        if let Fault::Soon(deadline) = puller.fault(offset) {
            self.waiting.push((deadline, offset));
        }
    }

    /// Hands in again what has waited for long enough. Answers whether anything still waits.
    pub(super) fn check(&mut self, puller: &Puller) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let now = Instant::now();
        self.waiting.retain(|(deadline, offset)| {
            if *deadline <= now {
                puller.overdue(*offset);
            }
            *deadline > now
        });
        !self.waiting.is_empty()
    }
}
