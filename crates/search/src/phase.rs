//! The parts of a search.

use crate::config::SearchConfig;
use crate::methods::{MethodName, step_images};
use crate::score::Latents;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a score is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Baselines on the search latents.
    Baseline,
    /// Candidates of a search method: on the search latents, or on fresh ones a step where it follows gradients.
    Search(MethodName),
    /// The best of a method that follows gradients, on the search latents.
    Finalist,
    /// Finalists on the selection latents.
    Selection,
    /// Rows of the final table on the report latents of this seed index.
    Report(u64),
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Baseline => write!(f, "baselines"),
            Self::Search(method) => write!(f, "{}", method.name()),
            Self::Finalist => write!(f, "finalists"),
            Self::Selection => write!(f, "selection"),
            Self::Report(seed) => write!(f, "report {seed}"),
        }
    }
}

impl Phase {
    /// The fixed latents of this phase; none where each step draws its own.
    pub(crate) fn latents(self) -> Option<Latents> {
        match self {
            Self::Search(MethodName::Gradient | MethodName::Finetune) => None,
            Self::Baseline | Self::Search(_) | Self::Finalist => Some(Latents::Search),
            Self::Selection => Some(Latents::Selection),
            Self::Report(seed) => Some(Latents::Report(seed)),
        }
    }

    /// Whether each step draws latents of its own.
    pub fn draws_fresh_latents(self) -> bool {
        self.latents().is_none()
    }

    /// Images sampled for one score.
    pub(crate) fn images(self, config: &SearchConfig, nfe: usize) -> u64 {
        match self {
            Self::Search(MethodName::Gradient) => step_images(config.gradient.images, nfe),
            Self::Search(MethodName::Finetune) => step_images(config.finetune.images, nfe),
            Self::Baseline | Self::Search(_) | Self::Finalist => config.images,
            Self::Selection => config.selection_images,
            Self::Report(_) => config.report_images,
        }
    }
}
