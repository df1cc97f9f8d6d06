//! The window of checkpoints that merged models are made of: W [K,P], and θ = αᵀW with coefficients for each group of
//! parameters.

use crate::partition::Run;
use crate::rows::Rows;
use crate::share::Share;
use crate::{Checkpoint, Memory, Partition, Placement, RunFolder};
use lcsc_torch::{Device, Error, Kind, ParamLayout, Result, Tensor, Weights, bail};

/// K checkpoints of one network with P parameters.
#[derive(Debug)]
pub struct Window {
    checkpoints: Vec<Checkpoint>,
    placement: Placement,
    device: Device,
    columns: i64,
    buffers: Vec<Tensor>,
    rows: Rows,
}

impl Window {
    /// Reads and checks the checkpoints. W, each row in the type of its file, is held where [`Placement::of`] puts it.
    ///
    /// # Errors
    /// There are none, a file is missing, torn or altered or does not fit `layout` or the manifest, two files differ in a
    /// buffer, or there is no room.
    pub fn load(run: &RunFolder, checkpoints: &[Checkpoint], layout: &ParamLayout, memory: Memory) -> Result<Self> {
        let Some(first) = checkpoints.first() else {
            let message = "no checkpoints to merge: train first, or select another stage or track";
            return Err(Error::file(run.trajectory(), message));
        };
        let (device, columns) = (memory.device, layout.numel());
        let bytes = checkpoints.iter().map(|c| c.dtype.bytes() * columns as u64).sum();
        let placement = Placement::of(bytes, memory);
        let mut rows = Rows::new(checkpoints, columns, memory, placement)?;
        let mut shared: Option<Vec<Tensor>> = None;
        for checkpoint in checkpoints {
            let (file, stamp) = checkpoint.open(run)?;
            let Weights { theta, buffers } = file.weights(layout)?;
            let shared = shared.get_or_insert_with(|| buffers.iter().map(Tensor::shallow_clone).collect());
            for (spec, (a, b)) in layout.buffers().iter().zip(shared.iter().zip(&buffers)) {
                if !a.f_equal(b)? {
                    let other = &first.file;
                    let message = format!("buffer `{}` differs from that of {other}: not the same network", spec.name);
                    return Err(Error::file(file.path(), message));
                }
            }
            rows.push(&theta, &file, stamp, layout)?;
        }
        let buffers = shared.iter().flatten().map(|b| Ok(b.f_to(device)?)).collect::<Result<_>>()?;
        Ok(Self { checkpoints: checkpoints.to_vec(), placement, device, columns, buffers, rows })
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

    /// Where W is held.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// θ_p = Σ_i α\[g(p)\]\[i\]·W\[i,p\], f32 `[P]` on the window's device (LCSC, arXiv 2404.02241, for each group).
    /// `alpha` has K coefficients for each of the G groups, which need not sum to one. In a group, checkpoints with
    /// coefficient zero take no part, and a single coefficient of one gives that checkpoint bit for bit.
    ///
    /// # Errors
    /// `partition` is of another network, `alpha` has other lengths or a non-finite value, a file was altered since, or
    /// the device has no room.
    pub fn merge(&self, partition: &Partition, alpha: &[Vec<f64>]) -> Result<Tensor> {
        Ok(self.merge_many(partition, &[alpha])?.f_squeeze_dim(0)?)
    }

    /// The merged parameters of M candidates, f32 `[M,P]` on the window's device, in one pass over W; each row is what
    /// [`Window::merge`] gives, bit for bit.
    ///
    /// # Errors
    /// Those of [`Window::merge`].
    pub fn merge_many(&self, partition: &Partition, alphas: &[&[Vec<f64>]]) -> Result<Tensor> {
        self.check(partition, alphas)?;
        let stretches = self.rows.stretches();
        let shares = |group: usize| {
            let coefficients: Vec<&[f64]> = alphas.iter().map(|alpha| alpha[group].as_slice()).collect();
            Share::all(&stretches, &coefficients, self.device)
        };
        let shares = (0..partition.len()).map(shares).collect::<Result<Vec<_>>>()?;
        for share in shares.iter().flatten() {
            self.rows.check(&share.rows)?;
        }
        let thetas = Tensor::f_empty([alphas.len() as i64, self.columns], (Kind::Float, self.device))?;
        for &Run { start, len, group } in partition.runs() {
            if shares[group].is_empty() {
                let _ = thetas.f_narrow(1, start, len)?.f_zero_()?;
            }
            for (i, share) in shares[group].iter().enumerate() {
                self.rows.each_block(&share.rows, start..start + len, true, |p, w| {
                    share.add(&mut thetas.f_narrow(1, p, w.size()[1])?, w, i == 0)
                })?;
            }
        }
        Ok(thetas)
    }

    /// Σ_{p in γ} W\[i,p\]·g\[p\] for each group γ and checkpoint i, `[G][K]`: where `g`, f32 `[P]` on any device, is
    /// the derivative of a metric with respect to θ, this is its derivative with respect to the coefficients (∂F/∂α =
    /// W·∂F/∂θ). Summed in f64: checkpoints are much alike, and what counts are the differences of their sums.
    ///
    /// # Errors
    /// `partition` is of another network, `g` of another shape or type, a file was altered since, or the device has no
    /// room.
    pub fn project(&self, partition: &Partition, g: &Tensor) -> Result<Vec<Vec<f64>>> {
        self.check(partition, &[])?;
        if g.size() != [self.columns] || g.kind() != Kind::Float {
            let (shape, kind) = (g.size(), g.kind());
            bail!("a derivative of shape {shape:?} and type {kind:?}, expected [{}] and Float", self.columns);
        }
        let g = g.f_detach()?.f_to(self.device)?;
        let size = [partition.len() as i64, self.len() as i64];
        let sums = Tensor::f_zeros(size, (Kind::Double, self.device))?;
        for rows in self.rows.stretches() {
            self.rows.check(&rows)?;
            for &Run { start, len, group } in partition.runs() {
                let mut sum = sums.f_select(0, group as i64)?.f_narrow(0, rows.start as i64, rows.len() as i64)?;
                self.rows.each_block(&rows, start..start + len, false, |p, w| {
                    let g = g.f_narrow(0, p, w.size()[1])?.f_to_kind(Kind::Double)?;
                    let _ = sum.f_add_(&w.f_to_kind(Kind::Double)?.f_mv(&g)?)?;
                    Ok(())
                })?;
            }
        }
        Ok(Vec::<Vec<f64>>::try_from(sums.f_to(Device::Cpu)?)?)
    }

    /// The merged parameters with the buffers that all checkpoints share.
    ///
    /// # Errors
    /// Those of [`Window::merge`].
    pub fn weights(&self, partition: &Partition, alpha: &[Vec<f64>]) -> Result<Weights> {
        Ok(self.with_theta(self.merge(partition, alpha)?))
    }

    /// Parameters f32 `[P]`, such as a row of [`Window::merge_many`], with the buffers that all checkpoints share.
    pub fn with_theta(&self, theta: Tensor) -> Weights {
        Weights { theta, buffers: self.buffers.iter().map(Tensor::shallow_clone).collect() }
    }

    fn check(&self, partition: &Partition, alphas: &[&[Vec<f64>]]) -> Result<()> {
        let of_partition: i64 = partition.sizes().iter().sum();
        if of_partition != self.columns {
            bail!("groups of {of_partition} parameters for checkpoints of {}: not the same network", self.columns);
        }
        for alpha in alphas {
            if alpha.len() != partition.len() {
                bail!("coefficients for {} groups, there are {}", alpha.len(), partition.len());
            }
            for (name, alpha) in partition.names().iter().zip(*alpha) {
                self.check_group(name, alpha)?;
            }
        }
        Ok(())
    }

    fn check_group(&self, name: &str, alpha: &[f64]) -> Result<()> {
        if alpha.len() != self.len() {
            let (found, expected) = (alpha.len(), self.len());
            bail!("group `{name}`: {found} coefficients for a window of {expected} checkpoints: one each is needed");
        }
        if let Some(i) = alpha.iter().position(|a| !a.is_finite()) {
            bail!("group `{name}`: coefficient {i} is {}: coefficients must be finite", alpha[i]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
