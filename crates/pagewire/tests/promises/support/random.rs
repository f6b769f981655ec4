//! Random numbers that a seed decides: SplitMix64 (Steele, Lea, Flood, 2014).

pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below `below`.
    pub(crate) fn draw(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    /// Random bytes.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.draw(u64::MAX).to_le_bytes()[..chunk.len()]);
        }
        bytes
    }
}

/// The seed that `PAGEWIRE_TEST_SEED` names, else this one. It is printed, so that a run can be repeated.
pub(crate) fn seed(default: u64) -> u64 {
    let named = std::env::var("PAGEWIRE_TEST_SEED").ok();
    let seed = named.map_or(default, |seed| seed.parse().expect("PAGEWIRE_TEST_SEED is a number"));
    eprintln!("PAGEWIRE_TEST_SEED={seed}");
    seed
}
