//! Bytes for a region, from the one who writes: which region, which ranges, and then the bytes of these
//! ranges, one range after the other.
//!
//! Between the two stand as many zeroes as it takes for the bytes to begin where those of a data frame do,
//! counted from a multiple of 64: a receiver that aligns payloads in memory does it once for both.

use super::cursor::{Fields, put_ranges};
use super::data::PREFIX_LEN;
use super::{FrameType, HEADER_LEN, Header, MAX_PAYLOAD, Malformed};
use crate::chunk::ByteRange;
use crate::pack::Codec;

/// Payloads begin at [`PREFIX_LEN`] from a multiple of this many bytes, if the frame does at one.
const ALIGNMENT: usize = 64;

/// How many zeroes stand before the payload of so many ranges.
fn padding(ranges: usize) -> usize {
    let fields = HEADER_LEN + 4 + 4 + 16 * ranges;
    (PREFIX_LEN + ALIGNMENT - fields % ALIGNMENT) % ALIGNMENT
}

/// What stands before the bytes of a WRITE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteHeader {
    /// The handle that LEASED gave.
    pub handle: u32,
    /// Which bytes follow. Ranges do not overlap, and none is empty.
    pub ranges: Vec<ByteRange>,
}

impl WriteHeader {
    /// Appends all of the frame that stands before the bytes; `ranges` say how many follow.
    pub fn encode(handle: u32, ranges: &[ByteRange], id: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_LEN]);
        out.extend_from_slice(&handle.to_le_bytes());
        put_ranges(out, ranges);
        out.resize(out.len() + padding(ranges.len()), 0);
        let payload = ByteRange::total(ranges);
        debug_assert!(payload <= u64::from(MAX_PAYLOAD));
        let length = (out.len() - start - HEADER_LEN) as u64 + payload;
        let header = Header { length: length as u32, kind: FrameType::WRITE, id };
        out[start..start + HEADER_LEN].copy_from_slice(&header.encode());
    }

    /// The fields and the bytes of a frame whose body is `body`.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where there are not as many bytes as the ranges say, where they are more than
    /// [`MAX_PAYLOAD`], or where a range is empty, begins before the one before it ends, or has no end.
    pub fn decode(body: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let mut fields = Fields::new(FrameType::WRITE.name(), body);
        let handle = fields.u32()?;
        let (ranges, total) = ranges(&mut fields)?;
        if fields.bytes(padding(ranges.len()))?.iter().any(|byte| *byte != 0) {
            return Err(fields.bad("the padding is not zero"));
        }
        let payload = fields.bytes(total as usize)?;
        fields.end()?;
        Ok((Self { handle, ranges }, payload))
    }
}

/// What stands before the compressed bytes of a PACKED_WRITE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedWriteHeader {
    /// The handle and the ranges, as in a WRITE.
    pub write: WriteHeader,
    /// What opens the bytes.
    pub codec: Codec,
}

impl PackedWriteHeader {
    /// Appends all of the frame that stands before `payload` compressed bytes.
    pub fn encode(&self, payload: usize, id: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_LEN]);
        out.extend_from_slice(&self.write.handle.to_le_bytes());
        out.push(match self.codec {
            Codec::Lz4 => 2,
            Codec::Zstd => 3,
        });
        put_ranges(out, &self.write.ranges);
        let length = (out.len() - start - HEADER_LEN + payload) as u32;
        let header = Header { length, kind: FrameType::PACKED_WRITE, id };
        out[start..start + HEADER_LEN].copy_from_slice(&header.encode());
    }

    /// The fields and the compressed bytes of a frame whose body is `body`.
    ///
    /// # Errors
    ///
    /// [`Malformed`] as for a WRITE; where the compressed bytes are not fewer than what they stand for, or none.
    pub fn decode(body: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let mut fields = Fields::new(FrameType::PACKED_WRITE.name(), body);
        let handle = fields.u32()?;
        let codec = match fields.u8()? {
            2 => Codec::Lz4,
            3 => Codec::Zstd,
            other => return Err(fields.bad(format!("codec {other} is none"))),
        };
        let (ranges, total) = ranges(&mut fields)?;
        let payload = fields.rest();
        if payload.is_empty() || payload.len() as u64 >= total {
            let text = format!("{} compressed bytes for {total}", payload.len());
            return Err(Malformed::new(FrameType::PACKED_WRITE.name(), text));
        }
        Ok((Self { write: WriteHeader { handle, ranges }, codec }, payload))
    }
}

/// Ranges of one write, and how many bytes they have.
fn ranges(fields: &mut Fields<'_>) -> Result<(Vec<ByteRange>, u64), Malformed> {
    let ranges = fields.ranges()?;
    let mut behind = 0;
    for range in &ranges {
        if range.is_empty() || range.start < behind {
            return Err(fields.bad(format!("range {range} is empty or not behind the one before")));
        }
        behind = range.end;
    }
    let total = ByteRange::total(&ranges);
    if total > u64::from(MAX_PAYLOAD) {
        return Err(fields.bad(format!("{total} bytes, where {MAX_PAYLOAD} are allowed")));
    }
    Ok((ranges, total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(ranges: &[(u64, u64)]) -> Vec<u8> {
        let ranges: Vec<ByteRange> = ranges.iter().map(|&(from, to)| ByteRange::new(from, to)).collect();
        let mut bytes = Vec::new();
        WriteHeader::encode(7, &ranges, 9, &mut bytes);
        let length = bytes.len();
        assert_eq!(length % ALIGNMENT, PREFIX_LEN % ALIGNMENT);
        bytes.extend((0..ByteRange::total(&ranges)).map(|at| at as u8));
        let mut header = [0; HEADER_LEN];
        header.copy_from_slice(&bytes[..HEADER_LEN]);
        let decoded = Header::decode(&header).expect("a header");
        assert_eq!(decoded.length as usize, bytes.len() - HEADER_LEN);
        assert!(length > HEADER_LEN && decoded.id == 9);
        bytes.split_off(HEADER_LEN)
    }

    #[test]
    fn a_write_reads_as_it_was_written() {
        let body = frame(&[(0, 4096), (8192, 8292)]);
        let (write, payload) = WriteHeader::decode(&body).expect("a write");
        assert_eq!((write.handle, write.ranges.len(), payload.len()), (7, 2, 4196));
        assert_eq!(payload[4195], 4195u64 as u8);
    }

    #[test]
    fn ranges_and_bytes_must_fit_together() {
        let body = frame(&[(0, 10)]);
        assert!(WriteHeader::decode(&body[..body.len() - 1]).is_err());
        assert!(WriteHeader::decode(&[&body[..], &[0]].concat()).is_err());
        for wrong in [&[(0, 4096), (100, 200)][..], &[(5, 5)], &[(8192, 8193), (0, 1)]] {
            assert!(WriteHeader::decode(&frame(wrong)).is_err(), "{wrong:?}");
        }
        let mut long = Vec::new();
        long.extend_from_slice(&1u32.to_le_bytes());
        put_ranges(&mut long, &[ByteRange::new(0, u64::MAX - 1)]);
        assert!(WriteHeader::decode(&long).is_err());
    }

    #[test]
    fn a_compressed_write_reads_as_it_was_written() {
        let ranges = vec![ByteRange::new(0, 4096), ByteRange::new(8192, 8292)];
        for codec in Codec::ALL {
            let packed =
                PackedWriteHeader { write: WriteHeader { handle: 7, ranges: ranges.clone() }, codec };
            let frame = |payload: usize| {
                let mut bytes = Vec::new();
                packed.encode(payload, 9, &mut bytes);
                bytes.extend(vec![5; payload]);
                bytes.split_off(HEADER_LEN)
            };
            assert_eq!(PackedWriteHeader::decode(&frame(4195)), Ok((packed.clone(), &[5; 4195][..])));
            assert!(
                PackedWriteHeader::decode(&frame(0)).is_err()
                    && PackedWriteHeader::decode(&frame(4196)).is_err()
            );
            let mut other = frame(10);
            other[4] = 1;
            assert!(PackedWriteHeader::decode(&other).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = WriteHeader::decode(&body);
            let _ = PackedWriteHeader::decode(&body);
        }
    }
}
