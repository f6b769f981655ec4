//! Bytes of a region: a fixed part, the payload, and behind it, where the header announces one, a
//! trailer.
//!
//! The trailer is what lets a sender start before it has read everything (by `sendfile`, for
//! instance): when the store fails in the middle, the sender fills the frame up and says in the
//! trailer that the payload is worth nothing. So a receiver must not use a payload before it has
//! seen the trailer. A sender that has the bytes at hand leaves the trailer out.

use super::cursor::Fields;
use super::{HEADER_LEN, MAX_PAYLOAD, MAX_ZERO_SPAN, Malformed, RemoteErrorKind};
use crate::chunk::{ByteRange, PAGE_SIZE};
use crate::pack::Codec;

/// The length of the fixed part of a data frame's body, in bytes.
pub const DATA_HEADER_LEN: usize = 24;

/// The length of the trailer, in bytes.
pub const TRAILER_LEN: usize = 8;

/// The length of all that stands before a payload: frame header and fixed part.
pub const PREFIX_LEN: usize = HEADER_LEN + DATA_HEADER_LEN;

const LAST: u8 = 1;
const TRAILER: u8 = 2;

/// How the payload stands for the bytes of the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// The bytes themselves.
    Raw,
    /// No payload: every byte of the range is zero.
    Zero,
    /// So many bytes that the codec makes the range's bytes of: fewer than those.
    Packed(Codec, u32),
}

impl Encoding {
    /// The encoding that costs least for these bytes: zeroes need not travel.
    pub fn for_bytes(bytes: &[u8]) -> Self {
        // All are zero if the first is and each is like the one before it, which `memcmp` finds out
        // at the speed of memory; a loop over the bytes takes twenty times as long.
        match bytes {
            [first, rest @ ..] if *first == 0 && bytes[..rest.len()] == *rest => Encoding::Zero,
            _ => Encoding::Raw,
        }
    }
}

/// The fixed part of a data frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataHeader {
    /// Which bytes of the region the frame gives. It starts at a multiple of 4096; it ends at one
    /// too, or at the end of the region.
    pub range: ByteRange,
    /// The epoch that the bytes belong to.
    pub epoch: u64,
    /// How the payload stands for them.
    pub encoding: Encoding,
    /// Whether this frame is the last of its request, so that no END follows.
    pub last: bool,
    /// Whether a [`Trailer`] follows the payload.
    pub trailer: bool,
}

impl DataHeader {
    /// How many bytes of payload follow.
    pub fn payload_len(&self) -> usize {
        match self.encoding {
            Encoding::Raw => self.range.len() as usize,
            Encoding::Zero => 0,
            Encoding::Packed(_, length) => length as usize,
        }
    }

    /// How many bytes of body the frame has: fixed part, payload and trailer.
    pub fn body_len(&self) -> u32 {
        (DATA_HEADER_LEN + self.payload_len() + if self.trailer { TRAILER_LEN } else { 0 }) as u32
    }

    /// The header and the fixed part of the frame as bytes; payload and trailer follow.
    pub fn encode(&self, id: u64) -> [u8; PREFIX_LEN] {
        debug_assert!(self.range.len() <= u64::from(MAX_ZERO_SPAN));
        let header = super::Header { length: self.body_len(), kind: super::FrameType::DATA, id };
        let mut bytes = [0; PREFIX_LEN];
        bytes[..HEADER_LEN].copy_from_slice(&header.encode());
        let fixed = &mut bytes[HEADER_LEN..];
        fixed[0..8].copy_from_slice(&self.range.start.to_le_bytes());
        fixed[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        fixed[16..20].copy_from_slice(&(self.range.len() as u32).to_le_bytes());
        fixed[20] = match self.encoding {
            Encoding::Raw => 0,
            Encoding::Zero => 1,
            Encoding::Packed(Codec::Lz4, _) => 2,
            Encoding::Packed(Codec::Zstd, _) => 3,
        };
        fixed[21] = if self.last { LAST } else { 0 } | if self.trailer { TRAILER } else { 0 };
        bytes
    }

    /// The fixed part, payload and trailer of a frame whose body is `body`.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the parts do not fit together, if the range is empty, not aligned or too
    /// long, or if the encoding is one that version 1 does not have.
    pub fn decode(body: &[u8]) -> Result<(Self, &[u8], Option<Trailer>), Malformed> {
        let mut fields = Fields::new("DATA", body);
        let start = fields.u64()?;
        let epoch = fields.u64()?;
        let span = fields.u32()?;
        let encoding = match fields.u8()? {
            0 => Encoding::Raw,
            1 => Encoding::Zero,
            codec @ (2 | 3) => {
                let codec = if codec == 2 { Codec::Lz4 } else { Codec::Zstd };
                Encoding::Packed(codec, body.len().saturating_sub(DATA_HEADER_LEN) as u32)
            }
            other => return Err(fields.bad(format!("encoding {other} was not agreed on"))),
        };
        let flags = fields.u8()?;
        let reserved = fields.u16()?;
        if flags & !(LAST | TRAILER) != 0 || reserved != 0 {
            return Err(fields.bad("flags that version 1 does not have are set"));
        }
        let longest = match encoding {
            Encoding::Raw | Encoding::Packed(..) => MAX_PAYLOAD,
            Encoding::Zero => MAX_ZERO_SPAN,
        };
        if let Encoding::Packed(_, length) = encoding
            && (flags & TRAILER != 0 || length == 0 || length >= span)
        {
            return Err(fields.bad(format!("{length} compressed bytes for a range of {span}, or a trailer")));
        }
        if span == 0 || span > longest || !start.is_multiple_of(PAGE_SIZE) {
            return Err(fields.bad(format!("a range of {span} bytes at {start}")));
        }
        let range = ByteRange::checked(start, u64::from(span))
            .ok_or_else(|| fields.bad("a range passes the end of the address space"))?;
        let data = Self { range, epoch, encoding, last: flags & LAST != 0, trailer: flags & TRAILER != 0 };
        if body.len() != data.body_len() as usize {
            return Err(fields.bad(format!("{} bytes of body for a range of {span}", body.len())));
        }
        let (payload, trailer) = fields.rest().split_at(data.payload_len());
        let trailer = if data.trailer { Some(Trailer::decode(trailer)?) } else { None };
        Ok((data, payload, trailer))
    }
}

/// What stands behind a payload: whether it is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trailer {
    /// The payload holds the bytes of the range.
    Good,
    /// The payload is filling; the request has failed with this kind of error.
    Failed(RemoteErrorKind),
}

impl Trailer {
    /// The trailer as bytes.
    pub fn encode(self) -> [u8; TRAILER_LEN] {
        let status = match self {
            Trailer::Good => 0,
            Trailer::Failed(kind) => u32::from(kind.code()),
        };
        let mut bytes = [0; TRAILER_LEN];
        bytes[..4].copy_from_slice(&status.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("DATA trailer", bytes);
        let status = fields.u32()?;
        let reserved = fields.u32()?;
        if reserved != 0 {
            return Err(fields.bad("a checksum that was not agreed on"));
        }
        fields.end()?;
        match u16::try_from(status) {
            Ok(0) => Ok(Trailer::Good),
            Ok(code) => Ok(Trailer::Failed(RemoteErrorKind::from_code(code))),
            Err(_) => Err(Malformed::new("DATA trailer", format!("status {status}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(data: DataHeader, trailer: Trailer) -> Vec<u8> {
        let mut bytes = data.encode(9).to_vec();
        bytes.extend(std::iter::repeat_n(0xab, data.payload_len()));
        if data.trailer {
            bytes.extend(trailer.encode());
        }
        bytes
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            page in 0u64..1 << 40, span in 2u32..=20_000, epoch: u64, how in 0u8..4, last: bool, with_trailer: bool,
            code in 0u16..20, packed: proptest::sample::Index,
        ) {
            let start = page * PAGE_SIZE;
            let length = 1 + packed.index(span as usize - 1) as u32;
            let encoding = [
                Encoding::Raw,
                Encoding::Zero,
                Encoding::Packed(Codec::Lz4, length),
                Encoding::Packed(Codec::Zstd, length),
            ][usize::from(how)];
            let data = DataHeader {
                range: ByteRange::new(start, start + u64::from(span)),
                epoch,
                encoding,
                last,
                trailer: with_trailer && how < 2,
            };
            let trailer = if code == 0 { Trailer::Good } else { Trailer::Failed(RemoteErrorKind::from_code(code)) };
            let bytes = frame(data, trailer);
            let (decoded, payload, got) = DataHeader::decode(&bytes[HEADER_LEN..]).unwrap();
            prop_assert_eq!(decoded, data);
            prop_assert_eq!(payload.len(), data.payload_len());
            prop_assert_eq!(got, data.trailer.then_some(trailer));
            // Whatever is cut off is noticed; of what is compressed, when it is opened.
            let is_packed = matches!(encoding, Encoding::Packed(..));
            prop_assert!(is_packed || DataHeader::decode(&bytes[HEADER_LEN..bytes.len() - 1]).is_err());
        }

        #[test]
        fn garbage_is_refused_or_decoded_but_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = DataHeader::decode(&body);
        }
    }

    #[test]
    fn zeroes_need_not_travel_and_all_else_must() {
        let mut bytes = [0; 300];
        assert_eq!(Encoding::for_bytes(&bytes), Encoding::Zero);
        for at in [0, 1, 150, 298, 299] {
            bytes[at] = 1;
            assert_eq!(Encoding::for_bytes(&bytes), Encoding::Raw, "byte {at}");
            bytes[at] = 0;
        }
        assert_eq!(Encoding::for_bytes(&[7; 300]), Encoding::Raw);
        assert_eq!(Encoding::for_bytes(&[]), Encoding::Raw);
    }

    #[test]
    fn unaligned_empty_and_overlong_ranges_are_refused() {
        let good = DataHeader {
            range: ByteRange::new(4096, 8192),
            epoch: 1,
            encoding: Encoding::Raw,
            last: true,
            trailer: true,
        };
        let body = frame(good, Trailer::Good)[HEADER_LEN..].to_vec();
        assert!(DataHeader::decode(&body).is_ok());
        for (at, value) in [(0, 1u8), (16, 1), (20, 2), (20, 4), (21, 4), (22, 1), (body.len() - 1, 1)] {
            let mut bad = body.clone();
            bad[at] = value;
            assert!(DataHeader::decode(&bad).is_err(), "byte {at} = {value}");
        }
        let zero = DataHeader { encoding: Encoding::Zero, trailer: false, ..good };
        let mut body = frame(zero, Trailer::Good)[HEADER_LEN..].to_vec();
        body[16..20].copy_from_slice(&(MAX_ZERO_SPAN + 4096).to_le_bytes());
        assert!(DataHeader::decode(&body).is_err());
        body[16..20].copy_from_slice(&0u32.to_le_bytes());
        assert!(DataHeader::decode(&body).is_err());
    }
}
