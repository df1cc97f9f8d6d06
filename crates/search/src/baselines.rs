//! What every search has to beat: single checkpoints and their averages.

use crate::candidate::{Candidate, Model, Origin};
use crate::coefficients::Coefficients;
use lcsc_torch::{Result, bail};
use lcsc_trajectory::{half_life_profile, one_hot, power_function_profile, uniform};
use serde::{Deserialize, Serialize};

/// One row of W.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Images that its stage had trained.
    pub nimg: f64,
    /// `raw`, or the name of an EMA track.
    pub track: String,
}

/// What is combined.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchSpace {
    /// The K rows of W: track by track, the raw checkpoints last, each track by images.
    pub rows: Vec<Saved>,
    /// Names of the EMA tracks recorded at the last checkpoint.
    pub tracks: Vec<String>,
    /// Names of the groups of parameters that can have coefficients of their own.
    pub groups: Vec<String>,
    /// Combinations that an earlier search found, with what to call them.
    pub given: Vec<(String, Coefficients)>,
    /// Network evaluations an image.
    pub nfe: usize,
    /// A text that changes with all else that scores depend on: the checkpoints' hashes, sampler, metric.
    pub fingerprint: String,
}

/// Ratio of neighbouring half-lives.
const HALF_LIFE_RATIO: f64 = std::f64::consts::SQRT_2;
/// The longest half-life, in windows.
const LONGEST_HALF_LIFE: f64 = 4.0;
/// Relative widths of power-function profiles, below the largest possible one of about 0.2998.
const SIGMA_REL: [f64; 10] = [0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.25];

/// All baselines in a fixed order: the K saved weights (ids 0..K), then over the rows of the last track their mean and EMA
/// profiles as coefficients, with half-lives from the spacing of the checkpoints to four windows and relative widths from
/// 0.01 to 0.25; the recorded tracks; what is given.
///
/// # Errors
/// The last track has fewer than two rows, its times do not increase, or given coefficients are of another number.
pub fn baselines(space: &SearchSpace) -> Result<Vec<Candidate>> {
    let k = space.rows.len();
    let track = space.rows.last().map_or("", |row| row.track.as_str());
    let first = space.rows.iter().position(|row| row.track == track).unwrap_or(0);
    let times: Vec<f64> = space.rows[first..].iter().map(|row| row.nimg).collect();
    if times.len() < 2 || !times.is_sorted_by(|a, b| a < b) {
        bail!("expected at least two checkpoints of track `{track}` at increasing times, found {times:?}");
    }
    if let Some((source, alpha)) = space.given.iter().find(|(_, alpha)| alpha.checkpoints() != k) {
        bail!("{source}: {} coefficients for {k} checkpoints", alpha.checkpoints());
    }
    let saved = |(index, row): (usize, &Saved)| {
        let (nimg, track) = (row.nimg, row.track.clone());
        (Origin::Checkpoint { index, nimg, track }, one_hot(k, index))
    };
    let over = |origin, profile: Vec<f64>| (origin, [vec![0.0; first], profile].concat());
    let half_life = |nimg| over(Origin::HalfLife { nimg }, half_life_profile(&times, nimg));
    let power = |sigma_rel| over(Origin::PowerFunction { sigma_rel }, power_function_profile(&times, sigma_rel));
    let combined = space.rows.iter().enumerate().map(saved);
    let combined = combined.chain([over(Origin::Uniform, uniform(times.len()))]);
    let combined = combined.chain(half_lives(&times).into_iter().map(half_life)).chain(SIGMA_REL.map(power));
    let combined = combined.map(|(origin, values)| Ok((origin, Model::Coefficients(Coefficients::one(values)?))));
    let recorded = space.tracks.iter().map(|t| Ok((Origin::Track { name: t.clone() }, Model::Track(t.clone()))));
    let given = space
        .given
        .iter()
        .map(|(source, alpha)| Ok((Origin::Given { source: source.clone() }, Model::Coefficients(alpha.clone()))));
    let number = |(id, made): (usize, Result<_>)| {
        let (origin, model) = made?;
        Ok(Candidate { id: id as u64, origin, model })
    };
    combined.chain(recorded).chain(given).enumerate().map(number).collect()
}

/// A geometric grid of half-lives from the mean spacing of the checkpoints to several windows.
fn half_lives(times: &[f64]) -> Vec<f64> {
    let window = times[times.len() - 1] - times[0];
    let spacing = window / (times.len() - 1) as f64;
    let grid = std::iter::successors(Some(spacing), |h| Some(h * HALF_LIFE_RATIO));
    grid.take_while(|h| *h <= LONGEST_HALF_LIFE * window * (1.0 + 1e-9)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn space(k: usize) -> SearchSpace {
        let raw = |i| Saved { nimg: 1000.0 * i as f64, track: "raw".into() };
        SearchSpace {
            rows: (1..=k).map(raw).collect(),
            tracks: vec!["ema-0.10".into()],
            groups: vec!["all".into()],
            given: vec![],
            nfe: 1,
            fingerprint: String::new(),
        }
    }

    fn alpha(candidate: &Candidate) -> &[f64] {
        match &candidate.model {
            Model::Coefficients(c) => &c.rows()[0],
            Model::Track(_) | Model::Finetuned => panic!("{candidate:?}"),
        }
    }

    #[test]
    fn baselines_are_numbered_and_complete() {
        let given = vec![("found before".to_string(), Coefficients::one(vec![0.2; 5]).unwrap())];
        let all = baselines(&SearchSpace { given, ..space(5) }).unwrap();
        assert!(all.iter().enumerate().all(|(i, c)| c.id == i as u64));
        // 5 checkpoints, uniform, half-lives 1000·√2^i up to 16000, widths, one track, one given
        assert_eq!(all.len(), 5 + 1 + 9 + 10 + 1 + 1);
        assert_eq!(all[4].origin, Origin::Checkpoint { index: 4, nimg: 5000.0, track: "raw".into() });
        assert_eq!(alpha(&all[4]), [0.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(all[5].origin.to_string(), "uniform average");
        assert_eq!(all[25].model, Model::Track("ema-0.10".into()));
        assert_eq!(all[26].origin.to_string(), "found before");
    }

    #[test]
    fn longer_half_lives_flatten_the_profile() {
        let all = baselines(&space(5)).unwrap();
        let last = |i: usize| alpha(&all[i])[4];
        assert!((6..14).all(|i| last(i) > last(i + 1)));
        assert!(last(14) > 0.2, "{}", last(14));
    }

    #[test]
    fn profiles_run_over_the_last_track() {
        let ema = |i| Saved { nimg: 1000.0 * i as f64, track: "ema".into() };
        let rows = (1..=2).map(ema).chain(space(3).rows).collect();
        let all = baselines(&SearchSpace { rows, ..space(3) }).unwrap();
        assert_eq!(alpha(&all[1]), [0.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(all[1].origin.to_string(), "track ema at 2000");
        assert_eq!(alpha(&all[5])[..2], [0.0, 0.0]);
        assert!(alpha(&all[5])[2..].iter().all(|a| (a - 1.0 / 3.0).abs() < 1e-12));
    }

    #[test]
    fn a_trajectory_needs_two_checkpoints_in_order() {
        assert!(baselines(&space(1)).unwrap_err().to_string().contains("at least two checkpoints"));
        let mut swapped = space(2);
        swapped.rows.reverse();
        assert!(baselines(&swapped).unwrap_err().to_string().contains("[2000.0, 1000.0]"));
        let given = vec![("x".to_string(), Coefficients::one(vec![0.5; 2]).unwrap())];
        let text = baselines(&SearchSpace { given, ..space(3) }).unwrap_err().to_string();
        assert_eq!(text, "x: 2 coefficients for 3 checkpoints");
    }
}
