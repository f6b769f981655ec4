//! Hashes that are computed by reading, against those of the plain bytes.

use std::sync::Arc;

use super::*;
use crate::store::{Blocking, Info, MemoryStore, Part};
use pagewire_core::delta::Algorithm;

const SCHEME: Scheme = Scheme { algorithm: Algorithm::Xxh3, key: [3; 16] };

fn image(length: usize) -> Vec<u8> {
    (0..length).map(|at| if at / 9000 % 3 == 1 { 0 } else { (at / 11 + 1) as u8 }).collect()
}

fn expected(bytes: &[u8]) -> Vec<Node> {
    bytes.chunks(4096).map(|page| SCHEME.leaf(page)).collect()
}

fn leaves(store: &Hashed, length: u64, has: u64) -> Result<Vec<Node>> {
    let hashes = Hashes::new(1, SCHEME, length, 2);
    let range = ByteRange::new(0, length).align_out(4096);
    hashes.nodes(store, has, 0, &[range], &|| false)
}

/// A store that gives its answers in parts that fit no page, and says nothing of some of them if told so.
struct Crooked {
    bytes: Vec<u8>,
    leaves_out: bool,
}

impl Store for Crooked {
    fn info(&self) -> Info {
        Info { length: self.bytes.len() as u64, ..MemoryStore::new(self.bytes.len() as u64).info() }
    }

    fn read(&self, read: Read) {
        for range in &read.ranges {
            for (index, piece) in range.split(1237).enumerate() {
                let bytes = &self.bytes[piece.start as usize..piece.end as usize];
                if bytes.iter().all(|byte| *byte == 0) {
                    read.sink.part(Part::Zero(piece));
                } else if !(self.leaves_out && index == 3) {
                    read.sink.part(Part::Bytes { offset: piece.start, bytes });
                }
            }
        }
        read.sink.done(Ok(()));
    }

    fn flush(&self, flush: crate::store::Flush) {
        (flush.done)(Ok(self.info()));
    }
}

#[test]
fn hashes_are_those_of_the_bytes_however_they_come() {
    for length in [1, 4095, 4096, 4097, 300_000, 3 << 20] {
        let bytes = image(length);
        let store = MemoryStore::new(length as u64);
        store.write_bytes(0, &bytes).unwrap();
        store.flush_all().unwrap();
        let epoch = store.info().epoch;
        let hashes = Hashes::new(epoch, SCHEME, length as u64, 1);
        let range = ByteRange::new(0, length as u64).align_out(4096);
        let memory = Hashed::Store(Arc::new(store));
        assert_eq!(hashes.nodes(&memory, length as u64, 0, &[range], &|| false).unwrap(), expected(&bytes));
        let crooked = Hashed::Store(Arc::new(Crooked { bytes: bytes.clone(), leaves_out: false }));
        assert_eq!(leaves(&crooked, length as u64, length as u64).unwrap(), expected(&bytes), "{length}");
    }
}

#[test]
fn an_answer_with_gaps_is_an_error() {
    let crooked = Hashed::Store(Arc::new(Crooked { bytes: vec![1; 100_000], leaves_out: true }));
    assert!(leaves(&crooked, 100_000, 100_000).is_err());
}

#[test]
fn what_is_behind_the_end_and_behind_the_length_is_zeroes() {
    let bytes = image(50_000);
    let store = Hashed::Store(Arc::new(Crooked { bytes: bytes.clone(), leaves_out: false }));
    let mut longer = bytes.clone();
    longer.resize(90_000, 0);
    assert_eq!(leaves(&store, 90_000, 50_000).unwrap(), expected(&longer));
    assert_eq!(leaves(&store, 20_000, 50_000).unwrap(), expected(&bytes[..20_000]));
    let far = ByteRange::new(1 << 40, (1 << 40) + span(TOP));
    let hashes = Hashes::new(1, SCHEME, 1 << 50, 1);
    assert_eq!(hashes.nodes(&store, 50_000, TOP, &[far], &|| false).unwrap(), [Node::ZERO]);
}

#[test]
fn nobody_who_wants_them_ends_it() {
    let store = Hashed::Store(Arc::new(Crooked { bytes: vec![1; 100_000], leaves_out: false }));
    let hashes = Hashes::new(1, SCHEME, 100_000, 1);
    let error = hashes.nodes(&store, 100_000, TOP, &[ByteRange::new(0, span(TOP))], &|| true).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Cancelled);
}

#[test]
fn trees_are_kept_up_to_a_bound() {
    let store = Hashed::Store(Arc::new(Crooked { bytes: vec![1; 10_000], leaves_out: false }));
    let hashes = Hashes::new(1, SCHEME, 1 << 40, 2);
    // The windows behind the end are not kept at all.
    hashes.nodes(&store, 10_000, TOP, &[ByteRange::new(0, 8 * span(TOP))], &|| false).unwrap();
    assert_eq!(hashes.kept.lock().unwrap().len(), 1);
}
