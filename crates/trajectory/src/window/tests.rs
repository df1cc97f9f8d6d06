use super::*;
use crate::testing::{append, bits, layout, trajectory, trajectory_of};
use crate::{Manifest, one_hot, uniform};
use lcsc_torch::StorageDtype::{Bf16, F16, F32};
use lcsc_torch::{Init, LayoutBuilder};
use proptest::prelude::*;

mod refusals;

const PLACEMENTS: [Placement; 2] = [Placement::Device, Placement::Mapped];

fn load(run: &RunFolder, layout: &ParamLayout, placement: Placement) -> Result<Window> {
    let device_bytes = if placement == Placement::Device { u64::MAX } else { 0 };
    let memory = Memory { device: Device::Cpu, device_bytes, host_bytes: 0 };
    let window = Window::load(run, &Manifest::read(run)?, layout, memory)?;
    assert_eq!(window.placement(), placement);
    Ok(window)
}

fn window(run: &RunFolder, placement: Placement) -> Window {
    load(run, &layout(), placement).unwrap()
}

fn one() -> Partition {
    Partition::one(&layout())
}

/// `b` (three parameters) and `w` (four).
fn two() -> Partition {
    Partition::new(&layout(), vec!["bias".into(), "weight".into()], &[0, 1]).unwrap()
}

/// Tensors of two groups that are wider than a column block, and buffers between them.
fn wide() -> (ParamLayout, Partition) {
    let mut b = LayoutBuilder::default();
    for (name, shape) in [("a", 70_001), ("b", 200_003), ("d", 5), ("e", 300_000), ("f", 77)] {
        b.param(name, &[shape], Init::Normal(1.0));
    }
    for name in ["c", "eb"] {
        b.buffer(name, &[3], Init::Ones);
    }
    let layout = b.finish();
    let partition = Partition::new(&layout, vec!["x".into(), "y".into()], &[0, 0, 1, 1, 0]).unwrap();
    (layout, partition)
}

/// Random numbers in [−1,1), the same for each call with one seed.
fn coefficients(seed: i64, groups: usize, k: usize) -> Vec<Vec<f64>> {
    let value = |i: usize| ((seed * 7919 + i as i64 * 104_729) % 2003) as f64 / 1001.5 - 1.0;
    (0..groups).map(|g| (0..k).map(|i| value(g * k + i)).collect()).collect()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

/// The group of each parameter.
fn groups(partition: &Partition) -> Vec<usize> {
    partition.runs().iter().flat_map(|run| vec![run.group; run.len as usize]).collect()
}

/// θ by its definition, in f64.
fn expected(thetas: &[Tensor], partition: &Partition, alpha: &[Vec<f64>]) -> Vec<f64> {
    let rows: Vec<Vec<f64>> = thetas.iter().map(values).collect();
    let of = |(p, group): (usize, usize)| rows.iter().zip(&alpha[group]).map(|(row, a)| a * row[p]).sum();
    groups(partition).into_iter().enumerate().map(of).collect()
}

/// W·g by its definition, in f64.
fn expected_projection(thetas: &[Tensor], partition: &Partition, g: &Tensor) -> Vec<Vec<f64>> {
    let (g, groups) = (values(g), groups(partition));
    let mut sums = vec![vec![0.0; thetas.len()]; partition.len()];
    for (i, row) in thetas.iter().map(values).enumerate() {
        row.iter().zip(&g).zip(&groups).for_each(|((w, g), &group)| sums[group][i] += w * g);
    }
    sums
}

fn close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance, "{found} instead of {expected}");
    }
}

#[test]
fn one_hot_gives_the_checkpoint_bit_for_bit() {
    for dtype in [F32, Bf16, F16] {
        let (_temp, run, thetas) = trajectory(4, dtype);
        for placement in PLACEMENTS {
            let window = window(&run, placement);
            for (i, theta) in thetas.iter().enumerate() {
                let merged = window.merge(&one(), &[one_hot(4, i)]).unwrap();
                assert_eq!((merged.kind(), merged.size()), (Kind::Float, vec![7]));
                assert_eq!(bits(&merged), bits(theta));
                assert_eq!(bits(&merged)[0], (-0f32).to_bits());
            }
        }
    }
}

#[test]
fn each_group_may_be_of_another_checkpoint() {
    let (_temp, run, thetas) = trajectory(3, F32);
    for placement in PLACEMENTS {
        let merged = window(&run, placement).merge(&two(), &[one_hot(3, 2), one_hot(3, 0)]).unwrap();
        assert_eq!(bits(&merged)[..3], bits(&thetas[2])[..3]);
        assert_eq!(bits(&merged)[3..], bits(&thetas[0])[3..]);
        let mixed = window(&run, placement).merge(&two(), &[one_hot(3, 1), vec![0.5, 0.25, 2.0]]).unwrap();
        assert_eq!(bits(&mixed)[..3], bits(&thetas[1])[..3]);
        let weights = expected(&thetas, &two(), &[vec![0.0; 3], vec![0.5, 0.25, 2.0]]);
        close(&values(&mixed)[3..], &weights[3..], 1e-6);
    }
}

#[test]
fn a_merged_model_may_change_without_changing_the_window() {
    let (_temp, run, thetas) = trajectory(2, F32);
    let window = window(&run, Placement::Device);
    let last = [one_hot(2, 1)];
    let _ = window.merge(&one(), &last).unwrap().fill_(9.0);
    assert_eq!(bits(&window.merge(&one(), &last).unwrap()), bits(&thetas[1]));
}

#[test]
fn merging_is_linear_in_every_group() {
    let (_temp, run, thetas) = trajectory(5, F32);
    let rows = [vec![0.5, -2.0, 6.0, -4.0, 0.5], vec![0.3, 0.0, 0.9, -0.2, 0.0], uniform(5), vec![0.0; 5]];
    for placement in PLACEMENTS {
        let window = window(&run, placement);
        for (i, row) in rows.iter().enumerate() {
            let all = [row.clone()];
            close(&values(&window.merge(&one(), &all).unwrap()), &expected(&thetas, &one(), &all), 1e-5);
            let each = [row.clone(), rows[(i + 1) % 4].clone()];
            close(&values(&window.merge(&two(), &each).unwrap()), &expected(&thetas, &two(), &each), 1e-5);
        }
    }
}

#[test]
fn rows_of_several_types_are_merged_in_f32() {
    let (_temp, run, thetas) = trajectory_of(&layout(), &[Bf16, Bf16, F16, Bf16, F32]);
    let alpha = [vec![0.3, -0.5, 0.4, 0.7, 0.1], vec![0.0, 0.25, 1.5, 0.0, -0.75]];
    for placement in PLACEMENTS {
        let window = window(&run, placement);
        close(&values(&window.merge(&two(), &alpha).unwrap()), &expected(&thetas, &two(), &alpha), 1e-6);
        for (i, theta) in thetas.iter().enumerate() {
            assert_eq!(bits(&window.merge(&one(), &[one_hot(5, i)]).unwrap()), bits(theta));
        }
    }
}

#[test]
fn only_what_fits_is_held_and_half_types_take_half() {
    let (_temp, run, _) = trajectory_of(&layout(), &[Bf16, Bf16, F32]);
    let checkpoints = Manifest::read(&run).unwrap();
    for (device_bytes, placement) in [(7 * 8, Placement::Device), (7 * 8 - 1, Placement::Mapped)] {
        let memory = Memory { device: Device::Cpu, device_bytes, host_bytes: u64::MAX };
        assert_eq!(Window::load(&run, &checkpoints, &layout(), memory).unwrap().placement(), placement);
    }
}

#[test]
fn vectors_of_many_column_blocks_are_merged_and_projected() {
    let (layout, partition) = wide();
    let (_temp, run, thetas) = trajectory_of(&layout, &[Bf16, Bf16, Bf16, Bf16, Bf16, Bf16, F32, F32]);
    let g = layout.init(99, Device::Cpu).unwrap().theta;
    let [held, mapped] = PLACEMENTS.map(|placement| load(&run, &layout, placement).unwrap());
    let alphas: Vec<_> = (0..3).map(|seed| coefficients(seed, 2, 8)).collect();
    let alphas: Vec<&[Vec<f64>]> = alphas.iter().map(Vec::as_slice).collect();
    let merged = held.merge_many(&partition, &alphas).unwrap();
    assert!(merged.equal(&mapped.merge_many(&partition, &alphas).unwrap()));
    for (row, alpha) in (0..).zip(&alphas) {
        assert!(merged.get(row).equal(&held.merge(&partition, alpha).unwrap()));
        close(&values(&merged.get(row)), &expected(&thetas, &partition, alpha), 2e-6);
    }
    let parts = [one_hot(8, 1), one_hot(8, 7)];
    let copied = expected(&thetas, &partition, &parts);
    assert!(values(&held.merge(&partition, &parts).unwrap()) == copied);
    assert!(values(&mapped.merge(&partition, &parts).unwrap()) == copied);
    let projected = held.project(&partition, &g).unwrap();
    assert_eq!(projected, mapped.project(&partition, &g).unwrap());
    for (found, expected) in projected.iter().zip(expected_projection(&thetas, &partition, &g)) {
        close(found, &expected, 1e-8);
    }
}

#[test]
fn candidates_are_merged_together_as_they_are_alone() {
    let (_temp, run, thetas) = trajectory_of(&layout(), &[Bf16, Bf16, Bf16, F32, F32]);
    let mut alphas: Vec<_> = (0..9).map(|seed| coefficients(seed, 2, 5)).collect();
    alphas[2] = vec![one_hot(5, 3), one_hot(5, 0)];
    alphas[5] = vec![vec![0.0; 5], vec![0.5, 0.0, 0.0, 0.0, 0.5]];
    let alphas: Vec<&[Vec<f64>]> = alphas.iter().map(Vec::as_slice).collect();
    for placement in PLACEMENTS {
        let window = window(&run, placement);
        let merged = window.merge_many(&two(), &alphas).unwrap();
        assert_eq!(merged.size(), [9, 7]);
        for (row, alpha) in (0..).zip(&alphas) {
            assert_eq!(bits(&merged.get(row)), bits(&window.merge(&two(), alpha).unwrap()));
            close(&values(&merged.get(row)), &expected(&thetas, &two(), alpha), 1e-6);
        }
        assert_eq!(bits(&merged.get(2))[..3], bits(&thetas[3])[..3]);
        assert_eq!(bits(&merged.get(2))[3..], bits(&thetas[0])[3..]);
        assert_eq!(window.merge_many(&two(), &[]).unwrap().size(), [0, 7]);
    }
}

/// A trajectory of three with a fourth of NaN in `w`, after the first.
fn with_nan() -> (tempfile::TempDir, RunFolder, Vec<Tensor>) {
    let (temp, run, mut thetas) = trajectory(3, F32);
    let weights = layout().init(9, Device::Cpu).unwrap();
    let _ = weights.theta.get(3).fill_(f64::NAN);
    append(&run, &layout(), 150, F32, &weights);
    thetas.insert(1, weights.theta);
    (temp, run, thetas)
}

#[test]
fn rows_with_coefficient_zero_take_no_part() {
    let (_temp, run, mut thetas) = with_nan();
    let (without, bias_only) = (vec![vec![0.5, 0.0, 0.25, 0.25]; 2], vec![vec![0.5, 3.0, 0.25, 0.25], uniform(4)]);
    for placement in PLACEMENTS {
        let window = window(&run, placement);
        assert_eq!(window.checkpoints().iter().map(|c| c.nimg).collect::<Vec<_>>(), [100, 150, 200, 300]);
        let merged = window.merge_many(&two(), &[&without, &bias_only, &without]).unwrap();
        assert!(merged.get(1).get(3).double_value(&[]).is_nan());
        let zeroed = Tensor::nan_to_num(&thetas[1], 0.0, None, None);
        thetas[1] = zeroed;
        for row in [0, 2] {
            close(&values(&merged.get(row)), &expected(&thetas, &two(), &without), 1e-6);
        }
        close(&values(&merged.get(1))[..3], &expected(&thetas, &two(), &bias_only)[..3], 1e-6);
        let alone = window.merge(&two(), &[bias_only[0].clone(), without[1].clone()]).unwrap();
        close(&values(&alone), &expected(&thetas, &two(), &[bias_only[0].clone(), without[1].clone()]), 1e-6);
    }
}

#[test]
fn only_the_entries_of_a_row_that_is_not_finite_are_not_finite() {
    let (_temp, run, thetas) = with_nan();
    let g = layout().init(5, Device::Cpu).unwrap().theta;
    for placement in PLACEMENTS {
        let mut projected = window(&run, placement).project(&two(), &g).unwrap();
        let mut expected = expected_projection(&thetas, &two(), &g);
        assert!(projected[1].remove(1).is_nan() && expected[1].remove(1).is_nan());
        projected.iter().zip(&expected).for_each(|(found, expected)| close(found, expected, 1e-12));
    }
}

#[test]
fn the_projection_is_the_derivative_by_the_coefficients() {
    let (_temp, run, thetas) = trajectory_of(&layout(), &[Bf16, Bf16, F32]);
    let windows = PLACEMENTS.map(|placement| window(&run, placement));
    proptest!(|(seed in 0u64..1000, g_seed in 0u64..1000)| {
        let g = layout().init(g_seed, Device::Cpu).unwrap().theta;
        let alpha = coefficients(seed as i64, 2, 3);
        for window in &windows {
            let projected = window.project(&two(), &g).unwrap();
            projected.iter().zip(expected_projection(&thetas, &two(), &g)).for_each(|(a, b)| close(a, &b, 1e-12));
            // ⟨project(g), α⟩ = ⟨g, merge(α)⟩
            let left: f64 = projected.iter().flatten().zip(alpha.iter().flatten()).map(|(d, a)| d * a).sum();
            let merged = values(&window.merge(&two(), &alpha).unwrap());
            let right: f64 = merged.iter().zip(values(&g)).map(|(t, g)| t * g).sum();
            prop_assert!((left - right).abs() < 1e-5, "{left} and {right}");
        }
    });
}

#[test]
fn merged_weights_have_the_shared_buffers() {
    let (_temp, run, thetas) = trajectory(2, Bf16);
    let window = window(&run, Placement::Device);
    let weights = window.weights(&one(), &[one_hot(2, 0)]).unwrap();
    assert!(weights.theta.equal(&thetas[0]));
    assert!(weights.buffers[0].equal(&layout().init(0, Device::Cpu).unwrap().buffers[0]));
    assert!(window.with_theta(thetas[1].shallow_clone()).theta.equal(&thetas[1]));
}
