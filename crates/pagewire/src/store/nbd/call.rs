//! One request to the server, from its submission to its one and only end.
//!
//! A request stays the same across lost connections: what of a read is still missing is asked for again, and
//! a write is sent again with the bytes that are kept until then. One thread delivers at a time, that of the
//! connection which the request was sent on last, while another may find out that it has failed: the end
//! is told once, and after the last part has been delivered.
//!
//! A sink is given whole pages, where it has asked for whole pages. A server may cut its answer elsewhere;
//! then the answer is [gathered](State::gathered) first.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::nbd::{CommandType, Request};

use super::session::Lane;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::{Part, Sink};
use crate::store::Completion;

/// What the server is asked to do.
pub(super) enum Command {
    /// To give the bytes of a range.
    Read(ByteRange),
    /// To write these bytes to a range.
    Write(ByteRange, Vec<u8>),
    /// To write zeroes to a range.
    Zero(ByteRange),
    /// To make durable what was written at this stage and acknowledged.
    Flush(u64),
    /// To say where a range has holes.
    Status(ByteRange),
}

impl Command {
    pub(super) fn range(&self) -> ByteRange {
        match self {
            Command::Read(range)
            | Command::Write(range, _)
            | Command::Zero(range)
            | Command::Status(range) => *range,
            Command::Flush(_) => ByteRange::new(0, 0),
        }
    }
}

/// An extent of an export, in the order of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) length: u64,
    pub(super) is_zero: bool,
}

/// Where the end of a call goes.
pub(super) enum Ending {
    /// To the sink that the parts go to.
    Sink(Arc<dyn Sink>),
    /// To a function.
    Done(Completion),
    /// To a function, with what is known of holes.
    Extents(Box<dyn FnOnce(Result<Vec<Extent>>) + Send>),
}

/// One request under way.
pub(super) struct Call {
    pub(super) command: Command,
    pub(super) lane: Lane,
    /// When the patience is over; none where who asks has a patience of their own.
    pub(super) deadline: Option<Instant>,
    sink: Option<Arc<dyn Sink>>,
    state: Mutex<State>,
}

struct State {
    /// What the sink of a read still lacks.
    missing: Vec<ByteRange>,
    /// What the server still owes of what it was asked for last.
    owed: Vec<ByteRange>,
    /// The bytes of the whole range, as far as they have come, where the answer was cut within pages.
    gathered: Option<Vec<u8>>,
    extents: Vec<Extent>,
    delivering: bool,
    outcome: Option<Result<()>>,
    ending: Option<Ending>,
}

impl Call {
    pub(super) fn new(command: Command, lane: Lane, deadline: Option<Instant>, ending: Ending) -> Arc<Self> {
        let missing = match command {
            Command::Read(range) => vec![range],
            _ => Vec::new(),
        };
        let sink = match &ending {
            Ending::Sink(sink) => Some(sink.clone()),
            _ => None,
        };
        let state = State {
            missing,
            owed: Vec::new(),
            gathered: None,
            extents: Vec::new(),
            delivering: false,
            outcome: None,
            ending: Some(ending),
        };
        Arc::new(Self { command, lane, deadline, sink, state: Mutex::new(state) })
    }

    /// Whether it changes the export: then nobody may be in doubt whether it still does later.
    pub(super) fn changes(&self) -> bool {
        matches!(self.command, Command::Write(..) | Command::Zero(_))
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().outcome.is_some()
    }

    /// The request to send, under this cookie, and its payload. None where the call has ended.
    pub(super) fn request(&self, cookie: u64) -> Option<(Request, &[u8])> {
        let mut state = self.lock();
        if state.outcome.is_some() {
            return None;
        }
        let mut range = self.command.range();
        if let (Some(first), Some(last)) = (state.missing.first(), state.missing.last()) {
            // What lies between comes twice after a lost connection, and is not passed on again.
            range = ByteRange::new(first.start, last.end);
            state.owed = vec![range];
        }
        state.extents.clear();
        let (command, payload): (_, &[u8]) = match &self.command {
            Command::Read(_) => (CommandType::READ, &[]),
            Command::Write(_, bytes) => (CommandType::WRITE, bytes),
            Command::Zero(_) => (CommandType::WRITE_ZEROES, &[]),
            Command::Flush(_) => (CommandType::FLUSH, &[]),
            Command::Status(_) => (CommandType::BLOCK_STATUS, &[]),
        };
        let request =
            Request { flags: Default::default(), command, cookie, offset: range.start, length: range.len() };
        Some((request, payload))
    }

    /// How many bytes the server still owes of a read.
    pub(super) fn owed(&self) -> u64 {
        ByteRange::total(&self.lock().owed)
    }

    /// The range that a reply without an offset answers.
    pub(super) fn owed_range(&self) -> ByteRange {
        self.lock().owed.first().copied().unwrap_or(ByteRange::new(0, 0))
    }

    /// The server gives `range`, of which no byte has come before. Answers whether its parts can be
    /// delivered as they are cut; else they are gathered.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Protocol`] for bytes that nobody has asked for, or that come twice.
    pub(super) fn expect(&self, range: ByteRange) -> Result<bool> {
        let mut state = self.lock();
        let refuse = |why: &str| Err(Error::new(ErrorKind::Protocol, format!("bytes {range}, which {why}")));
        let whole = self.command.range();
        if !matches!(self.command, Command::Read(_)) {
            return refuse("nobody has asked for");
        }
        if ByteRange::total(&take(&mut state.owed, range)) != range.len() {
            return refuse("were not asked for or come twice");
        }
        let fits = |at: u64| at.is_multiple_of(PAGE_SIZE) || at == whole.start || at == whole.end;
        if fits(range.start) && fits(range.end) {
            return Ok(true);
        }
        state.gathered.get_or_insert_with(|| vec![0; whole.len() as usize]);
        Ok(false)
    }

    /// Delivers a part of what was expected, but for what has come before.
    pub(super) fn deliver(&self, part: Part<'_>) {
        let Some(sink) = &self.sink else { return };
        let new = {
            let mut state = self.lock();
            if state.outcome.is_some() {
                return;
            }
            let new = take(&mut state.missing, part.range());
            if new.is_empty() {
                return;
            }
            state.delivering = true;
            new
        };
        new.iter().for_each(|range| sink.part(part.cut(*range)));
        let mut state = self.lock();
        state.delivering = false;
        self.settle(state);
    }

    /// Keeps a part that ends within a page until the rest has come.
    pub(super) fn gather(&self, part: Part<'_>) {
        let (start, range) = (self.command.range().start, part.range());
        let mut state = self.lock();
        let Some(gathered) = &mut state.gathered else { return };
        let into = &mut gathered[(range.start - start) as usize..(range.end - start) as usize];
        match part {
            Part::Bytes { bytes, .. } => into.copy_from_slice(bytes),
            Part::Zero(_) => into.fill(0),
        }
    }

    /// What the server says of holes.
    pub(super) fn extents(&self, extents: impl Iterator<Item = Extent>) {
        self.lock().extents.extend(extents);
    }

    /// The server says that this was all, and that all is well.
    pub(super) fn answered(&self) {
        let left = self.owed();
        if left > 0 {
            let text = format!("an answer leaves out {left} of the bytes {}", self.command.range());
            return self.end(Err(Error::new(ErrorKind::Protocol, text)));
        }
        let gathered = self.lock().gathered.take();
        if let Some(bytes) = gathered {
            self.deliver(Part::Bytes { offset: self.command.range().start, bytes: &bytes });
        }
        self.end(Ok(()));
    }

    /// Ends the call, if it has not ended.
    pub(super) fn end(&self, result: Result<()>) {
        let mut state = self.lock();
        state.outcome.get_or_insert(result);
        self.settle(state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn settle(&self, mut state: MutexGuard<'_, State>) {
        if state.delivering {
            return;
        }
        let Some(outcome) = state.outcome.clone() else { return };
        let Some(ending) = state.ending.take() else { return };
        let extents = std::mem::take(&mut state.extents);
        drop(state);
        match ending {
            Ending::Sink(sink) => sink.done(outcome),
            Ending::Done(done) => done(outcome),
            Ending::Extents(done) => done(outcome.map(|()| extents)),
        }
    }
}

/// Takes what the ordered `list` has of `range` out of it.
fn take(list: &mut Vec<ByteRange>, range: ByteRange) -> Vec<ByteRange> {
    let mut taken = Vec::with_capacity(1);
    let mut at = 0;
    while at < list.len() && list[at].start < range.end {
        let common = list[at].intersect(range);
        if common.is_empty() {
            at += 1;
            continue;
        }
        taken.push(common);
        let left = list[at].without(range);
        let left = left.into_iter().filter(|piece| !piece.is_empty());
        let count = left.clone().count();
        list.splice(at..=at, left);
        at += count;
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where each part began and what it held, and the end.
    type Recorded = (Vec<(u64, Vec<u8>)>, Option<Result<()>>);

    #[derive(Default)]
    struct Record(Mutex<Recorded>);

    impl Sink for Record {
        fn part(&self, part: Part<'_>) {
            let bytes = match part {
                Part::Bytes { bytes, .. } => bytes.to_vec(),
                Part::Zero(range) => vec![0; range.len() as usize],
            };
            self.0.lock().unwrap().0.push((part.range().start, bytes));
        }

        fn done(&self, result: Result<()>) {
            assert!(self.0.lock().unwrap().1.replace(result).is_none(), "told once");
        }
    }

    fn read(start: u64, end: u64) -> (Arc<Call>, Arc<Record>) {
        let record = Arc::new(Record::default());
        let command = Command::Read(ByteRange::new(start, end));
        (Call::new(command, Lane::Demand, None, Ending::Sink(record.clone())), record)
    }

    fn give(call: &Call, start: u64, bytes: &[u8]) -> Result<()> {
        let part = Part::Bytes { offset: start, bytes };
        if call.expect(part.range())? {
            call.deliver(part);
        } else {
            call.gather(part);
        }
        Ok(())
    }

    #[test]
    fn an_answer_in_pages_is_passed_on_as_it_comes() {
        let (call, record) = read(4096, 4 * 4096 + 5);
        let (request, payload) = call.request(7).unwrap();
        assert_eq!((request.offset, request.length, request.cookie), (4096, 3 * 4096 + 5, 7));
        assert!(payload.is_empty());
        give(&call, 8192, &[2; 4096]).unwrap();
        give(&call, 4096, &[1; 4096]).unwrap();
        give(&call, 12288, &[3; 4096 + 5]).unwrap();
        call.answered();
        let record = record.0.lock().unwrap();
        let starts: Vec<u64> = record.0.iter().map(|part| part.0).collect();
        assert_eq!(starts, [8192, 4096, 12288]);
        assert!(record.1.as_ref().unwrap().is_ok());
        assert!(call.request(8).is_none(), "it has ended");
    }

    #[test]
    fn an_answer_that_is_cut_within_pages_is_put_together() {
        let (call, record) = read(0, 3 * 4096);
        call.request(1).unwrap();
        give(&call, 4096, &[2; 4096]).unwrap();
        give(&call, 0, &[1; 512]).unwrap();
        give(&call, 9000, &[3; 3 * 4096 - 9000]).unwrap();
        give(&call, 512, &[1; 4096 - 512]).unwrap();
        assert!(call.expect(ByteRange::new(8192, 9000)).is_ok_and(|whole| !whole));
        call.gather(Part::Zero(ByteRange::new(8192, 9000)));
        call.answered();
        let record = record.0.lock().unwrap();
        let mut bytes = vec![9; 3 * 4096];
        for (start, part) in &record.0 {
            assert!(start.is_multiple_of(4096) && part.len().is_multiple_of(4096));
            bytes[*start as usize..*start as usize + part.len()].copy_from_slice(part);
        }
        assert_eq!(record.0.iter().map(|part| part.1.len()).sum::<usize>(), 3 * 4096, "each page once");
        assert!(
            bytes[..4096].iter().all(|byte| *byte == 1) && bytes[4096..8192].iter().all(|byte| *byte == 2)
        );
        assert!(
            bytes[8192..9000].iter().all(|byte| *byte == 0) && bytes[9000..].iter().all(|byte| *byte == 3)
        );
        assert!(record.1.as_ref().unwrap().is_ok());
    }

    #[test]
    fn what_nobody_asked_for_and_what_comes_twice_is_refused() {
        let (call, record) = read(4096, 3 * 4096);
        call.request(1).unwrap();
        assert!(call.expect(ByteRange::new(0, 4096)).is_err());
        assert!(call.expect(ByteRange::new(8192, 4 * 4096)).is_err());
        let (call, _) = read(4096, 3 * 4096);
        call.request(1).unwrap();
        give(&call, 4096, &[0; 4096]).unwrap();
        assert_eq!(call.expect(ByteRange::new(4096, 8192)).unwrap_err().kind(), ErrorKind::Protocol);
        drop(record);
    }

    #[test]
    fn an_answer_that_leaves_something_out_is_an_error() {
        let (call, record) = read(0, 8192);
        call.request(1).unwrap();
        give(&call, 4096, &[1; 4096]).unwrap();
        call.answered();
        let end = record.0.lock().unwrap().1.clone().unwrap().unwrap_err();
        assert!(end.to_string().contains("leaves out 4096"), "{end}");
    }

    #[test]
    fn after_a_lost_connection_the_rest_is_asked_for_and_nothing_is_passed_on_twice() {
        let (call, record) = read(0, 5 * 4096);
        call.request(1).unwrap();
        give(&call, 4096, &[1; 4096]).unwrap();
        give(&call, 0, &[1; 100]).unwrap();
        let (request, _) = call.request(2).unwrap();
        assert_eq!((request.offset, request.length), (0, 5 * 4096), "what was gathered counts for nothing");
        give(&call, 0, &[2; 3 * 4096]).unwrap();
        let (request, _) = call.request(3).unwrap();
        assert_eq!((request.offset, request.length), (3 * 4096, 2 * 4096));
        give(&call, 3 * 4096, &[3; 2 * 4096]).unwrap();
        call.answered();
        let record = record.0.lock().unwrap();
        let parts: Vec<(u64, u8, usize)> =
            record.0.iter().map(|(start, bytes)| (*start, bytes[0], bytes.len())).collect();
        assert_eq!(parts, [(4096, 1, 4096), (0, 2, 4096), (8192, 2, 4096), (12288, 3, 8192)]);
        assert!(record.1.as_ref().unwrap().is_ok());
    }
}
