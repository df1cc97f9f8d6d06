//! Coefficients of a linear combination of checkpoints, their sum of one built in.

use lcsc_torch::{Error, Result, bail};
use serde::{Deserialize, Serialize};

/// α ∈ R^K with Σα = 1: finite, negative values and values above one allowed (arXiv 2404.02241, section 4).
///
/// The last checkpoint is the base b: the K−1 others are free and α_b = 1 − Σ_{i≠b} α_i, so that
/// θ(α) = θ_b + Σ_{i≠b} α_i (θ_i − θ_b) = αᵀW whatever the free values are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f64>", into = "Vec<f64>")]
pub struct Coefficients(Vec<f64>);

/// Largest deviation of the sum from one in coefficients that come out of a file.
const SUM_TOLERANCE: f64 = 1e-6;

impl Coefficients {
    /// From the K−1 free values, those of all checkpoints but the last.
    ///
    /// # Errors
    /// A value, or the last coefficient that follows from them, is not finite.
    pub fn from_free(free: &[f64]) -> Result<Self> {
        let base = 1.0 - free.iter().sum::<f64>();
        let values: Vec<f64> = free.iter().copied().chain([base]).collect();
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            bail!("coefficient {i} of {} is {}, expected a finite number", values.len(), values[i]);
        }
        Ok(Self(values))
    }

    /// From K values whose last one gives way, so that the sum is one.
    ///
    /// # Errors
    /// There is no value, or one is not finite.
    pub fn new(values: &[f64]) -> Result<Self> {
        match values {
            [] => bail!("a combination of no checkpoints, expected at least one coefficient"),
            [free @ .., _] => Self::from_free(free),
        }
    }

    /// From K values divided by their sum.
    ///
    /// # Errors
    /// There is no value, or the sum is zero or not finite.
    pub fn renormalised(values: &[f64]) -> Result<Self> {
        let sum: f64 = values.iter().sum();
        Self::new(&values.iter().map(|v| v / sum).collect::<Vec<_>>())
    }

    /// All K values.
    pub fn as_slice(&self) -> &[f64] {
        &self.0
    }

    /// The K−1 free values.
    pub fn free(&self) -> &[f64] {
        &self.0[..self.0.len() - 1]
    }
}

impl TryFrom<Vec<f64>> for Coefficients {
    type Error = Error;

    fn try_from(values: Vec<f64>) -> Result<Self> {
        let sum: f64 = values.iter().sum();
        if (sum - 1.0).abs() > SUM_TOLERANCE {
            bail!("the coefficients sum to {sum}, expected 1");
        }
        Self::new(&values)
    }
}

impl From<Coefficients> for Vec<f64> {
    fn from(c: Coefficients) -> Self {
        c.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_trajectory::one_hot;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn sum(c: &Coefficients) -> f64 {
        c.as_slice().iter().sum()
    }

    proptest! {
        #[test]
        fn the_sum_is_one_and_the_free_values_are_kept(free in vec(-10.0..10.0, 0..64)) {
            let c = Coefficients::from_free(&free).unwrap();
            prop_assert!((sum(&c) - 1.0).abs() < 1e-12);
            prop_assert_eq!(c.free(), &free[..]);
        }

        #[test]
        fn files_give_back_every_bit(free in vec(-10.0..10.0, 0..64)) {
            let c = Coefficients::from_free(&free).unwrap();
            let back: Coefficients = serde_json::from_str(&serde_json::to_string(&c).unwrap()).unwrap();
            prop_assert_eq!(&back, &c);
            prop_assert_eq!(Coefficients::new(c.as_slice()).unwrap(), c);
        }

        #[test]
        fn renormalising_keeps_the_proportions(values in vec(0.1..5.0, 1..64)) {
            let c = Coefficients::renormalised(&values).unwrap();
            prop_assert!((sum(&c) - 1.0).abs() < 1e-12);
            for (a, b) in c.as_slice().iter().zip(&values) {
                prop_assert!((a * values[0] - b * c.as_slice()[0]).abs() < 1e-10);
            }
        }

        #[test]
        fn one_hot_is_exact(k in 1usize..64, i in 0usize..64) {
            let values = one_hot(k, i % k);
            let c = Coefficients::new(&values).unwrap();
            prop_assert_eq!(c.as_slice(), &values[..]);
        }
    }

    #[test]
    fn what_is_no_combination_is_refused() {
        let text = Coefficients::new(&[0.5, f64::NAN, 0.5]).unwrap_err().to_string();
        assert_eq!(text, "coefficient 1 of 3 is NaN, expected a finite number");
        assert!(Coefficients::from_free(&[f64::MAX, f64::MAX]).is_err());
        assert!(Coefficients::renormalised(&[1.0, -1.0]).is_err());
        assert!(Coefficients::new(&[]).is_err());
        let text = serde_json::from_str::<Coefficients>("[0.5, 0.4]").unwrap_err().to_string();
        assert!(text.contains("sum to 0.9, expected 1"), "{text}");
    }
}
