//! What a dataset is, in numbers.

use crate::dataset::{Dataset, bytes};
use lcsc_torch::Result;
use rayon::prelude::*;

/// Numbers of a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Number of images of each class; empty without labels.
    pub classes: Vec<u64>,
    /// Mean of each channel, of values in [−1,1].
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, of values in [−1,1]. That of all pixels is what EDM calls σ_data.
    pub std: Vec<f64>,
}

/// Counts classes and pixels of a dataset in host memory; sums are exact.
///
/// # Errors
/// The labels are on a device that fails.
pub fn summarize(data: &Dataset) -> Result<Summary> {
    let (_, channels, h, w) = data.images.size4()?;
    let mut classes = vec![0; data.classes as usize];
    let labels = data.labels.as_ref().map(Vec::<i64>::try_from).transpose()?;
    labels.iter().flatten().for_each(|&class| classes[class as usize] += 1);
    let counts = histograms(bytes(&data.images), channels as usize, (h * w) as usize);
    let (mean, std) = counts.iter().map(moments).unzip();
    Ok(Summary { classes, mean, std })
}

/// How often each value occurs in each channel.
fn histograms(pixels: &[u8], channels: usize, area: usize) -> Vec<[u64; 256]> {
    let none = || vec![[0; 256]; channels];
    let count = |mut counts: Vec<[u64; 256]>, image: &[u8]| {
        for (plane, counts) in image.chunks_exact(area).zip(&mut counts) {
            plane.iter().for_each(|&value| counts[usize::from(value)] += 1);
        }
        counts
    };
    let add = |mut a: Vec<[u64; 256]>, b: Vec<[u64; 256]>| {
        a.iter_mut().flatten().zip(b.iter().flatten()).for_each(|(a, b)| *a += b);
        a
    };
    pixels.par_chunks_exact(channels * area).fold(none, count).reduce(none, add)
}

/// Mean and standard deviation of values in [−1,1].
fn moments(counts: &[u64; 256]) -> (f64, f64) {
    let sum = |f: fn(u128) -> u128| (0..).zip(counts).map(|(value, &n)| f(value) * u128::from(n)).sum::<u128>();
    let (n, x, xx) = (sum(|_| 1), sum(|v| v), sum(|v| v * v));
    let (mean, variance) = (x as f64 / n as f64, (n * xx - x * x) as f64 / (n as f64 * n as f64));
    (mean / 127.5 - 1.0, variance.sqrt() / 127.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DataConfig;
    use indicatif::ProgressBar;
    use tch::Kind;

    #[test]
    fn the_digits_have_the_moments_that_torch_finds() {
        let data = Dataset::open(&DataConfig::default(), &ProgressBar::hidden()).unwrap();
        let summary = summarize(&data).unwrap();
        assert_eq!(summary.classes, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        let values = data.images.to_kind(Kind::Double) / 127.5 - 1.0;
        assert!((summary.mean[0] - values.mean(Kind::Double).double_value(&[])).abs() < 1e-12);
        assert!((summary.std[0] - values.std(false).double_value(&[])).abs() < 1e-12);
    }
}
