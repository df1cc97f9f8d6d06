//! Preconditioning: D(x;σ) = c_skip·x + c_out·F(c_in·x; c_noise)  (Karras et al. 2022, eq. 7).

use lcsc_torch::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Standard deviation of the data that the published recipes assume.
pub const SIGMA_DATA: f64 = 0.5;

/// Which scalings surround the network.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scalings {
    /// EDM (Karras et al. 2022, table 1).
    Edm,
    /// EDM with the boundary condition D(x;σ_min) = x of a consistency model (Song et al. 2023, appendix C).
    Boundary {
        /// The σ at which D is the identity.
        sigma_min: f64,
    },
}

/// The four coefficients for a batch of noise levels.
#[derive(Debug)]
pub struct Coefficients {
    /// [B,1,1,1]
    pub c_skip: Tensor,
    /// [B,1,1,1]
    pub c_out: Tensor,
    /// [B,1,1,1]
    pub c_in: Tensor,
    /// [B]
    pub c_noise: Tensor,
}

impl Scalings {
    /// The coefficients at σ f32 [B].
    pub fn coefficients(self, sigma: &Tensor, sigma_data: f64) -> Coefficients {
        let sd2 = sigma_data * sigma_data;
        let s = sigma.reshape([-1, 1, 1, 1]);
        let total: Tensor = s.square() + sd2; // σ² + σ_data²
        let (c_skip, c_out) = match self {
            Scalings::Edm => (sd2 * total.reciprocal(), &s * sigma_data / total.sqrt()),
            Scalings::Boundary { sigma_min } => {
                let above = &s - sigma_min;
                let c_skip = sd2 * (above.square() + sd2).reciprocal();
                (c_skip, above * sigma_data / total.sqrt())
            }
        };
        Coefficients { c_skip, c_out, c_in: total.rsqrt(), c_noise: sigma.flatten(0, -1).log() / 4.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(c: &Coefficients) -> [f64; 4] {
        [&c.c_skip, &c.c_out, &c.c_in, &c.c_noise].map(|t| t.reshape([-1]).double_value(&[0]))
    }

    #[test]
    fn edm_coefficients_at_sigma_data() {
        let found = values(&Scalings::Edm.coefficients(&Tensor::from_slice(&[0.5f32]), SIGMA_DATA));
        let expected = [0.5, 0.5 * 0.5 / 0.5f64.sqrt(), 0.5f64.powf(-0.5), 0.5f64.ln() / 4.0];
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 1e-6, "{found:?} instead of {expected:?}");
        }
    }

    #[test]
    fn the_boundary_condition_is_the_identity() {
        let scalings = Scalings::Boundary { sigma_min: 0.003 };
        let [c_skip, c_out, ..] = values(&scalings.coefficients(&Tensor::from_slice(&[0.003f32]), SIGMA_DATA));
        assert!((c_skip - 1.0).abs() < 1e-6 && c_out.abs() < 1e-9, "{c_skip} {c_out}");
    }
}
