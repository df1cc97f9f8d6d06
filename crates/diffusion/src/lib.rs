//! The maths of diffusion and consistency models: preconditioning, objectives, samplers.

mod model;
mod objective;
mod precond;
mod sampler;

pub use model::{Conditioning, Denoiser, Model, one_hot, random_classes};
pub use objective::{Adjustment, EctConfig, EdmConfig, ObjectiveConfig, Round, ect_loss, edm_loss};
pub use precond::{Coefficients, SIGMA_DATA, Scalings};
pub use sampler::{Churn, ConsistencyConfig, OdeConfig, SamplerConfig, Samples, generate, karras_sigmas, sample};
