//! One round of one cell: a server and an application are started, the application works, and what was used meanwhile is
//! counted from outside.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::application::{self, Answer, Assignment, Worked};
use super::links::Between;
use super::measure::kernel;
use super::measure::spread::Spread;
use super::measure::staleness::Observer;
use super::method::Access;
use super::plan::Planned;
use super::record::{Cell, Figure, Figures, Method, Outcome, Pattern, Samples};
use super::side::{CellRegion, Offering};
use super::trouble::{Result, Trouble};
use crate::child::Child;

/// How long an application may take to prepare itself, and to give a region up.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much longer than its cap a cell may take: an operation that has begun ends.
const GRACE: Duration = Duration::from_secs(10);

/// How long to wait for the last change to come to the server.
const ARRIVAL: Duration = Duration::from_secs(5);

/// What all cells have in common.
pub(super) struct Surroundings {
    /// A folder for everything that is made.
    pub(super) folder: PathBuf,
    /// Bytes of the region.
    pub(super) bytes: u64,
    /// How long a cell may take, in seconds.
    pub(super) cap_s: f64,
    /// How long a steady rate lasts, in seconds.
    pub(super) steady_s: f64,
    /// What everything random follows from.
    pub(super) seed: u64,
}

impl Surroundings {
    /// Where the region is that cells read.
    pub(super) fn pristine(&self) -> PathBuf {
        self.folder.join("region")
    }

    /// A round of a cell over what lies between client and server, or what is to be said of it instead.
    pub(super) fn run(
        &self,
        planned: &Planned,
        round: u32,
        between: std::result::Result<&Between, &Trouble>,
    ) -> Cell {
        let mut cell = Cell {
            id: planned.id.clone(),
            method: planned.method,
            mode: planned.mode,
            point: planned.point,
            dimension: planned.dimension,
            round,
            outcome: Outcome::Measured,
            reason: None,
            figures: Figures::new(),
            samples: Samples::default(),
        };
        let measured = match between {
            Ok(between) => self.measure(planned, round, between),
            // What is local needs no link.
            Err(_) if planned.method.is_local() => self.measure(planned, round, &Between::Loopback),
            Err(trouble) => Err(trouble.clone()),
        };
        match measured {
            Ok((worked, staleness)) => {
                if worked.capped {
                    cell.outcome = Outcome::Capped;
                    cell.reason = Some(format!("the work was not done within {} s", self.cap_s));
                }
                cell.figures = worked.figures;
                cell.samples = Samples { touch_s: worked.touches, staleness_s: staleness };
            }
            Err(trouble) => (cell.outcome, cell.reason) = (trouble.outcome, Some(trouble.reason)),
        }
        cell.figures.retain(|_, value| value.is_finite());
        cell
    }

    fn measure(&self, planned: &Planned, round: u32, between: &Between) -> Result<(Worked, Vec<f64>)> {
        let (method, writes) = (planned.method, planned.point.pattern.writes());
        let region = CellRegion::new(&self.pristine(), writes)?;
        let mut server = Offering::start(method, region.path(), writes, between.host(), between.server())
            .map_err(|trouble| trouble.of("the server"))?;
        // Of its own: one that was ended in the middle may be mounted for a moment still.
        let file = self.folder.join(format!("{}.round{round}", planned.id));
        let access = Access {
            method,
            mode: planned.mode,
            point: planned.point,
            region: match &server {
                Some(server) => server.region()?,
                None => region.path().display().to_string(),
            },
            bytes: self.bytes,
            file: file.clone(),
        };
        let assignment = Assignment {
            access,
            cap_s: self.cap_s,
            steady_s: self.steady_s,
            // Rounds touch other pages; methods the same ones.
            seed: self.seed.wrapping_add(round.into()),
        };
        let observer = match &server {
            Some(_) if planned.point.pattern.is_timed() => Some(Observer::start(region.path())?),
            _ => None,
        };
        let result = self.work(&assignment, between, server.as_mut(), observer);
        let removed = remove(&file);
        let (worked, staleness) = result?;
        removed?;
        let is_journaled = server.as_ref().is_some_and(Offering::is_journaled);
        drop(server);
        if writes && !method.is_local() {
            region.compare(is_journaled, &worked.versions, worked.stamp)?;
        }
        Ok((worked, staleness))
    }

    fn work(
        &self,
        assignment: &Assignment,
        between: &Between,
        mut server: Option<&mut Offering>,
        observer: Option<Observer>,
    ) -> Result<(Worked, Vec<f64>)> {
        let mut application = Application::start(assignment, between)?;
        let before = Counters::now(server.as_deref_mut(), between)?;
        let mut worked = application.work(Duration::from_secs_f64(self.cap_s) + GRACE, self.cap_s)?;
        let after = Counters::now(server.as_deref_mut(), between)?;
        if server.is_some() {
            after.since(&before, &mut worked.figures);
        }
        let Access { method, point, .. } = assignment.access;
        if method == Method::Mirror && point.pattern.writes() && point.pattern != Pattern::Write {
            // Nobody waits for a mirror: most of what was written so fast is still to be sent.
            worked.figures.remove(&Figure::WireToServerBytes);
        }
        if let Some(server) = server {
            worked.figures.insert(Figure::ServerMemoryBytes, server.memory()?.anonymous as f64);
        }
        let mut staleness = Vec::new();
        if let (Some(observer), Some(stamp)) = (observer, worked.stamp) {
            let spread = Spread::of(observer.wait_for(stamp, ARRIVAL));
            let quantiles = [(Figure::StalenessS, 0.5), (Figure::StalenessMaxS, 1.0)];
            let found =
                quantiles.iter().filter_map(|(figure, share)| Some((*figure, spread.quantile(*share)?)));
            worked.figures.extend(found);
            staleness = spread.samples();
        }
        application.leave()?;
        Ok((worked, staleness))
    }
}

/// Removes a file that a method may have made.
fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What is counted outside of the application.
struct Counters {
    server_cpu: Option<Duration>,
    kernel_cpu: Option<Duration>,
    /// To the client, and to the server.
    wire: Option<(u64, u64)>,
}

impl Counters {
    fn now(server: Option<&mut Offering>, between: &Between) -> Result<Self> {
        let server_cpu = server.map(Offering::cpu).transpose()?;
        Ok(Self { server_cpu, kernel_cpu: kernel::thread_time(), wire: between.traffic() })
    }

    fn since(&self, before: &Self, figures: &mut Figures) {
        let mut time = |figure, after: Option<Duration>, before: Option<Duration>| {
            if let (Some(after), Some(before)) = (after, before) {
                figures.insert(figure, after.saturating_sub(before).as_secs_f64());
            }
        };
        time(Figure::ServerCpuS, self.server_cpu, before.server_cpu);
        time(Figure::KernelCpuS, self.kernel_cpu, before.kernel_cpu);
        if let (Some(after), Some(before)) = (self.wire, before.wire) {
            figures.insert(Figure::WireToClientBytes, (after.0 - before.0) as f64);
            figures.insert(Figure::WireToServerBytes, (after.1 - before.1) as f64);
        }
    }
}

/// An application's process, which is ended when this is dropped.
struct Application {
    child: Child,
}

impl Application {
    /// Starts it on the client's side, and waits until it is prepared.
    fn start(assignment: &Assignment, between: &Between) -> Result<Self> {
        let argument = serde_json::to_string(assignment).map_err(io::Error::from)?;
        let child = Child::spawn(application::ROLE, &[argument.as_ref()], between.client())?;
        let mut application = Self { child };
        match application.hear(PATIENCE)? {
            Some(line) if line == application::PREPARED => Ok(application),
            Some(line) => Err(trouble_in(&line)),
            None => Err(Trouble::failed("the application does not begin")),
        }
    }

    fn work(&mut self, within: Duration, cap_s: f64) -> Result<Worked> {
        self.child.say(application::GO)?;
        let Some(line) = self.hear(within)? else {
            let reason =
                format!("nothing was done within {cap_s} s: the application still waits for the region");
            return Err(Trouble { outcome: Outcome::Capped, reason });
        };
        match serde_json::from_str(&line) {
            Ok(Answer::Worked(worked)) => Ok(*worked),
            _ => Err(trouble_in(&line)),
        }
    }

    /// Has it give the region up, and waits for that.
    fn leave(mut self) -> Result<()> {
        self.child.say(application::LEAVE)?;
        match self.hear(PATIENCE)?.as_deref().map(serde_json::from_str) {
            Some(Ok(Answer::Left)) => Ok(self.child.end()?),
            Some(Ok(Answer::Trouble(trouble))) => Err(trouble.of("giving the region up")),
            _ => Err(Trouble::failed("the application does not give the region up")),
        }
    }

    /// The next line; none where it does not come in time.
    fn hear(&mut self, within: Duration) -> Result<Option<String>> {
        match self.child.hear(within) {
            Ok(line) => Ok(Some(line)),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let status = self.child.status()?;
                Err(Trouble::failed(format!("the application's process ended with {status}")))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The trouble that an application tells of.
fn trouble_in(line: &str) -> Trouble {
    match serde_json::from_str(line) {
        Ok(Answer::Trouble(trouble)) => trouble,
        _ => Trouble::failed(format!("the application says {line:?}")),
    }
}
