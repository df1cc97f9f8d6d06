//! Coefficients on disk, and the weights files made from them.

use crate::args::MergeArgs;
use crate::card::{self, Card};
use crate::search::DEFAULT_NAME;
use crate::{Ended, ui};
use lcsc_diffusion::{Model, SamplerConfig};
use lcsc_search::Groups;
use lcsc_torch::{
    Context, Device, Error, Result, SafeFile, StorageDtype, Weights, bail, pack_weights, serialize, write_atomic,
};
use lcsc_trajectory::{Checkpoint, METADATA, Manifest, Memory, RunFolder, Window};
use miette::IntoDiagnostic;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// File names of a search's results.
pub const COEFFICIENTS: &str = "coefficients.toml";
pub const MERGED: &str = "merged.safetensors";

/// A linear combination of checkpoint files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coefficients {
    /// Name of the search.
    pub search: String,
    /// How the combination came about.
    pub detail: String,
    /// What the distance was measured with, on how many images.
    pub extractor: String,
    pub images: u64,
    /// Fréchet distance on latents that the search never saw.
    pub fd_heldout: f64,
    /// Network evaluations an image that they were found for.
    pub nfe: usize,
    /// Which parameters share coefficients, and the names of the groups.
    pub space: Groups,
    pub groups: Vec<String>,
    /// The sampler that they were found for.
    pub sampler: SamplerConfig,
    /// The checkpoints and their coefficients, which sum to one in each group.
    pub checkpoint: Vec<Coefficient>,
}

/// One term α·θ, with a coefficient for each group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coefficient {
    pub file: String,
    pub nimg: u64,
    pub blake3: String,
    pub alpha: Vec<f64>,
}

impl Coefficients {
    /// Writes the TOML file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string_pretty(self).map_err(|e| Error::file(path, e.to_string()))?;
        write_atomic(path, text.as_bytes())
    }

    pub fn read(path: &Path) -> Result<Self> {
        if !path.exists() {
            bail!(
                "{}: there are no coefficients yet: the search has not ended; the command that began it goes on",
                path.display()
            );
        }
        let text = std::fs::read_to_string(path).at(path)?;
        toml::from_str(&text).map_err(|e| Error::file(path, format!("is no coefficients file: {}", e.message())))
    }

    /// α `[G][K]`.
    fn rows(&self, path: &Path) -> Result<Vec<Vec<f64>>> {
        let g = self.groups.len();
        if let Some(term) = self.checkpoint.iter().find(|c| c.alpha.len() != g) {
            let message = format!("`{}` has {} coefficients, expected {g}, one a group", term.file, term.alpha.len());
            return Err(Error::file(path, message));
        }
        Ok((0..g).map(|g| self.checkpoint.iter().map(|c| c.alpha[g]).collect()).collect())
    }

    /// The checkpoints of a run that are meant, each the very file that was searched.
    fn checkpoints(&self, run: &RunFolder) -> Result<Vec<Checkpoint>> {
        let manifest = Manifest::read(run)?;
        let find = |c: &Coefficient| match manifest.iter().find(|m| m.file == c.file) {
            Some(found) if found.blake3 == c.blake3 => Ok(found.clone()),
            Some(_) => Err(Error::file(
                run.trajectory().join(&c.file),
                "is not the checkpoint that these coefficients were found for (another hash): search again",
            )),
            None => Err(Error::file(run.manifest(), format!("does not list `{}`", c.file))),
        };
        self.checkpoint.iter().map(find).collect()
    }
}

/// `lcsc merge`: the weights file of coefficients that lie in a run folder.
pub fn command(args: &MergeArgs) -> miette::Result<Ended> {
    let run = RunFolder::open(&args.run).into_diagnostic()?;
    let out = args.out.clone().unwrap_or_else(|| run.merged());
    let source = args.coefficients.clone().unwrap_or_else(|| run.search(DEFAULT_NAME).join(COEFFICIENTS));
    let merge = || -> Result<()> {
        let coefficients = Coefficients::read(&source)?;
        let checkpoints = coefficients.checkpoints(&run)?;
        let Some(first) = checkpoints.first() else { bail!("{}: lists no checkpoint", source.display()) };
        let path = run.trajectory().join(&first.file);
        let card = card::read(&path, &SafeFile::open(&path)?)?;
        let model = card.model();
        // From mapped files: merging once is not worth the memory of all.
        let memory = Memory { device: Device::Cpu, device_bytes: 0, host_bytes: 0 };
        let window = Window::load(&run, &checkpoints, &model.layout, memory)?;
        let partition = lcsc_search::partition(&coefficients.space, &model.layout)?;
        let weights = window.weights(&partition, &coefficients.rows(&source)?)?;
        write(&out, &card, &model, &weights, &coefficients, args.dtype)
    };
    lcsc_torch::catch("merging", merge).into_diagnostic()?;
    ui::say!("merged model: {}", out.display());
    Ok(Ended::Done)
}

/// Writes merged weights with their provenance.
pub fn write(
    path: &Path,
    card: &Card,
    model: &Model,
    weights: &Weights,
    coefficients: &Coefficients,
    dtype: StorageDtype,
) -> Result<()> {
    let merged = serde_json::to_value(coefficients).map_err(|e| Error::file(path, e.to_string()))?;
    let sampler = coefficients.sampler.clone();
    let card = Card { checkpoint: None, merged: Some(merged), sampler, ..card.clone() };
    let text = serde_json::to_string(&card).map_err(|e| Error::file(path, e.to_string()))?;
    let tensors = pack_weights(&model.layout, weights, dtype)?;
    write_atomic(path, &serialize(&tensors, (METADATA, &text))?)
}
