//! A store that fails, loses what it has staged, and answers late, as a seed has it.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use pagewire::store::{Blocking, Completion, Flush, Info, MemoryStore, Read, Stage, Store};
use pagewire::{ByteRange, Error, ErrorKind, Result};

/// How often, in per cent, what happens.
#[derive(Clone, Copy, Default)]
pub(crate) struct Trouble {
    /// A write fails, though it may have been carried out.
    pub(crate) write: u64,
    /// The store is full: a flush fails, and gives up what is staged.
    pub(crate) full: u64,
    /// The connection is lost at a flush, before or after it was carried out.
    pub(crate) lost: u64,
    /// The store is restarted at a flush or a write, before or after it was carried out.
    pub(crate) restart: u64,
}

type Answer = Box<dyn FnOnce() + Send>;

pub(crate) struct Fragile {
    store: MemoryStore,
    state: Mutex<State>,
    /// Answers on their way.
    answers: Mutex<Option<Sender<Answer>>>,
    answering: Option<JoinHandle<()>>,
}

struct State {
    trouble: Trouble,
    random: u64,
    stage: u64,
    flushed: u64,
    troubles: usize,
}

impl State {
    /// SplitMix64.
    fn draw(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn happens(&mut self, per_cent: u64) -> bool {
        let happens = self.draw(100) < per_cent;
        self.troubles += usize::from(happens);
        happens
    }
}

impl Fragile {
    pub(crate) fn new(store: MemoryStore, seed: u64, trouble: Trouble) -> Arc<Self> {
        let (sender, receiver) = channel::<Answer>();
        let answering = std::thread::spawn(move || {
            let mut random = seed;
            for answer in receiver {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if random >> 61 == 0 {
                    std::thread::sleep(Duration::from_micros(random >> 32 & 0xff));
                }
                answer();
            }
        });
        let state = State { trouble, random: seed, stage: 1, flushed: 0, troubles: 0 };
        Arc::new(Self {
            store,
            state: Mutex::new(state),
            answers: Mutex::new(Some(sender)),
            answering: Some(answering),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Changes what happens from now on.
    pub(crate) fn set(&self, trouble: Trouble) {
        self.lock().trouble = trouble;
    }

    /// How often something has happened.
    pub(crate) fn troubles(&self) -> usize {
        self.lock().troubles
    }

    /// The store forgets what is staged.
    pub(crate) fn restart(&self) {
        let mut state = self.lock();
        self.store.discard().unwrap();
        state.stage += 1;
    }

    fn answer(&self, answer: impl FnOnce() + Send + 'static) {
        if let Some(answers) = &*self.answers.lock().unwrap() {
            answers.send(Box::new(answer)).unwrap();
        }
    }

    /// Carries out a change, or what becomes of it.
    fn change(&self, done: Completion, change: impl FnOnce(Completion)) {
        let mut state = self.lock();
        let trouble = state.trouble;
        if state.happens(trouble.restart) {
            self.store.discard().unwrap();
            state.stage += 1;
            return self.answer(move || done(Err(lost())));
        }
        let fails = state.happens(trouble.write);
        if fails && state.draw(2) == 0 {
            return self.answer(move || done(Err(lost())));
        }
        let mut result = Ok(());
        let (sender, receiver) = channel();
        change(Box::new(move |answer| sender.send(answer).unwrap()));
        result = result.and(receiver.recv().unwrap());
        if fails {
            result = Err(lost());
        }
        self.answer(move || done(result));
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection is lost")
}

impl Drop for Fragile {
    fn drop(&mut self) {
        self.answers.lock().unwrap().take();
        if let Some(answering) = self.answering.take()
            && answering.thread().id() != std::thread::current().id()
        {
            answering.join().unwrap();
        }
    }
}

impl Store for Fragile {
    fn info(&self) -> Info {
        self.store.info()
    }

    fn read(&self, read: Read) {
        self.store.read(read);
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        self.change(done, |done| self.store.write(ranges, bytes, done));
    }

    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        self.change(done, |done| self.store.zero(ranges, done));
    }

    fn set_length(&self, length: u64, done: Completion) {
        self.change(done, |done| self.store.set_length(length, done));
    }

    fn flush(&self, flush: Flush) {
        let mut state = self.lock();
        let Flush { number, stage, done } = flush;
        let trouble = state.trouble;
        if stage != state.stage {
            return self.answer(move || done(Err(lost())));
        }
        if state.happens(trouble.full) {
            self.store.discard().unwrap();
            return self.answer(move || done(Err(Error::new(ErrorKind::NoSpace, "the disk is full"))));
        }
        let (lost_now, restart) = (state.happens(trouble.lost), state.happens(trouble.restart));
        let carried_out = !(lost_now || restart) || state.draw(2) == 0;
        let mut result = Err(lost());
        if carried_out {
            let info =
                if number > state.flushed { self.store.flush_all().unwrap() } else { self.store.info() };
            state.flushed = state.flushed.max(number);
            result = Ok(info);
        }
        if restart {
            self.store.discard().unwrap();
            state.stage += 1;
        }
        if lost_now || restart {
            result = Err(lost());
        }
        self.answer(move || done(result));
    }

    fn stage(&self) -> Stage {
        let state = self.lock();
        Stage { number: state.stage, flushed: state.flushed, ..self.store.stage() }
    }

    fn discard(&self) -> Result<()> {
        self.store.discard()
    }

    fn fence(&self) -> Result<Option<u64>> {
        self.store.fence()
    }
}
