//! A tiny network and a trajectory of it, for tests.

use crate::{Checkpoint, RunFolder, Writer};
use lcsc_torch::{Device, Init, LayoutBuilder, ParamLayout, StorageDtype, Tensor};

/// Seven parameters in two tensors, and a buffer.
pub fn layout() -> ParamLayout {
    let mut b = LayoutBuilder::default();
    b.param("w", &[2, 2], Init::Normal(1.0));
    b.param("b", &[3], Init::Normal(1.0));
    b.buffer("freqs", &[2], Init::Fixed(vec![1.0, -2.0]));
    b.finish()
}

/// A run with `k` raw checkpoints 100 images apart, and their parameters (−0.0 and a subnormal among them).
pub fn trajectory(k: u64, dtype: StorageDtype) -> (tempfile::TempDir, RunFolder, Vec<Tensor>) {
    let temp = tempfile::tempdir().unwrap();
    let run = RunFolder::create(temp.path()).unwrap();
    let mut writer = Writer::start(&run).unwrap();
    let mut thetas = Vec::new();
    for i in 1..=k {
        let weights = layout().init(i, Device::Cpu).unwrap();
        let _ = weights.theta.get(0).fill_(-0.0);
        let _ = weights.theta.get(1).fill_(1e-41);
        let checkpoint = Checkpoint::new("edm", 100 * i, 100 * i, "raw", dtype);
        writer.checkpoint(checkpoint, &layout(), &weights, "{}").unwrap();
        thetas.push(weights.theta);
    }
    writer.finish().unwrap();
    (temp, run, thetas)
}

/// The bits of an f32 vector, so that −0.0 and 0.0 differ.
pub fn bits(theta: &Tensor) -> Vec<u32> {
    Vec::<f32>::try_from(theta).unwrap().into_iter().map(f32::to_bits).collect()
}
