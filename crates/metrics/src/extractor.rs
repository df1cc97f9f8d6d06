//! From images to features.

use crate::featurenet::FeatureNet;
use crate::inception::Inception;
use crate::lite::Lite;
use crate::torchscript::TorchScript;
use lcsc_torch::{Device, Group, Kind, Result, Tensor, bail, to_float};

/// Images that go through a small network at once.
const CHUNK: i64 = 250;
/// Images that go at once through a network that enlarges them, on the CPU and on a GPU: always as many, since the last digits
/// of what libtorch computes depend on it, and a distance is to be the same whatever the batches that images came in.
const LARGE_CHUNK: [i64; 2] = [16, 256];
/// The longest side of the images that [`Pixels`] compares.
const PIXELS: i64 = 16;

/// What turns images into features.
#[derive(Debug)]
pub enum Extractor {
    /// A small classifier trained on the labelled real images: the layer below its class scores.
    Classifier(FeatureNet),
    /// The same network at random weights, for images without labels.
    RandomConvolutions(FeatureNet),
    /// The network of published FIDs.
    Inception(Box<Inception>),
    /// A network of ImageNet.
    Lite(Box<Lite>),
    /// A module of the user's.
    TorchScript(TorchScript),
    /// The pixels themselves.
    Pixels(Pixels),
}

impl Extractor {
    /// Features f32 `[N,D]` of images u8 `[N,C,H,W]`, on the extractor's device, without gradient.
    ///
    /// # Errors
    /// The images have another type or shape than the real ones, or libtorch failed.
    pub fn features(&self, images: &Tensor) -> Result<Tensor> {
        self.check(images, Kind::Uint8)?;
        tch::no_grad(|| {
            let mut features = Vec::new();
            for chunk in images.f_split(self.chunk(), 0)? {
                let n = chunk.size()[0];
                let whole = self.filled(chunk.f_to(self.device())?)?;
                features.push(self.forward(&to_float(&whole))?.f_narrow(0, 0, n)?);
            }
            Ok(Tensor::f_cat(&features, 0)?)
        })
    }

    /// Features f32 `[B,D]` of pixels f32 `[B,C,H,W]`, in about [−1,1] and on the extractor's device, through which
    /// gradients flow to `x`: what [`Self::features`] gives, without its rounding to u8.
    ///
    /// # Errors
    /// The pixels have another type, shape or device, or libtorch failed.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.check(x, Kind::Float)?;
        if x.device() != self.device() {
            bail!("images to score are on {:?}, expected them on the extractor's {:?}", x.device(), self.device());
        }
        Ok(match self {
            Self::Classifier(net) | Self::RandomConvolutions(net) => {
                let params = net.layout.views(&net.weights.theta, &net.weights.buffers)?;
                net.forward(&params, x) * net.scale
            }
            Self::Inception(net) => net.forward(x)?,
            Self::Lite(net) => net.forward(x)?,
            Self::TorchScript(module) => module.forward(x)?,
            Self::Pixels(pixels) => pixels.forward(x),
        })
    }

    /// Takes over what rank 0 has trained; extractors that are read from files have to be the same on all ranks.
    ///
    /// # Errors
    /// They are not. Another rank is gone.
    pub fn share(&mut self, group: &Group) -> Result<()> {
        // For rank 0 may train for long.
        group.told("")?;
        if let Self::Classifier(net) | Self::RandomConvolutions(net) = self {
            net.share(group)?;
        }
        group.same("feature extractors", &self.convention())
    }

    /// Whether it tells classes apart, so that images have an Inception Score.
    pub fn has_classes(&self) -> bool {
        matches!(self, Self::Classifier(_) | Self::Inception(_) | Self::Lite(_))
    }

    /// Class probabilities f32 `[B,classes]` of features `[B,D]`, where the extractor tells classes apart.
    ///
    /// # Errors
    /// The features are not the extractor's.
    pub fn probabilities(&self, features: &Tensor) -> Result<Option<Tensor>> {
        match self {
            Self::Classifier(net) => Ok(Some(net.probabilities(&(features / net.scale))?)),
            Self::Inception(net) => Ok(Some(net.probabilities(features)?)),
            Self::Lite(net) => Ok(Some(net.probabilities(features)?)),
            Self::RandomConvolutions(_) | Self::TorchScript(_) | Self::Pixels(_) => Ok(None),
        }
    }

    fn check(&self, images: &Tensor, kind: Kind) -> Result<()> {
        let expected = match self.chw() {
            Some([c, h, w]) => format!("[N, {c}, {h}, {w}]"),
            None => "[N, 1 or 3, H, W]".into(),
        };
        match (&images.size()[..], self.chw()) {
            (&[n, c, h, w], Some(chw)) if n > 0 && [c, h, w] == chw && images.kind() == kind => Ok(()),
            (&[n, 1 | 3, _, _], None) if n > 0 && images.kind() == kind => Ok(()),
            _ => bail!(
                "images to score are {:?} of type {:?}, expected {expected} of type {kind:?}",
                images.size(),
                images.kind()
            ),
        }
    }

    /// A chunk, with black images added where the network always sees as many.
    fn filled(&self, chunk: Tensor) -> Result<Tensor> {
        let missing = self.chunk() - chunk.size()[0];
        if missing == 0 || !matches!(self, Self::Inception(_) | Self::Lite(_) | Self::TorchScript(_)) {
            return Ok(chunk);
        }
        Ok(chunk.f_constant_pad_nd([0, 0, 0, 0, 0, 0, 0, missing])?)
    }

    fn chunk(&self) -> i64 {
        match self {
            Self::Classifier(_) | Self::RandomConvolutions(_) | Self::Pixels(_) => CHUNK,
            Self::Inception(_) | Self::Lite(_) | Self::TorchScript(_) => {
                LARGE_CHUNK[usize::from(self.device() != Device::Cpu)]
            }
        }
    }

    /// D, the number of features.
    pub fn dim(&self) -> i64 {
        match self {
            Self::Classifier(net) | Self::RandomConvolutions(net) => net.dim(),
            Self::Inception(net) => net.dim(),
            Self::Lite(net) => net.dim(),
            Self::TorchScript(module) => module.dim(),
            Self::Pixels(pixels) => pixels.dim(),
        }
    }

    /// The name of the feature space: distances of different conventions are not comparable.
    pub fn convention(&self) -> String {
        match self {
            Self::Classifier(net) | Self::RandomConvolutions(net) => net.convention.clone(),
            Self::Inception(net) => net.convention(),
            Self::Lite(net) => net.convention(),
            Self::TorchScript(module) => module.convention(),
            Self::Pixels(pixels) => pixels.convention(),
        }
    }

    /// Where features are computed.
    pub fn device(&self) -> Device {
        match self {
            Self::Classifier(net) | Self::RandomConvolutions(net) => net.device(),
            Self::Inception(net) => net.device(),
            Self::Lite(net) => net.device(),
            Self::TorchScript(module) => module.device(),
            Self::Pixels(pixels) => pixels.device,
        }
    }

    /// The only shape of images that it takes, where there is one.
    fn chw(&self) -> Option<[i64; 3]> {
        match self {
            Self::Classifier(net) | Self::RandomConvolutions(net) => Some(net.chw),
            Self::Pixels(pixels) => Some(pixels.chw),
            Self::Inception(_) | Self::Lite(_) | Self::TorchScript(_) => None,
        }
    }
}

/// Images [B,1 or 3,H,W] as RGB [B,3,H,W].
pub(crate) fn rgb(x: &Tensor) -> Tensor {
    let size = x.size();
    x.expand([size[0], 3, size[2], size[3]], false)
}

/// Raw pixels in [−1,1]; sides over 16 are box-averaged to 16, so that D ≤ 256·C.
#[derive(Debug)]
pub struct Pixels {
    chw: [i64; 3],
    device: Device,
}

impl Pixels {
    /// For images `[C,H,W]`.
    pub fn new(chw: [i64; 3], device: Device) -> Self {
        Self { chw, device }
    }

    fn side(&self) -> [i64; 2] {
        [self.chw[1].min(PIXELS), self.chw[2].min(PIXELS)]
    }

    fn dim(&self) -> i64 {
        let [h, w] = self.side();
        self.chw[0] * h * w
    }

    fn convention(&self) -> String {
        let ([_, height, width], [h, w]) = (self.chw, self.side());
        let averaged =
            if [height, width] == [h, w] { String::new() } else { format!(" box-averaged from {height}x{width}") };
        format!("pixels {h}x{w}{averaged}")
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.adaptive_avg_pool2d(self.side()).flatten(1, -1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::featurenet::Variant;

    #[test]
    fn small_images_are_their_own_features() {
        let extractor = Extractor::Pixels(Pixels::new([1, 2, 3], Device::Cpu));
        let images = Tensor::from_slice(&[0u8, 255, 0, 255, 255, 51]).view([1, 1, 2, 3]);
        let found = Vec::<f32>::try_from(extractor.features(&images).unwrap().view(-1)).unwrap();
        for (f, e) in found.iter().zip([-1.0, 1.0, -1.0, 1.0, 1.0, -0.6]) {
            assert!((f - e).abs() < 1e-6, "{found:?}");
        }
        assert_eq!(extractor.convention(), "pixels 2x3");
    }

    #[test]
    fn big_images_are_averaged_over_boxes() {
        let extractor = Extractor::Pixels(Pixels::new([3, 32, 32], Device::Cpu));
        let images = Tensor::zeros([2, 3, 32, 32], (Kind::Uint8, Device::Cpu));
        let _ = images.narrow(0, 1, 1).narrow(1, 2, 1).narrow(2, 2, 1).narrow(3, 4, 2).fill_(255);
        let features = extractor.features(&images).unwrap();
        assert_eq!((features.size(), extractor.dim()), (vec![2, 768], 768));
        // Half of the box at row 1, column 2 of channel 2 is white.
        let lit = (&features + 1.0).nonzero();
        assert_eq!(Vec::<i64>::try_from(lit.view(-1)).unwrap(), [1, 2 * 256 + 16 + 2]);
        assert_eq!(features.double_value(&[1, 2 * 256 + 16 + 2]), 0.0);
        assert_eq!(extractor.convention(), "pixels 16x16 box-averaged from 32x32");
    }

    #[test]
    fn chunks_change_nothing_and_other_images_are_refused() {
        let extractor = Extractor::Pixels(Pixels::new([1, 4, 4], Device::Cpu));
        let images = Tensor::arange(600 * 16, (Kind::Int64, Device::Cpu)).to_kind(Kind::Uint8).view([600, 1, 4, 4]);
        let tail = extractor.features(&images.narrow(0, 240, 20)).unwrap();
        assert!(extractor.features(&images).unwrap().narrow(0, 240, 20).equal(&tail));
        for wrong in [images.to_kind(Kind::Float), images.view([600, 1, 2, 8]), images.narrow(0, 0, 0)] {
            let text = extractor.features(&wrong).unwrap_err().to_string();
            assert!(text.contains("expected [N, 1, 4, 4] of type Uint8"), "{text}");
        }
    }

    #[test]
    fn pixels_give_the_features_of_their_images_and_a_gradient() {
        let chw = [3, 20, 20];
        let images = Tensor::arange(4 * 1200, (Kind::Int64, Device::Cpu)).view([4, 3, 20, 20]) * 37;
        let images = images.remainder(256).to_kind(Kind::Uint8);
        let net = |variant| {
            let mut net = FeatureNet::new(variant, chw, None, 1, String::new(), Device::Cpu).unwrap();
            net.scale = 3.0;
            Extractor::RandomConvolutions(net)
        };
        for extractor in
            [net(Variant::Primary), net(Variant::Independent), Extractor::Pixels(Pixels::new(chw, Device::Cpu))]
        {
            let x = to_float(&images).set_requires_grad(true);
            let features = extractor.forward(&x).unwrap();
            let plain = extractor.features(&images).unwrap();
            assert!(features.equal(&plain) && features.requires_grad() && !plain.requires_grad());
            // The slope along the gradient is the gradient's norm.
            let grad = Tensor::run_backward(&[features.sum(Kind::Float)], &[&x], false, false).remove(0);
            let norm = grad.norm().double_value(&[]);
            let along = |step: f64| {
                let moved = extractor.forward(&(x.detach() + &grad * (step / norm))).unwrap();
                moved.sum(Kind::Double).double_value(&[])
            };
            let slope = (along(1e-2) - along(-1e-2)) / 2e-2;
            assert!(norm > 0.1 && (slope / norm - 1.0).abs() < 0.02, "{slope} {norm}");
        }
    }

    #[test]
    fn other_pixels_are_refused() {
        let extractor = Extractor::Pixels(Pixels::new([1, 4, 4], Device::Cpu));
        let x = Tensor::zeros([2, 1, 4, 4], (Kind::Float, Device::Cpu));
        for wrong in [x.to_kind(Kind::Double), x.to_kind(Kind::Uint8), x.view([2, 1, 2, 8])] {
            let text = extractor.forward(&wrong).unwrap_err().to_string();
            assert!(text.contains("expected [N, 1, 4, 4] of type Float"), "{text}");
        }
        let elsewhere = Extractor::Pixels(Pixels::new([1, 4, 4], Device::Cuda(0)));
        assert!(
            elsewhere.forward(&x).unwrap_err().to_string().contains("on Cpu, expected them on the extractor's Cuda")
        );
    }
}
