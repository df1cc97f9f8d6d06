//! `lcsc eval`: how good the images of a weights file are, or images that are there already.

use crate::args::{EvalArgs, Metric};
use crate::card::Card;
use crate::{Ended, card, extractor, progress, reference, sample, session, ui};
use lcsc_data::{DataConfig, Dataset, Split};
use lcsc_diffusion::{LatentSet, Model, SamplerConfig};
use lcsc_metrics::{Evaluation, Extractor, ExtractorConfig, MetricConfig, Metrics, Results, Scorer, Suite};
use lcsc_torch::{Context, Device, Result, Stream, Tensor, Weights, catch, permutation, write_atomic};
use miette::IntoDiagnostic;
use std::path::Path;

/// Samples, unless more is asked for.
const SAMPLES: u64 = 5000;

/// What is measured.
enum Source {
    Weights(Box<Generator>),
    Images(Dataset),
}

struct Generator {
    card: Card,
    model: Model,
    weights: Weights,
    sampler: SamplerConfig,
}

/// Samples or reads, measures, prints.
pub fn command(args: &EvalArgs) -> miette::Result<Ended> {
    let device = session::machine(args.machine.device, args.machine.threads)?;
    if let Some(folder) = args.json.as_deref().and_then(Path::parent) {
        std::fs::create_dir_all(folder).at(folder).into_diagnostic()?;
    }
    let source = Source::open(args, device)?;
    let n = source.images(args)?;
    let scorers = scorers(args, &source, device)?;
    let results = catch("measuring", || measure(args, &source, &scorers, n, device)).into_diagnostic()?;
    ui::say!("{}", source.title(args));
    results.iter().for_each(print);
    if let Some(path) = &args.json {
        let sampler = source.generator().map(|g| &g.sampler);
        let json = serde_json::json!({
            "weights": args.weights, "images": args.images, "reference": args.reference, "seed": args.seed,
            "sampler": sampler, "nfe": sampler.map(SamplerConfig::nfe),
            "results": results,
        });
        write_atomic(path, format!("{json:#}\n").as_bytes()).into_diagnostic()?;
    }
    Ok(Ended::Done)
}

impl Source {
    fn open(args: &EvalArgs, device: Device) -> miette::Result<Self> {
        if let Some(path) = &args.weights {
            let (card, model, weights) = card::open(path, device)?;
            let sampler = card::sampler(&card, &model, args.sampler.as_deref())?;
            return Ok(Self::Weights(Box::new(Generator { card, model, weights, sampler })));
        }
        if args.reference.is_none() {
            miette::bail!("--images needs --reference: what to measure them against");
        }
        let config = DataConfig { source: args.images.clone().unwrap_or_default(), ..DataConfig::default() };
        Ok(Self::Images(session::dataset(&config, device)?))
    }

    fn generator(&self) -> Option<&Generator> {
        match self {
            Self::Weights(generator) => Some(generator),
            Self::Images(_) => None,
        }
    }

    /// How many images are measured.
    fn images(&self, args: &EvalArgs) -> miette::Result<u64> {
        match self {
            Self::Weights(_) => Ok(args.n.unwrap_or(SAMPLES)),
            Self::Images(data) => {
                let all = data.images.size()[0] as u64;
                match args.n.unwrap_or(all) {
                    n if n <= all => Ok(n),
                    n => Err(miette::miette!("--n {n}: {} holds {all} images", data.name)),
                }
            }
        }
    }

    fn title(&self, args: &EvalArgs) -> String {
        match self {
            Self::Weights(g) => {
                let path = args.weights.as_deref().unwrap_or(Path::new(""));
                format!("{}: {} NFE an image, seed {}", path.display(), g.sampler.nfe(), args.seed)
            }
            Self::Images(data) => data.name.clone(),
        }
    }

    /// Calls `with` for each chunk of the first `n` images, u8 `[B,C,H,W]`.
    fn chunks(
        &self,
        args: &EvalArgs,
        n: u64,
        device: Device,
        mut with: impl FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Weights(g) => {
                let net = g.model.bind(&g.weights)?;
                let latents =
                    LatentSet { seed: args.seed, stream: Stream::ReportLatents, n, chunk: args.machine.chunk };
                sample::chunks(&net, &g.sampler, latents, device, with)
            }
            // Whatever their order: samples often lie class by class.
            Self::Images(data) => {
                let order = permutation(data.images.size()[0] as usize, args.seed, Stream::Order, 0);
                order[..n as usize].chunks(args.machine.chunk as usize).try_for_each(|chunk| {
                    let chunk = Tensor::f_from_slice(chunk)?.f_to(device)?;
                    with(&data.images.f_index_select(0, &chunk)?)
                })
            }
        }
    }
}

/// The ways of judging: one by a network of published weights; else classifier, independent classifier and pixels.
fn scorers(args: &EvalArgs, source: &Source, device: Device) -> miette::Result<Vec<Scorer>> {
    let trained = source.generator().map(|g| g.card.metric.clone());
    let of_images = || ExtractorConfig { inception: Some("auto".into()), ..ExtractorConfig::default() };
    let mut metric = trained.unwrap_or_else(|| MetricConfig { extractor: of_images(), ..MetricConfig::default() });
    if let Some(extractor) = &args.extractor {
        metric.extractor = extractor.clone();
    }
    let extractor = extractor::open(&metric.extractor, source.chw(), device).into_diagnostic()?;
    if let Some(path) = args.reference.as_deref().map(Path::new)
        && let Some(stats) = reference::statistics(path, extractor.as_ref().map(Extractor::dim)).into_diagnostic()?
    {
        let Some(extractor) = extractor else {
            miette::bail!(
                "{}: statistics of features, which only the extractor that they were computed with can be compared with: \
                 --extractor inception, or --extractor 'torchscript = \"inception-2015-12-05.pt\", …' for EDM's",
                path.display()
            );
        };
        let hash = blake3::hash(&std::fs::read(path).into_diagnostic()?).to_hex().to_string();
        return Ok(vec![Scorer::from_statistics(extractor, stats, &hash).into_diagnostic()?]);
    }
    let data = session::dataset(&source.reference_data(args), device)?;
    let (ours, theirs) = (source.chw(), [1, 2, 3].map(|axis| data.images.size()[axis]));
    if ours != theirs {
        let remedy = "`lcsc data convert` with --resolution and --rgb makes them alike";
        miette::bail!("the images are {ours:?} [C, H, W], those of the reference {} {theirs:?}: {remedy}", data.name);
    }
    session::preparing(&data, metric.seed, device, None, |preparation| match extractor {
        Some(extractor) => Ok(vec![preparation.scorer(extractor)?]),
        None => {
            let Suite { primary, independent, pixels } = preparation.suite(None)?;
            Ok(vec![primary, independent, pixels])
        }
    })
}

impl Source {
    /// The shape `[C,H,W]` of the images.
    fn chw(&self) -> [i64; 3] {
        match self {
            Self::Weights(g) => [g.card.image.channels, g.card.image.resolution, g.card.image.resolution],
            Self::Images(data) => [1, 2, 3].map(|axis| data.images.size()[axis]),
        }
    }

    /// The real images.
    fn reference_data(&self, args: &EvalArgs) -> DataConfig {
        let mut config = match self {
            // The images have to be of the network's size, whatever the dataset's own is.
            Self::Weights(g) => DataConfig { resolution: Some(g.card.image.resolution), ..g.card.data.clone() },
            Self::Images(_) => DataConfig::default(),
        };
        if let Some(reference) = &args.reference {
            config.source.clone_from(reference);
            config.split = Split::default();
        }
        config
    }
}

/// One pass over the images, for all scorers; what is not a Fréchet distance is measured by the first alone.
fn measure(args: &EvalArgs, source: &Source, scorers: &[Scorer], n: u64, device: Device) -> Result<Vec<Results>> {
    let asked = |scorer| match &args.metrics {
        None => Metrics::all(scorer, n),
        Some(metrics) => Metrics {
            kid: metrics.contains(&Metric::Kid),
            inception_score: metrics.contains(&Metric::Is),
            precision_recall: metrics.contains(&Metric::Pr),
        },
    };
    let of = |(i, scorer)| Evaluation::new(scorer, n, if i == 0 { asked(scorer) } else { Metrics::default() });
    let mut evaluations = scorers.iter().enumerate().map(of).collect::<Result<Vec<_>>>()?;
    let bar = progress::bar("sampling and measuring", n, "images");
    source.chunks(args, n, device, |images| {
        evaluations.iter_mut().try_for_each(|evaluation| evaluation.add(images))?;
        bar.inc(images.size()[0] as u64);
        Ok(())
    })?;
    drop(bar);
    evaluations.into_iter().map(Evaluation::finish).collect()
}

fn print(results: &Results) {
    ui::say!("  {}", results.convention);
    ui::say!("    FD         {:10.4}", results.fd);
    if let Some(kid) = &results.kid {
        let error = kid.standard_error.map_or_else(String::new, |e| format!(" ± {e:.6}"));
        ui::say!("    KID        {:10.6}{error}  (blocks of {})", kid.mean, kid.block);
    }
    if let Some(score) = &results.inception_score {
        ui::say!("    IS         {:10.4} ± {:.4}", score.mean, score.std);
    }
    if let Some(pr) = &results.precision_recall {
        ui::say!("    precision  {:10.4}\n    recall     {:10.4}", pr.precision, pr.recall);
    }
}
