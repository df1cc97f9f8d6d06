//! What `tch` lacks for training on one flat parameter vector.
//!
//! **A network is a pure function of one flat vector.** `theta` is a single f32 tensor of P values; a [`ParamLayout`]
//! names its pieces. An architecture holds shapes and [`ParamId`]s, never weights, so that optimizer, EMA, checkpoint,
//! trajectory and merged model are all linear algebra on vectors of length P.
//!
//! Around it: devices and CUDA, seeded noise, optimizers, safetensors files, and an [`Error`] that names what went
//! wrong.
//!
//! ```
//! use lcsc_torch::{Device, Init, Kind, LayoutBuilder, Tensor};
//! # fn main() -> lcsc_torch::Result<()> {
//! let mut pieces = LayoutBuilder::default();
//! let weight = pieces.param("weight", &[2, 3], Init::Normal(1.0));
//! let bias = pieces.param("bias", &[2], Init::Zeros);
//! let layout = pieces.finish();
//!
//! let weights = layout.init(0, Device::Cpu)?; // a function of the seed and the names
//! let theta = weights.theta.set_requires_grad(true);
//! let p = layout.views(&theta, &weights.buffers)?;
//! let y = p[weight].matmul(&Tensor::ones([3], (Kind::Float, Device::Cpu))) + &p[bias];
//! let gradient = Tensor::run_backward(&[y.sum(Kind::Float)], &[&theta], false, false).remove(0);
//! assert_eq!(Vec::<f32>::try_from(&gradient)?, [1.0; 8]); // of all pieces, as one vector
//! # Ok(())
//! # }
//! ```

mod chacha;
mod device;
mod driver;
mod error;
mod graph;
mod group;
mod guard;
mod layout;
mod library;
mod memory;
mod noise;
mod norm;
mod optim;
mod pixels;
mod plan;
mod shim;
mod threads;
mod weights;

pub use device::{
    CudaStatus, DeviceChoice, Precision, copied, download, keep_freed_memory, near_places, open_cuda, synchronize,
    upload,
};
pub use driver::Driver;
pub use error::{Context, Error, Invalid, Result};
pub use graph::Graph;
pub use group::{Failure, Group, Ranks, Store};
pub use guard::{catch, install_panic_hook, unguarded};
pub use layout::{BufferId, Init, LayoutBuilder, ParamId, ParamLayout, Params, TensorSpec};
pub use library::open_cuda_library;
pub use memory::{device_memory, device_name, host_memory};
pub use noise::{Stream, derive_seed, latents, permutation, rng, seed_torch, standard_normal, unit_f64};
pub use norm::{NormOperands, fused_group_norm};
pub use optim::{AdamConfig, Optimizer, OptimizerConfig, Verdict};
pub use pixels::{to_float, to_u8};
pub use plan::{Plan, channels_last};
pub use shim::{allow_tf32, choose_kernels, exact_products, release_memory};
pub use tch;
pub use tch::{Device, Kind, Tensor};
pub use threads::{cpu_threads, default_threads, set_cpu_threads};
pub use weights::{
    Metadata, SafeFile, StorageDtype, Weights, load_weights, pack_weights, serialize, sync_folder, write_atomic,
};
