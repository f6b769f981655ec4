//! `mem:SIZE`: zeroed memory of this process.
//!
//! The region is a table of blocks that are shared and copied when written: a read takes a
//! reference under a short lock and hands out the bytes without one, so a slow reader never holds
//! up a writer, and both see whole blocks.

use std::sync::{Arc, RwLock};

use pagewire_core::chunk::ByteRange;
use uuid::Uuid;

use super::{Capabilities, Completion, Info, Part, Read, Store};
use crate::error::Result;

/// The length of a block, in bytes: small enough that copying one for a small write is cheap, large
/// enough that the table is small.
const BLOCK: u64 = 64 << 10;

type Block = Option<Arc<[u8]>>;

/// Zeroed memory of this process. Blocks that were never written take no memory.
pub struct MemoryStore {
    id: Uuid,
    length: u64,
    blocks: Vec<RwLock<Block>>,
}

impl MemoryStore {
    /// A region of `length` zeroes.
    pub fn new(length: u64) -> Self {
        let blocks = (0..length.div_ceil(BLOCK)).map(|_| RwLock::new(None)).collect();
        Self { id: Uuid::new_v4(), length, blocks }
    }

    fn block(&self, index: u64) -> &RwLock<Block> {
        &self.blocks[index as usize]
    }

    /// Calls `change` with each block of `range` and the part of the block that is meant.
    fn change(&self, range: ByteRange, mut change: impl FnMut(&mut Block, ByteRange)) -> Result<()> {
        self.info().check(range)?;
        for piece in range.split(BLOCK) {
            let mut block = self.block(piece.start / BLOCK).write().expect("no holder panics");
            change(&mut block, piece);
        }
        Ok(())
    }
}

/// Where in its block a piece is.
fn within(piece: ByteRange) -> std::ops::Range<usize> {
    let start = (piece.start % BLOCK) as usize;
    start..start + piece.len() as usize
}

impl Store for MemoryStore {
    fn info(&self) -> Info {
        Info {
            id: self.id,
            epoch: 1,
            length: self.length,
            capacity: self.length,
            granularity: BLOCK as u32,
            writable: true,
            capabilities: Capabilities::default(),
        }
    }

    fn read(&self, read: Read) {
        for &range in &read.ranges {
            if let Err(error) = self.info().check(range) {
                return read.sink.done(Err(error));
            }
        }
        for piece in read.ranges.iter().flat_map(|range| range.split(BLOCK)) {
            let block = self.block(piece.start / BLOCK).read().expect("no holder panics").clone();
            read.sink.part(match &block {
                Some(bytes) => Part::Bytes { offset: piece.start, bytes: &bytes[within(piece)] },
                None => Part::Zero(piece),
            });
        }
        read.sink.done(Ok(()));
    }

    fn write(&self, offset: u64, bytes: &[u8], done: Completion) {
        let range = ByteRange::new(offset, offset.saturating_add(bytes.len() as u64));
        done(self.change(range, |block, piece| {
            let block = block.get_or_insert_with(|| Arc::from(vec![0; BLOCK as usize]));
            let from = (piece.start - offset) as usize;
            Arc::make_mut(block)[within(piece)].copy_from_slice(&bytes[from..from + piece.len() as usize]);
        }));
    }

    fn zero(&self, range: ByteRange, done: Completion) {
        done(self.change(range, |block, piece| {
            if piece.len() == BLOCK {
                *block = None;
            } else if let Some(block) = block {
                Arc::make_mut(block)[within(piece)].fill(0);
            }
        }));
    }

    fn flush(&self, done: Completion) {
        done(Ok(()));
    }
}
