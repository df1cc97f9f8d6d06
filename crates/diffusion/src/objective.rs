//! What a stage trains for.

use crate::consistency::{CdConfig, ConsistencyGrid, CtConfig, IctConfig, consistency_loss, teacher_step};
use crate::denoising::{DdpmConfig, EdmConfig, ddpm_loss, edm_loss, sigma_data};
use crate::distance::{Distance, DistanceConfig};
use crate::ect::{EctConfig, ect_loss};
use crate::model::{Conditioning, Denoiser};
use crate::precond::{PreconditioningConfig, Scalings};
use lcsc_torch::{Device, Error, Invalid, Kind, Result, Stream, Tensor, seed_torch, upload};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;

/// The objective of a training stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ObjectiveConfig {
    /// Denoising score matching in EDM's form: gives a diffusion model.
    Edm(EdmConfig),
    /// DDPM's simple loss, for networks that predict the noise: gives a diffusion model.
    Ddpm(DdpmConfig),
    /// Consistency distillation: turns a diffusion model, the teacher, into a consistency model.
    Cd(CdConfig),
    /// Consistency training: a consistency model without a teacher.
    Ct(CtConfig),
    /// Improved consistency training.
    Ict(IctConfig),
    /// Easy Consistency Tuning: turns a diffusion model into a consistency model.
    Ect(EctConfig),
}

/// How long a stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Images.
    pub nimg: u64,
    /// K, optimizer steps.
    pub steps: u64,
}

impl ObjectiveConfig {
    /// Everything about it that cannot work for a stage of this length.
    pub fn validate(&self, span: Span) -> Vec<Invalid> {
        let found = match self {
            Self::Edm(c) if c.p_std <= 0.0 => {
                vec![Invalid::new("p_std", format!("is {}, expected more than 0", c.p_std))]
            }
            Self::Edm(_) | Self::Ddpm(_) => vec![],
            Self::Cd(c) => c.validate(),
            Self::Ct(c) => c.validate(),
            Self::Ict(c) => c.validate(span.steps),
            Self::Ect(c) => c.validate(span.nimg),
        };
        found.into_iter().map(|i| i.under(self.name())).collect()
    }

    /// Whether networks of this preconditioning can be trained so, or which can.
    ///
    /// # Errors
    /// They cannot; the text says what is expected.
    pub fn accepts(&self, preconditioning: &PreconditioningConfig) -> std::result::Result<(), &'static str> {
        let is_edm = matches!(preconditioning, PreconditioningConfig::Edm(_));
        match self {
            Self::Ddpm(_) if is_edm => Err("needs preconditioning vp, ve, ddpm or iddpm"),
            Self::Ddpm(_) => Ok(()),
            Self::Edm(_) | Self::Cd(_) | Self::Ct(_) | Self::Ict(_) | Self::Ect(_) if is_edm => Ok(()),
            Self::Edm(_) | Self::Cd(_) | Self::Ct(_) | Self::Ict(_) | Self::Ect(_) => Err("needs preconditioning edm"),
        }
    }

    /// Its key in config files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Edm(_) => "edm",
            Self::Ddpm(_) => "ddpm",
            Self::Cd(_) => "cd",
            Self::Ct(_) => "ct",
            Self::Ict(_) => "ict",
            Self::Ect(_) => "ect",
        }
    }

    /// Whether it trains a consistency model; else a diffusion model.
    pub fn is_consistency(&self) -> bool {
        match self {
            Self::Edm(_) | Self::Ddpm(_) => false,
            Self::Cd(_) | Self::Ct(_) | Self::Ict(_) | Self::Ect(_) => true,
        }
    }

    /// The noise levels between which it asks for consistency and the distance that it asks it in, where they are a grid and
    /// can be chosen.
    fn grid_and_distance(&self) -> Option<(&ConsistencyGrid, &DistanceConfig)> {
        match self {
            Self::Cd(c) => Some((&c.grid, &c.distance)),
            Self::Ct(c) => Some((&c.grid, &c.distance)),
            Self::Ict(c) => Some((&c.grid, &c.distance)),
            Self::Edm(_) | Self::Ddpm(_) | Self::Ect(_) => None,
        }
    }

    /// The noise levels between which it asks for consistency, where they are a grid.
    pub fn grid(&self) -> Option<&ConsistencyGrid> {
        self.grid_and_distance().map(|(grid, _)| grid)
    }

    /// Whether a stage needs a teacher.
    pub fn needs_teacher(&self) -> bool {
        matches!(self, Self::Cd(_))
    }

    /// Dropout of the teacher.
    pub fn teacher_dropout(&self) -> f64 {
        match self {
            Self::Cd(c) => c.teacher_dropout,
            Self::Edm(_) | Self::Ddpm(_) | Self::Ct(_) | Self::Ict(_) | Self::Ect(_) => 0.0,
        }
    }

    /// μ of the target network's moving average after step k of K; none where the online weights are the target, or there
    /// is none.
    pub fn target_ema(&self, k: u64, steps: u64) -> Option<f64> {
        match self {
            Self::Cd(c) => (c.target_ema > 0.0).then_some(c.target_ema),
            Self::Ct(c) => Some(c.target_ema(k, steps)),
            Self::Edm(_) | Self::Ddpm(_) | Self::Ict(_) | Self::Ect(_) => None,
        }
    }

    /// The distance of the loss, where it can be chosen.
    pub fn distance(&self) -> Option<&DistanceConfig> {
        self.grid_and_distance().map(|(_, distance)| distance)
    }
}

/// One round: images that go through the network together, and the place of their random draws.
pub struct Round<'a> {
    /// f32 `[B,C,H,W]` in [−1,1].
    pub images: &'a Tensor,
    /// Classes and augmentation labels.
    pub conditioning: &'a Conditioning,
    /// Seed of the run.
    pub seed: u64,
    /// Images of the whole run before this round: the place of its draws in every random stream.
    pub nimg: u64,
    /// Images of this stage before this round.
    pub stage_nimg: u64,
    /// k, optimizer steps of this stage before the round's.
    pub step: u64,
    /// K, optimizer steps of the whole stage.
    pub steps: u64,
}

/// The networks of a round.
pub struct Networks<'a, 'm> {
    /// The one that is trained: gradients flow to its parameters.
    pub online: &'a Denoiser<'m>,
    /// Its moving average, where the objective has one.
    pub target: Option<&'a Denoiser<'m>>,
    /// The diffusion model that is distilled.
    pub teacher: Option<&'a Denoiser<'m>>,
}

/// The losses of a round.
pub struct Losses {
    /// Of each image, f32 `[B]`, with gradient to the online network's parameters.
    pub loss: Tensor,
    /// The noise level at which it was trained (the higher of two), f32 `[B]`.
    pub sigma: Tensor,
}

/// An objective that is ready to train for.
pub struct Objective {
    config: ObjectiveConfig,
    distance: Distance,
    /// iCT's noise levels of the last round.
    lognormal: RefCell<Option<LognormalGrid>>,
}

impl Objective {
    /// Reads what the objective needs.
    ///
    /// # Errors
    /// The weights of LPIPS are missing or do not fit.
    pub fn new(config: &ObjectiveConfig, device: Device) -> Result<Self> {
        let distance = config.distance().map_or(Ok(Distance::L2), |d| Distance::new(d, device))?;
        Ok(Self { config: config.clone(), distance, lognormal: RefCell::new(None) })
    }

    fn lognormal_levels(&self, config: &IctConfig, num_scales: u64, u: &Tensor) -> Result<Levels> {
        let mut kept = self.lognormal.borrow_mut();
        let grid = match kept.take().filter(|grid| grid.sigmas.len() as u64 == num_scales) {
            Some(grid) => kept.insert(grid),
            None => kept.insert(LognormalGrid::new(config, num_scales, u.device())?),
        };
        Levels::drawn(&grid.sigmas, &grid.indices(u))
    }

    /// The loss of each image of a round.
    ///
    /// # Errors
    /// The teacher is missing, or the device has no room.
    pub fn loss(&self, nets: &Networks, round: &Round) -> Result<Losses> {
        let y = round.images;
        seed_torch(round.seed, Stream::Noise, round.nimg);
        let draws = (y.size()[0], y.device());
        let normal = || Tensor::randn([draws.0], (Kind::Float, draws.1));
        let uniform = || Tensor::rand([draws.0], (Kind::Double, draws.1));
        let plain = |x: &Tensor, sigma: &Tensor| round.denoise(nets.online, Scalings::Plain, x, sigma);
        let (loss, sigma) = match &self.config {
            ObjectiveConfig::Edm(c) => {
                let (rnd_normal, noise) = (normal(), y.randn_like());
                let sigma = (rnd_normal * c.p_std + c.p_mean).exp();
                (edm_loss(plain, y, &sigma, &noise, sigma_data(nets.online)), sigma)
            }
            ObjectiveConfig::Ddpm(DdpmConfig {}) => {
                let (sigma, noise) = (nets.online.model().preconditioning.training_sigma(&uniform())?, y.randn_like());
                (ddpm_loss(plain, y, &sigma, &noise), sigma)
            }
            ObjectiveConfig::Ect(c) => {
                let (rnd_normal, noise) = (normal(), y.randn_like());
                let t = (rnd_normal * c.p_std + c.p_mean).exp();
                let r = c.t_to_r(&t, c.stage(round.stage_nimg));
                (ect_loss(plain, y, &t, &r, &noise, c.c), t)
            }
            ObjectiveConfig::Cd(c) => {
                let (u, noise) = (uniform(), y.randn_like());
                let levels = Levels::drawn(&c.grid.sigmas(c.num_scales), &evenly(&u, c.num_scales - 1))?;
                let teacher = nets.teacher.ok_or_else(|| Error::msg("distillation needs a teacher"))?;
                let step = |x: &Tensor, sigma: &Tensor| round.denoise(teacher, Scalings::Plain, x, sigma);
                let x_t = round.noised(&noise, &levels.t);
                let x_r = teacher_step(step, c.solver, &x_t, &levels.t, &levels.r);
                let distance = self.consistency(nets, round, c.grid.sigma_min, &levels, (&x_t, &x_r));
                (distance * c.weighting.of(&levels.t), levels.t)
            }
            ObjectiveConfig::Ct(c) => {
                let (u, noise) = (uniform(), y.randn_like());
                let num_scales = c.num_scales(round.step, round.steps);
                let levels = Levels::drawn(&c.grid.sigmas(num_scales), &evenly(&u, num_scales - 1))?;
                let pair = (&round.noised(&noise, &levels.t), &round.noised(&noise, &levels.r));
                let distance = self.consistency(nets, round, c.grid.sigma_min, &levels, pair);
                (distance * c.weighting.of(&levels.t), levels.t)
            }
            ObjectiveConfig::Ict(c) => {
                let (u, noise) = (uniform(), y.randn_like());
                let levels = self.lognormal_levels(c, c.num_scales(round.step, round.steps), &u)?;
                let pair = (&round.noised(&noise, &levels.t), &round.noised(&noise, &levels.r));
                let distance = self.consistency(nets, round, c.grid.sigma_min, &levels, pair);
                (distance / (&levels.t - levels.r), levels.t)
            }
        };
        Ok(Losses { loss, sigma })
    }

    /// d between the online network's output at t and the target's at r.
    fn consistency(
        &self,
        nets: &Networks,
        round: &Round,
        sigma_min: f64,
        Levels { t, r }: &Levels,
        (x_t, x_r): (&Tensor, &Tensor),
    ) -> Tensor {
        let boundary = Scalings::Boundary { sigma_min };
        let online = |x: &Tensor, sigma: &Tensor| round.denoise(nets.online, boundary, x, sigma);
        let target = |x: &Tensor, sigma: &Tensor| round.denoise(nets.target.unwrap_or(nets.online), boundary, x, sigma);
        consistency_loss(online, target, (x_t, t), (x_r, r), &self.distance)
    }
}

impl Round<'_> {
    /// D(x;σ) in training. The same seed before every pass: all passes of a loss share their dropout mask.
    fn denoise(&self, net: &Denoiser, scalings: Scalings, x: &Tensor, sigma: &Tensor) -> Tensor {
        seed_torch(self.seed, Stream::Dropout, self.nimg);
        net.denoise(x, sigma, scalings, self.conditioning, true)
    }

    /// y + σ·noise.
    fn noised(&self, noise: &Tensor, sigma: &Tensor) -> Tensor {
        self.images + noise * sigma.reshape([-1, 1, 1, 1])
    }
}

/// Neighbouring noise levels t > r f32 `[B]` of each image.
struct Levels {
    t: Tensor,
    r: Tensor,
}

impl Levels {
    /// Entries `indices` and the ones after them of a falling grid.
    fn drawn(sigmas: &[f64], indices: &Tensor) -> Result<Self> {
        let table = upload(&Tensor::from_slice(sigmas).to_kind(Kind::Float), indices.device())?;
        Ok(Self { t: table.index_select(0, indices), r: table.index_select(0, &(indices + 1)) })
    }
}

/// Indices i64 `[B]` in 0..n of u f64 `[B]` uniform in [0,1).
fn evenly(u: &Tensor, n: u64) -> Tensor {
    (u * n as f64).floor().clamp(0.0, (n - 1) as f64).to_kind(Kind::Int64)
}

/// iCT's noise levels, computed once as long as there are as many.
struct LognormalGrid {
    /// N levels, falling.
    sigmas: Vec<f64>,
    /// The probability of an interval or one below it, from the lowest up, f64 `[N−1]`.
    ends: Tensor,
}

impl LognormalGrid {
    fn new(config: &IctConfig, num_scales: u64, device: Device) -> Result<Self> {
        let sigmas = config.grid.sigmas(num_scales);
        let rising: Vec<f64> = sigmas.iter().rev().copied().collect();
        let mut below = 0.0;
        let mut end = |p: &f64| {
            below += p;
            below
        };
        let ends: Vec<f64> = config.probabilities(&rising)?.iter().map(&mut end).collect();
        Ok(Self { sigmas, ends: upload(&Tensor::from_slice(&ends), device)? })
    }

    /// Indices i64 `[B]` of intervals, of u f64 `[B]` uniform in [0,1).
    fn indices(&self, u: &Tensor) -> Tensor {
        let last = self.ends.numel() as i64 - 1;
        last - Tensor::bucketize(u, &self.ends, false, true).clamp(0, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_follow_their_distribution() {
        let u = Tensor::arange(10_000, (Kind::Double, Device::Cpu)) / 10_000.0;
        let counts = Vec::<i64>::try_from(evenly(&u, 4).bincount(None::<Tensor>, 4)).unwrap();
        assert_eq!(counts, [2500; 4]);
        let config = IctConfig::default();
        let grid = LognormalGrid::new(&config, 11, Device::Cpu).unwrap();
        let (indices, sigmas) = (grid.indices(&u), &grid.sigmas);
        let rising: Vec<f64> = sigmas.iter().rev().copied().collect();
        let expected = config.probabilities(&rising).unwrap();
        let counts = Vec::<i64>::try_from(indices.bincount(None::<Tensor>, 10)).unwrap();
        for (i, count) in counts.iter().enumerate() {
            assert!((*count as f64 / 10_000.0 - expected[9 - i]).abs() < 2e-4, "{counts:?} {expected:?}");
        }
        let Levels { t, r } = Levels::drawn(sigmas, &Tensor::from_slice(&[0i64, 9])).unwrap();
        let (t, r) = (Vec::<f32>::try_from(t).unwrap(), Vec::<f32>::try_from(r).unwrap());
        assert!((t[0] - 80.0).abs() < 1e-4 && r[0] == sigmas[1] as f32 && (r[1] - 0.002).abs() < 1e-8 && t[1] > r[1]);
    }

    #[test]
    fn objectives_and_preconditionings_must_fit() {
        let (edm, vp) = (PreconditioningConfig::default(), PreconditioningConfig::Vp(Default::default()));
        let ddpm = ObjectiveConfig::Ddpm(DdpmConfig {});
        assert!(ddpm.accepts(&vp).is_ok() && ddpm.accepts(&edm).is_err());
        let cd = ObjectiveConfig::Cd(CdConfig::default());
        assert!(cd.accepts(&edm).is_ok() && cd.accepts(&vp).is_err());
    }
}
