//! LCSC: search of the linear combination of saved checkpoints that generates best (Liu et al., ICLR 2025,
//! arXiv 2404.02241).
//!
//! A candidate is a set of [`Coefficients`] α ∈ R^{G×K} with Σα = 1 in each of G groups of parameters; its merged model
//! θ(α) = Σ α_i θ_i is scored by a [`Fitness`]. [`run`] scores the baselines, asks and tells a [`Method`] (by gradient,
//! CMA-ES, evolution, …), chooses the winner of each family on latents of its own, and reports all of them on latents that
//! served nothing else. Every score is a line of `evaluations.jsonl`, from which a killed search resumes, and through which
//! several workers share one search.
//!
//! The maths stands by itself. CMA-ES, for instance, on coefficients of three checkpoints whose best combination is known:
//!
//! ```
//! use lcsc_search::{CmaEs, CmaEsConfig, Coefficients};
//! use lcsc_torch::{Stream, rng, standard_normal};
//! # fn main() -> lcsc_torch::Result<()> {
//! let distance = |x: &[f64]| (x[0] + 0.2).powi(2) + (x[1] - 0.5).powi(2);
//! let mut search = CmaEs::new(&CmaEsConfig::default(), vec![0.0, 0.0]);
//! let mut random = rng(0, Stream::Search, 0);
//! for _ in 0..60 {
//!     let points: Vec<_> = (0..search.population()).map(|_| search.point(|| standard_normal(&mut random))).collect();
//!     let scored: Vec<_> = points.into_iter().map(|x| (x.clone(), distance(&x))).collect();
//!     search.tell(&scored);
//! }
//! let alpha = Coefficients::one(vec![search.mean()[0], search.mean()[1], 0.0])?; // the last gives way: Σα = 1
//! let expected = [-0.2, 0.5, 0.7];
//! assert!(alpha.rows()[0].iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3));
//! # Ok(())
//! # }
//! ```

mod baselines;
mod candidate;
mod coefficients;
mod config;
mod driver;
mod fitness;
mod groups;
mod log;
mod methods;
mod outcome;
mod phase;
mod score;
mod session;
mod team;
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
pub use team::{Rooms, Team, features_in_turn};
pub use worker::Worker;
