//! The images of a latent stream: latents, classes and sampler noise of each are functions of (seed, stream, index).

use crate::model::{Conditioning, Denoiser, Model, one_hot, random_classes};
use crate::sampler::SamplerConfig;
use crate::solver::{Samples, Solver, State};
use lcsc_torch::{Device, Kind, Result, Stream, Tensor, derive_seed, latents};
use lcsc_unet::ImageShape;
use serde::{Deserialize, Serialize};

/// Which images: `first..first+n` of a latent stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// Seed of the stream.
    pub seed: u64,
    /// What the images are for.
    pub stream: Stream,
    /// Index of the first image.
    pub first: u64,
    /// N, the number of images.
    pub n: usize,
}

/// Which images to sample: the first `n` of a latent stream, `chunk` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

impl LatentSet {
    /// The same images in chunks so small that each of `ranks` has some.
    #[must_use]
    pub fn among(self, ranks: usize) -> Self {
        Self { chunk: self.chunk.min(self.n.div_ceil(ranks as u64)).max(1), ..self }
    }

    /// The chunks.
    pub fn draws(&self) -> Vec<Draw> {
        let Self { seed, stream, n, chunk } = *self;
        let chunk = chunk.max(1);
        let draw = |first| Draw { seed, stream, first, n: chunk.min(n - first) as usize };
        (0..n).step_by(chunk as usize).map(draw).collect()
    }
}

/// The images `first..first+n` of a latent stream, without gradient: latents, classes and sampler noise of each image
/// are functions of (seed, stream, index), so that they do not depend on how many are made at once.
///
/// # Errors
/// The device has no room for the latents.
pub fn generate(
    net: &Denoiser,
    config: &SamplerConfig,
    seed: u64,
    stream: Stream,
    first: u64,
    n: usize,
    device: Device,
) -> Result<Samples> {
    let source = Source::new(config, net.model(), Draw { seed, stream, first, n }, device)?;
    let denoise = |x: &Tensor, sigma: f64| source.denoise(net, x, sigma);
    lcsc_torch::tch::no_grad(|| source.solver.try_sample(&source.z, denoise, |i| source.noise(i)))
}

/// All that images of a draw are made from beside the weights.
pub(crate) struct Source<'c> {
    config: &'c SamplerConfig,
    solver: Solver<'c>,
    image: ImageShape,
    draw: Draw,
    device: Device,
    /// Unit normal latents f32 [N,C,H,W].
    z: Tensor,
    conditioning: Conditioning,
}

impl<'c> Source<'c> {
    pub(crate) fn new(config: &'c SamplerConfig, model: &'c Model, draw: Draw, device: Device) -> Result<Self> {
        let (image, solver) = (model.image, Solver::new(config, &model.preconditioning));
        let Draw { seed, stream, first, n } = draw;
        let z = latents(seed, stream, first, n, image.chw(), device)?;
        let classes = random_classes(derive_seed(seed, stream, 0), first, n, image.label_dim, device);
        let conditioning = Conditioning { labels: one_hot(classes.as_ref(), image.label_dim), augment_labels: None };
        Ok(Self { config, solver, image, draw, device, z, conditioning })
    }

    /// The state x_0 of the sampler.
    pub(crate) fn first_state(&self) -> State {
        self.solver.first_state(&self.z)
    }

    /// The sampler's state after step i.
    pub(crate) fn step(&self, net: &Denoiser, i: usize, state: &State) -> Result<State> {
        self.solver.step(i, state, |x, sigma| self.denoise(net, x, sigma), |k| self.noise(k))
    }

    /// D(x;σ) f32 [N,C,H,W] for the classes of the draw, guided towards them where the sampler says so.
    fn denoise(&self, net: &Denoiser, x: &Tensor, sigma: f64) -> Tensor {
        let sigma = Tensor::full([self.draw.n as i64], sigma, (Kind::Float, self.device));
        let denoise = |conditioning| net.denoise(x, &sigma, self.config.scalings(), conditioning, false);
        let conditional = denoise(&self.conditioning);
        match self.config.guidance() {
            None => conditional,
            Some(w) => {
                let unconditional = denoise(&Conditioning::default());
                &unconditional + (conditional - &unconditional) * w
            }
        }
    }

    /// The i-th unit normal noise f32 [N,C,H,W] that a stochastic sampler adds.
    fn noise(&self, i: usize) -> Result<Tensor> {
        let Draw { seed, stream, first, n } = self.draw;
        let seed = derive_seed(derive_seed(seed, stream, 0), Stream::SamplerNoise, i as u64);
        latents(seed, Stream::SamplerNoise, first, n, self.image.chw(), self.device)
    }
}
