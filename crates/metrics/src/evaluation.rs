//! All measures of one set of images, in one pass over them.

use crate::frechet::is_finite;
use crate::inception_score::{InceptionScore, SPLITS, ScoreParts};
use crate::kid::{Kid, KidBlocks};
use crate::precision_recall::{PrecisionRecall, evenly_spaced};
use crate::scorer::{Convention, NEIGHBOUR, Scorer};
use crate::stats::StatsAccumulator;
use lcsc_torch::{Result, Tensor, bail};
use serde::Serialize;

/// What to measure beside the Fréchet distance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Kernel Inception Distance.
    pub kid: bool,
    /// Inception Score.
    pub inception_score: bool,
    /// Improved precision and recall.
    pub precision_recall: bool,
}

impl Metrics {
    /// All that a scorer and the number of images allow.
    pub fn all(scorer: &Scorer, n: u64) -> Self {
        let real = scorer.real_features.as_ref().map_or(0, |real| real.size()[0] as u64);
        Self {
            kid: real > 1,
            inception_score: scorer.extractor.has_classes() && n >= SPLITS as u64,
            precision_recall: real.min(n) > NEIGHBOUR as u64,
        }
    }
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Results {
    /// What they are comparable by.
    pub convention: Convention,
    /// Fréchet distance.
    pub fd: f64,
    /// Kernel Inception Distance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<Kid>,
    /// Inception Score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inception_score: Option<InceptionScore>,
    /// Precision and recall, by at most 10,000 images of each side.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub precision_recall: Option<PrecisionRecall>,
}

/// A measurement of `n` images in progress. Features are kept where a measure needs them: at most 10,000 for precision and
/// recall, a block for KID, all while they are no more than D; memory does not grow with `n` beyond that.
pub struct Evaluation<'a> {
    scorer: &'a Scorer,
    n: i64,
    seen: i64,
    moments: Moments,
    kid: Option<KidBlocks>,
    parts: Option<ScoreParts>,
    /// Indices of the images whose features are kept, and these.
    points: Option<(Vec<i64>, Vec<Tensor>)>,
}

/// What the Fréchet distance needs.
enum Moments {
    /// N ≤ D features: the distance is cheaper by their Gram matrix.
    Features(Vec<Tensor>),
    /// Mean and covariance.
    Stats(StatsAccumulator),
}

impl<'a> Evaluation<'a> {
    /// Begins to measure `n` images.
    ///
    /// # Errors
    /// Fewer than two images, or a measure that the scorer does not allow.
    pub fn new(scorer: &'a Scorer, n: u64, metrics: Metrics) -> Result<Self> {
        let n = i64::try_from(n).unwrap_or(i64::MAX);
        if n < 2 {
            bail!("a Fréchet distance needs at least 2 images, but there are {n}: a covariance is estimated from them");
        }
        let real = match &scorer.real_features {
            Some(real) => Some(real),
            None if metrics.kid || metrics.precision_recall => {
                bail!("KID, precision and recall need the real images themselves, not their statistics alone")
            }
            None => None,
        };
        if let Some(real) = real.filter(|real| metrics.precision_recall && real.size()[0].min(n) <= NEIGHBOUR) {
            let real = real.size()[0];
            bail!("precision and recall need more than {NEIGHBOUR} images on both sides, not {n} and {real} real ones");
        }
        if metrics.inception_score && !scorer.extractor.has_classes() {
            bail!("{} tells no classes apart: it has no Inception Score", scorer.extractor.convention());
        }
        let moments = match n <= scorer.extractor.dim() {
            true => Moments::Features(Vec::new()),
            false => Moments::Stats(StatsAccumulator::new(scorer.extractor.dim(), scorer.extractor.device())),
        };
        Ok(Self {
            scorer,
            n,
            seen: 0,
            moments,
            kid: real.filter(|_| metrics.kid).map(|real| KidBlocks::new(real, n)).transpose()?,
            parts: metrics.inception_score.then(|| ScoreParts::new(n)).transpose()?,
            points: metrics.precision_recall.then(|| (evenly_spaced(n), Vec::new())),
        })
    }

    /// Adds images u8 `[B,C,H,W]`.
    ///
    /// # Errors
    /// Another type or shape than the extractor takes, features that are not finite, or more images than announced.
    pub fn add(&mut self, images: &Tensor) -> Result<()> {
        self.add_features(&self.scorer.extractor.features(images)?)
    }

    /// Adds features `[B,D]` of images, as the scorer's extractor gives them.
    ///
    /// # Errors
    /// They are not finite, or of more images than announced.
    pub fn add_features(&mut self, features: &Tensor) -> Result<()> {
        if !is_finite(features) {
            bail!("{} gives features that are not finite", self.scorer.extractor.convention());
        }
        let (first, b) = (self.seen, features.size()[0]);
        self.seen += b;
        if self.seen > self.n {
            bail!("more images than the {} that were announced", self.n);
        }
        match &mut self.moments {
            Moments::Features(all) => all.push(features.shallow_clone()),
            Moments::Stats(stats) => stats.add(features)?,
        }
        if let Some(kid) = &mut self.kid {
            kid.add(features)?;
        }
        if let Some(parts) = &mut self.parts
            && let Some(probabilities) = self.scorer.extractor.probabilities(features)?
        {
            parts.add(&probabilities)?;
        }
        if let Some((indices, points)) = &mut self.points {
            let here: Vec<i64> = indices.iter().filter(|i| (first..first + b).contains(i)).map(|i| i - first).collect();
            points.push(features.f_index_select(0, &Tensor::f_from_slice(&here)?.f_to(features.device())?)?);
        }
        Ok(())
    }

    /// The results.
    ///
    /// # Errors
    /// Fewer images than announced, or libtorch failed.
    pub fn finish(self) -> Result<Results> {
        if self.seen != self.n {
            bail!("{} images were announced, but {} were measured", self.n, self.seen);
        }
        let reference = &self.scorer.reference;
        let fd = match self.moments {
            Moments::Features(all) => reference.gradient(&Tensor::f_cat(&all, 0)?)?.distance,
            Moments::Stats(stats) => reference.distance(&stats.finish()?)?,
        };
        let neighbours =
            |(_, points): (Vec<i64>, Vec<Tensor>)| self.scorer.precision_recall(&Tensor::f_cat(&points, 0)?);
        Ok(Results {
            convention: self.scorer.convention(self.n as u64),
            fd,
            kid: self.kid.map(KidBlocks::finish).transpose()?,
            inception_score: self.parts.map(ScoreParts::finish).transpose()?,
            precision_recall: self.points.map(neighbours).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extractor::Pixels;
    use crate::testdata::Expected;
    use crate::{Extractor, FeatureStats, precision_recall, squared_mmd};
    use lcsc_torch::{Device, Kind, Stream, latents};

    /// Images [n,1,2,3].
    fn images(seed: u64, n: usize) -> Tensor {
        let noise = latents(seed, Stream::SampleLatents, 0, n, [1, 2, 3], Device::Cpu).unwrap();
        (noise * 40.0 + 128.0).clamp(0.0, 255.0).to_kind(Kind::Uint8)
    }

    fn pixels() -> Extractor {
        Extractor::Pixels(Pixels::new([1, 2, 3], Device::Cpu))
    }

    fn scorer(real: &Tensor) -> Scorer {
        let reference = FeatureStats::of(&pixels().features(real).unwrap()).unwrap();
        let mut scorer = Scorer::from_statistics(pixels(), reference, "0123456789").unwrap();
        scorer.real_features = Some(pixels().features(real).unwrap());
        scorer
    }

    fn measured(scorer: &Scorer, images: &Tensor, batch: i64) -> Results {
        let mut evaluation =
            Evaluation::new(scorer, images.size()[0] as u64, Metrics::all(scorer, images.size()[0] as u64)).unwrap();
        images.split(batch, 0).iter().for_each(|batch| evaluation.add(batch).unwrap());
        evaluation.finish().unwrap()
    }

    #[test]
    fn distances_precision_and_recall_are_those_of_the_definitions() {
        let e = Expected::read();
        let (real, fake) = (e.tensor("real"), e.tensor("fake"));
        let reference = crate::Reference::new(FeatureStats::of(&real).unwrap()).unwrap();
        let distance = reference.distance(&FeatureStats::of(&fake).unwrap()).unwrap();
        assert!((distance - e.number("frechet")).abs() < 1e-10, "{distance}");
        let of_5 = reference.gradient(&fake.narrow(0, 0, 5)).unwrap().distance;
        assert!((of_5 - e.number("frechet_of_5")).abs() < 1e-6, "{of_5}");
        let found = precision_recall(&real, &fake, 3).unwrap();
        assert_eq!((found.precision, found.recall), (e.number("precision"), e.number("recall")));
    }

    #[test]
    fn all_measures_come_from_one_pass_whatever_the_batches() {
        let (real, fake) = (images(1, 40), images(2, 40));
        let scorer = scorer(&real);
        let results = measured(&scorer, &fake, 40);
        let features = pixels().features(&fake).unwrap();
        assert_eq!(results.fd, scorer.score(&fake).unwrap());
        let expected = squared_mmd(&features, &pixels().features(&real).unwrap()).unwrap();
        assert!((results.kid.unwrap().mean - expected).abs() < 1e-9);
        assert_eq!(results.precision_recall.unwrap(), scorer.precision_recall(&features).unwrap());
        assert_eq!(results.inception_score, None);
        assert_eq!(results.convention.to_string(), "pixels 2x3; N 40; reference 01234567");
        let batched = measured(&scorer, &fake, 7);
        assert!((batched.fd - results.fd).abs() < 1e-12 && batched.kid == results.kid, "{batched:?}");
        // Fewer images than features: by their Gram matrix.
        let few = fake.narrow(0, 0, 6);
        assert!((measured(&scorer, &few, 4).fd - scorer.score(&few).unwrap()).abs() < 1e-6);
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let scorer = Scorer { real_features: None, ..scorer(&images(1, 20)) };
        let refused = |n, metrics| Evaluation::new(&scorer, n, metrics).err().unwrap().to_string();
        let kid = Metrics { kid: true, ..Metrics::default() };
        assert!(refused(5, kid).contains("need the real images themselves"));
        let sided = self::scorer(&images(1, 3));
        let pr = Metrics { precision_recall: true, ..Metrics::default() };
        assert!(Evaluation::new(&sided, 9, pr).err().unwrap().to_string().contains("not 9 and 3 real ones"));
        assert_eq!(Metrics::all(&sided, 9), Metrics { kid: true, ..Metrics::default() });
        let score = Metrics { inception_score: true, ..Metrics::default() };
        assert!(refused(20, score).contains("tells no classes apart"));
        assert!(refused(1, Metrics::default()).contains("at least 2 images"));
        let mut evaluation = Evaluation::new(&scorer, 5, Metrics::all(&scorer, 5)).unwrap();
        assert!(evaluation.add(&images(3, 6)).unwrap_err().to_string().contains("more images than the 5"));
        assert!(Evaluation::new(&scorer, 5, Metrics::default()).unwrap().finish().is_err());
        let other = FeatureStats::of(&Tensor::zeros([3, 7], (Kind::Float, Device::Cpu))).unwrap();
        let text = Scorer::from_statistics(pixels(), other, "").unwrap_err().to_string();
        assert!(text.contains("are of 7 features, but pixels 2x3 gives 6"), "{text}");
    }
}
