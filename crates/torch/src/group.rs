//! Several processes as one: ranks that compute a share each and exchange tensors, on PyTorch's c10d.
//!
//! Ranks are started and told of each other as PyTorch's are: by torchrun, Slurm, Kubernetes or `lcsc launch`. Texts, flags and
//! tensors in host memory travel by Gloo, tensors of a GPU by NCCL.

mod collective;
mod failure;
mod ranks;
mod store;

pub use failure::Failure;
pub use ranks::Ranks;
pub use store::Store;

use crate::bail;
use crate::error::{Error, Result};
use crate::threads::side_by_side;
use collective::Backend;
use std::cell::{Cell, OnceCell};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// How long rank 0 may be at something of its own before the others give up; its end they notice at once.
const LEAD_PATIENCE: Duration = Duration::from_secs(24 * 3600);
const POLL: Duration = Duration::from_millis(50);

/// The processes that compute together; one that is alone is a group as well, whose collectives do nothing.
///
/// All ranks call the same collectives in the same order with tensors of the same shapes and types.
pub struct Group {
    rank: usize,
    size: usize,
    joined: Option<Joined>,
}

struct Joined {
    ranks: Ranks,
    store: Store,
    /// None once it is closed.
    host: Option<Backend>,
    gpu: OnceCell<Backend>,
    /// A collective failed: another rank has ended or does not answer.
    lost: Cell<bool>,
}

impl Group {
    /// The group of this process alone.
    pub fn alone() -> Self {
        Self { rank: 0, size: 1, joined: None }
    }

    /// Meets the other ranks, and makes sure that all are of this version.
    ///
    /// # Errors
    /// The address is wrong, a rank does not come in time, or is of another version.
    pub fn join(ranks: Ranks) -> Result<Self> {
        let store = Store::open(&ranks)?;
        wait_for_all(&ranks, &store)?;
        let host = Some(Backend::gloo(&store, &ranks)?);
        let (rank, size) = (ranks.rank, ranks.size);
        let joined = Joined { ranks, store, host, gpu: OnceCell::new(), lost: Cell::new(false) };
        let group = Self { rank, size, joined: Some(joined) };
        group.same("versions of lcsc", env!("CARGO_PKG_VERSION"))?;
        Ok(group)
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether this is the rank that reads and writes the run folder, decides and reports.
    pub fn leads(&self) -> bool {
        self.rank == 0
    }

    /// This rank's number among those of its machine.
    pub fn local_rank(&self) -> usize {
        self.joined.as_ref().map_or(0, |j| j.ranks.local_rank)
    }

    /// Connects the GPUs of all ranks; on the CPU there is nothing to do.
    ///
    /// # Errors
    /// NCCL is not at hand or cannot connect, or some ranks compute on the CPU.
    pub fn use_device(&self, device: Device) -> Result<()> {
        self.same("kinds of device", if device.is_cuda() { "GPU" } else { "CPU" })?;
        let Some(joined) = &self.joined else { return Ok(()) };
        if let Device::Cuda(index) = device
            && joined.gpu.get().is_none()
        {
            let gpu = self.all_ok(Backend::nccl(&joined.store, &joined.ranks, index))?;
            let _ = joined.gpu.set(gpu);
        }
        Ok(())
    }

    /// Σ over all ranks, in place, of a contiguous tensor of any shape; bit-equal on all ranks. On a GPU it is queued.
    ///
    /// # Errors
    /// Another rank is gone.
    pub fn sum(&self, tensor: &Tensor) -> Result<()> {
        self.collective(tensor, |backend| backend.all_reduce(tensor))
    }

    /// Overwrites a contiguous tensor with that of rank 0, for which the others wait as long as it takes.
    ///
    /// # Errors
    /// Another rank is gone.
    pub fn broadcast(&self, tensor: &Tensor) -> Result<()> {
        if tensor.device() != Device::Cpu {
            // NCCL waits for no longer than its group does, whatever a broadcast says: the host waits for rank 0 first.
            self.broadcast(&Tensor::f_zeros([1], (Kind::Uint8, Device::Cpu))?)?;
        }
        self.collective(tensor, |backend| backend.broadcast(tensor, LEAD_PATIENCE))
    }

    /// The tensors `[…]` of all ranks as `[ranks,…]`.
    ///
    /// # Errors
    /// Another rank is gone.
    pub fn gather(&self, tensor: &Tensor) -> Result<Tensor> {
        let own = tensor.f_contiguous()?;
        let shape: Vec<i64> = std::iter::once(self.size as i64).chain(own.size()).collect();
        if self.joined.is_none() || own.numel() == 0 {
            return Ok(own.f_unsqueeze(0)?.f_expand(&shape, false)?);
        }
        let own = own.f_flatten(0, -1)?;
        let all = Tensor::f_empty([shape[0] * own.size()[0]], (own.kind(), own.device()))?;
        self.collective(&own, |backend| backend.all_gather(&all, &own))?;
        Ok(all.f_view(&shape[..])?)
    }

    fn collective(&self, tensor: &Tensor, work: impl FnOnce(&Backend) -> Result<()>) -> Result<()> {
        let Some(joined) = &self.joined else { return Ok(()) };
        let backend = match tensor.device() {
            Device::Cpu => joined.host.as_ref(),
            _ => joined.gpu.get(),
        };
        let backend = backend.ok_or_else(|| Error::msg("the ranks are not connected"))?;
        work(backend).inspect_err(|_| joined.lost.set(true))
    }

    /// The numbers of all ranks, by rank.
    ///
    /// # Errors
    /// Another rank is gone.
    pub fn numbers(&self, own: i64) -> Result<Vec<i64>> {
        Ok(self.gather(&Tensor::f_from_slice(&[own])?)?.f_flatten(0, -1)?.try_into()?)
    }

    /// The sums of the bits of f32 values, by rank: what tells whether all ranks hold the same.
    ///
    /// # Errors
    /// Another rank is gone.
    pub fn sums_of_bits(&self, values: &Tensor) -> Result<Vec<i64>> {
        self.numbers(values.f_detach()?.f_view_dtype(Kind::Int)?.f_sum(Kind::Int64)?.f_int64_value(&[])?)
    }

    /// The texts of all ranks, by rank.
    ///
    /// # Errors
    /// Another rank is gone.
    pub fn texts(&self, own: &str) -> Result<Vec<String>> {
        let lengths = self.numbers(own.len() as i64)?;
        let longest = lengths.iter().max().map_or(0, |n| *n as usize);
        let mut bytes = own.as_bytes().to_vec();
        bytes.resize(longest, 0);
        let all = Vec::<u8>::try_from(self.gather(&Tensor::f_from_slice(&bytes)?)?.f_flatten(0, -1)?)?;
        let text = |(rank, length): (usize, &i64)| {
            String::from_utf8_lossy(&all[rank * longest..][..*length as usize]).into_owned()
        };
        Ok(lengths.iter().enumerate().map(text).collect())
    }

    /// The text of rank 0, for which the others wait as long as it takes; what they say counts for nothing.
    ///
    /// # Errors
    /// Another rank is gone.
    pub fn told(&self, own: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.sent(own.as_bytes().to_vec())?).into_owned())
    }

    /// The bytes of rank 0, as [`Self::told`].
    ///
    /// # Errors
    /// Another rank is gone.
    pub fn sent(&self, mut own: Vec<u8>) -> Result<Vec<u8>> {
        let length = Tensor::f_from_slice(&[own.len() as i64])?;
        self.broadcast(&length)?;
        own.resize(length.f_int64_value(&[0])? as usize, 0);
        if self.joined.is_none() || own.is_empty() {
            return Ok(own);
        }
        let bytes = Tensor::f_from_slice(&own)?;
        drop(own);
        self.broadcast(&bytes)?;
        Ok(bytes.try_into()?)
    }

    /// Makes sure that all ranks have the same text of something.
    ///
    /// # Errors
    /// They have not: the same message on all ranks, with the first line that differs. Another rank is gone.
    pub fn same(&self, what: &str, own: &str) -> Result<()> {
        let texts = self.texts(own)?;
        let Some((rank, other)) = texts.iter().enumerate().find(|(_, text)| **text != texts[0]) else { return Ok(()) };
        let line = |text: &'_ String, i: usize| text.lines().nth(i).unwrap_or_default().to_string();
        let pairs =
            (0..texts[0].lines().count().max(other.lines().count())).map(|i| (line(&texts[0], i), line(other, i)));
        let (of_0, here) = pairs.into_iter().find(|(a, b)| a != b).unwrap_or_default();
        bail!("the ranks have different {what}: rank 0 `{of_0}`, rank {rank} `{here}`; start all of them alike")
    }

    /// The outcome of something that each rank does for itself, once it is known that all of them succeeded.
    ///
    /// # Errors
    /// Its own error; where this rank succeeded, the first that did not with its error. Another rank is gone.
    pub fn all_ok<T>(&self, outcome: Result<T>) -> Result<T> {
        if self.joined.is_none() {
            return outcome;
        }
        let own = outcome.as_ref().err().map(ToString::to_string);
        let texts = self.texts(own.as_deref().unwrap_or_default())?;
        let value = outcome?;
        match texts.iter().position(|text| !text.is_empty()) {
            None => Ok(value),
            Some(rank) => Err(Error::Message(format!("rank {rank}: {}", texts[rank]))),
        }
    }

    /// Rows `[n,…]` of tasks 0, 1, 2, … that the ranks compute in turn: `with` gets them in the order of the tasks, on all
    /// ranks; false ends it on all. `rows` says how many rows each task has; `like` is `[0,…]`, of the rows' shape and type.
    /// Of a rank's tasks `at_once`, up to four, are computed side by side on its CPU.
    ///
    /// # Errors
    /// Those of both functions. Another rank is gone.
    pub fn in_turn(
        &self,
        rows: &[usize],
        like: &Tensor,
        at_once: usize,
        compute: impl Fn(usize) -> Result<Tensor> + Sync,
        mut with: impl FnMut(usize, Tensor) -> Result<bool>,
    ) -> Result<()> {
        let most = rows.iter().max().map_or(0, |n| *n as i64);
        let mut ahead = VecDeque::new();
        for first in (0..rows.len()).step_by(self.size) {
            if ahead.is_empty() {
                let mine = (first + self.rank..rows.len()).step_by(self.size);
                ahead.extend(side_by_side(mine, at_once, &compute)?);
            }
            let mut own = ahead.pop_front().unwrap_or_else(|| like.shallow_clone());
            if self.joined.is_some() {
                let missing = [&[most - own.size()[0]], &own.size()[1..]].concat();
                own = Tensor::f_cat(&[&own, &Tensor::f_zeros(missing, (own.kind(), own.device()))?], 0)?;
            }
            let all = self.gather(&own)?;
            for (place, &n) in rows[first..].iter().take(self.size).enumerate() {
                if !with(first + place, all.f_get(place as i64)?.f_narrow(0, 0, n as i64)?)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Waits until all ranks are done, so that none ends while another still needs it.
    ///
    /// # Errors
    /// Another rank is gone.
    pub fn leave(&self) -> Result<()> {
        self.numbers(0).map(drop)
    }

    /// Whether another rank was found to be gone.
    pub fn is_broken(&self) -> bool {
        self.joined.as_ref().is_some_and(|joined| joined.lost.get())
    }

    /// Of a rank that ends with an error: tells the others, or learns from them why they ended.
    pub fn fail(self, message: &str) -> Failure {
        match self.joined {
            None => Failure::Own,
            Some(joined) if joined.lost.get() => joined.learn_why(message),
            Some(joined) => joined.tell_why(message),
        }
    }
}

/// Each rank notes that it is there, and waits for the others.
fn wait_for_all(ranks: &Ranks, store: &Store) -> Result<()> {
    let key = |rank: usize| format!("here/{rank}");
    store.set(&key(ranks.rank), "")?;
    let (began, mut told) = (Instant::now(), false);
    loop {
        let mut missing = Vec::new();
        for rank in 0..ranks.size {
            if !store.has(&key(rank))? {
                missing.push(rank.to_string());
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let (missing, waited) = (missing.join(", "), began.elapsed());
        if waited > ranks.timeout {
            bail!(
                "rank {missing} of {} did not come to {} within {} s: was it started, with the same MASTER_ADDR and \
                 MASTER_PORT, and can it reach that address? ({} sets how long to wait, in seconds)",
                ranks.size,
                ranks.address(),
                ranks.timeout.as_secs(),
                ranks::TIMEOUT
            );
        }
        if !told && waited > Duration::from_secs(5) {
            tracing::info!("waiting for rank {missing} of {} at {}", ranks.size, ranks.address());
            told = true;
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests;
