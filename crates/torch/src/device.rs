//! Where tensors live and in which precision networks compute. CUDA is opened at run time: the binary links CPU only.

use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::norm::set_cuda_path;
use crate::shim::{allow_tf32, choose_kernels, use_device};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tch::{Cuda, Device, Kind, Tensor};

/// What became of the attempt to open libtorch's CUDA half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaStatus {
    /// Opened from this path, and devices were found.
    Available {
        /// The library, or its bare name when the loader's path had it.
        library: String,
        /// Number of devices.
        devices: usize,
    },
    /// Opened, but the driver shows no device.
    NoDevice {
        /// The library.
        library: String,
        /// What the machine says of its driver.
        driver: Driver,
    },
    /// Not opened: the loader's reason for each place tried.
    NotLoaded {
        /// One line a place.
        reasons: Vec<String>,
        /// What the machine says of its driver.
        driver: Driver,
    },
}

impl CudaStatus {
    /// Why this machine's NVIDIA device cannot be used, with the remedy; none where it can, or where there is none.
    pub fn unusable_device(&self) -> Option<String> {
        match self {
            Self::Available { .. } => None,
            Self::NoDevice { driver, .. } => driver.has_device.then(|| driver.why_no_device()),
            Self::NotLoaded { driver, .. } => driver.has_device.then(|| {
                "libtorch's CUDA half cannot be opened (`lcsc doctor` says why); scripts/setup.sh --cuda fetches it"
                    .into()
            }),
        }
    }
}

static CUDA: OnceLock<CudaStatus> = OnceLock::new();
const LIBRARY: &str = "libtorch_cuda.so";
/// What libtorch itself opens for NVRTC and CUDA's driver.
const NVRTC: &str = "libcaffe2_nvrtc.so";

/// Opens `libtorch_cuda.so` once, with its symbols global so that PyTorch's registration takes effect.
///
/// Places, in order: `.libtorch/cuda` in a parent folder of the executable, then the loader's own path.
pub fn open_cuda() -> &'static CudaStatus {
    CUDA.get_or_init(|| {
        let mut reasons = Vec::new();
        for place in cuda_places() {
            // SAFETY: libtorch_cuda's static initialisers only register kernels with the libtorch that is loaded.
            let opened = unsafe {
                libloading::os::unix::Library::open(
                    Some(&place),
                    libloading::os::unix::RTLD_NOW | libloading::os::unix::RTLD_GLOBAL,
                )
            };
            match opened {
                Ok(library) => {
                    std::mem::forget(library); // its kernels stay registered until the process ends
                    if let Some(Err(e)) = near_places(&format!("cuda/{NVRTC}")).first().map(|path| set_cuda_path(path))
                    {
                        tracing::warn!("CUDA's compiler: {e}");
                    }
                    let library = place.display().to_string();
                    let devices = Cuda::device_count().max(0) as usize;
                    return if Cuda::is_available() && devices > 0 {
                        CudaStatus::Available { library, devices }
                    } else {
                        CudaStatus::NoDevice { library, driver: Driver::of_machine() }
                    };
                }
                Err(e) => reasons.push(loader_reason(&e)),
            }
        }
        CudaStatus::NotLoaded { reasons, driver: Driver::of_machine() }
    })
}

/// What the loader said: the innermost error.
pub(crate) fn loader_reason(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), loader_reason)
}

fn cuda_places() -> Vec<PathBuf> {
    near_places(&format!("cuda/{LIBRARY}"))
}

/// Where a library, or another file of scripts/setup.sh, is looked for: `.libtorch` in a parent folder of the executable, then its
/// name alone, for the loader's own path.
pub fn near_places(library: &str) -> Vec<PathBuf> {
    let exe = std::env::current_exe().ok();
    // The resolved path, so that a library finds others relative to its real place.
    let place = |folder: &Path| folder.join(".libtorch").join(library).canonicalize().ok();
    let near = exe.iter().flat_map(|exe| exe.ancestors()).find_map(place);
    near.into_iter().chain(PathBuf::from(library).file_name().map(PathBuf::from)).collect()
}

/// The device as written in a config or on the command line: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// CUDA device 0 where there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by number.
    Cuda(usize),
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => other
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("unknown device `{other}`, expected `auto`, `cpu`, `cuda` or `cuda:N`")),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(s: String) -> std::result::Result<Self, String> {
        s.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(d: DeviceChoice) -> String {
        d.to_string()
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl JsonSchema for DeviceChoice {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DeviceChoice".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^(auto|cpu|cuda|cuda:[0-9]+)$",
            "description": "`auto`, `cpu`, `cuda` or `cuda:N`"
        })
    }
}

impl DeviceChoice {
    /// The device of one of several processes on a machine: `cuda:N` is that of its first, `auto` and `cuda` begin at 0. Where a
    /// process is shown a single GPU, it is that one.
    #[must_use]
    pub fn of_local_rank(self, local_rank: usize) -> Self {
        let first = match self {
            Self::Cpu => return self,
            Self::Auto => 0,
            Self::Cuda(n) => n,
        };
        match open_cuda() {
            CudaStatus::Available { devices: 1, .. } => Self::Cuda(0),
            CudaStatus::Available { .. } => Self::Cuda(first + local_rank),
            CudaStatus::NoDevice { .. } | CudaStatus::NotLoaded { .. } => self,
        }
    }

    /// The device itself. A GPU becomes the one that this thread uses, with products and convolutions of f32 that are not rounded to
    /// TF32 and the fastest kernels; [`allow_tf32`](crate::allow_tf32) and [`choose_kernels`] change that.
    ///
    /// # Errors
    /// CUDA was asked for and is not there: with the loader's reason, or the versions that do not fit.
    pub fn resolve(self) -> Result<Device> {
        if self == Self::Cpu {
            return Ok(Device::Cpu);
        }
        match (self, open_cuda()) {
            (Self::Cpu, _) => Ok(Device::Cpu),
            (Self::Auto, CudaStatus::Available { .. }) => usable(0),
            (Self::Auto, CudaStatus::NoDevice { .. } | CudaStatus::NotLoaded { .. }) => Ok(Device::Cpu),
            (Self::Cuda(n), CudaStatus::Available { devices, .. }) if n < *devices => usable(n),
            (Self::Cuda(n), CudaStatus::Available { devices, .. }) => {
                Err(Error::Message(format!("device cuda:{n} does not exist: this machine has {devices}")))
            }
            (Self::Cuda(_), CudaStatus::NoDevice { library, driver }) => Err(Error::Message(format!(
                "CUDA was asked for; {library} was opened, but {}. Else use device = \"cpu\"",
                driver.why_no_device()
            ))),
            (Self::Cuda(_), CudaStatus::NotLoaded { reasons, .. }) => Err(Error::Message(format!(
                "CUDA was asked for, but libtorch's CUDA half could not be opened: {}. Run scripts/setup.sh --cuda, or use device = \"cpu\"",
                reasons.join("; ")
            ))),
        }
    }
}

/// A GPU as all commands use it unless they say otherwise.
fn usable(index: usize) -> Result<Device> {
    use_device(index)?;
    allow_tf32(false)?;
    choose_kernels(false)?;
    Ok(Device::Cuda(index))
}

/// The type in which networks compute; weights, moments, preconditioning, losses and samplers stay f32 or wider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE single precision.
    #[default]
    F32,
    /// f32 whose convolutions and matrix products round their inputs to ten bits of mantissa, on GPUs that do; elsewhere
    /// the same as f32.
    Tf32,
    /// bfloat16 weights and activations; group-norm and softmax accumulate in f32.
    Bf16,
    /// IEEE half-precision weights and activations, accumulated as for bf16; training scales the loss.
    F16,
}

impl Precision {
    /// The tensor type of weights and activations inside a network.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 | Self::Tf32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }
}

/// A tensor of host memory on a device, without waiting for the device: the driver has its own copy of pageable memory when
/// this returns. A tensor that is there already is not copied.
///
/// # Errors
/// The device has no room.
pub fn upload(tensor: &Tensor, device: Device) -> Result<Tensor> {
    let non_blocking = true;
    Ok(tensor.f_to_device_(device, tensor.kind(), non_blocking, false)?)
}

/// The same values in memory of their own, arranged alike; without gradient.
///
/// # Errors
/// The device has no room.
pub fn copied(tensor: &Tensor) -> Result<Tensor> {
    let mut copy = tensor.f_detach()?.f_empty_like()?;
    copy.f_copy_(&tensor.f_detach()?)?;
    Ok(copy)
}

/// Bytes that are fetched from a GPU at once: pinned memory is taken in powers of two and never given back, so that the tensors
/// themselves would keep far more of it than they are long.
const PIECE_BYTES: usize = 64 << 20;

/// A copy of a tensor in ordinary host memory, contiguous and whole when this returns: it waits for all that was asked of the
/// device before. From a GPU it comes in pieces by way of two pinned buffers: while the host moves one out, the next arrives.
///
/// # Errors
/// There is no room.
pub fn download(tensor: &Tensor, kind: Kind) -> Result<Tensor> {
    match tensor.device() {
        Device::Cpu => Ok(tensor.f_detach()?.f_to_device_(Device::Cpu, kind, false, true)?.f_contiguous()?),
        Device::Cuda(_) | Device::Mps | Device::Vulkan => download_by(tensor, kind, PIECE_BYTES),
    }
}

/// The same from any device in pieces of so many bytes, or of one element.
fn download_by(tensor: &Tensor, kind: Kind, piece_bytes: usize) -> Result<Tensor> {
    let (device, flat) = (tensor.device(), tensor.f_detach()?.f_contiguous()?.f_view([-1])?);
    let whole = Tensor::f_empty(tensor.size(), (kind, Device::Cpu))?;
    let widest = kind.elt_size_in_bytes().max(tensor.kind().elt_size_in_bytes());
    let step = (piece_bytes / widest).max(1) as i64;
    let places = flat.f_split(step, 0)?.into_iter().zip(whole.f_view([-1])?.f_split(step, 0)?);
    // Of a GPU this gives pinned memory, and returns before it is filled.
    let (non_blocking, copy) = (true, true);
    let fetch = |piece: &Tensor| piece.f_to_device_(Device::Cpu, kind, non_blocking, copy);
    let mut arriving: Option<(Tensor, Tensor)> = None;
    for (piece, place) in places {
        synchronize(device);
        let next = Some((fetch(&piece)?, place));
        move_out(std::mem::replace(&mut arriving, next))?;
    }
    synchronize(device);
    move_out(arriving)?;
    Ok(whole)
}

/// Moves a piece that has arrived to its place.
fn move_out(arrived: Option<(Tensor, Tensor)>) -> Result<()> {
    if let Some((piece, mut place)) = arrived {
        place.f_copy_(&piece)?;
    }
    Ok(())
}

/// Waits until a device has done all that was asked of it.
pub fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

/// Has the C library keep memory that was freed, up to 2 GiB apiece, for what is asked for next: fresh pages cost more
/// than what is computed in them (merging eight models into one tensor of 640 MB takes a quarter less time so).
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets two numbers of the C library's allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_parse_and_print() {
        for text in ["auto", "cpu", "cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        assert!("gpu".parse::<DeviceChoice>().unwrap_err().contains("`auto`"));
    }

    #[test]
    fn a_copy_in_pieces_is_the_tensor_as_it_was() {
        // 16 bytes are four values of f32, eight of bf16 that were f32 count as four.
        for n in [0, 1, 3, 4, 5, 8, 9, 31] {
            let tensor = Tensor::arange(n, (Kind::Float, Device::Cpu)) * 0.37 - 2.0;
            for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
                let copy = download_by(&tensor, kind, 16).unwrap();
                assert_eq!((copy.kind(), copy.size()), (kind, vec![n]));
                assert!(copy.equal(&tensor.to_kind(kind)), "{n} {kind:?}");
            }
        }
        let steps = Tensor::from(7i64);
        let copy = download_by(&steps, Kind::Int64, 1).unwrap();
        assert_eq!((copy.size(), copy.int64_value(&[])), (vec![], 7));
        let matrix = Tensor::arange(15, (Kind::Float, Device::Cpu)).view([3, 5]).tr().set_requires_grad(true);
        let copy = download_by(&matrix, Kind::Float, 16).unwrap();
        assert!(copy.equal(&matrix) && copy.is_contiguous() && !copy.requires_grad());
        let _ = matrix.detach().fill_(0.0);
        assert_eq!(copy.double_value(&[4, 2]), 14.0);
    }

    #[test]
    fn asking_for_a_missing_device_says_why() {
        if matches!(open_cuda(), CudaStatus::Available { .. }) {
            return;
        }
        let text = DeviceChoice::Cuda(0).resolve().unwrap_err().to_string();
        assert!(text.contains("cpu") && (text.contains("setup.sh --cuda") || text.contains("nvidia-smi")), "{text}");
    }
}
