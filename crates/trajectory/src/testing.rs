//! A tiny network and a trajectory of it, for tests.

use crate::{Checkpoint, RunFolder, Writer};
use lcsc_torch::{Device, Init, Kind, LayoutBuilder, ParamLayout, StorageDtype, Tensor, Weights};

/// Seven parameters in two tensors, and a buffer.
pub fn layout() -> ParamLayout {
    let mut b = LayoutBuilder::default();
    b.param("w", &[2, 2], Init::Normal(1.0));
    b.param("b", &[3], Init::Normal(1.0));
    b.buffer("freqs", &[2], Init::Fixed(vec![1.0, -2.0]));
    b.finish()
}

/// A run with `k` raw checkpoints 100 images apart, and their parameters (−0.0 and a subnormal among them).
pub fn trajectory(k: usize, dtype: StorageDtype) -> (tempfile::TempDir, RunFolder, Vec<Tensor>) {
    trajectory_of(&layout(), &vec![dtype; k])
}

/// The same with a checkpoint of each type, and the parameters as the files hold them, in f32.
pub fn trajectory_of(layout: &ParamLayout, types: &[StorageDtype]) -> (tempfile::TempDir, RunFolder, Vec<Tensor>) {
    let temp = tempfile::tempdir().unwrap();
    let run = RunFolder::create(temp.path()).unwrap();
    let mut thetas = Vec::new();
    for (i, &dtype) in (1..).zip(types) {
        let weights = layout.init(i, Device::Cpu).unwrap();
        let _ = weights.theta.get(0).fill_(-0.0);
        let _ = weights.theta.get(1).fill_(1e-41);
        append(&run, layout, 100 * i, dtype, &weights);
        thetas.push(weights.theta.to_kind(dtype.kind()).to_kind(Kind::Float));
    }
    (temp, run, thetas)
}

/// Writes one more raw checkpoint.
pub fn append(run: &RunFolder, layout: &ParamLayout, nimg: u64, dtype: StorageDtype, weights: &Weights) {
    let mut writer = Writer::start(run).unwrap();
    writer.checkpoint(Checkpoint::new("edm", nimg, nimg, "raw", dtype), layout, weights, "{}").unwrap();
    writer.finish().unwrap();
}

/// The bits of an f32 vector, so that −0.0 and 0.0 differ.
pub fn bits(theta: &Tensor) -> Vec<u32> {
    Vec::<f32>::try_from(theta).unwrap().into_iter().map(f32::to_bits).collect()
}
