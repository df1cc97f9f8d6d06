//! `lcsc eval`: how good the images of a weights file are, or images that are there already.

use crate::args::{EvalArgs, Metric};
use crate::card::Card;
use crate::{Ended, card, extractor, progress, ranks, reference, sample, session, ui};
use lcsc_data::{DataConfig, Dataset, Split};
use lcsc_diffusion::{Draw, LatentSet, Model, Room, SamplerConfig};
use lcsc_metrics::{Evaluation, Extractor, ExtractorConfig, MetricConfig, Metrics, Results, Scorer, Suite};
use lcsc_search::features_in_turn;
use lcsc_torch::{Context, Device, Error, Group, Result, Stream, Tensor, Weights, catch, permutation, write_atomic};
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
pub fn command(args: &EvalArgs, group: &Group) -> miette::Result<Ended> {
    let device = session::machine(args.machine.device, args.machine.threads, group)?;
    if let Some(folder) = args.json.as_deref().and_then(Path::parent) {
        std::fs::create_dir_all(folder).at(folder).into_diagnostic()?;
    }
    let source = Source::open(args, device, group)?;
    let n = source.images(args)?;
    let judges = judges(args, &source, device, group)?;
    let results = catch("measuring", || measure(args, &source, &judges, n, device, group)).into_diagnostic()?;
    if !group.leads() {
        return Ok(Ended::Done);
    }
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
    fn open(args: &EvalArgs, device: Device, group: &Group) -> miette::Result<Self> {
        if let Some(path) = &args.weights {
            let (card, model, weights) = card::open_alike(path, device, group)?;
            let sampler = card::sampler(&card, &model, args.sampler.as_deref())?;
            return Ok(Self::Weights(Box::new(Generator { card, model, weights, sampler })));
        }
        if args.reference.is_none() {
            miette::bail!("--images needs --reference: what to measure them against");
        }
        let config = DataConfig { source: args.images.clone().unwrap_or_default(), ..DataConfig::default() };
        // Each image is looked at once: they stay in host memory.
        let data = ranks::all_ok(group, session::dataset(&config, Device::Cpu))?;
        group.same("images", &data.hash).into_diagnostic()?;
        Ok(Self::Images(data))
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

    /// Calls `with` for the features by each extractor, f32 `[B,D]`, of each chunk of the first `n` images.
    fn features(
        &self,
        args: &EvalArgs,
        latents: LatentSet,
        extractors: &[&Extractor],
        (device, group): (Device, &Group),
        with: impl FnMut(&[Tensor]) -> Result<()>,
    ) -> Result<()> {
        let draws = latents.among(group.size()).draws();
        let rows: Vec<usize> = draws.iter().map(|draw| draw.n).collect();
        let all_finite = match self {
            Self::Weights(g) => {
                let net = g.model.bind(&g.weights)?;
                let room = Room::for_work("sampling");
                let images = |i: usize| sample::chunk(&net, &g.sampler, draws[i], device, &room).map(Some);
                features_in_turn(group, extractors, &rows, g.model.chunks_at_once(device), images, with)?
            }
            // Whatever their order: samples often lie class by class.
            Self::Images(data) => {
                let order = permutation(data.images.size()[0] as usize, args.seed, Stream::Order, 0);
                let images = |i: usize| {
                    let Draw { first, n, .. } = draws[i];
                    let chunk = Tensor::f_from_slice(&order[first as usize..][..n])?;
                    Ok(Some(data.images.f_index_select(0, &chunk)?.f_to(device)?))
                };
                features_in_turn(group, extractors, &rows, 1, images, with)?
            }
        };
        if all_finite { Ok(()) } else { Err(Error::msg("the extractor gives features that are not finite")) }
    }
}

/// What images are judged with: rank 0 knows the real ones, the others extract features for it.
enum Judges {
    Scorers(Vec<Scorer>),
    Extractors(Vec<Extractor>),
}

impl Judges {
    fn extractors(&self) -> Vec<&Extractor> {
        match self {
            Self::Scorers(scorers) => scorers.iter().map(|scorer| &scorer.extractor).collect(),
            Self::Extractors(extractors) => extractors.iter().collect(),
        }
    }

    fn scorers(&self) -> &[Scorer] {
        match self {
            Self::Scorers(scorers) => scorers,
            Self::Extractors(_) => &[],
        }
    }
}

fn judges(args: &EvalArgs, source: &Source, device: Device, group: &Group) -> miette::Result<Judges> {
    let mut judges = match group.leads() {
        true => Judges::Scorers(scorers(args, source, device)?),
        false => Judges::Extractors(extractors(args, source, device)?),
    };
    match &mut judges {
        Judges::Scorers(scorers) => scorers.iter_mut().try_for_each(|scorer| scorer.extractor.share(group)),
        Judges::Extractors(extractors) => extractors.iter_mut().try_for_each(|extractor| extractor.share(group)),
    }
    .into_diagnostic()?;
    Ok(judges)
}

/// The networks of published weights that images are judged by.
struct Given {
    /// The primary and the independent one of a final table; in place of one that is missing a classifier is trained on the data.
    networks: [Option<Extractor>; 2],
    /// Whether the primary judges alone.
    is_alone: bool,
}

impl Given {
    /// Those of the training, unless another is asked for; of images Inception's.
    fn open(args: &EvalArgs, source: &Source, device: Device) -> Result<Self> {
        let named = args.extractor.clone().or_else(|| source.generator().is_none().then(ExtractorConfig::inception));
        let trained = || source.generator().map(|g| g.card.metric.clone()).unwrap_or_default();
        match named {
            Some(named @ (ExtractorConfig::Auto | ExtractorConfig::Classifier)) => {
                let metric = MetricConfig { extractor: named, ..MetricConfig::default() };
                Ok(Self { networks: extractor::open_judges(&metric, source.chw(), device)?, is_alone: false })
            }
            Some(named) => {
                Ok(Self { networks: [extractor::open(&named, source.chw(), device)?, None], is_alone: true })
            }
            None => Ok(Self { networks: extractor::open_judges(&trained(), source.chw(), device)?, is_alone: false }),
        }
    }
}

/// The extractors of [`scorers`].
fn extractors(args: &EvalArgs, source: &Source, device: Device) -> miette::Result<Vec<Extractor>> {
    let Given { networks, is_alone } = Given::open(args, source, device).into_diagnostic()?;
    if is_alone {
        return Ok(networks.into_iter().flatten().collect());
    }
    let data = session::dataset(&source.reference_data(args), device)?;
    Ok(session::preparing(&data, source.seed(), device, None, |preparation| preparation.untrained(networks))?.into())
}

/// The ways of judging: by one network; else by primary, independent and pixels as in a final table.
fn scorers(args: &EvalArgs, source: &Source, device: Device) -> miette::Result<Vec<Scorer>> {
    let Given { networks, is_alone } = Given::open(args, source, device).into_diagnostic()?;
    if let Some(path) = args.reference.as_deref().map(Path::new)
        && let Some(stats) = reference::statistics(path, networks[0].as_ref().map(Extractor::dim)).into_diagnostic()?
    {
        let [Some(extractor), _] = networks else {
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
    session::preparing(&data, source.seed(), device, None, |preparation| {
        if is_alone {
            return networks.into_iter().flatten().map(|extractor| preparation.scorer(extractor)).collect();
        }
        let Suite { primary, independent, pixels } = preparation.suite(networks)?;
        Ok(vec![primary, independent, pixels])
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

    /// The seed of classifiers.
    fn seed(&self) -> u64 {
        self.generator().map_or(0, |g| g.card.metric.seed)
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
fn measure(
    args: &EvalArgs,
    source: &Source,
    judges: &Judges,
    n: u64,
    device: Device,
    group: &Group,
) -> Result<Vec<Results>> {
    let asked = |scorer| match &args.metrics {
        None => Metrics::all(scorer, n),
        Some(metrics) => Metrics {
            kid: metrics.contains(&Metric::Kid),
            inception_score: metrics.contains(&Metric::Is),
            precision_recall: metrics.contains(&Metric::Pr),
        },
    };
    let of = |(i, scorer)| Evaluation::new(scorer, n, if i == 0 { asked(scorer) } else { Metrics::default() });
    let mut evaluations = judges.scorers().iter().enumerate().map(of).collect::<Result<Vec<_>>>()?;
    let bar = progress::bar("sampling and measuring", n, "images");
    let latents = LatentSet { seed: args.seed, stream: Stream::ReportLatents, n, chunk: args.machine.chunk };
    source.features(args, latents, &judges.extractors(), (device, group), |features| {
        evaluations.iter_mut().zip(features).try_for_each(|(evaluation, f)| evaluation.add_features(f))?;
        bar.inc(features[0].size()[0] as u64);
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
