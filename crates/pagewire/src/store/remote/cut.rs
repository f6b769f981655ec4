//! Reads that are not aligned: the protocol moves whole pages, so more is asked for, and what nobody
//! wanted is cut off.

use std::sync::Arc;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use crate::error::Result;
use crate::store::{Part, Sink};

/// A sink that passes on what was wanted of what comes.
pub(super) struct Cut {
    wanted: Vec<ByteRange>,
    length: u64,
    sink: Arc<dyn Sink>,
}

impl Cut {
    pub(super) fn new(wanted: &[ByteRange], length: u64, sink: Arc<dyn Sink>) -> Self {
        Self { wanted: wanted.to_vec(), length, sink }
    }

    /// The ranges to ask for: whole pages, each once.
    pub(super) fn widened(&self) -> Vec<ByteRange> {
        let wide = self.wanted.iter().map(|range| range.align_out(PAGE_SIZE).clamp_to(self.length));
        ByteRange::union(wide.collect())
    }
}

impl Sink for Cut {
    fn part(&self, part: Part<'_>) {
        for wanted in &self.wanted {
            let range = wanted.intersect(part.range());
            if !range.is_empty() {
                self.sink.part(part.cut(range));
            }
        }
    }

    fn done(&self, result: Result<()>) {
        self.sink.done(result);
    }
}
