//! Training: one visible loop over a flat parameter vector, exact resume, EMA tracks, checkpoints along the way.

mod config;
mod ema;
mod judge;
mod log;
mod loss_scale;
mod state;
mod trainer;

pub use config::{NonFinite, StageConfig, Start};
pub use log::{image_batch, report_error};
pub use state::{StageRecord, Tick};
pub use trainer::{Ended, StageContext, Trainer};
