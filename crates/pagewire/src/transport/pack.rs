//! Compression of what one connection sends, and its opposite.
//!
//! Core's [`Packing`] decides; this measures and does it. What is opened is never longer than its frame says it is, which is
//! a megabyte at most, and is refused where it is shorter: so a frame that lies costs what an honest one does.

use std::cell::RefCell;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use pagewire_core::pack::{Agreed, Codec, Packing};
use pagewire_core::wire::Malformed;

use super::connection::Connection;

/// The fastest of Zstandard's usual levels: the next ones gain a few per cent at twice the time.
const LEVEL: i32 = 1;

/// How often the link is looked at, in bytes.
const MEASURE: u64 = 512 << 10;

/// How long a slow link may take to deliver as much.
const LONG: Duration = Duration::from_millis(50);

/// What compresses the frames of one connection.
pub(crate) struct Packer {
    agreed: Agreed,
    state: Mutex<State>,
}

struct State {
    packing: Packing,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    /// How many bytes were sent since the link was looked at.
    unmeasured: u64,
    /// What the link had done by then.
    delivered: (u64, Duration),
    /// What a frame was compressed to. Only one frame is sent at a time.
    buffer: Vec<u8>,
}

impl Packer {
    /// For a connection whose sides have agreed on this.
    pub(crate) fn new(agreed: Agreed) -> Self {
        let state = State {
            packing: Packing::new(agreed),
            zstd: None,
            unmeasured: 0,
            delivered: (0, Duration::ZERO),
            buffer: Vec::new(),
        };
        Self { agreed, state: Mutex::new(state) }
    }

    /// What the sides have agreed on.
    pub(crate) fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// How to send the next frame: by this codec, or as it is.
    pub(crate) fn choose(&self) -> Option<Codec> {
        if self.agreed.is_none() {
            return None;
        }
        self.state.lock().expect("no holder panics").packing.choose()
    }

    /// Compresses a frame's payload. None where it is not worth sending so.
    pub(crate) fn pack(&self, codec: Codec, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut state = self.state.lock().expect("no holder panics");
        let State { packing, zstd, buffer, .. } = &mut *state;
        let begun = Instant::now();
        let packed = match codec {
            Codec::Lz4 => {
                buffer.resize(lz4_flex::block::get_maximum_output_size(bytes.len()), 0);
                lz4_flex::block::compress_into(bytes, buffer).ok()
            }
            Codec::Zstd => {
                buffer.resize(zstd::zstd_safe::compress_bound(bytes.len()), 0);
                if zstd.is_none() {
                    *zstd = zstd::bulk::Compressor::new(LEVEL).ok();
                }
                zstd.as_mut().and_then(|zstd| zstd.compress_to_buffer(bytes, &mut buffer[..]).ok())
            }
        };
        let length = packed?;
        let smaller = length < bytes.len() && length > 0;
        let worth = packing.packed(codec, bytes.len(), length, begun.elapsed());
        (worth && smaller).then(|| buffer[..length].to_vec())
    }

    /// So many bytes have gone into the socket of the connection.
    pub(crate) fn sent(&self, bytes: u64, connection: &Connection) {
        if self.agreed.is_none() || self.agreed.always() {
            return;
        }
        let mut state = self.state.lock().expect("no holder panics");
        state.unmeasured += bytes;
        if state.unmeasured < MEASURE {
            return;
        }
        let Some((delivered, busy)) = connection.delivered() else { return };
        let (before, was_busy) = state.delivered;
        let (bytes, took) = (delivered.saturating_sub(before), busy.saturating_sub(was_busy));
        // What has only just gone out says nothing.
        if bytes >= MEASURE || took >= LONG {
            state.packing.delivered(bytes, took);
            (state.delivered, state.unmeasured) = ((delivered, busy), 0);
        }
    }
}

thread_local! {
    static OPENED: RefCell<(Vec<u8>, Option<zstd::bulk::Decompressor<'static>>)> = const { RefCell::new((Vec::new(), None)) };
}

/// Calls `with` with the `length` bytes that `packed` stands for.
///
/// # Errors
///
/// [`Malformed`] where it is something else, or was not `agreed` on.
pub(crate) fn unpack<T>(
    agreed: Agreed,
    codec: Codec,
    packed: &[u8],
    length: usize,
    with: impl FnOnce(&[u8]) -> T,
) -> Result<T, Malformed> {
    let malformed = |reason: String| Malformed { frame: "a compressed frame", reason };
    if !agreed.has(codec) {
        return Err(malformed(format!("{codec:?} was not agreed on")));
    }
    // Taken out while in use, so that whoever is called may receive another.
    let (mut buffer, mut zstd) = OPENED.take();
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    let place = &mut buffer[..length];
    let opened = match codec {
        Codec::Lz4 => lz4_flex::block::decompress_into(packed, place).map_err(|error| error.to_string()),
        Codec::Zstd => {
            if zstd.is_none() {
                zstd = zstd::bulk::Decompressor::new().ok();
            }
            let decompressor =
                zstd.as_mut().ok_or_else(|| malformed("there is no memory to open it".into()))?;
            decompressor.decompress_to_buffer(packed, place).map_err(|error| error.to_string())
        }
    };
    let result = match opened {
        Ok(got) if got == length => Ok(with(&buffer[..length])),
        Ok(got) => Err(malformed(format!("it holds {got} bytes, not {length}"))),
        Err(error) => Err(malformed(error)),
    };
    OPENED.set((buffer, zstd));
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagewire_core::pack::Compression;
    use proptest::prelude::*;

    fn packer(codec: Codec) -> Packer {
        let offered = Compression::Always(codec).offered();
        Packer::new(offered.with(Compression::Auto.offered()))
    }

    #[test]
    fn what_is_packed_is_unpacked_and_noise_is_left_alone() {
        let text: Vec<u8> = (0..1 << 20).map(|at: usize| (at / 100 % 7) as u8).collect();
        let mut state = 1u64;
        let noise: Vec<u8> = (0..100_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        for codec in Codec::ALL {
            let packer = packer(codec);
            assert_eq!(packer.choose(), Some(codec));
            for length in [1 << 20, 4096, 70_001] {
                let packed = packer.pack(codec, &text[..length]).expect("it gets smaller");
                assert!(packed.len() < length / 4, "{codec:?}: {}", packed.len());
                let same = unpack(packer.agreed(), codec, &packed, length, |bytes| bytes == &text[..length]);
                assert_eq!(same, Ok(true));
                // Another length than it has, and what is cut off.
                for wrong in [length - 1, length + 1, 0] {
                    assert!(
                        unpack(packer.agreed(), codec, &packed, wrong, |_| ()).is_err(),
                        "{codec:?} {wrong}"
                    );
                }
                assert!(unpack(packer.agreed(), codec, &packed[..packed.len() / 2], length, |_| ()).is_err());
            }
            assert!(packer.pack(codec, &noise).is_none());
            assert!(unpack(Agreed::NONE, codec, &[1, 2, 3], 9, |_| ()).is_err(), "it was not agreed on");
        }
    }

    #[test]
    fn a_bomb_costs_what_its_frame_says() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        assert!(bomb.len() < 16 << 10);
        let agreed = Compression::Auto.offered();
        assert!(unpack(agreed, Codec::Zstd, &bomb, 1 << 20, |_| ()).is_err());
        let bomb = lz4_flex::block::compress(&vec![0; 64 << 20]);
        assert!(unpack(agreed, Codec::Lz4, &bomb, 1 << 20, |_| ()).is_err());
        assert!(OPENED.with_borrow(|(buffer, _)| buffer.capacity()) <= 2 << 20);
    }

    proptest! {
        #[test]
        fn any_bytes_are_opened_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), length in 0usize..9000) {
            for codec in Codec::ALL {
                let _ = unpack(Compression::Auto.offered(), codec, &bytes, length, |opened| assert_eq!(opened.len(), length));
            }
        }

        #[test]
        fn one_byte_that_is_another_is_opened_or_refused(at: prop::sample::Index, value: u8) {
            let text: Vec<u8> = (0..20_000).map(|at: usize| (at / 50 % 11) as u8).collect();
            for codec in Codec::ALL {
                let mut packed = packer(codec).pack(codec, &text).expect("smaller");
                let at = at.index(packed.len());
                packed[at] = value;
                let _ = unpack(Compression::Auto.offered(), codec, &packed, text.len(), |opened| assert_eq!(opened.len(), text.len()));
            }
        }
    }
}
