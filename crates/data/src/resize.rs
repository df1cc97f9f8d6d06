//! Resizing with the very bits of Pillow's `Image.resize`, so that datasets and features equal those of Python.
//!
//! Each axis in turn, width before height, is a sum of pixels weighted by a filter that widens where it shrinks. Weights are
//! rounded to 22 fractional bits, sums to 8 bits after each axis. Pillow 13 takes the height first where an image shrinks more in
//! height; what is published was made with earlier versions, whose order is kept here.

use crate::picture::Picture;
use std::f64::consts::PI;
use std::ops::Range;

/// Fractional bits of a weight: what 32 leave beside 8 of a pixel and 2 for overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The filters of Pillow that go by these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The mean of the pixels below.
    Box,
    /// A triangle.
    Bilinear,
    /// Keys' cubic, a = −½.
    Bicubic,
    /// A sinc windowed by a sinc three times as wide.
    Lanczos,
}

impl Filter {
    /// Where it ends, in pixels from its centre.
    fn support(self) -> f64 {
        match self {
            Filter::Box => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn value(self, x: f64) -> f64 {
        let a = x.abs();
        match self {
            Filter::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Filter::Bilinear => (1.0 - a).max(0.0),
            Filter::Bicubic if a < 1.0 => (1.5 * a - 2.5) * a * a + 1.0,
            Filter::Bicubic if a < 2.0 => (((a - 5.0) * a + 8.0) * a - 4.0) * -0.5,
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Bicubic | Filter::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) }
}

/// A picture of `height`×`width`, neither of them 0.
pub fn resize(picture: &Picture, height: usize, width: usize, filter: Filter) -> Picture {
    let mut resized = picture.clone();
    if width != picture.width {
        resized = resize_rows(&resized, &weights(picture.width, width, filter));
    }
    if height != picture.height {
        resized = resize_columns(&resized, &weights(picture.height, height, filter));
    }
    resized
}

/// What one new pixel is made of.
struct Weights {
    /// The first old pixel.
    first: usize,
    /// Weights of the old pixels from there on.
    fixed: Vec<i32>,
}

impl Weights {
    /// The weighted sum of the pixels that lie `stride` apart, from `at` for old pixel 0 on.
    fn sum(&self, pixels: &[u8], at: usize, stride: usize) -> u8 {
        let pixels = pixels[at + self.first * stride..].iter().step_by(stride);
        let half = 1 << (PRECISION_BITS - 1);
        let sum: i32 = self.fixed.iter().zip(pixels).map(|(weight, &pixel)| weight * i32::from(pixel)).sum();
        ((sum + half) >> PRECISION_BITS).clamp(0, 255) as u8
    }
}

/// The weights that bring `old` pixels to `new`.
fn weights(old: usize, new: usize, filter: Filter) -> Vec<Weights> {
    let scale = old as f64 / new as f64;
    let widened = scale.max(1.0);
    let support = filter.support() * widened;
    let one = |i| {
        let center = (i as f64 + 0.5) * scale;
        // `as` cuts off below 0.
        let Range { start, end } = (center - support + 0.5) as usize..((center + support + 0.5) as usize).min(old);
        let value = |x: usize| filter.value((x as f64 - center + 0.5) * (1.0 / widened));
        let values: Vec<f64> = (start..end).map(value).collect();
        let total: f64 = values.iter().sum();
        Weights { first: start, fixed: values.iter().map(|v| fixed(v / total)).collect() }
    };
    (0..new).map(one).collect()
}

/// Rounded half away from zero.
fn fixed(weight: f64) -> i32 {
    (weight * f64::from(1 << PRECISION_BITS) + 0.5_f64.copysign(weight)) as i32
}

fn resize_rows(picture: &Picture, weights: &[Weights]) -> Picture {
    let channels = picture.channels;
    let rows = picture.pixels.chunks_exact(picture.width * channels);
    let new = |row| weights.iter().flat_map(move |w| (0..channels).map(move |c| w.sum(row, c, channels)));
    Picture { pixels: rows.flat_map(new).collect(), width: weights.len(), ..*picture }
}

fn resize_columns(picture: &Picture, weights: &[Weights]) -> Picture {
    let row = picture.width * picture.channels;
    let new = |w: &'_ Weights| (0..row).map(|at| w.sum(&picture.pixels, at, row)).collect::<Vec<_>>();
    Picture { pixels: weights.iter().flat_map(new).collect(), height: weights.len(), ..*picture }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pillow;

    #[test]
    fn every_filter_has_the_bits_of_pillow() {
        let filters = [Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos];
        for case in 0..8 {
            let picture = pillow(&format!("{case}.in"));
            for (filter, name) in filters.iter().zip(["box", "bilinear", "bicubic", "lanczos"]) {
                let expected = pillow(&format!("{case}.{name}"));
                assert!(resize(&picture, expected.height, expected.width, *filter) == expected, "{case} {name}");
            }
        }
    }
}
