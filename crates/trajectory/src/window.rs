//! The window of checkpoints that merged models are made of: W [K,P], and θ = αᵀW.

use crate::{Checkpoint, RunFolder};
use lcsc_torch::{Device, Error, Kind, ParamLayout, Result, Tensor, Weights, bail};

/// K checkpoints of one network with P parameters.
#[derive(Debug)]
pub struct Window {
    checkpoints: Vec<Checkpoint>,
    run: RunFolder,
    layout: ParamLayout,
    device: Device,
    buffers: Vec<Tensor>,
    /// W, f32 [K,P], where memory allows; else rows are read from their files for each merge.
    resident: Option<Tensor>,
}

impl Window {
    /// Reads and checks the checkpoints. W stays on `device` if its K·P·4 bytes are within `memory_budget`.
    ///
    /// # Errors
    /// There are none, a file is missing, torn or altered or does not fit `layout`, two files differ in a buffer, or the
    /// device has no room.
    pub fn load(
        run: &RunFolder,
        checkpoints: &[Checkpoint],
        layout: &ParamLayout,
        device: Device,
        memory_budget: u64,
    ) -> Result<Self> {
        let Some(first) = checkpoints.first() else {
            let message = "no checkpoints to merge: train first, or select another stage or track";
            return Err(Error::file(run.trajectory(), message));
        };
        let size = [checkpoints.len() as i64, layout.numel()];
        let fits = size[0] as u64 * size[1] as u64 * 4 <= memory_budget;
        let resident = fits.then(|| Tensor::f_empty(size, (Kind::Float, device))).transpose()?;
        let buffers = first.load(run, layout, device)?.buffers;
        for (i, checkpoint) in checkpoints.iter().enumerate() {
            let weights = checkpoint.load(run, layout, device)?;
            for (spec, (a, b)) in layout.buffers().iter().zip(buffers.iter().zip(&weights.buffers)) {
                if !a.f_equal(b)? {
                    let (path, other) = (run.trajectory().join(&checkpoint.file), &first.file);
                    let message = format!("buffer `{}` differs from that of {other}: not the same network", spec.name);
                    return Err(Error::file(path, message));
                }
            }
            if let Some(w) = &resident {
                w.f_select(0, i as i64)?.f_copy_(&weights.theta)?;
            }
        }
        let (checkpoints, run, layout) = (checkpoints.to_vec(), run.clone(), layout.clone());
        Ok(Self { checkpoints, run, layout, device, buffers, resident })
    }

    /// The checkpoints, in the order of coefficients.
    pub fn checkpoints(&self) -> &[Checkpoint] {
        &self.checkpoints
    }

    /// K.
    pub fn len(&self) -> usize {
        self.checkpoints.len()
    }

    /// Never: a window has at least one checkpoint.
    pub fn is_empty(&self) -> bool {
        self.checkpoints.is_empty()
    }

    /// Images trained in the stage at each checkpoint: the times that EMA profiles are sampled at.
    pub fn times(&self) -> Vec<f64> {
        self.checkpoints.iter().map(|c| c.nimg as f64).collect()
    }

    /// θ = αᵀW, f32 [P] on the window's device (LCSC, arXiv 2404.02241); `alpha` has K values and need not sum to
    /// one. Checkpoints with coefficient zero take no part, and a single coefficient of one gives that checkpoint bit for
    /// bit.
    ///
    /// # Errors
    /// `alpha` has another length or a non-finite value, a file was altered since, or the device has no room.
    pub fn merge(&self, alpha: &[f64]) -> Result<Tensor> {
        if alpha.len() != self.len() {
            bail!("{} coefficients for a window of {} checkpoints: one each is needed", alpha.len(), self.len());
        }
        if let Some(i) = alpha.iter().position(|a| !a.is_finite()) {
            bail!("coefficient {i} is {}: coefficients must be finite", alpha[i]);
        }
        let used: Vec<usize> = (0..alpha.len()).filter(|&i| alpha[i] != 0.0).collect();
        if let [i] = used[..]
            && alpha[i] == 1.0
        {
            return self.row(i);
        }
        let mut theta = Tensor::f_zeros([self.layout.numel()], (Kind::Float, self.device))?;
        // One matrix-vector product for each stretch of non-zero coefficients; mostly that is all of them.
        for stretch in used.chunk_by(|a, b| a + 1 == *b) {
            self.add(&mut theta, stretch, &alpha[stretch[0]..][..stretch.len()])?;
        }
        Ok(theta)
    }

    /// The merged parameters with the buffers that all checkpoints share.
    ///
    /// # Errors
    /// Those of [`Window::merge`].
    pub fn weights(&self, alpha: &[f64]) -> Result<Weights> {
        let theta = self.merge(alpha)?;
        Ok(Weights { theta, buffers: self.buffers.iter().map(Tensor::shallow_clone).collect() })
    }

    /// Adds αᵀW over consecutive rows to `theta` f32 [P].
    fn add(&self, theta: &mut Tensor, rows: &[usize], alpha: &[f64]) -> Result<()> {
        if let Some(w) = &self.resident {
            let alpha = Tensor::f_from_slice(alpha)?.f_to_device_(self.device, Kind::Float, false, false)?;
            let w = w.f_narrow(0, rows[0] as i64, rows.len() as i64)?; // [k,P]
            let _ = theta.f_addmv_(&w.f_transpose(0, 1)?, &alpha)?;
        } else {
            for (&i, &a) in rows.iter().zip(alpha) {
                let _ = theta.f_add_(&self.row(i)?.f_mul_scalar_(a)?)?;
            }
        }
        Ok(())
    }

    /// A copy of row `i` of W, f32 [P]; from disk it is checked again, so that nothing altered is ever merged.
    fn row(&self, i: usize) -> Result<Tensor> {
        match &self.resident {
            Some(w) => Ok(w.f_select(0, i as i64)?.f_to_device_(self.device, Kind::Float, false, true)?),
            None => Ok(self.checkpoints[i].load(&self.run, &self.layout, self.device)?.theta),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, layout, trajectory};
    use crate::{Manifest, Writer, one_hot, uniform};
    use lcsc_torch::StorageDtype;

    const RESIDENT: u64 = 1 << 20;

    fn window(run: &RunFolder, budget: u64) -> Result<Window> {
        Window::load(run, &Manifest::read(run)?, &layout(), Device::Cpu, budget)
    }

    fn values(theta: &Tensor) -> Vec<f64> {
        Vec::<f64>::try_from(theta.to_kind(Kind::Double)).unwrap()
    }

    /// αᵀW in f64.
    fn expected(thetas: &[Tensor], alpha: &[f64]) -> Vec<f64> {
        let rows: Vec<Vec<f64>> = thetas.iter().map(values).collect();
        (0..rows[0].len()).map(|p| rows.iter().zip(alpha).map(|(row, a)| a * row[p]).sum()).collect()
    }

    #[test]
    fn one_hot_gives_the_checkpoint_bit_for_bit() {
        let (_temp, run, thetas) = trajectory(4, StorageDtype::F32);
        for budget in [RESIDENT, 0] {
            let window = window(&run, budget).unwrap();
            assert_eq!(window.resident.is_some(), budget == RESIDENT);
            for (i, theta) in thetas.iter().enumerate() {
                let merged = window.merge(&one_hot(4, i)).unwrap();
                assert_eq!(bits(&merged), bits(theta));
                assert_eq!(bits(&merged)[0], (-0f32).to_bits());
            }
        }
    }

    #[test]
    fn a_merged_model_may_change_without_changing_the_window() {
        let (_temp, run, thetas) = trajectory(2, StorageDtype::F32);
        let window = window(&run, RESIDENT).unwrap();
        let _ = window.merge(&[0.0, 1.0]).unwrap().fill_(9.0);
        assert_eq!(bits(&window.merge(&[0.0, 1.0]).unwrap()), bits(&thetas[1]));
    }

    #[test]
    fn merging_is_linear_resident_or_from_disk() {
        let (_temp, run, thetas) = trajectory(5, StorageDtype::F32);
        let resident = window(&run, 5 * 7 * 4).unwrap();
        let on_disk = window(&run, 5 * 7 * 4 - 1).unwrap();
        assert!(resident.resident.is_some() && on_disk.resident.is_none());
        for alpha in [vec![0.5, -2.0, 6.0, -4.0, 0.5], vec![0.3, 0.0, 0.9, -0.2, 0.0], uniform(5), vec![0.0; 5]] {
            for window in [&resident, &on_disk] {
                for (found, expected) in values(&window.merge(&alpha).unwrap()).iter().zip(expected(&thetas, &alpha)) {
                    assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
                }
            }
        }
    }

    #[test]
    fn rows_with_coefficient_zero_take_no_part() {
        let (_temp, run, thetas) = trajectory(3, StorageDtype::F32);
        let mut writer = Writer::start(&run).unwrap();
        let weights = layout().init(1, Device::Cpu).unwrap();
        let _ = weights.theta.get(3).fill_(f64::NAN);
        let checkpoint = Checkpoint::new("edm", 150, 150, "raw", StorageDtype::F32);
        writer.checkpoint(checkpoint, &layout(), &weights, "{}").unwrap();
        writer.finish().unwrap();
        for budget in [RESIDENT, 0] {
            let window = window(&run, budget).unwrap();
            assert_eq!(window.times(), [100.0, 150.0, 200.0, 300.0]);
            let merged = values(&window.merge(&[0.5, 0.0, 0.25, 0.25]).unwrap());
            for (found, expected) in merged.iter().zip(expected(&thetas, &[0.5, 0.25, 0.25])) {
                assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
            }
        }
    }

    #[test]
    fn half_types_are_merged_in_f32_with_the_shared_buffers() {
        let (_temp, run, thetas) = trajectory(2, StorageDtype::Bf16);
        let weights = window(&run, RESIDENT).unwrap().weights(&[1.0, 0.0]).unwrap();
        assert!(weights.theta.equal(&thetas[0].to_kind(Kind::BFloat16).to_kind(Kind::Float)));
        assert!(weights.buffers[0].equal(&layout().init(0, Device::Cpu).unwrap().buffers[0]));
    }

    #[test]
    fn wrong_coefficients_are_refused() {
        let (_temp, run, _) = trajectory(2, StorageDtype::F32);
        let window = window(&run, RESIDENT).unwrap();
        let text = window.merge(&[1.0]).unwrap_err().to_string();
        assert!(text.contains("1 coefficients for a window of 2"), "{text}");
        let text = window.merge(&[1.0, f64::NAN]).unwrap_err().to_string();
        assert!(text.contains("coefficient 1 is NaN"), "{text}");
    }

    #[test]
    fn altered_files_are_never_merged() {
        let (_temp, run, _) = trajectory(2, StorageDtype::F32);
        let on_disk = window(&run, 0).unwrap();
        let path = run.trajectory().join(&on_disk.checkpoints()[1].file);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        for error in [on_disk.merge(&[0.5, 0.5]).unwrap_err(), window(&run, RESIDENT).unwrap_err()] {
            assert!(error.to_string().contains("ckpt-000000000200-raw.safetensors: torn or altered"), "{error}");
        }
        assert_eq!(on_disk.merge(&[1.0, 0.0]).unwrap().size(), [7]);
    }

    #[test]
    fn an_empty_window_and_unequal_buffers_are_refused() {
        let (_temp, run, _) = trajectory(1, StorageDtype::F32);
        let text = Window::load(&run, &[], &layout(), Device::Cpu, 0).unwrap_err().to_string();
        assert!(text.contains("no checkpoints"), "{text}");
        let mut writer = Writer::start(&run).unwrap();
        let weights = layout().init(1, Device::Cpu).unwrap();
        let _ = weights.buffers[0].get(0).fill_(5.0);
        let checkpoint = Checkpoint::new("edm", 200, 200, "raw", StorageDtype::F32);
        writer.checkpoint(checkpoint, &layout(), &weights, "{}").unwrap();
        writer.finish().unwrap();
        let text = window(&run, RESIDENT).unwrap_err().to_string();
        assert!(text.contains("000200-raw.safetensors: buffer `freqs`") && text.contains("000100-raw"), "{text}");
    }
}
