//! The autocorrelation of a series, by way of its spectrum (Wiener and Khinchin): O(n log n).

use std::f64::consts::TAU;

/// How much a series is like itself, shifted by 0, 1, … `most` steps: correlation coefficients, each over the part where the
/// two overlap, from -1 to 1; 0 where one of them does not vary. The values are taken as they are: their mean should be 0.
///
/// # Panics
///
/// If `most` is not below the number of values.
pub(super) fn autocorrelation(values: &[f64], most: usize) -> Vec<f64> {
    let count = values.len();
    assert!(most < count, "shifted by more than there is");
    // As many zeroes behind it that no shift wraps around.
    let mut points: Vec<Complex> = values.iter().map(|value| (*value, 0.0)).collect();
    points.resize((2 * count).next_power_of_two(), (0.0, 0.0));
    transform(&mut points);
    for (re, im) in &mut points {
        (*re, *im) = (*re * *re + *im * *im, 0.0);
    }
    // The power is real and even, so that its transform is its inverse but for the scale.
    transform(&mut points);
    let scale = points.len() as f64;
    let mut energy = Vec::with_capacity(count + 1);
    energy.push(0.0);
    for value in values {
        energy.push(energy[energy.len() - 1] + value * value);
    }
    (0..=most)
        .map(|shift| {
            let norm = (energy[count - shift] * (energy[count] - energy[shift])).sqrt();
            let like = points[shift].0 / scale / norm;
            if like.is_finite() && norm > energy[count] * 1e-9 { like.clamp(-1.0, 1.0) } else { 0.0 }
        })
        .collect()
}

type Complex = (f64, f64);

/// The discrete Fourier transform, in place (Cooley and Tukey, radix 2).
fn transform(points: &mut [Complex]) {
    let count = points.len();
    let bits = count.trailing_zeros();
    for at in 1..count {
        let other = at.reverse_bits() >> (usize::BITS - bits);
        if at < other {
            points.swap(at, other);
        }
    }
    let roots: Vec<Complex> = (0..count / 2)
        .map(|at| {
            let (sin, cos) = (-TAU * at as f64 / count as f64).sin_cos();
            (cos, sin)
        })
        .collect();
    let mut half = 1;
    while half < count {
        for block in points.chunks_exact_mut(2 * half) {
            let (low, high) = block.split_at_mut(half);
            for ((a, b), root) in low.iter_mut().zip(high).zip(roots.iter().step_by(count / (2 * half))) {
                let turned = (b.0 * root.0 - b.1 * root.1, b.0 * root.1 + b.1 * root.0);
                *b = (a.0 - turned.0, a.1 - turned.1);
                *a = (a.0 + turned.0, a.1 + turned.1);
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_that_of_the_definition(values in prop::collection::vec(-1e6f64..1e6, 2..200)) {
            let count = values.len();
            let found = autocorrelation(&values, count - 1);
            for (shift, found) in found.iter().enumerate() {
                let (a, b) = (&values[..count - shift], &values[shift..]);
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let norm = (dot(a, a) * dot(b, b)).sqrt();
                if norm > dot(&values, &values) * 1e-6 {
                    prop_assert!((found - dot(a, b) / norm).abs() < 1e-6, "shift {shift}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_like_zeroes() {
        assert_eq!(autocorrelation(&[0.0; 9], 8), [0.0; 9]);
    }
}
