//! Offsets that no readahead foresees and bytes that nothing compresses, the same in every run.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The next of a sequence of 64-bit numbers that look random: SplitMix64 (G. L. Steele, D. Lea,
/// C. H. Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
pub fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Fills `bytes`, whose length is a multiple of 8, from the sequence.
pub fn fill(state: &mut u64, bytes: &mut [u8]) {
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&split_mix(state).to_ne_bytes());
    }
}

/// Makes `size` bytes of the sequence what the file holds.
///
/// # Errors
///
/// Where it cannot be written.
pub fn write_file(file: &File, size: u64) -> io::Result<()> {
    let (mut state, mut piece) = (1, vec![0; 1 << 20]);
    for at in (0..size).step_by(piece.len()) {
        fill(&mut state, &mut piece);
        file.write_all_at(&piece, at)?;
    }
    file.set_len(size)
}

/// All of the numbers below `count`, each once, with long steps: about 0.618 of the whole, and prime
/// to `count`. No two that follow each other are neighbours (but of the first few counts).
pub fn scattered(count: u64) -> impl Iterator<Item = u64> {
    let step = if count == 0 { 1 } else { step(count) };
    (0..count).map(move |index| (u128::from(index) * u128::from(step) % u128::from(count)) as u64)
}

fn step(count: u64) -> u64 {
    let mut step = (count as f64 * 0.618) as u64 | 1;
    while divisor(step, count) != 1 {
        step += 2;
    }
    step
}

/// The greatest common divisor.
fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_once_and_far_from_the_one_before() {
        for count in [0, 1, 2, 3, 10, 1000, 16_384, 16_385] {
            let mut all: Vec<u64> = scattered(count).collect();
            if count >= 1000 {
                assert!(all.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > count / 4), "of {count}");
            }
            all.sort_unstable();
            assert!(all.into_iter().eq(0..count), "of {count}");
        }
    }
}
