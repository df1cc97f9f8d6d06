//! Distances between images that consistency losses use.

use crate::lpips::{Lpips, LpipsConfig};
use lcsc_torch::{Device, Invalid, Kind, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The distance d of a consistency loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum DistanceConfig {
    /// Mean of |a − b| over pixels.
    L1,
    /// Mean of (a − b)² over pixels.
    L2,
    /// √(‖a − b‖² + c²) − c over all pixels together (Song & Dhariwal 2023).
    Huber {
        /// c; by default 0.00054·√d for images of d values.
        #[serde(default)]
        c: Option<f64>,
    },
    /// LPIPS, a perceptual distance (Zhang et al. 2018).
    Lpips(LpipsConfig),
}

impl DistanceConfig {
    pub(crate) fn validate(&self) -> Option<Invalid> {
        match self {
            Self::Huber { c: Some(c) } if *c < 0.0 => {
                Some(Invalid::new("distance.huber.c", format!("is {c}, expected 0 or more")))
            }
            Self::L1 | Self::L2 | Self::Huber { .. } | Self::Lpips(_) => None,
        }
    }
}

/// A distance that is ready to be taken.
pub enum Distance {
    /// Of [`DistanceConfig::L1`].
    L1,
    /// Of [`DistanceConfig::L2`].
    L2,
    /// Of [`DistanceConfig::Huber`].
    Huber {
        /// c, where it is given.
        c: Option<f64>,
    },
    /// Of [`DistanceConfig::Lpips`].
    Lpips(Box<Lpips>),
}

impl Distance {
    /// Reads what the distance needs.
    ///
    /// # Errors
    /// The weights of LPIPS are missing or do not fit.
    pub fn new(config: &DistanceConfig, device: Device) -> Result<Self> {
        Ok(match config {
            DistanceConfig::L1 => Self::L1,
            DistanceConfig::L2 => Self::L2,
            DistanceConfig::Huber { c } => Self::Huber { c: *c },
            DistanceConfig::Lpips(c) => Self::Lpips(Box::new(Lpips::load(c, device)?)),
        })
    }

    /// d(a,b) of each image: f32 `[B,C,H,W]` → f32 `[B]`.
    pub fn between(&self, a: &Tensor, b: &Tensor) -> Tensor {
        let mean = |x: Tensor| x.flatten(1, -1).mean_dim(1i64, false, Kind::Float);
        match self {
            Self::L1 => mean((a - b).abs()),
            Self::L2 => mean((a - b).square()),
            Self::Huber { c } => {
                let values = a.size()[1..].iter().product::<i64>() as f64;
                pseudo_huber(a, b, c.unwrap_or(0.00054 * values.sqrt()))
            }
            Self::Lpips(lpips) => lpips.distance(a, b),
        }
    }
}

/// √(‖a − b‖² + c²) − c, for c = 0 the plain norm: f32 [B,C,H,W] → f32 [B].
pub(crate) fn pseudo_huber(a: &Tensor, b: &Tensor, c: f64) -> Tensor {
    let squared = per_image((a - b).square());
    if c > 0.0 { (squared + c * c).sqrt() - c } else { squared.sqrt() }
}

/// Sum over everything but the batch.
pub(crate) fn per_image(x: Tensor) -> Tensor {
    x.flatten(1, -1).sum_dim_intlist(1i64, false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_distance_has_its_value() {
        let a = Tensor::from_slice(&[1f32, 0.0, 3.0, 0.0]).reshape([1, 1, 2, 2]);
        let of = |config| Distance::new(&config, Device::Cpu).unwrap().between(&a, &a.zeros_like()).double_value(&[0]);
        assert!((of(DistanceConfig::L1) - 1.0).abs() < 1e-6);
        assert!((of(DistanceConfig::L2) - 2.5).abs() < 1e-6);
        assert!((of(DistanceConfig::Huber { c: Some(1.0) }) - (11f64.sqrt() - 1.0)).abs() < 1e-6);
        let c: f64 = 0.00054 * 2.0;
        assert!((of(DistanceConfig::Huber { c: None }) - ((10.0 + c * c).sqrt() - c)).abs() < 1e-6);
    }
}
