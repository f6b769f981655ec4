//! Waiting awake: a thread that serves those who wait looks for a moment whether there is more to do before it sleeps.
//!
//! A processor without work halts, and what wakes it takes 10 to 40 us, in a guest most of all. A page fault passes through four
//! threads, each of which has slept, so that its time is mostly that. How long to look is learned by the rules by which KVM
//! lets the processors of its guests poll before they halt (Linux, `Documentation/virt/kvm/halt-polling.rst`): longer
//! while waits turn out to end soon after, and not at all once one was long. So nothing is spent on who is idle, and
//! never more than the waits of who is not.
//!
//! Between two looks others that want the processor have it, and half of the processors are left alone. Whoever gives its
//! turn away is behind all others who compute, and has lost what short turns gave it; so where somebody takes a long
//! turn, this thread sleeps at once for a while, twice as long each time.

use std::cell::Cell;
use std::io;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// For how long is looked at first, and at most: what lies between two faults over a fast network.
const FIRST: Duration = Duration::from_micros(10);
const MOST: Duration = Duration::from_micros(100);

/// How many threads of this process may look at once: none on a machine with one processor.
static SEATS: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(0, |count| count.get() / 2));
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// A turn of somebody else that was so long has held this thread up.
const LONG_TURN: Duration = Duration::from_micros(200);

/// For how long nothing is looked at then, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

thread_local! {
    /// How this thread waits; nothing for one that sleeps at once.
    static HABIT: Cell<Option<Habit>> = const { Cell::new(None) };
}

/// The calling thread may wait awake from now on.
pub(super) fn allow() {
    HABIT.set(Some(Habit::new(Instant::now())));
}

/// What a thread has learned of its waits.
#[derive(Debug, Clone, Copy)]
struct Habit {
    budget: Duration,
    /// Until when nothing is looked at, and how long that pause is.
    paused: Instant,
    pause: Duration,
}

impl Habit {
    fn new(now: Instant) -> Self {
        Self { budget: Duration::ZERO, paused: now, pause: Duration::ZERO }
    }

    /// For how long to look.
    fn budget(&self, now: Instant) -> Duration {
        if now < self.paused { Duration::ZERO } else { self.budget }
    }

    /// To look for the budget was not enough, and the whole wait took so long.
    fn has_slept(&mut self, waited: Duration) {
        self.budget = if waited > MOST {
            Duration::ZERO
        } else if waited > self.budget {
            (self.budget * 2).clamp(FIRST, MOST)
        } else {
            self.budget
        };
    }

    /// Somebody else has taken a long turn.
    fn was_held_up(&mut self, now: Instant) {
        // Who was not held up for as long as the last pause was begins anew.
        let again = now < self.paused + self.pause;
        self.pause = if again { (self.pause * 2).clamp(PAUSE.0, PAUSE.1) } else { PAUSE.0 };
        self.paused = now + self.pause;
    }
}

/// How to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all: `WouldBlock`, where there is nothing.
    Look,
    Sleep,
}

/// Waits for something awake, for as long as that is likely to be worth it, and then asleep. A thread that has not asked for
/// short turns ([`demand`](super::demand)) sleeps at once.
///
/// # Errors
///
/// Those of `get`.
pub(crate) fn wait<T>(mut get: impl FnMut(Wait) -> io::Result<T>) -> io::Result<T> {
    let Some(mut habit) = HABIT.get() else { return get(Wait::Sleep) };
    let begun = Instant::now();
    let budget = habit.budget(begun);
    if !budget.is_zero()
        && let Some(_seat) = Seat::take()
    {
        let mut now = begun;
        while now < begun + budget {
            match get(Wait::Look) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                result => return result,
            }
            let before = std::mem::replace(&mut now, Instant::now());
            if now - before >= LONG_TURN {
                habit.was_held_up(now);
                break;
            }
        }
    }
    let result = get(Wait::Sleep);
    habit.has_slept(begun.elapsed());
    HABIT.set(Some(habit));
    result
}

/// The right to look.
struct Seat;

impl Seat {
    fn take() -> Option<Self> {
        let seat = Self;
        // Given back at once where there was none left.
        (TAKEN.fetch_add(1, Ordering::Relaxed) < *SEATS).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        TAKEN.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn looks_longer_while_waits_are_short_and_not_at_all_after_a_long_one() {
        let now = Instant::now();
        let mut habit = Habit::new(now);
        let mut seen = vec![habit.budget(now)];
        for waited in [60, 60, 60, 60, 50, 99, 101] {
            habit.has_slept(us(waited));
            seen.push(habit.budget(now));
        }
        assert_eq!(seen, [0, 10, 20, 40, 80, 80, 100, 0].map(us));
    }

    #[test]
    fn sleeps_at_once_for_longer_and_longer_while_others_take_long_turns() {
        let mut now = Instant::now();
        let mut habit = Habit { budget: MOST, ..Habit::new(now) };
        let mut pauses = Vec::new();
        for _ in 0..9 {
            habit.was_held_up(now);
            pauses.push(habit.paused - now);
            assert_eq!(habit.budget(habit.paused - us(1)), Duration::ZERO);
            now = habit.paused;
            assert_eq!(habit.budget(now), MOST);
        }
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1280, 2000, 2000].map(ms));
        // Nobody else was there for longer than that.
        now += ms(2000);
        habit.was_held_up(now);
        assert_eq!(habit.paused - now, ms(20));
    }

    fn on_a_thread(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_thread_that_nobody_waits_for_sleeps_at_once() {
        on_a_thread(|| {
            for _ in 0..3 {
                assert_eq!(wait(Ok).unwrap(), Wait::Sleep);
            }
        });
    }

    #[test]
    fn who_may_look_does_after_a_short_wait_and_passes_errors_on() {
        if *SEATS == 0 {
            return;
        }
        on_a_thread(|| {
            allow();
            assert_eq!(wait(Ok).unwrap(), Wait::Sleep, "nothing is known of waits");
            // A sleep that is short here may take long where much is going on, and others may have all seats.
            assert!((0..10_000).any(|_| wait(Ok).unwrap() == Wait::Look));
            HABIT.set(Some(Habit { budget: MOST, ..Habit::new(Instant::now()) }));
            let broken = |how| match how {
                Wait::Look => Err(io::Error::from(io::ErrorKind::ConnectionReset)),
                Wait::Sleep => Ok(()),
            };
            assert!((0..10_000).any(|_| wait(broken).is_err()));
        });
    }

    #[test]
    fn who_has_looked_in_vain_sleeps() {
        on_a_thread(|| {
            HABIT.set(Some(Habit { budget: MOST, ..Habit::new(Instant::now()) }));
            let nothing_yet = |how| match how {
                Wait::Look => Err(io::Error::from(io::ErrorKind::WouldBlock)),
                Wait::Sleep => Ok(1),
            };
            assert_eq!(wait(nothing_yet).unwrap(), 1);
        });
    }
}
