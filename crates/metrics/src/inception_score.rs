//! Inception Score (Salimans et al. 2016, arXiv 1606.03498): exp E KL(p(y|x) ‖ p(y)).

use lcsc_torch::{Device, Kind, Result, Tensor, bail};
use serde::{Deserialize, Serialize};

/// Parts that the images are split into, as in the authors' code.
pub(crate) const SPLITS: i64 = 10;

/// Mean and spread over ten parts of the images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct InceptionScore {
    /// Mean over the parts.
    pub mean: f64,
    /// Standard deviation over the parts (1/n, as published figures have it).
    pub std: f64,
}

/// Gathers what the score of one part needs, in float64.
#[derive(Debug)]
struct Part {
    images: i64,
    /// Σ over images of p, f64 [classes].
    sum: Tensor,
    /// Σ over images and classes of p·ln p.
    negentropy: f64,
}

/// Gathers class probabilities of `n` images in their order: part s has images s·n/10 … (s+1)·n/10.
#[derive(Debug)]
pub(crate) struct ScoreParts {
    n: i64,
    seen: i64,
    parts: Vec<Part>,
}

impl ScoreParts {
    pub(crate) fn new(n: i64) -> Result<Self> {
        if n < SPLITS {
            bail!("an Inception Score needs at least {SPLITS} images, one for each of its parts, but there are {n}");
        }
        Ok(Self { n, seen: 0, parts: Vec::new() })
    }

    /// Adds probabilities [B,classes].
    pub(crate) fn add(&mut self, probabilities: &Tensor) -> Result<()> {
        let mut p = probabilities.f_to_device_(Device::Cpu, Kind::Double, false, false)?;
        while p.size()[0] > 0 {
            if self.seen == self.parts.len() as i64 * self.n / SPLITS {
                let sum = Tensor::f_zeros([p.size()[1]], (Kind::Double, Device::Cpu))?;
                self.parts.push(Part { images: 0, sum, negentropy: 0.0 });
            }
            let end = self.parts.len() as i64 * self.n / SPLITS;
            let take = p.size()[0].min(end - self.seen);
            let Some(part) = self.parts.last_mut() else { break };
            let head = p.f_narrow(0, 0, take)?;
            part.images += take;
            part.sum = part.sum.f_add(&head.f_sum_dim_intlist(0, false, Kind::Double)?)?;
            part.negentropy += p_ln_p(&head)?;
            self.seen += take;
            p = p.f_narrow(0, take, p.size()[0] - take)?;
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<InceptionScore> {
        let score = |part: &Part| -> Result<f64> {
            let n = part.images as f64;
            Ok((part.negentropy / n - p_ln_p(&(&part.sum / n))?).exp())
        };
        let scores = self.parts.iter().map(score).collect::<Result<Vec<f64>>>()?;
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / scores.len() as f64;
        Ok(InceptionScore { mean, std: variance.sqrt() })
    }
}

/// Σ p·ln p, where 0·ln 0 = 0.
fn p_ln_p(p: &Tensor) -> Result<f64> {
    Ok(p.f_xlogy(p)?.f_sum(Kind::Double)?.double_value(&[]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata::Expected;

    #[test]
    fn the_value_is_that_of_the_definition_whatever_the_batches() {
        let e = Expected::read();
        let p = e.tensor("probabilities");
        let expected = e.numbers("inception_score");
        for batch in [1, 7, 53] {
            let mut parts = ScoreParts::new(53).unwrap();
            p.split(batch, 0).iter().for_each(|p| parts.add(p).unwrap());
            let InceptionScore { mean, std } = parts.finish().unwrap();
            assert!((mean - expected[0]).abs() < 1e-12 && (std - expected[1]).abs() < 1e-12, "{mean} {std}");
        }
        assert!(ScoreParts::new(9).is_err());
    }
}
