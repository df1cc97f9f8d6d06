//! The kernel of the fused group norm beside libtorch's operations, on the stand-in, which compiles its text as C++.

use lcsc_tests::standin::is_inside;
use lcsc_torch::{Device, Kind, NormOperands, Tensor, fused_group_norm};

const GPU: Device = Device::Cuda(0);

/// What goes in: x `[B,C,H,W]`, weight and bias `[C]`, scale and shift `[B,C]`.
fn operands([b, c, h, w]: [i64; 4]) -> [Tensor; 5] {
    lcsc_torch::tch::manual_seed(0);
    let draw = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu));
    [draw(&[b, c, h, w]) * 2 + 0.5, draw(&[c]), draw(&[c]), draw(&[b, c]), draw(&[b, c])]
}

/// By libtorch's operations.
fn plain(t: &[Tensor; 5], groups: i64, modulated: bool, silu: bool) -> Tensor {
    let y = t[0].group_norm(groups, Some(&t[1]), Some(&t[2]), 1e-5, true);
    let [scale, shift] = [&t[3], &t[4]].map(|t| t.unsqueeze(2).unsqueeze(3));
    let y = if modulated { y * (scale + 1.0) + shift } else { y };
    if silu { y.silu() } else { y }
}

fn fused(t: &[Tensor; 5], groups: i64, modulated: bool, silu: bool) -> Tensor {
    let modulation = modulated.then_some([&t[3], &t[4]]);
    fused_with_dropout(t, groups, modulation, silu, 0.0)
}

fn fused_with_dropout(
    t: &[Tensor; 5],
    groups: i64,
    modulation: Option<[&Tensor; 2]>,
    silu: bool,
    dropout: f64,
) -> Tensor {
    fused_group_norm(&t[0], NormOperands { weight: &t[1], bias: &t[2], groups, eps: 1e-5, modulation, silu, dropout })
}

fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// y and the gradients of Σ y·direction by what went in.
fn results(compute: impl Fn(&[Tensor; 5]) -> Tensor, operands: &[Tensor; 5], modulated: bool) -> Vec<Tensor> {
    let leaves = operands.each_ref().map(|t| t.detach().set_requires_grad(true));
    let y = compute(&leaves);
    let direction = Tensor::arange(y.numel() as i64, (Kind::Float, Device::Cpu)).sin().view_as(&y).to(y.device());
    let sum = (&y * direction.to_kind(y.kind())).sum(Kind::Float);
    let asked = &leaves[..if modulated { 5 } else { 3 }];
    let mut all = vec![y];
    all.extend(Tensor::run_backward(&[&sum], asked, false, false));
    all.iter().map(|t| t.detach().to(Device::Cpu).to_kind(Kind::Double)).collect()
}

/// ‖a − b‖ / ‖b‖.
fn error(a: &Tensor, b: &Tensor) -> f64 {
    ((a - b).norm() / b.norm()).double_value(&[])
}

#[test]
fn values_and_gradients_are_those_of_libtorchs_operations() {
    if !is_inside("values_and_gradients_are_those_of_libtorchs_operations") {
        return;
    }
    // Fewer and more pixels than threads, widths that leave threads over, one group.
    for (size, groups) in [([2, 12, 5, 3], 4), ([3, 16, 16, 16], 2), ([1, 96, 4, 4], 32), ([2, 40, 2, 2], 1)] {
        let exact = operands(size);
        for (modulated, silu, last) in
            [(true, true, false), (true, true, true), (false, true, true), (false, false, false)]
        {
            for (kind, most) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2), (Kind::Half, 2e-3)] {
                let rounded = exact.each_ref().map(|t| t.to_kind(kind));
                let doubles = rounded.each_ref().map(|t| t.to_kind(Kind::Double));
                let mut inputs = rounded.each_ref().map(|t| t.to(GPU));
                if last {
                    inputs[0] = channels_last(&inputs[0]);
                }
                let expected = results(|t| plain(t, groups, modulated, silu), &doubles, modulated);
                let found = results(|t| fused(t, groups, modulated, silu), &inputs, modulated);
                let names = ["y", "x", "weight", "bias", "scale", "shift"];
                for ((name, found), expected) in names.into_iter().zip(&found).zip(&expected) {
                    let error = error(found, expected);
                    assert!(error < most, "{name} of {size:?}, {kind:?}, {modulated} {silu} {last}: {error}");
                }
            }
        }
        // The memory of a result is arranged as that of its input.
        let t = operands(size).map(|t| t.to(GPU));
        assert_eq!(fused(&t, groups, false, true).stride(), t[0].stride());
    }
}

#[test]
fn dropout_zeroes_its_share_of_the_values_and_of_the_gradient() {
    if !is_inside("dropout_zeroes_its_share_of_the_values_and_of_the_gradient") {
        return;
    }
    const P: f64 = 0.25;
    let exact = operands([4, 32, 16, 16]);
    let inputs = exact.each_ref().map(|t| t.to(GPU));
    let dropped = |t: &[Tensor; 5], seed| {
        lcsc_torch::tch::manual_seed(seed);
        fused_with_dropout(t, 8, Some([&t[3], &t[4]]), true, P)
    };
    let kept = |y: &Tensor| y.to(Device::Cpu).ne(0.0);
    let mask = kept(&dropped(&inputs, 1));
    let share = |of: &Tensor| of.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    // Five standard deviations of 32,768 draws, and of a quarter of them for two images.
    let is_near =
        |found: f64, expected: f64, width: f64| assert!((found - expected).abs() < width, "{found}, {expected}");
    is_near(share(&mask), 1.0 - P, 0.012);
    // As often alike as independent masks: another seed, another image, the next channel, the next pixel.
    let alike = (1.0 - P).powi(2) + P.powi(2);
    is_near(share(&mask.eq_tensor(&kept(&dropped(&inputs, 2)))), alike, 0.014);
    is_near(share(&mask.get(0).eq_tensor(&mask.get(1))), alike, 0.027);
    for dim in [1, 3] {
        let next = mask.roll([1], [dim]);
        is_near(share(&mask.eq_tensor(&next)), alike, 0.014);
    }
    // The same whatever the layout.
    let mut last = inputs.each_ref().map(Tensor::shallow_clone);
    last[0] = channels_last(&last[0]);
    assert_eq!(kept(&dropped(&last, 1)), mask);
    let doubles = exact.each_ref().map(|t| t.to_kind(Kind::Double));
    let expected = results(|t| plain(t, 8, true, true) * &mask / (1.0 - P), &doubles, true);
    for inputs in [&inputs, &last] {
        let found = results(|t| dropped(t, 1), inputs, true);
        for (found, expected) in found.iter().zip(&expected) {
            assert!(error(found, expected) < 1e-5, "{}", error(found, expected));
        }
    }
}
