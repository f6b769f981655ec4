//! The application: a process of its own on the client's side, which reaches a region by one method and works on it.
//!
//! What it says to whom has started it, a line each: that it is prepared (the work was done once on plain memory, for
//! comparison); after `go`, what the work has shown; after `leave`, that the region is given up. It ends with its
//! standard input.

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use pagewire::{Algorithm, Node, Scheme};
use serde::{Deserialize, Serialize};

use super::measure::spread::Spread;
use super::measure::staleness::now;
use super::method::{Access, Attached, LocalMemory};
use super::record::{Figure, Figures};
use super::trouble::{Result, Trouble};
use super::workload::{Operation, PAGE, PROBE, Work, content, work};
use crate::child;
use crate::usage::{self, Memory};

/// The hidden argument.
pub(super) const ROLE: &str = "--pagewire-study-application";

/// The words between the two.
pub(super) const PREPARED: &str = "prepared";
pub(super) const GO: &str = "go";
pub(super) const LEAVE: &str = "leave";

/// How often a change is timed.
const PROBE_INTERVAL: Duration = Duration::from_millis(200);

/// Pauses shorter than this are not slept for: a sleep is that much too long.
const SHORT: Duration = Duration::from_micros(100);

/// What an application is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Assignment {
    /// How it reaches the region.
    pub(super) access: Access,
    /// How long all may take, in seconds.
    pub(super) cap_s: f64,
    /// How long a steady rate lasts, and how long goes on what can stop at any time.
    pub(super) steady_s: f64,
    /// What its random choices follow from.
    pub(super) seed: u64,
}

/// What the work has shown.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Worked {
    /// What was measured in this process.
    pub(super) figures: Figures,
    /// Samples of first touches, in seconds.
    pub(super) touches: Vec<f64>,
    /// Whether the time was over before the work was.
    pub(super) capped: bool,
    /// What pages hold now that were written.
    pub(super) versions: Vec<(u64, u32)>,
    /// The last time that was written into the probe's page.
    pub(super) stamp: Option<u64>,
}

/// What is said after `go` and after `leave`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// The work was done.
    Worked(Box<Worked>),
    /// The region is given up.
    Left,
    /// It went wrong.
    Trouble(Trouble),
}

/// Becomes an application if this process was started as one; else returns.
pub(super) fn run_if_asked() {
    let Some(arguments) = child::arguments_of(ROLE) else { return };
    child::run(|| {
        let [assignment] = arguments.as_slice() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let assignment: Assignment = serde_json::from_str(&assignment.to_string_lossy())?;
        let words = words();
        let say = |answer: &Answer| -> io::Result<()> {
            println!("{}", serde_json::to_string(answer)?);
            Ok(())
        };
        if let Err(trouble) = apply(&assignment, &words, &say) {
            say(&Answer::Trouble(trouble))?;
            // Until nobody listens any more.
            let _ = words.recv();
        }
        Ok(())
    });
}

/// What is said to this process. With the last of it the process ends, whatever it waits for.
fn words() -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(io::Result::ok) {
            // Nobody listens where the work has failed.
            let _ = sender.send(line);
        }
        std::process::exit(0);
    });
    receiver
}

fn apply(
    assignment: &Assignment,
    words: &Receiver<String>,
    say: &dyn Fn(&Answer) -> io::Result<()>,
) -> Result<()> {
    let access = &assignment.access;
    let (pattern, share) = (access.point.pattern, access.point.dirty_percent);
    let work = work(pattern, access.bytes / PAGE, share, assignment.steady_s, assignment.seed);
    let (cap, steady) =
        (Duration::from_secs_f64(assignment.cap_s), Duration::from_secs_f64(assignment.steady_s));
    let alone = {
        let memory = LocalMemory::blank(access.bytes, access.writes());
        let free = Work { per_second: None, ..work.clone() };
        perform(&memory, &free, Times { until: Instant::now() + cap, stop: steady })?
    };
    println!("{PREPARED}");
    expect(words, GO)?;

    let (cpu, memory) = (usage::own_cpu()?, Memory::of(std::process::id())?);
    let begun = Instant::now();
    let mut attached = access.attach()?;
    let ready = begun.elapsed();
    let times = Times { until: begun + cap, stop: steady };
    let (performed, stamp) = if pattern.is_timed() && !access.method.is_local() {
        perform_with_probe(&*attached, &work, times)?
    } else {
        (perform(&*attached, &work, times)?, None)
    };
    if access.writes() {
        attached.flush()?;
    }
    let total = begun.elapsed();
    let cpu = usage::own_cpu()? - cpu;
    let after = Memory::of(std::process::id())?;
    let (sidecars_cpu, sidecars_memory) = attached.sidecars()?;
    let resident = |memory: &Memory| memory.anonymous + memory.shared;

    let mut figures = performed.figures(&alone, begun, ready, total);
    let grown = resident(&after).saturating_sub(resident(&memory)) + sidecars_memory;
    figures.insert(Figure::MemoryBytes, grown as f64);
    figures.insert(Figure::ClientCpuS, (cpu + sidecars_cpu).as_secs_f64());
    performed.compare()?;
    let worked = Worked {
        figures,
        touches: performed.spread().samples(),
        capped: performed.capped,
        versions: performed.versions.into_iter().collect(),
        stamp,
    };
    say(&Answer::Worked(Box::new(worked)))?;
    expect(words, LEAVE)?;
    attached.detach()?;
    say(&Answer::Left)?;
    // Its words are heard before it goes.
    let _ = words.recv();
    Ok(())
}

fn expect(words: &Receiver<String>, word: &str) -> Result<()> {
    match words.recv() {
        Ok(said) if said == word => Ok(()),
        said => Err(Trouble::failed(format!("said {said:?}, not {word}"))),
    }
}

/// When work ends.
#[derive(Clone, Copy)]
struct Times {
    /// All work.
    until: Instant,
    /// Work that can stop at any time: after so long.
    stop: Duration,
}

/// What was done.
struct Performed {
    /// The first touch of each page, in seconds.
    touches: Vec<f64>,
    /// How long it worked, pauses not counted.
    busy: Duration,
    /// How many operations it has done.
    done: usize,
    /// When the first of them was, if it has read something.
    first: Option<Instant>,
    capped: bool,
    /// What pages hold that were written.
    versions: HashMap<u64, u32>,
    /// What was read: the page, its version, and the hash of the bytes.
    read: Vec<(u64, u32, Node)>,
}

/// How pages are compared.
const SCHEME: Scheme = Scheme { algorithm: Algorithm::Xxh3, key: *b"pagewire's study" };

/// Works on a region.
fn perform(region: &dyn Attached, work: &Work, times: Times) -> Result<Performed> {
    let begun = Instant::now();
    let until = if work.whole { times.until } else { times.until.min(begun + times.stop) };
    let mut done = Performed {
        touches: Vec::with_capacity(work.operations.len()),
        busy: Duration::ZERO,
        done: 0,
        first: None,
        capped: false,
        versions: HashMap::new(),
        read: Vec::with_capacity(work.operations.len()),
    };
    let pages = work.operations.iter().map(|operation| operation.page() + 1).max().unwrap_or_default();
    let mut touched = vec![false; pages as usize];
    let mut bytes = vec![0; PAGE as usize];
    for (index, operation) in work.operations.iter().enumerate() {
        if let Some(per_second) = work.per_second {
            pause_until(begun + Duration::from_secs_f64(index as f64 / per_second));
        }
        if let Operation::Write(page, version) = *operation {
            // What a program writes it has made before.
            content(page, version, &mut bytes);
        }
        let started = Instant::now();
        if started >= until {
            // Work that can stop at any time has stopped; but where the region took all the time that there was, none was done.
            done.capped = work.whole || started >= times.until;
            break;
        }
        match *operation {
            Operation::Read(page) => {
                region.read(page, &mut bytes)?;
                let version = done.versions.get(&page).copied().unwrap_or_default();
                done.read.push((page, version, SCHEME.leaf(&bytes)));
            }
            Operation::Write(page, version) => {
                region.write(page, &bytes)?;
                done.versions.insert(page, version);
            }
        }
        let ended = Instant::now();
        done.busy += ended - started;
        done.done += 1;
        if index == 0 && matches!(operation, Operation::Read(_)) {
            done.first = Some(ended);
        }
        if !std::mem::replace(&mut touched[operation.page() as usize], true) {
            done.touches.push((ended - started).as_secs_f64());
        }
    }
    Ok(done)
}

fn pause_until(when: Instant) {
    let left = when.saturating_duration_since(Instant::now());
    if left > SHORT {
        std::thread::sleep(left);
    }
}

/// The same while another thread changes a page now and then, and has it flushed. Answers the last change, too.
fn perform_with_probe(region: &dyn Attached, work: &Work, times: Times) -> Result<(Performed, Option<u64>)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let probe = scope.spawn(|| -> Result<u64> {
            let mut bytes = vec![0; PAGE as usize];
            content(PROBE, 0, &mut bytes);
            loop {
                let stamp = now();
                bytes[..8].copy_from_slice(&stamp.to_le_bytes());
                region.write(PROBE, &bytes)?;
                region.flush()?;
                let next = Instant::now() + PROBE_INTERVAL;
                while Instant::now() < next {
                    if over.load(Ordering::Acquire) {
                        return Ok(stamp);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        let performed = perform(region, work, times);
        over.store(true, Ordering::Release);
        let stamp = probe.join().unwrap_or_else(|_| Err(Trouble::failed("the probe panics")));
        Ok((performed?, Some(stamp?)))
    })
}

impl Performed {
    fn spread(&self) -> Spread {
        Spread::of(self.touches.clone())
    }

    /// How long an operation took, in seconds.
    fn each(&self) -> f64 {
        self.busy.as_secs_f64() / self.done.max(1) as f64
    }

    fn figures(&self, alone: &Self, begun: Instant, ready: Duration, total: Duration) -> Figures {
        let (spread, moved) = (self.spread(), self.done as f64 * PAGE as f64);
        let mut figures = Figures::from([
            (Figure::ReadyS, ready.as_secs_f64()),
            (Figure::TotalS, total.as_secs_f64()),
            (Figure::MovedBytes, moved),
            (Figure::ChangedBytes, self.versions.len() as f64 * PAGE as f64),
        ]);
        if self.done > 0 {
            figures.extend([
                (Figure::WorkS, self.busy.as_secs_f64()),
                // Of as much work as was done here.
                (Figure::LocalWorkS, alone.each() * self.done as f64),
                (Figure::SlowdownRatio, self.each() / alone.each().max(1e-12)),
                (Figure::ThroughputBytesPerS, moved / (total - ready).as_secs_f64().max(1e-9)),
            ]);
        }
        if let Some(first) = self.first {
            figures.insert(Figure::FirstByteS, (first - begun).as_secs_f64());
        }
        let quantiles = [
            (Figure::TouchP50S, 0.5),
            (Figure::TouchP90S, 0.9),
            (Figure::TouchP99S, 0.99),
            (Figure::TouchMaxS, 1.0),
        ];
        figures
            .extend(quantiles.iter().filter_map(|(figure, share)| Some((*figure, spread.quantile(*share)?))));
        figures
    }

    /// Compares what was read with what was to be read.
    fn compare(&self) -> Result<()> {
        let (mut bytes, mut known) = (vec![0; PAGE as usize], HashMap::new());
        for (page, version, hash) in &self.read {
            let expected = *known.entry((*page, *version)).or_insert_with(|| {
                content(*page, *version, &mut bytes);
                SCHEME.leaf(&bytes)
            });
            if expected != *hash {
                return Err(Trouble::failed(format!("wrong bytes were read from page {page}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::record::Pattern;

    fn times(seconds: f64) -> Times {
        Times { until: Instant::now() + Duration::from_secs_f64(seconds), stop: Duration::from_secs(60) }
    }

    /// A region that has its right content but for one page.
    fn region(pages: u64, wrong: Option<u64>) -> LocalMemory {
        let memory = LocalMemory::blank(pages * PAGE, true);
        let mut bytes = vec![0; PAGE as usize];
        for page in 0..pages {
            content(page, u32::from(wrong == Some(page)), &mut bytes);
            memory.write(page, &bytes).expect("memory is written");
        }
        memory
    }

    #[test]
    fn what_is_read_is_compared() {
        let in_order = work(Pattern::InOrder, 64, None, 1.0, 1);
        let performed = perform(&region(64, None), &in_order, times(60.0)).expect("memory is read");
        assert_eq!((performed.done, performed.capped, performed.touches.len()), (64, false, 64));
        performed.compare().expect("all is right");
        let performed = perform(&region(64, Some(63)), &in_order, times(60.0)).expect("memory is read");
        let trouble = performed.compare().expect_err("one page is wrong");
        assert_eq!(trouble.reason, "wrong bytes were read from page 63");
    }

    #[test]
    fn what_was_written_is_what_is_read_then() {
        let mixed = work(Pattern::Mixed, 64, None, 1.0, 1);
        let performed = perform(&region(64, None), &mixed, times(60.0)).expect("memory is used");
        performed.compare().expect("versions are known");
        assert!(performed.versions.len() > 32 && performed.touches.len() <= 63);
    }

    #[test]
    fn work_that_has_to_be_whole_is_capped_and_other_work_just_stops() {
        let over = Times { until: Instant::now(), stop: Duration::from_secs(60) };
        let in_order = perform(&region(8, None), &work(Pattern::InOrder, 8, None, 1.0, 1), over);
        assert!(in_order.is_ok_and(|performed| performed.capped && performed.done == 0));
        for pattern in [Pattern::Random, Pattern::HotSet, Pattern::Mixed] {
            let work = work(pattern, 8, None, 1.0, 1);
            let late = perform(&region(8, None), &work, over);
            assert!(late.is_ok_and(|performed| performed.capped && performed.done == 0), "{pattern:?}");
            let stopped = perform(&region(8, None), &work, Times { stop: Duration::ZERO, ..times(60.0) });
            assert!(stopped.is_ok_and(|performed| !performed.capped), "{pattern:?}");
        }
    }
}
