//! Which cells a study has, and in which order they are run.
//!
//! One circumstance is varied at a time, around a base point: first along the link's round-trip time and its rate, then
//! the chunk, the connections, and what the application does. Round-trip times and chunks are varied for more than
//! one pattern, since reading all, reading here and there, writing now and then, and writing all are different questions. It is a sum of lines
//! through base points, never their product; a test holds that.
//!
//! Order: round by round, so that whatever changes on the machine in the course of a study meets all cells alike. Within a
//! round the links come in random order, and so do the cells of each link: a link is made once a round, and is
//! measured each time.

use serde::{Deserialize, Serialize};

use super::record::{Dimension, Method, Mode, Pattern, Point, Profile};
use crate::scatter::split_mix;

/// The share of the region that is written in a second at the base point of writing, in per cent.
const WRITE_SHARE: f64 = 1.0;

/// The point that the lines go through: two hosts of one data centre, and what Pagewire does unless told otherwise.
pub const BASE: Point = Point {
    rtt_ms: 1,
    rate_bits: None,
    chunk_bytes: 64 << 10,
    connections: 4,
    pattern: Pattern::InOrder,
    dirty_percent: None,
};

/// A cell that is to be measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// Names the cell: no two of a plan have the same.
    pub id: String,
    /// How the region is reached.
    pub method: Method,
    /// With a local copy that fills itself or without.
    pub mode: Option<Mode>,
    /// Under which circumstances.
    pub point: Point,
    /// What is varied.
    pub dimension: Dimension,
}

/// A link that cells are run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinkSetting {
    /// The round-trip time, in milliseconds.
    pub rtt_ms: u32,
    /// Bits per second; none is no limit.
    pub rate_bits: Option<u64>,
}

/// Cells that are run on one link, one after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// The link.
    pub link: LinkSetting,
    /// Which round, from 1.
    pub round: u32,
    /// The cells, in order.
    pub cells: Vec<Planned>,
}

/// Points of each dimension.
struct Lines {
    rtts: &'static [u32],
    rates: &'static [u64],
    chunks: &'static [u64],
    connections: &'static [u32],
}

fn lines(profile: Profile) -> Lines {
    match profile {
        Profile::Full => Lines {
            rtts: &[0, 1, 2, 5, 10, 25, 50],
            rates: &[1_000_000_000],
            chunks: &[4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20],
            connections: &[1, 2, 4, 8],
        },
        Profile::Quick => Lines {
            rtts: &[0, 1, 10],
            rates: &[1_000_000_000],
            chunks: &[4 << 10, 64 << 10, 1 << 20],
            connections: &[1, 4],
        },
    }
}

/// All methods with their modes, in the order of a report.
pub const WAYS: [(Method, Option<Mode>); 11] = [
    (Method::Uffd, Some(Mode::Direct)),
    (Method::Uffd, Some(Mode::Managed)),
    (Method::Fuse, Some(Mode::Direct)),
    (Method::Fuse, Some(Mode::Managed)),
    (Method::Nbd, Some(Mode::Direct)),
    (Method::Nbd, Some(Mode::Managed)),
    (Method::NbdUser, Some(Mode::Direct)),
    (Method::NbdUser, Some(Mode::Managed)),
    (Method::Mirror, None),
    (Method::LocalMemory, None),
    (Method::LocalFile, None),
];

impl Method {
    /// Every method, in the order of a report.
    pub const ALL: [Self; 7] =
        [Self::Uffd, Self::Fuse, Self::Nbd, Self::NbdUser, Self::Mirror, Self::LocalMemory, Self::LocalFile];

    /// Its name in the raw data and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uffd => "uffd",
            Self::Fuse => "fuse",
            Self::Nbd => "nbd",
            Self::NbdUser => "nbd-user",
            Self::Mirror => "mirror",
            Self::LocalMemory => "local-memory",
            Self::LocalFile => "local-file",
        }
    }

    /// Whether it uses nothing but this host.
    pub fn is_local(self) -> bool {
        matches!(self, Self::LocalMemory | Self::LocalFile)
    }
}

impl Mode {
    /// Its name in the raw data.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Managed => "managed",
        }
    }
}

impl Pattern {
    /// Its name in the raw data.
    pub fn name(self) -> &'static str {
        match self {
            Self::InOrder => "in-order",
            Self::Random => "random",
            Self::HotSet => "hot-set",
            Self::Write => "write",
            Self::Fill => "fill",
            Self::Mixed => "mixed",
        }
    }

    /// Whether it is timed how long changes take to the server, by one that is flushed now and then. Where all that can be
    /// written is, such flushes would be what is measured.
    pub fn is_timed(self) -> bool {
        self.writes() && self != Self::Fill
    }

    /// Whether the application writes.
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Fill | Self::Mixed)
    }
}

/// The cells of a study of these methods.
pub fn plan(profile: Profile, methods: &[Method]) -> Vec<Planned> {
    let mut cells: Vec<Planned> = Vec::new();
    for (method, mode) in WAYS.into_iter().filter(|(method, _)| methods.contains(method)) {
        for (dimension, point) in points(profile, method, mode) {
            let cell = Planned { id: id(method, mode, &point), method, mode, point, dimension };
            // A line has points of the base and of other lines; the first one to name a point has it.
            if !cells.iter().any(|known| known.id == cell.id) {
                cells.push(cell);
            }
        }
    }
    cells
}

fn points(profile: Profile, method: Method, mode: Option<Mode>) -> Vec<(Dimension, Point)> {
    let lines = lines(profile);
    let random = Point { pattern: Pattern::Random, ..BASE };
    let write = writing(WRITE_SHARE);
    let mut points = vec![(Dimension::Base, BASE), (Dimension::Pattern, random)];
    let hot = Point { pattern: Pattern::HotSet, ..BASE };
    let mixed = Point { pattern: Pattern::Mixed, ..BASE };
    let fill = Point { pattern: Pattern::Fill, ..BASE };
    for point in [hot, writing(0.1), write, writing(10.0), fill, mixed] {
        points.push((Dimension::Pattern, point));
    }
    if method.is_local() {
        return points;
    }
    for around in [BASE, random, write, fill] {
        points.extend(lines.rtts.iter().map(|rtt_ms| (Dimension::Rtt, Point { rtt_ms: *rtt_ms, ..around })));
    }
    for around in [BASE, random] {
        let of = |rate: &u64| (Dimension::Rate, Point { rate_bits: Some(*rate), ..around });
        points.extend(lines.rates.iter().map(of));
    }
    if has_chunks(method, mode) {
        for around in [BASE, random] {
            let of = |chunk: &u64| (Dimension::Chunk, Point { chunk_bytes: *chunk, ..around });
            points.extend(lines.chunks.iter().map(of));
        }
    }
    if has_connections(mode) {
        let of = |connections: &u32| (Dimension::Connections, Point { connections: *connections, ..BASE });
        points.extend(lines.connections.iter().map(of));
    }
    points
}

fn writing(share: f64) -> Point {
    Point { pattern: Pattern::Write, dirty_percent: Some(share), ..BASE }
}

/// Whether chunks make a difference: the kernel decides for the page cache.
fn has_chunks(method: Method, mode: Option<Mode>) -> bool {
    method == Method::Uffd || (method == Method::NbdUser && mode == Some(Mode::Managed))
}

/// Whether there are several connections: what an application waits for goes by one.
fn has_connections(mode: Option<Mode>) -> bool {
    mode != Some(Mode::Direct)
}

fn id(method: Method, mode: Option<Mode>, point: &Point) -> String {
    let mode = mode.map(|mode| format!("-{}", mode.name())).unwrap_or_default();
    let share = point.dirty_percent.map(|share| share.to_string()).unwrap_or_default();
    let rate = point.rate_bits.map_or_else(|| "free".into(), |rate| format!("{}M", rate / 1_000_000));
    format!(
        "{}{mode}.{}{share}.rtt{}.rate-{rate}.chunk{}K.connections{}",
        method.name(),
        point.pattern.name(),
        point.rtt_ms,
        point.chunk_bytes >> 10,
        point.connections
    )
}

/// The order of a study: every cell in every round. Equal seeds give equal orders.
pub fn order(cells: &[Planned], rounds: u32, seed: u64) -> Vec<Block> {
    let mut state = seed;
    let mut blocks = Vec::new();
    for round in 1..=rounds {
        let mut links: Vec<LinkSetting> = cells.iter().map(Planned::link).collect();
        links.sort_unstable();
        links.dedup();
        shuffle(&mut links, &mut state);
        for link in links {
            let mut cells: Vec<Planned> = cells.iter().filter(|cell| cell.link() == link).cloned().collect();
            shuffle(&mut cells, &mut state);
            blocks.push(Block { link, round, cells });
        }
    }
    blocks
}

impl Planned {
    /// The link that it is run on; one that is local has the base point's, and does not use it.
    pub fn link(&self) -> LinkSetting {
        LinkSetting { rtt_ms: self.point.rtt_ms, rate_bits: self.point.rate_bits }
    }
}

/// Puts a list into a random order (R. Durstenfeld, "Algorithm 235: Random permutation", 1964).
pub(super) fn shuffle<T>(list: &mut [T], state: &mut u64) {
    for end in (1..list.len()).rev() {
        list.swap(end, (split_mix(state) % (end as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// In how many coordinates a point differs from the nearest base point.
    fn distance(point: &Point) -> usize {
        let base = BASE;
        [
            point.rtt_ms != base.rtt_ms,
            point.rate_bits != base.rate_bits,
            point.chunk_bytes != base.chunk_bytes,
            point.connections != base.connections,
        ]
        .into_iter()
        .filter(|differs| *differs)
        .count()
    }

    #[test]
    fn every_point_of_every_dimension_is_there_and_no_product_is_made() {
        let cells = plan(Profile::Full, &Method::ALL);
        let ids: HashSet<&str> = cells.iter().map(|cell| &*cell.id).collect();
        assert_eq!(ids.len(), cells.len());
        for (method, mode) in WAYS {
            let of: Vec<&Planned> =
                cells.iter().filter(|cell| (cell.method, cell.mode) == (method, mode)).collect();
            assert_eq!(of.iter().filter(|cell| cell.dimension == Dimension::Base).count(), 1, "{method:?}");
            let has = |point: Point| {
                assert!(of.iter().any(|cell| cell.point == point), "{method:?} {mode:?} lacks {point:?}");
            };
            for pattern in [Pattern::InOrder, Pattern::Random, Pattern::HotSet, Pattern::Fill, Pattern::Mixed]
            {
                has(Point { pattern, ..BASE });
            }
            for share in [0.1, 1.0, 10.0] {
                has(writing(share));
            }
            if method.is_local() {
                assert_eq!(of.len(), 8, "what is local has no link");
                continue;
            }
            for rtt_ms in [0, 1, 2, 5, 10, 25, 50] {
                has(Point { rtt_ms, ..BASE });
                has(Point { rtt_ms, pattern: Pattern::Random, ..BASE });
                has(Point { rtt_ms, ..writing(1.0) });
                has(Point { rtt_ms, pattern: Pattern::Fill, ..BASE });
            }
            has(Point { rate_bits: Some(1_000_000_000), ..BASE });
            if method == Method::Uffd {
                for chunk_bytes in [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
                    has(Point { chunk_bytes, ..BASE });
                }
            }
            if mode != Some(Mode::Direct) {
                for connections in [1, 2, 4, 8] {
                    has(Point { connections, ..BASE });
                }
            }
        }
        for cell in &cells {
            assert!(distance(&cell.point) <= 1, "{cell:?}");
            let is_on_a_line = match cell.point.pattern {
                Pattern::InOrder | Pattern::Random | Pattern::Fill => true,
                Pattern::Write => cell.point.dirty_percent == Some(1.0) || distance(&cell.point) == 0,
                Pattern::HotSet | Pattern::Mixed => distance(&cell.point) == 0,
            };
            assert!(is_on_a_line, "{cell:?}");
        }
    }

    #[test]
    fn the_quick_plan_has_all_dimensions_too_and_is_a_part_of_the_full_one() {
        let full = plan(Profile::Full, &Method::ALL);
        let quick = plan(Profile::Quick, &Method::ALL);
        assert!(quick.len() * 4 < full.len() * 3, "{} of {}", quick.len(), full.len());
        for cell in &quick {
            assert!(full.contains(cell), "{cell:?}");
        }
        let dimensions: HashSet<Dimension> = quick.iter().map(|cell| cell.dimension).collect();
        assert_eq!(dimensions.len(), 6);
    }

    #[test]
    fn an_order_has_each_cell_once_a_round_and_follows_from_the_seed() {
        let cells = plan(Profile::Quick, &[Method::Uffd, Method::Mirror]);
        let blocks = order(&cells, 3, 7);
        assert_eq!(blocks, order(&cells, 3, 7));
        assert_ne!(blocks, order(&cells, 3, 8));
        for round in 1..=3 {
            let of: Vec<&Block> = blocks.iter().filter(|block| block.round == round).collect();
            let mut ids: Vec<&str> = of.iter().flat_map(|block| &block.cells).map(|cell| &*cell.id).collect();
            ids.sort_unstable();
            let mut all: Vec<&str> = cells.iter().map(|cell| &*cell.id).collect();
            all.sort_unstable();
            assert_eq!(ids, all);
            assert!(of.iter().all(|block| block.cells.iter().all(|cell| cell.link() == block.link)));
        }
        assert!(blocks.windows(2).all(|pair| pair[0].round <= pair[1].round));
    }
}
