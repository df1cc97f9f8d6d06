//! EMA profiles as coefficients α over saved checkpoints: starting points and baselines of the search.
//!
//! Checkpoint i at time t_i stands for the interval (t_{i−1}, t_i], with t_0 = max(0, 2t_1 − t_2); its coefficient is the
//! profile's integral over it. Times ascend. All profiles are non-negative and sum to one: the largest coefficient is one
//! minus the others.

use crate::sigma_rel_to_gamma;

/// The power-function EMA of width `sigma_rel` that ends at the last time: α_i ∝ t_i^{γ+1} − t_{i−1}^{γ+1} (EDM2,
/// arXiv 2312.02696).
pub fn power_function_profile(times: &[f64], sigma_rel: f64) -> Vec<f64> {
    let end = times.last().copied().unwrap_or(0.0);
    let exponent = sigma_rel_to_gamma(sigma_rel) + 1.0;
    // Shares of the whole: powers of the times themselves would overflow.
    let share = |t: f64| (t / end).powf(exponent);
    normalised(intervals(times).map(|(begin, t)| share(t) - share(begin)).collect())
}

/// The exponential EMA of this half-life, in the unit of `times`, that ends at the last time:
/// α_i ∝ 2^{−(t_K−t_i)/h} − 2^{−(t_K−t_{i−1})/h}.
pub fn half_life_profile(times: &[f64], half_life: f64) -> Vec<f64> {
    let end = times.last().copied().unwrap_or(0.0);
    let rate = std::f64::consts::LN_2 / half_life.max(1e-8);
    // expm1 keeps the digits of short intervals.
    let weight = |(begin, t): (f64, f64)| -(-rate * (end - t)).exp() * (-rate * (t - begin)).exp_m1();
    normalised(intervals(times).map(weight).collect())
}

/// Each of `k` checkpoints alike.
pub fn uniform(k: usize) -> Vec<f64> {
    normalised(vec![1.0; k])
}

/// Checkpoint `i` of `k` alone.
pub fn one_hot(k: usize, i: usize) -> Vec<f64> {
    (0..k).map(|j| if j == i { 1.0 } else { 0.0 }).collect()
}

/// Begin and end of the interval each checkpoint stands for.
fn intervals(times: &[f64]) -> impl Iterator<Item = (f64, f64)> {
    let first = match times {
        [t1, t2, ..] => (2.0 * t1 - t2).max(0.0),
        _ => 0.0,
    };
    std::iter::once(first).chain(times.iter().copied()).zip(times.iter().copied())
}

/// Scales to sum one; weights that are all zero (or none at all) give the last checkpoint.
fn normalised(weights: Vec<f64>) -> Vec<f64> {
    let k = weights.len();
    let sum: f64 = weights.iter().sum();
    if !sum.is_normal() {
        return one_hot(k, k.wrapping_sub(1));
    }
    let mut alpha: Vec<f64> = weights.iter().map(|w| w / sum).collect();
    if let Some(largest) = (0..k).max_by(|&i, &j| alpha[i].total_cmp(&alpha[j])) {
        alpha[largest] = 0.0;
        alpha[largest] = 1.0 - alpha.iter().sum::<f64>();
    }
    alpha
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power_function_beta;
    use proptest::prelude::*;

    /// 1 to 40 ascending times, far from and near to zero, some of them equal.
    fn times() -> impl Strategy<Value = Vec<f64>> {
        (0.0..1e9, prop::collection::vec(prop_oneof![Just(0.0), 1.0..1e6], 1..40)).prop_map(|(start, steps)| {
            let mut t = start;
            steps
                .into_iter()
                .map(|step| {
                    t += step;
                    t
                })
                .collect()
        })
    }

    fn is_profile(alpha: &[f64], k: usize) -> std::result::Result<(), TestCaseError> {
        prop_assert_eq!(alpha.len(), k);
        prop_assert!(alpha.iter().all(|&a| a >= 0.0), "{:?}", alpha);
        let mut sorted = alpha.to_vec();
        let largest = (0..k).max_by(|&i, &j| alpha[i].total_cmp(&alpha[j])).unwrap();
        sorted.remove(largest);
        prop_assert_eq!(sorted.iter().sum::<f64>() + alpha[largest], 1.0);
        prop_assert!((alpha.iter().sum::<f64>() - 1.0).abs() < 1e-14);
        Ok(())
    }

    proptest! {
        #[test]
        fn profiles_are_non_negative_and_sum_to_one(
            times in times(), sigma_rel in 1e-3..0.28, half_life in prop_oneof![0.0..1.0, 1.0..1e12]
        ) {
            is_profile(&power_function_profile(&times, sigma_rel), times.len())?;
            is_profile(&half_life_profile(&times, half_life), times.len())?;
            is_profile(&uniform(times.len()), times.len())?;
        }

        #[test]
        fn a_narrow_profile_is_the_last_checkpoint(k in 1usize..40, step in 1.0..1e6) {
            let times: Vec<f64> = (1..=k).map(|i| i as f64 * step).collect();
            for alpha in [power_function_profile(&times, 1e-4), half_life_profile(&times, step / 100.0)] {
                prop_assert!((alpha[k - 1] - 1.0).abs() < 1e-12, "{:?}", alpha);
            }
        }

        #[test]
        fn a_huge_half_life_is_uniform_for_equal_spacing(k in 1usize..40, begin in 1u32..1000, step in 1.0..1e6) {
            let times: Vec<f64> = (0..k).map(|i| (f64::from(begin) + i as f64) * step).collect();
            for (a, u) in half_life_profile(&times, 1e15 * step).iter().zip(uniform(k)) {
                prop_assert!((a - u).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn a_profile_over_all_steps_is_the_recorded_average() {
        // Recursion over steps of 1 from t = 0, where β is 0 at the first step: coefficients of each step's weights.
        let times: Vec<f64> = (1..=50).map(f64::from).collect();
        let mut recursive = vec![0.0; 50];
        for step in 0..50 {
            let beta = power_function_beta(0.1, times[step], 1.0);
            recursive.iter_mut().for_each(|a| *a *= beta);
            recursive[step] = 1.0 - beta;
        }
        for (a, r) in power_function_profile(&times, 0.1).iter().zip(&recursive) {
            assert!((a - r).abs() < 1e-14, "{a} instead of {r}");
        }
    }

    #[test]
    fn half_life_coefficients_halve() {
        let alpha = half_life_profile(&[10.0, 11.0, 12.0], 1.0);
        for (a, expected) in alpha.iter().zip([1.0 / 7.0, 2.0 / 7.0, 4.0 / 7.0]) {
            assert!((a - expected).abs() < 1e-15, "{a}");
        }
    }

    #[test]
    fn the_first_checkpoint_stands_for_an_interval_like_the_second() {
        // Intervals (10, 15] and (15, 20]; with σ_rel = 1/√12, γ = 0: coefficients are lengths.
        let alpha = power_function_profile(&[15.0, 20.0], 12f64.powf(-0.5));
        assert!((alpha[0] - 0.5).abs() < 1e-12, "{alpha:?}");
        // The interval does not reach below zero: (0, 5] and (5, 20].
        let alpha = power_function_profile(&[5.0, 20.0], 12f64.powf(-0.5));
        assert!((alpha[0] - 0.25).abs() < 1e-12, "{alpha:?}");
    }

    #[test]
    fn degenerate_times_give_the_last_checkpoint() {
        assert_eq!(power_function_profile(&[0.0], 0.1), [1.0]);
        assert_eq!(half_life_profile(&[3.0, 3.0], 1.0), [0.0, 1.0]);
        assert!(uniform(0).is_empty() && half_life_profile(&[], 1.0).is_empty());
        assert_eq!(one_hot(3, 1), [0.0, 1.0, 0.0]);
    }
}
