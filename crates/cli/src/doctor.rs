//! `lcsc doctor`: what this machine offers.

use crate::explain::size;
use crate::train::run_bytes;
use crate::{Ended, config, ui};
use lcsc_torch::{CudaStatus, default_threads, open_cuda, open_cuda_library, tch};
use std::path::Path;

/// The version that this program is built against and loads.
pub const LIBTORCH: &str = "2.11.0";

/// Prints libtorch, CUDA or the reason why not, threads, memory, free disk, and the disk a config needs.
pub fn command(config: Option<&Path>) -> miette::Result<Ended> {
    ui::say!("lcsc       {}", env!("CARGO_PKG_VERSION"));
    ui::say!("libtorch   {LIBTORCH} ({})", loaded_from("libtorch_cpu.so"));
    match open_cuda() {
        CudaStatus::Available { library, devices } => {
            ui::say!("CUDA       {devices} device(s), cuDNN {}, through {library}", tch::Cuda::cudnn_is_available());
            match open_cuda_library() {
                Ok(_) => ui::say!("CUDA part  opens: NCCL among several GPUs, and CUDA graphs"),
                Err(reason) => ui::say!("CUDA part  not available: {reason}"),
            }
        }
        CudaStatus::NoDevice { library, driver } => {
            ui::say!("CUDA       {library} opens, but {}", driver.why_no_device());
        }
        CudaStatus::NotLoaded { reasons, driver } => {
            ui::say!("CUDA       not available; scripts/setup.sh --cuda fetches it. The loader said:");
            reasons.iter().for_each(|reason| ui::say!("             {reason}"));
            if driver.has_device {
                ui::say!("           This machine has an NVIDIA device.");
            }
        }
    }
    ui::say!("threads    {}", default_threads());
    let memory = |key| memory(key).map_or_else(|| "unknown".into(), size);
    ui::say!("memory     {} available of {}", memory("MemAvailable:"), memory("MemTotal:"));
    let free = fs4::available_space(".").map_or_else(|e| e.to_string(), size);
    ui::say!("disk       {free} free here");
    if let Some(path) = config {
        let config::Loaded { config, data } = config::load(path, &[])?;
        let needed = run_bytes(&config, config.image(&data));
        ui::say!("           {} for a run of {}", size(needed), path.display());
    }
    Ok(Ended::Done)
}

/// The model of the CPU.
pub fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split_once(':'));
    model.map_or_else(|| "unknown".into(), |(_, name)| name.trim().into())
}

/// A line of /proc/meminfo in bytes.
fn memory(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The file that a shared library of this process was loaded from.
fn loaded_from(name: &str) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let path = maps.lines().find(|l| l.ends_with(name)).and_then(|l| l.find('/').map(|at| l[at..].to_string()));
    path.unwrap_or_else(|| "unknown place".into())
}
