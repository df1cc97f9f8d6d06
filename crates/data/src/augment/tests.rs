use super::*;
use crate::{DataConfig, Dataset, Sampler};
use indicatif::ProgressBar;
use lcsc_torch::{Stream, latents, rng};
use tch::Kind;

const NONE: Augmentation =
    Augmentation { x_flip: false, y_flip: false, scale: 0.0, angle: 0.0, aniso: 0.0, axis: 0.0, shift: [0.0; 2] };

/// All transformations at once.
const ALL: Augmentation =
    Augmentation { x_flip: true, y_flip: true, scale: 0.7, angle: 0.6, aniso: 0.9, axis: 0.4, shift: [0.5, -0.8] };

/// A smooth picture without symmetry, [1,1,32,32]: no wave is shorter than 10 pixels.
fn smooth() -> Tensor {
    let at = Tensor::arange(32, (Kind::Float, Device::Cpu));
    let (y, x) = (at.view([1, 1, 32, 1]), at.view([1, 1, 1, 32]));
    (&x * 0.37 + &y * 0.21 + 0.3).sin() * 0.4 + (&y * 0.5 - &x * 0.25).cos() * 0.3 + &x * 0.01 - 0.2
}

fn pictures() -> Tensor {
    latents(0, Stream::Noise, 0, 4, [3, 8, 12], Device::Cpu).unwrap()
}

fn done(images: &Tensor, what: Augmentation) -> Tensor {
    apply(images, &vec![what; images.size()[0] as usize]).unwrap().0
}

/// The largest difference more than `margin` pixels from the edges.
fn difference(a: &Tensor, b: &Tensor, margin: i64) -> f64 {
    let inner =
        |t: &Tensor| (2..4).fold(t.shallow_clone(), |t, d| t.narrow(d, margin, t.size()[d as usize] - 2 * margin));
    (inner(a) - inner(b)).abs().max().double_value(&[])
}

#[test]
fn without_transformations_the_bits_stay() {
    let images = pictures();
    let axis_alone = Augmentation { axis: 1.0, ..NONE };
    let (same, labels) = apply(&images, &[NONE, axis_alone, Augmentation::default(), NONE]).unwrap();
    assert!(same.equal(&images) && labels.equal(&Tensor::zeros([4, AUGMENT_DIM], (Kind::Float, Device::Cpu))));
    // Carried out all the same, the identity is exact up to rounding: the filter is orthonormal.
    assert!(difference(&resample(&images, &[NONE; 4]).unwrap(), &images, 0) < 1e-5);
}

#[test]
fn flips_permute_pixels() {
    let images = pictures();
    let (x, y) = (Augmentation { x_flip: true, ..NONE }, Augmentation { y_flip: true, ..NONE });
    assert!(done(&images, x).equal(&images.flip([3])) && done(&images, y).equal(&images.flip([2])));
    assert!(done(&done(&images, x), x).equal(&images) && done(&done(&images, y), y).equal(&images));
    let (some, labels) = apply(&images, &[x, NONE, y, Augmentation { y_flip: true, ..x }]).unwrap();
    let expected = [images.get(0).flip([2]), images.get(1), images.get(2).flip([1]), images.get(3).flip([1, 2])];
    assert!(some.equal(&Tensor::stack(&expected, 0)));
    assert!(labels.narrow(1, 0, 2).equal(&Tensor::from_slice2(&[[1f32, 0.], [0., 0.], [0., 1.], [1., 1.]])));
}

#[test]
fn right_angles_and_whole_pixels_are_nearly_exact() {
    let image = smooth();
    let turned = |angle| done(&image, Augmentation { angle, ..NONE });
    // The filter's centre is tap 5.1, not 5: half a turn moves the picture by a tenth of a pixel, here as in EDM.
    assert!(difference(&turned(PI), &image.flip([2, 3]), 4) < 0.03);
    assert!(difference(&turned(PI / 2.0), &image.rot90(1, [2, 3]), 4) < 0.03); // torch: anticlockwise
    // 3 pixels to the right, 2 up; the rest is reflected at the edges.
    let moved = done(&image, Augmentation { shift: [3.0 / 4.0, -2.0 / 4.0], ..NONE });
    let padded = image.reflection_pad2d([3, 0, 0, 2]);
    assert!(difference(&moved, &padded.narrow(2, 2, 32).narrow(3, 0, 32), 0) < 2e-6);
}

#[test]
fn what_is_done_can_be_undone() {
    let image = smooth();
    let undone = |what, back, margin| {
        let there = done(&image, what);
        assert!(difference(&there, &image, margin) > 0.05);
        difference(&done(&there, back), &image, margin)
    };
    let turn = |angle| Augmentation { angle, ..NONE };
    assert!(undone(turn(0.5), turn(-0.5), 8) < 0.015);
    let scale = |scale| Augmentation { scale, ..NONE };
    assert!(undone(scale(-1.5), scale(1.5), 8) < 0.015);
    let shift = |x, y| Augmentation { shift: [x, y], ..NONE };
    assert!(undone(shift(0.6, -0.3), shift(-0.6, 0.3), 8) < 0.015);
    let stretch = |aniso| Augmentation { aniso, axis: 0.7, ..NONE };
    assert!(undone(stretch(1.2), stretch(-1.2), 8) < 0.015);
}

/// The map of (x, y) pixels from the centre, y downwards, of a 32×32 picture.
fn maps(what: Augmentation, [x, y]: [f64; 2]) -> [f64; 2] {
    what.affine(32, 32).map(|[a, b, c]| a * x + b * y + c)
}

fn close(a: [f64; 2], b: [f64; 2]) -> bool {
    (a[0] - b[0]).hypot(a[1] - b[1]) < 1e-12
}

#[test]
fn labels_tell_the_direction() {
    // The new picture has at … what the old one had at ….
    let right_and_down = Augmentation { shift: [1.0, 0.5], ..NONE };
    assert!(close(maps(right_and_down, [4.0, 2.0]), [0.0, 0.0]));
    let enlarged = Augmentation { scale: 5.0, ..NONE };
    assert!(close(maps(enlarged, [6.0, 4.0]), [3.0, 2.0]));
    let anticlockwise = Augmentation { angle: PI / 2.0, ..NONE };
    assert!(close(maps(anticlockwise, [0.0, -3.0]), [3.0, 0.0])); // the top was the right
    let stretched = Augmentation { aniso: 5.0, ..NONE };
    assert!(close(maps(stretched, [6.0, 3.0]), [3.0, 6.0]));
    let up_right = Augmentation { axis: PI / 4.0, ..stretched };
    assert!(close(maps(up_right, [2.0, -2.0]), [1.0, -1.0]) && close(maps(up_right, [2.0, 2.0]), [4.0, 4.0]));
    // Moved last, turned after it was stretched in the old axes: 2 below the centre was 4 below, then turns right.
    let both = Augmentation { angle: PI / 2.0, scale: 5.0, shift: [1.0, 0.0], ..NONE };
    assert!(close(maps(both, [10.0, 0.0]), [0.0, 3.0]));

    let (dot, moved) = (Tensor::zeros([1, 1, 32, 32], (Kind::Float, Device::Cpu)), Augmentation { angle: 0.0, ..both });
    _ = dot.get(0).get(0).get(10).get(12).fill_(1.0);
    let at = |t: &Tensor| t.argmax(None, false).int64_value(&[]);
    assert_eq!(at(&done(&dot, Augmentation { scale: 0.0, ..moved })), 10 * 32 + 16);
}

#[test]
fn labels_are_those_of_table_6() {
    let (sin, cos, r) = (0.6f64.sin(), 0.6f64.cos(), 0.4f64);
    assert_eq!(ALL.labels(), [1.0, 1.0, 0.7, cos - 1.0, sin, 0.9 * r.cos(), 0.9 * r.sin(), 0.5, -0.8]);
    assert_eq!(NONE.labels(), [0.0; 9]);
}

/// Values of EDM's own `AugmentPipe` (torch 2.11.0, CPU) for `ALL`, given its random numbers.
#[test]
fn results_are_those_of_edm() {
    let [c, y, x] = [(3, [3, 1, 1]), (8, [1, 8, 1]), (12, [1, 1, 12])]
        .map(|(n, shape): (i64, [i64; 3])| Tensor::arange(n, (Kind::Double, Device::Cpu)).view(shape));
    let image = (c * 1.3 + &y * 0.9 + &x * 0.5 + &x * &y * 0.13 + 0.7).sin();
    let (image, labels) = apply(&image.to_kind(Kind::Float).unsqueeze(0), &[ALL]).unwrap();
    for (at, expected) in EDM_PIXELS {
        let found = image.double_value(&at.map(i64::from));
        assert!((found - expected).abs() < 1e-5, "{at:?}: {found}, EDM {expected}");
    }
    let sums = [&image, &image.square()].map(|t| t.sum(Kind::Double).double_value(&[]));
    assert!((sums[0] + 1.4184529).abs() < 1e-4 && (sums[1] - 115.18329408).abs() < 1e-4, "{sums:?}");
    let expected = [1.0f32, 1.0, 0.7, -0.174664, 0.564642, 0.828955, 0.350477, 0.5, -0.8];
    assert!(labels.allclose(&Tensor::from_slice(&expected).view([1, 9]), 0.0, 1e-6, false));
}

const EDM_PIXELS: [([i32; 4], f64); 9] = [
    ([0, 0, 0, 0], 0.85591811),
    ([0, 0, 0, 11], -0.95952052),
    ([0, 0, 3, 5], -0.87371904),
    ([0, 0, 7, 0], 0.23650563),
    ([0, 1, 2, 8], 0.74955505),
    ([0, 1, 7, 11], 0.77074707),
    ([0, 2, 1, 3], -0.02116870),
    ([0, 2, 4, 6], -0.89044714),
    ([0, 2, 5, 10], -0.19136722),
];

#[test]
fn the_filter_is_sym6() {
    // Orthonormal to its shifts by two, and six vanishing moments of the wavelet that belongs to it.
    for shift in 0..6 {
        let dot: f64 = SYM6.iter().skip(2 * shift).zip(SYM6).map(|(a, b)| a * b).sum();
        assert!((dot - if shift == 0 { 1.0 } else { 0.0 }).abs() < 1e-11, "{shift}: {dot}");
    }
    for power in 0..6 {
        let moment = |k: i32| (f64::from(k) - 5.5).powi(power) * f64::from(1 - 2 * (k % 2));
        let sum: f64 = (0..12).zip(SYM6).map(|(k, tap)| moment(k) * tap).sum();
        assert!(sum.abs() < 1e-7, "{power}: {sum}");
    }
}

#[test]
fn an_image_does_not_depend_on_its_batch() {
    let (images, params) = (pictures(), [ALL, NONE, Augmentation { scale: -9.0, ..ALL }, ALL]);
    let (together, labels) = apply(&images, &params).unwrap();
    for i in 0..4 {
        let (alone, label) = apply(&images.narrow(0, i, 1), &params[i as usize..][..1]).unwrap();
        assert!(difference(&alone, &together.narrow(0, i, 1), 0) < 2e-6);
        assert!(label.equal(&labels.narrow(0, i, 1)));
    }
    assert!(together.get(1).equal(&images.get(1)));
    let sampler = Sampler::new(10, 3);
    let whole = sampler.augmentations(0, 50, 0.5);
    let chunked: Vec<_> = (0..10).flat_map(|i| sampler.augmentations(5 * i, 5, 0.5)).collect();
    assert_eq!(chunked, whole);
    assert_ne!(Sampler::new(10, 4).augmentations(0, 50, 0.5), whole);
}

#[test]
fn the_draws_are_part_of_the_format() {
    // Changed values would change every stored run. The first draw of the stream is that of `Sampler::flips`.
    let mut first = rng(0, Stream::Augment, 0);
    unit_f64(&mut first);
    let drawn = Augmentation::draw(&mut first, 1.0);
    assert_eq!(drawn, Sampler::new(8, 0).augmentations(0, 1, 1.0)[0]);
    let Augmentation { x_flip, y_flip, scale, angle, aniso, axis, shift: [x, y] } = drawn;
    assert!(x_flip && y_flip);
    for (found, expected) in [scale, angle, aniso, axis, x, y].into_iter().zip(FIRST_DRAWS) {
        assert!((found - expected).abs() < 1e-12, "{drawn:?}");
    }
}

const FIRST_DRAWS: [f64; 6] = [
    1.6070661426858417,
    -0.8001543864664132,
    -0.23818499265144516,
    -1.8419861134704971,
    -0.3530958680262933,
    1.401194144505587,
];

#[test]
fn transformations_come_with_their_probability() {
    let (n, p) = (20_000, 0.12);
    let drawn = Sampler::new(10, 0).augmentations(0, n, p);
    let share = |of: &dyn Fn(&Augmentation) -> bool| drawn.iter().filter(|a| of(a)).count() as f64 / n as f64;
    let near = |share: f64, expected: f64| assert!((share - expected).abs() < 0.01, "{share}, expected {expected}");
    near(share(&|a| a.x_flip), 0.5);
    near(share(&|a| a.y_flip), p / 2.0);
    near(share(&|a| a.scale != 0.0), p);
    near(share(&|a| a.angle != 0.0), p);
    near(share(&|a| a.aniso != 0.0), p);
    near(share(&|a| a.axis != 0.0), p / 2.0);
    near(share(&|a| a.shift[0] != 0.0), p);
    near(share(&|a| a.is_exact()), 0.88f64.powi(4));
    assert!(drawn.iter().all(|a| (a.shift[0] != 0.0) == (a.shift[1] != 0.0) && (a.axis == 0.0 || a.aniso != 0.0)));
    let flipped = Sampler::new(10, 0).flips(0, n);
    near(drawn.iter().zip(flipped).filter(|(a, flip)| a.x_flip == *flip).count() as f64 / n as f64, 0.5);

    let all = Sampler::new(10, 0).augmentations(0, n, 1.0);
    let mean = |of: &dyn Fn(&Augmentation) -> f64| all.iter().map(of).sum::<f64>() / n as f64;
    let normals: [&dyn Fn(&Augmentation) -> f64; 4] = [&|a| a.scale, &|a| a.aniso, &|a| a.shift[0], &|a| a.shift[1]];
    for of in normals {
        assert!(mean(of).abs() < 0.03 && (mean(&|a| of(a).powi(2)) - 1.0).abs() < 0.05);
    }
    assert!(mean(&|a| a.angle).abs() < 0.06 && (mean(&|a| a.angle.powi(2)) - PI * PI / 3.0).abs() < 0.1);
    assert!(mean(&|a| a.shift[0] * a.shift[1]).abs() < 0.03);
}

#[test]
fn batches_are_augmented_after_they_are_mirrored() {
    let open =
        |augment| Dataset::open(&DataConfig { xflip: true, augment, ..DataConfig::default() }, &ProgressBar::hidden());
    let batch = |augment| open(augment).unwrap().batch(&mut Sampler::new(1797, 2), 5, 20, Device::Cpu).unwrap();
    let (plain, augmented) = (batch(None), batch(Some(0.3)));
    let params = Sampler::new(1797, 2).augmentations(5, 20, 0.3);
    let (images, labels) = apply(&plain.images, &params).unwrap();
    assert!(plain.augment_labels.is_none() && augmented.images.equal(&images) && !images.equal(&plain.images));
    assert!(augmented.augment_labels.unwrap().equal(&labels));
    assert_eq!((images.size(), images.kind(), labels.size()), (vec![20, 1, 8, 8], Kind::Float, vec![20, AUGMENT_DIM]));
}
