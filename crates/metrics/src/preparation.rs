//! Extractors and scorers of a dataset, with their cached files.

use crate::cache::{cached, fingerprint};
use crate::classifier::{STEPS, train_classifier};
use crate::extractor::{Extractor, Pixels};
use crate::featurenet::{FeatureNet, Variant};
use crate::precision_recall::evenly_spaced;
use crate::scorer::{RealFeatures, Scorer};
use crate::stats::{FeatureStats, StatsAccumulator};
use crate::suite::{Progress, RealImages, Suite};
use lcsc_torch::{Device, Result, StorageDtype, Stream, Tensor, derive_seed, load_weights, pack_weights};
use std::path::Path;

/// Part of the names of cached files: raise it with every change of networks, training or statistics.
const VERSION: u32 = 2;
/// Images between two reports of progress.
const CHUNK: i64 = 1000;

/// What the making of extractors and statistics needs.
pub struct Preparation<'a> {
    /// The real images.
    pub real: RealImages<'a>,
    /// Seed of the classifiers.
    pub seed: u64,
    /// Where features are computed.
    pub device: Device,
    /// Folder of files that spare the same work next time.
    pub cache: Option<&'a Path>,
    /// Folder of the classifiers that a search has used: all that take part in it use the same ones, whatever their own
    /// machines would train.
    pub kept: Option<&'a Path>,
    /// Told what is being done.
    pub progress: Progress<'a>,
}

impl Preparation<'_> {
    /// Trains the extractors, but for those of primary and independent that are `given`, and gathers statistics and features of
    /// the real images, or takes all from files.
    ///
    /// # Errors
    /// The images are not u8 `[N,C,H,W]` with N ≥ 2, a label is not a class, or libtorch failed.
    pub fn suite(&self, given: [Option<Extractor>; 2]) -> Result<Suite> {
        let chw = self.real.checked()?;
        if !self.real.has_classes() && given[0].is_none() {
            tracing::info!("the data has no labels: images are judged by the features of random convolutions");
        }
        let [primary, independent] = given;
        let or_own = |given: Option<Extractor>, variant| given.map_or_else(|| self.network(variant), Ok);
        Ok(Suite {
            primary: self.scorer(or_own(primary, Variant::Primary)?)?,
            independent: self.scorer(or_own(independent, Variant::Independent)?)?,
            pixels: self.scorer(Extractor::Pixels(Pixels::new(chw, self.device)))?,
        })
    }

    /// The primary, the independent and the pixels' extractor of that suite, before [`Extractor::share`] gives them what rank 0
    /// has trained.
    ///
    /// # Errors
    /// Those of [`Self::suite`].
    pub fn untrained(&self, given: [Option<Extractor>; 2]) -> Result<[Extractor; 3]> {
        let [primary, independent] = given;
        let or_own = |given: Option<Extractor>, variant| -> Result<Extractor> {
            given.map_or_else(|| Ok(self.of_kind(self.initial(variant)?)), Ok)
        };
        Ok([
            or_own(primary, Variant::Primary)?,
            or_own(independent, Variant::Independent)?,
            Extractor::Pixels(Pixels::new(self.real.checked()?, self.device)),
        ])
    }

    fn network_seed(&self, variant: Variant) -> u64 {
        derive_seed(self.seed, Stream::Features, variant as u64)
    }

    /// A network at its initial weights.
    fn initial(&self, variant: Variant) -> Result<FeatureNet> {
        let chw = self.real.checked()?;
        let kind = if self.real.has_classes() { "classifier" } else { "random-convolutions" };
        let name = format!("{kind}-{}", variant.letter());
        let classes = self.real.has_classes().then_some(self.real.classes);
        FeatureNet::new(variant, chw, classes, self.network_seed(variant), name, self.device)
    }

    fn of_kind(&self, net: FeatureNet) -> Extractor {
        if self.real.has_classes() { Extractor::Classifier(net) } else { Extractor::RandomConvolutions(net) }
    }

    /// A classifier where the images have labels, else random convolutions.
    ///
    /// # Errors
    /// libtorch failed.
    fn network(&self, variant: Variant) -> Result<Extractor> {
        let mut net = self.initial(variant)?;
        let (name, seed) = (net.convention.clone(), self.network_seed(variant));
        let labels = self.real.labels.filter(|_| self.real.has_classes());
        if let Some(labels) = labels {
            let (file, key) =
                (self.file_name(&name), format!("{} {name} of {} classes", self.key(), self.real.classes));
            let train = || {
                let report = |done, total| (self.progress)(&name, done, total);
                let theta = train_classifier(&net, self.real.images, labels, STEPS, seed, &report)?;
                pack_weights(&net.layout, &net.weights.with_theta(theta), StorageDtype::F32)
            };
            let trained = cached(self.kept, &file, &key, || cached(self.cache, &file, &key, train)?.tensors())?;
            net.weights = load_weights(&net.layout, &trained, self.device)?;
        }
        let weights = fingerprint(&[("theta".into(), net.weights.theta.shallow_clone())])?;
        net.convention =
            format!("{name} 64-d seed {} data {} weights {}", self.seed, self.short_hash(8), &weights[..8]);
        Ok(self.of_kind(net))
    }

    /// The extractor with statistics and features of the real images, which are kept unscaled.
    ///
    /// # Errors
    /// All real images have the same features, or libtorch failed.
    pub fn scorer(&self, extractor: Extractor) -> Result<Scorer> {
        self.real.checked()?;
        // It tells the weights.
        let convention = extractor.convention();
        let name = format!("{:.16}", blake3::hash(convention.as_bytes()).to_hex());
        // Published weights know nothing of the seed; the convention of others tells it.
        let key = format!("version {VERSION} data {} statistics of {convention}", self.real.hash);
        let file = format!("stats-{name}-v{VERSION}-{}", self.short_hash(16));
        let file = cached(self.cache, &file, &key, || {
            let RealFeatures { stats, points } = self.real_features(&extractor)?;
            let n = Tensor::from(stats.n);
            let tensors = [("n", n), ("mean", stats.mean), ("cov", stats.cov), ("points", points)];
            Ok(tensors.map(|(k, t)| (k.to_string(), t)).into())
        })?;
        let n = file.tensor("n")?.int64_value(&[]);
        let stats = FeatureStats { n, mean: file.tensor("mean")?, cov: file.tensor("cov")? };
        Scorer::new(extractor, RealFeatures { stats, points: file.tensor("points")? }, self.real.hash)
    }

    fn real_features(&self, extractor: &Extractor) -> Result<RealFeatures> {
        let mut stats = StatsAccumulator::new(extractor.dim(), self.device);
        let mut points = Vec::new();
        let total = self.real.images.size()[0];
        let spaced = evenly_spaced(total);
        for chunk in self.real.images.f_split(CHUNK, 0)? {
            let features = extractor.features(&chunk)?;
            let here = stats.n()..stats.n() + features.size()[0];
            let rows: Vec<i64> = spaced.iter().filter(|i| here.contains(i)).map(|i| i - here.start).collect();
            points.push(features.f_index_select(0, &Tensor::f_from_slice(&rows)?.f_to(self.device)?)?);
            stats.add(&features)?;
            (self.progress)("reference statistics", stats.n() as u64, total as u64);
        }
        Ok(RealFeatures { stats: stats.finish()?, points: Tensor::f_cat(&points, 0)? })
    }

    fn short_hash(&self, digits: usize) -> &str {
        self.real.hash.get(..digits).unwrap_or(self.real.hash)
    }

    fn file_name(&self, name: &str) -> String {
        format!("{name}-v{VERSION}-seed{}-{}", self.seed, self.short_hash(16))
    }

    fn key(&self) -> String {
        format!("version {VERSION} seed {} data {}", self.seed, self.real.hash)
    }
}
