//! What a stage trains for: the EDM denoising loss, and Easy Consistency Tuning.

use crate::model::{Conditioning, Denoiser};
use crate::precond::Scalings;
use lcsc_torch::{Invalid, Kind, Stream, Tensor, seed_torch};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The objective of a training stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ObjectiveConfig {
    /// Denoising score matching in EDM's form: gives a diffusion model.
    Edm(EdmConfig),
    /// Easy Consistency Tuning: turns a diffusion model into a consistency model.
    Ect(EctConfig),
}

/// EDM's training distribution of noise levels (Karras et al. 2022, table 1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EdmConfig {
    /// Mean of ln σ.
    pub p_mean: f64,
    /// Standard deviation of ln σ.
    pub p_std: f64,
}

impl Default for EdmConfig {
    fn default() -> Self {
        Self { p_mean: -1.2, p_std: 1.2 }
    }
}

/// Easy Consistency Tuning (Geng et al. 2024, arXiv 2406.14548).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EctConfig {
    /// Mean of ln t.
    pub p_mean: f64,
    /// Standard deviation of ln t.
    pub p_std: f64,
    /// Base of the schedule: r/t = 1 − n(t)/q^{stage+1}.
    pub q: f64,
    /// Height of the adjustment n(t) = 1 + k·sigmoid(−b·t).
    pub k: f64,
    /// Steepness of the adjustment.
    pub b: f64,
    /// Pseudo-Huber constant; 0 gives the plain l2 norm.
    pub c: f64,
    /// Which adjustment n(t).
    pub adj: Adjustment,
    /// Images after which the schedule's stage grows by one; 0 keeps stage 0.
    pub stage_every_nimg: u64,
}

/// The factor n(t) of ECT's schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Adjustment {
    /// n(t) = 1.
    Const,
    /// n(t) = 1 + k·sigmoid(−b·t).
    Sigmoid,
}

impl Default for EctConfig {
    fn default() -> Self {
        Self {
            p_mean: -1.1,
            p_std: 2.0,
            q: 2.0,
            k: 8.0,
            b: 1.0,
            c: 0.0,
            adj: Adjustment::Sigmoid,
            stage_every_nimg: 3_200_000,
        }
    }
}

/// The smallest (t − r)/t that ECT divides by: sixteen steps of f32.
const FINEST_DECAY: f64 = 1.0 / (1 << 20) as f64;

impl EctConfig {
    /// The schedule's stage after `nimg` images.
    pub fn stage(&self, nimg: u64) -> u64 {
        nimg.checked_div(self.stage_every_nimg).unwrap_or(0)
    }

    /// q^{−(stage+1)}, the smallest (t − r)/t of a stage.
    pub fn decay(&self, stage: u64) -> f64 {
        self.q.powi(-(stage.min(1_000) as i32 + 1))
    }

    /// r = t·(1 − n(t)/q^{stage+1}), at least 0, for t f32 [B].
    pub fn t_to_r(&self, t: &Tensor, stage: u64) -> Tensor {
        let decay = self.decay(stage);
        let ratio = match self.adj {
            Adjustment::Const => t.ones_like() * (1.0 - decay),
            Adjustment::Sigmoid => ((t * -self.b).sigmoid() * self.k + 1.0) * -decay + 1.0,
        };
        (t * ratio).clamp_min(0.0)
    }
}

impl ObjectiveConfig {
    /// Everything about it that cannot work for a stage of `nimg` images.
    pub fn validate(&self, nimg: u64) -> Vec<Invalid> {
        let mut found = Vec::new();
        let (prefix, p_std) = match self {
            Self::Edm(c) => ("edm", c.p_std),
            Self::Ect(c) => {
                if c.q <= 1.0 {
                    found.push(Invalid::new("ect.q", format!("is {}, expected more than 1", c.q)));
                }
                if c.c < 0.0 {
                    found.push(Invalid::new("ect.c", format!("is {}, expected 0 or more", c.c)));
                }
                let last = c.stage(nimg);
                if c.q > 1.0 && c.decay(last) < FINEST_DECAY {
                    let (q, decay) = (c.q, c.decay(last));
                    let message = format!(
                        "lets the schedule end in its stage {last}, where (t − r)/t = {q}^-{} = {decay:.1e}: f32 cannot \
                         tell t from r; expected {FINEST_DECAY:.1e} or more, by longer stages or a smaller q",
                        last + 1
                    );
                    found.push(Invalid::new("ect.stage_every_nimg", message));
                }
                ("ect", c.p_std)
            }
        };
        if p_std <= 0.0 {
            found.push(Invalid::new(format!("{prefix}.p_std"), format!("is {p_std}, expected more than 0")));
        }
        found
    }
}

/// One round: images that go through the network together, and the place of their random draws.
pub struct Round<'a> {
    /// f32 [B,C,H,W] in [−1,1].
    pub images: &'a Tensor,
    /// Classes and augmentation labels.
    pub conditioning: &'a Conditioning,
    /// Seed of the run.
    pub seed: u64,
    /// Images of the whole run before this round: the place of its draws in every random stream.
    pub nimg: u64,
    /// Images of this stage before this round: what schedules go by.
    pub stage_nimg: u64,
}

impl ObjectiveConfig {
    /// The loss of each image of a round, f32 [B], with gradient to the denoiser's parameters.
    pub fn loss(&self, net: &Denoiser, round: &Round) -> Tensor {
        let y = round.images;
        seed_torch(round.seed, Stream::Noise, round.nimg);
        let rnd_normal = Tensor::randn([y.size()[0]], (Kind::Float, y.device()));
        let noise = y.randn_like();
        // The same seed before every pass: both passes of a consistency loss share their dropout mask.
        let denoise = |x: &Tensor, sigma: &Tensor| {
            seed_torch(round.seed, Stream::Dropout, round.nimg);
            net.denoise(x, sigma, Scalings::Edm, round.conditioning, true)
        };
        match self {
            Self::Edm(c) => {
                let sigma = (rnd_normal * c.p_std + c.p_mean).exp();
                edm_loss(denoise, y, &sigma, &noise, net.model().sigma_data)
            }
            Self::Ect(c) => {
                let t = (rnd_normal * c.p_std + c.p_mean).exp();
                let r = c.t_to_r(&t, c.stage(round.stage_nimg));
                ect_loss(denoise, y, &t, &r, &noise, c.c)
            }
        }
    }
}

/// λ(σ)·‖D(y+n;σ) − y‖², summed over pixels: y and unit `noise` f32 [B,C,H,W], σ f32 [B] → f32 [B].
/// (Karras et al. 2022, eq. 2 with λ of table 1.)
pub fn edm_loss(
    denoise: impl Fn(&Tensor, &Tensor) -> Tensor,
    y: &Tensor,
    sigma: &Tensor,
    noise: &Tensor,
    sigma_data: f64,
) -> Tensor {
    let s = sigma.reshape([-1, 1, 1, 1]);
    let d_yn = denoise(&(y + noise * s), sigma);
    let weight = (sigma.square() + sigma_data * sigma_data) / (sigma * sigma_data).square();
    weight * per_image((d_yn - y).square())
}

/// ECT's loss √(‖D(y+tε;t) − sg D(y+rε;r)‖² + c²) − c, divided by t − r: y and unit `noise` f32 [B,C,H,W],
/// t and r f32 [B] → f32 [B]. Where r = 0 the target is the clean image. (Geng et al. 2024, eq. 13 and 16.)
pub fn ect_loss(
    denoise: impl Fn(&Tensor, &Tensor) -> Tensor,
    y: &Tensor,
    t: &Tensor,
    r: &Tensor,
    noise: &Tensor,
    c: f64,
) -> Tensor {
    let d_yt = denoise(&(y + noise * t.reshape([-1, 1, 1, 1])), t);
    let target = lcsc_torch::tch::no_grad(|| {
        let d_yr = denoise(&(y + noise * r.reshape([-1, 1, 1, 1])), r).nan_to_num(0.0, None, None);
        d_yr.where_self(&r.gt(0.0).reshape([-1, 1, 1, 1]), y)
    });
    let squared = per_image((d_yt - target).square());
    let distance = if c > 0.0 { (squared + c * c).sqrt() - c } else { squared.sqrt() };
    distance / (t - r)
}

/// Sum over everything but the batch.
fn per_image(x: Tensor) -> Tensor {
    x.flatten(1, -1).sum_dim_intlist(1i64, false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).reshape([-1, 1, 1, 1])
    }

    #[test]
    fn a_perfect_denoiser_has_no_loss_and_a_wrong_one_the_weighted_square() {
        let y = batch(&[0.5, -1.0]);
        let sigma = Tensor::from_slice(&[0.5f32, 2.0]);
        let loss = |d: &Tensor| edm_loss(|_, _| d.shallow_clone(), &y, &sigma, &batch(&[1.0, 1.0]), 0.5);
        assert_eq!(Vec::<f32>::try_from(loss(&y)).unwrap(), [0.0, 0.0]);
        // λ(0.5) = 0.5/0.0625 = 8, λ(2) = 4.25/1 = 4.25; the error is 0.5 everywhere.
        let found = Vec::<f32>::try_from(loss(&(&y + 0.5))).unwrap();
        assert!((found[0] - 2.0).abs() < 1e-6 && (found[1] - 1.0625).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn ect_schedule_narrows_the_gap_stage_by_stage() {
        let config = EctConfig { stage_every_nimg: 100, ..EctConfig::default() };
        assert_eq!([0, 99, 100, 250].map(|n| config.stage(n)), [0, 0, 1, 2]);
        assert_eq!(EctConfig { stage_every_nimg: 0, ..config.clone() }.stage(1 << 40), 0);
        let t = Tensor::from_slice(&[0.1f32, 1.0, 10.0, 80.0]);
        let gap = |stage| Vec::<f32>::try_from(&t - config.t_to_r(&t, stage)).unwrap();
        // Large t: n(t) → 1, so r/t → 1 − 2^{−1} at stage 0 and 1 − 2^{−6} at stage 5.
        assert!((gap(0)[3] - 40.0).abs() < 1e-3 && (gap(5)[3] - 80.0 / 64.0).abs() < 1e-3);
        // Small t at stage 0: the adjustment exceeds the base, r is clamped to 0.
        assert!((gap(0)[0] - 0.1).abs() < 1e-7);
        assert!(gap(3).iter().zip(gap(4)).all(|(a, b)| *a > b));
    }

    #[test]
    fn a_schedule_that_f32_cannot_follow_is_refused() {
        let config = |stage_every_nimg| ObjectiveConfig::Ect(EctConfig { stage_every_nimg, ..EctConfig::default() });
        assert_eq!(config(100).validate(1_999), vec![]);
        let found = config(100).validate(2_000);
        assert_eq!(found[0].key, "ect.stage_every_nimg");
        assert!(found[0].message.contains("stage 20, where (t − r)/t = 2^-21 = 4.8e-7"), "{}", found[0].message);
        assert_eq!(config(0).validate(u64::MAX), vec![]);
    }

    #[test]
    fn the_target_is_the_clean_image_where_r_is_zero() {
        let y = batch(&[0.25, 0.25]);
        let (t, r) = (Tensor::from_slice(&[1f32, 1.0]), Tensor::from_slice(&[0f32, 0.5]));
        // D returns its σ as the image: 1 for the pass at t, 0 (ignored) or ½ for the pass at r.
        let found = ect_loss(|x, s| x * 0.0 + s.reshape([-1, 1, 1, 1]), &y, &t, &r, &batch(&[0.0, 0.0]), 0.0);
        assert_eq!(Vec::<f32>::try_from(found).unwrap(), [0.75, 1.0]);
        let huber = ect_loss(|x, s| x * 0.0 + s.reshape([-1, 1, 1, 1]), &y, &t, &r, &batch(&[0.0, 0.0]), 1.0);
        assert!((huber.double_value(&[0]) - 0.25).abs() < 1e-6); // √(0.75²+1) − 1
    }

    #[test]
    fn no_gradient_reaches_the_target() {
        let w = Tensor::from_slice(&[2f32]).set_requires_grad(true);
        let (t, r) = (Tensor::from_slice(&[1f32]), Tensor::from_slice(&[0.5f32]));
        let loss = ect_loss(|x, _| x * &w, &batch(&[0.0]), &t, &r, &batch(&[1.0]), 0.0);
        // d_yt = w, target = ½w held fixed: loss = |w − 1|/½, derivative 2 (1 if the target had a gradient).
        let grad = Tensor::run_backward(&[loss.sum(Kind::Float)], &[&w], false, false).remove(0);
        assert_eq!(grad.double_value(&[0]), 2.0);
    }
}
