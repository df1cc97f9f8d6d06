//! The final table.

use crate::candidate::{Candidate, Model, Origin};
use crate::config::SearchConfig;
use crate::log::Evaluation;
use crate::score::{ReportScores, Scores};
use lcsc_torch::{Error, Result};
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
    /// All parameters tuned by the loss of the search: no combination.
    Finetune,
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
    /// Ends of the 95 % confidence interval of `fd_heldout`: normal, from the bootstrap spread of each seed's images.
    pub fd_heldout_low: f64,
    /// See `fd_heldout_low`.
    pub fd_heldout_high: f64,
    /// Mean over the report seeds on the independent extractor.
    pub fd_independent: f64,
    /// Mean over the report seeds on raw pixels.
    pub fd_pixel: f64,
    /// Mean share of images that lie among the real ones, on the independent extractor's features.
    pub precision: f64,
    /// Mean share of real images that lie among the generated ones, there.
    pub recall: f64,
}

/// A finished search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Last checkpoint, best checkpoint, best EMA, LCSC, and the fine-tuned model where there is one.
    pub rows: Vec<Row>,
    /// Candidates that the search methods had scored, baselines not counted.
    pub evaluations: u64,
    /// Seconds that took, added up over resumes and workers.
    pub seconds: f64,
    /// Seconds of all that the result took: also those of baselines, finalists and selection, but not of the report.
    pub seconds_in_all: f64,
}

impl Outcome {
    /// The row of a label.
    pub fn row(&self, label: Label) -> Option<&Row> {
        self.rows.iter().find(|row| row.label == label)
    }

    /// A warning where the gain of the search over EMA is not confirmed: by other latents, or by the other extractor.
    pub fn doubt(&self, config: &SearchConfig) -> Option<String> {
        let (ema, lcsc) = (self.row(Label::Ema)?, self.row(Label::Lcsc)?);
        let ratio = |fd: fn(&Row) -> f64| fd(lcsc) / fd(ema);
        let (search, heldout) = (ratio(|r| r.fd_search), ratio(|r| r.fd_heldout));
        let independent = ratio(|r| r.fd_independent);
        let figures = format!(
            "LCSC/EMA is {search:.2} on the search latents, {heldout:.2} on held-out ones, {independent:.2} on the independent extractor"
        );
        // A bias that falls with N brings ratios nearer to one.
        if heldout > OVERFIT * search && config.report_images >= config.images {
            Some(format!("the search has over-fitted its latents: {figures}; use more `images`"))
        } else if independent > 1.0 && heldout < 1.0 {
            Some(format!("the gain is one of the metric alone: {figures}"))
        } else {
            None
        }
    }
}

/// How much larger LCSC/EMA may be on held-out latents than on those of the search.
const OVERFIT: f64 = 1.25;
/// Standard deviations on either side of a mean that 95 % of a normal distribution lie within.
const NORMAL_95: f64 = 1.96;

impl Row {
    /// The row of `winner`, scored on the search latents and, seed by seed, on the report latents.
    ///
    /// # Errors
    /// A score lacks what is measured on report latents.
    pub(crate) fn new(
        label: Label,
        winner: &Evaluation,
        fd_selection: Option<f64>,
        heldout: &[Scores],
    ) -> Result<Self> {
        let fds: Vec<f64> = heldout.iter().map(|s| s.fd).collect();
        let report: Option<Vec<ReportScores>> = heldout.iter().map(|s| s.report).collect();
        let report = report.ok_or_else(|| Error::msg("a score on report latents lacks the other measures"))?;
        let mean_of = |score: fn(&ReportScores) -> f64| mean(&report.iter().map(score).collect::<Vec<_>>());
        let spread = NORMAL_95 * (mean_of(|r| r.fd_std * r.fd_std) / report.len() as f64).sqrt();
        Ok(Self {
            label,
            detail: detail(label, &winner.candidate),
            model: winner.candidate.model.clone(),
            fd_search: winner.scores.fd,
            fd_selection,
            fd_heldout: mean(&fds),
            fd_heldout_std: sample_std(&fds),
            fd_heldout_low: mean(&fds) - spread,
            fd_heldout_high: mean(&fds) + spread,
            fd_independent: mean_of(|r| r.fd_independent),
            fd_pixel: mean_of(|r| r.fd_pixel),
            precision: mean_of(|r| r.precision),
            recall: mean_of(|r| r.recall),
        })
    }
}

fn detail(label: Label, candidate: &Candidate) -> String {
    let Candidate { id, origin, .. } = candidate;
    match (label, origin) {
        (_, Origin::Mutation { .. } | Origin::Crossover { .. }) => format!("candidate {id}, {origin}"),
        (Label::Lcsc, Origin::Checkpoint { .. } | Origin::Uniform | Origin::HalfLife { .. })
        | (Label::Lcsc, Origin::PowerFunction { .. } | Origin::Track { .. }) => {
            format!("{origin}: nothing searched was better on the selection latents")
        }
        _ => origin.to_string(),
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
    use crate::phase::Phase;

    fn winner(origin: Origin) -> Evaluation {
        let candidate = Candidate { id: 812, origin, model: Model::Track("ema".into()) };
        let scores = Scores::of(1.5);
        let phase = Phase::Baseline;
        Evaluation { candidate, worker: 0, phase, images: 10, scores, gradient: None, seconds: 0.0 }
    }

    fn heldout(fd: f64, fd_std: f64) -> Scores {
        let report = ReportScores { fd_std, fd_independent: 2.0 * fd, precision: 0.5, ..ReportScores::default() };
        Scores { fd, report: Some(report) }
    }

    #[test]
    fn a_row_holds_mean_spread_and_interval() {
        let scores = [heldout(1.0, 0.1), heldout(2.0, 0.2), heldout(4.5, 0.2)];
        let row = Row::new(Label::Ema, &winner(Origin::PowerFunction { sigma_rel: 0.1 }), Some(3.0), &scores).unwrap();
        assert_eq!(row.detail, "EMA σ_rel 0.1");
        assert_eq!((row.fd_search, row.fd_selection, row.fd_heldout), (1.5, Some(3.0), 2.5));
        assert_eq!((row.fd_independent, row.fd_pixel, row.precision), (5.0, 0.0, 0.5));
        assert!((row.fd_heldout_std.unwrap() - 3.25f64.sqrt()).abs() < 1e-12);
        // The mean's deviation is √(0.01 + 0.04 + 0.04)/3 = 0.1.
        assert!((row.fd_heldout_high - 2.5 - 0.196).abs() < 1e-12 && (2.5 - row.fd_heldout_low - 0.196).abs() < 1e-12);
        let one = Row::new(Label::Ema, &winner(Origin::Uniform), None, &scores[..1]).unwrap();
        assert_eq!(one.fd_heldout_std, None);
        assert!(Row::new(Label::Ema, &winner(Origin::Uniform), None, &[Scores::of(1.0)]).is_err());
    }

    #[test]
    fn the_detail_says_where_a_model_came_from() {
        let detail = |label, origin| detail(label, &winner(origin).candidate);
        let checkpoint = Origin::Checkpoint { index: 7, nimg: 153_600.0, track: "raw".into() };
        assert_eq!(detail(Label::Last, checkpoint), "checkpoint 153600");
        assert_eq!(detail(Label::Lcsc, Origin::Mutation { parent: 790 }), "candidate 812, mutation of 790");
        assert_eq!(detail(Label::Lcsc, Origin::Gradient { step: 90 }), "gradient step 90");
        assert_eq!(
            detail(Label::Lcsc, Origin::Uniform),
            "uniform average: nothing searched was better on the selection latents"
        );
    }

    #[test]
    fn a_gain_that_is_not_confirmed_is_doubted() {
        let row = |label, search, fd: f64, independent| Row {
            fd_search: search,
            fd_independent: independent,
            ..Row::new(label, &winner(Origin::Uniform), None, &[heldout(fd, 0.1)]).unwrap()
        };
        let doubt = |lcsc| {
            Outcome {
                rows: vec![row(Label::Ema, 2.0, 2.0, 2.0), lcsc],
                evaluations: 0,
                seconds: 0.0,
                seconds_in_all: 0.0,
            }
            .doubt(&SearchConfig::default())
        };
        assert_eq!(doubt(row(Label::Lcsc, 1.0, 1.1, 1.5)), None);
        assert!(doubt(row(Label::Lcsc, 1.0, 1.5, 1.5)).unwrap().contains("over-fitted its latents: LCSC/EMA is 0.50"));
        assert!(doubt(row(Label::Lcsc, 1.0, 1.1, 2.1)).unwrap().contains("metric alone"));
    }
}
