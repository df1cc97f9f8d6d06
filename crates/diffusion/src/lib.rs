//! The maths of diffusion and consistency models: preconditioning, objectives, samplers.

mod generate;
mod gradient;
mod model;
mod objective;
mod precond;
mod sampler;
mod solver;

pub use generate::{Draw, generate};
pub use gradient::generate_backward;
pub use model::{Conditioning, Denoiser, Model, one_hot, random_classes};
pub use objective::{Adjustment, EctConfig, EdmConfig, ObjectiveConfig, Round, ect_loss, edm_loss};
pub use precond::{Coefficients, SIGMA_DATA, Scalings};
pub use sampler::{Churn, ConsistencyConfig, OdeConfig, SamplerConfig};
pub use solver::{Samples, karras_sigmas, sample};
