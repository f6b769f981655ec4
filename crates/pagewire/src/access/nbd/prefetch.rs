//! What CACHE starts: a range is pulled to where it is at hand, in the background.
//!
//! Where a region has a cache or is far away, it is read, which fills the cache; of a file the kernel is told. Else
//! there is nothing to be done. Requests beyond a bound are forgotten: they are hints.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, mpsc};

use pagewire_core::chunk::ByteRange;

use super::attachment::Attachment;
use super::outgoing::Outgoing;
use crate::error::Result;
use crate::store::pool::Pool;
use crate::store::{Part, Read, Sink, Urgency};

/// How many bytes are pulled at once.
const PIECE: u64 = 4 << 20;

/// How many ranges may wait.
const MAX_WAITING: usize = 256;

/// The ranges that one client wants to have at hand.
#[derive(Default)]
pub(super) struct Prefetch {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<ByteRange>,
    running: bool,
    closed: bool,
}

impl Prefetch {
    /// Begins to pull `range`, behind what is pulled already.
    pub(super) fn start(
        self: &Arc<Self>,
        attachment: &Arc<Attachment>,
        outgoing: &Arc<Outgoing>,
        range: ByteRange,
        pool: &Pool,
    ) {
        let region = attachment.region();
        if let Some(lent) = region.lend() {
            // A hint: whatever comes of it.
            let _ = pagewire_sys::file::fadvise_willneed(lent.file, range.start, range.len());
            return;
        }
        if region.cache().is_none() && region.round_trip().is_zero() {
            return;
        }
        let mut state = self.state.lock().expect("no holder panics");
        if state.closed || state.waiting.len() >= MAX_WAITING {
            return;
        }
        state.waiting.extend(range.split(PIECE).take(MAX_WAITING));
        if !std::mem::replace(&mut state.running, true) {
            drop(state);
            let (this, under_way) = (self.clone(), outgoing.begin(attachment, 0));
            pool.run(Box::new(move || this.run(under_way.attachment())));
        }
    }

    /// Nothing more is pulled.
    pub(super) fn close(&self) {
        let mut state = self.state.lock().expect("no holder panics");
        state.closed = true;
        state.waiting.clear();
    }

    fn run(&self, attachment: &Attachment) {
        loop {
            let piece = {
                let mut state = self.state.lock().expect("no holder panics");
                match state.waiting.pop_front() {
                    Some(piece) => piece,
                    None => {
                        state.running = false;
                        return;
                    }
                }
            };
            let (sender, ended) = mpsc::sync_channel(1);
            let (epoch, urgency) = (attachment.epoch(), Urgency::Background);
            let sink = Arc::new(Discard(sender));
            attachment.region().read(Read { ranges: vec![piece], epoch, urgency, sink });
            if let Ok(Err(error)) = ended.recv() {
                tracing::debug!(%piece, %error, "what an NBD client would like to have at hand cannot be had");
                self.close();
            }
        }
    }
}

/// Takes an answer that nobody looks at: the cache has kept it.
struct Discard(mpsc::SyncSender<Result<()>>);

impl Sink for Discard {
    fn part(&self, _: Part<'_>) {}

    fn done(&self, result: Result<()>) {
        // Nobody is left to be told where the thread that waits has panicked.
        let _ = self.0.send(result);
    }
}
