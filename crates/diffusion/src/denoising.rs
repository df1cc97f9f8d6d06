//! Denoising losses: of EDM, and of networks that predict the noise.

use crate::distance::per_image;
use crate::model::Denoiser;
use crate::precond::{Preconditioning, SIGMA_DATA};
use lcsc_torch::{Kind, Result, Tensor, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// DDPM's simple loss (Ho et al. 2020, eq. 14): noise levels are those of time steps drawn evenly from the schedule of the
/// preconditioning, any but `edm`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DdpmConfig {}

impl Preconditioning {
    /// σ f32 [B] of training, for u f64 [B] uniform in [0,1).
    ///
    /// # Errors
    /// The preconditioning has no schedule of its own.
    pub(crate) fn training_sigma(&self, u: &Tensor) -> Result<Tensor> {
        let sigma = match self {
            Self::Vp(schedule) => {
                let c = &schedule.0;
                let t = u * (c.epsilon_t - 1.0) + 1.0;
                (t.square() * (0.5 * c.beta_d) + t * c.beta_min).expm1().sqrt()
            }
            Self::Ddpm(schedule) | Self::Iddpm(schedule) => {
                let [table, _] = schedule.table(u.device());
                let steps = table.numel() as i64;
                table.index_select(0, &(u * steps as f64).floor().clamp(0.0, (steps - 1) as f64).to_kind(Kind::Int64))
            }
            // Evenly in ln σ, as Song et al. train it.
            Self::Ve(c) => (u * (c.sigma_max / c.sigma_min).ln()).exp() * c.sigma_min,
            Self::Edm(_) => bail!("EDM's preconditioning has no noise schedule to draw time steps from"),
        };
        Ok(sigma.to_kind(Kind::Float))
    }
}

/// σ_data of a network of EDM's preconditioning.
pub(crate) fn sigma_data(net: &Denoiser) -> f64 {
    match &net.model().preconditioning {
        Preconditioning::Edm(c) => c.sigma_data,
        Preconditioning::Vp(_) | Preconditioning::Ve(_) | Preconditioning::Ddpm(_) | Preconditioning::Iddpm(_) => {
            SIGMA_DATA
        }
    }
}

/// λ(σ)·‖D(y+n;σ) − y‖², summed over pixels: y and unit `noise` f32 `[B,C,H,W]`, σ f32 `[B]` → f32 `[B]`.
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

/// ‖ε − ε_θ‖² = ‖D(y+σε;σ) − y‖²/σ², the mean over pixels: y and unit `noise` f32 `[B,C,H,W]`, σ f32 `[B]` → f32 `[B]`.
/// (Ho et al. 2020, eq. 14.)
pub fn ddpm_loss(denoise: impl Fn(&Tensor, &Tensor) -> Tensor, y: &Tensor, sigma: &Tensor, noise: &Tensor) -> Tensor {
    let s = sigma.reshape([-1, 1, 1, 1]);
    let d_yn = denoise(&(y + noise * &s), sigma);
    ((d_yn - y) / s).square().flatten(1, -1).mean_dim(1i64, false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precond::{DdpmPreconditioning, PreconditioningConfig, VpPreconditioning};

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
    fn the_simple_loss_is_that_of_the_noise() {
        // D = x − σ·F with F = 0 leaves the noise as the error.
        let (y, sigma) = (batch(&[0.5, -1.0]), Tensor::from_slice(&[0.5f32, 20.0]));
        let loss = ddpm_loss(|x, _| x.shallow_clone(), &y, &sigma, &batch(&[2.0, -1.0]));
        for (found, expected) in Vec::<f32>::try_from(loss).unwrap().iter().zip([4.0, 1.0]) {
            assert!((found - expected).abs() < 1e-5);
        }
    }

    #[test]
    fn time_steps_are_drawn_evenly() {
        let ddpm = Preconditioning::new(&PreconditioningConfig::Ddpm(DdpmPreconditioning::default()));
        let u = Tensor::from_slice(&[0.0, 0.4999, 0.99999]);
        let steps: Vec<f64> = Vec::<f32>::try_from(ddpm.training_sigma(&u).unwrap())
            .unwrap()
            .iter()
            .map(|&s| 1000.0 * ddpm.time(s.into()))
            .collect();
        for (found, expected) in steps.iter().zip([1.0, 500.0, 1000.0]) {
            assert!((found - expected).abs() < 1e-2, "{steps:?}");
        }
        let vp = Preconditioning::new(&PreconditioningConfig::Vp(VpPreconditioning::default()));
        let sigma = Vec::<f32>::try_from(vp.training_sigma(&u).unwrap()).unwrap();
        assert!((vp.time(sigma[0].into()) - 1.0).abs() < 1e-6 && (vp.time(sigma[1].into()) - 0.5001).abs() < 1e-5);
    }
}
