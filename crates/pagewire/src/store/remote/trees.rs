//! Hashes that are too many for one reply: several requests are made, and their answers are put together.

use std::sync::{Arc, Mutex};

use pagewire_core::chunk::ByteRange;
use pagewire_core::delta::{Node, span};
use pagewire_core::wire::{MAX_NODES, MAX_RANGES};

use crate::error::Result;

/// The ranges of each request that together ask for the nodes of `ranges`.
pub(super) fn pieces(ranges: Vec<ByteRange>, level: u8) -> Vec<Vec<ByteRange>> {
    let most = MAX_NODES as u64 * span(level);
    let mut pieces = vec![Vec::new()];
    let mut room = most;
    for mut range in ranges {
        while !range.is_empty() {
            if room == 0 || pieces.last().is_some_and(|piece| piece.len() == MAX_RANGES) {
                pieces.push(Vec::new());
                room = most;
            }
            let part = range.clamp_to(range.start.saturating_add(room));
            room -= part.len();
            range.start = part.end;
            pieces.last_mut().expect("there is one from the beginning").push(part);
        }
    }
    pieces
}

/// The nodes of several requests, in their order.
pub(super) struct Joined(Mutex<State>);

type Done = Box<dyn FnOnce(Result<Vec<Node>>) + Send>;

struct State {
    left: usize,
    nodes: Vec<Vec<Node>>,
    done: Option<Done>,
}

impl Joined {
    pub(super) fn new(requests: usize, done: Done) -> Arc<Self> {
        let nodes = vec![Vec::new(); requests];
        Arc::new(Self(Mutex::new(State { left: requests, nodes, done: Some(done) })))
    }

    /// One of them is answered; the first error ends all.
    pub(super) fn done(&self, index: usize, result: Result<Vec<Node>>) {
        let (done, end) = {
            let mut state = self.0.lock().expect("no holder panics");
            match result {
                Ok(nodes) => {
                    state.nodes[index] = nodes;
                    state.left -= 1;
                    if state.left > 0 {
                        return;
                    }
                    let nodes = std::mem::take(&mut state.nodes);
                    (state.done.take(), Ok(nodes.concat()))
                }
                Err(error) => (state.done.take(), Err(error)),
            }
        };
        if let Some(done) = done {
            done(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_full_and_leave_nothing_out() {
        let pages = |from: u64, to: u64| ByteRange::of_pages(from..to);
        let most = MAX_NODES as u64;
        let got = pieces(vec![pages(0, 1), pages(5, 2 * most + 5)], 0);
        let asked: Vec<u64> = got.iter().map(|ranges| ByteRange::total(ranges) / 4096).collect();
        assert_eq!(asked, [most, most, 1]);
        assert_eq!(got[0], [pages(0, 1), pages(5, most + 4)]);
        let many = (0..most + 1).map(|page| pages(2 * page, 2 * page + 1)).collect();
        assert_eq!(pieces(many, 0).len(), 2);
        assert_eq!(pieces(vec![ByteRange::new(0, 1 << 40)], 4).len(), 1);
    }

    #[test]
    fn nodes_are_joined_in_order_and_one_error_ends_all() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let done = |sender: &std::sync::mpsc::Sender<_>| {
            let sender = sender.clone();
            Box::new(move |result: Result<Vec<Node>>| {
                sender.send(result.is_ok_and(|nodes| nodes.len() == 2)).unwrap();
            })
        };
        let joined = Joined::new(2, done(&sender));
        joined.done(1, Ok(vec![Node::ZERO]));
        joined.done(0, Ok(vec![Node::ZERO]));
        assert!(receiver.recv().unwrap());
        let joined = Joined::new(2, done(&sender));
        joined.done(1, Err(crate::Error::new(crate::ErrorKind::Io, "broken")));
        joined.done(0, Ok(vec![Node::ZERO]));
        assert!(!receiver.recv().unwrap());
        assert!(receiver.try_recv().is_err(), "it is told once");
    }
}
