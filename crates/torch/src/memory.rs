//! How much memory a process uses, and what a GPU is called.

use crate::device::{CudaStatus, open_cuda};
use crate::shim::used_memory;
use libloading::os::unix::Library;
use std::ffi::{CStr, c_char, c_int, c_uint};
use tch::Device;

/// Bytes of host memory that this process has in use; none where the system does not tell.
pub fn host_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Bytes in use on a device, by all processes; none of the CPU. The driver is asked, nothing is waited for.
pub fn device_memory(device: Device) -> Option<u64> {
    match (device, open_cuda()) {
        (Device::Cuda(index), CudaStatus::Available { .. }) => used_memory(index).ok(),
        (
            Device::Cuda(_) | Device::Cpu | Device::Mps | Device::Vulkan,
            CudaStatus::Available { .. } | CudaStatus::NoDevice { .. } | CudaStatus::NotLoaded { .. },
        ) => None,
    }
}

/// The name of a GPU as the driver tells it; none of the CPU.
pub fn device_name(device: Device) -> Option<String> {
    let Device::Cuda(index) = device else { return None };
    let mut name = [0 as c_char; 128];
    // SAFETY: the signatures are those of cuda.h; the name is cut to the length given, with a zero at its end.
    unsafe {
        let driver = Library::new("libcuda.so.1").ok()?;
        let init = driver.get::<unsafe extern "C" fn(c_uint) -> c_int>(b"cuInit\0").ok()?;
        let get_name =
            driver.get::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>(b"cuDeviceGetName\0").ok()?;
        let told = init(0) == 0 && get_name(name.as_mut_ptr(), name.len() as c_int, index as c_int) == 0;
        told.then(|| CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_memory_and_more_when_it_asks_for_more() {
        let before = host_memory().unwrap();
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = host_memory().unwrap();
        assert!(after > before + (32 << 20), "{before} then {after} with {} more", block.len());
        assert_eq!((device_memory(Device::Cpu), device_name(Device::Cpu)), (None, None));
    }

    #[test]
    fn a_missing_device_tells_nothing() {
        if matches!(open_cuda(), CudaStatus::Available { .. }) {
            assert!(device_memory(Device::Cuda(0)).is_some_and(|used| used > 0));
        } else {
            assert_eq!((device_memory(Device::Cuda(0)), device_name(Device::Cuda(0))), (None, None));
            assert!(used_memory(0).is_err());
        }
    }
}
