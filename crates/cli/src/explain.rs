//! `lcsc config explain`: what a run will take.

use crate::check::saved;
use crate::config::{Config, Loaded};
use crate::train::{checkpoint_bytes, run_bytes, state_bytes};
use lcsc_search::{Budget, MethodName, SearchConfig, When, step_images};
use lcsc_torch::StorageDtype;
use lcsc_train::StageConfig;
use lcsc_trajectory::Placement;
use lcsc_unet::{Activations, ImageShape};
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
        let model = config.model(stage, image);
        let p = model.layout.numel() as u64;
        let activations =
            Activations::of(&model.layout, image).with_gradient * model.precision.kind().elt_size_in_bytes() as i64;
        let vector = 4 * p;
        let (steps, tracks) = (stage.steps(), stage.ema.len() as u64);
        let target = stage.objective.target_ema(0, steps).map(|_| "target network");
        let teacher = stage.teacher.as_ref().map(|_| "teacher");
        let others: String = target.iter().chain(&teacher).map(|name| format!(", {name} {}", size(vector))).collect();
        let kept = stage.trajectory().count(stage.images(), stage.batch);
        writeln!(
            o,
            "stage      {}: {p} parameters, {} images in {steps} steps of {} (rounds of {}), objective {}\n           \
             memory: weights {}, gradient {}, moments {}, {tracks} EMA tracks {}{others}, and about {} of activations a round\n           \
             trajectory: {kept} checkpoints, {} in the search window",
            stage.name,
            stage.images(),
            stage.batch,
            stage.round(),
            stage.objective.name(),
            size(vector),
            size(vector),
            size(2 * vector),
            size(tracks * vector),
            size(activations as u64 * stage.round()),
            saved(stage, &config.search).all,
        )
        .into_diagnostic()?;
    }
    writeln!(
        o,
        "disk       {}: checkpoints {}, training state {} (two while it is replaced), merged model",
        size(run_bytes(config, image)),
        size(checkpoint_bytes(config, image)),
        size(state_bytes(config, image))
    )
    .into_diagnostic()?;
    let Some(stage) = config.searched_stage() else { return Ok(out) };
    out.push_str(&search(config, stage, image)?);
    Ok(out)
}

/// What the search will take.
fn search(config: &Config, stage: &StageConfig, image: ImageShape) -> miette::Result<String> {
    let search = &config.search;
    let model = config.model(stage, image);
    let (p, k) = (model.layout.numel() as u64, saved(stage, search).all);
    let dtype = stage.trajectory().dtype;
    // The last checkpoint of each track is exact.
    let exact = (k / saved(stage, search).base.max(1)).max(1).min(k);
    let w = p * ((k - exact) * dtype.bytes() + exact * StorageDtype::F32.bytes());
    let device = config.device.resolve().into_diagnostic()?;
    let memory = config.memory(device);
    let place = Placement::of(w, memory);
    let groups = lcsc_search::partition(&lcsc_search::groups_of(search), &model.layout).into_diagnostic()?;
    let methods: Vec<&str> = search.method.iter().map(|m| m.name()).collect();
    let nfe = config.sampler.nfe() as u64;
    let mut out = String::new();
    let o = &mut out;
    writeln!(
        o,
        "search     {} over W = {k} × {p} {dtype:?}: {}, {place} (search.memory_gib = {})",
        methods.join(", "),
        size(w),
        search.memory_gib
    )
    .into_diagnostic()?;
    writeln!(o, "           {} groups of parameters: {}", groups.len(), groups.names().join(", ")).into_diagnostic()?;
    writeln!(o, "           {} images an evaluation at {nfe} NFE; budget {}", search.images, budget(search, nfe))
        .into_diagnostic()?;
    writeln!(o, "           {}", activations(config, stage, image)).into_diagnostic()?;
    writeln!(
        o,
        "           selection {} images × up to {} finalists; report {} images × {} seeds × {} models",
        search.selection_images,
        (2 + search.searching().len().max(1)) * search.finalists,
        search.report_images,
        search.report_seeds,
        if search.method.contains(&MethodName::Finetune) { 5 } else { 4 }
    )
    .into_diagnostic()?;
    if search.when == When::During {
        let times = (stage.images() - 1) / search.during.every_nimg;
        writeln!(o, "           and {times} small searches while training").into_diagnostic()?;
    }
    Ok(out)
}

/// What images take on the device while they are sampled, and in a step along a gradient.
fn activations(config: &Config, stage: &StageConfig, image: ImageShape) -> String {
    let (search, nfe) = (&config.search, config.sampler.nfe());
    let model = config.model(stage, image);
    let Activations { with_gradient, without_gradient } = Activations::of(&model.layout, image);
    let bytes = |values: i64| values as u64 * model.precision.kind().elt_size_in_bytes() as u64;
    let mut text = format!(
        "about {} of activations for {} images sampled at once",
        size(search.chunk * bytes(without_gradient)),
        search.chunk
    );
    let step = |method: &MethodName| match method {
        MethodName::Gradient => Some(search.gradient.images),
        MethodName::Finetune => Some(search.finetune.images),
        MethodName::EmaGrid | MethodName::Evolution | MethodName::OnePlusOne | MethodName::CmaEs => None,
    };
    if let Some(images) = search.method.iter().filter_map(step).max() {
        let judged = config.metric.judges(image.chw())[0].activation_bytes();
        let n = step_images(images, nfe).min(search.gradient_chunk());
        let each = bytes(with_gradient) + judged;
        text += &format!(", {} for {n} in a step by gradient", size(n * each));
    }
    text
}

/// The limits of a search, and what they mean in network evaluations.
fn budget(search: &SearchConfig, nfe: u64) -> String {
    let Budget { evaluations, seconds, images, patience } = search.budget;
    // A step along a gradient makes its images once without and once with a graph.
    let cost = |method: &MethodName| match method {
        MethodName::Gradient => 2 * step_images(search.gradient.images, nfe as usize),
        MethodName::Finetune => 2 * step_images(search.finetune.images, nfe as usize),
        MethodName::EmaGrid | MethodName::Evolution | MethodName::OnePlusOne | MethodName::CmaEs => search.images,
    };
    let dearest = search.searching().iter().map(cost).max().unwrap_or(0);
    let limits = [
        evaluations.map(|n| {
            format!("{n} evaluations (up to {} network evaluations of an image)", n.saturating_mul(dearest * nfe))
        }),
        seconds.map(|s| format!("{s} s")),
        images.map(|n| format!("{n} images")),
        patience.map(|n| format!("{n} evaluations without improvement")),
    ];
    limits.into_iter().flatten().collect::<Vec<_>>().join(" or ")
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
