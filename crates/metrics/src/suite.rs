//! The three ways in which a run's images are judged, made ready from its real images.

use crate::scorer::Scorer;
use lcsc_torch::{Kind, Result, Tensor, bail};

/// The real images of a run.
#[derive(Debug, Clone, Copy)]
pub struct RealImages<'a> {
    /// u8 `[N,C,H,W]`, on any device.
    pub images: &'a Tensor,
    /// Classes i64 `[N]`, where the images have labels.
    pub labels: Option<&'a Tensor>,
    /// Number of classes; with fewer than two, labels are of no use.
    pub classes: i64,
    /// blake3 of images and labels, in hexadecimal: what cached files are known by.
    pub hash: &'a str,
}

/// Reports what is being done, and how much of it is done, of how much.
pub type Progress<'a> = &'a dyn Fn(&str, u64, u64);

/// Three scorers of the same images.
#[derive(Debug)]
pub struct Suite {
    /// What a search optimises.
    pub primary: Scorer,
    /// Another network, seeded apart: tells whether a gain is one of the images or of the metric.
    pub independent: Scorer,
    /// Raw pixels: shares nothing with the networks.
    pub pixels: Scorer,
}

impl RealImages<'_> {
    pub(crate) fn has_classes(&self) -> bool {
        self.labels.is_some() && self.classes > 1
    }

    /// The shape [C,H,W] of the images, once images and labels are known to fit each other.
    pub(crate) fn checked(&self) -> Result<[i64; 3]> {
        let (n, chw) = match self.images.size()[..] {
            [n, c, h, w] if n > 1 && self.images.kind() == Kind::Uint8 => (n, [c, h, w]),
            _ => bail!(
                "the real images are {:?} of type {:?}, expected [N, C, H, W] of type Uint8 with at least 2 images",
                self.images.size(),
                self.images.kind()
            ),
        };
        if let Some(labels) = self.labels {
            if labels.size() != [n] || labels.kind() != Kind::Int64 {
                bail!("the labels are {:?} of type {:?}, expected [{n}] of type Int64", labels.size(), labels.kind());
            }
            let (low, high) = (labels.min().int64_value(&[]), labels.max().int64_value(&[]));
            if low < 0 || high >= self.classes {
                bail!(
                    "the labels range from {low} to {high}, expected 0 to {} for {} classes",
                    self.classes - 1,
                    self.classes
                );
            }
        }
        Ok(chw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classifier::tests::three_classes;
    use crate::preparation::Preparation;
    use crate::stats::FeatureStats;
    use lcsc_torch::{Device, Stream, latents};
    use std::cell::RefCell;
    use std::path::Path;

    const HASH: &str = "1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f809";

    /// 300 images [1,4,4] of three classes.
    fn data() -> (Tensor, Tensor) {
        let (images, labels) = three_classes();
        (images.to_kind(Kind::Float).avg_pool2d_default(2).to_kind(Kind::Uint8), labels)
    }

    fn real<'a>(images: &'a Tensor, labels: Option<&'a Tensor>) -> RealImages<'a> {
        RealImages { images, labels, classes: 3, hash: HASH }
    }

    fn prepare(real: RealImages, seed: u64, cache: Option<&Path>, progress: Progress) -> Result<Suite> {
        Preparation { real, seed, device: Device::Cpu, cache, kept: None, progress }.suite([None, None])
    }

    fn noisy(images: &Tensor, amount: f64) -> Tensor {
        let noise = latents(3, Stream::SampleLatents, 0, 300, [1, 4, 4], Device::Cpu).unwrap();
        (images.to_kind(Kind::Float) + noise * amount).clamp(0.0, 255.0).to_kind(Kind::Uint8)
    }

    fn points(scorer: &Scorer) -> &Tensor {
        scorer.real_features.as_ref().unwrap()
    }

    fn scorers(suite: &Suite) -> [&Scorer; 3] {
        [&suite.primary, &suite.independent, &suite.pixels]
    }

    #[test]
    fn a_labelled_suite_is_trained_once_and_comes_back_from_its_cache() {
        let folder = tempfile::tempdir().unwrap();
        let (images, labels) = data();
        let prepared = || {
            let done = RefCell::new(Vec::new());
            let progress = |what: &str, n, total| {
                if n == total {
                    done.borrow_mut().push(what.to_string());
                }
            };
            let real = real(&images, Some(&labels));
            let suite = prepare(real, 0, Some(folder.path()), &progress).unwrap();
            let scores = scorers(&suite).map(|s| s.score(&noisy(&images, 30.0)).unwrap());
            (suite, scores, done.into_inner())
        };
        let (suite, scores, done) = prepared();
        let statistics = "reference statistics";
        assert_eq!(done, ["classifier-a", statistics, "classifier-b", statistics, statistics]);
        let conventions = scorers(&suite).map(|s| s.extractor.convention());
        for (convention, letter) in conventions.iter().zip(['a', 'b']) {
            let name = format!("classifier-{letter} 64-d seed 0 data 1a2b3c4d weights ");
            assert!(convention.starts_with(&name) && convention.len() == name.len() + 8, "{convention}");
        }
        assert_eq!(conventions[2], "pixels 4x4");

        let (_, again, done) = prepared();
        assert_eq!((again, done.len()), (scores, 0));

        let damaged = folder.path().join("classifier-b-v2-seed0-1a2b3c4d5e6f7081.safetensors");
        let bytes = std::fs::read(&damaged).unwrap();
        std::fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
        let (_, repaired, done) = prepared();
        assert_eq!(done, ["classifier-b"]);
        assert_eq!(repaired, scores);
        assert_eq!(std::fs::read(&damaged).unwrap(), bytes);
    }

    #[test]
    fn classifiers_that_are_kept_are_used_whatever_the_cache_has() {
        let [cache, kept] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (images, labels) = data();
        let prepared = |cache: Option<&Path>| {
            let real = real(&images, Some(&labels));
            let (kept, progress): (_, Progress) = (Some(kept.path()), &|_, _, _| ());
            Preparation { real, seed: 0, device: Device::Cpu, cache, kept, progress }.suite([None, None]).unwrap()
        };
        let conventions = |suite: &Suite| scorers(suite).map(|s| s.extractor.convention());
        let first = conventions(&prepared(Some(cache.path())));
        drop(cache);
        // They are read from there: what lies there counts.
        let file = std::fs::read_dir(kept.path()).unwrap().next().unwrap().unwrap().path();
        assert!(file.to_string_lossy().contains("classifier-"), "{file:?}");
        assert_eq!(conventions(&prepared(None)), first);
        assert_eq!(std::fs::read_dir(kept.path()).unwrap().count(), 2);
    }

    #[test]
    fn unlabelled_images_are_judged_by_random_convolutions_of_trace_100() {
        let (images, _) = data();
        let suite = prepare(real(&images, None), 5, None, &|_, _, _| ()).unwrap();
        let convention = suite.primary.extractor.convention();
        assert!(convention.starts_with("random-convolutions-a 64-d seed 5 data 1a2b3c4d weights "), "{convention}");
        for scorer in [&suite.primary, &suite.independent] {
            let stats = FeatureStats::of(&scorer.extractor.features(&images).unwrap()).unwrap();
            assert!((stats.cov.trace().double_value(&[]) - 100.0).abs() < 1e-3);
        }
        for scorer in scorers(&suite) {
            let score = |amount| scorer.score(&noisy(&images, amount)).unwrap();
            assert!(score(0.0).abs() < 1e-3, "{}", score(0.0));
            assert!(0.01 < score(20.0) && 2.0 * score(20.0) < score(60.0), "{} {}", score(20.0), score(60.0));
        }
        let other = prepare(real(&images, None), 6, None, &|_, _, _| ()).unwrap();
        let features = |s: &Scorer| s.extractor.features(&images).unwrap();
        assert!(!features(&suite.primary).allclose(&features(&other.primary), 1e-3, 1e-3, false));
        assert!(features(&suite.pixels).equal(&features(&other.pixels)));
    }

    #[test]
    fn real_features_are_scaled_like_the_statistics_and_come_back_from_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let (images, _) = data();
        let prepared = || prepare(real(&images, None), 0, Some(folder.path()), &|_, _, _| ()).unwrap();
        let (made, kept) = (prepared(), prepared());
        let far = noisy(&images, 200.0);
        for (made, kept) in scorers(&made).into_iter().zip(scorers(&kept)) {
            assert!(points(made).equal(&made.extractor.features(&images).unwrap()));
            assert!(points(kept).equal(points(made)));
            let values = |images: &Tensor| {
                made.precision_recall(&made.extractor.features(images).unwrap())
                    .map(|v| (v.precision, v.recall))
                    .unwrap()
            };
            assert_eq!(values(&images), (1.0, 1.0));
            assert!(values(&far).0 < 0.7, "{:?}", values(&far));
        }
    }

    #[test]
    fn of_many_real_images_evenly_spaced_ones_are_kept() {
        let images = Tensor::arange(10_500 * 4, (Kind::Int64, Device::Cpu)).remainder(251).to_kind(Kind::Uint8);
        let images = images.view([10_500, 1, 2, 2]);
        let suite = prepare(real(&images, None), 0, None, &|_, _, _| ()).unwrap();
        let spaced = Tensor::from_slice(&(0..10_000).map(|j| j * 10_500 / 10_000).collect::<Vec<i64>>());
        for scorer in scorers(&suite) {
            let all = scorer.extractor.features(&images).unwrap();
            assert!(points(scorer).allclose(&all.index_select(0, &spaced), 1e-5, 1e-5, false));
            assert_eq!(scorer.reference.stats().n, 10_500);
        }
    }

    #[test]
    fn data_that_does_not_fit_is_refused() {
        let (images, labels) = data();
        let refused = |images: &Tensor, labels: Option<&Tensor>| {
            prepare(real(images, labels), 0, None, &|_, _, _| ()).unwrap_err().to_string()
        };
        let text = refused(&images.narrow(0, 0, 1), None);
        assert!(text.contains("[1, 1, 4, 4]") && text.contains("at least 2 images"), "{text}");
        let text = refused(&images, Some(&(&labels + 1)));
        assert!(text.contains("range from 1 to 3, expected 0 to 2 for 3 classes"), "{text}");
        let text = refused(&images, Some(&labels.narrow(0, 0, 10)));
        assert!(text.contains("labels are [10] of type Int64, expected [300]"), "{text}");
        let text = refused(&images.zeros_like(), None);
        assert!(text.contains("all 300 real images have the same features"), "{text}");
    }
}
