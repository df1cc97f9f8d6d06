//! Easy Consistency Tuning (Geng et al. 2024, arXiv 2406.14548).

use crate::distance::pseudo_huber;
use lcsc_torch::{Invalid, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// The smallest (t − r)/t that a consistency loss divides by: sixteen steps of f32.
pub(crate) const FINEST_DECAY: f64 = 1.0 / (1 << 20) as f64;

impl EctConfig {
    /// The schedule's stage after `nimg` images.
    pub fn stage(&self, nimg: u64) -> u64 {
        nimg.checked_div(self.stage_every_nimg).unwrap_or(0)
    }

    /// q^{−(stage+1)}, the smallest (t − r)/t of a stage.
    pub fn decay(&self, stage: u64) -> f64 {
        self.q.powi(-(stage.min(1_000) as i32 + 1))
    }

    /// Everything about it that cannot work for a stage of `nimg` images.
    pub(crate) fn validate(&self, nimg: u64) -> Vec<Invalid> {
        let mut found = Vec::new();
        let mut check = |ok: bool, key: &str, message: String| {
            if !ok {
                found.push(Invalid::new(key, message));
            }
        };
        let q = self.q;
        check(q > 1.0, "q", format!("is {q}, expected more than 1"));
        check(self.c >= 0.0, "c", format!("is {}, expected 0 or more", self.c));
        check(self.p_std > 0.0, "p_std", format!("is {}, expected more than 0", self.p_std));
        let last = self.stage(nimg);
        let decay = self.decay(last);
        check(
            q <= 1.0 || decay >= FINEST_DECAY,
            "stage_every_nimg",
            format!(
                "lets the schedule end in its stage {last}, where (t − r)/t = {q}^-{} = {decay:.1e}: f32 cannot tell t from r; \
             expected {FINEST_DECAY:.1e} or more, by longer stages or a smaller q",
                last + 1
            ),
        );
        found
    }

    /// r = t·(1 − n(t)/q^{stage+1}), at least 0, for t f32 `[B]`.
    pub fn t_to_r(&self, t: &Tensor, stage: u64) -> Tensor {
        let decay = self.decay(stage);
        let ratio = match self.adj {
            Adjustment::Const => t.ones_like() * (1.0 - decay),
            Adjustment::Sigmoid => ((t * -self.b).sigmoid() * self.k + 1.0) * -decay + 1.0,
        };
        (t * ratio).clamp_min(0.0)
    }
}

/// ECT's loss √(‖D(y+tε;t) − sg D(y+rε;r)‖² + c²) − c, divided by t − r: y and unit `noise` f32 `[B,C,H,W]`,
/// t and r f32 `[B]` → f32 `[B]`. Where r = 0 the target is the clean image. (Geng et al. 2024, eq. 13 and 16.)
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
    pseudo_huber(&d_yt, &target, c) / (t - r)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::{ObjectiveConfig, Span};
    use lcsc_torch::Kind;

    fn batch(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).reshape([-1, 1, 1, 1])
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
        assert_eq!(config(100).validate(Span { nimg: 1_999, steps: 10 }), vec![]);
        let found = config(100).validate(Span { nimg: 2_000, steps: 10 });
        assert_eq!(found[0].key, "ect.stage_every_nimg");
        assert!(found[0].message.contains("stage 20, where (t − r)/t = 2^-21 = 4.8e-7"), "{}", found[0].message);
        assert_eq!(config(0).validate(Span { nimg: u64::MAX, steps: 10 }), vec![]);
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
