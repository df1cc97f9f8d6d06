//! What a machine says of its NVIDIA driver.

use libloading::os::unix::Library;
use std::ffi::c_int;
use std::path::Path;

/// What tells why libtorch's CUDA half finds no device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Driver {
    /// Whether the machine has an NVIDIA device.
    pub has_device: bool,
    /// The newest CUDA that the driver is for, such as 12040 for 12.4; none where no driver answers.
    pub version: Option<c_int>,
    /// The CUDA that libtorch was built with, likewise.
    pub needed: Option<c_int>,
}

impl Driver {
    /// Of this machine, by its device files and the CUDA runtime that libtorch itself is linked to.
    pub(crate) fn of_machine() -> Self {
        let has_device = ["/proc/driver/nvidia/version", "/dev/nvidia0"].into_iter().any(|p| Path::new(p).exists());
        let version = |name: &[u8]| {
            let mut version = 0;
            // SAFETY: both functions have this type in cuda_runtime_api.h, and the place to write to outlives the call.
            let status =
                unsafe { Library::this().get::<unsafe extern "C" fn(*mut c_int) -> c_int>(name).ok()?(&mut version) };
            (status == 0 && version > 0).then_some(version)
        };
        Self { has_device, version: version(b"cudaDriverGetVersion\0"), needed: version(b"cudaRuntimeGetVersion\0") }
    }

    /// Why there is no device, and what to do.
    pub fn why_no_device(&self) -> String {
        match (self.version, self.needed) {
            (Some(version), Some(needed)) if version / 1000 < needed / 1000 => format!(
                "the NVIDIA driver is too old: it is for CUDA {}, libtorch needs CUDA {}; update the driver",
                of(version),
                of(needed)
            ),
            (None, _) if self.has_device => {
                "the machine has an NVIDIA device, but no driver answers: libcuda.so.1 is missing, or does not fit the kernel's \
                 module (see `nvidia-smi`)"
                    .into()
            }
            _ => "the driver shows no device (see `nvidia-smi`, and CUDA_VISIBLE_DEVICES)".into(),
        }
    }
}

/// 12040 is 12.4.
fn of(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_driver_is_told_with_both_versions() {
        let why = |has_device, version| Driver { has_device, version, needed: Some(13000) }.why_no_device();
        let old = why(true, Some(12040));
        assert!(old.contains("CUDA 12.4") && old.contains("CUDA 13.0") && old.contains("update"), "{old}");
        // A newer libtorch of the same major version runs on it.
        assert!(why(true, Some(13000)).contains("nvidia-smi"));
        let mute = why(true, None);
        assert!(mute.contains("libcuda.so.1") && !mute.contains("too old"), "{mute}");
        assert!(why(false, None).starts_with("the driver shows no device"));
    }

    #[test]
    fn the_runtime_that_libtorch_needs_is_asked() {
        let driver = Driver::of_machine();
        assert_eq!(driver.needed.map(|version| version / 1000), Some(13));
    }
}
