//! The maths of diffusion and consistency models: preconditioning, objectives, samplers.

mod consistency;
mod denoising;
mod distance;
mod ect;
mod generate;
mod gradient;
mod grid;
mod lpips;
mod model;
mod objective;
mod precond;
mod quartiles;
mod sampler;
mod schedule;
mod solver;

pub use consistency::{
    CdConfig, ConsistencyGrid, CtConfig, IctConfig, TeacherSolver, Weighting, consistency_loss, teacher_step,
};
pub use denoising::{DdpmConfig, EdmConfig, ddpm_loss, edm_loss};
pub use distance::{Distance, DistanceConfig};
pub use ect::{Adjustment, EctConfig, ect_loss};
pub use generate::{Draw, LatentSet, generate};
pub use gradient::generate_backward;
pub use grid::{Spacing, karras_sigmas};
pub use lpips::{Lpips, LpipsConfig, LpipsNetwork};
pub use model::{Conditioning, Denoiser, Model, one_hot, random_classes};
pub use objective::{Losses, Networks, Objective, ObjectiveConfig, Round, Span};
pub use precond::{
    Coefficients, DdpmPreconditioning, EdmPreconditioning, IddpmPreconditioning, Preconditioning,
    PreconditioningConfig, SIGMA_DATA, Scalings, TimeInput, VePreconditioning, VpPreconditioning,
};
pub use quartiles::{QUARTERS, Quartiles};
pub use sampler::{Churn, ConsistencyConfig, DpmConfig, GridConfig, OdeConfig, SamplerConfig};
pub use schedule::{DiscreteSchedule, VpSchedule};
pub use solver::{Samples, sample};
