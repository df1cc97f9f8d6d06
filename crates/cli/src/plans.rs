//! Which plan a network is computed by on a GPU. A plan is proven before it is used: a process of its own, since a wrong kernel
//! ruins the context of a GPU, computes the same by each, and the fastest right one is taken.

mod trial;

use crate::doctor::LIBTORCH;
use crate::session::cache_folder;
use lcsc_diffusion::{Model, PreconditioningConfig};
use lcsc_torch::{
    Context, Device, DeviceChoice, Error, Group, Plan, Precision, Result, device_name, open_cuda_library, write_atomic,
};
use lcsc_unet::{ImageShape, NetworkConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;
pub use trial::command;

/// The hidden command that tries plans.
pub const COMMAND: &str = "try-plans";
/// The longest that a trial may be silent: kernels are compiled in it, and cuDNN's are tried.
const SILENCE: Duration = Duration::from_secs(180);

/// `plan` of a config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PlanChoice {
    /// On a GPU the fastest of several that compute the same, found by a trial that takes some seconds and is remembered; on the
    /// CPU the plain one.
    #[default]
    Auto,
    /// Contiguous tensors and libtorch's operations.
    Plain,
}

/// What is tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    pub network: NetworkConfig,
    pub preconditioning: PreconditioningConfig,
    pub image: ImageShape,
    pub precision: Precision,
    /// Images at once.
    pub images: u64,
    /// Whether the gradient counts; else denoising alone.
    pub trains: bool,
    /// The plain one first: it is what the others are compared with.
    pub plans: Vec<Plan>,
}

impl Trial {
    /// Of all plans. Graphs are for evaluations of small networks: a large one keeps the GPU busy by itself.
    pub fn new(
        (network, preconditioning): (&NetworkConfig, &PreconditioningConfig),
        (image, precision): (ImageShape, Precision),
        images: u64,
        trains: bool,
    ) -> Self {
        let (network, preconditioning) = (network.without_dropout(), preconditioning.clone());
        let mut trial =
            Self { network, preconditioning, image, precision, images, trains, plans: Plan::TRAINING.to_vec() };
        if !trains && trial.model(Plan::PLAIN).is_small() {
            trial.plans = Plan::of_sampling();
        }
        trial
    }

    fn model(&self, plan: Plan) -> Model {
        Model::new(&self.network, &self.preconditioning, self.image, self.precision).with_plan(plan)
    }

    /// What a verdict is remembered by: the network and all that its speed depends on.
    fn key(&self, gpu: &str) -> String {
        let network = (&self.network, &self.preconditioning, self.image, self.precision);
        let key = serde_json::json!([gpu, LIBTORCH, env!("CARGO_PKG_VERSION"), network, self.trains]);
        blake3::hash(key.to_string().as_bytes()).to_hex()[..32].to_string()
    }
}

/// A line of the process that tries plans.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Which plan of the trial.
    index: usize,
    found: Found,
}

/// What was found of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Found {
    Begins,
    Took {
        seconds: f64,
        loss: f64,
        /// Of its gradient and the plain plan's; of sampling the smaller one of the images' and the gradient's.
        cosine: f64,
    },
    Failed(String),
}

/// What came of a trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The fastest right plan.
    pub plan: Plan,
    /// For people: `channels-last 61 ms a step; plain 95 ms`.
    pub text: String,
}

/// The plan of a session, the same on all ranks: rank 0 tries.
///
/// # Errors
/// Another rank is gone. A trial that fails is none: the plan is then the plain one, and a line says why.
pub fn choose(choice: PlanChoice, trial: &Trial, device: Device, group: &Group) -> Result<Plan> {
    if choice == PlanChoice::Plain || device == Device::Cpu {
        return Ok(Plan::PLAIN);
    }
    told(group, || decided(trial, device))
}

/// The plan that was found before for this network and GPU, else the plain one; the same on all ranks.
///
/// # Errors
/// Another rank is gone.
pub fn remembered(trial: &Trial, device: Device, group: &Group) -> Result<Plan> {
    let kept = || device_name(device).and_then(|gpu| kept(&trial.key(&gpu)));
    told(group, || kept().map_or(Plan::PLAIN, |verdict| verdict.plan))
}

/// What rank 0 decides.
fn told(group: &Group, decide: impl FnOnce() -> Plan) -> Result<Plan> {
    let unread = |e: serde_json::Error| Error::msg(format!("the plan of rank 0: {e}"));
    let own = if group.leads() { serde_json::to_string(&decide()).map_err(unread)? } else { String::new() };
    serde_json::from_str(&group.told(&own)?).map_err(unread)
}

fn decided(trial: &Trial, device: Device) -> Plan {
    let key = device_name(device).map(|gpu| trial.key(&gpu));
    if let Some(verdict) = key.as_deref().and_then(kept) {
        tracing::info!("plan: {} (as found before)", verdict.text);
        return verdict.plan;
    }
    tracing::info!("trying plans on {device:?}");
    let found = program(device).and_then(|program| try_all(trial, program));
    let verdict = match &found {
        Ok(found) => Verdict::of(trial, found),
        Err(e) => Verdict { plan: Plan::PLAIN, text: format!("plain; the trial failed: {e}") },
    };
    tracing::info!("plan: {}", verdict.text);
    // Where there was nothing to compare with, such as for want of memory, the next run tries again.
    let is_compared = found.is_ok_and(|found| matches!(found[..], [Found::Took { .. }, ..]));
    if let Some(Err(e)) = key.filter(|_| is_compared).map(|key| keep(&key, &verdict)) {
        tracing::warn!("the plan is not remembered: {e}");
    }
    verdict.plan
}

/// This program as one that tries plans on a device.
fn program(device: Device) -> Result<Command> {
    let path = std::env::current_exe().map_err(|e| Error::msg(format!("the path of this program: {e}")))?;
    let mut program = Command::new(path);
    let device = match device {
        Device::Cuda(index) => DeviceChoice::Cuda(index),
        Device::Cpu | Device::Mps | Device::Vulkan => DeviceChoice::Cpu,
    };
    program.args([COMMAND, "--device", &device.to_string()]);
    Ok(program)
}

fn place(key: &str) -> Option<PathBuf> {
    cache_folder().map(|folder| folder.join("plans").join(format!("{key}.json")))
}

fn kept(key: &str) -> Option<Verdict> {
    let verdict: Verdict = serde_json::from_slice(&std::fs::read(place(key)?).ok()?).ok()?;
    // An installation that has what graphs need may have found it: this one tries for itself.
    (!verdict.plan.graph || open_cuda_library().is_ok()).then_some(verdict)
}

fn keep(key: &str, verdict: &Verdict) -> Result<()> {
    let Some(path) = place(key) else { return Ok(()) };
    path.parent().map_or(Ok(()), |folder| std::fs::create_dir_all(folder).at(folder))?;
    let text = serde_json::to_vec(verdict).map_err(|e| Error::msg(e.to_string()))?;
    write_atomic(&path, &text)
}

/// What is found of each plan of a trial by `program`. After a crash those that are left are tried by a new process.
///
/// # Errors
/// The process cannot be started, or crashes before any plan begins.
fn try_all(trial: &Trial, mut program: Command) -> Result<Vec<Found>> {
    let mut found = vec![Found::Begins; trial.plans.len()];
    let mut left: Vec<usize> = (0..trial.plans.len()).collect();
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    while !left.is_empty() {
        // The plain plan is computed again each time: the others are compared with it.
        let tried: Vec<usize> = std::iter::once(0).chain(left.iter().copied().filter(|&i| i != 0)).collect();
        let plans = tried.iter().map(|&i| trial.plans[i]).collect();
        let mut child = program.spawn().map_err(|e| Error::msg(format!("starting {program:?}: {e}")))?;
        let ended = attend(&mut child, &Trial { plans, ..trial.clone() })?;
        let Some(last) = ended.findings.iter().map(|f| f.index).max() else {
            return Err(Error::msg(format!("the process that tries plans {}", ended.how)));
        };
        for Finding { index, found: this } in ended.findings {
            if let Some(of) = tried.get(index).and_then(|&i| found.get_mut(i)) {
                *of = this;
            }
        }
        let last = tried.get(last).copied().unwrap_or(0);
        if found[last] == Found::Begins {
            found[last] = Found::Failed(ended.how);
        }
        // Without the plain plan there is nothing to compare with.
        left.retain(|&i| last != 0 && found[i] == Found::Begins);
    }
    Ok(found)
}

/// What a process that tries plans said, and how it ended.
struct Attended {
    findings: Vec<Finding>,
    how: String,
}

/// Gives a process its trial, and listens until it ends or falls silent.
fn attend(child: &mut Child, trial: &Trial) -> Result<Attended> {
    let text = serde_json::to_vec(trial).map_err(|e| Error::msg(e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that is gone already has told why by its end.
        let _ = stdin.write_all(&text);
    }
    let lines = lines_of(child);
    let mut findings = Vec::new();
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => findings.extend(serde_json::from_str::<Finding>(&line)),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                let _ = child.wait();
                return Ok(Attended { findings, how: format!("said nothing for {} s", SILENCE.as_secs()) });
            }
        }
    }
    let status = child.wait().map_err(|e| Error::msg(format!("the process that tries plans: {e}")))?;
    let how = status.signal().map_or_else(|| format!("ended with {status}"), |n| format!("crashed (signal {n})"));
    Ok(Attended { findings, how })
}

fn lines_of(child: &mut Child) -> Receiver<String> {
    let (send, lines) = channel();
    if let Some(out) = child.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(std::io::Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
    }
    lines
}

impl Verdict {
    /// The fastest plan whose loss and gradient are those of the plain one.
    fn of(trial: &Trial, found: &[Found]) -> Self {
        let unit = if trial.trains { "a step" } else { "an evaluation" };
        let Some(Found::Took { seconds: plain, loss: expected, .. }) = found.first() else {
            let why = if let Some(Found::Failed(why)) = found.first() { why } else { "it was not tried" };
            return Self { plan: Plan::PLAIN, text: format!("plain, without comparison: {why}") };
        };
        let told = |seconds: f64| format!("{:.3} ms", 1e3 * seconds);
        let (mut best, mut others) = ((Plan::PLAIN, *plain), Vec::new());
        for (&plan, found) in trial.plans.iter().zip(found).skip(1) {
            match found {
                Found::Took { seconds, loss, cosine } => match wrong(trial.precision, *expected, *loss, *cosine) {
                    Some(why) => others.push(format!("{plan} is wrong: {why}")),
                    None => {
                        others.push(format!("{plan} {}", told(*seconds)));
                        if *seconds < best.1 {
                            best = (plan, *seconds);
                        }
                    }
                },
                Found::Failed(why) => others.push(format!("{plan} {why}")),
                Found::Begins => others.push(format!("{plan} was not tried")),
            }
        }
        let (plan, seconds) = best;
        others.retain(|text| *text != format!("{plan} {}", told(seconds)));
        let plain = (plan != Plan::PLAIN).then(|| format!("plain {}", told(*plain)));
        let rest: String = plain.into_iter().chain(others).map(|text| format!("; {text}")).collect();
        Self { plan, text: format!("{plan} {} {unit}{rest}", told(seconds)) }
    }
}

/// What of a plan differs too much from the plain one's loss and gradient.
fn wrong(precision: Precision, expected: f64, loss: f64, cosine: f64) -> Option<String> {
    let (most, least) = match precision {
        Precision::F32 => (1e-4, 0.99999),
        Precision::Tf32 | Precision::Bf16 | Precision::F16 => (1e-2, 0.999),
    };
    let error = ((loss - expected) / expected).abs();
    if error.is_nan() || error > most {
        return Some(format!("its loss is {loss}, plain {expected}"));
    }
    let differs = cosine.is_nan() || cosine < least;
    differs.then(|| format!("the cosine of its gradient and the plain one is {cosine:.6}"))
}

#[cfg(test)]
mod tests;
