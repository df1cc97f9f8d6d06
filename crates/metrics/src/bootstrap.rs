//! How far a Fréchet distance is to be trusted: the bootstrap (Efron 1979).

use crate::frechet::Reference;
use crate::stats::FeatureStats;
use lcsc_torch::{Kind, Result, Stream, Tensor, bail, rng, unit_f64};

impl Reference {
    /// The standard deviation of the Fréchet distance over `replicates` resamples of the N features `[N,D]`, of any
    /// float type, each of N vectors drawn with replacement; infinite where a distance is.
    ///
    /// It says how the distance of N images scatters between sets of latents. The resamples' mean is no estimate of
    /// the distance (repeated images make it larger), and where generated and real features nearly agree the
    /// distance is no longer linear in their moments and the scatter comes out too large. A function of features,
    /// `replicates` and `seed`.
    ///
    /// # Errors
    /// Fewer than two replicates or features, another D than the reference's, or libtorch failed.
    pub fn bootstrap_std(&self, features: &Tensor, replicates: u64, seed: u64) -> Result<f64> {
        if replicates < 2 {
            bail!("a standard deviation needs at least 2 replicates, but there are {replicates}");
        }
        tch::no_grad(|| {
            let sample = Sample::new(features)?;
            let mut distances = Vec::new();
            for replicate in 0..replicates {
                distances.push(self.distance(&sample.weighted(&sample.draw(seed, replicate))?)?);
            }
            if distances.iter().any(|d| d.is_infinite()) {
                return Ok(f64::INFINITY);
            }
            let mean = distances.iter().sum::<f64>() / replicates as f64;
            let squares = distances.iter().map(|d| (d - mean).powi(2)).sum::<f64>();
            Ok((squares / (replicates - 1) as f64).sqrt())
        })
    }
}

/// Features that are resampled.
struct Sample {
    stats: FeatureStats,
    /// Features less their mean, f64 [N,D], on the features' device.
    centred: Tensor,
}

impl Sample {
    fn new(features: &Tensor) -> Result<Sample> {
        let stats = FeatureStats::of(features)?;
        let centred = features.f_to_kind(Kind::Double)?.f_sub(&stats.mean.f_to(features.device())?)?;
        Ok(Sample { stats, centred })
    }

    /// How often each of N vectors is drawn in N draws with replacement.
    fn draw(&self, seed: u64, replicate: u64) -> Vec<f64> {
        let mut rng = rng(seed, Stream::Features, replicate);
        let n = self.stats.n as usize;
        let mut counts = vec![0.0; n];
        for _ in 0..n {
            counts[(unit_f64(&mut rng) * n as f64) as usize] += 1.0;
        }
        counts
    }

    /// The statistics of N vectors among which vector i occurs `counts`[i] times: weights are cheaper than copies.
    fn weighted(&self, counts: &[f64]) -> Result<FeatureStats> {
        let (n, x) = (self.stats.n as f64, &self.centred);
        let w = Tensor::f_from_slice(counts)?.f_to(x.device())?;
        let delta = x.f_tr()?.f_mv(&w)? / n;
        let raw = x.f_tr()?.f_matmul(&x.f_mul(&w.f_unsqueeze(1)?)?)?;
        let cov = (raw - delta.f_outer(&delta)? * n) / (n - 1.0);
        let device = self.stats.mean.device();
        Ok(FeatureStats { n: self.stats.n, mean: &self.stats.mean + delta.f_to(device)?, cov: cov.f_to(device)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::{Device, latents};

    /// Normal features [n,d] of deviation 2.
    fn features(seed: u64, n: usize, d: i64) -> Tensor {
        latents(seed, Stream::SampleLatents, 0, n, [d, 1, 1], Device::Cpu).unwrap().view([n as i64, d]) * 2.0
    }

    /// N(1, I) of d dimensions.
    fn reference(d: i64) -> Reference {
        let cov = Tensor::eye(d, (Kind::Double, Device::Cpu));
        Reference::new(FeatureStats { n: 1000, mean: Tensor::ones([d], (Kind::Double, Device::Cpu)), cov }).unwrap()
    }

    #[test]
    fn weights_give_the_statistics_of_the_drawn_vectors() {
        let x = features(1, 30, 3) + 1000.0;
        let sample = Sample::new(&x).unwrap();
        let counts = sample.draw(5, 2);
        assert_eq!(counts.iter().sum::<f64>(), 30.0);
        assert!(counts.contains(&0.0) && counts.iter().any(|&c| c > 1.0));
        let rows: Vec<i64> = (0..30).flat_map(|i| vec![i as i64; counts[i] as usize]).collect();
        let expected = FeatureStats::of(&x.index_select(0, &Tensor::from_slice(&rows))).unwrap();
        let found = sample.weighted(&counts).unwrap();
        assert_eq!(found.n, 30);
        assert!(found.mean.allclose(&expected.mean, 1e-12, 0.0, false));
        assert!(found.cov.allclose(&expected.cov, 1e-10, 1e-10, false));
        assert!(sample.draw(5, 2) == counts && sample.draw(5, 3) != counts && sample.draw(6, 2) != counts);
    }

    #[test]
    fn the_deviation_equals_the_spread_over_independent_sets() {
        let reference = reference(4);
        let sets: Vec<Tensor> = (0..100).map(|seed| features(seed, 300, 4)).collect();
        let found: Vec<f64> = sets.iter().map(|f| reference.distance(&FeatureStats::of(f).unwrap()).unwrap()).collect();
        let mean = found.iter().sum::<f64>() / 100.0;
        let spread = (found.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / 99.0).sqrt();
        assert!((mean - 8.0).abs() < 0.3, "{mean}"); // 4·1² + 4·(2−1)²
        for set in &sets[..5] {
            // A deviation of 100 values is known to 7%, as is one of 100 replicates.
            let std = reference.bootstrap_std(set, 100, 0).unwrap();
            assert!(0.7 < std / spread && std / spread < 1.4, "{std} {spread}");
        }
    }

    #[test]
    fn the_result_is_a_function_of_the_seed() {
        let (reference, x) = (reference(4), features(1, 50, 4));
        let std = |seed| reference.bootstrap_std(&x, 10, seed).unwrap();
        assert_eq!(std(3), std(3));
        assert_ne!(std(3), std(4));
    }

    #[test]
    fn what_gives_no_deviation_is_refused_or_infinite() {
        let (reference, x) = (reference(4), features(1, 50, 4));
        let refused = |x: &Tensor, replicates| reference.bootstrap_std(x, replicates, 0).unwrap_err().to_string();
        assert!(refused(&x, 1).contains("at least 2 replicates, but there are 1"));
        assert!(refused(&x.narrow(0, 0, 1), 5).contains("at least 2 images"));
        assert!(refused(&features(1, 50, 3), 5).contains("3 features cannot be compared with 4"));
        let _ = x.get(7).fill_(f64::NAN);
        assert_eq!(reference.bootstrap_std(&x, 5, 0).unwrap(), f64::INFINITY);
    }
}
