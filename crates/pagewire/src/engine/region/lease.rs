//! The lease of a region's one writer.
//!
//! A lease is named by a token that grows from writer to writer. It is *held* by a [`super::Writer`],
//! *waits* for its holder to come back after a lost connection, until it lapses, and is free otherwise.
//! What a writer does, it does under the lease's lock for sharing; who takes the lease over takes the
//! lock alone. So nothing of an earlier writer reaches the store after a later one has begun.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant, SystemTime};

use crate::error::{Error, ErrorKind, Result};

/// Who may write to a region.
pub(super) struct Lease {
    state: Mutex<State>,
    turn: RwLock<()>,
}

struct State {
    /// The newest token that was given, here or before a restart.
    token: u64,
    holder: Option<Holder>,
}

struct Holder {
    owner: String,
    /// Set when somebody else has taken its place.
    revoked: Arc<AtomicBool>,
    /// Since when the holder is gone, and for how long it is waited for.
    gone: Option<(Instant, Duration)>,
}

/// One holder's part in the lease.
pub(super) struct Held {
    pub(super) token: u64,
    revoked: Arc<AtomicBool>,
}

impl Lease {
    /// A free lease, whose last token was `token`.
    pub(super) fn new(token: u64) -> Self {
        Self { state: Mutex::new(State { token, holder: None }), turn: RwLock::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Takes a lease that nobody holds. `fence` makes the new token, and gives up what an earlier writer
    /// has staged.
    pub(super) fn take(&self, owner: &str, fence: impl FnOnce() -> Result<Option<u64>>) -> Result<Held> {
        // Who is refused neither waits for what the holder does, nor holds it up.
        self.lock().check_free()?;
        let _alone = self.turn.write().expect("no holder panics");
        self.lock().check_free()?;
        let fenced = fence()?;
        let mut state = self.lock();
        state.token = match fenced {
            Some(token) => token,
            // Greater than any of a process before this one, as far as clocks go.
            None => (state.token + 1).max(since_1970()),
        };
        Ok(state.hold(owner))
    }

    /// Whether somebody could take the lease now, or go on with it where its token is this one.
    pub(super) fn is_free_for(&self, token: Option<u64>) -> bool {
        let state = self.lock();
        let waits = state.holder.as_ref().is_some_and(|holder| holder.gone.is_some());
        (waits && token == Some(state.token)) || state.check_free().is_ok()
    }

    /// Goes on with a lease after a lost connection, or after a restart of this process. An earlier
    /// connection of the same holder that is not known to be lost yet is cut off.
    pub(super) fn resume(&self, token: u64, owner: &str) -> Result<Held> {
        let _alone = self.turn.write().expect("no holder panics");
        let mut state = self.lock();
        if token != state.token || token == 0 {
            let by = state.holder.as_ref().map_or("another writer", |holder| holder.owner.as_str());
            return Err(fenced(by));
        }
        Ok(state.hold(owner))
    }

    /// Whether nobody else has taken the holder's place.
    pub(super) fn is_held(&self, held: &Held) -> bool {
        !held.revoked.load(Ordering::Acquire)
    }

    /// The right to change the region, while the answer lives.
    pub(super) fn turn(&self, held: &Held) -> Result<RwLockReadGuard<'_, ()>> {
        let turn = self.turn.read().expect("no holder panics");
        if held.revoked.load(Ordering::Acquire) {
            let state = self.lock();
            let by = state.holder.as_ref().filter(|_| state.token != held.token);
            return Err(fenced(by.map_or("a newer connection", |holder| holder.owner.as_str())));
        }
        Ok(turn)
    }

    /// The holder is gone. Without a `lapse` the lease is free at once, and `discard` gives up what was
    /// staged; with one it waits for the holder to come back.
    pub(super) fn leave(&self, held: &Held, lapse: Option<Duration>, discard: impl FnOnce()) {
        let _alone = self.turn.write().expect("no holder panics");
        let mut state = self.lock();
        if held.revoked.swap(true, Ordering::AcqRel) {
            return;
        }
        match lapse {
            Some(lapse) => {
                if let Some(holder) = &mut state.holder {
                    holder.gone = Some((Instant::now(), lapse));
                }
            }
            None => {
                state.holder = None;
                drop(state);
                discard();
            }
        }
    }
}

impl State {
    /// Whether somebody else may take the lease.
    fn check_free(&self) -> Result<()> {
        let Some(Holder { owner, gone, .. }) = &self.holder else { return Ok(()) };
        match gone {
            None => Err(busy(&format!("{owner} has the lease"))),
            Some((since, lapse)) if since.elapsed() < *lapse => {
                let left = lapse.saturating_sub(since.elapsed()).as_secs_f64();
                let text = format!(
                    "{owner} has the lease; its connection is lost, and the lease lapses in {left:.1} s"
                );
                Err(busy(&text))
            }
            Some(_) => Ok(()),
        }
    }

    fn hold(&mut self, owner: &str) -> Held {
        if let Some(old) = self.holder.take() {
            old.revoked.store(true, Ordering::Release);
        }
        let revoked: Arc<AtomicBool> = Arc::default();
        self.holder = Some(Holder { owner: owner.into(), revoked: revoked.clone(), gone: None });
        Held { token: self.token, revoked }
    }
}

fn busy(text: &str) -> Error {
    Error::new(ErrorKind::Busy, text)
}

fn fenced(by: &str) -> Error {
    Error::new(ErrorKind::Fenced, format!("the lease is lost: {by} writes now"))
}

fn since_1970() -> u64 {
    // A clock that is set before 1970 is no clock.
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(lease: &Lease, owner: &str) -> Result<Held> {
        lease.take(owner, || Ok(None))
    }

    #[test]
    fn one_at_a_time_and_tokens_grow() {
        let lease = Lease::new(0);
        let one = take(&lease, "one").unwrap();
        let error = take(&lease, "two").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains("one has the lease"), "{error}");
        lease.leave(&one, None, || {});
        let two = take(&lease, "two").unwrap();
        assert!(two.token > one.token);
        assert_eq!(lease.turn(&one).err().unwrap().kind(), ErrorKind::Fenced);
        assert!(lease.turn(&two).is_ok());
    }

    #[test]
    fn who_is_refused_does_not_wait_for_what_the_holder_does() {
        let lease = Arc::new(Lease::new(0));
        let one = take(&lease, "one").unwrap();
        let _writing = lease.turn(&one).unwrap();
        let (sender, answer) = std::sync::mpsc::sync_channel(1);
        let second = lease.clone();
        std::thread::spawn(move || sender.send(take(&second, "two").err()).unwrap());
        let error = answer.recv_timeout(Duration::from_secs(20)).expect("it waits").unwrap();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert!(lease.turn(&one).is_ok(), "nor is the holder held up");
    }

    #[test]
    fn a_holder_that_is_gone_is_waited_for_and_comes_back() {
        let lease = Lease::new(0);
        let one = take(&lease, "one").unwrap();
        lease.leave(&one, Some(Duration::from_secs(3600)), || panic!("nothing is given up"));
        assert!(take(&lease, "two").err().unwrap().to_string().contains("lapses in"));
        let back = lease.resume(one.token, "one").unwrap();
        assert!(lease.turn(&back).is_ok());
        assert!(lease.turn(&one).is_err(), "the lost connection writes no more");
        lease.leave(&back, Some(Duration::ZERO), || panic!("nothing is given up"));
        let two = take(&lease, "two").unwrap();
        let error = lease.resume(one.token, "one").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Fenced);
        assert!(error.to_string().contains("two"), "{error}");
        assert!(lease.turn(&two).is_ok());
    }

    #[test]
    fn a_lease_of_before_a_restart_can_be_resumed() {
        let lease = Lease::new(7);
        assert_eq!(lease.resume(6, "old").err().unwrap().kind(), ErrorKind::Fenced);
        assert_eq!(lease.resume(7, "old").unwrap().token, 7);
        assert!(Lease::new(0).resume(0, "nobody").is_err());
    }
}
