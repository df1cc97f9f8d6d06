//! Samples as pictures.

use crate::session::Session;
use lcsc_diffusion::{Model, generate};
use lcsc_metrics::{Scorer, evenly_spaced};
use lcsc_torch::{Result, Stream, Tensor, Weights, to_u8};

/// Images a row of a sheet.
pub const COLUMNS: u64 = 16;
/// Real images shown beside a sample.
pub const NEAREST: i64 = 7;
/// Images of a whole sheet.
pub const SHEET: u64 = 8 * COLUMNS;

/// The first `n` images of the run's picture latents, u8 `[N,C,H,W]`.
pub fn sample(session: &Session, model: &Model, weights: &Weights, n: u64) -> Result<Tensor> {
    let net = model.bind(weights)?;
    let config = &session.config;
    let samples = generate(&net, &config.sampler, config.seed, Stream::SampleLatents, 0, n as usize, session.device)?;
    Ok(to_u8(&samples.images.nan_to_num(0.0, 1.0, -1.0)))
}

/// Images beside the real ones whose features are nearest to theirs, `1 + NEAREST` a row; none where no real features are
/// kept.
pub fn nearest(images: &Tensor, scorer: &Scorer, real: &Tensor) -> Result<Option<Tensor>> {
    let Some(points) = &scorer.real_features else { return Ok(None) };
    let kept = points.size()[0].min(NEAREST);
    let distances = Tensor::f_cdist(&scorer.extractor.features(images)?, points, 2.0, None::<i64>)?;
    let (_, places) = distances.f_topk(kept, 1, false, true)?;
    // Of many real images evenly spaced ones are kept.
    let spaced = Tensor::f_from_slice(&evenly_spaced(real.size()[0]))?.f_to(real.device())?;
    let places = spaced.f_index_select(0, &places.f_flatten(0, -1)?.f_to(real.device())?)?;
    let neighbours = real.f_index_select(0, &places)?.f_to(images.device())?;
    let [n, c, h, w] = <[i64; 4]>::from(images.size4()?);
    let rows = Tensor::f_cat(&[images.f_unsqueeze(1)?, neighbours.f_view([n, kept, c, h, w])?], 1)?;
    Ok(Some(rows.f_flatten(0, 1)?))
}
