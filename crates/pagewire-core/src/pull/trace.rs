//! The order in which a program needed the chunks of a region, as text.
//!
//! ```text
//! pagewire trace 1
//! chunk 65536
//! 0
//! 17
//! 18
//! ```

use std::fmt;
use std::str::FromStr;

use crate::chunk::{ChunkIndex, ChunkSize};

const FIRST: &str = "pagewire trace 1";

/// An order in which chunks were needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// How large they are.
    pub chunk: ChunkSize,
    /// Which, in order.
    pub chunks: Vec<ChunkIndex>,
}

/// Why a text is no trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// It does not begin as one.
    #[error("its first lines are not '{FIRST}' and 'chunk' with a size")]
    Header,
    /// A line is no number of a chunk.
    #[error("line {0} is no number of a chunk")]
    Line(usize),
}

impl Trace {
    /// The same order in chunks of another size.
    ///
    /// ```
    /// use pagewire_core::chunk::{ChunkIndex, ChunkSize};
    /// use pagewire_core::pull::Trace;
    ///
    /// let trace: Trace = "pagewire trace 1\nchunk 8192\n3\n1\n".parse().unwrap();
    /// let halves = trace.in_chunks_of(ChunkSize::PAGE);
    /// assert_eq!(halves, [ChunkIndex(6), ChunkIndex(7), ChunkIndex(2), ChunkIndex(3)]);
    /// ```
    pub fn in_chunks_of(&self, chunk: ChunkSize) -> Vec<ChunkIndex> {
        let (from, to) = (self.chunk.bytes(), chunk.bytes());
        let mut chunks: Vec<ChunkIndex> = Vec::new();
        for ChunkIndex(index) in &self.chunks {
            let start = index.saturating_mul(from);
            let end = start.saturating_add(from);
            for index in start / to..end.div_ceil(to) {
                if chunks.last() != Some(&ChunkIndex(index)) {
                    chunks.push(ChunkIndex(index));
                }
            }
        }
        chunks
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FIRST}\nchunk {}", self.chunk.bytes())?;
        self.chunks.iter().try_for_each(|chunk| writeln!(f, "{}", chunk.0))
    }
}

impl FromStr for Trace {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        let mut lines = text.lines();
        let is_trace = lines.next() == Some(FIRST);
        let chunk = lines.next().and_then(|line| line.strip_prefix("chunk ")?.parse().ok());
        let chunk = chunk.filter(|_| is_trace).and_then(|bytes| ChunkSize::new(bytes).ok());
        let chunk = chunk.ok_or(TraceError::Header)?;
        let chunks = lines.enumerate().map(|(number, line)| {
            // One that is too large for any region is passed over when the order is used.
            line.parse().map(ChunkIndex).map_err(|_| TraceError::Line(number + 3))
        });
        Ok(Self { chunk, chunks: chunks.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn traces_read_as_they_were_written(chunks in prop::collection::vec(any::<u64>(), 0..50), exponent in 12u32..24) {
            let chunk = ChunkSize::new(1 << exponent).unwrap();
            let trace = Trace { chunk, chunks: chunks.into_iter().map(ChunkIndex).collect() };
            prop_assert_eq!(trace.to_string().parse::<Trace>(), Ok(trace));
        }
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        for text in
            ["", "pagewire trace 2\nchunk 4096\n", "pagewire trace 1\n", "pagewire trace 1\nchunk 5\n"]
        {
            assert_eq!(text.parse::<Trace>(), Err(TraceError::Header), "{text:?}");
        }
        assert_eq!("pagewire trace 1\nchunk 4096\n1\n-2\n".parse::<Trace>(), Err(TraceError::Line(4)));
    }

    #[test]
    fn smaller_chunks_fall_together() {
        let trace = Trace { chunk: ChunkSize::PAGE, chunks: [4, 5, 6, 0].map(ChunkIndex).into() };
        assert_eq!(trace.in_chunks_of(ChunkSize::new(16384).unwrap()), [ChunkIndex(1), ChunkIndex(0)]);
    }
}
