//! Which steps leave a checkpoint, and how much disk that takes: known before training, so that nothing is deleted later.

use lcsc_torch::{Context, Error, ParamLayout, Result, StorageDtype};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Which checkpoints a stage keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrajectoryConfig {
    /// Images from one checkpoint to the next; 0 keeps the last step of the stage alone.
    pub every_nimg: u64,
    /// Keep them over the last so many images of the stage; by default over the whole stage.
    pub window_nimg: Option<u64>,
    /// Images from one checkpoint to the next before that window; by default none are kept there.
    pub sparse_every_nimg: Option<u64>,
    /// Which weights to keep: `raw`, names of EMA tracks, or `all`.
    pub tracks: Vec<String>,
    /// The type of the parameters in the files.
    pub dtype: StorageDtype,
    /// The most disk the checkpoints may take, in GiB; by default as much as is free.
    pub disk_budget_gib: Option<f64>,
}

impl Default for TrajectoryConfig {
    fn default() -> Self {
        Self {
            every_nimg: 100_000,
            window_nimg: None,
            sparse_every_nimg: None,
            tracks: vec!["raw".into()],
            dtype: StorageDtype::F32,
            disk_budget_gib: None,
        }
    }
}

impl TrajectoryConfig {
    /// Whether the step from `nimg_before` to `nimg_after` images of a stage of `stage_nimg` leaves a checkpoint: it
    /// crosses a multiple of the interval that holds there, or ends the stage.
    pub fn is_due(&self, nimg_before: u64, nimg_after: u64, stage_nimg: u64) -> bool {
        let window_begin = stage_nimg.saturating_sub(self.window_nimg.unwrap_or(stage_nimg));
        let every = if nimg_after >= window_begin { self.every_nimg } else { self.sparse_every_nimg.unwrap_or(0) };
        nimg_after >= stage_nimg || nimg_before.checked_div(every) != nimg_after.checked_div(every)
    }

    /// Whether checkpoints of this track are kept.
    pub fn keeps(&self, track: &str) -> bool {
        self.tracks.iter().any(|name| name == track || name == "all")
    }

    /// How many steps of a stage leave a checkpoint at `batch` images a step.
    pub fn count(&self, stage_nimg: u64, batch: u64) -> u64 {
        let batch = batch.max(1);
        let steps = 0..stage_nimg.div_ceil(batch);
        steps.filter(|step| self.is_due(step * batch, (step + 1) * batch, stage_nimg)).count() as u64
    }

    /// Disk for the checkpoints of a stage, in bytes, when `tracks` tracks are kept. Headers are rounded up.
    pub fn bytes(&self, layout: &ParamLayout, stage_nimg: u64, batch: u64, tracks: u64) -> u64 {
        const HEADER: u64 = 4096;
        const HEADER_PER_TENSOR: u64 = 160;
        let tensors = (layout.params().len() + layout.buffers().len()) as u64;
        let buffers: i64 = layout.buffers().iter().map(|b| b.numel()).sum();
        let values = layout.numel() as u64 * self.dtype.bytes() + buffers as u64 * StorageDtype::F32.bytes();
        self.count(stage_nimg, batch) * tracks * (values + HEADER + HEADER_PER_TENSOR * tensors)
    }
}

/// Refuses checkpoints of `needed` bytes that the budget or the file system of `folder` has no room for.
///
/// # Errors
/// There is too little room, or the file system does not say.
pub fn check_disk(folder: &Path, needed: u64, budget_gib: Option<f64>) -> Result<()> {
    let free = fs4::available_space(folder).at(folder)?;
    let limit = match budget_gib {
        Some(budget) if gib(needed) > budget => format!("disk_budget_gib allows {budget} GiB"),
        _ if needed > free => format!("the file system has {} free", size(free)),
        _ => return Ok(()),
    };
    let message = format!(
        "there is to be room for {}, but {limit}: make every_nimg larger, window_nimg smaller, keep fewer \
         tracks, or set dtype = \"bf16\" (half of f32)",
        size(needed)
    );
    Err(Error::file(folder, message))
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn size(bytes: u64) -> String {
    if bytes < 1 << 30 { format!("{:.3} MiB", 1024.0 * gib(bytes)) } else { format!("{:.3} GiB", gib(bytes)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{layout, trajectory};

    fn due(config: &TrajectoryConfig, stage: u64, batch: u64) -> Vec<u64> {
        let steps = (0..stage.div_ceil(batch)).map(|s| (s * batch, (s + 1) * batch));
        let due: Vec<u64> = steps.filter(|&(a, b)| config.is_due(a, b, stage)).map(|(_, b)| b).collect();
        assert_eq!(config.count(stage, batch), due.len() as u64);
        due
    }

    #[test]
    fn a_step_that_crosses_a_multiple_is_due_and_so_is_the_last() {
        let every = |every_nimg| TrajectoryConfig { every_nimg, ..Default::default() };
        assert_eq!(due(&every(100), 350, 50), [100, 200, 300, 350]);
        assert_eq!(due(&every(100), 350, 64), [128, 256, 320, 384]);
        assert_eq!(due(&every(10), 90, 30), [30, 60, 90]);
        assert_eq!(due(&every(0), 90, 30), [90]);
    }

    #[test]
    fn before_the_window_checkpoints_are_sparse_or_none() {
        let none = TrajectoryConfig { every_nimg: 10, window_nimg: Some(30), ..Default::default() };
        assert_eq!(due(&none, 100, 5), [70, 80, 90, 100]);
        let sparse = TrajectoryConfig { sparse_every_nimg: Some(25), ..none.clone() };
        assert_eq!(due(&sparse, 100, 5), [25, 50, 70, 80, 90, 100]);
        assert_eq!(due(&TrajectoryConfig { window_nimg: Some(1000), ..none }, 30, 5), [10, 20, 30]);
    }

    #[test]
    fn tracks_are_kept_by_name_or_all() {
        let tracks = |names: &[&str]| TrajectoryConfig {
            tracks: names.iter().map(|n| n.to_string()).collect(),
            ..Default::default()
        };
        assert!(TrajectoryConfig::default().keeps("raw") && !TrajectoryConfig::default().keeps("ema-h5"));
        assert!(tracks(&["all"]).keeps("raw") && tracks(&["all"]).keeps("ema-h5"));
        assert!(!tracks(&["ema-h5"]).keeps("raw"));
    }

    #[test]
    fn the_estimate_covers_the_files_and_halves_with_the_type() {
        let (_temp, run, _) = trajectory(3, StorageDtype::F32);
        let size = |c: &crate::Checkpoint| std::fs::metadata(run.trajectory().join(&c.file)).unwrap().len();
        let real: u64 = crate::Manifest::read(&run).unwrap().iter().map(size).sum();
        let config = TrajectoryConfig { every_nimg: 100, ..Default::default() };
        let estimate = config.bytes(&layout(), 300, 100, 1);
        assert!(real <= estimate && estimate < real + 3 * 5000, "{real} {estimate}");
        let half = TrajectoryConfig { dtype: StorageDtype::Bf16, ..config.clone() };
        assert_eq!(estimate - half.bytes(&layout(), 300, 100, 1), 3 * 7 * 2);
        assert_eq!(config.bytes(&layout(), 300, 100, 2), 2 * estimate);
    }

    #[test]
    fn too_little_disk_is_refused_with_both_numbers() {
        let temp = tempfile::tempdir().unwrap();
        check_disk(temp.path(), 1 << 20, Some(0.5)).unwrap();
        let text = check_disk(temp.path(), 3 << 29, Some(1.25)).unwrap_err().to_string();
        assert!(text.contains("1.500 GiB") && text.contains("1.25 GiB") && text.contains("bf16"), "{text}");
        let text = check_disk(temp.path(), u64::MAX, None).unwrap_err().to_string();
        assert!(text.contains("free") && text.contains("every_nimg"), "{text}");
    }

    #[test]
    fn unknown_keys_are_refused_and_missing_ones_have_defaults() {
        let config: TrajectoryConfig = serde_json::from_str(r#"{"every_nimg": 5, "dtype": "bf16"}"#).unwrap();
        assert_eq!((config.every_nimg, config.dtype, config.window_nimg), (5, StorageDtype::Bf16, None));
        assert!(serde_json::from_str::<TrajectoryConfig>(r#"{"every": 5}"#).is_err());
    }
}
