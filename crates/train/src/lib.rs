//! Training: one visible loop over a flat parameter vector, exact resume, EMA tracks, checkpoints along the way.
//!
//! A [`Trainer`] trains one stage: the objective's loss of seeded batches and noise, one gradient vector, one step, the
//! averages, and what is saved on the way. A run killed at any moment goes on from its state as if nothing had
//! happened.
//!
//! ```
//! use indicatif::ProgressBar;
//! use lcsc_data::{DataConfig, Dataset};
//! use lcsc_diffusion::{Model, PreconditioningConfig, SamplerConfig};
//! use lcsc_torch::{Device, Group, Precision};
//! use lcsc_train::{Ended, GradientDtype, StageConfig, StageContext, Trainer};
//! use lcsc_trajectory::{Manifest, RunFolder};
//! use lcsc_unet::{ImageShape, NetworkConfig, SongUNetConfig};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path();
//! let stage: StageConfig = serde_json::from_value(serde_json::json!({
//!     "name": "edm", "nimg": 64, "batch": 16, "objective": { "edm": {} }, "trajectory": { "every_nimg": 32 },
//! }))?;
//! let network = NetworkConfig::Song(SongUNetConfig { model_channels: 8, ..SongUNetConfig::tiny() });
//! let image = ImageShape { channels: 1, resolution: 8, label_dim: 0 };
//! let model = Model::new(&network, &PreconditioningConfig::default(), image, Precision::F32);
//! let data = Dataset::open(&DataConfig::default(), &ProgressBar::hidden())?;
//! let (run, device, weights) = (RunFolder::create(path)?, Device::Cpu, model.layout.init(0, Device::Cpu)?);
//! let context = StageContext {
//!     run: &run, stage: &stage, nimg_before: 0, model: &model, teacher: None, data: &data, seed: 0, device,
//!     group: &Group::alone(), gradients: GradientDtype::F32, sampler: &SamplerConfig::default(),
//!     config_hash: "", card: &serde_json::json!({}), finished: Vec::new(),
//! };
//! let ended = Trainer::new(context, weights)?.train_until(64, &|| Ok(false), &ProgressBar::hidden())?;
//! assert_eq!((ended, Manifest::read(&run)?.len()), (Ended::Reached, 2));
//! # Ok(())
//! # }
//! ```

mod config;
mod ema;
mod judge;
mod log;
mod loss_scale;
mod state;
mod trainer;

pub use config::{DistributedConfig, GradientDtype, NonFinite, StageConfig, Start};
pub use log::{image_batch, report_error};
pub use state::{StageRecord, Tick};
pub use trainer::{Ended, StageContext, Trainer};
