//! The search methods behind one interface: ask for a candidate, tell its score.
//!
//! What a method asks depends on the seed, the candidate's id and what it was told, so that telling the logged scores
//! again restores it. Its whole state can be serialised.

mod cma_es;
mod cma_search;
mod evolution;
mod gradient;
mod one_plus_one;
mod plane;

pub use cma_es::{CmaEs, CmaEsConfig};
pub use cma_search::CmaSearch;
pub use evolution::{Evolution, EvolutionConfig};
pub(crate) use gradient::rate;
pub use gradient::step_images;
pub use gradient::{AdamSteps, FinetuneConfig, Gradient, GradientConfig};
pub use one_plus_one::{OnePlusOne, OnePlusOneConfig};

use crate::candidate::{Candidate, Model, Origin};
use crate::coefficients::Coefficients;
use crate::config::{Penalty, SearchConfig};
use crate::log::Evaluation;
use crate::score::{infinite_as_null, worst_if_not_finite};
use lcsc_torch::{Error, Invalid, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A search method by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MethodName {
    /// EMA profiles over a grid of rates: the baselines alone.
    EmaGrid,
    /// The evolutionary search of LCSC.
    Evolution,
    /// The (1+1) evolution strategy with the one-fifth rule.
    OnePlusOne,
    /// Covariance matrix adaptation.
    CmaEs,
    /// Adam along the gradient of the distance with respect to the coefficients.
    Gradient,
    /// Adam along the gradient with respect to the parameters themselves: no combination, a rival.
    Finetune,
}

impl MethodName {
    /// All methods.
    pub const ALL: [Self; 6] =
        [Self::EmaGrid, Self::Evolution, Self::OnePlusOne, Self::CmaEs, Self::Gradient, Self::Finetune];

    /// The name in configs, summaries and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::EmaGrid => "ema-grid",
            Self::Evolution => "evolution",
            Self::OnePlusOne => "one-plus-one",
            Self::CmaEs => "cma-es",
            Self::Gradient => "gradient",
            Self::Finetune => "finetune",
        }
    }
}

impl std::str::FromStr for MethodName {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|m| m.name() == text)
            .ok_or_else(|| format!("unknown method `{text}`, expected one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// A scored combination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Candidate id.
    pub id: u64,
    /// α.
    pub coefficients: Coefficients,
    /// Smaller is better; +∞ ranks last.
    #[serde(with = "infinite_as_null")]
    pub score: f64,
}

/// What the coefficients of a search minimise: the distance and the penalties.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    penalty: Penalty,
    start: Coefficients,
}

impl Objective {
    /// Distances from `start` are penalised.
    pub fn new(penalty: Penalty, start: Coefficients) -> Self {
        Self { penalty, start }
    }

    /// Distance plus penalties; +∞ for a distance that is not finite.
    pub fn score(&self, alpha: &Coefficients, fd: f64) -> f64 {
        let sum = |term: fn(f64, f64) -> f64| {
            let rows = alpha.rows().iter().zip(self.start.rows());
            rows.flat_map(|(a, s)| a.iter().zip(s)).map(|(a, s)| term(*a, *s)).sum::<f64>() / alpha.groups() as f64
        };
        let Penalty { square, distance } = self.penalty;
        worst_if_not_finite(fd + square * sum(|a, _| a * a) + distance * sum(|a, s| (a - s) * (a - s)))
    }

    /// Adds the derivative of the penalties to ∂F/∂α.
    pub fn add_gradient(&self, alpha: &Coefficients, gradient: &mut [Vec<f64>]) {
        let Penalty { square, distance } = self.penalty;
        let scale = 2.0 / alpha.groups() as f64;
        for ((row, a), s) in gradient.iter_mut().zip(alpha.rows()).zip(self.start.rows()) {
            for ((g, a), s) in row.iter_mut().zip(a).zip(s) {
                *g += scale * (square * a + distance * (a - s));
            }
        }
    }

    /// A scored candidate as a member; none where it is no combination.
    fn member(&self, evaluation: &Evaluation) -> Result<Option<Member>> {
        let Model::Coefficients(alpha) = &evaluation.candidate.model else { return Ok(None) };
        let coefficients = alpha.spread(self.start.groups())?;
        let score = self.score(&coefficients, evaluation.scores.fd);
        Ok(Some(Member { id: evaluation.candidate.id, coefficients, score }))
    }
}

/// A method with its state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// See [`Evolution`].
    Evolution(Evolution),
    /// See [`OnePlusOne`].
    OnePlusOne(OnePlusOne),
    /// See [`CmaSearch`].
    CmaEs(CmaSearch),
    /// See [`Gradient`].
    Gradient(Gradient),
    /// Adam on the parameters, whose state the fitness keeps: here are its candidates' numbers alone.
    Finetune(AdamSteps),
}

/// Where a method begins.
pub struct Beginning<'a> {
    /// Constants.
    pub config: &'a SearchConfig,
    /// Seed of its draws.
    pub seed: u64,
    /// Id of its first candidate.
    pub first_id: u64,
    /// Network evaluations an image.
    pub nfe: usize,
    /// Number of groups of coefficients.
    pub groups: usize,
    /// What was scored on the search latents before.
    pub known: &'a [&'a Evaluation],
}

impl Method {
    /// Begins at the best combination that is known. None: the method has no candidates of its own.
    ///
    /// # Errors
    /// No combination is known.
    pub fn new(name: MethodName, beginning: &Beginning) -> Result<Option<Self>> {
        let Beginning { config, seed, first_id, nfe, groups, known } = *beginning;
        let combination = |e: &&&Evaluation| matches!(e.candidate.model, Model::Coefficients(_));
        let best = known.iter().filter(combination).min_by(|a, b| a.scores.fd.total_cmp(&b.scores.fd));
        let Some((best_id, best_fd, Model::Coefficients(alpha))) =
            best.map(|e| (e.candidate.id, e.scores.fd, &e.candidate.model))
        else {
            return Err(Error::msg("the search has no combination of checkpoints to begin with"));
        };
        // What a method with groups found before is gone on from in its groups.
        let rows = |e: &&Evaluation| match &e.candidate.model {
            Model::Coefficients(alpha) => alpha.groups(),
            Model::Track(_) | Model::Finetuned => 1,
        };
        let start = alpha.spread(known.iter().map(rows).fold(groups, usize::max))?;
        let objective = Objective::new(config.penalty, start.clone());
        let members = known.iter().map(|e| objective.member(e)).collect::<Result<Vec<_>>>()?;
        let members: Vec<Member> = members.into_iter().flatten().collect();
        Ok(Some(match name {
            MethodName::EmaGrid => return Ok(None),
            MethodName::Evolution => {
                Self::Evolution(Evolution::new(config.evolution.clone(), objective, seed, first_id, members))
            }
            MethodName::OnePlusOne => {
                let parent = Member { id: best_id, score: objective.score(&start, best_fd), coefficients: start };
                Self::OnePlusOne(OnePlusOne::new(config.one_plus_one.clone(), objective, seed, first_id, parent))
            }
            MethodName::CmaEs => Self::CmaEs(CmaSearch::new(&config.cma_es, objective, seed, first_id)),
            MethodName::Gradient => Self::Gradient(Gradient::new(&config.gradient, objective, first_id, nfe)),
            MethodName::Finetune => Self::Finetune(AdamSteps::new(first_id)),
        }))
    }

    /// The candidate of an id, larger than all asked or told before. None: the method waits for the scores of candidates
    /// that were asked before.
    ///
    /// # Errors
    /// The method has nothing to begin with, or a coefficient has grown beyond all numbers.
    pub fn ask(&self, id: u64) -> Result<Option<Candidate>> {
        let combination = |(origin, alpha)| Candidate { id, origin, model: Model::Coefficients(alpha) };
        Ok(match self {
            Self::Evolution(m) => Some(combination(m.ask(id)?)),
            Self::OnePlusOne(m) => m.ask(id)?.map(combination),
            Self::CmaEs(m) => m.ask(id)?.map(combination),
            Self::Gradient(m) => m.ask(id).map(combination),
            Self::Finetune(m) => {
                m.ask(id).map(|step| Candidate { id, origin: Origin::Finetune { step }, model: Model::Finetuned })
            }
        })
    }

    /// How many candidates from `id` on may be asked before the first of them is scored.
    pub(crate) fn most(&self, id: u64) -> u64 {
        match self {
            Self::Evolution(m) => m.most(id),
            Self::CmaEs(_) => u64::MAX,
            Self::OnePlusOne(_) | Self::Gradient(_) | Self::Finetune(_) => 1,
        }
    }

    /// Takes in the score of a candidate; `fraction` is how much of the budget was used up before it.
    ///
    /// # Errors
    /// The evaluation is none of this method's.
    pub fn tell(&mut self, evaluation: &Evaluation, fraction: f64) -> Result<()> {
        match self {
            Self::Evolution(m) => m.tell(evaluation),
            Self::OnePlusOne(m) => m.tell(evaluation),
            Self::CmaEs(m) => m.tell(evaluation),
            Self::Gradient(m) => m.tell(evaluation, fraction),
            Self::Finetune(m) => {
                m.advance();
                Ok(())
            }
        }
    }
}

/// A probability, or what is wrong with it.
fn check_probability(key: &str, p: f64) -> Option<Invalid> {
    (!(0.0..=1.0).contains(&p)).then(|| Invalid::new(key, format!("is {p}, expected a probability, 0 to 1")))
}

/// A number above zero, or what is wrong with it.
fn check_positive(key: &str, value: f64) -> Option<Invalid> {
    (value.is_nan() || value <= 0.0).then(|| Invalid::new(key, format!("is {value}, expected a positive number")))
}

#[cfg(test)]
mod tests;
