//! `pagewire study`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use pagewire::advice::time;
use pagewire_study::report::{self, Written};
use pagewire_study::study::Event;
use pagewire_study::study::record::{self, Method, Outcome, Profile, Record};
use pagewire_study::study::run::{Options, Stop, Study};
use serde::Serialize;

use crate::{args, output};

/// What ends the study that is running.
static STOP: Mutex<Option<Stop>> = Mutex::new(None);

/// Whether somebody has ended it.
static IS_STOPPED: AtomicBool = AtomicBool::new(false);

/// How long processes may take to end; they are waited for by whoever reads what they say.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is printed as JSON.
#[derive(Serialize)]
struct Summary {
    folder: PathBuf,
    raw: PathBuf,
    seed: u64,
    /// The cells of the whole study, every round of each counted.
    cells: u64,
    /// How many of them were run now.
    run: u64,
    /// How these have ended.
    outcomes: BTreeMap<Outcome, u64>,
    seconds: f64,
    #[serde(flatten)]
    report: Option<Written>,
}

pub(super) fn run(args: &args::Study, quiet: bool) -> Result<()> {
    if args.report_only {
        return report_only(args);
    }
    if let Some(other) = &args.compare {
        return compare(args, other);
    }
    super::on_interrupt(stop)?;
    let study = Study::prepare(&options(args))?;
    if study.run().cells == 0 {
        let text = "no cell of these methods has such a name: see --only and --methods";
        return Err(pagewire::Error::new(pagewire::ErrorKind::Usage, text).into());
    }
    let mut summary = Summary {
        folder: args.out.clone(),
        raw: study.path(),
        seed: study.run().seed,
        cells: study.run().cells,
        run: 0,
        outcomes: BTreeMap::new(),
        seconds: 0.0,
        report: None,
    };
    let is_told = !quiet && !args.json;
    if is_told {
        let left = study.left();
        eprintln!("{left} of {} cells to measure, seed {}", summary.cells, summary.seed);
    }
    if study.left() > 0 {
        measure(study, &mut summary, is_told)?;
    }
    let written = report::write(&args.out).context("cannot make the report")?;
    if args.json {
        summary.report = Some(written);
        return output::json(&summary);
    }
    output::line(format!("raw data: {}", summary.raw.display()))?;
    print(&written)
}

/// Makes the report of what was measured some time.
fn report_only(args: &args::Study) -> Result<()> {
    let written = report::write(&args.out).context("cannot make the report")?;
    if args.json { output::json(&written) } else { print(&written) }
}

/// Says whether two studies agree; fails where they recommend something else.
fn compare(args: &args::Study, other: &Path) -> Result<()> {
    let agreement = report::compare(&args.out, other).context("cannot compare the studies")?;
    match args.json {
        true => output::json(&agreement)?,
        false => agreement.lines().into_iter().try_for_each(output::line)?,
    }
    let (differing, all) = (agreement.differing(), agreement.recommendations.len());
    anyhow::ensure!(
        differing == 0,
        "{differing} of {all} recommendations of the studies in {} and {} differ: more rounds, or a machine that does \
         nothing else, make figures steadier",
        args.out.display(),
        other.display()
    );
    Ok(())
}

fn print(written: &Written) -> Result<()> {
    output::line(format!("report:   {}", written.html.display()))?;
    output::line(format!("          {}", written.markdown.display()))?;
    Ok(())
}

fn options(args: &args::Study) -> Options {
    Options {
        folder: args.out.clone(),
        profile: if args.quick { Profile::Quick } else { Profile::Full },
        methods: if args.methods.is_empty() { Method::ALL.into() } else { args.methods.clone() },
        only: args.only.clone(),
        resume: args.resume,
        rounds: args.rounds,
        cap_s: args.cap.map(|cap| cap.as_secs_f64()),
        region_bytes: args.size,
        seed: args.seed,
        loss: args.loss.map(|percent| percent / 100.0),
        tolerance: f64::from(args.tolerance) / 100.0,
    }
}

/// Ends the study, and leaves it to the main thread to say so.
fn stop() {
    let running = STOP.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(running) = running {
        IS_STOPPED.store(true, Ordering::Release);
        running.stop();
        std::thread::sleep(PATIENCE);
    }
}

fn measure(study: Study, summary: &mut Summary, is_told: bool) -> Result<()> {
    let (begun, left) = (Instant::now(), study.left());
    let mut running = study.start().context("cannot begin the study")?;
    *STOP.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(running.stopper());
    let telling = Telling::new(left, is_told);
    while let Some(event) = running.next_event()? {
        telling.tell(&event, summary.run);
        if let Event::Record(Record::Cell(cell)) = &event {
            summary.run += 1;
            *summary.outcomes.entry(cell.outcome).or_default() += 1;
        }
    }
    drop(telling);
    let said = running.finish()?;
    tracing::debug!(said = said.trim(), "the processes of the study");
    summary.seconds = begun.elapsed().as_secs_f64();
    if IS_STOPPED.load(Ordering::Acquire) {
        let at = summary.raw.display();
        eprintln!("pagewire: ended after {} of {left} cells; --resume goes on with {at}", summary.run);
        std::process::exit(130);
    }
    anyhow::ensure!(summary.run == left, "the process of the study ended before it: {}", said.trim());
    Ok(())
}

/// Who waits is told what is done: by a bar on a terminal, elsewhere by a line every now and then, and by one for whatever
/// was not measured.
struct Telling {
    bar: Option<ProgressBar>,
    is_told: bool,
    left: u64,
    begun: Instant,
    /// When the last line about what is done was said.
    said: Cell<Instant>,
}

/// How often a line says what is done.
const INTERVAL: Duration = Duration::from_secs(60);

impl Telling {
    fn new(left: u64, is_told: bool) -> Self {
        let bar = (is_told && std::io::stderr().is_terminal()).then(|| ProgressBar::new(left));
        if let Some(bar) = &bar {
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos} of {len} {eta:>6} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        let begun = Instant::now();
        Self { bar, is_told, left, begun, said: Cell::new(begun) }
    }

    fn tell(&self, event: &Event, before: u64) {
        match event {
            Event::Begins(what) => {
                if let Some(bar) = &self.bar {
                    bar.set_message(what.clone());
                }
            }
            Event::Record(Record::Cell(cell)) => {
                if let Some(bar) = &self.bar {
                    bar.set_position(before + 1);
                }
                self.say(troubled(cell));
                self.say_progress(before + 1);
            }
            Event::Record(Record::Link(link)) => self.say(link.reason.clone()),
            Event::Record(Record::Run(_)) | Event::Fails(_) => {}
        }
    }

    fn say_progress(&self, done: u64) {
        if self.bar.is_none() && self.said.get().elapsed() >= INTERVAL {
            self.said.set(Instant::now());
            self.say(Some(progress(done, self.left, self.begun.elapsed())));
        }
    }

    fn say(&self, text: Option<String>) {
        match (&self.bar, text) {
            (Some(bar), Some(text)) => bar.println(text),
            (None, Some(text)) if self.is_told => eprintln!("{text}"),
            _ => {}
        }
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What is done, and how long the rest takes if it takes as long: the order is random, so it does.
fn progress(done: u64, all: u64, elapsed: Duration) -> String {
    let rest = elapsed.mul_f64(all.saturating_sub(done) as f64 / done.max(1) as f64);
    format!("{done} of {all} cells measured, about {} left", time(rest))
}

/// What is to be said of a cell that has failed; what may or can not be done is in the report.
fn troubled(cell: &record::Cell) -> Option<String> {
    let reason = cell.reason.as_ref().filter(|_| cell.outcome == Outcome::Failed)?;
    Some(format!("{}: {}", cell.id, reason.replace(char::is_control, " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_long_as_what_is_done() {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        assert_eq!(progress(250, 1000, minutes(10)), "250 of 1000 cells measured, about 30 min left");
        assert_eq!(progress(1000, 1000, minutes(40)), "1000 of 1000 cells measured, about no time left");
        assert_eq!(progress(0, 10, minutes(1)), "0 of 10 cells measured, about 10 min left");
    }
}
