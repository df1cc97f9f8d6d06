//! What a fitness is asked and what it answers.

use crate::candidate::Model;
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

/// Fréchet distances of a model's images to the data; smaller is better, +∞ where they are not finite.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// On the features that the search sees.
    #[serde(with = "infinite_as_null")]
    pub fd: f64,
    /// On an independent extractor's features; report latents only.
    #[serde(default, with = "infinite_as_null_option", skip_serializing_if = "Option::is_none")]
    pub fd_independent: Option<f64>,
    /// On raw pixels; report latents only.
    #[serde(default, with = "infinite_as_null_option", skip_serializing_if = "Option::is_none")]
    pub fd_pixel: Option<f64>,
}

impl Scores {
    /// A model whose distance is not a number is as bad as can be.
    pub(crate) fn worst_if_not_finite(self) -> Self {
        Self {
            fd: worst_if_not_finite(self.fd),
            fd_independent: self.fd_independent.map(worst_if_not_finite),
            fd_pixel: self.fd_pixel.map(worst_if_not_finite),
        }
    }
}

/// The score itself, or +∞.
pub(crate) fn worst_if_not_finite(score: f64) -> f64 {
    if score.is_finite() { score } else { f64::INFINITY }
}

/// Scores a model on fixed latents.
pub trait Fitness {
    /// The distances of the images that `model` makes of `latents`; the same for the same arguments.
    ///
    /// # Errors
    /// The model cannot be built or sampled at all. Non-finite images are no error: their distance is not finite.
    fn score(&mut self, model: &Model, latents: Latents) -> Result<Scores>;
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

/// The same for a score that may be absent.
mod infinite_as_null_option {
    use serde::{Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(score: &Option<f64>, s: S) -> Result<S::Ok, S::Error> {
        score.filter(|v| v.is_finite()).serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
        super::infinite_as_null::deserialize(d).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinite_and_absent_scores_survive_json() {
        for (scores, text) in [
            (Scores { fd: f64::INFINITY, fd_independent: None, fd_pixel: None }, r#"{"fd":null}"#),
            (
                Scores { fd: 0.1, fd_independent: Some(2.5), fd_pixel: Some(f64::INFINITY) },
                r#"{"fd":0.1,"fd_independent":2.5,"fd_pixel":null}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&scores).unwrap(), text);
            assert_eq!(serde_json::from_str::<Scores>(text).unwrap(), scores);
        }
    }

    #[test]
    fn what_is_not_finite_is_worst() {
        let scores = Scores { fd: f64::NAN, fd_independent: Some(f64::NEG_INFINITY), fd_pixel: Some(1.0) };
        let worst = Scores { fd: f64::INFINITY, fd_independent: Some(f64::INFINITY), fd_pixel: Some(1.0) };
        assert_eq!(scores.worst_if_not_finite(), worst);
    }
}
