//! What every search has to beat: single checkpoints and their averages.

use crate::candidate::{Candidate, Model, Origin};
use crate::coefficients::Coefficients;
use lcsc_torch::{Result, bail};
use lcsc_trajectory::{half_life_profile, one_hot, power_function_profile, uniform};

/// What is combined.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchSpace {
    /// Images seen at each of the K checkpoints, increasing.
    pub times: Vec<f64>,
    /// Names of the EMA tracks recorded at the last checkpoint.
    pub tracks: Vec<String>,
    /// A text that changes with all else that scores depend on: the checkpoints' hashes, sampler, metric.
    pub fingerprint: String,
}

/// Ratio of neighbouring half-lives.
const HALF_LIFE_RATIO: f64 = std::f64::consts::SQRT_2;
/// The longest half-life, in windows.
const LONGEST_HALF_LIFE: f64 = 4.0;
/// Relative widths of power-function profiles, below the largest possible one of about 0.2998.
const SIGMA_REL: [f64; 10] = [0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.25];

/// All baselines in a fixed order: the K checkpoints (ids 0..K), their mean, EMA profiles as coefficients with
/// half-lives from the spacing of the checkpoints to four windows and relative widths from 0.01 to 0.25, and the
/// recorded tracks.
///
/// # Errors
/// There are fewer than two checkpoints, or their times do not increase.
pub fn baselines(space: &SearchSpace) -> Result<Vec<Candidate>> {
    let times = &space.times;
    let k = times.len();
    if k < 2 || !times.is_sorted_by(|a, b| a < b) {
        bail!("expected at least two checkpoints at increasing times, found {k} at {times:?}");
    }
    let checkpoint = |index| (Origin::Checkpoint { index, nimg: times[index] }, one_hot(k, index));
    let half_life = |nimg| (Origin::HalfLife { nimg }, half_life_profile(times, nimg));
    let power = |sigma_rel| (Origin::PowerFunction { sigma_rel }, power_function_profile(times, sigma_rel));
    let combined = (0..k)
        .map(checkpoint)
        .chain([(Origin::Uniform, uniform(k))])
        .chain(half_lives(times).into_iter().map(half_life))
        .chain(SIGMA_REL.map(power))
        .map(|(origin, values)| Ok((origin, Model::Coefficients(Coefficients::new(&values)?))));
    let recorded =
        space.tracks.iter().map(|name| Ok((Origin::Track { name: name.clone() }, Model::Track(name.clone()))));
    let number = |(id, made): (usize, Result<_>)| {
        let (origin, model) = made?;
        Ok(Candidate { id: id as u64, origin, model })
    };
    combined.chain(recorded).enumerate().map(number).collect()
}

/// A geometric grid of half-lives from the mean spacing of the checkpoints to several windows.
fn half_lives(times: &[f64]) -> Vec<f64> {
    let window = times[times.len() - 1] - times[0];
    let spacing = window / (times.len() - 1) as f64;
    let grid = std::iter::successors(Some(spacing), |h| Some(h * HALF_LIFE_RATIO));
    grid.take_while(|h| *h <= LONGEST_HALF_LIFE * window * (1.0 + 1e-9)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(k: usize) -> SearchSpace {
        let times = (1..=k).map(|i| 1000.0 * i as f64).collect();
        SearchSpace { times, tracks: vec!["ema-0.10".into()], fingerprint: String::new() }
    }

    #[test]
    fn baselines_are_numbered_and_complete() {
        let all = baselines(&space(5)).unwrap();
        assert!(all.iter().enumerate().all(|(i, c)| c.id == i as u64));
        // 5 checkpoints, uniform, half-lives 1000·√2^i up to 16000, widths, one track
        assert_eq!(all.len(), 5 + 1 + 9 + 10 + 1);
        assert_eq!(all[4].origin, Origin::Checkpoint { index: 4, nimg: 5000.0 });
        assert_eq!(all[4].model, Model::Coefficients(Coefficients::from_free(&[0.0; 4]).unwrap()));
        assert_eq!(all[5].origin.to_string(), "uniform average");
        assert_eq!(all[25].model, Model::Track("ema-0.10".into()));
    }

    #[test]
    fn longer_half_lives_flatten_the_profile() {
        let all = baselines(&space(5)).unwrap();
        let last = |i: usize| match &all[i].model {
            Model::Coefficients(c) => c.as_slice()[4],
            Model::Track(name) => panic!("{name}"),
        };
        assert!((6..14).all(|i| last(i) > last(i + 1)));
        assert!(last(14) > 0.2, "{}", last(14));
    }

    #[test]
    fn a_trajectory_needs_two_checkpoints_in_order() {
        assert!(baselines(&space(1)).unwrap_err().to_string().contains("at least two checkpoints"));
        let swapped = SearchSpace { times: vec![2.0, 1.0], ..space(2) };
        assert!(baselines(&swapped).unwrap_err().to_string().contains("[2.0, 1.0]"));
    }
}
