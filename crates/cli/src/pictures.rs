//! Samples as pictures.

use crate::session::Session;
use lcsc_diffusion::{Model, generate};
use lcsc_report::ImageBatch;
use lcsc_torch::{Result, Stream, Tensor, Weights, to_u8};

/// Images a row of a sheet.
pub const COLUMNS: u64 = 16;
/// Images of a whole sheet.
pub const SHEET: u64 = 8 * COLUMNS;

/// The first `n` images of the run's picture latents.
pub fn sample(session: &Session, model: &Model, weights: &Weights, n: u64) -> Result<ImageBatch> {
    let net = model.bind(weights)?;
    let config = &session.config;
    let samples = generate(&net, &config.sampler, config.seed, Stream::SampleLatents, 0, n as usize, session.device)?;
    batch(&to_u8(&samples.images.nan_to_num(0.0, 1.0, -1.0)))
}

/// Images u8 [N,C,H,W] as bytes.
pub fn batch(images: &Tensor) -> Result<ImageBatch> {
    let images = images.f_to(lcsc_torch::Device::Cpu)?.f_contiguous()?;
    let (n, c, h, w) = images.size4()?;
    let mut data = vec![0u8; images.numel()];
    images.f_copy_data(&mut data, images.numel())?;
    Ok(ImageBatch { data, n: n as usize, channels: c as usize, height: h as usize, width: w as usize })
}
