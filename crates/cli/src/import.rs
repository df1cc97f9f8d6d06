//! `lcsc import`: weights of other programs, one file or a trajectory.

use crate::args::ImportArgs;
use crate::card::Card;
use crate::config::{self, Config, Loaded};
use crate::{Ended, naming, ui};
use lcsc_data::Dataset;
use lcsc_diffusion::Model;
use lcsc_torch::{Context, Error, Result, StorageDtype, Weights, bail, catch, pack_weights, serialize, write_atomic};
use lcsc_trajectory::{Checkpoint, METADATA, RunFolder, Writer, read_tensors};
use lcsc_unet::AttentionOrder;
use miette::IntoDiagnostic;
use std::path::{Path, PathBuf};
use wildmatch::WildMatch;

/// What a snapshot of EDM counts in.
const KIMG: u64 = 1000;

/// Imports a file, or each file of a training.
pub fn command(args: &ImportArgs) -> miette::Result<Ended> {
    let target = Target::of(config::load(&args.config, &args.set)?, args.attention_order)?;
    match (&args.trajectory, &args.out) {
        (Some(pattern), _) => catch("importing", || trajectory(args, &target, pattern)).into_diagnostic()?,
        (None, Some(out)) => catch("importing", || one(args, &target, out)).into_diagnostic()?,
        (None, None) => miette::bail!("--out: where to write the weights"),
    }
    Ok(Ended::Done)
}

/// The network that weights are imported for.
struct Target {
    config: Config,
    model: Model,
    order: AttentionOrder,
    card: Card,
    stage: String,
    batch: u64,
}

impl Target {
    fn of(loaded: Loaded, order: AttentionOrder) -> miette::Result<Self> {
        let Loaded { config, data } = loaded;
        let image = config.image(&data);
        let Some(stage) = config.searched_stage() else { miette::bail!("the config has no stage to search") };
        let model = config.model(stage, image);
        let bar = ui::bar(0, "images");
        let hash = Dataset::open(&config.data, &bar).into_diagnostic()?.hash;
        bar.finish_and_clear();
        let card = Card::new(&config, image, &hash);
        let (stage, batch) = (stage.name.clone(), stage.batch);
        Ok(Self { config, model, order, card, stage, batch })
    }

    fn read(&self, path: &Path, key: Option<&str>) -> Result<Weights> {
        let bytes = std::fs::read(path).at(path)?;
        let tensors = read_tensors(path, &bytes, key)?;
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
fn trajectory(args: &ImportArgs, target: &Target, pattern: &str) -> Result<()> {
    let files = numbered(pattern, args.unit, target.batch)?;
    if args.place.join("trajectory").exists() {
        bail!("{}: there is a run in this folder already", args.place.display());
    }
    // Into a folder beside it, which then takes its place.
    let parent = args.place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).at(parent)?;
    // As readable as any new folder is (the umask applies), not for the owner alone as temporary ones are.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    let temporary = tempfile::Builder::new().prefix(".importing-").permissions(mode).tempdir_in(parent).at(parent)?;
    fill(args, target, &files, temporary.path())?;
    std::fs::rename(temporary.path(), &args.place).at(&args.place)?;
    let _ = temporary.keep();
    ui::say!("{}: {} checkpoints; next: lcsc search {}", args.place.display(), files.len(), args.place.display());
    Ok(())
}

fn fill(args: &ImportArgs, target: &Target, files: &[(u64, PathBuf)], folder: &Path) -> Result<()> {
    let run = RunFolder::create(folder)?;
    let mut writer = Writer::start(&run)?;
    let bar = ui::bar(files.len() as u64, "files");
    let mut first: Option<Weights> = None;
    for (nimg, path) in files {
        let weights = target.read(path, args.key.as_deref())?;
        if first.as_ref().is_some_and(|f| f.buffers.iter().zip(&weights.buffers).any(|(a, b)| !a.equal(b))) {
            return Err(Error::file(path, "has other buffers than the first file: it is of another training"));
        }
        let checkpoint = Checkpoint::new(&target.stage, *nimg, *nimg, "raw", StorageDtype::F32);
        let described = serde_json::to_value(&checkpoint).map_err(|e| Error::file(path, e.to_string()))?;
        let card = Card { checkpoint: Some(described), ..target.card.clone() };
        let card = serde_json::to_string(&card).map_err(|e| Error::file(path, e.to_string()))?;
        writer.checkpoint(checkpoint, &target.model.layout, &weights, &card)?;
        first.get_or_insert(weights);
        bar.inc(1);
    }
    writer.finish()?;
    bar.finish_and_clear();
    let list: String = files.iter().map(|(nimg, path)| format!("{nimg} {}\n", path.display())).collect();
    write_atomic(run.imported(), list.as_bytes())?;
    let text = target.config.to_toml().map_err(|e| Error::msg(e.to_string()))?;
    write_atomic(run.config_path(), text.as_bytes())
}

/// The files of a pattern with the images that their names tell, in this order.
fn numbered(pattern: &str, unit: Option<u64>, batch: u64) -> Result<Vec<(u64, PathBuf)>> {
    let path = Path::new(pattern);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let matcher = WildMatch::new(name);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).at(folder)? {
        let path = entry.at(folder)?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|name| matcher.matches(name)) else {
            continue;
        };
        let default = if name.starts_with("network-snapshot-") { KIMG } else { batch };
        let count = last_number(name).and_then(|count| count.checked_mul(unit.unwrap_or(default)));
        let Some(nimg) = count else {
            return Err(Error::file(&path, "its name has no number that tells how far the training was: rename it"));
        };
        files.push((nimg, path));
    }
    files.sort();
    if files.len() < 2 {
        bail!(
            "--trajectory {pattern}: {} files, expected at least 2 (in quotes, so that the shell leaves it alone)",
            files.len()
        );
    }
    if let Some(((nimg, a), (_, b))) = files.iter().zip(&files[1..]).find(|(a, b)| a.0 == b.0) {
        bail!("{} and {} are both of {nimg} images: choose one track by the pattern", a.display(), b.display());
    }
    Ok(files)
}

/// The last number in a name, its extension apart.
fn last_number(name: &str) -> Option<u64> {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    stem.split(|c: char| !c.is_ascii_digit()).rfind(|digits| !digits.is_empty())?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_how_far_the_training_was() {
        assert_eq!(last_number("network-snapshot-000123.pkl"), Some(123));
        assert_eq!(last_number("ema_0.9999_010000.pt"), Some(10_000));
        assert_eq!(last_number("model.pt"), None);
        let folder = tempfile::tempdir().unwrap();
        for name in ["model000200.pt", "model000100.pt", "ema_0.9_000100.pt", "network-snapshot-000002.pkl"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found = |pattern: &str, unit| {
            let pattern = folder.path().join(pattern).display().to_string();
            numbered(&pattern, unit, 64).map(|files| files.into_iter().map(|(nimg, _)| nimg).collect::<Vec<_>>())
        };
        assert_eq!(found("model*.pt", None).unwrap(), [6400, 12_800]);
        assert_eq!(found("model*.pt", Some(1)).unwrap(), [100, 200]);
        assert!(found("*000*00*", Some(1)).unwrap_err().to_string().contains("both of 100 images"));
        assert!(found("network-*", None).unwrap_err().to_string().contains("1 files, expected at least 2"));
    }
}
