//! What a stage tells while it trains: lines of `train.jsonl`, the same for TensorBoard, and sheets of samples.

use crate::state::Tick;
use lcsc_report::ImageBatch;
use lcsc_report::tensorboard::{EventFile, Step};
use lcsc_torch::{Device, Error, Result, Tensor};
use lcsc_trajectory::{JsonLines, RunFolder};
use std::path::PathBuf;

/// Images a row of a sheet of samples.
const COLUMNS: usize = 8;
/// Images of a sheet.
pub(crate) const SHEET: u64 = 64;

/// The log of a stage.
pub(crate) struct Log {
    lines: JsonLines<Tick>,
    events: EventFile,
    samples: PathBuf,
    stage: String,
}

impl Log {
    /// Opens the log of a stage after `reached` images of the run: what it tells of later ones is forgotten, they are trained
    /// again.
    pub fn open(run: &RunFolder, stage: &str, reached: u64) -> Result<Self> {
        let path = run.train_log();
        // Opened before: of a torn line it warns.
        drop(JsonLines::<Tick>::open(&path)?);
        JsonLines::<Tick>::retain(&path, |tick| tick.total_nimg <= reached)?;
        let (lines, _) = JsonLines::open(&path)?;
        let events = EventFile::begin(&run.tensorboard(stage), reached + 1).map_err(report_error)?;
        Ok(Self { lines, events, samples: run.samples(), stage: stage.to_string() })
    }

    /// Appends a line.
    pub fn tick(&mut self, tick: &Tick) -> Result<()> {
        self.lines.append(tick)?;
        let mut values = Step::default()
            .scalar("loss/all", tick.loss)
            .scalar("grad_norm", tick.grad_norm)
            .scalar("lr", tick.lr)
            .scalar("img_per_s", tick.img_per_s)
            .scalar("memory/host GiB", tick.host_gib)
            .scalar("memory/device GiB", tick.device_gib)
            .scalar("non_finite_steps", tick.non_finite_steps as f64);
        for (quarter, loss) in (1..).zip(tick.loss_by_sigma) {
            values = values.scalar(format!("loss/sigma quarter {quarter}"), loss);
        }
        self.events.write(tick.total_nimg, values).map_err(report_error)
    }

    /// Writes a sheet of samples u8 `[N,C,H,W]` of the track's weights after `nimg` images of the stage, `total_nimg` of the run.
    pub fn samples(&mut self, images: &Tensor, track: &str, nimg: u64, total_nimg: u64) -> Result<()> {
        let path = self.samples.join(format!("{}-{nimg:012}.png", self.stage));
        lcsc_report::write_grid(&path, &image_batch(images)?, COLUMNS).map_err(report_error)?;
        let values = Step::default().picture(format!("samples/{track}"), &path).map_err(report_error)?;
        self.events.write(total_nimg, values).map_err(report_error)
    }
}

/// Images u8 `[N,C,H,W]` as plain bytes.
///
/// # Errors
/// They are not of that type and shape.
pub fn image_batch(images: &Tensor) -> Result<ImageBatch> {
    let images = images.f_to(Device::Cpu)?.f_contiguous()?;
    let (n, c, h, w) = images.size4()?;
    let mut data = vec![0u8; images.numel()];
    images.f_copy_data(&mut data, images.numel())?;
    Ok(ImageBatch { data, n: n as usize, channels: c as usize, height: h as usize, width: w as usize })
}

/// An error of the report crate as one of the others.
pub fn report_error(e: lcsc_report::Error) -> Error {
    Error::msg(e.to_string())
}
