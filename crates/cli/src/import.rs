//! `lcsc import`: weights of other programs, one file or a trajectory.

mod sources;

use crate::args::ImportArgs;
use crate::card::Card;
use crate::config::{self, Config, Loaded};
use crate::{Ended, naming, progress, ui};
use lcsc_data::Dataset;
use lcsc_diffusion::Model;
use lcsc_torch::{Context, Error, Result, StorageDtype, Weights, bail, catch, pack_weights, serialize, write_atomic};
use lcsc_train::StageConfig;
use lcsc_trajectory::{Checkpoint, METADATA, RunFolder, Writer, read_tensors};
use lcsc_unet::AttentionOrder;
use miette::IntoDiagnostic;
use sources::{Source, sources};
use std::path::Path;

/// Imports a file, or each file of a training.
pub fn command(args: &ImportArgs, signals: &ui::Signals) -> miette::Result<Ended> {
    ui::refuse_existing(args.out.as_deref().unwrap_or(&args.place))?;
    let target = Target::of(config::load(&args.config, &args.set)?, args.attention_order)?;
    if args.out.is_none() {
        signals.listen()?;
    }
    catch("importing", || match &args.out {
        Some(out) => one(args, &target, out),
        None => trajectory(args, &target, signals),
    })
    .into_diagnostic()?;
    Ok(Ended::Done)
}

/// The network that weights are imported for.
struct Target {
    config: Config,
    model: Model,
    order: AttentionOrder,
    card: Card,
    stage: StageConfig,
}

impl Target {
    fn of(loaded: Loaded, order: AttentionOrder) -> miette::Result<Self> {
        let Loaded { config, data } = loaded;
        let image = config.image(&data);
        let Some(stage) = config.searched_stage() else { miette::bail!("the config has no stage to search") };
        let model = config.model(stage, image);
        let bar = progress::bar("reading the data", 0, "images");
        let hash = Dataset::open(&config.data, &bar).into_diagnostic()?.hash;
        drop(bar);
        let card = Card::new(&config, image, &hash);
        let stage = stage.clone();
        Ok(Self { config, model, order, card, stage })
    }

    fn read(&self, path: &Path, key: Option<&str>) -> Result<Weights> {
        let tensors = read_tensors(path, &std::fs::read(path).at(path)?, key)?;
        naming::to_ours(path, tensors, &self.config.model, &self.model, self.order)
    }
}

fn one(args: &ImportArgs, target: &Target, out: &Path) -> Result<()> {
    let weights = target.read(&args.place, args.key.as_deref())?;
    let card = serde_json::to_string(&target.card).map_err(|e| Error::file(out, e.to_string()))?;
    let tensors = pack_weights(&target.model.layout, &weights, StorageDtype::F32)?;
    write_atomic(out, &serialize(&tensors, (METADATA, &card))?)?;
    ui::say!("{}: {} parameters", out.display(), target.model.layout.numel());
    Ok(())
}

/// Makes a run folder of the files. It becomes a run only when all are there.
fn trajectory(args: &ImportArgs, target: &Target, signals: &ui::Signals) -> Result<()> {
    let files = sources(args, target.stage.batch, &target.stage.tracks())?;
    // Into a folder beside it, which then takes its place.
    let parent = args.place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).at(parent)?;
    // As readable as any new folder is (the umask applies), not for the owner alone as temporary ones are.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    let temporary = tempfile::Builder::new().prefix(".importing-").permissions(mode).tempdir_in(parent).at(parent)?;
    fill(args, target, &files, temporary.path(), signals)?;
    std::fs::rename(temporary.path(), &args.place).at(&args.place)?;
    let _ = temporary.keep();
    ui::say!("{}: {} checkpoints; next: lcsc search {}", args.place.display(), files.len(), args.place.display());
    Ok(())
}

fn fill(args: &ImportArgs, target: &Target, files: &[Source], folder: &Path, signals: &ui::Signals) -> Result<()> {
    let run = RunFolder::create(folder)?;
    let mut writer = Writer::start(&run)?;
    let bar = progress::bar("importing", files.len() as u64, "files");
    let mut first: Option<Weights> = None;
    for Source { nimg, track, path } in files {
        if signals.stop() {
            bail!("stopped; nothing is left of the import");
        }
        let weights = target.read(path, args.key.as_deref())?;
        if first.as_ref().is_some_and(|f| f.buffers.iter().zip(&weights.buffers).any(|(a, b)| !a.equal(b))) {
            return Err(Error::file(path, "has other buffers than the first file: it is of another training"));
        }
        let checkpoint = Checkpoint::new(&target.stage.name, *nimg, *nimg, track, StorageDtype::F32);
        let described = serde_json::to_value(&checkpoint).map_err(|e| Error::file(path, e.to_string()))?;
        let card = Card { checkpoint: Some(described), ..target.card.clone() };
        let card = serde_json::to_string(&card).map_err(|e| Error::file(path, e.to_string()))?;
        writer.checkpoint(checkpoint, &target.model.layout, &weights, &card)?;
        first.get_or_insert(weights);
        bar.inc(1);
    }
    writer.finish()?;
    drop(bar);
    let list: String = files.iter().map(|source| format!("{source}\n")).collect();
    write_atomic(run.imported(), list.as_bytes())?;
    let text = target.config.to_toml().map_err(|e| Error::msg(e.to_string()))?;
    write_atomic(run.config_path(), text.as_bytes())
}
