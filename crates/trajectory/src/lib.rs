//! What lies on disk: the run folder, its checkpoints and their manifest, the training state, and the window of
//! checkpoints that merged models are made of. EMA profiles and coefficients are pure f64 maths beside it.

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
