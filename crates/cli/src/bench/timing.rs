//! Times of repeated work.

use crate::plans::PlanChoice;
use lcsc_torch::{Device, Group, Result, synchronize};
use std::time::{Duration, Instant};

/// Quick work is repeated for as long as this.
const AT_LEAST: Duration = Duration::from_secs(1);

/// How work is timed.
pub struct Timer<'a> {
    /// The ranks that work at once: all repeat it as often.
    pub group: &'a Group,
    /// Where it runs.
    pub device: Device,
    /// By which plan networks are trained on a GPU.
    pub plan: PlanChoice,
    /// Timed repeats at least, after one that is not timed.
    pub repeats: usize,
}

impl Timer<'_> {
    /// The seconds of each repeat.
    ///
    /// # Errors
    /// The first of the work.
    pub fn seconds<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<Vec<f64>> {
        work()?;
        self.warm_seconds(work)
    }

    /// The seconds of each repeat of work that is warm.
    ///
    /// # Errors
    /// The first of the work.
    pub fn warm_seconds<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<Vec<f64>> {
        self.wait();
        let (mut seconds, first) = (Vec::with_capacity(self.repeats), Instant::now());
        while seconds.len() < self.repeats || self.group.numbers((first.elapsed() < AT_LEAST).into())?[0] != 0 {
            let began = Instant::now();
            let _done = work()?;
            self.wait();
            seconds.push(began.elapsed().as_secs_f64());
        }
        Ok(seconds)
    }

    /// One of two values: for the CPU, or for a GPU.
    pub fn on<T>(&self, cpu: T, gpu: T) -> T {
        if self.device == Device::Cpu { cpu } else { gpu }
    }

    /// Until the device has done all that was asked of it.
    pub fn wait(&self) {
        synchronize(self.device);
    }
}

/// The middle of the times, of an even number the mean of both.
pub fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    if n == 0 { f64::NAN } else { (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
