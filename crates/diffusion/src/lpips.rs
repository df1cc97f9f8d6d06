//! The learned perceptual distance LPIPS v0.1 (Zhang et al. 2018, arXiv 1801.03924), prepared as OpenAI's consistency
//! models prepare it (Song et al. 2023; `cm/karras_diffusion.py` with `piq.LPIPS(replace_pooling=True)`).

use lcsc_torch::{
    BufferId, Device, Error, Init, LayoutBuilder, ParamId, ParamLayout, Params, Result, SafeFile, Tensor, load_weights,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Images with a side shorter than this are resized.
const RESIZE_BELOW: i64 = 256;

/// The side that they are resized to.
const RESIZED: i64 = 224;

/// The network that sees the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LpipsNetwork {
    /// VGG-16 with average pooling: what consistency models are trained with.
    Vgg,
    /// AlexNet: about a twentieth of the work.
    Alex,
}

/// Which LPIPS, and where its weights lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LpipsConfig {
    /// The network whose features are compared.
    pub network: LpipsNetwork,
    /// Safetensors file with the state dict of Python's `lpips.LPIPS`.
    pub weights: PathBuf,
}

/// A convolution as the network's table lists it.
struct ConvShape {
    /// Number of the module in torchvision's `features`, part of its name.
    module: i64,
    /// Channels out.
    width: i64,
    kernel: i64,
    stride: i64,
    padding: i64,
}

/// A 3×3 convolution that keeps the map's size.
const fn conv3(module: i64, width: i64) -> ConvShape {
    ConvShape { module, width, kernel: 3, stride: 1, padding: 1 }
}

/// VGG-16 up to relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.
const VGG: [&[ConvShape]; 5] = [
    &[conv3(0, 64), conv3(2, 64)],
    &[conv3(5, 128), conv3(7, 128)],
    &[conv3(10, 256), conv3(12, 256), conv3(14, 256)],
    &[conv3(17, 512), conv3(19, 512), conv3(21, 512)],
    &[conv3(24, 512), conv3(26, 512), conv3(28, 512)],
];

/// AlexNet up to relu1, relu2, relu3, relu4 and relu5.
const ALEX: [&[ConvShape]; 5] = [
    &[ConvShape { module: 0, width: 64, kernel: 11, stride: 4, padding: 2 }],
    &[ConvShape { module: 3, width: 192, kernel: 5, stride: 1, padding: 2 }],
    &[conv3(6, 384)],
    &[conv3(8, 256)],
    &[conv3(10, 256)],
];

impl LpipsNetwork {
    /// The name of the Python package.
    fn name(self) -> &'static str {
        match self {
            Self::Vgg => "vgg",
            Self::Alex => "alex",
        }
    }

    fn slices(self) -> [&'static [ConvShape]; 5] {
        match self {
            Self::Vgg => VGG,
            Self::Alex => ALEX,
        }
    }

    /// The pooling before slice k = 0, 1, …, if any: [B,C,H,W] → [B,C,h,w].
    fn pool(self, k: usize, x: Tensor) -> Tensor {
        match self {
            Self::Vgg if k > 0 => x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None),
            Self::Alex if k == 1 || k == 2 => x.max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false),
            Self::Vgg | Self::Alex => x,
        }
    }

    /// The commands that make a weights file.
    fn recipe(self, config: &LpipsConfig) -> String {
        format!(
            "pip install lpips torchvision safetensors\n\
             python -c \"import lpips; from safetensors.torch import save_file; \
             w = lpips.LPIPS(net='{}').state_dict(); \
             save_file({{k: v for k, v in w.items() if not k.startswith('lins.')}}, '{}')\"",
            self.name(),
            config.weights.display()
        )
    }
}

/// A convolution followed by ReLU.
struct Conv {
    weight: ParamId,
    bias: ParamId,
    shape: &'static ConvShape,
}

/// Convolutions up to one map of features, and the weights [1,C,1,1] of that map's channels.
struct Slice {
    convs: Vec<Conv>,
    lin: ParamId,
    /// The same weights under the second name that the state dict has for them, where the file holds it.
    copy: Option<ParamId>,
}

/// The tensors of the state dict, by their place in the network.
struct Net {
    network: LpipsNetwork,
    slices: Vec<Slice>,
    shift: BufferId,
    scale: BufferId,
}

impl Net {
    /// `copies`: the file holds `lins.0.model.1.weight` beside `lin0.model.1.weight`, and so on.
    fn new(network: LpipsNetwork, copies: bool) -> (Net, ParamLayout) {
        let mut b = LayoutBuilder::default();
        let mut channels = 3;
        let mut slices = Vec::new();
        for (k, shapes) in network.slices().into_iter().enumerate() {
            let mut convs = Vec::new();
            for shape in shapes {
                let name = format!("net.slice{}.{}", k + 1, shape.module);
                let size = [shape.width, channels, shape.kernel, shape.kernel];
                let weight = b.param(format!("{name}.weight"), &size, Init::Zeros);
                convs.push(Conv { weight, bias: b.param(format!("{name}.bias"), &[shape.width], Init::Zeros), shape });
                channels = shape.width;
            }
            let mut lin = |name: String| b.param(format!("{name}.model.1.weight"), &[1, channels, 1, 1], Init::Zeros);
            slices.push(Slice { convs, lin: lin(format!("lin{k}")), copy: copies.then(|| lin(format!("lins.{k}"))) });
        }
        // Exactly 2·mean − 1 and 2·std of ImageNet: (x − shift)/scale = ((x+1)/2 − mean)/std.
        let shift = b.buffer("scaling_layer.shift", &[1, 3, 1, 1], Init::Fixed(vec![-0.030, -0.088, -0.188]));
        let scale = b.buffer("scaling_layer.scale", &[1, 3, 1, 1], Init::Fixed(vec![0.458, 0.448, 0.450]));
        (Net { network, slices, shift, scale }, b.finish())
    }
}

/// Whether the file holds the weights of features under both of their names.
fn has_copies(file: &SafeFile) -> bool {
    file.names().iter().any(|name| name.starts_with("lins."))
}

/// The perceptual distance of images. Its weights are never trained and tracked by no gradient.
pub struct Lpips {
    net: Net,
    params: Params,
}

impl Lpips {
    /// Reads the weights, in f32 on `device`.
    ///
    /// # Errors
    /// There is no such file, a tensor is missing, extra, mis-shaped or mis-typed, or the device has no room.
    pub fn load(config: &LpipsConfig, device: Device) -> Result<Self> {
        Self::from_file(config.network, &Self::open(config)?, device)
    }

    /// Whether the file holds the weights, by names and shapes alone.
    ///
    /// # Errors
    /// There is no such file, or a tensor is missing, extra or mis-shaped.
    pub fn check(config: &LpipsConfig) -> Result<()> {
        let file = Self::open(config)?;
        file.check(&Net::new(config.network, has_copies(&file)).1)
    }

    fn open(config: &LpipsConfig) -> Result<SafeFile> {
        SafeFile::open(&config.weights).map_err(|e| match e {
            Error::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
                let (name, recipe) = (config.network.name(), config.network.recipe(config));
                let message =
                    format!("no such file; it is named as the weights of LPIPS ({name}). Make it with\n{recipe}");
                Error::file(path, message)
            }
            other => other,
        })
    }

    fn from_file(network: LpipsNetwork, file: &SafeFile, device: Device) -> Result<Self> {
        let (net, layout) = Net::new(network, has_copies(file));
        let weights = load_weights(&layout, file, device)?;
        let params = layout.views(&weights.theta, &weights.buffers)?;
        for (k, slice) in net.slices.iter().enumerate() {
            if slice.copy.is_some_and(|copy| !params[copy].equal(&params[slice.lin])) {
                let message =
                    format!("tensor `lins.{k}.model.1.weight` differs from `lin{k}.model.1.weight`, whose copy it is");
                return Err(Error::file(file.path(), message));
            }
        }
        Ok(Self { net, params })
    }

    /// d(a,b) of each pair: a and b f32 `[B,C,H,W]` in [−1,1], C of 1 or 3 → f32 `[B]`, 0 or more; gradients flow to
    /// both (a side that needs none costs none). Σ_l mean_hw Σ_c w_lc (â_lchw − b̂_lchw)². (Zhang et al. 2018, eq. 1.)
    pub fn distance(&self, a: &Tensor, b: &Tensor) -> Tensor {
        let (a, b) = (self.features(self.prepare(a)), self.features(self.prepare(b)));
        let parts = self.net.slices.iter().zip(a.iter().zip(&b)).map(|(slice, (a, b))| {
            let channels = (a - b).square().mean_dim([2i64, 3].as_slice(), false, None); // [B,C]
            (channels * self.params[slice.lin].flatten(0, -1)).sum_dim_intlist(1i64, false, None)
        });
        Tensor::stack(&parts.collect::<Vec<_>>(), 0).sum_dim_intlist(0i64, false, None)
    }

    /// [B,C,H,W] in [−1,1] → [B,3,h,w], standardised with ImageNet's mean and deviation. Small images are enlarged.
    fn prepare(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        let small = size[2].min(size[3]) < RESIZE_BELOW;
        let resized = small.then(|| x.upsample_bilinear2d([RESIZED, RESIZED], false, None, None));
        // One channel becomes three by broadcasting.
        (resized.as_ref().unwrap_or(x) - &self.params[self.net.shift]) / &self.params[self.net.scale]
    }

    /// [B,3,H,W] → of each slice [B,C,h,w], of unit length along C.
    fn features(&self, mut x: Tensor) -> Vec<Tensor> {
        let mut found = Vec::with_capacity(self.net.slices.len());
        for (k, slice) in self.net.slices.iter().enumerate() {
            x = self.net.network.pool(k, x);
            for Conv { weight, bias, shape } in &slice.convs {
                let (stride, padding) = ([shape.stride; 2], [shape.padding; 2]);
                x = x.conv2d(&self.params[*weight], Some(&self.params[*bias]), stride, padding, [1, 1], 1).relu();
            }
            found.push(unit(&x));
        }
        found
    }
}

/// x/(‖x‖ + 10⁻¹⁰) along the channels of [B,C,H,W]. Where all channels are 0 the norm has no gradient, but the ReLU
/// before it lets none of theirs through.
fn unit(x: &Tensor) -> Tensor {
    x / (x.square().sum_dim_intlist(1i64, true, None).sqrt() + 1e-10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::{Kind, serialize};

    /// n values in [−1,1) of the rule `splitmix64-fnv1a` (tests/parity/README.md).
    fn rule(name: &str, n: i64) -> impl Iterator<Item = f64> {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        (0..n as u64).map(move |i| {
            let z = hash.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            2.0 * ((z ^ (z >> 31)) >> 11) as f64 * 0.5f64.powi(53) - 1.0
        })
    }

    /// The state dict with weights of the rule (gain 6, those of channels without sign).
    fn state_dict(network: LpipsNetwork, copies: bool) -> Vec<(String, Tensor)> {
        let (_, layout) = Net::new(network, copies);
        let buffers = layout.init(0, Device::Cpu).unwrap().buffers;
        let mut tensors: Vec<_> = layout.buffers().iter().map(|s| s.name.clone()).zip(buffers).collect();
        for spec in layout.params() {
            let name = spec.name.replace("lins.", "lin"); // a copy has the values of the original
            let fan_in = spec.shape[1..].iter().product::<i64>() as f64;
            let size = if spec.shape.len() == 1 { 0.1 } else { (6.0 / fan_in).sqrt() };
            let value = |u: f64| (if name.starts_with("lin") { u.abs() } else { u } * size) as f32;
            let values: Vec<f32> = rule(&name, spec.numel()).map(value).collect();
            tensors.push((spec.name.clone(), Tensor::from_slice(&values).reshape(&spec.shape)));
        }
        tensors
    }

    fn file(tensors: &[(String, Tensor)]) -> SafeFile {
        SafeFile::from_bytes("x", serialize(tensors, ("lcsc", "{}")).unwrap()).unwrap()
    }

    fn lpips(network: LpipsNetwork) -> Lpips {
        Lpips::from_file(network, &file(&state_dict(network, false)), Device::Cpu).unwrap()
    }

    fn image(name: &str, size: &[i64]) -> Tensor {
        let values: Vec<f32> = rule(name, size.iter().product()).map(|u| u as f32).collect();
        Tensor::from_slice(&values).reshape(size)
    }

    /// Images of the rule over `a` and `b`.
    fn pair(size: &[i64]) -> (Tensor, Tensor) {
        (image("a", size), image("b", size))
    }

    fn check(lpips: &Lpips, size: &[i64], expected: &[f64]) {
        let (a, b) = pair(size);
        let found = lpips.distance(&a, &b);
        assert_eq!(found.size(), [size[0]]);
        for (i, expected) in (0..).zip(expected) {
            let found = found.double_value(&[i]);
            assert!((found / expected - 1.0).abs() < 1e-5, "{size:?}: {found}, expected {expected}");
        }
    }

    // Expected numbers: lpips 0.1.4 with torch 2.15.0 on a CPU in f32, `lpips.LPIPS(net=…, pnet_rand=True)` with its
    // state dict filled by the rule; small images through `F.interpolate(x, size=224, mode="bilinear")`, one channel
    // repeated. For VGG its pools were replaced by AvgPool2d(2, 2); piq 0.8.0, `piq.LPIPS(replace_pooling=True)` with
    // the same weights, called with (x+1)/2 as OpenAI's code does, gives 0.246001914.
    #[test]
    fn vgg_gives_the_number_of_lpips_and_piq() {
        check(&lpips(LpipsNetwork::Vgg), &[1, 3, 8, 8], &[0.246_001_93]);
    }

    #[test]
    fn alex_gives_the_numbers_of_lpips() {
        let alex = lpips(LpipsNetwork::Alex);
        check(&alex, &[1, 3, 8, 8], &[0.313_374_82]);
        check(&alex, &[1, 1, 8, 8], &[0.266_253_29]);
        check(&alex, &[1, 3, 256, 256], &[0.223_587_35]); // not resized
        check(&alex, &[2, 3, 12, 9], &[0.304_352_40, 0.298_744_95]);
    }

    #[test]
    fn it_is_symmetric_and_zero_for_equal_images() {
        let alex = lpips(LpipsNetwork::Alex);
        let (a, b) = pair(&[1, 3, 8, 8]);
        assert!(alex.distance(&b, &a).equal(&alex.distance(&a, &b)));
        assert_eq!(alex.distance(&a, &a).double_value(&[0]), 0.0);
    }

    fn gradient(d: &Tensor, x: &Tensor) -> Tensor {
        Tensor::run_backward(&[d.sum(d.kind())], &[x], false, false).remove(0)
    }

    #[test]
    fn the_gradient_is_the_difference_quotient() {
        let (net, layout) = Net::new(LpipsNetwork::Alex, false);
        let weights = file(&state_dict(LpipsNetwork::Alex, false)).weights(&layout).unwrap();
        let double = |x: &Tensor| x.to_kind(Kind::Double);
        let buffers: Vec<Tensor> = weights.buffers.iter().map(double).collect();
        let alex = Lpips { net, params: layout.views(&double(&weights.theta), &buffers).unwrap() };
        let (a, b) = pair(&[1, 3, 8, 8]);
        let (a, b) = (double(&a).set_requires_grad(true), double(&b));
        let along = double(&image("direction", &[1, 3, 8, 8]));
        let expected = (gradient(&alex.distance(&a, &b), &a) * &along).sum(Kind::Double).double_value(&[]);
        let mirrored = (gradient(&alex.distance(&b, &a), &a) * &along).sum(Kind::Double).double_value(&[]);
        let at = |step: f64| alex.distance(&(&a + &along * step), &b).double_value(&[0]);
        let quotient = (at(1e-7) - at(-1e-7)) / 2e-7;
        assert!(expected.abs() > 1e-3 && (quotient / expected - 1.0).abs() < 1e-4, "{quotient}, expected {expected}");
        assert!((mirrored / expected - 1.0).abs() < 1e-9);
        assert!(!alex.distance(&b, &b).requires_grad(), "the weights must not be tracked");
    }

    #[test]
    fn dead_features_have_a_finite_gradient() {
        let x = Tensor::from_slice(&[-1f32, -2.0, 3.0, 4.0]).reshape([2, 2, 1, 1]).set_requires_grad(true);
        let expected = Tensor::from_slice(&[0f32, 0.0, 0.032, -0.024]).reshape([2, 2, 1, 1]);
        assert!(gradient(&unit(&x.relu()), &x).allclose(&expected, 1e-5, 1e-7, false));
    }

    #[test]
    fn a_missing_file_tells_how_to_make_it() {
        let config = LpipsConfig { network: LpipsNetwork::Vgg, weights: "nowhere/vgg.safetensors".into() };
        let text = Lpips::load(&config, Device::Cpu).err().unwrap().to_string();
        assert!(text.starts_with("nowhere/vgg.safetensors: no such file"), "{text}");
        assert!(text.contains("pip install lpips torchvision safetensors\npython -c \"import lpips;"), "{text}");
        assert!(text.contains("net='vgg'") && text.ends_with("'nowhere/vgg.safetensors')\""), "{text}");
    }

    #[test]
    fn loading_is_strict_but_for_true_copies() {
        let whole = state_dict(LpipsNetwork::Alex, true);
        let error = |name: &str, size: &[i64]| {
            let others = whole.iter().filter(|(other, _)| other != name).map(|(n, x)| (n.clone(), x.shallow_clone()));
            let zeros = (name.to_string(), Tensor::zeros(size, (Kind::Float, Device::Cpu)));
            let tensors: Vec<_> = others.chain([zeros]).collect();
            Lpips::from_file(LpipsNetwork::Alex, &file(&tensors), Device::Cpu).err().map(|e| e.to_string())
        };
        assert_eq!(error("net.slice2.3.bias", &[192]), None);
        let differs = "x: tensor `lins.2.model.1.weight` differs from `lin2.model.1.weight`, whose copy it is";
        assert_eq!(error("lins.2.model.1.weight", &[1, 384, 1, 1]).unwrap(), differs);
        let shape = "x: tensor `net.slice2.3.bias` has shape [5], expected [192]";
        assert_eq!(error("net.slice2.3.bias", &[5]).unwrap(), shape);
        let extra = "x: holds tensors that this network does not have: `lin5.model.1.weight`";
        assert_eq!(error("lin5.model.1.weight", &[1]).unwrap(), extra);
    }
}
