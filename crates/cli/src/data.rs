//! `lcsc data`: prepares, shows and fetches datasets.

use crate::examples;
use crate::progress::{BYTES, bar};
use crate::session::cache_folder;
use crate::{Ended, pictures, ui};
use clap::{Subcommand, ValueEnum};
use indicatif::HumanBytes;
use lcsc_data::{CIFAR10, Crop, DataConfig, Dataset, INCEPTION, OnCorrupt, Split, convert, fetch, summarize};
use lcsc_metrics::spaced;
use lcsc_torch::Tensor;
use miette::{IntoDiagnostic, miette};
use std::path::PathBuf;

/// Classes that `info` counts one by one.
const CLASSES_SHOWN: usize = 20;

#[derive(Subcommand)]
pub enum DataCommand {
    /// Write any dataset as a zip in EDM's layout.
    #[command(after_help = examples::DATA_CONVERT)]
    Convert(ConvertArgs),
    /// Tell what a dataset holds.
    #[command(after_help = examples::DATA_INFO)]
    Info(InfoArgs),
    /// Download a published file, checked by its hash; a download that was cut goes on.
    #[command(after_help = examples::DATA_FETCH)]
    Fetch(FetchArgs),
}

#[derive(clap::Args)]
pub struct SourceArgs {
    /// A zip, folder, archive or npz, as `data.source` takes it.
    source: String,
    /// Which part of CIFAR-10 or of ImageNet's batches: `train` or `test`.
    #[arg(long, default_value = "train", value_parser = named::<Split>)]
    split: Split,
    /// Pixels a side (default: as the images are).
    #[arg(long)]
    resolution: Option<i64>,
    /// How images become squares of it: `center` or `center-dhariwal`.
    #[arg(long, default_value = "center", value_parser = named::<Crop>, requires = "resolution")]
    crop: Crop,
    /// Make grey and transparent images RGB.
    #[arg(long)]
    rgb: bool,
    /// Leave damaged images out (default: refuse the dataset).
    #[arg(long)]
    skip_corrupt: bool,
    /// Read no labels.
    #[arg(long)]
    no_labels: bool,
}

#[derive(clap::Args)]
pub struct ConvertArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The zip to write.
    to: PathBuf,
}

#[derive(clap::Args)]
pub struct InfoArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Also write 128 evenly spaced images as one PNG.
    #[arg(long, value_name = "FILE.png")]
    sheet: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct FetchArgs {
    /// What to download.
    name: Published,
    /// Folder to put it into (default: $LCSC_CACHE, else ~/.cache/lcsc).
    #[arg(long)]
    out: Option<PathBuf>,
    /// Another address of the same file.
    #[arg(long)]
    url: Option<String>,
}

/// What can be fetched.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Published {
    /// CIFAR-10, binary version (163 MiB).
    Cifar10,
    /// FID's Inception weights (91 MiB).
    Inception,
}

/// A value of a config by its name there.
fn named<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|e| e.to_string())
}

impl SourceArgs {
    fn config(&self) -> DataConfig {
        DataConfig {
            source: self.source.clone(),
            split: self.split,
            resolution: self.resolution,
            crop: self.crop,
            rgb: self.rgb,
            on_corrupt: if self.skip_corrupt { OnCorrupt::Skip } else { OnCorrupt::Fail },
            labels: !self.no_labels,
            ..DataConfig::default()
        }
    }
}

/// Runs a command of `lcsc data`.
///
/// # Errors
/// What the dataset, the file or the server refuses.
pub fn command(command: &DataCommand, signals: &ui::Signals) -> miette::Result<Ended> {
    match command {
        DataCommand::Convert(args) => convert_command(args, signals)?,
        DataCommand::Info(args) => info(args)?,
        DataCommand::Fetch(args) => fetch_command(args)?,
    }
    Ok(Ended::Done)
}

fn convert_command(args: &ConvertArgs, signals: &ui::Signals) -> miette::Result<()> {
    signals.listen()?;
    let bar = bar("converting", 0, "images");
    let images = convert(&args.source.config(), &args.to, &bar, &|| signals.stop()).into_diagnostic()?;
    drop(bar);
    ui::say!("{}: {images} images", args.to.display());
    Ok(())
}

fn info(args: &InfoArgs) -> miette::Result<()> {
    let bar = bar("reading", 0, "images");
    let data = Dataset::open(&args.source.config(), &bar).into_diagnostic()?;
    drop(bar);
    let summary = summarize(&data).into_diagnostic()?;
    let (n, channels, h, w) = data.images.size4().into_diagnostic()?;
    ui::say!("{}", data.name);
    ui::say!("images    {n} of {channels}×{h}×{w} (C×H×W), {} as u8", HumanBytes(data.images.numel() as u64));
    ui::say!("classes   {}", classes(&summary.classes));
    ui::say!("mean      {}   of values in [−1,1]", numbers(&summary.mean));
    ui::say!("std       {}", numbers(&summary.std));
    ui::say!("hash      {}", data.hash);
    if let Some(path) = &args.sheet {
        // Evenly spaced: files often lie class by class.
        let shown = data.images.index_select(0, &Tensor::from_slice(&spaced(n, pictures::SHEET as i64)));
        let sheet = lcsc_train::image_batch(&shown).into_diagnostic()?;
        lcsc_report::write_grid(path, &sheet, pictures::COLUMNS as usize).into_diagnostic()?;
        ui::say!("sheet     {}", path.display());
    }
    Ok(())
}

/// How many classes there are, and how many images each has.
fn classes(counts: &[u64]) -> String {
    let listed = |counts: &[u64]| counts.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    match (counts.iter().min(), counts.iter().max()) {
        (Some(least), Some(most)) if least == most => format!("{} of {most} images each", counts.len()),
        (Some(_), Some(_)) if counts.len() <= CLASSES_SHOWN => format!("{} of {} images", counts.len(), listed(counts)),
        (Some(least), Some(most)) => format!("{} of {least} to {most} images", counts.len()),
        _ => "no labels".into(),
    }
}

fn numbers(values: &[f64]) -> String {
    values.iter().map(|v| format!("{v:+.4}")).collect::<Vec<_>>().join(" ")
}

fn fetch_command(args: &FetchArgs) -> miette::Result<()> {
    let folder = args.out.clone().or_else(cache_folder);
    let folder =
        folder.ok_or_else(|| miette!("there is no home or cache folder: name one with --out or LCSC_CACHE"))?;
    let remote = match args.name {
        Published::Cifar10 => CIFAR10,
        Published::Inception => INCEPTION,
    };
    let bar = bar(&format!("fetching {}", remote.file), 0, BYTES);
    let path = fetch(&remote, args.url.as_deref(), &folder, &bar).into_diagnostic()?;
    drop(bar);
    ui::say!("{}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_counted_as_shortly_as_can_be() {
        assert_eq!(classes(&[]), "no labels");
        assert_eq!(classes(&[5, 5, 5]), "3 of 5 images each");
        assert_eq!(classes(&[5, 6]), "2 of 5 6 images");
        assert_eq!(classes(&[vec![2], vec![9; 20]].concat()), "21 of 2 to 9 images");
        assert!(named::<Crop>("centre").unwrap_err().contains("center-dhariwal"));
    }
}
