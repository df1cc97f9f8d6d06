//! `lcsc config explain`: what a run will take.

use crate::check::window_size;
use crate::config::Loaded;
use crate::train::checkpoint_bytes;
use miette::IntoDiagnostic;
use std::fmt::Write;

/// Parameters, memory, disk and evaluations of a config, as text.
pub fn text(Loaded { config, data }: &Loaded) -> miette::Result<String> {
    let image = config.image(data);
    let mut out = String::new();
    let o = &mut out;
    let (n, c, r) = (data.images, data.channels, data.resolution);
    writeln!(o, "data       {}: {n} images, {c}×{r}×{r}, {} classes", data.name, data.classes).into_diagnostic()?;
    for stage in &config.stage {
        let p = config.model(stage, image).layout.numel() as u64;
        let vector = 4 * p;
        let (steps, tracks) = (stage.images() / stage.batch, stage.ema.len() as u64);
        let kept = stage.trajectory().count(stage.images(), stage.batch);
        writeln!(
            o,
            "stage      {}: {p} parameters, {} images in {steps} steps of {} (rounds of {})\n           \
             memory: weights {}, gradient {}, moments {}, {tracks} EMA tracks {} (activations come on top)\n           \
             trajectory: {kept} checkpoints, {} raw ones in the search window",
            stage.name,
            stage.images(),
            stage.batch,
            stage.round(),
            size(vector),
            size(vector),
            size(2 * vector),
            size(tracks * vector),
            window_size(stage, config.search.window),
        )
        .into_diagnostic()?;
    }
    writeln!(o, "disk       checkpoints {}", size(checkpoint_bytes(config, image))).into_diagnostic()?;
    let Some(stage) = config.searched_stage() else { return Ok(out) };
    let search = &config.search;
    let p = config.model(stage, image).layout.numel() as u64;
    let k = window_size(stage, search.window);
    let w = 4 * k * p;
    let fits = w as f64 <= search.memory_gib * f64::from(1 << 30);
    let place = if fits { "held in memory" } else { "read from the files, a row at a time" };
    let nfe = config.sampler.nfe() as u64;
    writeln!(o, "search     W = {k} × {p} f32: {}, {place} (search.memory_gib = {})", size(w), search.memory_gib)
        .into_diagnostic()?;
    let budget = match (search.budget.evaluations, search.budget.seconds) {
        (Some(n), None) => {
            format!("{n} evaluations, {} network evaluations of an image in all", n * search.images * nfe)
        }
        (None, Some(s)) => format!("{s} s"),
        (Some(n), Some(s)) => format!("{n} evaluations or {s} s"),
        (None, None) => "none".into(),
    };
    writeln!(o, "           {} images an evaluation at {nfe} NFE; budget {budget}", search.images).into_diagnostic()?;
    writeln!(
        o,
        "           selection {} images × up to {} finalists; report {} images × {} seeds × 4 models",
        search.selection_images,
        3 * search.finalists + 2,
        search.report_images,
        search.report_seeds
    )
    .into_diagnostic()?;
    Ok(out)
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
