//! A network with its preconditioning: the denoiser D(x;σ) for any flat parameter vector.

use crate::precond::{Preconditioning, PreconditioningConfig, Scalings};
use crate::recordings::Recordings;
use lcsc_torch::{
    Device, Kind, ParamLayout, Params, Plan, Precision, Result, Stream, Tensor, Weights, default_threads, rng,
    unguarded,
};
use lcsc_unet::{ImageShape, Inputs, Network, NetworkConfig};
use rand_core::Rng;
use std::sync::{Mutex, PoisonError};

/// Parameters of the largest network whose images are sampled in several chunks at once.
const SMALL: i64 = 4_000_000;

/// An architecture, its layout and its preconditioning. Holds no weights.
pub struct Model {
    net: Network,
    /// Names and places of the parameters.
    pub layout: ParamLayout,
    /// The images it is for.
    pub image: ImageShape,
    /// What surrounds the network.
    pub preconditioning: Preconditioning,
    /// The type that the network computes in.
    pub precision: Precision,
    /// How the network is computed.
    pub plan: Plan,
    recordings: Mutex<Recordings>,
}

/// What a network is told beside image and noise level.
#[derive(Debug, Default)]
pub struct Conditioning {
    /// One-hot classes f32 `[B,label_dim]`.
    pub labels: Option<Tensor>,
    /// Augmentation labels f32 `[B,augment_dim]`.
    pub augment_labels: Option<Tensor>,
}

impl Model {
    /// The model of a valid configuration.
    pub fn new(
        network: &NetworkConfig,
        preconditioning: &PreconditioningConfig,
        image: ImageShape,
        precision: Precision,
    ) -> Self {
        let (net, layout) = Network::new(network, image, preconditioning.out_channels(image.channels));
        let preconditioning = Preconditioning::new(preconditioning);
        Self { net, layout, image, preconditioning, precision, plan: Plan::PLAIN, recordings: Mutex::default() }
    }

    /// The same computed by another plan.
    #[must_use]
    pub fn with_plan(self, plan: Plan) -> Self {
        Self { plan, ..self }
    }

    /// The denoiser of these weights. One cast where the precision is not f32; gradients flow to `weights.theta`.
    ///
    /// # Errors
    /// The weights are of another layout, or the device has no room.
    pub fn bind(&self, weights: &Weights) -> Result<Denoiser<'_>> {
        let weights = weights.with_theta(weights.theta.f_to_kind(self.precision.kind())?);
        Ok(Denoiser { model: self, params: self.params(&weights)?, weights })
    }

    /// The pieces of weights that are in the network's type, as the plan has them.
    pub(crate) fn params(&self, weights: &Weights) -> Result<Params> {
        Ok(self.layout.views(&weights.theta, &weights.buffers)?.planned(self.plan))
    }

    /// Whether the host has more to do with an evaluation than the device.
    pub fn is_small(&self) -> bool {
        self.layout.numel() <= SMALL
    }

    /// D(x;σ) by these parameters.
    pub(crate) fn evaluate(&self, params: &Params, evaluation: &Evaluation, train: bool) -> Tensor {
        let Evaluation { x, sigma, scalings, conditioning } = evaluation;
        let c = self.preconditioning.coefficients(sigma, *scalings);
        let (labels, augment_labels) = (conditioning.labels.as_ref(), conditioning.augment_labels.as_ref());
        let inputs = Inputs { x: &(c.c_in * *x), c_noise: &c.c_noise, labels, augment_labels, train };
        let f_x = self.net.forward(params, &inputs);
        c.c_skip * *x + c.c_out * f_x.narrow(1, 0, self.image.channels)
    }

    /// How many chunks of images are best sampled at once. On a CPU one a core (`OMP_NUM_THREADS`) for a small network: where
    /// all threads meet after each operation on small tensors, a sixth of their time goes by in waiting. A large one keeps them
    /// busy with one chunk.
    pub fn chunks_at_once(&self, device: Device) -> usize {
        if device == Device::Cpu && self.is_small() { default_threads() } else { 1 }
    }
}

/// D(x;σ) of one set of weights.
pub struct Denoiser<'m> {
    model: &'m Model,
    params: Params,
    /// What they are pieces of.
    weights: Weights,
}

/// What D is asked for.
pub(crate) struct Evaluation<'t> {
    pub x: &'t Tensor,
    pub sigma: &'t Tensor,
    pub scalings: Scalings,
    pub conditioning: &'t Conditioning,
}

impl Denoiser<'_> {
    /// D(x;σ): x f32 `[B,C,H,W]`, σ f32 `[B]` → f32 `[B,C,H,W]`. `train` turns dropout on.
    pub fn denoise(
        &self,
        x: &Tensor,
        sigma: &Tensor,
        scalings: Scalings,
        conditioning: &Conditioning,
        train: bool,
    ) -> Tensor {
        let Self { model, params, weights } = self;
        let evaluation = Evaluation { x, sigma, scalings, conditioning };
        if model.plan.graph && !train && !x.requires_grad() && !params.requires_grad() {
            let mut recordings = model.recordings.lock().unwrap_or_else(PoisonError::into_inner);
            return unguarded(recordings.replayed(model, weights, &evaluation));
        }
        model.evaluate(params, &evaluation, train)
    }

    /// The model that is bound.
    pub fn model(&self) -> &Model {
        self.model
    }
}

/// Classes i64 `[B]` → one-hot f32 `[B,label_dim]`; none for an unconditional model.
pub fn one_hot(classes: Option<&Tensor>, label_dim: i64) -> Option<Tensor> {
    classes.filter(|_| label_dim > 0).map(|c| c.one_hot(label_dim).to_kind(Kind::Float))
}

/// Classes i64 `[n]` of the generated images `first..first+n`, uniform, each a function of (seed, index); none for an
/// unconditional model.
pub fn random_classes(seed: u64, first: u64, n: usize, label_dim: i64, device: Device) -> Option<Tensor> {
    (label_dim > 0).then(|| {
        let class = |i| (rng(seed, Stream::Labels, first + i).next_u64() % label_dim as u64) as i64;
        Tensor::from_slice(&(0..n as u64).map(class).collect::<Vec<i64>>()).to(device)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precond::{EdmPreconditioning, TimeInput};
    use lcsc_torch::latents;
    use lcsc_unet::{DhariwalUNetConfig, Heads, SongUNetConfig};

    #[test]
    fn consistency_models_are_the_identity_at_their_lowest_noise_level() {
        let adm = DhariwalUNetConfig {
            model_channels: 8,
            channel_mult: vec![1, 2],
            num_blocks: 1,
            attn_resolutions: vec![],
            heads: Heads::Count(1),
            ..DhariwalUNetConfig::default()
        };
        let image = ImageShape { channels: 1, resolution: 8, label_dim: 0 };
        let x = latents(0, Stream::Noise, 0, 2, image.chw(), Device::Cpu).unwrap();
        for network in [NetworkConfig::Song(SongUNetConfig::tiny()), NetworkConfig::Adm(adm)] {
            for time_input in [TimeInput::Edm, TimeInput::OpenAi] {
                let edm = EdmPreconditioning { time_input, ..EdmPreconditioning::default() };
                let model = Model::new(&network, &PreconditioningConfig::Edm(edm), image, Precision::F32);
                let initial = model.layout.init(0, Device::Cpu).unwrap();
                let weights = initial.with_theta(&initial.theta + 0.02);
                let net = model.bind(&weights).unwrap();
                for sigma_min in [0.002, 0.003] {
                    let sigma = Tensor::full([2], sigma_min, (Kind::Float, Device::Cpu));
                    let scalings = Scalings::Boundary { sigma_min };
                    let f_x = net.denoise(&x, &sigma, scalings, &Conditioning::default(), false);
                    assert!((f_x - &x).abs().max().double_value(&[]) < 1e-6, "{network:?} {time_input:?}");
                }
            }
        }
    }
}
