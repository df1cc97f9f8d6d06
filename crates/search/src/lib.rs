//! LCSC: search of the linear combination of saved checkpoints that generates best (Liu et al., ICLR 2025,
//! arXiv 2404.02241).
//!
//! A candidate is a vector of [`Coefficients`] α ∈ R^K with Σα = 1; its merged model θ(α) = Σ α_i θ_i is scored by a
//! [`Fitness`]. [`run`] scores the baselines, searches by [`Evolution`], chooses the winner of each family on latents of
//! its own, and reports all of them on latents that served nothing else. Every score is a line of `evaluations.jsonl`,
//! from which a killed search resumes.

mod baselines;
mod candidate;
mod coefficients;
mod config;
mod driver;
mod evolution;
mod fitness;
mod log;
mod outcome;
mod score;
mod session;

pub use baselines::{SearchSpace, baselines};
pub use candidate::{Candidate, Model, Origin};
pub use coefficients::Coefficients;
pub use config::{Budget, EvolutionConfig, MethodConfig, SearchConfig};
pub use driver::run;
pub use evolution::{Evolution, Member};
pub use fitness::{LatentSet, SampledFitness, candidate_weights, sampled_distances};
pub use log::{Evaluation, Header, Phase, Record};
pub use outcome::{Label, Outcome, Row};
pub use score::{Fitness, Latents, Scores};
pub use session::Progress;
