//! The final table.

use crate::candidate::{Candidate, Model, Origin};
use crate::log::Evaluation;
use crate::score::Scores;
use serde::{Deserialize, Serialize};

/// A row of the final table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// The last checkpoint.
    Last,
    /// The best single checkpoint.
    BestCheckpoint,
    /// The best average: uniform, an EMA profile, or a recorded track.
    Ema,
    /// The result of the search.
    Lcsc,
}

/// A model of the final table with its scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Which row.
    pub label: Label,
    /// How the model came about, for people.
    pub detail: String,
    /// The model.
    pub model: Model,
    /// Distance on the latents of the search, which favours what was searched on them.
    pub fd_search: f64,
    /// Distance on the selection latents, where the model was a finalist.
    pub fd_selection: Option<f64>,
    /// Mean distance over the report seeds.
    pub fd_heldout: f64,
    /// Sample standard deviation over the report seeds, where there are two or more.
    pub fd_heldout_std: Option<f64>,
    /// Mean over the report seeds on the independent extractor.
    pub fd_independent: Option<f64>,
    /// Mean over the report seeds on raw pixels.
    pub fd_pixel: Option<f64>,
}

/// A finished search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Last checkpoint, best checkpoint, best EMA, LCSC.
    pub rows: Vec<Row>,
    /// Candidates that the search method had scored, baselines not counted.
    pub evaluations: u64,
    /// Seconds that took, added up over resumes.
    pub seconds: f64,
}

impl Row {
    /// The row of `winner`, scored on the search latents and, seed by seed, on the report latents.
    pub(crate) fn new(label: Label, winner: &Evaluation, fd_selection: Option<f64>, heldout: &[Scores]) -> Self {
        let fds: Vec<f64> = heldout.iter().map(|s| s.fd).collect();
        let mean_of = |score: fn(&Scores) -> Option<f64>| {
            heldout.iter().map(score).collect::<Option<Vec<f64>>>().map(|values| mean(&values))
        };
        Self {
            label,
            detail: detail(label, &winner.candidate),
            model: winner.candidate.model.clone(),
            fd_search: winner.scores.fd,
            fd_selection,
            fd_heldout: mean(&fds),
            fd_heldout_std: sample_std(&fds),
            fd_independent: mean_of(|s| s.fd_independent),
            fd_pixel: mean_of(|s| s.fd_pixel),
        }
    }
}

fn detail(label: Label, candidate: &Candidate) -> String {
    let Candidate { id, origin, .. } = candidate;
    match (label, origin) {
        (_, Origin::Mutation { .. } | Origin::Crossover { .. }) => format!("candidate {id}, {origin}"),
        (Label::Lcsc, _) => format!("{origin}: nothing searched was better on the selection latents"),
        (Label::Last | Label::BestCheckpoint | Label::Ema, _) => origin.to_string(),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// None for fewer than two values, or infinite ones.
fn sample_std(values: &[f64]) -> Option<f64> {
    let centre = mean(values);
    let variance = values.iter().map(|v| (v - centre).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0);
    Some(variance.sqrt()).filter(|s| s.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Phase;

    fn winner(origin: Origin) -> Evaluation {
        let candidate = Candidate { id: 812, origin, model: Model::Track("ema".into()) };
        let scores = Scores { fd: 1.5, fd_independent: None, fd_pixel: None };
        Evaluation { candidate, worker: 0, phase: Phase::Baseline, images: 10, scores, seconds: 0.0 }
    }

    #[test]
    fn a_row_holds_mean_and_spread() {
        let heldout = |fd, pixel| Scores { fd, fd_independent: Some(2.0 * fd), fd_pixel: pixel };
        let scores = [heldout(1.0, Some(1.0)), heldout(2.0, None), heldout(4.5, Some(1.0))];
        let row = Row::new(Label::Ema, &winner(Origin::PowerFunction { sigma_rel: 0.1 }), Some(3.0), &scores);
        assert_eq!(row.detail, "EMA σ_rel 0.1");
        assert_eq!((row.fd_search, row.fd_selection, row.fd_heldout), (1.5, Some(3.0), 2.5));
        assert_eq!((row.fd_independent, row.fd_pixel), (Some(5.0), None));
        assert!((row.fd_heldout_std.unwrap() - 3.25f64.sqrt()).abs() < 1e-12);
        assert_eq!(Row::new(Label::Ema, &winner(Origin::Uniform), None, &scores[..1]).fd_heldout_std, None);
    }

    #[test]
    fn the_detail_says_where_a_model_came_from() {
        let detail = |label, origin| detail(label, &winner(origin).candidate);
        assert_eq!(detail(Label::Last, Origin::Checkpoint { index: 7, nimg: 153_600.0 }), "checkpoint 153600");
        assert_eq!(detail(Label::Lcsc, Origin::Mutation { parent: 790 }), "candidate 812, mutation of 790");
        assert_eq!(
            detail(Label::Lcsc, Origin::Uniform),
            "uniform average: nothing searched was better on the selection latents"
        );
    }
}
