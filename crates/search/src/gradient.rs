//! The gradient of the Fréchet distance of sampled images with respect to the parameters, for any number of images and any
//! sampler.

use lcsc_diffusion::{Draw, LatentSet, Model, SamplerConfig, generate, generate_backward};
use lcsc_metrics::Scorer;
use lcsc_torch::tch::{no_grad, with_grad};
use lcsc_torch::{Device, Error, Kind, Result, Tensor, Weights};

/// The slope of what replaces the clamp of pixels to [−1,1] outside of it, so that a gradient leads back.
const LEAK: f64 = 0.01;

/// A model, and how its images are made and judged.
#[derive(Clone, Copy)]
pub(crate) struct Objective<'a> {
    pub(crate) model: &'a Model,
    pub(crate) sampler: &'a SamplerConfig,
    pub(crate) scorer: &'a Scorer,
    pub(crate) device: Device,
}

impl Objective<'_> {
    /// F and ∂F/∂θ f32 [P] of the images of a latent set; F = +∞ with a gradient of zero where images are not finite.
    ///
    /// Two passes, so that memory depends on the chunk alone: the first has no graph and gives all features, hence μ, Σ
    /// and the closed form of ∂F/∂features; the second repeats each chunk with a graph and feeds ∂F/∂features back. Images
    /// that fit one chunk need one pass.
    pub(crate) fn value_and_gradient(&self, weights: &Weights, latents: LatentSet) -> Result<(f64, Tensor)> {
        let chunks = latents.draws();
        if let [draw] = chunks[..] {
            let mut fd = f64::INFINITY;
            let gradient = self.backward(weights, draw, |features| {
                let gradient = self.scorer.reference.gradient(features)?;
                fd = gradient.distance;
                Ok(gradient.features)
            })?;
            let gradient = if fd.is_finite() { gradient } else { gradient.f_zeros_like()? };
            return Ok((fd, gradient));
        }
        let features = no_grad(|| self.features(weights, &chunks))?;
        let gradient = self.scorer.reference.gradient(&features)?;
        let mut theta_bar = weights.theta.f_detach()?.f_zeros_like()?;
        if gradient.distance.is_finite() {
            let mut first = 0;
            for &draw in &chunks {
                let part = gradient.features.f_narrow(0, first, draw.n as i64)?;
                let _ = theta_bar.f_add_(&self.backward(weights, draw, |_| Ok(part))?)?;
                first += draw.n as i64;
            }
        }
        Ok((gradient.distance, theta_bar))
    }

    /// Features f32 [N,D] of all chunks.
    fn features(&self, weights: &Weights, chunks: &[Draw]) -> Result<Tensor> {
        let net = self.model.bind(weights)?;
        let chunk = |d: &Draw| {
            let images = generate(&net, self.sampler, d.seed, d.stream, d.first, d.n, self.device)?.images;
            self.scorer.extractor.forward(&leaky_clamp(&images))
        };
        Ok(Tensor::f_cat(&chunks.iter().map(chunk).collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// Σ_i ⟨∂F/∂f_i, ∂f_i/∂θ⟩ over the images of a draw, where `cotangent` gives ∂F/∂f of features f [n,D].
    fn backward(
        &self,
        weights: &Weights,
        draw: Draw,
        cotangent: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        generate_backward(self.model, weights, self.sampler, draw, self.device, |images| {
            let images = images.f_detach()?.f_set_requires_grad(true)?;
            let features = with_grad(|| self.scorer.extractor.forward(&leaky_clamp(&images)))?;
            let f_bar = cotangent(&features.f_detach()?)?.f_to_device_(self.device, Kind::Float, false, false)?;
            let dot = with_grad(|| features.f_mul(&f_bar)?.f_sum(Kind::Float))?;
            let mut grads = Tensor::f_run_backward(&[dot], &[&images], false, false)?;
            // What leads nowhere (an image of NaN) must not lead astray.
            let x_bar = grads.pop().ok_or_else(|| Error::msg("no gradient with respect to the images"))?;
            Ok(x_bar.f_nan_to_num(0.0, 0.0, 0.0)?)
        })
    }
}

/// The identity on [−1,1], with a small slope outside.
fn leaky_clamp(x: &Tensor) -> Tensor {
    let inside = x.clamp(-1.0, 1.0);
    &inside + (x - &inside) * LEAK
}

#[cfg(test)]
mod tests;
