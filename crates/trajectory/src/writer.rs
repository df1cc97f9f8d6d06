//! Writes checkpoints and training states in the background, in order, so that training does not wait for the disk.

use crate::state::{state_bytes, state_path};
use crate::{Checkpoint, JsonLines, METADATA, RunFolder};
use lcsc_torch::{
    Context, ParamLayout, Result, Tensor, Weights, bail, catch, download, pack_weights, serialize, write_atomic,
};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Jobs that may wait; a further one makes the caller wait, so that memory stays bounded. Of states there is one at a time.
const QUEUE: usize = 2;

type Tensors = Vec<(String, Tensor)>;

enum Job {
    Checkpoint { checkpoint: Checkpoint, tensors: Tensors, metadata: String },
    State { tensors: Tensors, metadata: String, written: SyncSender<()> },
    Flush { done: SyncSender<()> },
}

/// A thread that writes one job after the other: what is durable is always a prefix of what was asked for.
///
/// After an error the thread writes nothing more, and every later call returns that first error.
#[derive(Debug)]
pub struct Writer {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<Result<()>>>,
    /// Hangs up when the last state is written, or never will be.
    state: Option<Receiver<()>>,
    failure: String,
}

impl Writer {
    /// Starts the thread of a run.
    ///
    /// # Errors
    /// The manifest cannot be opened, or the system refuses a thread.
    pub fn start(run: &RunFolder) -> Result<Self> {
        let (manifest, _) = JsonLines::open(run.manifest())?;
        let (jobs, queue) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("writer".into());
        let folder = run.clone();
        let thread = thread
            .spawn(move || catch("writing to the run folder", || work(&folder, manifest, &queue)))
            .at(run.path())?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), state: None, failure: String::new() })
    }

    /// Queues a checkpoint of the weights as they are now; they may change as soon as this returns. `metadata` is JSON. A GPU is
    /// waited for until it has made all steps queued and sent the copy.
    ///
    /// # Errors
    /// The memory for the copy is missing, or an earlier job failed.
    pub fn checkpoint(
        &mut self,
        checkpoint: Checkpoint,
        layout: &ParamLayout,
        weights: &Weights,
        metadata: &str,
    ) -> Result<()> {
        let theta = download(&weights.theta, checkpoint.dtype.kind())?;
        let buffers = weights.buffers.iter().map(|b| download(b, b.kind())).collect::<Result<_>>()?;
        let tensors = pack_weights(layout, &Weights { theta, buffers }, checkpoint.dtype)?;
        self.submit(Job::Checkpoint { checkpoint, tensors, metadata: metadata.into() })
    }

    /// Queues the training state, tensors as they are now, which replaces the one before; a GPU is waited for as for a checkpoint.
    /// `metadata` is JSON. When the state is durable, so are all checkpoints queued before it. A state may be far larger than a
    /// checkpoint: the one before has to be written before this one is copied.
    ///
    /// # Errors
    /// The memory for the copies is missing, or an earlier job failed.
    pub fn state(&mut self, tensors: Vec<(String, Tensor)>, metadata: String) -> Result<()> {
        if let Some(before) = self.state.take() {
            // Nothing is ever sent: this waits for the other end to be dropped.
            let _ = before.recv();
        }
        let copy = |(name, tensor): (String, Tensor)| -> Result<_> { Ok((name, download(&tensor, tensor.kind())?)) };
        let tensors = tensors.into_iter().map(copy).collect::<Result<_>>()?;
        let (written, is_written) = sync_channel(0);
        self.state = Some(is_written);
        self.submit(Job::State { tensors, metadata, written })
    }

    /// Waits until everything queued so far is durable.
    ///
    /// # Errors
    /// An earlier job failed.
    pub fn flush(&mut self) -> Result<()> {
        let (done, is_done) = sync_channel(1);
        self.submit(Job::Flush { done })?;
        is_done.recv().or_else(|_| self.fail())
    }

    /// Waits until everything is durable, then ends the thread.
    ///
    /// # Errors
    /// A job failed.
    pub fn finish(mut self) -> Result<()> {
        self.flush()
    }

    fn submit(&mut self, job: Job) -> Result<()> {
        match &self.jobs {
            Some(jobs) if jobs.send(job).is_ok() => Ok(()),
            _ => self.fail(),
        }
    }

    /// The error that ended the thread.
    fn fail(&mut self) -> Result<()> {
        if let Some(thread) = self.thread.take() {
            self.failure = match thread.join() {
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(())) | Err(_) => "it ended unexpectedly".into(),
            };
        }
        bail!("the background writer stopped, nothing was written after this error: {}", self.failure)
    }
}

impl Drop for Writer {
    /// Waits for queued jobs, so that nothing writes to the folder after the writer is gone.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the background writer stopped: {error}");
        }
    }
}

/// The thread: until the writer is dropped or a job fails.
fn work(run: &RunFolder, mut manifest: JsonLines<Checkpoint>, queue: &Receiver<Job>) -> Result<()> {
    for job in queue {
        match job {
            Job::Checkpoint { mut checkpoint, tensors, metadata } => {
                let bytes = serialize(&tensors, (METADATA, &metadata))?;
                checkpoint.bytes = bytes.len() as u64;
                checkpoint.blake3 = blake3::hash(&bytes).to_hex().to_string();
                write_atomic(run.trajectory().join(&checkpoint.file), &bytes)?;
                manifest.append_durable(&checkpoint)?;
            }
            Job::State { tensors, metadata, written } => {
                write_atomic(state_path(run), &state_bytes(tensors, &metadata)?)?;
                drop(written);
            }
            // The caller waits for this answer, unless it is gone.
            Job::Flush { done } => drop(done.send(())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, layout};
    use crate::{Manifest, TrainingState};
    use lcsc_torch::{Device, Kind, StorageDtype};

    fn run() -> (tempfile::TempDir, RunFolder) {
        let temp = tempfile::tempdir().unwrap();
        let run = RunFolder::create(temp.path()).unwrap();
        (temp, run)
    }

    fn raw(nimg: u64) -> Checkpoint {
        Checkpoint::new("edm", nimg, nimg, "raw", StorageDtype::F32)
    }

    #[test]
    fn files_hold_the_weights_of_the_moment_they_were_queued() {
        let (_temp, run) = run();
        let mut writer = Writer::start(&run).unwrap();
        let weights = layout().init(1, Device::Cpu).unwrap();
        let theta = weights.theta.set_requires_grad(true);
        let weights = Weights { theta, buffers: weights.buffers };
        let before = bits(&weights.theta);
        for nimg in 1..=8 {
            let _ = weights.theta.detach().fill_(nimg as f64);
            writer.checkpoint(raw(nimg), &layout(), &weights, "{}").unwrap();
            writer.state(vec![("theta".into(), weights.theta.shallow_clone())], "{}".into()).unwrap();
        }
        let _ = weights.theta.detach().fill_(-1.0);
        writer.finish().unwrap();
        assert_ne!(before, bits(&weights.theta));
        for checkpoint in Manifest::read(&run).unwrap() {
            let theta = checkpoint.load(&run, &layout(), Device::Cpu).unwrap().theta;
            assert_eq!(bits(&theta), [(checkpoint.nimg as f32).to_bits(); 7]);
        }
        let state = TrainingState::load(&run).unwrap().unwrap();
        assert_eq!(bits(&state.tensors["theta"]), [8f32.to_bits(); 7]);
    }

    #[test]
    fn a_durable_state_implies_the_checkpoints_before_it() {
        let (_temp, run) = run();
        let mut writer = Writer::start(&run).unwrap();
        let weights = layout().init(1, Device::Cpu).unwrap();
        let seen_at = |n: u64| serde_json::json!({ "nimg": n }).to_string();
        for nimg in 1..=6 {
            writer.checkpoint(raw(nimg), &layout(), &weights, "{}").unwrap();
            writer.state(vec![("n".into(), Tensor::from(nimg as i64))], seen_at(nimg)).unwrap();
            // Whatever the thread has done by now: the state is never ahead of the manifest.
            if let Some(state) = TrainingState::load(&run).unwrap() {
                let last = state.meta["nimg"].as_u64().unwrap();
                assert!(Manifest::read(&run).unwrap().len() as u64 >= last);
            }
        }
        writer.flush().unwrap();
        assert_eq!(TrainingState::load(&run).unwrap().unwrap().meta["nimg"], 6);
        assert_eq!(Manifest::read(&run).unwrap().len(), 6);
    }

    #[test]
    fn a_state_is_copied_after_the_one_before_is_written() {
        let (_temp, run) = run();
        let mut writer = Writer::start(&run).unwrap();
        let big = Tensor::zeros([8 << 20], (Kind::Float, Device::Cpu));
        let tensors = || vec![("theta".to_string(), big.shallow_clone())];
        let saved = || TrainingState::load(&run).unwrap().map(|state| state.meta["n"].as_u64());
        for n in 0..3u64 {
            writer.state(tensors(), format!(r#"{{"n": {n}}}"#)).unwrap();
            // No two of them wait, so that host memory holds one copy.
            assert!(n == 0 || saved() >= Some(Some(n - 1)), "{n}: {:?}", saved());
        }
        writer.finish().unwrap();
        assert_eq!(saved(), Some(Some(2)));
    }

    #[test]
    fn a_checkpoint_written_again_replaces_its_file_and_line() {
        let (_temp, run) = run();
        for seed in [1, 2] {
            let mut writer = Writer::start(&run).unwrap();
            let weights = layout().init(seed, Device::Cpu).unwrap();
            writer.checkpoint(raw(5), &layout(), &weights, "{}").unwrap();
            writer.finish().unwrap();
        }
        let checkpoints = Manifest::read(&run).unwrap();
        assert_eq!(checkpoints.len(), 1);
        let theta = checkpoints[0].load(&run, &layout(), Device::Cpu).unwrap().theta;
        assert!(theta.equal(&layout().init(2, Device::Cpu).unwrap().theta));
    }

    #[test]
    fn the_first_error_surfaces_and_stops_later_jobs() {
        let (_temp, run) = run();
        let mut writer = Writer::start(&run).unwrap();
        // A folder in place of the file; permissions would not stop a super-user.
        std::fs::create_dir(run.trajectory().join(raw(1).file)).unwrap();
        let weights = layout().init(1, Device::Cpu).unwrap();
        writer.checkpoint(raw(1), &layout(), &weights, "{}").unwrap();
        let first = writer.flush().unwrap_err().to_string();
        assert!(first.contains("ckpt-000000000001-raw.safetensors"), "{first}");
        assert_eq!(writer.checkpoint(raw(2), &layout(), &weights, "{}").unwrap_err().to_string(), first);
        assert_eq!(writer.state(Vec::new(), "{}".into()).unwrap_err().to_string(), first);
        assert_eq!(writer.finish().unwrap_err().to_string(), first);
        assert!(Manifest::read(&run).unwrap().is_empty());
        assert!(TrainingState::load(&run).unwrap().is_none());
    }

    #[test]
    fn half_types_are_converted_on_the_way() {
        let (_temp, run) = run();
        let mut writer = Writer::start(&run).unwrap();
        let weights = layout().init(1, Device::Cpu).unwrap();
        let checkpoint = Checkpoint::new("edm", 1, 1, "ema-p0.050", StorageDtype::Bf16);
        writer.checkpoint(checkpoint, &layout(), &weights, "{}").unwrap();
        writer.finish().unwrap();
        let back = Manifest::read(&run).unwrap()[0].load(&run, &layout(), Device::Cpu).unwrap().theta;
        assert!(back.equal(&weights.theta.to_kind(Kind::BFloat16).to_kind(Kind::Float)));
    }
}
