//! Fine-tuning of all parameters by the loss of the search, the rival of coefficients; its state in a file.

use crate::config::SearchConfig;
use lcsc_torch::{
    AdamConfig, Context, Error, Kind, Optimizer, OptimizerConfig, Result, SafeFile, Tensor, Verdict, Weights, bail,
    serialize, tch::no_grad, write_atomic,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time between two saved states.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// The metadata entry that holds the number of steps.
const STEPS: &str = "lcsc-finetune-steps";

/// Parameters in tuning, with Adam's moments.
pub(crate) struct Tuning {
    pub(crate) weights: Weights,
    optimizer: Optimizer,
    /// Steps taken.
    steps: u64,
    path: PathBuf,
    saved: Instant,
}

impl Tuning {
    /// Begins at `start`, or goes on from the file where it holds at most `logged` steps.
    pub(crate) fn begin(start: Weights, config: &SearchConfig, logged: u64, path: &Path) -> Result<Self> {
        let constants = AdamConfig { lr: config.finetune.lr, betas: config.finetune.betas, ..AdamConfig::default() };
        let optimizer = Optimizer::new(OptimizerConfig::Adam(constants), &start.theta)?;
        let mut tuning = Self { weights: start, optimizer, steps: 0, path: path.to_path_buf(), saved: Instant::now() };
        // The checkpoint or cached model that it begins at stays as it is.
        tuning.weights.theta = tuning.weights.theta.f_detach_copy()?;
        if path.exists() {
            tuning.restore(&SafeFile::open(path)?, logged)?;
        }
        Ok(tuning)
    }

    fn restore(&mut self, file: &SafeFile, logged: u64) -> Result<()> {
        let unreadable = |e| Error::file(file.path(), format!("metadata entry `{STEPS}`: {e}"));
        let steps: u64 = file.metadata(STEPS)?.parse().map_err(unreadable)?;
        if steps > logged {
            // Of a search whose log is gone: it must not be taken for this one's later.
            return std::fs::remove_file(file.path()).at(file.path());
        }
        let device = self.weights.theta.device();
        let read = |name: &str| -> Result<Tensor> { Ok(file.tensor(name)?.f_to(device)?) };
        self.weights.theta = read("theta")?;
        (self.optimizer.exp_avg, self.optimizer.exp_avg_sq) = (read("exp_avg")?, read("exp_avg_sq")?);
        self.steps = steps;
        let _ = self.optimizer.steps.f_fill_(steps as i64)?;
        Ok(())
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// A step along `gradient` f32 [P]; without one, or where it is not finite, it only counts. The state is saved now
    /// and then before it, so that it never knows a step that the log does not.
    pub(crate) fn step(&mut self, step: u64, gradient: Option<Tensor>, lr: f64) -> Result<()> {
        if step != self.steps {
            bail!(
                "fine-tuning is at step {}, but step {step} is to be taken: remove {}",
                self.steps,
                self.path.display()
            );
        }
        if self.saved.elapsed() >= SAVE_EVERY {
            self.save()?;
        }
        if let Some(gradient) = gradient {
            let is_bad = gradient.f_isfinite()?.f_all()?.f_logical_not()?;
            let verdict = Verdict { divisor: None, left_out: is_bad.f_to_kind(Kind::Float)?.f_view([1])? };
            no_grad(|| self.optimizer.step(&mut self.weights.theta, gradient, lr, &verdict))?;
        }
        self.steps += 1;
        Ok(())
    }

    pub(crate) fn save(&mut self) -> Result<()> {
        let Optimizer { exp_avg, exp_avg_sq, .. } = &self.optimizer;
        let named = [("theta", &self.weights.theta), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)];
        let tensors = named.map(|(name, tensor)| (name.to_string(), tensor.shallow_clone()));
        write_atomic(&self.path, &serialize(&tensors, (STEPS, &self.steps.to_string()))?)?;
        self.saved = Instant::now();
        Ok(())
    }
}
