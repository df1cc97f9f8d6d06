//! The small convolution networks behind learnt and random features.

use lcsc_torch::{
    Device, Group, Init, Kind, LayoutBuilder, ParamId, ParamLayout, Params, Result, Tensor, Weights, bail,
};

/// D, the number of features of every network here.
pub(crate) const FEATURES: i64 = 64;

/// Two networks that differ in widths, kernels, activation, pooling and seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// What a search may optimise against: 3×3 kernels, ReLU, average pooling.
    Primary,
    /// What tells whether a gain is real: narrower, 5×5 kernels, SiLU, maximum pooling.
    Independent,
}

impl Variant {
    /// `a` or `b`, as in names of conventions.
    pub(crate) fn letter(self) -> char {
        match self {
            Self::Primary => 'a',
            Self::Independent => 'b',
        }
    }

    fn kernel(self) -> i64 {
        match self {
            Self::Primary => 3,
            Self::Independent => 5,
        }
    }

    /// Channels after a layer: they double where the map is halved.
    fn width(self, layer: u32) -> i64 {
        match self {
            Self::Primary => (16 << layer).min(64),
            Self::Independent => (12 << layer).min(48),
        }
    }

    /// The longest side of the map that is pooled to 2×2.
    fn map(self) -> i64 {
        match self {
            Self::Primary => 2,
            Self::Independent => 4,
        }
    }

    fn activate(self, x: &Tensor) -> Tensor {
        match self {
            Self::Primary => x.relu(),
            Self::Independent => x.silu(),
        }
    }

    /// [B,W,h,w] → [B,W,2,2].
    fn pool(self, x: &Tensor) -> Tensor {
        match self {
            Self::Primary => x.adaptive_avg_pool2d([2, 2]),
            Self::Independent => x.adaptive_max_pool2d([2, 2]).0,
        }
    }
}

/// Strides that bring a side down to `map`; big images are halved from the first layer on.
fn strides(mut side: i64, map: i64) -> Vec<i64> {
    let mut strides = if side <= 16 { vec![1] } else { vec![] };
    while side > map {
        strides.push(2);
        side = (side + 1) / 2;
    }
    strides
}

/// Weight and bias of one layer.
#[derive(Debug)]
struct Affine {
    weight: ParamId,
    bias: ParamId,
}

impl Affine {
    fn new(b: &mut LayoutBuilder, name: &str, shape: &[i64]) -> Self {
        let fan_in = shape[1..].iter().product::<i64>() as f64;
        let weight = b.param(format!("{name}.weight"), shape, Init::Normal((2.0 / fan_in).sqrt()));
        Self { weight, bias: b.param(format!("{name}.bias"), &shape[..1], Init::Normal(0.1)) }
    }

    fn linear(&self, params: &Params, x: &Tensor) -> Tensor {
        x.linear(&params[self.weight], Some(&params[self.bias]))
    }
}

/// Convolutions, pooling to 2×2 and one layer of 64 features; optionally a layer of class scores on top.
#[derive(Debug)]
pub struct FeatureNet {
    variant: Variant,
    convs: Vec<(Affine, i64)>,
    features: Affine,
    head: Option<Affine>,
    pub(crate) layout: ParamLayout,
    pub(crate) weights: Weights,
    pub(crate) convention: String,
    pub(crate) chw: [i64; 3],
    /// What features are multiplied with, so that those of the real images have a covariance of trace 100.
    pub(crate) scale: f64,
}

impl FeatureNet {
    /// A network at its initial, random weights for images [C,H,W]; `classes` adds a layer of class scores.
    ///
    /// # Errors
    /// The device has no room.
    pub(crate) fn new(
        variant: Variant,
        chw: [i64; 3],
        classes: Option<i64>,
        seed: u64,
        convention: String,
        device: Device,
    ) -> Result<FeatureNet> {
        let mut b = LayoutBuilder::default();
        let (mut width, k) = (chw[0], variant.kernel());
        let mut convs = Vec::new();
        for (layer, stride) in (0..).zip(strides(chw[1].max(chw[2]), variant.map())) {
            let out = variant.width(layer);
            convs.push((Affine::new(&mut b, &format!("conv{layer}"), &[out, width, k, k]), stride));
            width = out;
        }
        let features = Affine::new(&mut b, "features", &[FEATURES, 4 * width]);
        let head = classes.map(|classes| Affine::new(&mut b, "classes", &[classes, FEATURES]));
        let layout = b.finish();
        let weights = layout.init(seed, device)?;
        Ok(FeatureNet { variant, convs, features, head, layout, weights, convention, chw, scale: 1.0 })
    }

    /// Takes over weights, scale and convention of rank 0.
    pub(crate) fn share(&mut self, group: &Group) -> Result<()> {
        group.broadcast(&self.weights.theta)?;
        let scale = Tensor::from(self.scale);
        group.broadcast(&scale)?;
        self.scale = scale.f_double_value(&[])?;
        self.convention = group.told(&self.convention)?;
        Ok(())
    }

    /// Unscaled features [B,64] of images f32 [B,C,H,W] in [−1,1].
    pub(crate) fn forward(&self, params: &Params, x: &Tensor) -> Tensor {
        let mut x = x.shallow_clone();
        let padding = self.variant.kernel() / 2;
        for (conv, stride) in &self.convs {
            let (w, b) = (&params[conv.weight], &params[conv.bias]);
            x = self.variant.activate(&x.conv2d(w, Some(b), [*stride; 2], [padding; 2], [1, 1], 1));
        }
        let pooled = self.variant.pool(&x).flatten(1, -1);
        self.variant.activate(&self.features.linear(params, &pooled))
    }

    /// Class scores [B,classes] of images f32 [B,C,H,W] in [−1,1] with the parameters `theta`.
    pub(crate) fn scores(&self, theta: &Tensor, x: &Tensor) -> Result<Tensor> {
        let Some(head) = &self.head else { bail!("{} has no class scores", self.convention) };
        let params = self.layout.views(theta, &[])?;
        Ok(head.linear(&params, &self.forward(&params, x)))
    }

    /// Class probabilities [B,classes] of unscaled features [B,64].
    pub(crate) fn probabilities(&self, features: &Tensor) -> Result<Tensor> {
        let Some(head) = &self.head else { bail!("{} has no class scores", self.convention) };
        let params = self.layout.views(&self.weights.theta, &[])?;
        Ok(head.linear(&params, features).f_softmax(1, Kind::Float)?)
    }

    pub(crate) fn dim(&self) -> i64 {
        FEATURES
    }

    pub(crate) fn device(&self) -> Device {
        self.weights.theta.device()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::Kind;

    #[test]
    fn every_size_comes_down_to_a_small_map() {
        assert_eq!(strides(2, 4), [1]);
        assert_eq!(strides(8, 2), [1, 2, 2]);
        assert_eq!(strides(28, 4), [2, 2, 2]);
        assert_eq!(strides(64, 4), [2, 2, 2, 2]);
        for chw in [[1, 2, 3], [1, 8, 8], [3, 28, 17], [3, 64, 64]] {
            for variant in [Variant::Primary, Variant::Independent] {
                let net = FeatureNet::new(variant, chw, Some(7), 0, String::new(), Device::Cpu).unwrap();
                let x = Tensor::zeros([5, chw[0], chw[1], chw[2]], (Kind::Float, Device::Cpu));
                assert_eq!(net.forward(&net.layout.views(&net.weights.theta, &[]).unwrap(), &x).size(), [5, 64]);
                assert_eq!(net.scores(&net.weights.theta, &x).unwrap().size(), [5, 7]);
            }
        }
    }
}
