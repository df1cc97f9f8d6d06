//! The fitness of a model: the Fréchet distance of what it samples from fixed latents to the real images.

use crate::candidate::Model;
use crate::config::SearchConfig;
use crate::score::{Fitness, Latents, Scores};
use lcsc_diffusion::{Denoiser, SamplerConfig, generate};
use lcsc_metrics::{Scorer, StatsAccumulator, Suite};
use lcsc_torch::{Device, Result, Stream, Weights, bail, derive_seed, to_u8};
use lcsc_trajectory::Window;
use std::collections::BTreeMap;

/// Merges, samples and measures.
pub struct SampledFitness<'a> {
    /// The network.
    pub model: &'a lcsc_diffusion::Model,
    /// The checkpoints that coefficients combine.
    pub window: &'a Window,
    /// The EMA tracks as training recorded them.
    pub tracks: &'a BTreeMap<String, Weights>,
    /// Extractors and reference statistics.
    pub suite: &'a Suite,
    /// How images are made.
    pub sampler: &'a SamplerConfig,
    /// Numbers of images.
    pub config: &'a SearchConfig,
    /// Seed of the run.
    pub seed: u64,
    /// Where to sample.
    pub device: Device,
}

/// The weights of a candidate: merged from `window`, or one of the recorded `tracks`.
///
/// # Errors
/// A checkpoint cannot be read, or the track is not recorded.
pub fn candidate_weights(model: &Model, window: &Window, tracks: &BTreeMap<String, Weights>) -> Result<Weights> {
    match model {
        Model::Coefficients(alpha) => window.weights(alpha.as_slice()),
        Model::Track(name) => match tracks.get(name) {
            Some(weights) => Ok(weights.with_theta(weights.theta.shallow_clone())),
            None => bail!("the run has recorded no track `{name}`"),
        },
    }
}

impl Fitness for SampledFitness<'_> {
    fn score(&mut self, model: &Model, latents: Latents) -> Result<Scores> {
        let weights = candidate_weights(model, self.window, self.tracks)?;
        let net = self.model.bind(&weights)?;
        let Suite { primary, independent, pixels } = self.suite;
        let distances = |scorers: &[&Scorer], seed, stream, n| {
            let latents = LatentSet { seed, stream, n, chunk: self.config.chunk };
            sampled_distances(&net, self.sampler, scorers, latents, self.device)
        };
        let only = |fd: Vec<f64>| Scores { fd: fd[0], fd_independent: None, fd_pixel: None };
        match latents {
            Latents::Search => distances(&[primary], self.seed, Stream::SearchLatents, self.config.images).map(only),
            Latents::Selection => {
                distances(&[primary], self.seed, Stream::SelectionLatents, self.config.selection_images).map(only)
            }
            Latents::Report(index) => {
                let seed = derive_seed(self.seed, Stream::ReportLatents, index);
                let scorers = [primary, independent, pixels];
                let fd = distances(&scorers, seed, Stream::ReportLatents, self.config.report_images)?;
                Ok(Scores { fd: fd[0], fd_independent: Some(fd[1]), fd_pixel: Some(fd[2]) })
            }
        }
    }
}

/// Which images to sample: `n` of a latent stream, `chunk` at once.
#[derive(Debug, Clone, Copy)]
pub struct LatentSet {
    /// Seed of the latents.
    pub seed: u64,
    /// What they are for.
    pub stream: Stream,
    /// N, the number of images.
    pub n: u64,
    /// Images sampled at once; changes memory and speed, not the images.
    pub chunk: u64,
}

/// The Fréchet distance of one and the same N images to each scorer's reference; +∞ for all once a pixel is not finite.
///
/// # Errors
/// The device has no room, or libtorch failed.
pub fn sampled_distances(
    net: &Denoiser,
    sampler: &SamplerConfig,
    scorers: &[&Scorer],
    latents: LatentSet,
    device: Device,
) -> Result<Vec<f64>> {
    let LatentSet { seed, stream, n, chunk } = latents;
    let mut stats: Vec<StatsAccumulator> = scorers.iter().map(|s| s.accumulator()).collect();
    for first in (0..n).step_by(chunk.max(1) as usize) {
        let count = chunk.min(n - first) as usize;
        let images = generate(net, sampler, seed, stream, first, count, device)?.images;
        if images.isfinite().all().int64_value(&[]) == 0 {
            return Ok(vec![f64::INFINITY; scorers.len()]);
        }
        let images = to_u8(&images);
        for (scorer, stats) in scorers.iter().zip(&mut stats) {
            scorer.add(stats, &images)?;
        }
    }
    scorers.iter().zip(stats).map(|(scorer, stats)| scorer.score_accumulated(stats)).collect()
}
