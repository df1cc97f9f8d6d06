//! Randomness without stored generator state: every draw is a function of a seed, a named stream and a position.

use crate::chacha;
use crate::error::Result;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

/// What a random draw is for. Draws of different streams are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u64)]
pub enum Stream {
    /// Initial weights.
    Init = 1,
    /// Order of the training images.
    Order = 2,
    /// Augmentation of one image.
    Augment = 3,
    /// Noise level and noise of one training round.
    Noise = 4,
    /// Dropout masks of one training round.
    Dropout = 5,
    /// Latents of the search: the fitness of every candidate is measured on them.
    SearchLatents = 6,
    /// Latents of the selection: finalists are scored again on them.
    SelectionLatents = 7,
    /// Latents of the report, used once.
    ReportLatents = 8,
    /// Latents of pictures and of `lcsc sample`.
    SampleLatents = 9,
    /// Noise that a stochastic sampler adds.
    SamplerNoise = 10,
    /// Draws of a search method.
    Search = 11,
    /// Weights and batches of a feature extractor.
    Features = 12,
    /// Class labels of generated images.
    Labels = 13,
    /// Fresh latents of each step along a gradient.
    StepLatents = 14,
}

/// The 64-bit seed of draw `n` in a stream: SplitMix64's finaliser over the three numbers.
pub fn derive_seed(seed: u64, stream: Stream, n: u64) -> u64 {
    let mix = |z: u64| {
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let a = mix(seed.wrapping_add(GOLDEN));
    let b = mix(a ^ (stream as u64).wrapping_mul(GOLDEN));
    mix(b.wrapping_add(n.wrapping_mul(GOLDEN)).wrapping_add(GOLDEN))
}

/// A counter-based generator for draw `n` of a stream.
pub fn rng(seed: u64, stream: Stream, n: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(derive_seed(seed, stream, n))
}

/// Seeds torch's global generators on every device for draw `n` of a stream.
pub fn seed_torch(seed: u64, stream: Stream, n: u64) {
    tch::manual_seed((derive_seed(seed, stream, n) >> 1) as i64);
}

/// Uniform in [0, 1) with 53 random bits.
pub fn unit_f64(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// One standard normal number (Box–Muller, the cosine half).
pub fn standard_normal(rng: &mut impl Rng) -> f64 {
    normal_pair(rng).0
}

fn normal_pair(rng: &mut impl Rng) -> (f64, f64) {
    let radius = (-2.0 * (1.0 - unit_f64(rng)).ln()).sqrt();
    let angle = std::f64::consts::TAU * unit_f64(rng);
    (radius * angle.cos(), radius * angle.sin())
}

/// A permutation of `0..length`, draw `n` of a stream (Fisher–Yates).
pub fn permutation(length: usize, seed: u64, stream: Stream, n: u64) -> Vec<i64> {
    let mut rng = rng(seed, stream, n);
    let mut order: Vec<i64> = (0..length as i64).collect();
    for i in (1..length).rev() {
        // The high half of a 64×64-bit product: uniform in 0..=i up to 2⁻⁶⁴·(i+1).
        let j = (u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}

/// Unit normal latents, f32 `[N,C,H,W]` for the images `first..first+n`.
///
/// Image i is a function of (seed, stream, i) alone, whatever the batch it is drawn in. A GPU draws the same numbers itself,
/// up to the rounding of its logarithm and cosine.
///
/// # Errors
/// The device has no room.
pub fn latents(seed: u64, stream: Stream, first: u64, n: usize, chw: [i64; 3], device: Device) -> Result<Tensor> {
    let generators: Vec<_> = (first..first + n as u64).map(|image| rng(seed, stream, image)).collect();
    let size = chw.iter().product::<i64>();
    let values = match device {
        Device::Cpu => drawn(generators, size as usize)?,
        _ => chacha::normals(&generators, size, device)?,
    };
    let [c, h, w] = chw;
    Ok(values.f_view([n as i64, c, h, w])?)
}

/// The first `size` normal numbers of each generator, f32 [N·size].
fn drawn(generators: Vec<ChaCha8Rng>, size: usize) -> Result<Tensor> {
    let mut values = Vec::with_capacity(generators.len() * size + 1);
    for (image, mut rng) in generators.into_iter().enumerate() {
        let end = (image + 1) * size;
        while values.len() < end {
            let (a, b) = normal_pair(&mut rng);
            values.extend([a as f32, b as f32]);
        }
        values.truncate(end);
    }
    Ok(Tensor::f_from_slice(&values)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latents_do_not_depend_on_the_batch() {
        let whole = latents(7, Stream::SearchLatents, 0, 5, [3, 3, 3], Device::Cpu).unwrap();
        let tail = latents(7, Stream::SearchLatents, 3, 2, [3, 3, 3], Device::Cpu).unwrap();
        assert!(whole.narrow(0, 3, 2).equal(&tail));
        let other = latents(7, Stream::ReportLatents, 0, 5, [3, 3, 3], Device::Cpu).unwrap();
        assert!(!whole.equal(&other));
    }

    #[test]
    fn a_device_draws_what_the_host_draws() {
        for size in [1, 8, 27, 3072] {
            let generators: Vec<_> = (0..5).map(|i| rng(3, Stream::SampleLatents, i)).collect();
            let found = chacha::normals(&generators, size, Device::Cpu).unwrap();
            let expected = drawn(generators, size as usize).unwrap().view([5, size]);
            assert!((found - expected).abs().max().double_value(&[]) < 1e-6, "{size}");
        }
    }

    #[test]
    fn latents_are_unit_normal() {
        let z = latents(0, Stream::SearchLatents, 0, 2000, [1, 8, 8], Device::Cpu).unwrap();
        assert!(z.mean(None).double_value(&[]).abs() < 0.01);
        assert!((z.std(true).double_value(&[]) - 1.0).abs() < 0.01);
        let fourth = z.square().square().mean(None).double_value(&[]);
        assert!((fourth - 3.0).abs() < 0.1, "{fourth}");
    }

    #[test]
    fn derived_seeds_are_fixed_and_distinct() {
        // A changed value would change every stored run: the numbers are part of the format.
        assert_eq!(derive_seed(0, Stream::Init, 0), 0x1cd3_6414_3cce_4aae);
        let mut all: Vec<u64> = (0..4)
            .flat_map(|s| (0..4).flat_map(move |n| [Stream::Noise, Stream::Order].map(|t| derive_seed(s, t, n))))
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 32);
    }
}
