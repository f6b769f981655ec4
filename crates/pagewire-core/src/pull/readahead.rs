//! Readahead: from the faults of an application to the chunks that it is likely to want next.
//!
//! The detector sees faults only, not accesses: a chunk that was asked for ahead and arrived in time causes no
//! fault. So a sequential reader shows up as a fault at the end of what was asked last, or, when the link is
//! slower than the reader, as faults within it. Either means that the guess was right, and the next one is
//! twice as long. A program that reads several files, or one file from several threads, has several such
//! streams at once; each is followed on its own, and a fault that belongs to none begins one.

use std::ops::Range;

use crate::chunk::ChunkIndex;

/// Streams that are followed at once. A fault looks at all of them, so there are few: as many as a program
/// with a handful of reading threads has, and a random fault costs nothing worth measuring.
const STREAMS: usize = 8;

/// Detects sequential faulting and says how far to read ahead.
///
/// ```
/// use pagewire_core::chunk::ChunkIndex;
/// use pagewire_core::pull::Readahead;
///
/// let mut readahead = Readahead::new(32);
/// assert!(readahead.on_fault(ChunkIndex(7), 1000).is_empty()); // might be random
/// assert_eq!(readahead.on_fault(ChunkIndex(8), 1000), 9..10);
/// assert_eq!(readahead.on_fault(ChunkIndex(10), 1000), 11..13); // 9 was there in time
/// assert_eq!(readahead.on_fault(ChunkIndex(11), 1000), 13..16); // within: keep 4 chunks ahead
/// ```
#[derive(Clone, Debug)]
pub struct Readahead {
    max_chunks: u64,
    /// The most recently used last.
    streams: Vec<Stream>,
}

#[derive(Clone, Debug)]
struct Stream {
    /// The chunk of its latest fault.
    at: u64,
    /// The chunk after the last that the application or the readahead has asked for.
    end: u64,
    /// How many chunks to be ahead of the latest fault; 0 for a single fault.
    ahead: u64,
}

impl Readahead {
    /// A detector that is never more than `max_chunks` ahead of a fault; with 0 it never asks for anything.
    pub fn new(max_chunks: u64) -> Self {
        Self { max_chunks, streams: Vec::with_capacity(STREAMS) }
    }

    /// The application faulted on `chunk` of a region of `chunk_count` chunks: answers the further chunks to ask
    /// for after this one. Empty for a fault that looks random, for a repeated one (other threads that wait for
    /// the same chunk), at the end of the region, and when enough was asked for already.
    pub fn on_fault(&mut self, chunk: ChunkIndex, chunk_count: u64) -> Range<u64> {
        let at = chunk.0;
        // Of several streams that it could belong to, the one that has come closest.
        let continued = (0..self.streams.len())
            .filter(|&i| self.streams[i].at <= at && at <= self.streams[i].end)
            .max_by_key(|&i| self.streams[i].at);
        let mut stream = match continued {
            Some(i) => self.streams.remove(i),
            None => {
                if self.streams.len() == STREAMS {
                    self.streams.remove(0);
                }
                Stream { at, end: at.saturating_add(1), ahead: 0 }
            }
        };
        let mut ask = stream.end..stream.end;
        if at > stream.at {
            stream.at = at;
            stream.ahead = (stream.ahead * 2).clamp(1, self.max_chunks.max(1)).min(self.max_chunks);
            let start = stream.end.max(at + 1);
            let end = (at + 1).saturating_add(stream.ahead).min(chunk_count).max(start);
            stream.end = end;
            ask = start..end;
        }
        self.streams.push(stream);
        ask
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An application that reads `chunks` in order, where everything asked for arrives at once: its faults and the
    /// chunks that were asked for ahead.
    fn run(readahead: &mut Readahead, count: u64, chunks: impl IntoIterator<Item = u64>) -> (u64, Vec<u64>) {
        let mut held = vec![false; count as usize];
        let (mut faults, mut asked) = (0, Vec::new());
        for chunk in chunks {
            if !std::mem::replace(&mut held[chunk as usize], true) {
                faults += 1;
                for ahead in readahead.on_fault(ChunkIndex(chunk), count) {
                    held[ahead as usize] = true;
                    asked.push(ahead);
                }
            }
        }
        (faults, asked)
    }

    #[test]
    fn a_sequential_reader_faults_ever_more_seldom() {
        let (faults, asked) = run(&mut Readahead::new(32), 1000, 0..1000);
        // 1, 2, 4, 8, 16 ahead, then 32 at a time.
        assert!(faults < 40, "{faults} faults");
        assert!(asked.windows(2).all(|pair| pair[0] < pair[1]), "a chunk was asked for twice");
    }

    #[test]
    fn the_guess_doubles_up_to_the_limit() {
        let mut readahead = Readahead::new(8);
        let mut fault = 100;
        let mut lengths = Vec::new();
        for _ in 0..6 {
            let ask = readahead.on_fault(ChunkIndex(fault), 1000);
            lengths.push(ask.end - ask.start);
            fault = ask.end.max(fault + 1);
        }
        assert_eq!(lengths, [0, 1, 2, 4, 8, 8]);
    }

    #[test]
    fn random_faults_ask_for_nothing() {
        let mut readahead = Readahead::new(64);
        // A multiplicative step far from 1 visits the chunks without neighbours in sight.
        for step in 0..500u64 {
            let chunk = step * 382_541 % 1_000_000;
            assert!(readahead.on_fault(ChunkIndex(chunk), 1_000_000).is_empty(), "at {chunk}");
        }
    }

    #[test]
    fn eight_streams_are_followed_at_once_among_random_faults() {
        let mut readahead = Readahead::new(16);
        let interleaved = (0..1000).flat_map(|step| (0..7).map(move |stream| stream * 10_000 + step));
        let (faults, _) = run(&mut readahead, 100_000, interleaved);
        assert!(faults < 7 * 75, "{faults} faults");
        for stream in 0..7 {
            let _ = readahead.on_fault(ChunkIndex(90_000 + stream * 50), 100_000);
        }
        assert_eq!(readahead.streams.len(), STREAMS);
    }

    #[test]
    fn the_stream_that_was_used_least_recently_is_replaced() {
        let mut readahead = Readahead::new(16);
        for stream in 0..8 {
            let _ = readahead.on_fault(ChunkIndex(stream * 100), 10_000);
        }
        assert_eq!(readahead.on_fault(ChunkIndex(1), 10_000), 2..3); // stream 0 is fresh again
        let _ = readahead.on_fault(ChunkIndex(5000), 10_000); // replaces stream 1, at 100
        assert!(readahead.on_fault(ChunkIndex(101), 10_000).is_empty()); // replaces stream 2, at 200
        assert_eq!(readahead.on_fault(ChunkIndex(3), 10_000), 4..6);
        assert_eq!(readahead.on_fault(ChunkIndex(301), 10_000), 302..303);
    }

    #[test]
    fn strides_within_the_window_keep_it_moving() {
        let mut readahead = Readahead::new(16);
        let mut end = 0;
        for chunk in 0..4 {
            end = end.max(readahead.on_fault(ChunkIndex(chunk), 1000).end);
        }
        // From here on every third chunk only: the others arrived in time.
        for chunk in (4..200).step_by(3) {
            let ask = readahead.on_fault(ChunkIndex(chunk), 1000);
            assert!(ask.is_empty() || ask.start == end, "{ask:?} leaves a hole after {end}");
            end = end.max(ask.end);
            assert!(end > chunk + 3, "the stream was lost at {chunk}");
        }
        assert_eq!(end, 199 + 1 + 16);
    }

    #[test]
    fn a_repeated_fault_is_not_a_stream() {
        let mut readahead = Readahead::new(16);
        for _ in 0..5 {
            assert!(readahead.on_fault(ChunkIndex(3), 100).is_empty());
        }
        assert_eq!(readahead.on_fault(ChunkIndex(4), 100), 5..6);
        assert!(readahead.on_fault(ChunkIndex(4), 100).is_empty());
    }

    #[test]
    fn a_limit_of_zero_asks_for_nothing() {
        assert_eq!(run(&mut Readahead::new(0), 100, 0..100), (100, vec![]));
    }

    proptest! {
        #[test]
        fn what_is_asked_for_exists_and_is_near_the_fault(
            max in 0u64..70, count in 1u64..50, faults in prop::collection::vec(any::<u64>(), 0..60),
        ) {
            let mut readahead = Readahead::new(max);
            for fault in faults.into_iter().map(|fault| fault % count) {
                let ask = readahead.on_fault(ChunkIndex(fault), count);
                if !ask.is_empty() {
                    prop_assert!(fault < ask.start && ask.end <= count && ask.end - fault <= max + 1);
                }
                prop_assert!(readahead.streams.len() <= STREAMS);
            }
        }
    }
}
