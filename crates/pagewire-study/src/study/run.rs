//! A study, from outside: what is still to be done, the process that does it, and the file of raw data.
//!
//! Only this process writes the file, a line at a time, each whole before the next begins: whenever it is interrupted,
//! what is there is the truth, and [`Options::resume`] goes on with the rest.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use pagewire_sys::isolation::{Isolation, isolate};

use super::machine;
use super::plan::{Block, order, plan};
use super::record::{FILE_NAME, Machine, Method, Profile, Record, Run, User, VERSION, read};
use super::worker::{Event, Job, ROLE};

/// What is asked for. What is none is that of the profile, or that of the study which goes on.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of the study.
    pub folder: PathBuf,
    /// How much is run.
    pub profile: Profile,
    /// Which methods.
    pub methods: Vec<Method>,
    /// Of these methods' cells those whose name has one of these texts in it; all, where there is none.
    pub only: Vec<String>,
    /// Whether to go on with a study that is in the folder.
    pub resume: bool,
    /// How often each cell is run.
    pub rounds: Option<u32>,
    /// How long a cell may take, in seconds.
    pub cap_s: Option<f64>,
    /// Bytes of the region.
    pub region_bytes: Option<u64>,
    /// What the order and everything random follows from.
    pub seed: Option<u64>,
    /// The share of segments that every link loses on purpose, in thousandths that are whole.
    pub loss: Option<f64>,
    /// How far a link may be from what was asked for, as a share.
    pub tolerance: f64,
}

/// How much of the cap a steady rate lasts, and how long at most, in seconds: enough for some changes to be timed.
const STEADY: f64 = 0.4;
const MOST_STEADY_S: f64 = 2.0;

/// What is kept of what processes say on standard error, in bytes.
const MOST_SAID: usize = 64 << 10;

impl Profile {
    fn rounds(self) -> u32 {
        match self {
            Self::Quick => 1,
            Self::Full => 3,
        }
    }

    fn cap_s(self) -> f64 {
        match self {
            Self::Quick => 2.0,
            Self::Full => 4.0,
        }
    }

    /// Some times what a link of 50 ms carries in a round trip, so that it is not all about how a transfer begins.
    fn region_bytes(self) -> u64 {
        match self {
            Self::Quick => 32 << 20,
            Self::Full => 128 << 20,
        }
    }
}

/// Becomes one of the processes of a study if this process was started as one; else returns. A program that runs studies
/// begins its `main` with this.
pub fn run_if_asked() {
    crate::server::serve_if_asked();
    crate::nbd::run_if_asked();
    super::sidecar::run_if_asked();
    super::application::run_if_asked();
    super::worker::run_if_asked();
}

/// A study that is to be carried out.
#[derive(Debug)]
pub struct Study {
    options: Options,
    run: Run,
    blocks: Vec<Block>,
    done: u64,
    /// How much of the file is whole lines, in bytes, and how much there is.
    length: (u64, u64),
}

impl Study {
    /// Finds out what is to be done: all, or what is missing in the folder.
    ///
    /// # Errors
    ///
    /// Already exists where the folder has a study that is not to go on; invalid input where it cannot go on so: it is of another
    /// machine, version or user, or was begun with something else; what the file system says.
    pub fn prepare(options: &Options) -> io::Result<Self> {
        let path = options.folder.join(FILE_NAME);
        let (known, length) = match std::fs::read(&path) {
            Ok(bytes) if options.resume => {
                let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                let length = (whole as u64, bytes.len() as u64);
                (read(&bytes[..whole]).map_err(|error| of(&path, &error))?, length)
            }
            Ok(_) => {
                let text = format!(
                    "{} is there already: --resume goes on with that study; or choose another folder with --out",
                    path.display()
                );
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), (0, 0)),
            Err(error) => return Err(of(&path, &error)),
        };
        let earlier = known.iter().find_map(|record| match record {
            Record::Run(run) => Some(run),
            _ => None,
        });
        let mut run = begin(options, earlier)?;
        let done: HashSet<(&str, u32)> = known.iter().filter_map(cell_of).collect();
        let mut cells = plan(run.profile, &options.methods);
        cells
            .retain(|cell| options.only.is_empty() || options.only.iter().any(|text| cell.id.contains(text)));
        let mut blocks = order(&cells, run.rounds, run.seed);
        run.cells = blocks.iter().map(|block| block.cells.len() as u64).sum();
        for block in &mut blocks {
            block.cells.retain(|cell| !done.contains(&(&*cell.id, block.round)));
        }
        blocks.retain(|block| !block.cells.is_empty());
        let left: u64 = blocks.iter().map(|block| block.cells.len() as u64).sum();
        Ok(Self { options: options.clone(), done: run.cells - left, run, blocks, length })
    }

    /// What is done where.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// How many rounds of cells are to be measured still.
    pub fn left(&self) -> u64 {
        self.run.cells - self.done
    }

    /// The file of raw data.
    pub fn path(&self) -> PathBuf {
        self.options.folder.join(FILE_NAME)
    }

    /// Begins.
    ///
    /// # Errors
    ///
    /// Busy while another study writes to the file; where that cannot be written, or the process cannot be started.
    pub fn start(self) -> io::Result<Running> {
        std::fs::create_dir_all(&self.options.folder).map_err(|error| of(&self.options.folder, &error))?;
        let path = self.path();
        let file =
            File::options().create(true).append(true).open(&path).map_err(|error| of(&path, &error))?;
        // It is given up with the file.
        let is_ours = pagewire_sys::file::lock_exclusive(file.as_fd());
        let is_known = file.metadata()?.len() == self.length.1;
        match is_ours {
            Ok(()) if is_known => {}
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(of(&path, &error)),
            _ => {
                let text = format!("another study writes to {} now", path.display());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
        }
        // What was cut off in the middle of a line is measured again.
        file.set_len(self.length.0).map_err(|error| of(&path, &error))?;
        let (mut raw, run) = (Raw { file, path }, self.run);
        raw.append(&Record::Run(run.clone()))?;

        let scratch = tempfile::Builder::new().prefix("pagewire-study-").tempdir()?;
        let (mut process, mounts) = start_worker()?;
        let (mut input, output) = (process.stdin.take(), process.stdout.take());
        let job = Job {
            blocks: self.blocks,
            folder: scratch.path().into(),
            mounts,
            bytes: run.region_bytes,
            cap_s: run.cap_s,
            steady_s: (run.cap_s * STEADY).min(MOST_STEADY_S),
            seed: run.seed,
            loss_per_mille: (run.loss * 1000.0).round() as u32,
            tolerance: self.options.tolerance,
        };
        if let Some(input) = &mut input {
            writeln!(input, "{}", serde_json::to_string(&job)?)?;
        }
        let errors = process.stderr.take().expect("it was asked for");
        let said = std::thread::Builder::new().name("said".into()).spawn(move || all_said(errors))?;
        Ok(Running {
            input: Arc::new(Mutex::new(input)),
            output: BufReader::new(output.expect("it was asked for")),
            said: Some(said),
            process,
            raw,
            _scratch: scratch,
        })
    }
}

/// What a study runs as, given what is in the folder.
fn begin(options: &Options, earlier: Option<&Run>) -> io::Result<Run> {
    let profile = options.profile;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let random = || now.as_nanos() as u64 >> 10 & 0xFFFF_FFFF;
    let run = Run {
        version: VERSION,
        started_unix_s: now.as_secs(),
        pagewire: env!("CARGO_PKG_VERSION").into(),
        machine: machine::here()?,
        user: machine::user()?,
        profile,
        seed: options.seed.or(earlier.map(|run| run.seed)).unwrap_or_else(random),
        rounds: options.rounds.or(earlier.map(|run| run.rounds)).unwrap_or(profile.rounds()),
        cap_s: options.cap_s.or(earlier.map(|run| run.cap_s)).unwrap_or(profile.cap_s()),
        region_bytes: options
            .region_bytes
            .or(earlier.map(|run| run.region_bytes))
            .unwrap_or(profile.region_bytes()),
        cells: 0,
        loss: options.loss.or(earlier.map(|run| run.loss)).unwrap_or(0.0),
    };
    if let Some(earlier) = earlier {
        same(&options.folder, earlier, &run)?;
    }
    Ok(run)
}

/// Whether one study may have both parts.
fn same(folder: &Path, earlier: &Run, now: &Run) -> io::Result<()> {
    let Machine { kernel, cpu, cores, memory_bytes } = &earlier.machine;
    let User { uid } = earlier.user;
    let differing = [
        (*kernel != now.machine.kernel, "another kernel", kernel.clone()),
        (*cpu != now.machine.cpu, "another processor", cpu.clone()),
        (*cores != now.machine.cores, "another number of processors", cores.to_string()),
        (*memory_bytes != now.machine.memory_bytes, "another size of memory", memory_bytes.to_string()),
        (earlier.pagewire != now.pagewire, "another version of Pagewire", earlier.pagewire.clone()),
        (uid != now.user.uid, "another user", uid.to_string()),
        (earlier.profile != now.profile, "another profile", format!("{:?}", earlier.profile).to_lowercase()),
        (earlier.seed != now.seed, "another --seed", earlier.seed.to_string()),
        (earlier.rounds != now.rounds, "another --rounds", earlier.rounds.to_string()),
        (earlier.cap_s != now.cap_s, "another --cap", format!("{}s", earlier.cap_s)),
        (earlier.region_bytes != now.region_bytes, "another --size", earlier.region_bytes.to_string()),
        (earlier.loss != now.loss, "another --loss", (earlier.loss * 100.0).to_string()),
    ];
    match differing.into_iter().find(|(differs, _, _)| *differs) {
        None => Ok(()),
        Some((_, what, which)) => {
            let text = format!(
                "the study in {} cannot go on here: it was begun with {what} ({which}); begin a new one with --out",
                folder.display()
            );
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        }
    }
}

fn cell_of(record: &Record) -> Option<(&str, u32)> {
    match record {
        Record::Cell(cell) => Some((&cell.id, cell.round)),
        _ => None,
    }
}

fn of(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Starts the process that does the work: in namespaces of its own, where it may have them. Answers whether it has.
fn start_worker() -> io::Result<(Child, bool)> {
    let mut last = None;
    for isolation in [Some(Isolation::Mounts), Some(Isolation::UserAndMounts), None] {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ROLE).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(isolation) = isolation {
            isolate(&mut command, isolation);
        }
        match command.spawn() {
            Ok(process) => return Ok((process, isolation.is_some())),
            Err(error) => last = Some(error),
        }
    }
    Err(last.expect("something was tried"))
}

/// What all processes of the study say on standard error, until the last of them has gone.
fn all_said(mut from: impl Read) -> String {
    let (mut said, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = from.read(&mut piece) {
        said.extend_from_slice(&piece[..count.min(MOST_SAID - said.len())]);
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// The file of raw data.
struct Raw {
    file: File,
    path: PathBuf,
}

impl Raw {
    fn append(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_string(record)?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|error| of(&self.path, &error))
    }
}

/// A study that is carried out. Dropping it ends it, and waits until all of its processes have gone.
pub struct Running {
    input: Arc<Mutex<Option<ChildStdin>>>,
    output: BufReader<ChildStdout>,
    said: Option<JoinHandle<String>>,
    process: Child,
    raw: Raw,
    // Dropped last: what may be left of the worker's folder.
    _scratch: tempfile::TempDir,
}

/// Ends a study from another thread.
#[derive(Clone)]
pub struct Stop(Arc<Mutex<Option<ChildStdin>>>);

impl Stop {
    /// Has the study end now: it tells of nothing more then.
    pub fn stop(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Running {
    /// Ends the study from another thread.
    pub fn stopper(&self) -> Stop {
        Stop(self.input.clone())
    }

    /// What happens next; none when nothing more does. What belongs into the raw data is there before this returns.
    ///
    /// # Errors
    ///
    /// Where the file cannot be written; where the study cannot go on.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        let mut line = String::new();
        // The process may be ended in the middle of a line.
        if self.output.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Ok(None);
        }
        let event: Event = serde_json::from_str(&line)?;
        match &event {
            Event::Record(record) => self.raw.append(record)?,
            Event::Fails(reason) => return Err(io::Error::other(reason.clone())),
            Event::Begins(_) => {}
        }
        Ok(Some(event))
    }

    /// Waits until all processes have gone, and answers what they have said on standard error.
    ///
    /// # Errors
    ///
    /// Where the process that does the work did not end by itself.
    pub fn finish(mut self) -> io::Result<String> {
        let (status, said) = self.end()?;
        if status.success() {
            Ok(said)
        } else {
            Err(io::Error::other(format!("the process of the study ended with {status}: {}", said.trim())))
        }
    }

    fn end(&mut self) -> io::Result<(std::process::ExitStatus, String)> {
        self.stopper().stop();
        let status = self.process.wait()?;
        // Its last writer is the last process.
        let said = self.said.take().and_then(|thread| thread.join().ok());
        Ok((status, said.unwrap_or_default()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.said.is_some() {
            // There is nobody to be told.
            let _ = self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(folder: &Path) -> Options {
        Options {
            folder: folder.into(),
            profile: Profile::Quick,
            methods: vec![Method::Mirror],
            only: Vec::new(),
            resume: true,
            rounds: None,
            cap_s: None,
            region_bytes: None,
            seed: Some(3),
            loss: None,
            tolerance: 0.25,
        }
    }

    fn write(folder: &Path, change: impl FnOnce(&mut Run), rest: &str) {
        let mut run = Study::prepare(&Options { resume: false, ..options(folder) }).expect("it is empty").run;
        change(&mut run);
        let line = serde_json::to_string(&Record::Run(run)).expect("it is data");
        std::fs::write(folder.join(FILE_NAME), format!("{line}\n{rest}")).expect("it is written");
    }

    #[test]
    fn a_study_goes_on_where_it_is_of_this_machine_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), |run| run.rounds = 2, "{\"record\":\"cell\",\"id");
        let study =
            Study::prepare(&Options { seed: None, ..options(folder.path()) }).expect("it is the same");
        assert_eq!((study.run.seed, study.run.rounds), (3, 2), "what was not said is as it was");
        assert_eq!(study.left(), study.run.cells);
        let other = Options { seed: Some(4), ..options(folder.path()) };
        let error = Study::prepare(&other).unwrap_err().to_string();
        assert!(error.contains("another --seed (3)"), "{error}");
        let again = Options { resume: false, ..options(folder.path()) };
        assert!(Study::prepare(&again).unwrap_err().to_string().contains("--resume"));
        let elsewhere = tempfile::tempdir().expect("a folder");
        write(elsewhere.path(), |run| run.machine.cores += 1, "");
        let error = Study::prepare(&options(elsewhere.path())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("another number of processors"), "{error}");
    }

    #[test]
    fn what_is_no_raw_data_is_named_with_its_line() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), |_| (), "nonsense\n");
        let error = Study::prepare(&options(folder.path())).unwrap_err().to_string();
        assert!(error.contains("raw.jsonl: line 2"), "{error}");
    }
}
