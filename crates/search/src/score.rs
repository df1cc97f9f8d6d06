//! What a fitness is asked and what it answers.

use crate::candidate::Model;
use crate::coefficients::Coefficients;
use lcsc_torch::Result;
use serde::{Deserialize, Serialize};

/// Which fixed latents images are sampled from. The three sets share no image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Latents {
    /// Those on which candidates are searched.
    Search,
    /// Those on which the winner is chosen among the finalists.
    Selection,
    /// Those of the final table, one set a seed index.
    Report(u64),
}

/// How a model's images compare with the data; distances: smaller is better, +∞ where they are not finite.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Fréchet distance on the features that the search sees.
    #[serde(with = "infinite_as_null")]
    pub fd: f64,
    /// What the other measures say; report latents only.
    #[serde(flatten)]
    pub report: Option<ReportScores>,
}

/// What is measured on report latents alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ReportScores {
    /// Standard deviation of `fd` over resamples of the images (bootstrap).
    #[serde(with = "infinite_as_null")]
    pub fd_std: f64,
    /// Fréchet distance on an independent extractor's features.
    #[serde(with = "infinite_as_null")]
    pub fd_independent: f64,
    /// On raw pixels.
    #[serde(with = "infinite_as_null")]
    pub fd_pixel: f64,
    /// Share of the images that lie among the real ones, on the independent extractor's features.
    pub precision: f64,
    /// Share of the real images that lie among the generated ones, there.
    pub recall: f64,
}

impl Scores {
    /// A score on search or selection latents.
    pub fn of(fd: f64) -> Self {
        Self { fd, report: None }
    }

    /// A model whose distance is not a number is as bad as can be.
    pub(crate) fn worst_if_not_finite(self) -> Self {
        let worst = |r: ReportScores| ReportScores {
            fd_std: worst_if_not_finite(r.fd_std),
            fd_independent: worst_if_not_finite(r.fd_independent),
            fd_pixel: worst_if_not_finite(r.fd_pixel),
            ..r
        };
        Self { fd: worst_if_not_finite(self.fd), report: self.report.map(worst) }
    }
}

/// The score itself, or +∞.
pub(crate) fn worst_if_not_finite(score: f64) -> f64 {
    if score.is_finite() { score } else { f64::INFINITY }
}

/// Measures models.
pub trait Fitness {
    /// Told which models are scored next, so that they can be merged in one pass over the checkpoints.
    ///
    /// # Errors
    /// The checkpoints cannot be read, or memory does not suffice.
    fn prepare(&mut self, models: &[&Model]) -> Result<()>;

    /// How many models are scored at once on search and selection latents, where as many wait.
    fn side_by_side(&self) -> usize;

    /// How the images that each of `models` makes of `latents` compare with the data; the same for the same arguments.
    ///
    /// # Errors
    /// A model cannot be built or sampled at all. Non-finite images are no error: their distance is not finite.
    fn scores(&mut self, models: &[&Model], latents: Latents) -> Result<Vec<Scores>>;

    /// Distance F and ∂F/∂α `[G][K]` of the combination on the fresh latents of a step; the same for the same
    /// arguments.
    ///
    /// # Errors
    /// The model cannot be built or sampled at all, or memory does not suffice for the graph.
    fn gradient(&mut self, alpha: &Coefficients, step: u64) -> Result<(f64, Vec<Vec<f64>>)>;

    /// Begins fine-tuning at `start`, or goes on with it where no more than `logged` steps were saved: how many steps are
    /// behind it.
    ///
    /// # Errors
    /// The model cannot be built, or what was saved of an earlier process cannot be read.
    fn begin_tuning(&mut self, start: &Model, logged: u64) -> Result<u64>;

    /// One step of fine-tuning at rate `lr` on the fresh latents of the step: the distance before it.
    ///
    /// # Errors
    /// Tuning was not begun, or memory does not suffice.
    fn tune(&mut self, step: u64, lr: f64) -> Result<f64>;

    /// Keeps what fine-tuning has reached.
    ///
    /// # Errors
    /// The disk is full or gone.
    fn end_tuning(&mut self) -> Result<()>;
}

/// JSON has no infinity: null stands for +∞.
pub(crate) mod infinite_as_null {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(score: &f64, s: S) -> Result<S::Ok, S::Error> {
        Some(*score).filter(|v| v.is_finite()).serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(d)?.unwrap_or(f64::INFINITY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinite_and_absent_scores_survive_json() {
        let report = ReportScores { fd_std: 0.25, fd_pixel: f64::INFINITY, precision: 0.5, ..ReportScores::default() };
        for (scores, text) in [
            (Scores::of(f64::INFINITY), r#"{"fd":null}"#),
            (
                Scores { fd: 0.1, report: Some(report) },
                r#"{"fd":0.1,"fd_std":0.25,"fd_independent":0.0,"fd_pixel":null,"precision":0.5,"recall":0.0}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&scores).unwrap(), text);
            assert_eq!(serde_json::from_str::<Scores>(text).unwrap(), scores);
        }
    }

    #[test]
    fn what_is_not_finite_is_worst() {
        let report = |fd_independent| ReportScores { fd_independent, fd_pixel: 1.0, ..ReportScores::default() };
        let scores = Scores { fd: f64::NAN, report: Some(report(f64::NEG_INFINITY)) };
        let worst = Scores { fd: f64::INFINITY, report: Some(report(f64::INFINITY)) };
        assert_eq!(scores.worst_if_not_finite(), worst);
    }
}
