//! Networks with published weights: convolutions with the batch normalisation after them folded in, and reading their files.

use lcsc_torch::{
    Device, Error, Init, Kind, LayoutBuilder, ParamId, ParamLayout, Params, Precision, Result, Tensor, TensorSpec,
    Weights, bail,
};
use std::collections::HashMap;

/// What batch normalisation adds to variances, in the networks here.
const EPSILON: f64 = 1e-3;
/// Tensors of a batch normalisation that go into weight and bias of the convolution before it.
const FOLDED: [&str; 3] = ["weight", "running_mean", "running_var"];

/// Weight and bias of a convolution with the batch normalisation by fixed statistics after it, which is affine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conv {
    weight: ParamId,
    bias: ParamId,
}

impl Conv {
    /// x [B,C,H,W] → [B,C',H',W'].
    pub(crate) fn forward(self, params: &Params, x: &Tensor, stride: i64, padding: [i64; 2], groups: i64) -> Tensor {
        x.conv2d(&params[self.weight], Some(&params[self.bias]), [stride; 2], padding, [1, 1], groups)
    }
}

/// Collects a network's tensors while its structure is built.
pub(crate) struct NetworkBuilder {
    layout: LayoutBuilder,
    /// The names of convolutions and of the normalisations after them.
    norms: Vec<[String; 2]>,
}

impl NetworkBuilder {
    pub(crate) fn new() -> Self {
        Self { layout: LayoutBuilder::default(), norms: Vec::new() }
    }

    /// A convolution with weight [to, from, h, w], and the normalisation after it.
    pub(crate) fn conv(&mut self, conv: String, norm: String, shape: [i64; 4]) -> Conv {
        let weight = self.param(&format!("{conv}.weight"), &shape);
        let bias = self.param(&format!("{norm}.bias"), &shape[..1]);
        self.norms.push([conv, norm]);
        Conv { weight, bias }
    }

    /// Any other tensor.
    pub(crate) fn param(&mut self, name: &str, shape: &[i64]) -> ParamId {
        self.layout.param(name, shape, Init::Zeros)
    }

    /// `expected` says what file it should be.
    pub(crate) fn finish(self, expected: String) -> Expected {
        Expected { layout: self.layout.finish(), norms: self.norms, expected }
    }
}

/// What the file of a network's weights has to hold.
#[derive(Debug)]
pub(crate) struct Expected {
    layout: ParamLayout,
    norms: Vec<[String; 2]>,
    expected: String,
}

impl Expected {
    /// All tensors of the file, but for batch normalisation's counters.
    pub(crate) fn tensors(&self) -> Vec<TensorSpec> {
        let mut all = self.layout.params().to_vec();
        for [_, norm] in &self.norms {
            let bias = format!("{norm}.bias");
            let shape = self.layout.params().iter().find(|spec| spec.name == bias).map(|spec| spec.shape.clone());
            all.extend(FOLDED.map(|part| TensorSpec {
                name: format!("{norm}.{part}"),
                shape: shape.clone().unwrap_or_default(),
                init: Init::Zeros,
            }));
        }
        all
    }

    /// The parameters f32 [P], with normalisations folded in.
    fn theta(&self, tensors: &[(String, Tensor)], device: Device) -> Result<Tensor> {
        let found = self.found(tensors)?;
        let folded: HashMap<String, (&str, bool)> = self
            .norms
            .iter()
            .flat_map(|[conv, norm]| {
                [(format!("{conv}.weight"), (norm.as_str(), true)), (format!("{norm}.bias"), (norm.as_str(), false))]
            })
            .collect();
        let get = |name: &str| {
            found
                .get(name)
                .ok_or_else(|| Error::msg(format!("the weights lack the tensor `{name}`: {}", self.expected)))
        };
        // The normalisation γ·(x − μ)/√(σ² + ε) + β inside of the convolution.
        let piece = |spec: &TensorSpec| -> Result<Tensor> {
            let own = get(&spec.name)?;
            let value = match folded.get(&spec.name) {
                None => own.shallow_clone(),
                Some(&(norm, is_weight)) => {
                    let [gamma, mean, variance] = FOLDED.map(|part| get(&format!("{norm}.{part}")));
                    let scale = gamma? * (variance? + EPSILON).rsqrt();
                    if is_weight { own * scale.view([-1, 1, 1, 1]) } else { own - mean? * scale }
                }
            };
            Ok(value.f_to_kind(Kind::Float)?.f_flatten(0, -1)?)
        };
        let pieces = self.layout.params().iter().map(piece).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&pieces, 0)?.f_to(device)?)
    }

    /// The tensors of a file, f64, by their names.
    fn found(&self, tensors: &[(String, Tensor)]) -> Result<HashMap<String, Tensor>> {
        let is_counter = |name: &str| name.ends_with("num_batches_tracked");
        let given = tensors.iter().filter(|(name, _)| !is_counter(name));
        let mut rest: HashMap<&str, &Tensor> = given.map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let (mut found, expected) = (HashMap::new(), &self.expected);
        for TensorSpec { name, shape, .. } in self.tensors() {
            match rest.remove(name.as_str()) {
                None => bail!("the weights lack the tensor `{name}`: {expected}"),
                Some(tensor) if tensor.size() != shape => {
                    bail!("the weights' tensor `{name}` is {:?}, not {shape:?}: {expected}", tensor.size())
                }
                Some(tensor) => drop(found.insert(name, tensor.f_to_kind(Kind::Double)?)),
            }
        }
        if let Some(extra) = rest.keys().next() {
            bail!("the weights hold a tensor `{extra}` that the network does not have: {expected}");
        }
        Ok(found)
    }
}

/// The weights of a network.
#[derive(Debug)]
pub(crate) struct Published {
    layout: ParamLayout,
    weights: Weights,
    /// What it computes in.
    precision: Precision,
    /// The first digits of the hash of the file that the weights are from.
    hash: String,
}

impl Published {
    /// From the tensors of a file with this SHA-256.
    ///
    /// # Errors
    /// A tensor is missing, extra or mis-shaped, or the device has no room.
    pub(crate) fn new(expected: Expected, tensors: &[(String, Tensor)], hash: &str, device: Device) -> Result<Self> {
        let weights = Weights { theta: expected.theta(tensors, device)?, buffers: vec![] };
        let hash = hash.get(..8).unwrap_or(hash).to_string();
        Ok(Self { layout: expected.layout, weights, precision: Precision::F32, hash })
    }

    /// The same in another precision.
    ///
    /// # Errors
    /// The device has no room.
    pub(crate) fn in_precision(self, precision: Precision) -> Result<Self> {
        let theta = self.weights.theta.f_to_kind(precision.kind())?;
        Ok(Self { weights: self.weights.with_theta(theta), precision, ..self })
    }

    pub(crate) fn params(&self) -> Result<Params> {
        self.layout.views(&self.weights.theta, &[])
    }

    pub(crate) fn kind(&self) -> Kind {
        self.precision.kind()
    }

    pub(crate) fn device(&self) -> Device {
        self.weights.theta.device()
    }

    /// What a convention says of weights and precision.
    pub(crate) fn convention(&self, network: &str, resized: &str) -> String {
        let precision = match self.precision {
            Precision::F32 | Precision::Tf32 => "",
            Precision::Bf16 => " bf16",
            Precision::F16 => " f16",
        };
        format!("{network} weights {} {resized}{precision}", self.hash)
    }
}
