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
    fused_group_norm(&t[0], NormOperands { weight: &t[1], bias: &t[2], groups, eps: 1e-5, modulation, silu })
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
                    inputs[0] = inputs[0].permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
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
