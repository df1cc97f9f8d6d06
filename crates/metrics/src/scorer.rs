//! Fréchet distance of images to the real ones.

use crate::extractor::Extractor;
use crate::frechet::Reference;
use crate::stats::{FeatureStats, StatsAccumulator};
use lcsc_torch::{Result, Tensor, bail};

/// The trace of the covariance of the real images' features, for networks.
const TRACE: f64 = 100.0;

/// One way of judging images: an extractor, and the real images' statistics in its feature space.
#[derive(Debug)]
pub struct Scorer {
    /// Images to features.
    pub extractor: Extractor,
    /// Statistics of the real images.
    pub reference: Reference,
}

impl Scorer {
    /// Scales a network's features so that the real images' covariance has trace 100; pixels stay as they are.
    pub(crate) fn new(mut extractor: Extractor, real: FeatureStats) -> Result<Scorer> {
        let factor = match &mut extractor {
            Extractor::Classifier(net) | Extractor::RandomConvolutions(net) => {
                let trace = real.cov.trace().double_value(&[]);
                if trace <= 0.0 {
                    bail!("{}: all {} real images have the same features; are they all equal?", net.convention, real.n);
                }
                net.scale = (TRACE / trace).sqrt();
                net.scale
            }
            Extractor::Pixels(_) => 1.0,
        };
        Ok(Scorer { extractor, reference: Reference::new(real.scaled(factor))? })
    }

    /// Fréchet distance of images u8 [N,C,H,W] to the real images.
    ///
    /// # Errors
    /// Fewer than two images, or another type or shape than the real ones.
    pub fn score(&self, images: &Tensor) -> Result<f64> {
        let mut stats = self.accumulator();
        self.add(&mut stats, images)?;
        self.score_accumulated(stats)
    }

    /// Empty statistics for [`Self::add`]: the way to score more images than memory holds.
    pub fn accumulator(&self) -> StatsAccumulator {
        StatsAccumulator::new(self.extractor.dim(), self.extractor.device())
    }

    /// Adds the features of images u8 [B,C,H,W].
    ///
    /// # Errors
    /// Another type or shape than the real images.
    pub fn add(&self, stats: &mut StatsAccumulator, images: &Tensor) -> Result<()> {
        stats.add(&self.extractor.features(images)?)
    }

    /// Fréchet distance of all images that were added to the real images.
    ///
    /// # Errors
    /// Fewer than two images.
    pub fn score_accumulated(&self, stats: StatsAccumulator) -> Result<f64> {
        self.reference.distance(&stats.finish()?)
    }
}
