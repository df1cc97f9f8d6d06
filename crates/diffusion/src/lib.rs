//! The maths of diffusion and consistency models: preconditioning, objectives, samplers.
//!
//! A [`Model`] is a network with its preconditioning; bound to weights it is the denoiser D(x;σ), which objectives
//! train and samplers follow.
//!
//! ```
//! use lcsc_diffusion::{Model, PreconditioningConfig, SamplerConfig, generate};
//! use lcsc_torch::{Device, Precision, Stream};
//! use lcsc_unet::{ImageShape, NetworkConfig, SongUNetConfig};
//! # fn main() -> lcsc_torch::Result<()> {
//! let image = ImageShape { channels: 1, resolution: 8, label_dim: 0 };
//! let network = NetworkConfig::Song(SongUNetConfig::tiny());
//! let model = Model::new(&network, &PreconditioningConfig::default(), image, Precision::F32);
//! let weights = model.layout.init(0, Device::Cpu)?;
//! let heun = SamplerConfig::default().with_nfe(5)?;
//!
//! // Images 10 and 11 of a stream of latents: the same whenever they are asked for.
//! let samples = generate(&model.bind(&weights)?, &heun, 0, Stream::SampleLatents, 10, 2, Device::Cpu)?;
//! assert_eq!((samples.images.size(), samples.nfe), (vec![2, 1, 8, 8], 5));
//! # Ok(())
//! # }
//! ```

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
mod recordings;
mod room;
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
pub use room::Room;
pub use sampler::{Churn, ConsistencyConfig, DpmConfig, GridConfig, OdeConfig, SamplerConfig};
pub use schedule::{DiscreteSchedule, VpSchedule};
pub use solver::{Samples, sample};
