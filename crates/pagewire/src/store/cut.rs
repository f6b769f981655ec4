//! Reads that are not aligned: a protocol moves whole pages or blocks, so more is asked for, and what
//! nobody wanted is cut off.

use std::sync::Arc;

use pagewire_core::chunk::ByteRange;

use super::{Part, Sink};
use crate::error::Result;

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

    /// The ranges to ask for: whole blocks of `align` bytes, each once.
    pub(super) fn widened(&self, align: u64) -> Vec<ByteRange> {
        let wide = self.wanted.iter().map(|range| range.align_out(align).clamp_to(self.length));
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
