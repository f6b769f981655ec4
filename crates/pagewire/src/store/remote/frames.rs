//! Writes that are too large for one frame: several are sent.

use pagewire_core::chunk::ByteRange;
use pagewire_core::wire::{MAX_PAYLOAD, MAX_RANGES};

/// The ranges and the bytes of each frame that together write `bytes` to `ranges`.
pub(super) fn frames<'a>(ranges: &[ByteRange], bytes: &'a [u8]) -> Vec<(Vec<ByteRange>, &'a [u8])> {
    let most = u64::from(MAX_PAYLOAD);
    let mut ranges = ranges.to_vec();
    let in_order = ranges.windows(2).all(|pair| pair[0].end <= pair[1].start);
    let mut frames: Vec<(Vec<ByteRange>, &[u8])> = Vec::new();
    let (mut begun, mut at) = (0, 0);
    let mut frame: Vec<ByteRange> = Vec::new();
    ranges.retain(|range| !range.is_empty());
    for piece in ranges.iter().flat_map(|range| range.split(most)) {
        let full = (at - begun) as u64 + piece.len() > most || frame.len() == MAX_RANGES;
        // A frame has its ranges in order; some that are not go by one frame each.
        if !frame.is_empty() && (full || !in_order) {
            frames.push((std::mem::take(&mut frame), &bytes[begun..at]));
            begun = at;
        }
        frame.push(piece);
        at += piece.len() as usize;
    }
    if !frame.is_empty() {
        frames.push((frame, &bytes[begun..at]));
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_full_and_leave_nothing_out() {
        let range = |from: u64, to: u64| ByteRange::new(from << 10, to << 10);
        let bytes = vec![7; 3 << 20];
        let got = frames(&[range(0, 1), range(5, 5), range(10, 10 + 3071)], &bytes);
        let lengths: Vec<usize> = got.iter().map(|(_, bytes)| bytes.len()).collect();
        assert_eq!(lengths, [1015 << 10, 1 << 20, 1 << 20, 9 << 10]);
        assert!(got.iter().all(|(ranges, bytes)| ByteRange::total(ranges) == bytes.len() as u64));
        assert_eq!(frames(&[range(4, 5), range(0, 1)], &bytes[..2048]).len(), 2, "not in order");
        assert!(frames(&[], &[]).is_empty());
    }
}
