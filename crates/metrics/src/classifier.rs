//! Training of the classifier whose features judge images: seconds on one core.

use crate::featurenet::FeatureNet;
use lcsc_torch::{Kind, Optimizer, OptimizerConfig, Result, Stream, Tensor, Verdict, latents, rng, to_float, unit_f64};
use std::f64::consts::PI;

/// Steps of the training that a run's extractors get.
pub(crate) const STEPS: u64 = 600;
const BATCH: i64 = 128;
const LR: f64 = 2e-3;
/// Standard deviation of the noise on training images, which lie in [−1,1].
const NOISE: f64 = 0.05;
/// Images on which the accuracy is measured.
const TESTED: i64 = 2000;

/// The labelled images of a training, and what is drawn from them.
struct Batches<'a> {
    images: &'a Tensor,
    labels: &'a Tensor,
    /// Noise f32 [4B,C,H,W], used again at another offset in every step.
    noise: Tensor,
    seed: u64,
}

impl Batches<'_> {
    /// Images f32 [B,C,H,W], with noise, and labels i64 [B].
    fn draw(&self, step: u64, net: &FeatureNet) -> Result<(Tensor, Tensor)> {
        let mut rng = rng(self.seed, Stream::Features, step);
        let mut below = |n: i64| (unit_f64(&mut rng) * n as f64) as i64;
        let n = self.images.size()[0];
        let index = Tensor::from_slice(&(0..BATCH).map(|_| below(n)).collect::<Vec<_>>());
        let pick = |t: &Tensor| t.index_select(0, &index.to(t.device())).f_to(net.device());
        let noise = self.noise.narrow(0, below(self.noise.size()[0] - BATCH + 1), BATCH);
        Ok((to_float(&pick(self.images)?) + noise * NOISE, pick(self.labels)?))
    }
}

/// Trains a network from its initial weights on images u8 [N,C,H,W] with labels i64 [N] and gives back `theta`: steps of
/// 128 images with Adam at a cosine rate.
///
/// A function of images, labels, network and seed, and in its last bits of the number of CPU threads.
///
/// # Errors
/// The network has no class scores, or libtorch failed.
pub(crate) fn train_classifier(
    net: &FeatureNet,
    images: &Tensor,
    labels: &Tensor,
    steps: u64,
    seed: u64,
    progress: &dyn Fn(u64, u64),
) -> Result<Tensor> {
    let noise = latents(seed, Stream::Features, 0, 4 * BATCH as usize, net.chw, net.device())?;
    let batches = Batches { images, labels, noise, seed };
    let mut theta = net.weights.theta.f_detach_copy()?.set_requires_grad(true);
    let mut optimizer = Optimizer::new(OptimizerConfig::default(), &theta)?;
    let verdict = Verdict::take(net.device())?;
    for step in 0..steps {
        let (x, y) = batches.draw(step, net)?;
        let loss = net.scores(&theta, &x)?.cross_entropy_for_logits(&y);
        let grad = Tensor::f_run_backward(&[loss], &[&theta], false, false)?.remove(0);
        let lr = LR * 0.5 * (1.0 + (PI * step as f64 / steps as f64).cos());
        tch::no_grad(|| optimizer.step(&mut theta, grad, lr, &verdict))?;
        progress(step + 1, steps);
    }
    let theta = theta.f_detach()?;
    let right = 100.0 * accuracy(net, &theta, images, labels)?;
    tracing::info!("{}: {right:.1}% of the training images in their class", net.convention);
    Ok(theta)
}

/// The share of images that go into their class, over about 2000 images evenly spaced.
fn accuracy(net: &FeatureNet, theta: &Tensor, images: &Tensor, labels: &Tensor) -> Result<f64> {
    let every = (images.size()[0] / TESTED).max(1);
    let spaced = |t: &Tensor| t.f_slice(0, 0, None, every)?.f_to(net.device());
    tch::no_grad(|| {
        let mut right = 0.0;
        let (images, labels) = (spaced(images)?, spaced(labels)?);
        for (x, y) in images.f_split(BATCH, 0)?.iter().zip(labels.f_split(BATCH, 0)?) {
            let found = net.scores(theta, &to_float(x))?.argmax(1, false);
            right += found.f_eq_tensor(&y)?.sum(Kind::Double).double_value(&[]);
        }
        Ok(right / images.size()[0] as f64)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::featurenet::Variant;
    use lcsc_torch::Device;

    /// 300 noisy 8×8 images of three classes: a bright top, a bright left half, a bright centre.
    pub(crate) fn three_classes() -> (Tensor, Tensor) {
        let labels = Tensor::arange(300, (Kind::Int64, Device::Cpu)).remainder(3);
        let prototypes = Tensor::zeros([3, 1, 8, 8], (Kind::Float, Device::Cpu));
        let _ = prototypes.get(0).narrow(1, 0, 4).fill_(1.0);
        let _ = prototypes.get(1).narrow(2, 0, 4).fill_(1.0);
        let _ = prototypes.get(2).narrow(1, 2, 4).narrow(2, 2, 4).fill_(1.0);
        let noise = latents(1, Stream::SampleLatents, 0, 300, [1, 8, 8], Device::Cpu).unwrap();
        let images = (prototypes.index_select(0, &labels) * 120.0 + noise * 40.0 + 60.0).clamp(0.0, 255.0);
        (images.to_kind(Kind::Uint8), labels)
    }

    #[test]
    fn three_classes_are_learnt_and_training_is_reproducible() {
        let (images, labels) = three_classes();
        let net = FeatureNet::new(Variant::Primary, [1, 8, 8], Some(3), 7, "a".into(), Device::Cpu).unwrap();
        let before = accuracy(&net, &net.weights.theta, &images, &labels).unwrap();
        let last = std::cell::Cell::new((0, 0));
        let train =
            || train_classifier(&net, &images, &labels, 150, 7, &|done, total| last.set((done, total))).unwrap();
        let theta = train();
        assert!(before < 0.7, "{before}");
        assert!(accuracy(&net, &theta, &images, &labels).unwrap() > 0.98);
        assert_eq!(last.get(), (150, 150));
        assert!(train().equal(&theta));
    }

    #[test]
    fn batches_are_images_with_their_labels_and_differ_between_steps() {
        let (images, labels) = three_classes();
        let net = FeatureNet::new(Variant::Primary, [1, 8, 8], Some(3), 7, "a".into(), Device::Cpu).unwrap();
        let images = (&labels * 51).view([300, 1, 1, 1]).to_kind(Kind::Uint8).expand_as(&images);
        let noise = Tensor::zeros([2 * BATCH, 1, 8, 8], (Kind::Float, Device::Cpu));
        let batches = Batches { images: &images, labels: &labels, noise, seed: 3 };
        let (x, y) = batches.draw(0, &net).unwrap();
        assert_eq!(x.size(), [BATCH, 1, 8, 8]);
        assert!((x - (&y * 0.4 - 1.0).view([BATCH, 1, 1, 1])).abs().max().double_value(&[]) < 1e-6);
        assert!(batches.draw(0, &net).unwrap().1.equal(&y));
        assert!(!batches.draw(1, &net).unwrap().1.equal(&y));
    }
}
