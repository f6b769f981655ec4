//! Pages on their way to a destination, asked for or not.
//!
//! Those of a set may *follow* the answer that names them, which saves the round trip that it takes to ask for them. They
//! come on other connections than the answer and may be faster; until it is here they are held at a gate, since a page
//! that is known to have arrived is not placed again.

use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::sink::{Part, Sink};
use crate::store::Stream;

/// How often whoever waits looks whether that is over.
const TICK: Duration = Duration::from_millis(5);

/// How a transfer has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    /// All of it is here.
    All,
    /// The time was over.
    InPart,
}

/// Bytes on their way. Once it is dropped, nothing more of them is placed.
pub(super) struct Transfer {
    /// None for a read, which cannot be called off.
    pub(super) stream: Option<Box<dyn Stream>>,
    pub(super) ended: mpsc::Receiver<Result<()>>,
    pub(super) gate: Option<Arc<Gate>>,
}

impl Transfer {
    /// Waits for its end, or until `is_over`.
    ///
    /// # Errors
    ///
    /// Whatever has kept some of it from coming.
    pub(super) fn wait(self, is_over: &dyn Fn() -> bool) -> Result<Carried> {
        loop {
            match self.ended.recv_timeout(TICK) {
                Ok(result) => return result.map(|()| Carried::All),
                Err(mpsc::RecvTimeoutError::Timeout) if is_over() => return Ok(Carried::InPart),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(ErrorKind::Cancelled, "the store dropped a read"));
                }
            }
        }
    }

    /// It is known which pages they are: they may be placed.
    pub(super) fn open(&self) {
        if let Some(gate) = &self.gate {
            gate.set(Passage::Open);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(gate) = &self.gate {
            gate.shut();
        }
        if let Some(stream) = &self.stream {
            stream.cancel();
        }
        // None comes where it has ended before.
        let _ended = self.ended.recv();
    }
}

/// What holds a sink's parts until they are wanted, or not any more.
pub(super) struct Gate {
    passage: Mutex<Passage>,
    changed: Condvar,
    sink: Arc<dyn Sink>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Passage {
    /// Whoever brings something waits.
    Held,
    Open,
    /// What comes is thrown away.
    Shut,
}

impl Gate {
    pub(super) fn new(sink: Arc<dyn Sink>) -> Arc<Self> {
        Arc::new(Self { passage: Mutex::new(Passage::Held), changed: Condvar::new(), sink })
    }

    /// What comes is not wanted.
    pub(super) fn shut(&self) {
        self.set(Passage::Shut);
    }

    fn set(&self, passage: Passage) {
        *self.passage.lock().expect("no holder panics") = passage;
        self.changed.notify_all();
    }
}

impl Sink for Gate {
    fn part(&self, part: Part<'_>) {
        let passage = self.passage.lock().expect("no holder panics");
        let passage =
            *self.changed.wait_while(passage, |now| *now == Passage::Held).expect("no holder panics");
        if passage == Passage::Open {
            self.sink.part(part);
        }
    }

    fn done(&self, result: Result<()>) {
        self.sink.done(result);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use pagewire_core::chunk::ByteRange;

    use super::*;

    /// Counts the bytes that are let through, and tells of the end.
    struct Counting {
        bytes: AtomicU64,
        ended: mpsc::SyncSender<Result<()>>,
    }

    impl Sink for Counting {
        fn part(&self, part: Part<'_>) {
            self.bytes.fetch_add(part.range().len(), Ordering::SeqCst);
        }

        fn done(&self, result: Result<()>) {
            let _ = self.ended.try_send(result);
        }
    }

    /// A stream that ends when it is called off.
    struct Endless(Arc<Gate>);

    impl Stream for Endless {
        fn steer(&self, _: &[ByteRange]) {}

        fn cancel(&self) {
            self.0.done(Err(Error::new(ErrorKind::Cancelled, "as asked")));
        }
    }

    fn transfer() -> (Transfer, Arc<Gate>, Arc<Counting>) {
        let (sender, ended) = mpsc::sync_channel(1);
        let counting = Arc::new(Counting { bytes: AtomicU64::new(0), ended: sender });
        let gate = Gate::new(counting.clone());
        let stream: Box<dyn Stream> = Box::new(Endless(gate.clone()));
        (Transfer { stream: Some(stream), ended, gate: Some(gate.clone()) }, gate, counting)
    }

    #[test]
    fn what_comes_before_it_is_known_waits_and_is_not_lost() {
        let (transfer, gate, counting) = transfer();
        std::thread::scope(|scope| {
            let (gate, bytes) = (&gate, &counting.bytes);
            let early = scope.spawn(move || {
                gate.part(Part::Zero(ByteRange::new(0, 4096)));
                bytes.load(Ordering::SeqCst)
            });
            assert_eq!(bytes.load(Ordering::SeqCst), 0, "it is held");
            transfer.open();
            assert_eq!(early.join().unwrap(), 4096);
        });
        gate.done(Ok(()));
        assert_eq!(transfer.wait(&|| false).unwrap(), Carried::All);
    }

    #[test]
    fn what_is_not_wanted_any_more_is_thrown_away_and_holds_up_nobody() {
        let (transfer, gate, counting) = transfer();
        std::thread::scope(|scope| {
            let early = scope.spawn(|| gate.part(Part::Zero(ByteRange::new(0, 4096))));
            drop(transfer);
            early.join().unwrap();
        });
        gate.part(Part::Zero(ByteRange::new(0, 4096)));
        assert_eq!(counting.bytes.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn it_ends_when_the_time_is_over() {
        let (transfer, gate, counting) = transfer();
        transfer.open();
        gate.part(Part::Zero(ByteRange::new(0, 8192)));
        assert_eq!(transfer.wait(&|| true).unwrap(), Carried::InPart);
        gate.part(Part::Zero(ByteRange::new(0, 4096)));
        assert_eq!(counting.bytes.load(Ordering::SeqCst), 8192);
    }
}
