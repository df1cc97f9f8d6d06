//! Losses by noise level: at which noise a network is good.

use crate::grid::karras_sigmas;
use crate::objective::{Losses, ObjectiveConfig};
use crate::precond::Preconditioning;
use lcsc_torch::{Device, Kind, Result, Tensor, upload};

/// Parts of the noise levels, each of which an objective trains equally often.
pub const QUARTERS: usize = 4;

/// Upper quartile of the unit normal distribution.
const NORMAL_QUARTILE: f64 = 0.674_489_750_196_081_7;

impl ObjectiveConfig {
    /// The quartiles of the noise levels σ that it trains, rising; of a growing grid those that it grows towards.
    ///
    /// # Errors
    /// The preconditioning has no noise schedule, and the objective needs one.
    pub fn sigma_quartiles(&self, preconditioning: &Preconditioning) -> Result<[f64; QUARTERS - 1]> {
        let lognormal = |mean: f64, std: f64| [-1.0, 0.0, 1.0].map(|z| (mean + z * NORMAL_QUARTILE * std).exp());
        Ok(match self {
            Self::Edm(c) => lognormal(c.p_mean, c.p_std),
            Self::Ect(c) => lognormal(c.p_mean, c.p_std),
            Self::Ict(c) => lognormal(c.p_mean, c.p_std),
            Self::Cd(_) | Self::Ct(_) => {
                let grid = self.grid().cloned().unwrap_or_default();
                let sigmas = karras_sigmas(QUARTERS + 1, grid.sigma_min, grid.sigma_max, grid.rho);
                [sigmas[3], sigmas[2], sigmas[1]]
            }
            Self::Ddpm(_) => {
                let sigma = preconditioning.training_sigma(&Tensor::from_slice(&[0.25, 0.5, 0.75]))?;
                let mut sigma = [0, 1, 2].map(|i| sigma.double_value(&[i]));
                sigma.sort_by(f64::total_cmp);
                sigma
            }
        })
    }
}

/// Sorts losses into quarters of the noise levels.
pub struct Quartiles {
    /// f32 `[3]`, rising.
    ends: Tensor,
    /// i64 `[4]`.
    quarters: Tensor,
}

impl Quartiles {
    /// The quarters of an objective.
    ///
    /// # Errors
    /// See [`ObjectiveConfig::sigma_quartiles`]; or the device has no room.
    pub fn new(objective: &ObjectiveConfig, preconditioning: &Preconditioning, device: Device) -> Result<Self> {
        let ends = Tensor::from_slice(&objective.sigma_quartiles(preconditioning)?).f_to_kind(Kind::Float)?;
        let quarters = Tensor::f_arange(QUARTERS as i64, (Kind::Int64, device))?;
        Ok(Self { ends: upload(&ends, device)?, quarters })
    }

    /// Sum of the losses in each quarter and number of their images, f32 `[2,4]`, without gradient.
    ///
    /// # Errors
    /// The device has no room.
    pub fn sums(&self, losses: &Losses) -> Result<Tensor> {
        let quarter = Tensor::f_bucketize(&losses.sigma, &self.ends, false, true)?;
        let is_in = quarter.f_unsqueeze(1)?.f_eq_tensor(&self.quarters)?.f_to_kind(Kind::Float)?; // [B,4]
        // No matrix product: it may round to ten bits.
        let losses = is_in.f_mul(&losses.loss.f_detach()?.f_unsqueeze(1)?)?;
        let over_images = |x: &Tensor| x.f_sum_dim_intlist(0i64, false, Kind::Float);
        Ok(Tensor::f_stack(&[over_images(&losses)?, over_images(&is_in)?], 0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consistency::CtConfig;
    use crate::denoising::{DdpmConfig, EdmConfig};
    use crate::precond::PreconditioningConfig;

    #[test]
    fn a_quarter_of_the_noise_levels_lies_below_each_quartile() {
        let edm = Preconditioning::new(&PreconditioningConfig::default());
        let vp = Preconditioning::new(&PreconditioningConfig::Vp(Default::default()));
        let [low, middle, high] = ObjectiveConfig::Edm(EdmConfig::default()).sigma_quartiles(&edm).unwrap();
        // Normal ln σ with mean −1.2 and deviation 1.2.
        assert!((middle - (-1.2f64).exp()).abs() < 1e-12 && (low * high - middle * middle).abs() < 1e-12);
        assert!((high.ln() + 1.2 - 1.2 * 0.67449).abs() < 1e-5);
        let [low, middle, high] = ObjectiveConfig::Ct(CtConfig::default()).sigma_quartiles(&edm).unwrap();
        let rho = |sigma: f64| sigma.powf(1.0 / 7.0);
        for (found, share) in [(low, 0.25), (middle, 0.5), (high, 0.75)] {
            assert!((rho(found) - (rho(0.002) + share * (rho(80.0) - rho(0.002)))).abs() < 1e-9);
        }
        let ddpm = ObjectiveConfig::Ddpm(DdpmConfig {});
        let [low, middle, high] = ddpm.sigma_quartiles(&vp).unwrap();
        assert!(low < middle && middle < high && ddpm.sigma_quartiles(&edm).is_err());
    }

    #[test]
    fn losses_are_summed_by_quarter() {
        let edm = Preconditioning::new(&PreconditioningConfig::default());
        let objective = ObjectiveConfig::Edm(EdmConfig { p_mean: 0.0, p_std: 1.0 });
        let quartiles = Quartiles::new(&objective, &edm, Device::Cpu).unwrap();
        // The quartiles are 0.509, 1 and 1.963.
        let losses = Losses {
            loss: Tensor::from_slice(&[1f32, 2.0, 4.0, 8.0, 16.0]),
            sigma: Tensor::from_slice(&[0.1f32, 0.5, 0.6, 1.5, 80.0]),
        };
        let sums = Vec::<f32>::try_from(quartiles.sums(&losses).unwrap().flatten(0, -1)).unwrap();
        assert_eq!(sums, [3.0, 4.0, 8.0, 16.0, 2.0, 1.0, 1.0, 1.0]);
    }
}
