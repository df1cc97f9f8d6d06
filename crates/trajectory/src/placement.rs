//! Where the checkpoints of a window are held.

use lcsc_torch::Device;
use std::fmt;

/// Where to merge, and how much memory checkpoints may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Computes all products and holds their results.
    pub device: Device,
    /// Bytes of the device's memory for checkpoints.
    pub device_bytes: u64,
    /// Bytes of the computer's memory for checkpoints, where the device is another.
    pub host_bytes: u64,
}

/// Where the checkpoints of a window are held between merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// In the memory of the device that merges.
    Device,
    /// In the computer's memory; they go to the device in column blocks.
    Host,
    /// In their files, mapped into memory and read in column blocks.
    Mapped,
}

impl Placement {
    /// Where checkpoints of so many `bytes` together go: the first place in which they fit.
    pub fn of(bytes: u64, memory: Memory) -> Self {
        let Memory { device, device_bytes, host_bytes } = memory;
        if bytes <= device_bytes {
            Self::Device
        } else if device != Device::Cpu && bytes <= host_bytes {
            Self::Host
        } else {
            Self::Mapped
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "held on the device",
            Self::Host => "held in host memory",
            Self::Mapped => "streamed from mapped files",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_go_to_the_first_place_that_holds_them() {
        let on = |device, bytes| Placement::of(bytes, Memory { device, device_bytes: 100, host_bytes: 1000 });
        for (bytes, cuda, cpu) in [
            (100, Placement::Device, Placement::Device),
            (101, Placement::Host, Placement::Mapped),
            (1000, Placement::Host, Placement::Mapped),
            (1001, Placement::Mapped, Placement::Mapped),
        ] {
            assert_eq!((on(Device::Cuda(0), bytes), on(Device::Cpu, bytes)), (cuda, cpu), "{bytes} bytes");
        }
    }
}
