//! What can be scored, and where it came from.

use crate::coefficients::Coefficients;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A model that can be scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    /// The merged model θ(α) = αᵀW.
    Coefficients(Coefficients),
    /// An EMA track as training recorded it at the last checkpoint.
    Track(String),
    /// The parameters that fine-tuning has reached.
    Finetuned,
}

/// How a candidate came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// One checkpoint alone.
    Checkpoint {
        /// Its place in the trajectory, from 0.
        index: usize,
        /// Images seen when it was saved.
        nimg: f64,
        /// `raw`, or the EMA track that it is of.
        track: String,
    },
    /// The mean of all checkpoints: an EMA of infinite half-life.
    Uniform,
    /// An exponential average as coefficients.
    HalfLife {
        /// Half-life in images.
        nimg: f64,
    },
    /// A power-function average as coefficients (arXiv 2312.02696, section 3.1).
    PowerFunction {
        /// Relative width.
        sigma_rel: f64,
    },
    /// An average recorded while training.
    Track {
        /// Its name.
        name: String,
    },
    /// Given from outside: what an earlier search found.
    Given {
        /// Where it was found.
        source: String,
    },
    /// A parent with some coefficients moved.
    Mutation {
        /// Candidate id.
        parent: u64,
    },
    /// Coefficients from two parents.
    Crossover {
        /// Candidate ids, the better one first.
        parents: [u64; 2],
    },
    /// A point of CMA-ES.
    Generation {
        /// Number of its generation, from 0.
        generation: u64,
    },
    /// Reached by steps along the gradient of the coefficients.
    Gradient {
        /// Number of steps.
        step: u64,
    },
    /// Reached by steps along the gradient of the parameters.
    Finetune {
        /// Number of steps.
        step: u64,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkpoint { nimg, track, .. } if track == "raw" => write!(f, "checkpoint {nimg}"),
            Self::Checkpoint { nimg, track, .. } => write!(f, "track {track} at {nimg}"),
            Self::Uniform => write!(f, "uniform average"),
            Self::HalfLife { nimg } => write!(f, "EMA half-life {nimg:.0}"),
            Self::PowerFunction { sigma_rel } => write!(f, "EMA σ_rel {sigma_rel}"),
            Self::Track { name } => write!(f, "EMA track {name}"),
            Self::Given { source } => write!(f, "{source}"),
            Self::Mutation { parent } => write!(f, "mutation of {parent}"),
            Self::Crossover { parents: [a, b] } => write!(f, "crossover of {a} and {b}"),
            Self::Generation { generation } => write!(f, "CMA-ES generation {generation}"),
            Self::Gradient { step } => write!(f, "gradient step {step}"),
            Self::Finetune { step } => write!(f, "fine-tuned, step {step}"),
        }
    }
}

/// A numbered model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Unique in a search: baselines first, then the candidates of the search method.
    pub id: u64,
    /// How it came about.
    pub origin: Origin,
    /// What is scored.
    pub model: Model,
}
