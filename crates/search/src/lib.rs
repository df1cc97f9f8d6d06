//! LCSC: search of the linear combination of saved checkpoints that generates best (Liu et al., ICLR 2025,
//! arXiv 2404.02241).
//!
//! A candidate is a set of [`Coefficients`] α ∈ R^{G×K} with Σα = 1 in each of G groups of parameters; its merged model
//! θ(α) = Σ α_i θ_i is scored by a [`Fitness`]. [`run`] scores the baselines, asks and tells a [`Method`] (by gradient,
//! CMA-ES, evolution, …), chooses the winner of each family on latents of its own, and reports all of them on latents that
//! served nothing else. Every score is a line of `evaluations.jsonl`, from which a killed search resumes, and through which
//! several workers share one search.

mod baselines;
mod candidate;
mod coefficients;
mod config;
mod driver;
mod fitness;
mod gradient;
mod groups;
mod log;
mod methods;
mod outcome;
mod phase;
mod score;
mod session;
mod tuning;
mod worker;

pub use baselines::{Saved, SearchSpace, baselines};
pub use candidate::{Candidate, Model, Origin};
pub use coefficients::Coefficients;
pub use config::{Budget, During, Groups, Penalty, SearchConfig, When};
pub use driver::{Run, run};
pub use fitness::{Models, SampledFitness, Setting};
pub use groups::{groups_of, partition};
pub use log::{Claim, Evaluation, Header, Record};
pub use methods::{
    AdamSteps, Beginning, CmaEs, CmaEsConfig, CmaSearch, Evolution, EvolutionConfig, FinetuneConfig, Gradient,
    GradientConfig, Member, Method, MethodName, Objective, OnePlusOne, OnePlusOneConfig, step_images,
};
pub use outcome::{Label, Outcome, Row};
pub use phase::Phase;
pub use score::{Fitness, Latents, ReportScores, Scores};
pub use session::Progress;
pub use worker::Worker;
