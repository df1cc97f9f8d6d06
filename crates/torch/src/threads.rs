//! CPU threads: of one operation, and of tasks side by side.

use crate::error::{Error, Result};
use crate::guard::guarded_alike;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use std::sync::LazyLock;
use tch::Tensor;

/// Tasks that are computed at once at most: each takes as much memory as one alone.
const AT_ONCE: usize = 4;

/// Threads that one CPU operation uses now.
pub fn cpu_threads() -> usize {
    tch::get_num_threads().max(1) as usize
}

/// Threads to use when nothing is said: `OMP_NUM_THREADS`, else the cores that this process may use, shared with the other
/// ranks of its machine (`LOCAL_WORLD_SIZE`).
pub fn default_threads() -> usize {
    let number = |name| std::env::var(name).ok().and_then(|s| s.parse().ok()).filter(|n| *n > 0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    number("OMP_NUM_THREADS").unwrap_or_else(|| (cores / number("LOCAL_WORLD_SIZE").unwrap_or(1)).max(1))
}

/// Sets the number of threads of one CPU operation. Gradients of convolutions depend on it in their last bits.
pub fn set_cpu_threads(n: usize) {
    tch::set_num_threads(n.max(1) as i32);
}

/// The threads that compute side by side. They stay: libtorch sets up much for each thread that is new to it.
static SIDES: LazyLock<std::result::Result<ThreadPool, ThreadPoolBuildError>> =
    LazyLock::new(|| ThreadPoolBuilder::new().num_threads(AT_ONCE).build());

/// What `compute` gives for the first `at_once` of `tasks`, up to four, in their order: on the CPU, with a share of the
/// [default threads](default_threads) each, and no more than an operation has now.
pub(crate) fn side_by_side(
    tasks: impl Iterator<Item = usize>,
    at_once: usize,
    compute: impl Fn(usize) -> Result<Tensor> + Sync,
) -> Result<Vec<Tensor>> {
    let tasks: Vec<usize> = tasks.take(at_once.clamp(1, AT_ONCE)).collect();
    if tasks.len() < 2 {
        return tasks.into_iter().map(compute).collect();
    }
    let sides = SIDES.as_ref().map_err(|e| Error::msg(format!("threads that compute side by side: {e}")))?;
    let (threads, alike) = (cpu_threads(), guarded_alike());
    let share = (default_threads() / tasks.len()).clamp(1, threads);
    let found = sides.broadcast(|side| {
        let task = *tasks.get(side.index())?;
        alike();
        set_cpu_threads(share);
        Some(compute(task))
    });
    // Threads that begin later take over what was set last.
    set_cpu_threads(threads);
    found.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catch;
    use tch::{Device, Kind};

    #[test]
    fn tasks_side_by_side_share_the_threads_and_come_in_order() {
        let compute = |task| Ok(Tensor::from_slice(&[task as i64, cpu_threads() as i64]));
        set_cpu_threads(3);
        for (tasks, at_once, found) in
            [(0..9, 0, 1), (0..9, 1, 1), (1..3, 2, 2), (2..9, 3, 3), (2..9, 9, 4), (2..2, 4, 0)]
        {
            let shares = side_by_side(tasks.clone(), at_once, compute).unwrap();
            assert_eq!((shares.len(), cpu_threads()), (found, 3));
            let share = if found < 2 { 3 } else { (default_threads() / found).clamp(1, 3) as i64 };
            for (of_task, task) in shares.iter().zip(tasks) {
                assert_eq!(Vec::<i64>::try_from(of_task).unwrap(), [task as i64, share]);
            }
        }
    }

    #[test]
    fn errors_and_panics_of_a_task_are_those_of_all() {
        set_cpu_threads(3);
        let fails = |task| if task == 1 { Err(Error::msg("no room")) } else { Ok(Tensor::from(0)) };
        assert_eq!(side_by_side(0..3, 3, fails).unwrap_err().to_string(), "no room");
        let ones = |n: usize| Tensor::ones([n as i64], (Kind::Float, Device::Cpu));
        let sum = |task| Ok(ones(task + 1) + ones(2));
        let text = catch("sampling", || side_by_side(0..3, 3, sum)).unwrap_err().to_string();
        assert!(text.starts_with("libtorch, during sampling: The size of tensor a (3)"), "{text}");
    }
}
