//! Has the kernel write back what programs have written to a mounted file, without a flush: so that whoever moves the
//! file to another host knows of it.
//!
//! A thread syncs the file, again and again or when it is asked to. It is known by its number: where the kernel asks for
//! a flush on its behalf, all is written back by then, and the flush is left out. As with the background
//! pull ([`warm`](super::warm)), the thread has descriptors of its own, and reaches the file by a clone of the
//! mount that is under no path.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pagewire_sys::mount::Detached;

use super::warm::join;
use crate::error::{Error, ErrorKind, Result};

/// The shortest pause between two write-backs. What was written since the last one is all that is left to be written
/// back, and to be moved, when programs are suspended.
const PAUSE: Duration = Duration::from_millis(50);

/// The threads that write back, by the files that they are for.
#[derive(Default)]
pub(super) struct WriteBacks {
    /// Their numbers.
    threads: RwLock<BTreeSet<u32>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: BTreeMap<u64, WriteBack>,
    /// Whether the mount is taken down.
    closed: bool,
}

/// One thread. It ends when nobody can ask it for anything.
struct WriteBack {
    asks: Sender<Ask>,
    thread: JoinHandle<()>,
}

/// Somebody waits for a write-back that begins from now on.
type Ask = SyncSender<io::Result<()>>;

/// A file of a mount.
pub(super) struct WhichFile {
    pub(super) ino: u64,
    pub(super) mount: PathBuf,
    /// Where the file is below the root of the mount.
    pub(super) path: PathBuf,
}

impl WriteBacks {
    /// Whether a thread is one of these.
    pub(super) fn contains(&self, thread: u32) -> bool {
        self.threads.read().expect("no holder panics").contains(&thread)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Begins to have a file written back, again and again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`] where the mount is taken down; whatever keeps the file from being opened.
    pub(super) fn start(self: &Arc<Self>, file: &WhichFile) -> Result<()> {
        self.asks(file).map(drop)
    }

    /// Has a file written back now, and waits for it.
    ///
    /// # Errors
    ///
    /// As [`WriteBacks::start`]; whatever the kernel could not write.
    pub(super) fn write_back(self: &Arc<Self>, file: &WhichFile) -> Result<()> {
        let asks = self.asks(file)?;
        let (ask, answer) = sync_channel(1);
        let gone = |()| io::Error::other("the mount is taken down");
        let written = asks.send(ask).map_err(|_| gone(()));
        let written = written.and_then(|()| answer.recv().unwrap_or_else(|_| Err(gone(()))));
        written.map_err(|error| {
            let path = join(&file.mount, &file.path);
            Error::io(format!("cannot write back {}", path.display()), &error)
        })
    }

    /// Has a file written back no more, and waits for it.
    pub(super) fn end(&self, ino: u64) {
        let ended = self.lock().running.remove(&ino);
        if let Some(WriteBack { asks, thread }) = ended {
            drop(asks);
            // One that has panicked has ended, too.
            let _ = thread.join();
        }
    }

    /// Ends them all, for good, and waits for it: they have no file open then.
    pub(super) fn stop(&self) {
        let inos: Vec<u64> = {
            let mut state = self.lock();
            state.closed = true;
            state.running.keys().copied().collect()
        };
        inos.into_iter().for_each(|ino| self.end(ino));
    }

    /// Who writes a file back, from now on if nobody did.
    fn asks(self: &Arc<Self>, file: &WhichFile) -> Result<Sender<Ask>> {
        let mut state = self.lock();
        if state.closed {
            return Err(Error::new(ErrorKind::Cancelled, "the mount is taken down"));
        }
        if let Some(running) = state.running.get(&file.ino) {
            return Ok(running.asks.clone());
        }
        let (this, mount, path) = (self.clone(), file.mount.clone(), file.path.clone());
        let (asks, asked) = channel();
        let (opened, open) = sync_channel(1);
        let thread = std::thread::Builder::new().name("pw-write-back".into()).spawn(move || {
            let id = pagewire_sys::thread::id();
            this.threads.write().expect("no holder panics").insert(id);
            match reach(&mount, &path) {
                Ok(file) => {
                    // There is room for the one word.
                    let _ = opened.try_send(Ok(()));
                    run(&file, &asked);
                }
                Err(error) => {
                    let _ = opened.try_send(Err(error));
                }
            }
            this.threads.write().expect("no holder panics").remove(&id);
        });
        let thread = thread.map_err(|error| Error::io("cannot start a thread", &error))?;
        let gone = || Err(io::Error::other("the thread has ended"));
        if let Err(error) = open.recv().unwrap_or_else(|_| gone()) {
            let path = join(&file.mount, &file.path);
            return Err(Error::io(format!("cannot write back {}", path.display()), &error));
        }
        state.running.insert(file.ino, WriteBack { asks: asks.clone(), thread });
        Ok(asks)
    }
}

/// Opens a file of a mount, on a thread that leaves this process's descriptors alone.
fn reach(mount: &Path, path: &Path) -> io::Result<File> {
    pagewire_sys::thread::leave_descriptors()?;
    let detached = Detached::clone_of(mount).and_then(|detached| detached.open(path));
    detached.or_else(|_| File::open(join(mount, path)))
}

/// Writes back until nobody can ask for it any more.
fn run(file: &File, asked: &Receiver<Ask>) {
    let mut pause = PAUSE;
    let mut fails = false;
    loop {
        let waiting = match asked.recv_timeout(pause) {
            Ok(ask) => std::iter::once(ask).chain(asked.try_iter()).collect::<Vec<_>>(),
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let began = Instant::now();
        let written = file.sync_data();
        // At most half of the time: programs write besides.
        pause = began.elapsed().max(PAUSE);
        if let Err(error) = &written
            && !std::mem::replace(&mut fails, true)
        {
            tracing::warn!(%error, "what programs have written cannot be written back");
        }
        fails = written.is_err();
        for ask in waiting {
            let answer =
                written.as_ref().map(drop).map_err(|error| io::Error::new(error.kind(), error.to_string()));
            // Who has asked may have gone.
            let _ = ask.try_send(answer);
        }
    }
}
