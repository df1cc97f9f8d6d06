//! Changes of resolution by two.

use lcsc_torch::{BufferId, Device, Init, Kind, LayoutBuilder, Params, Tensor};

/// The direction of a change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    Up,
    Down,
}

/// A change with a separable filter, whose taps are a buffer.
pub struct Filter {
    direction: Resample,
    taps: BufferId,
    size: i64,
    /// [1,1]: pixels are repeated or averaged, which is faster than to convolve.
    is_box: bool,
}

impl Filter {
    pub fn new(b: &mut LayoutBuilder, name: &str, direction: Resample, taps: &[f64]) -> Self {
        let sum: f64 = taps.iter().sum();
        let outer = taps.iter().flat_map(|a| taps.iter().map(move |c| (a * c / (sum * sum)) as f32)).collect();
        let size = taps.len() as i64;
        let id = b.buffer(format!("{name}.resample_filter"), &[1, 1, size, size], Init::Fixed(outer));
        Self { direction, taps: id, size, is_box: taps == [1.0, 1.0] }
    }

    pub fn pad(&self) -> i64 {
        (self.size - 1) / 2
    }

    /// Whether it only repeats pixels.
    pub fn repeats(&self) -> bool {
        self.is_box && self.direction == Resample::Up
    }

    /// [B,C,H,W] → [B,C,2H,2W] or [B,C,H/2,W/2], zero-padded by `pad`.
    pub fn forward(&self, p: &Params, x: &Tensor, pad: i64) -> Tensor {
        let c = x.size()[1];
        if self.is_box {
            return match self.direction {
                Resample::Up => repeat_pixels(x),
                Resample::Down => average_pixels(x),
            };
        }
        let taps = p[self.taps].to_kind(x.kind()).tile([c, 1, 1, 1]);
        let none = None::<&Tensor>;
        match self.direction {
            Resample::Up => x.conv_transpose2d(&(taps * 4.0), none, [2, 2], [pad, pad], [0, 0], c, [1, 1]),
            Resample::Down => x.conv2d(&taps, none, [2, 2], [pad, pad], [1, 1], c),
        }
    }
}

/// Each pixel four times: [B,C,H,W] → [B,C,2H,2W].
pub fn repeat_pixels(x: &Tensor) -> Tensor {
    let (b, c, h, w) = size4(x);
    if x.device() != Device::Cpu {
        return x.upsample_nearest2d([2 * h, 2 * w], None, None);
    }
    x.reshape([-1, w]).matmul(&repeating(w, x.kind())).view([b, c, 2 * h, 2 * w])
}

/// Means of 2×2 pixels: [B,C,2H,2W] → [B,C,H,W].
fn average_pixels(x: &Tensor) -> Tensor {
    let (b, c, h, w) = size4(x);
    if x.device() != Device::Cpu {
        return x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None);
    }
    x.reshape([-1, 2 * w]).matmul(&(repeating(w / 2, x.kind()) * 0.25).tr()).view([b, c, h / 2, w / 2])
}

/// What a row of pixels is multiplied with to give two rows [W,4W] in which each stands twice. On a CPU such a product is
/// several times as fast as libtorch's kernels for small images.
fn repeating(width: i64, kind: Kind) -> Tensor {
    Tensor::eye(width, (kind, Device::Cpu)).repeat_interleave_self_int(2, 1, None).tile([1, 2])
}

pub fn size4(x: &Tensor) -> (i64, i64, i64, i64) {
    let s = x.size();
    (s[0], s[1], s[2], s[3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::{Stream, latents};

    #[test]
    fn pixels_are_repeated_and_averaged_as_libtorch_does() {
        for [c, h, w] in [[3, 2, 4], [5, 8, 8], [2, 32, 16]] {
            let x = latents(0, Stream::Noise, 0, 3, [c, h, w], Device::Cpu).unwrap();
            for x in [x.shallow_clone(), x.contiguous().transpose(2, 3)] {
                let (_, _, h, w) = size4(&x);
                assert!(repeat_pixels(&x).equal(&x.upsample_nearest2d([2 * h, 2 * w], None, None)));
                let error = average_pixels(&x) - x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None);
                assert!(error.abs().max().double_value(&[]) < 1e-6);
            }
        }
    }
}
