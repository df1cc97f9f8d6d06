//! How good images are: Fréchet distances between the features of generated and of real images.
//!
//! A [`Suite`] measures the same images three ways: with a primary extractor, which a search may optimise against, with
//! an independent one, another network, and with raw pixels, which share nothing with the first. Distances
//! of different [`Extractor::convention`]s, or of different numbers of images, are not comparable.
//!
//! A [`Scorer`] also tells how far a distance is to be trusted ([`Reference::bootstrap_std`]), fidelity apart from
//! variety ([`Scorer::precision_recall`]), and which way features should move ([`Reference::gradient`], through
//! [`Extractor::forward`] to pixels).
//!
//! ```
//! use lcsc_metrics::{FeatureStats, frechet_distance};
//! use lcsc_torch::{Device, Stream, latents};
//! # fn main() -> lcsc_torch::Result<()> {
//! let normal = |seed| latents(seed, Stream::Noise, 0, 500, [4, 1, 1], Device::Cpu).map(|z| z.flatten(1, -1));
//! let real = FeatureStats::of(&normal(0)?)?;
//! let shifted = FeatureStats::of(&(normal(0)? + 3.0))?;
//! // Of equal covariances the distance is that of the means, squared: 3² for each of four features.
//! assert!((frechet_distance(&real, &shifted)? - 36.0).abs() < 1e-3);
//! assert!(frechet_distance(&real, &FeatureStats::of(&normal(1)?)?)? < 0.2);
//! # Ok(())
//! # }
//! ```

mod bootstrap;
mod cache;
mod classifier;
mod config;
mod evaluation;
mod extractor;
mod featurenet;
mod frechet;
mod gradient;
mod inception;
mod inception_score;
mod kid;
mod lite;
mod precision_recall;
mod preparation;
mod published;
mod scorer;
mod stats;
mod suite;
mod symmetric;
#[cfg(test)]
mod testdata;
mod torchscript;

pub use config::{ExtractorConfig, MetricConfig};
pub use evaluation::{Evaluation, Metrics, Results};
pub use extractor::{Extractor, Pixels};
pub use featurenet::FeatureNet;
pub use frechet::{Reference, frechet_distance};
pub use gradient::FrechetGradient;
pub use inception::Inception;
pub use inception_score::InceptionScore;
pub use kid::{Kid, squared_mmd};
pub use lite::{Lite, LiteFile, LiteName};
pub use precision_recall::{PrecisionRecall, evenly_spaced, precision_recall, spaced};
pub use preparation::Preparation;
pub use scorer::{Convention, Scorer};
pub use stats::{FeatureStats, StatsAccumulator};
pub use suite::{Progress, RealImages, Suite};
pub use torchscript::TorchScript;
