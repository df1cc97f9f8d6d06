//! The names, shapes and places of a network's tensors inside one flat vector.

use crate::error::{Error, Result};
use crate::noise::{Stream, derive_seed, standard_normal, unit_f64};
use crate::plan::Plan;
use crate::weights::Weights;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use std::ops::Index;
use tch::{Device, Kind, Tensor};

/// Pieces of an aligned vector begin at multiples of so many values: 16 bytes in bf16 and f16, the narrowest types.
const ALIGNMENT: i64 = 8;

/// `len` or the next larger length after which something aligned may follow.
fn padded(len: i64) -> i64 {
    (len + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

/// How a tensor begins.
#[derive(Debug, Clone, PartialEq)]
pub enum Init {
    /// `gain·√(6/(fan_in+fan_out))·U(−1,1)`.
    XavierUniform {
        /// Inputs that one output sums over.
        fan_in: i64,
        /// Outputs that one input feeds.
        fan_out: i64,
        /// Extra factor.
        gain: f64,
    },
    /// Uniform between ± this bound.
    Uniform(f64),
    /// Normal with this standard deviation.
    Normal(f64),
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Given values.
    Fixed(Vec<f32>),
}

/// One named tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Name in files, equal to the reference's state dict.
    pub name: String,
    /// Shape, as in files.
    pub shape: Vec<i64>,
    /// Initial value.
    pub init: Init,
}

impl TensorSpec {
    /// Number of values.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }

    /// The initial value, f32: a function of the seed and the name alone.
    fn init_values(&self, seed: u64) -> Vec<f32> {
        let n = self.numel() as usize;
        let name_hash = self.name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3) // FNV-1a
        });
        let mut rng = ChaCha8Rng::seed_from_u64(derive_seed(seed, Stream::Init, name_hash));
        match &self.init {
            Init::XavierUniform { fan_in, fan_out, gain } => {
                uniform(n, gain * (6.0 / (fan_in + fan_out) as f64).sqrt(), &mut rng)
            }
            Init::Uniform(bound) => uniform(n, *bound, &mut rng),
            Init::Normal(std) => (0..n).map(|_| (std * standard_normal(&mut rng)) as f32).collect(),
            Init::Zeros => vec![0.0; n],
            Init::Ones => vec![1.0; n],
            Init::Fixed(values) => values.clone(),
        }
    }
}

fn uniform(n: usize, bound: f64, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..n).map(|_| (bound * (2.0 * unit_f64(rng) - 1.0)) as f32).collect()
}

/// A parameter of the layout that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamId(usize);

/// A buffer of the layout that gave it: a tensor in files that is never trained, averaged or merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferId(usize);

/// Collects a network's tensors while its structure is built.
#[derive(Debug, Default)]
pub struct LayoutBuilder {
    params: Vec<TensorSpec>,
    buffers: Vec<TensorSpec>,
}

impl LayoutBuilder {
    /// Adds a trained tensor.
    pub fn param(&mut self, name: impl Into<String>, shape: &[i64], init: Init) -> ParamId {
        self.params.push(TensorSpec { name: name.into(), shape: shape.to_vec(), init });
        ParamId(self.params.len() - 1)
    }

    /// Adds a tensor that files hold but nothing trains.
    pub fn buffer(&mut self, name: impl Into<String>, shape: &[i64], init: Init) -> BufferId {
        self.buffers.push(TensorSpec { name: name.into(), shape: shape.to_vec(), init });
        BufferId(self.buffers.len() - 1)
    }

    /// The finished layout: tensors in the order of files (by name), one after the other.
    pub fn finish(self) -> ParamLayout {
        let (params, param_slot) = sorted(self.params);
        let (buffers, buffer_slot) = sorted(self.buffers);
        ParamLayout { params, param_slot, buffers, buffer_slot }
    }
}

/// Sorts by name; also where each original entry went.
fn sorted(specs: Vec<TensorSpec>) -> (Vec<TensorSpec>, Vec<usize>) {
    let mut order: Vec<usize> = (0..specs.len()).collect();
    order.sort_by(|&a, &b| specs[a].name.cmp(&specs[b].name));
    let mut slot = vec![0; specs.len()];
    for (place, &original) in order.iter().enumerate() {
        slot[original] = place;
    }
    (order.iter().map(|&i| specs[i].clone()).collect(), slot)
}

/// Names the pieces of a flat vector of P values.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamLayout {
    params: Vec<TensorSpec>,
    param_slot: Vec<usize>,
    buffers: Vec<TensorSpec>,
    buffer_slot: Vec<usize>,
}

impl ParamLayout {
    /// P, the length of `theta`.
    pub fn numel(&self) -> i64 {
        self.params.iter().map(TensorSpec::numel).sum()
    }

    /// Trained tensors in the order of `theta` and of files.
    pub fn params(&self) -> &[TensorSpec] {
        &self.params
    }

    /// Untrained tensors in the order of files.
    pub fn buffers(&self) -> &[TensorSpec] {
        &self.buffers
    }

    /// Fresh weights: a function of the seed alone, equal on every device.
    ///
    /// # Errors
    /// The device has no room.
    pub fn init(&self, seed: u64, device: Device) -> Result<Weights> {
        let mut values = Vec::with_capacity(self.numel() as usize);
        self.params.iter().for_each(|p| values.extend(p.init_values(seed)));
        let buffers = self
            .buffers
            .iter()
            .map(|b| Ok(Tensor::f_from_slice(&b.init_values(seed))?.f_view(b.shape.as_slice())?.f_to(device)?))
            .collect::<Result<Vec<_>>>()?;
        Ok(Weights { theta: Tensor::f_from_slice(&values)?.f_to(device)?, buffers })
    }

    /// The pieces of `theta` (one split: the gradient comes back as one flat vector) with the buffers beside. On the CPU they
    /// are views; on a GPU they are pieces of one [aligned](Self::aligned) copy.
    ///
    /// Take fresh pieces each step and change `theta` only after the backward pass.
    ///
    /// # Errors
    /// `theta` is not a vector of P values, the number of buffers differs, or the device has no room.
    pub fn views(&self, theta: &Tensor, buffers: &[Tensor]) -> Result<Params> {
        if theta.size() != [self.numel()] || buffers.len() != self.buffers.len() {
            return Err(Error::Message(format!(
                "this network has {} parameters and {} buffers, but was given a vector of shape {:?} and {} buffers",
                self.numel(),
                self.buffers.len(),
                theta.size(),
                buffers.len()
            )));
        }
        let sizes: Vec<i64> = self.params.iter().map(TensorSpec::numel).collect();
        let pieces = if theta.device() == Device::Cpu {
            theta.f_split_with_sizes(sizes, 0)?
        } else {
            self.cut_aligned(&self.aligned(theta)?)?
        };
        let shaped = |&slot: &usize| pieces[slot].f_view(self.params[slot].shape.as_slice());
        let tensors = self.param_slot.iter().map(shaped).collect::<std::result::Result<Vec<_>, _>>()?;
        let buffers = self.buffer_slot.iter().map(|&slot| buffers[slot].shallow_clone()).collect();
        Ok(Params { tensors, buffers, plan: Plan::PLAIN })
    }

    /// `theta` with zeros between its pieces, so that each begins at 16 bytes in every type. cuDNN and cuBLAS have their fast
    /// kernels only for such weights; one bias of three values would put all that follow it off.
    ///
    /// # Errors
    /// The device has no room.
    pub fn aligned(&self, theta: &Tensor) -> Result<Tensor> {
        let rest = |len: i64| padded(len) - len;
        // Stretches that end with a piece of an odd size; few, since sizes are mostly multiples.
        let sizes: Vec<i64> = self.params.iter().map(TensorSpec::numel).collect();
        let stretches: Vec<i64> = sizes.split_inclusive(|&size| rest(size) > 0).map(|s| s.iter().sum()).collect();
        if stretches.len() < 2 {
            return Ok(theta.shallow_clone());
        }
        let mut parts = Vec::with_capacity(2 * stretches.len());
        for (piece, len) in theta.f_split_with_sizes(&stretches, 0)?.into_iter().zip(&stretches) {
            parts.push(piece);
            parts.push(Tensor::f_zeros([rest(*len)], (theta.kind(), theta.device()))?);
        }
        Ok(Tensor::f_cat(&parts, 0)?)
    }

    /// The pieces of an [aligned](Self::aligned) vector in the order of files, each flat. The last may lack the zeros after it.
    ///
    /// # Errors
    /// The vector has another length.
    pub fn cut_aligned(&self, aligned: &Tensor) -> Result<Vec<Tensor>> {
        let mut left = aligned.size()[0];
        let room = |spec: &TensorSpec| {
            let room = padded(spec.numel()).min(left);
            left -= room;
            room
        };
        let rooms: Vec<i64> = self.params.iter().map(room).collect();
        let cut = |(room, spec): (Tensor, &TensorSpec)| match spec.numel() {
            numel if numel == room.numel() as i64 => Ok(room),
            numel => Ok(room.f_narrow(0, 0, numel)?),
        };
        aligned.f_split_with_sizes(&rooms, 0)?.into_iter().zip(&self.params).map(cut).collect()
    }
}

/// The pieces of one flat vector, by [`ParamId`] and [`BufferId`].
#[derive(Debug)]
pub struct Params {
    tensors: Vec<Tensor>,
    buffers: Vec<Tensor>,
    plan: Plan,
}

// SAFETY: libtorch lets threads read a tensor at once, and what computes with a network only reads its parameters.
unsafe impl Sync for Params {}

impl Params {
    /// The same for another plan; weights of convolutions come to lie as it has them.
    #[must_use]
    pub fn planned(self, plan: Plan) -> Self {
        let arranged = |tensor: Tensor| if tensor.dim() == 4 { plan.arranged(&tensor) } else { tensor };
        Self { tensors: self.tensors.into_iter().map(arranged).collect(), plan, ..self }
    }

    /// Whether gradients flow to them.
    pub fn requires_grad(&self) -> bool {
        self.tensors.iter().any(Tensor::requires_grad)
    }

    /// How the network is computed.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// The type of all parameters: the one that a network computes in.
    pub fn kind(&self) -> Kind {
        self.tensors.first().map_or(Kind::Float, Tensor::kind)
    }
}

impl Index<ParamId> for Params {
    type Output = Tensor;

    fn index(&self, id: ParamId) -> &Tensor {
        &self.tensors[id.0]
    }
}

impl Index<BufferId> for Params {
    type Output = Tensor;

    fn index(&self, id: BufferId) -> &Tensor {
        &self.buffers[id.0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (ParamLayout, ParamId, ParamId) {
        let mut b = LayoutBuilder::default();
        let weight = b.param("w", &[2, 3], Init::XavierUniform { fan_in: 3, fan_out: 2, gain: 1.0 });
        let bias = b.param("b", &[2], Init::Ones);
        b.buffer("f", &[1], Init::Fixed(vec![4.0]));
        (b.finish(), weight, bias)
    }

    #[test]
    fn pieces_lie_in_name_order_and_ids_find_them() {
        let (layout, weight, bias) = two();
        assert_eq!(layout.params().iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["b", "w"]);
        let theta = Tensor::arange(8, (Kind::Float, Device::Cpu));
        let buffers = layout.init(0, Device::Cpu).unwrap().buffers;
        let views = layout.views(&theta, &buffers).unwrap();
        assert_eq!(Vec::<f32>::try_from(&views[bias]).unwrap(), [0.0, 1.0]);
        assert_eq!(views[weight].size(), [2, 3]);
        assert_eq!(views[weight].double_value(&[1, 2]), 7.0);
    }

    #[test]
    fn the_gradient_is_one_flat_vector_with_zeros_for_unused_pieces() {
        let (layout, weight, _) = two();
        let theta = Tensor::arange(8, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let buffers = layout.init(0, Device::Cpu).unwrap().buffers;
        let loss = layout.views(&theta, &buffers).unwrap()[weight].square().sum(Kind::Float);
        let grad = Tensor::run_backward(&[loss], &[&theta], false, false).remove(0);
        assert_eq!(Vec::<f32>::try_from(grad).unwrap(), [0.0, 0.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]);
    }

    #[test]
    fn aligned_pieces_have_the_same_values_and_gradient() {
        let mut b = LayoutBuilder::default();
        for (name, size) in [("a", 3), ("b", 16), ("c", 8), ("d", 1), ("e", 5)] {
            b.param(name, &[size], Init::Zeros);
        }
        let layout = b.finish();
        let theta = Tensor::arange(33, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let aligned = layout.aligned(&theta).unwrap();
        let pieces = layout.cut_aligned(&aligned).unwrap();
        assert!(Tensor::cat(&pieces, 0).equal(&theta));
        let first = aligned.data_ptr() as usize;
        let places: Vec<usize> = pieces.iter().map(|p| (p.data_ptr() as usize - first) / 4).collect();
        assert_eq!(places, [0, 8, 24, 32, 40]);
        let total = pieces.iter().map(|piece| piece.square().sum(Kind::Float)).sum::<Tensor>();
        let grad = Tensor::run_backward(&[total], &[&theta], false, false).remove(0);
        assert!(grad.equal(&(theta.detach() * 2.0)));
    }

    #[test]
    fn initial_values_depend_on_seed_and_name_only() {
        let (layout, weight, _) = two();
        let theta = layout.init(3, Device::Cpu).unwrap().theta;
        let mut other = LayoutBuilder::default();
        other.param("a", &[7], Init::Normal(1.0));
        other.param("w", &[2, 3], Init::XavierUniform { fan_in: 3, fan_out: 2, gain: 1.0 });
        let alone = other.finish().init(3, Device::Cpu).unwrap().theta;
        assert!(theta.narrow(0, 2, 6).equal(&alone.narrow(0, 7, 6)));
        assert!(!theta.equal(&layout.init(4, Device::Cpu).unwrap().theta));
        let bound = (6.0f64 / 5.0).sqrt();
        let views = layout.views(&theta, &[Tensor::ones([1], (Kind::Float, Device::Cpu))]).unwrap();
        assert!(views[weight].abs().max().double_value(&[]) <= bound);
    }

    #[test]
    fn a_vector_of_another_length_is_refused() {
        let (layout, ..) = two();
        let text = layout.views(&Tensor::zeros([9], (Kind::Float, Device::Cpu)), &[]).unwrap_err().to_string();
        assert!(text.contains("8 parameters") && text.contains("[9]"), "{text}");
    }
}
