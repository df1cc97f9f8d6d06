//! How good images are against the real ones.

use crate::extractor::Extractor;
use crate::frechet::Reference;
use crate::precision_recall::{PrecisionRecall, evenly_spaced, precision_recall};
use crate::stats::FeatureStats;
use lcsc_torch::{Group, Result, Tensor, bail};
use serde::Serialize;

/// The trace of the covariance of the real images' features, for networks.
const TRACE: f64 = 100.0;
/// The neighbour whose distance is the radius of a ball, as in the paper on precision and recall.
pub(crate) const NEIGHBOUR: i64 = 3;

/// What results have to agree in to be comparable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Convention {
    /// Extractor, the hash of its weights, and how it resizes images.
    pub extractor: String,
    /// N, the number of generated images.
    pub n: u64,
    /// The beginning of the hash of the real images, or of the file of their statistics.
    pub reference: String,
}

impl std::fmt::Display for Convention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; N {}; reference {}", self.extractor, self.n, self.reference)
    }
}

/// The digits of a hash that are shown.
fn short(hash: &str) -> String {
    hash.chars().take(8).collect()
}

/// What is known about the real images in an extractor's feature space.
pub(crate) struct RealFeatures {
    /// Mean and covariance of the features of all M images.
    pub stats: FeatureStats,
    /// Features f32 [min(M, 10,000),D] of images that are evenly spaced.
    pub points: Tensor,
}

/// One way of judging images: an extractor, and the real images in its feature space.
///
/// [`crate::Evaluation`] measures several things on one set of images in one pass.
#[derive(Debug)]
pub struct Scorer {
    /// Images to features.
    pub extractor: Extractor,
    /// Statistics of the real images.
    pub reference: Reference,
    /// Features f32 [min(M, 10,000),D] of evenly spaced ones of the M real images, on the extractor's device; none where only
    /// their statistics are known.
    pub real_features: Option<Tensor>,
    /// What the statistics are of: the beginning of a hash.
    pub reference_hash: String,
}

impl Scorer {
    /// Scales a network's features so that the real images' covariance has trace 100; pixels stay as they are. `real`
    /// holds unscaled features.
    pub(crate) fn new(mut extractor: Extractor, real: RealFeatures, hash: &str) -> Result<Scorer> {
        let RealFeatures { stats, points } = real;
        let factor = match &mut extractor {
            Extractor::Classifier(net) | Extractor::RandomConvolutions(net) => {
                let trace = stats.cov.trace().double_value(&[]);
                if trace <= 0.0 {
                    bail!(
                        "{}: all {} real images have the same features; are they all equal?",
                        net.convention,
                        stats.n
                    );
                }
                net.scale = (TRACE / trace).sqrt();
                net.scale
            }
            // Distances by these are to be comparable with published ones.
            Extractor::Inception(_) | Extractor::Lite(_) | Extractor::TorchScript(_) | Extractor::Pixels(_) => 1.0,
        };
        let real_features = Some(points.f_to(extractor.device())? * factor);
        let reference = Reference::new(stats.scaled(factor))?;
        Ok(Scorer { extractor, reference, real_features, reference_hash: short(hash) })
    }

    /// Against statistics of features of this very extractor that were computed before; `hash` is their file's.
    ///
    /// # Errors
    /// They are of another number of features, or not finite.
    pub fn from_statistics(extractor: Extractor, stats: FeatureStats, hash: &str) -> Result<Scorer> {
        if stats.dim() != extractor.dim() {
            bail!(
                "the reference statistics are of {} features, but {} gives {}: they were computed with another extractor",
                stats.dim(),
                extractor.convention(),
                extractor.dim()
            );
        }
        Ok(Scorer { extractor, reference: Reference::new(stats)?, real_features: None, reference_hash: short(hash) })
    }

    /// Of ranks other than 0: by the reference of rank 0, which [shares](Reference::share) it.
    ///
    /// # Errors
    /// Another rank is gone.
    pub fn shared(extractor: Extractor, group: &Group) -> Result<Scorer> {
        let reference = Reference::shared(extractor.dim(), group)?;
        Ok(Scorer { extractor, reference, real_features: None, reference_hash: String::new() })
    }

    /// What a distance of `n` images is comparable by: only results of equal conventions are.
    pub fn convention(&self, n: u64) -> Convention {
        Convention { extractor: self.extractor.convention(), n, reference: self.reference_hash.clone() }
    }

    /// Fréchet distance of images u8 `[N,C,H,W]` to the real images.
    ///
    /// # Errors
    /// Fewer than two images, or another type or shape than the real ones.
    pub fn score(&self, images: &Tensor) -> Result<f64> {
        self.reference.distance(&FeatureStats::of(&self.extractor.features(images)?)?)
    }

    /// Precision and recall of generated images by their features `[N,D]`, with k = 3 neighbours; of more than 10,000
    /// features, 10,000 evenly spaced ones count. Values for other numbers of images are not comparable.
    ///
    /// # Errors
    /// Those of [`precision_recall`]: fewer than 4 images, generated or real, or another D.
    pub fn precision_recall(&self, features: &Tensor) -> Result<PrecisionRecall> {
        let Some(real_features) = &self.real_features else {
            bail!("precision and recall need the real images themselves, not their statistics alone");
        };
        let index = evenly_spaced(features.size().first().copied().unwrap_or(0));
        let index = Tensor::f_from_slice(&index)?.f_to(features.device())?;
        precision_recall(real_features, &features.f_index_select(0, &index)?, NEIGHBOUR)
    }
}
