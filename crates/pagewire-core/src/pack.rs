//! Whether to compress what is sent next, and how: by what the link and the processor have been seen to do.
//!
//! To send a byte as it is takes as long as the link takes for it. To compress it first takes the processor's time for it,
//! and then the link's for what is left. [`Packing`] measures all three (the link's rate, each codec's speed, what each
//! leaves) on what is sent anyway, and takes what is fastest. So a fast link is never slowed down by as much as an attempt:
//! attempts are made only where even a hopeful guess of their outcome says that they pay.
//!
//! Bytes that do not get smaller are left alone, and tried again more and more seldom.

use std::time::Duration;

/// What can be done to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// LZ4 blocks: fast.
    Lz4,
    /// Zstandard frames: smaller.
    Zstd,
}

impl Codec {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Lz4, Self::Zstd];
}

/// What two sides have agreed on, as bits of the features in their handshakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Agreed(u64);

const LZ4: u64 = 1;
const ZSTD: u64 = 2;
const ALWAYS: u64 = 4;

impl Agreed {
    /// Nothing is compressed.
    pub const NONE: Self = Self(0);

    /// What these features say of compression; of others nothing is known here.
    pub const fn from_features(features: u64) -> Self {
        let codecs = features & (LZ4 | ZSTD);
        Self(if codecs == 0 { 0 } else { codecs | features & ALWAYS })
    }

    /// The features that say it.
    pub const fn features(self) -> u64 {
        self.0
    }

    /// What both sides know: what one offers and the other takes. Either may ask for it always.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        let codecs = self.0 & other.0 & (LZ4 | ZSTD);
        Self::from_features(codecs | (self.0 | other.0) & ALWAYS)
    }

    /// Whether this codec may be used.
    pub const fn has(self, codec: Codec) -> bool {
        let bit = match codec {
            Codec::Lz4 => LZ4,
            Codec::Zstd => ZSTD,
        };
        self.0 & bit != 0
    }

    /// Whether nothing is compressed.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether to compress however fast the link is.
    pub const fn always(self) -> bool {
        self.0 & ALWAYS != 0
    }
}

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Whatever is fastest.
    #[default]
    Auto,
    /// Nothing is compressed.
    Off,
    /// This codec, unless the bytes do not get smaller.
    Always(Codec),
}

impl Compression {
    /// What a side that wants this offers.
    pub const fn offered(self) -> Agreed {
        Agreed(match self {
            Compression::Auto => LZ4 | ZSTD,
            Compression::Off => 0,
            Compression::Always(Codec::Lz4) => LZ4 | ALWAYS,
            Compression::Always(Codec::Zstd) => ZSTD | ALWAYS,
        })
    }
}

/// What is taken for a codec's speed (bytes a second) and for what it leaves until it has been seen: hopeful ones.
const GUESSES: [(f64, f64); 2] = [(1.0e9, 0.4), (400.0e6, 0.25)];

/// What is left of bytes that are not worth the attempt.
const INCOMPRESSIBLE: f64 = 0.95;

/// How many frames are left alone after the first that did not get smaller, and after many.
const REST: (u32, u32) = (4, 256);

/// The choice for one connection.
#[derive(Debug, Clone)]
pub struct Packing {
    agreed: Agreed,
    /// Bytes a second; none until it is known.
    link: Option<f64>,
    seen: [Seen; 2],
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    speed: f64,
    left: f64,
    /// How many frames are left alone from now on.
    rests: u32,
    /// And how many after the next that does not get smaller.
    next_rest: u32,
}

impl Packing {
    /// What was agreed on, and nothing known.
    pub fn new(agreed: Agreed) -> Self {
        let seen = GUESSES.map(|(speed, left)| Seen { speed, left, rests: 0, next_rest: REST.0 });
        Self { agreed, link: None, seen }
    }

    /// What was agreed on.
    pub fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// How to send the next frame: by this codec, or as it is.
    pub fn choose(&mut self) -> Option<Codec> {
        if self.agreed.is_none() {
            return None;
        }
        let link = match self.link {
            _ if self.agreed.always() => 0.0,
            None => return None,
            Some(link) => link,
        };
        // Seconds for a byte. A link of no speed leaves the smallest.
        let on_link = if link > 0.0 { 1.0 / link } else { 1.0 };
        let mut best = (on_link, None);
        for codec in Codec::ALL.into_iter().filter(|codec| self.agreed.has(*codec)) {
            let seen = &mut self.seen[codec as usize];
            if seen.rests > 0 {
                seen.rests -= 1;
                continue;
            }
            let left = if seen.left > INCOMPRESSIBLE { GUESSES[codec as usize].1 } else { seen.left };
            let cost = 1.0 / seen.speed + left * on_link;
            if cost < best.0 {
                best = (cost, Some(codec));
            }
        }
        best.1
    }

    /// A frame was compressed: from so many bytes to so many, in that time. Answers whether it is worth sending so.
    pub fn packed(&mut self, codec: Codec, from: usize, to: usize, took: Duration) -> bool {
        let seen = &mut self.seen[codec as usize];
        let left = to as f64 / from.max(1) as f64;
        let speed = from as f64 / took.as_secs_f64().max(1e-9);
        seen.speed += (speed - seen.speed) / 4.0;
        if left > INCOMPRESSIBLE {
            seen.left = left;
            seen.rests = seen.next_rest;
            seen.next_rest = (seen.next_rest * 2).min(REST.1);
            return false;
        }
        seen.next_rest = REST.0;
        seen.left = if seen.left > INCOMPRESSIBLE { left } else { seen.left + (left - seen.left) / 4.0 };
        true
    }

    /// The link has taken that time to deliver so many bytes.
    pub fn delivered(&mut self, bytes: u64, took: Duration) {
        let rate = bytes as f64 / took.as_secs_f64().max(1e-9);
        self.link = Some(self.link.map_or(rate, |link| link + (rate - link) / 2.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 256 << 10;

    fn seconds(bytes: usize, rate: f64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / rate)
    }

    /// Sends frames over a link of that rate, of bytes that codecs leave so much of at such speeds. Answers how many
    /// frames went by each codec, and as they are, of those after the first.
    fn run(
        packing: &mut Packing,
        link: f64,
        codecs: [(f64, f64); 2],
        frames: usize,
    ) -> (usize, usize, usize) {
        let (mut lz4, mut zstd, mut raw) = (0, 0, 0);
        for _ in 0..frames {
            let (size, chosen) = match packing.choose() {
                None => (FRAME, None),
                Some(codec) => {
                    let (speed, left) = codecs[codec as usize];
                    let to = (FRAME as f64 * left) as usize;
                    match packing.packed(codec, FRAME, to, seconds(FRAME, speed)) {
                        true => (to, Some(codec)),
                        false => (FRAME, None),
                    }
                }
            };
            match chosen {
                Some(Codec::Lz4) => lz4 += 1,
                Some(Codec::Zstd) => zstd += 1,
                None => raw += 1,
            }
            packing.delivered(size as u64, seconds(size, link));
        }
        (lz4, zstd, raw)
    }

    fn auto() -> Packing {
        Packing::new(Compression::Auto.offered().with(Compression::Auto.offered()))
    }

    const TEXT: [(f64, f64); 2] = [(800.0e6, 0.4), (300.0e6, 0.25)];

    #[test]
    fn a_fast_link_is_not_slowed_down_by_a_single_attempt() {
        assert_eq!(run(&mut auto(), 2.0e9, TEXT, 1000), (0, 0, 1000));
    }

    #[test]
    fn a_slow_link_gets_the_smallest_and_one_in_between_the_fast_codec() {
        let (lz4, zstd, raw) = run(&mut auto(), 12.0e6, TEXT, 200);
        assert!(zstd > 180 && raw < 10, "{lz4} {zstd} {raw}");
        let (lz4, zstd, raw) = run(&mut auto(), 300.0e6, TEXT, 200);
        assert!(lz4 > 150 && raw < 30, "{lz4} {zstd} {raw}");
    }

    #[test]
    fn what_gets_no_smaller_is_left_alone_and_tried_again_seldom() {
        let mut packing = auto();
        let noise = [(900.0e6, 1.0), (500.0e6, 1.0)];
        let mut attempts = 0;
        for _ in 0..4000 {
            if let Some(codec) = packing.choose() {
                attempts += 1;
                assert!(!packing.packed(codec, FRAME, FRAME + 10, seconds(FRAME, noise[0].0)));
            }
            packing.delivered(FRAME as u64, seconds(FRAME, 10.0e6));
        }
        assert!((2..60).contains(&attempts), "{attempts}");
        // When it does get smaller again, that is found out.
        let (lz4, zstd, _) = run(&mut packing, 10.0e6, TEXT, 2000);
        assert!(lz4 + zstd > 1000, "{lz4} {zstd}");
    }

    #[test]
    fn who_wants_a_codec_always_gets_it_and_who_wants_none_gets_none() {
        for (codec, other) in [(Codec::Lz4, Codec::Zstd), (Codec::Zstd, Codec::Lz4)] {
            let agreed = Compression::Always(codec).offered().with(Compression::Auto.offered());
            assert!(agreed.has(codec) && !agreed.has(other) && agreed.always());
            let (lz4, zstd, raw) = run(&mut Packing::new(agreed), 9.0e9, TEXT, 100);
            let count = if codec == Codec::Lz4 { lz4 } else { zstd };
            assert_eq!((count, raw), (100, 0));
        }
        let none = Compression::Off.offered().with(Compression::Auto.offered());
        assert!(none.is_none() && none == Agreed::NONE);
        assert_eq!(run(&mut Packing::new(none), 1.0e6, TEXT, 100), (0, 0, 100));
        let apart =
            Compression::Always(Codec::Lz4).offered().with(Compression::Always(Codec::Zstd).offered());
        assert!(apart.is_none(), "they have nothing in common");
    }

    #[test]
    fn features_of_later_versions_say_nothing_here() {
        assert_eq!(Agreed::from_features(!0 << 3), Agreed::NONE);
        assert_eq!(Agreed::from_features(ALWAYS), Agreed::NONE);
        assert_eq!(Agreed::from_features(!0).features(), 7);
    }
}
