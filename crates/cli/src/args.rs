//! The command line.

use crate::bench::Work;
use crate::data::DataCommand;
use crate::examples;
use crate::plans::PlanChoice;
use crate::search::Compared;
use clap::{Parser, Subcommand};
use lcsc_metrics::ExtractorConfig;
use lcsc_torch::{DeviceChoice, Precision, StorageDtype};
use lcsc_unet::AttentionOrder;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Trains diffusion and consistency models, keeps a trajectory of checkpoints, and searches the linear combination of
/// them that generates best (LCSC).
#[derive(Parser)]
#[command(name = "lcsc", version, propagate_version = true, after_help = examples::LCSC)]
pub struct Args {
    /// Show warnings and errors alone.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Show more (RUST_LOG overrides).
    #[arg(short, long, global = true)]
    pub verbose: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Train, search, and make the merged model: the main job. The same command resumes a killed run.
    #[command(after_help = examples::RUN)]
    Run(RunArgs),
    /// Train alone.
    #[command(after_help = examples::TRAIN)]
    Train(RunArgs),
    /// Search the checkpoints of a run.
    #[command(after_help = examples::SEARCH)]
    Search(SearchArgs),
    /// Start several processes on this machine that carry out one command together: train, search, sample or evaluate.
    #[command(after_help = examples::LAUNCH)]
    Launch(LaunchArgs),
    /// Make a weights file from coefficients found before.
    #[command(after_help = examples::MERGE)]
    Merge(MergeArgs),
    /// Sample images from a weights file.
    #[command(after_help = examples::SAMPLE)]
    Sample(SampleArgs),
    /// Measure a weights file or images against a dataset or statistics of one.
    #[command(after_help = examples::EVAL)]
    Eval(EvalArgs),
    /// Take in weights of another program, or a trajectory of them.
    #[command(after_help = examples::IMPORT)]
    Import(ImportArgs),
    /// Write weights for another program.
    #[command(after_help = examples::EXPORT)]
    Export(ExportArgs),
    /// Prepare, show or fetch datasets.
    #[command(subcommand, after_help = examples::DATA)]
    Data(DataCommand),
    /// Tell what this machine offers, and what a config needs.
    #[command(after_help = examples::DOCTOR)]
    Doctor {
        /// Also estimate the disk that this config needs.
        config: Option<PathBuf>,
    },
    /// A page to look at: results, samples, coefficients, curves; of several runs one that compares them.
    #[command(after_help = examples::REPORT)]
    Report(ReportArgs),
    /// Show in the terminal what a run is at, also one of another process or one that has ended; `q` leaves.
    #[command(after_help = examples::WATCH)]
    Watch(WatchArgs),
    /// Time what training and search are made of, beside what this machine can do at most.
    #[command(after_help = examples::BENCH)]
    Bench(BenchArgs),
    /// Check, show or explain a config file.
    #[command(subcommand, after_help = examples::CONFIG)]
    Config(ConfigCommand),
    /// Print a completion script for a shell.
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write man pages, one a command.
    #[command(after_help = examples::MAN)]
    Man {
        /// Folder to write them to.
        folder: PathBuf,
    },
    /// Of a run on a GPU, in a process of its own: computes the same by several plans, and times them.
    #[command(hide = true)]
    TryPlans {
        /// Where.
        #[arg(long)]
        device: DeviceChoice,
    },
}

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Find everything that is wrong with it.
    #[command(after_help = examples::CONFIG_CHECK)]
    Check(ConfigFile),
    /// Print it with every default written out.
    #[command(after_help = examples::CONFIG_SHOW)]
    Show(ConfigFile),
    /// Print the JSON schema of config files.
    #[command(after_help = examples::CONFIG_SCHEMA)]
    Schema,
    /// Print a reference of all keys as Markdown.
    #[command(after_help = examples::CONFIG_REFERENCE)]
    Reference,
    /// Say what it will take: parameters, memory, disk, evaluations.
    #[command(after_help = examples::CONFIG_EXPLAIN)]
    Explain(ConfigFile),
}

#[derive(clap::Args)]
pub struct ConfigFile {
    /// TOML file.
    pub config: PathBuf,
    /// Override a value, such as `stage.1.optimizer.adam.lr=1e-3`. May be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub file: ConfigFile,
    /// Run folder (default: `runs/<name>`).
    #[arg(long)]
    pub out: Option<PathBuf>,
}

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("study").args(["compare", "nfe", "prefix", "worker"]))]
pub struct SearchArgs {
    /// Run folder.
    pub run: PathBuf,
    /// Name of the search, a folder below `search/` (default: `default`; of a study its kind, such as `compare`).
    #[arg(long)]
    pub name: Option<String>,
    /// Override a value of the run's config, such as `search.budget.evaluations=400`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The whole budget of a search, in place of the config's.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Share the search with other processes that are started with the same command, also on other machines.
    #[arg(long)]
    pub worker: bool,
    /// Search by each of these methods and compare them: `ema-grid,evolution,cma-es,gradient,finetune`; with groups of
    /// their own `gradient:one,gradient:levels`.
    #[arg(long, value_delimiter = ',', value_name = "METHOD,…")]
    pub compare: Vec<Compared>,
    /// Search one set of coefficients for each of these numbers of network evaluations an image.
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    pub nfe: Vec<usize>,
    /// Search the checkpoints of these fractions of the training, and tell at which LCSC reaches the best EMA of the
    /// whole.
    #[arg(long, value_delimiter = ',', value_name = "FRACTION,…", value_parser = parse_fraction)]
    pub prefix: Vec<f64>,
    /// Also write the table of a study as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

impl SearchArgs {
    /// The name of the study that is asked for, if it is one.
    pub fn study_name(&self) -> Option<&'static str> {
        match (self.compare.is_empty(), self.nfe.is_empty(), self.prefix.is_empty()) {
            (false, _, _) => Some("compare"),
            (_, false, _) => Some("nfe"),
            (_, _, false) => Some("prefix"),
            (true, true, true) => None,
        }
    }
}

fn parse_fraction(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|f| *f > 0.0 && *f <= 1.0).ok_or_else(|| format!("`{text}` is no fraction in (0, 1]"))
}

#[derive(clap::Args)]
pub struct MergeArgs {
    /// Run folder.
    pub run: PathBuf,
    /// Coefficients (default: those of the default search).
    #[arg(long)]
    pub coefficients: Option<PathBuf>,
    /// Weights file to write (default: merged.safetensors in the run folder).
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Type of the parameters: f32, bf16 or f16.
    #[arg(long, default_value = "f32", value_parser = parse_dtype)]
    pub dtype: StorageDtype,
}

#[derive(clap::Args)]
pub struct ImportArgs {
    /// The file: a PyTorch state dict, an EDM snapshot or safetensors. With --trajectory or --list: the run folder to make.
    pub place: PathBuf,
    /// Config that describes the network, the data and the sampler.
    #[arg(long)]
    pub config: PathBuf,
    /// Override a value of the config.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Weights file to write.
    #[arg(long, required_unless_present_any = ["trajectory", "list"], conflicts_with_all = ["trajectory", "list"])]
    pub out: Option<PathBuf>,
    /// Files of one training, such as 'ckpts/model*.pt': each becomes a checkpoint. The last number in a name says how far
    /// the training was. Given again for its EMA tracks by their names in the config: 'ema-b0.9999=ckpts/ema_0.9999_*.pt'.
    #[arg(long, value_name = "[TRACK=]PATTERN")]
    pub trajectory: Vec<String>,
    /// Files of one training in a list, where their names do not tell enough: lines of `IMAGES TRACK FILE`, such as
    /// `51200 raw ckpts/model.pt`.
    #[arg(long, value_name = "FILE")]
    pub list: Option<PathBuf>,
    /// Images that this number counts in (default: 1000 in EDM's `network-snapshot-…` and `training-state-…`, else the batch of
    /// the config's stage, for steps).
    #[arg(long, requires = "trajectory", value_parser = clap::value_parser!(u64).range(1..))]
    pub unit: Option<u64>,
    /// Which network of a file that holds several (default: the only one, or `ema`).
    #[arg(long)]
    pub key: Option<String>,
    /// Rows of q, k and v in OpenAI's attention layers: `flash` (consistency_models), `new` (guided-diffusion with
    /// `use_new_attention_order`) or `legacy` (improved-diffusion, guided-diffusion by default). Nothing in a file tells
    /// `new` from `legacy`.
    #[arg(long, default_value = "flash", value_parser = parse_order)]
    pub attention_order: AttentionOrder,
}

#[derive(clap::Args)]
pub struct ExportArgs {
    /// Weights file.
    pub weights: PathBuf,
    /// `x.pt` (a state dict for `torch.load`) or `x.safetensors`.
    pub out: PathBuf,
    /// Whose names tensors get.
    #[arg(long, value_enum)]
    pub naming: Naming,
    /// Attention layers by OpenAI's names: `flash` (consistency_models), `new` (guided-diffusion with
    /// `use_new_attention_order`) or `legacy` (improved-diffusion, guided-diffusion by default).
    #[arg(long, default_value = "flash", value_parser = parse_order)]
    pub attention_order: AttentionOrder,
}

/// How tensors are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Naming {
    /// As in EDM's networks (`model.enc.32x32_conv.weight`).
    Edm,
    /// As in OpenAI's `UNetModel` (`input_blocks.0.0.weight`): ADM networks alone.
    Openai,
}

#[derive(clap::Args)]
pub struct SampleArgs {
    /// Weights file: a checkpoint or a merged model. It tells its network and sampler itself.
    #[arg(long)]
    pub weights: PathBuf,
    /// Number of images.
    #[arg(long, default_value_t = 64)]
    pub n: u64,
    /// Seed of the latents; image i is a function of (seed, i).
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// `x.npz` (uint8 N×H×W×C as `arr_0`), `x.png` (one sheet), or a folder with a slash at its end (one PNG an image).
    #[arg(long)]
    pub out: PathBuf,
    /// Another sampler, in TOML: `heun = { steps = 9 }`.
    #[arg(long)]
    pub sampler: Option<String>,
    #[command(flatten)]
    pub machine: MachineArgs,
}

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("what").args(["weights", "images"]).required(true))]
pub struct EvalArgs {
    /// Weights file to sample from.
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// Images: a folder, a zip or an `.npz`.
    #[arg(long)]
    pub images: Option<String>,
    /// What to measure against (default: what the model was trained on): a dataset, or statistics of features in an `.npz`
    /// (`mu`, `sigma`) or a `.pkl`.
    #[arg(long, visible_alias = "data")]
    pub reference: Option<String>,
    /// `lite0`, `lite2`, `inception`, `classifier` or TOML: `lite0 = 224`, `torchscript = "FILE.pt", output = "return_features"`
    /// (default: what the model was trained with; of images `inception`).
    #[arg(long, value_parser = parse_extractor)]
    pub extractor: Option<ExtractorConfig>,
    /// What to measure beside the Fréchet distance (default: all that the extractor and the reference allow).
    #[arg(long, value_delimiter = ',', value_name = "METRIC,…")]
    pub metrics: Option<Vec<Metric>>,
    /// Number of images (default: 5,000 samples; all of given images). Results of different numbers are not comparable.
    #[arg(long)]
    pub n: Option<u64>,
    /// Seed of the latents, or of the order in which given images are measured.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Another sampler, in TOML: `heun = { steps = 9 }`.
    #[arg(long)]
    pub sampler: Option<String>,
    /// Also write the results as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// A measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Metric {
    /// Fréchet distance (FID by the Inception extractor); always measured.
    Fd,
    /// Kernel Inception Distance.
    Kid,
    /// Inception Score.
    Is,
    /// Improved precision and recall.
    Pr,
}

#[derive(clap::Args)]
pub struct BenchArgs {
    /// What to time (default: all).
    #[arg(value_enum)]
    pub works: Vec<Work>,
    /// Timed repeats at least (quick work is repeated for a second), after one that is not timed; the median counts.
    #[arg(long, default_value_t = 5, value_parser = parse_positive)]
    pub repeats: usize,
    /// Also write all times as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Instead of timing, write what each work computes to this folder, for another implementation to compare.
    #[arg(long)]
    pub outputs: Option<PathBuf>,
    /// What training steps compute in.
    #[arg(long, default_value = "f32", value_parser = parse_precision)]
    pub precision: Precision,
    /// How training steps are computed on a GPU.
    #[arg(long, value_enum, default_value_t = PlanChoice::Auto)]
    pub plan: PlanChoice,
    #[command(flatten)]
    pub machine: MachineArgs,
}

fn parse_precision(text: &str) -> Result<Precision, String> {
    serde_json::from_value(text.into()).map_err(|e| e.to_string())
}

fn parse_positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("`{text}` is no positive number"))
}

/// A TOML string or table, the latter with or without its braces.
fn toml_value<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, toml::de::Error> {
    let value = if text.trim_start().starts_with(['{', '"']) { text.to_string() } else { format!("{{ {text} }}") };
    let mut document: BTreeMap<String, T> = toml::from_str(&format!("value = {value}"))?;
    document.remove("value").ok_or_else(|| serde::de::Error::custom("no value"))
}

fn parse_extractor(text: &str) -> Result<ExtractorConfig, String> {
    // A name, or the keys of a table.
    let is_name = text.chars().all(|c| c.is_ascii_alphanumeric());
    let text = if is_name { format!("\"{text}\"") } else { text.into() };
    toml_value(&text).map_err(|e| e.message().to_string())
}

#[derive(clap::Args)]
pub struct LaunchArgs {
    /// Number of processes: one a GPU, or as many as share the cores.
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub nproc: usize,
    /// The command and its arguments, as after `lcsc`.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

#[derive(clap::Args)]
pub struct ReportArgs {
    /// Run folders.
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// The page (default: report.html in the run's folder; of several runs comparison.html here).
    #[arg(long)]
    pub out: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct WatchArgs {
    /// Run folder.
    pub run: PathBuf,
    /// Print it once as plain text.
    #[arg(long)]
    pub once: bool,
}

#[derive(clap::Args)]
pub struct MachineArgs {
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// CPU threads of one operation (default: all cores; OMP_NUM_THREADS also bounds the chunks side by side).
    #[arg(long)]
    pub threads: Option<usize>,
    /// Images sampled at once; by small networks on a CPU, up to four such chunks side by side.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..))]
    pub chunk: u64,
}

fn parse_dtype(text: &str) -> Result<StorageDtype, String> {
    serde_json::from_value(text.into()).map_err(|_| format!("unknown type `{text}`, expected f32, bf16 or f16"))
}

fn parse_order(text: &str) -> Result<AttentionOrder, String> {
    match text {
        "flash" => Ok(AttentionOrder::Flash),
        "new" => Ok(AttentionOrder::New),
        "legacy" => Ok(AttentionOrder::Legacy),
        other => Err(format!("unknown order `{other}`, expected flash, new or legacy")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
        assert!(parse_fraction("0.05").is_ok() && parse_fraction("1.5").is_err() && parse_fraction("nan").is_err());
        let scripted = ExtractorConfig::TorchScript { file: "a, b.pt".into(), output: Some("f".into()) };
        assert_eq!(parse_extractor(r#"{ torchscript = "a, b.pt", output = "f" }"#).unwrap(), scripted);
        assert_eq!(parse_extractor("inception").unwrap(), ExtractorConfig::inception());
        assert!(parse_extractor("output = \"f\"").unwrap_err().contains("belongs to `torchscript`"));
        assert!(parse_extractor("inseption").unwrap_err().contains("expected one of `auto`"));
        assert!(parse_order("legacy").is_ok() && parse_order("old").unwrap_err().contains("flash, new or legacy"));
        assert!(parse_dtype("bf16").is_ok() && parse_dtype("f64").unwrap_err().contains("f16"));
    }
}
