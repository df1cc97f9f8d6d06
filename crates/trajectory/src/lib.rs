//! What lies on disk: the run folder, its checkpoints and their manifest, the training state, and the window of
//! checkpoints that merged models are made of. EMA profiles and coefficients are pure f64 maths beside it.
//!
//! ```
//! use lcsc_torch::{Device, Init, LayoutBuilder, StorageDtype};
//! use lcsc_trajectory::{Checkpoint, Manifest, Memory, Partition, RunFolder, Window, Writer};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path();
//! let mut pieces = LayoutBuilder::default();
//! pieces.param("weight", &[1000], Init::Normal(1.0));
//! let layout = pieces.finish();
//! let run = RunFolder::create(path)?;
//! let mut writer = Writer::start(&run)?;
//! let thetas = [layout.init(0, Device::Cpu)?, layout.init(1, Device::Cpu)?];
//! for (nimg, weights) in [100, 200].into_iter().zip(&thetas) {
//!     let checkpoint = Checkpoint::new("edm", nimg, nimg, "raw", StorageDtype::F32);
//!     writer.checkpoint(checkpoint, &layout, weights, "{}")?;
//! }
//! writer.finish()?;
//!
//! let memory = Memory { device: Device::Cpu, device_bytes: 1 << 20, host_bytes: 0 };
//! let window = Window::load(&run, &Manifest::read(&run)?, &layout, memory)?;
//! let merged = window.merge(&Partition::one(&layout), &[vec![-0.5, 1.5]])?; // θ = αᵀW
//! let expected = &thetas[0].theta * -0.5 + &thetas[1].theta * 1.5;
//! assert!(merged.allclose(&expected, 1e-6, 1e-6, false));
//! # Ok(())
//! # }
//! ```

mod checkpoint;
mod combine;
mod ema;
mod foreign;
mod jsonl;
mod mapped;
mod partition;
mod placement;
mod posthoc;
mod profiles;
mod rows;
mod run_folder;
mod schedule;
mod share;
mod state;
#[cfg(test)]
mod testing;
mod window;
mod writer;

pub use checkpoint::{Checkpoint, METADATA, Manifest};
pub use ema::{EmaConfig, half_life_beta, power_function_beta, sigma_rel_to_gamma};
pub use foreign::{read_tensors, state_dict};
pub use jsonl::{JsonLines, Tail};
pub use partition::Partition;
pub use placement::{Memory, Placement};
pub use posthoc::{power_function_response, solve_posthoc};
pub use profiles::{half_life_profile, one_hot, power_function_profile, uniform};
pub use run_folder::{RunFolder, RunLock};
pub use schedule::{TrajectoryConfig, check_disk};
pub use state::TrainingState;
pub use window::Window;
pub use writer::Writer;
