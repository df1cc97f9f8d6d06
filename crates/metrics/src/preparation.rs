//! The making of extractors and of what is known about the real images, with its cached files.

use crate::cache::{cached, fingerprint};
use crate::classifier::{STEPS, train_classifier};
use crate::extractor::Extractor;
use crate::featurenet::{FeatureNet, Variant};
use crate::precision_recall::evenly_spaced;
use crate::scorer::{RealFeatures, Scorer};
use crate::stats::{FeatureStats, StatsAccumulator};
use crate::suite::{Progress, RealImages};
use lcsc_torch::{Device, Result, StorageDtype, Stream, Tensor, derive_seed, load_weights, pack_weights};
use std::path::Path;

/// Part of the names of cached files: raise it with every change of networks, training or statistics.
const VERSION: u32 = 2;
/// Images between two reports of progress.
const CHUNK: i64 = 1000;

/// What the making of extractors and statistics needs.
pub(crate) struct Preparation<'a> {
    pub real: RealImages<'a>,
    pub chw: [i64; 3],
    pub seed: u64,
    pub device: Device,
    pub cache: Option<&'a Path>,
    pub progress: Progress<'a>,
}

impl Preparation<'_> {
    /// A classifier where the images have labels, else random convolutions.
    ///
    /// # Errors
    /// libtorch failed.
    pub(crate) fn network(&self, variant: Variant) -> Result<Extractor> {
        let seed = derive_seed(self.seed, Stream::Features, variant as u64);
        let kind = if self.real.has_classes() { "classifier" } else { "random-convolutions" };
        let name = format!("{kind}-{}", variant.letter());
        let convention = format!("{name} 64-d seed {} data {}", self.seed, self.short_hash(8));
        let classes = self.real.has_classes().then_some(self.real.classes);
        let mut net = FeatureNet::new(variant, self.chw, classes, seed, convention, self.device)?;
        let Some(labels) = self.real.labels.filter(|_| self.real.has_classes()) else {
            return Ok(Extractor::RandomConvolutions(net));
        };
        let key = format!("{} {name} of {} classes", self.key(), self.real.classes);
        let file = cached(self.cache, &self.file_name(&name), &key, || {
            let report = |done, total| (self.progress)(&name, done, total);
            let theta = train_classifier(&net, self.real.images, labels, STEPS, seed, &report)?;
            pack_weights(&net.layout, &net.weights.with_theta(theta), StorageDtype::F32)
        })?;
        net.weights = load_weights(&net.layout, &file, self.device)?;
        Ok(Extractor::Classifier(net))
    }

    /// The extractor with statistics and features of the real images, which are kept unscaled.
    ///
    /// # Errors
    /// All real images have the same features, or libtorch failed.
    pub(crate) fn scorer(&self, extractor: Extractor) -> Result<Scorer> {
        let (name, weights) = match &extractor {
            Extractor::Classifier(net) | Extractor::RandomConvolutions(net) => {
                let name = net.convention.split(' ').next().unwrap_or_default().to_string();
                (name, fingerprint(&[("theta".into(), net.weights.theta.shallow_clone())])?)
            }
            // Its convention has the hash of its weights.
            Extractor::Inception(_) => ("inception".into(), extractor.convention()),
            Extractor::TorchScript(_) => ("torchscript".into(), extractor.convention()),
            Extractor::Pixels(_) => ("pixels".into(), "none".into()),
        };
        let key = format!("{} statistics of {name} with weights {weights}", self.key());
        let file = cached(self.cache, &self.file_name(&format!("stats-{name}")), &key, || {
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
