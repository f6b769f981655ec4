//! The buffers that packets wait in, used again and again: a packet costs no allocation once the link
//! has seen its traffic, and what was used last, and is in the cache, is used next.

use std::time::Instant;

use pagewire_sys::net::VNET_HEADER_LEN;

/// The longest frame: a segment of 64 KiB and the header before it.
pub(super) const LONGEST: usize = VNET_HEADER_LEN + (64 << 10);

/// Frames up to this long are copied out of the buffer that they were read into: acknowledgements
/// are short and many, and would else hold 64 KiB each while they wait.
const SHORT: usize = 512;

/// Between: single packets. A whole one of the link's MTU fits.
const MIDDLE: usize = 9216;

/// A packet on its way.
pub(super) struct Frame {
    pub(super) due: Instant,
    buffer: Box<[u8]>,
    len: usize,
}

impl Frame {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Bytes of the packet itself.
    pub(super) fn packet_len(&self) -> u64 {
        packet_len(self.len)
    }
}

/// Bytes of the packet in a frame of `len` bytes.
pub(super) fn packet_len(len: usize) -> u64 {
    len.saturating_sub(VNET_HEADER_LEN) as u64
}

/// Buffers that no packet is in.
#[derive(Default)]
pub(super) struct Spare {
    short: Vec<Box<[u8]>>,
    middle: Vec<Box<[u8]>>,
    long: Vec<Box<[u8]>>,
}

impl Spare {
    /// A buffer that any frame can be read into.
    pub(super) fn longest(&mut self) -> Box<[u8]> {
        take(&mut self.long, LONGEST)
    }

    /// The frame in the first `len` bytes of `read`. A long one is not copied: it takes the buffer,
    /// and another is put in its place.
    pub(super) fn frame(&mut self, read: &mut Box<[u8]>, len: usize, due: Instant) -> Frame {
        let buffer = if len <= SHORT {
            copied(take(&mut self.short, SHORT), &read[..len])
        } else if len <= MIDDLE {
            copied(take(&mut self.middle, MIDDLE), &read[..len])
        } else {
            std::mem::replace(read, self.longest())
        };
        Frame { due, buffer, len }
    }

    /// Takes back what a frame was in.
    pub(super) fn put(&mut self, frame: Frame) {
        match frame.buffer.len() {
            SHORT => self.short.push(frame.buffer),
            MIDDLE => self.middle.push(frame.buffer),
            _ => self.long.push(frame.buffer),
        }
    }
}

fn take(spare: &mut Vec<Box<[u8]>>, len: usize) -> Box<[u8]> {
    spare.pop().unwrap_or_else(|| vec![0; len].into())
}

fn copied(mut buffer: Box<[u8]>, bytes: &[u8]) -> Box<[u8]> {
    buffer[..bytes.len()].copy_from_slice(bytes);
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_all_lengths_keep_their_bytes_and_buffers_come_back() {
        let mut spare = Spare::default();
        let mut read = spare.longest();
        let mut kept = 0;
        for _ in 0..3 {
            let lengths = [20, SHORT, SHORT + 1, MIDDLE, MIDDLE + 1, LONGEST];
            let frames: Vec<Frame> = lengths
                .iter()
                .map(|&len| {
                    read[..len].fill(len as u8);
                    spare.frame(&mut read, len, Instant::now())
                })
                .collect();
            for (frame, len) in frames.iter().zip(lengths) {
                assert_eq!(frame.bytes().len(), len);
                assert!(frame.bytes().iter().all(|byte| *byte == len as u8), "length {len}");
                assert_eq!(read.len(), LONGEST);
            }
            frames.into_iter().for_each(|frame| spare.put(frame));
            kept = spare.short.len() + spare.middle.len() + spare.long.len();
        }
        assert_eq!(kept, 6, "the same buffers were used in each round");
    }
}
