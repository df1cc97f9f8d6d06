//! EDM's augmentation of training images, and the labels that tell the network what was done to each.
//!
//! Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", appendix F.2 and table 6:
//! flips, then one affine map an image. The map is carried out as in Karras et al. 2020, "Training generative
//! adversarial networks with limited data", appendix B: reflected at the edges, upsampled, sampled, downsampled.

use lcsc_torch::{Result, standard_normal, unit_f64, upload};
use rand_core::Rng;
use std::f64::consts::PI;
use tch::{Device, Tensor};

/// Number of augmentation labels: the network needs `augment_dim` of this size.
pub const AUGMENT_DIM: i64 = 9;

/// What a unit of `scale` or `aniso` enlarges, in octaves.
const OCTAVES: f64 = 0.2;
/// What a unit of `shift` moves, in widths and heights.
const SHIFT: f64 = 0.125;

/// The low-pass filter of the wavelet sym6 (Daubechies 1992, "Ten lectures on wavelets", section 8.1.1). Its shifts by
/// two are orthonormal, so downsampling undoes upsampling. Tap 5 is the one that lies on a pixel.
const SYM6: [f64; 12] = [
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
];

/// What is done to one image, in this order; the default is nothing. In comments w is what the paper calls so.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Augmentation {
    /// Mirrored left to right.
    pub x_flip: bool,
    /// Mirrored top to bottom.
    pub y_flip: bool,
    /// Enlarged 2^(0.2·w) times.
    pub scale: f64,
    /// Turned anticlockwise by w, in radians.
    pub angle: f64,
    /// Stretched 2^(0.2·w) times along an axis, and shrunk as much across it.
    pub aniso: f64,
    /// That axis, in radians anticlockwise from the x axis.
    pub axis: f64,
    /// Moved right by 0.125·w widths, down by 0.125·w heights.
    pub shift: [f64; 2],
}

impl Augmentation {
    /// Draws each transformation with probability `p` (table 6). As in EDM's training, the x-flip is apart from that:
    /// each image is mirrored with probability ½. Always takes the same number of draws, so that the transformations of
    /// a smaller `p` are some of those of a larger one.
    pub fn draw(rng: &mut impl Rng, p: f64) -> Augmentation {
        let pick = |given: bool, w: f64| if given { w } else { 0.0 };
        let x_flip = unit_f64(rng) < 0.5;
        let y_flip = unit_f64(rng) < 0.5 * p; // with probability p a fair coin is thrown
        let scale = pick(unit_f64(rng) < p, standard_normal(rng));
        let angle = pick(unit_f64(rng) < p, any_angle(rng));
        let (given, slanted) = (unit_f64(rng) < p, unit_f64(rng) < 0.5);
        let aniso = pick(given, standard_normal(rng));
        let axis = pick(given && slanted, any_angle(rng));
        let given = unit_f64(rng) < p;
        let shift = [0; 2].map(|_| pick(given, standard_normal(rng)));
        Augmentation { x_flip, y_flip, scale, angle, aniso, axis, shift }
    }

    /// What the network is told, zero where nothing is done (table 6): x-flip, y-flip, scale, rotation (cos w − 1,
    /// sin w), anisotropy (w cos r, w sin r), translation (x, y).
    pub fn labels(&self) -> [f64; AUGMENT_DIM as usize] {
        let flips = [self.x_flip, self.y_flip].map(|flip| f64::from(u8::from(flip)));
        let (sin, cos) = self.angle.sin_cos();
        let (sin_r, cos_r) = self.axis.sin_cos();
        let aniso = [self.aniso * cos_r, self.aniso * sin_r];
        [flips[0], flips[1], self.scale, cos - 1.0, sin, aniso[0], aniso[1], self.shift[0], self.shift[1]]
    }

    /// The two rows of the affine map from a place in the new image to the one in the old image whose value it takes.
    /// Places are (x, y, 1) in pixels from the centre, y downwards.
    pub fn affine(&self, height: i64, width: i64) -> [[f64; 3]; 2] {
        // A = S(1/s) R(w) R(−r) diag(1/a, a) R(r), each the inverse of what is done, and x ↦ A(x − t).
        let (shrink, squeeze) = ((-OCTAVES * self.scale).exp2(), (-OCTAVES * self.aniso).exp2());
        let (along, across) = (shrink * squeeze, shrink / squeeze);
        let (sin, cos) = (self.angle - self.axis).sin_cos();
        let (sin_r, cos_r) = self.axis.sin_cos();
        let (tx, ty) = (SHIFT * self.shift[0] * width as f64, SHIFT * self.shift[1] * height as f64);
        [[cos * along, -sin * across], [sin * along, cos * across]].map(|[u, v]| {
            let [x, y] = [u * cos_r + v * sin_r, v * cos_r - u * sin_r];
            [x, y, -(x * tx + y * ty)]
        })
    }

    /// Whether pixels keep their values and are flipped at most.
    fn is_exact(&self) -> bool {
        let Self { x_flip: _, y_flip: _, scale, angle, aniso, axis: _, shift } = *self;
        [scale, angle, aniso, shift[0], shift[1]] == [0.0; 5]
    }
}

/// Uniform in [−π, π).
fn any_angle(rng: &mut impl Rng) -> f64 {
    PI * (2.0 * unit_f64(rng) - 1.0)
}

/// Augments f32 [B,C,H,W] as the B `params` say; the second result are their labels, f32 [B,9]. Images of which none
/// but flips are asked keep the bits of their pixels.
///
/// # Errors
/// The device has no room: some 40 times the size of those images that are more than flipped is needed for a moment.
pub(crate) fn apply(images: &Tensor, params: &[Augmentation]) -> Result<(Tensor, Tensor)> {
    let device = images.device();
    let labels: Vec<f32> = params.iter().flat_map(|p| p.labels().map(|label| label as f32)).collect();
    let labels = upload(&Tensor::f_from_slice(&labels)?.f_view([-1, AUGMENT_DIM])?, device)?;
    let flips: (Vec<bool>, Vec<bool>) = params.iter().map(|p| (p.x_flip, p.y_flip)).unzip();
    let images = mirror(&mirror(images, 3, &flips.0)?, 2, &flips.1)?;
    let (at, moving): (Vec<i64>, Vec<Augmentation>) = (0..).zip(params).filter(|(_, p)| !p.is_exact()).unzip();
    if at.is_empty() {
        return Ok((images, labels));
    }
    let at = upload(&Tensor::f_from_slice(&at)?, device)?;
    let moved = resample(&images.f_index_select(0, &at)?, &moving)?;
    Ok((images.f_index_copy(0, &at, &moved)?, labels))
}

/// Flips those images of any [B,C,H,W] that are `chosen` (B of them) along a dimension.
///
/// # Errors
/// The device has no room.
pub(crate) fn mirror(images: &Tensor, dim: i64, chosen: &[bool]) -> Result<Tensor> {
    let chosen = upload(&Tensor::f_from_slice(chosen)?.f_view([-1, 1, 1, 1])?, images.device())?;
    Ok(images.f_flip([dim])?.f_where_self(&chosen, images)?)
}

/// Carries out the affine maps on f32 [B,C,H,W].
fn resample(images: &Tensor, params: &[Augmentation]) -> Result<Tensor> {
    let (_, _, h, w) = images.size4()?;
    let device = images.device();
    let fine = separable(&upsampling(h, device)?, images, &upsampling(w, device)?)?; // [B,C,6H−4,6W−4]
    let (bilinear, zeros, align_corners) = (0, 0, true);
    let fine = fine.f_grid_sampler_2d(&grid(params, h, w, device)?, bilinear, zeros, align_corners)?; // [B,C,2H+10,2W+10]
    separable(&downsampling(h, device)?, &fine, &downsampling(w, device)?)
}

/// `rows` [H',H] · images [B,C,H,W] · `cols`ᵀ [W,W']: a linear map of each column, and one of each row.
fn separable(rows: &Tensor, images: &Tensor, cols: &Tensor) -> Result<Tensor> {
    Ok(rows.f_matmul(&images.f_matmul(&cols.f_tr()?)?)?)
}

/// Reflects n pixels at both edges (which are not repeated) to 3n−2, and upsamples these by two: f32 [6n−4,n].
fn upsampling(n: i64, device: Device) -> Result<Tensor> {
    let (last, fine) = (n - 1, 6 * n - 4);
    let mut map = vec![0f32; (fine * n) as usize];
    for (j, place) in (-last..=2 * last).enumerate() {
        let pixel = place.abs().min(2 * last - place.abs());
        for (k, tap) in (2 * j as i64 - 5..).zip(SYM6) {
            if (0..fine).contains(&k) {
                map[(k * n + pixel) as usize] += tap as f32;
            }
        }
    }
    upload(&Tensor::f_from_slice(&map)?.f_view([fine, n])?, device)
}

/// Downsamples by two to n pixels, the transpose of upsampling: f32 [n,2n+10]. The first of the 2n+10 samples lies 5
/// before that of the first pixel.
fn downsampling(n: i64, device: Device) -> Result<Tensor> {
    let fine = 2 * n + 10;
    let mut map = vec![0f32; (n * fine) as usize];
    for (i, row) in map.chunks_exact_mut(fine as usize).enumerate() {
        row[2 * i..2 * i + 12].copy_from_slice(&SYM6.map(|tap| tap as f32));
    }
    upload(&Tensor::f_from_slice(&map)?.f_view([n, fine])?, device)
}

/// Where the samples to be downsampled are taken from the upsampled images, (x, y) from −1 (first) to 1 (last):
/// f32 [B,2H+10,2W+10,2].
fn grid(params: &[Augmentation], h: i64, w: i64, device: Device) -> Result<Tensor> {
    // u pixels right of the centre is sample 2(u + (3n−3)/2) of 6n−4.
    let scaled = |[x, y, t]: [f64; 3], n: i64| [4.0 * x, 4.0 * y, 4.0 * t - 1.0].map(|a| a / (6 * n - 5) as f64);
    let rows = params.iter().map(|p| p.affine(h, w)).flat_map(|[x, y]| [scaled(x, w), scaled(y, h)]);
    let rows: Vec<f32> = rows.flatten().map(|a| a as f32).collect();
    let rows = upload(&Tensor::f_from_slice(&rows)?.f_view([-1, 1, 1, 2, 3])?, device)?;
    let places = |n: i64| (-5..2 * n + 5).map(|k| (k - n + 1) as f32 / 2.0).collect::<Vec<_>>();
    let x = upload(&Tensor::f_from_slice(&places(w))?.f_view([1, 1, -1, 1])?, device)?;
    let y = upload(&Tensor::f_from_slice(&places(h))?.f_view([1, -1, 1, 1])?, device)?;
    let [along_x, along_y, origin] = [0, 1, 2].map(|i| rows.select(-1, i)); // each [B,1,1,2]
    Ok(x.f_mul(&along_x)?.f_add(&y.f_mul(&along_y)?)?.f_add(&origin)?)
}

#[cfg(test)]
mod tests;
