//! Raw data of a study that nobody has run: plausible, the same for the same seed, and with every way in which a cell can
//! end.

use crate::study::record::{
    Cell, Dimension, Figure, Figures, LinkKind, LinkRecord, Machine, Method, Mode, Outcome, Pattern, Point,
    Profile, Record, Run, Samples, User, VERSION,
};

/// A step of splitmix64: numbers that look random and are the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Around 1, up to so much off.
    fn near(&mut self, off: f64) -> f64 {
        1.0 + off * (2.0 * (self.next() as f64 / u64::MAX as f64) - 1.0)
    }
}

const REGION: f64 = (64 << 20) as f64;
const BASE: Point = Point {
    rtt_ms: 5,
    rate_bits: None,
    chunk_bytes: 64 << 10,
    connections: 4,
    pattern: Pattern::InOrder,
    dirty_percent: None,
};

/// The records of a study.
pub(super) fn records(seed: u64) -> Vec<Record> {
    let mut numbers = Numbers(seed);
    let mut cells = Vec::new();
    for (method, mode) in series() {
        for (point, dimension) in points() {
            for round in 1..=3 {
                cells.push(cell(&mut numbers, method, mode, point, dimension, round));
            }
        }
    }
    let run = Run {
        version: VERSION,
        started_unix_s: 1_764_000_000,
        pagewire: "0.1.0".into(),
        machine: Machine {
            kernel: "6.18.0 #1 SMP <made up> & more".into(),
            cpu: "A processor".into(),
            cores: 2,
            memory_bytes: 8 << 30,
        },
        user: User { uid: 0 },
        profile: Profile::Full,
        seed,
        rounds: 3,
        cap_s: 30.0,
        region_bytes: REGION as u64,
        cells: cells.len() as u64 + 2,
        loss: 0.0,
    };
    let links = [0, 1, 5, 25, 100].map(|rtt_ms| Record::Link(link(rtt_ms)));
    [Record::Run(run)]
        .into_iter()
        .chain(links)
        .chain(cells.into_iter().map(|cell| Record::Cell(Box::new(cell))))
        .collect()
}

/// The records as they are in a file.
pub(super) fn raw(seed: u64) -> String {
    let line = |record| serde_json::to_string(&record).unwrap() + "\n";
    records(seed).into_iter().map(line).collect()
}

fn link(rtt_ms: u32) -> LinkRecord {
    LinkRecord {
        kind: LinkKind::Namespaces,
        rtt_ms,
        rate_bits: None,
        loss: 0.0,
        measured_rtt_s: Some(f64::from(rtt_ms) * 1e-3 + 5e-5),
        measured_rate_bits: Some(9_400_000_000),
        measured_loss: Some(0.0),
        accepted: rtt_ms != 100,
        reason: (rtt_ms == 100).then(|| "131 ms were measured".into()),
    }
}

fn series() -> Vec<(Method, Option<Mode>)> {
    let both = [Some(Mode::Direct), Some(Mode::Managed)];
    let mut series: Vec<(Method, Option<Mode>)> = [Method::Uffd, Method::Fuse, Method::Nbd, Method::NbdUser]
        .into_iter()
        .flat_map(|method| both.map(|mode| (method, mode)))
        .collect();
    series.extend([Method::Mirror, Method::LocalMemory, Method::LocalFile].map(|method| (method, None)));
    series
}

fn points() -> Vec<(Point, Dimension)> {
    let mut points = vec![(BASE, Dimension::Base)];
    points.extend([0, 1, 25, 100].map(|rtt_ms| (Point { rtt_ms, ..BASE }, Dimension::Rtt)));
    let random = Point { pattern: Pattern::Random, ..BASE };
    let mixed = Point { pattern: Pattern::Mixed, ..BASE };
    points.extend([0, 1, 25].map(|rtt_ms| (Point { rtt_ms, ..random }, Dimension::Rtt)));
    points.extend([0, 1, 25].map(|rtt_ms| (Point { rtt_ms, ..mixed }, Dimension::Rtt)));
    let fill = Point { pattern: Pattern::Fill, ..BASE };
    points.extend([0, 1, 25].map(|rtt_ms| (Point { rtt_ms, ..fill }, Dimension::Rtt)));
    let rates = [100_000_000, 1_000_000_000];
    points.extend(rates.map(|rate| (Point { rate_bits: Some(rate), ..BASE }, Dimension::Rate)));
    points
        .extend([16u64 << 10, 1 << 20].map(|chunk_bytes| (Point { chunk_bytes, ..BASE }, Dimension::Chunk)));
    points.extend([1, 8].map(|connections| (Point { connections, ..BASE }, Dimension::Connections)));
    points.extend(
        [random, mixed, fill, Point { pattern: Pattern::HotSet, ..BASE }]
            .map(|point| (point, Dimension::Pattern)),
    );
    let dirty = [0.1, 1.0, 10.0];
    points.extend(dirty.map(|percent| {
        (Point { pattern: Pattern::Write, dirty_percent: Some(percent), ..BASE }, Dimension::Pattern)
    }));
    points
}

fn id(method: Method, mode: Option<Mode>, point: Point) -> String {
    let name = |value: serde_json::Value| value.as_str().unwrap_or("only").to_owned();
    let [method, mode, pattern] =
        [serde_json::to_value(method), serde_json::to_value(mode), serde_json::to_value(point.pattern)]
            .map(|value| name(value.unwrap()));
    let mut id = format!("{method}-{mode}-{pattern}-{}ms", point.rtt_ms);
    if point.rate_bits != BASE.rate_bits {
        id += &format!("-{}bit", point.rate_bits.unwrap_or(0));
    }
    if point.chunk_bytes != BASE.chunk_bytes {
        id += &format!("-c{}", point.chunk_bytes);
    }
    if point.connections != BASE.connections {
        id += &format!("-n{}", point.connections);
    }
    id + &point.dirty_percent.map_or_else(String::new, |percent| format!("-d{percent}"))
}

/// How a round ends: all ways are there.
fn outcome(method: Method, mode: Option<Mode>, point: Point, round: u32) -> (Outcome, Option<String>) {
    let why = |outcome, reason: &str| (outcome, Some(reason.to_owned()));
    match (method, mode) {
        (Method::Nbd, Some(Mode::Managed)) => {
            why(Outcome::NotPermitted, "making a block device needs CAP_SYS_ADMIN")
        }
        (Method::Nbd, _) => why(Outcome::Unsupported, "this kernel has no NBD <client> | module"),
        _ if point.rtt_ms == 100 && method == Method::Mirror => {
            why(Outcome::Refused, "131 ms were measured, not 100")
        }
        (Method::Fuse, Some(Mode::Direct)) if point.rtt_ms == 25 => why(Outcome::Capped, "after 30 s"),
        (Method::Uffd, Some(Mode::Direct)) if point.connections == 8 && round == 2 => {
            why(Outcome::Failed, "the server has gone away")
        }
        _ => (Outcome::Measured, None),
    }
}

fn cell(
    numbers: &mut Numbers,
    method: Method,
    mode: Option<Mode>,
    point: Point,
    dimension: Dimension,
    round: u32,
) -> Cell {
    let (outcome, reason) = outcome(method, mode, point, round);
    let done = matches!(outcome, Outcome::Measured | Outcome::Capped);
    let (figures, samples) = match done {
        true => measured(numbers, method, mode, point),
        false => (Figures::new(), Samples::default()),
    };
    Cell {
        id: id(method, mode, point),
        method,
        mode,
        point,
        dimension,
        round,
        outcome,
        reason,
        figures,
        samples,
    }
}

fn measured(numbers: &mut Numbers, method: Method, mode: Option<Mode>, point: Point) -> (Figures, Samples) {
    let is_local = matches!(method, Method::LocalMemory | Method::LocalFile);
    let rtt = if is_local { 0.0 } else { f64::from(point.rtt_ms) * 1e-3 };
    let (touch, best_rate) = match method {
        Method::Uffd => (35e-6, 2.5e9),
        Method::Fuse => (90e-6, 1.6e9),
        Method::Nbd | Method::NbdUser => (70e-6, 1.2e9),
        Method::Mirror => (2e-6, 1.0e9),
        Method::LocalMemory => (0.3e-6, 8e9),
        Method::LocalFile => (0.8e-6, 6e9),
    };
    let link = point.rate_bits.map_or(1.2e9, |bits| bits as f64 / 8.0);
    let window = f64::from(point.connections) * 4e6 / (rtt + 1e-4);
    let direct = mode == Some(Mode::Direct);
    let rate = match (is_local, direct) {
        (true, _) => best_rate,
        (_, true) => (point.chunk_bytes as f64 / (rtt + touch)).min(link),
        _ => best_rate.min(link).min(window),
    } * numbers.near(0.08);
    let writes = point.pattern.writes();
    let moved = if writes { REGION / 4.0 } else { REGION };
    let work = moved / rate;
    let ready = 2.0 * rtt + 0.003 * numbers.near(0.3);
    let median = if direct { rtt + touch } else { (rtt + touch) * 0.4 } * numbers.near(0.05);
    let mut touches: Vec<f64> = (0..Samples::MOST)
        .map(|at| median * (0.7 + (at as f64 / 100.0).powi(6) * 4.0 + 0.006 * at as f64) * numbers.near(0.02))
        .collect();
    touches.sort_unstable_by(f64::total_cmp);
    let mut figures = Figures::from([
        (Figure::ReadyS, ready),
        (Figure::FirstByteS, ready + rtt + touch),
        (Figure::TotalS, ready + work),
        (Figure::WorkS, work),
        (Figure::LocalWorkS, work / (1.0 + 20.0 * rtt)),
        (Figure::SlowdownRatio, 1.0 + 20.0 * rtt * numbers.near(0.1) + if writes { 0.3 } else { 0.0 }),
        (Figure::TouchP50S, touches[50]),
        (Figure::TouchP99S, touches[99]),
        (Figure::ThroughputBytesPerS, rate),
        (Figure::ClientCpuS, moved * 0.6e-9 * numbers.near(0.1)),
        (Figure::MovedBytes, moved),
        (Figure::MemoryBytes, if direct { 3e6 } else { REGION }),
    ]);
    if !is_local {
        figures.insert(Figure::ServerCpuS, moved * 0.3e-9 * numbers.near(0.1));
        figures.insert(Figure::WireToClientBytes, moved * 1.03);
        figures.insert(Figure::ServerMemoryBytes, 5e6 * numbers.near(0.1));
    }
    let mut samples = Samples { touch_s: touches, staleness_s: Vec::new() };
    if writes {
        figures.insert(Figure::ChangedBytes, moved / 2.0);
        if !is_local {
            figures.insert(Figure::WireToServerBytes, moved / 2.0 * 1.05);
        }
        if !is_local && point.pattern.is_timed() {
            let stale = (0.1 + 2.0 * rtt) * numbers.near(0.2);
            figures.insert(Figure::StalenessS, stale);
            figures.insert(Figure::StalenessMaxS, stale * 3.0);
            samples.staleness_s = vec![stale, stale * 3.0];
        }
    }
    (figures, samples)
}
