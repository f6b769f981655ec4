//! A sink that keeps everything, and says whether the answer was as the contract has it.

use std::sync::{Arc, Condvar, Mutex};

use pagewire::store::{Part, Read, Sink, Store, Urgency};
use pagewire::{ByteRange, Result};

use super::HANG;

#[derive(Default)]
pub(crate) struct Recorder {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    parts: Vec<(ByteRange, Option<Vec<u8>>)>,
    inside: usize,
    ends: Vec<Result<()>>,
    broken: Vec<&'static str>,
}

impl Sink for Recorder {
    fn part(&self, part: Part<'_>) {
        {
            let mut state = self.state.lock().unwrap();
            state.inside += 1;
            if !state.ends.is_empty() {
                state.broken.push("a part came after the end");
            }
        }
        let bytes = match part {
            Part::Bytes { bytes, .. } => Some(bytes.to_vec()),
            Part::Zero(_) => None,
        };
        std::thread::yield_now();
        let mut state = self.state.lock().unwrap();
        state.parts.push((part.range(), bytes));
        state.inside -= 1;
    }

    fn done(&self, result: Result<()>) {
        let mut state = self.state.lock().unwrap();
        if state.inside > 0 {
            state.broken.push("the end came while a part was delivered");
        }
        state.ends.push(result);
        drop(state);
        self.changed.notify_all();
    }
}

impl Recorder {
    /// The end of the answer.
    pub(crate) fn wait(&self) -> Result<()> {
        let state = self.state.lock().unwrap();
        let (state, _) = self.changed.wait_timeout_while(state, HANG, |state| state.ends.is_empty()).unwrap();
        state.ends.first().expect("the end was never told").clone()
    }

    pub(crate) fn has_ended(&self) -> bool {
        !self.state.lock().unwrap().ends.is_empty()
    }

    /// Checks what holds for every answer: one end, nothing after it, and the bytes of `model`,
    /// none of them twice, none that was not asked for. Answers how many bytes came.
    pub(crate) fn check(&self, asked: &[ByteRange], model: &[u8]) -> u64 {
        let state = self.state.lock().unwrap();
        assert_eq!(state.broken, Vec::<&str>::new());
        assert_eq!(state.ends.len(), 1, "one end");
        let mut ranges: Vec<ByteRange> = Vec::new();
        for (range, bytes) in &state.parts {
            assert!(asked.iter().any(|asked| asked.contains(*range)), "bytes {range} were not asked for");
            let expected = &model[range.start as usize..range.end as usize];
            match bytes {
                Some(bytes) => assert!(bytes == expected, "bytes {range} are wrong"),
                None => assert!(expected.iter().all(|byte| *byte == 0), "bytes {range} are no zeroes"),
            }
            ranges.push(*range);
        }
        ranges.sort_by_key(|range| range.start);
        for pair in ranges.windows(2) {
            assert!(pair[0].end <= pair[1].start, "bytes {} and {} came twice", pair[0], pair[1]);
        }
        ranges.iter().map(|range| range.len()).sum()
    }
}

/// Reads, waits, and checks what holds for every answer. Answers the end and whether all came.
pub(crate) fn read(
    store: &dyn Store,
    ranges: &[ByteRange],
    urgency: Urgency,
    model: &[u8],
) -> (Result<()>, bool) {
    let recorder = Arc::new(Recorder::default());
    let epoch = store.info().epoch;
    store.read(Read { ranges: ranges.to_vec(), epoch, urgency, sink: recorder.clone() });
    let end = recorder.wait();
    let came = recorder.check(ranges, model);
    (end, came == ranges.iter().map(|range| range.len()).sum::<u64>())
}
