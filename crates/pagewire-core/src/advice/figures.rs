//! What the methods cost: as the study has measured it, or as it was measured once, where no study is at hand.

use serde::Serialize;

use super::{Method, Mode, Way};

/// One figure, and whether it was measured where it is used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// The figure.
    pub value: f64,
    /// Whether it is of this study. Else it is built in: of the one in docs/study, or estimated where that has none, as
    /// docs/CHOOSING.md says.
    pub measured: bool,
}

impl Figure {
    /// One that was measured.
    pub const fn measured(value: f64) -> Self {
        Self { value, measured: true }
    }

    const fn built_in(value: f64) -> Self {
        Self { value, measured: false }
    }

    /// Whose figure it is, for a sentence.
    pub(super) fn origin(self) -> &'static str {
        if self.measured { "measured" } else { "a built-in figure" }
    }
}

/// What one way costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Costs {
    /// Seconds from the first touch of a page to its byte, beyond the link's round trip.
    pub first_byte: Figure,
    /// Bytes that arrive in a second where the link does not hold them up.
    pub read: Figure,
    /// Bytes that are durable at the region in a second, likewise.
    pub write: Figure,
    /// Seconds of processor time for a gigabyte (10^9) that is read, of both sides together.
    pub cpu_per_gb: Figure,
}

/// What is known of costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    ways: Vec<(Way, Costs)>,
    /// Seconds that the first write to a page takes longer where its changes are tracked.
    pub tracked_write: Figure,
    /// Bytes that one processor hashes in a second.
    pub hashing: Figure,
}

impl Figures {
    /// Those of the development machine.
    pub fn built_in() -> Figures {
        let costs = |way: &Way| {
            let [first_byte, read, write, cpu] = match (way.method, way.mode) {
                (Method::Userfaultfd, _) => [150e-6, 1.1e9, 390e6, 0.93],
                (Method::Fuse, Mode::Managed) => [85e-6, 960e6, 310e6, 0.99],
                (Method::Fuse, Mode::Direct) => [85e-6, 26e6, 84e6, 18.0],
                (Method::Nbd, Mode::Managed) => [88e-6, 640e6, 330e6, 1.4],
                (Method::Nbd, Mode::Direct) => [88e-6, 26e6, 29e6, 17.0],
                // A byte of a followed file is local; what costs is to bring it there.
                (Method::Mirror, _) => [1e-6, 1.2e9, 0.5e9, 1.2],
            };
            Costs {
                first_byte: Figure::built_in(first_byte),
                read: Figure::built_in(read),
                write: Figure::built_in(write),
                cpu_per_gb: Figure::built_in(cpu),
            }
        };
        Figures {
            ways: Way::ALL.iter().map(|way| (*way, costs(way))).collect(),
            tracked_write: Figure::built_in(10e-6),
            hashing: Figure::built_in(6.9e9),
        }
    }

    /// What this way costs.
    pub fn of(&self, way: Way) -> &Costs {
        let found = self.ways.iter().find(|(known, _)| *known == way);
        // A mapping and a mirror have one mode.
        let found = found.or_else(|| self.ways.iter().find(|(known, _)| known.method == way.method));
        &found.expect("there are figures for each method").1
    }

    /// To put a figure that was measured in the place of one that is built in.
    pub fn of_mut(&mut self, way: Way) -> Option<&mut Costs> {
        self.ways.iter_mut().find(|(known, _)| *known == way).map(|(_, costs)| costs)
    }
}

impl Default for Figures {
    fn default() -> Self {
        Self::built_in()
    }
}
