//! Coefficients of a linear combination of checkpoints, their sum of one built in.

use crate::baselines::Saved;
use lcsc_torch::{Error, Result, bail};
use serde::{Deserialize, Serialize};

/// α ∈ R^{G×K}, a row for each group of parameters, each with Σα = 1: finite, negative values and values above one
/// allowed (arXiv 2404.02241, section 4, there with one group).
///
/// In each row the last checkpoint is the base b: the K−1 others are free and α_b = 1 − Σ_{i≠b} α_i, so that
/// θ(α) = θ_b + Σ_{i≠b} α_i (θ_i − θ_b) = αᵀW whatever the free values are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Vec<f64>>", into = "Vec<Vec<f64>>")]
pub struct Coefficients(Vec<Vec<f64>>);

/// Largest deviation of a row's sum from one in coefficients that come out of a file.
const SUM_TOLERANCE: f64 = 1e-6;

impl Coefficients {
    /// From G rows of K values, the last one of each giving way so that the row's sum is one.
    ///
    /// # Errors
    /// There is no row or no value, rows differ in length, or a value is not finite.
    pub fn new(rows: &[Vec<f64>]) -> Result<Self> {
        let k = rows.first().map_or(0, Vec::len);
        if k == 0 || rows.iter().any(|row| row.len() != k) {
            let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
            bail!("rows of {lengths:?} coefficients, expected at least one row, all of one length above zero");
        }
        let exact = |(group, row): (usize, &Vec<f64>)| {
            let mut row = row.clone();
            row[k - 1] = 1.0 - row[..k - 1].iter().sum::<f64>();
            match row.iter().position(|v| !v.is_finite()) {
                Some(i) => bail!("coefficient {i} of {k} in group {group} is {}, expected a finite number", row[i]),
                None => Ok(row),
            }
        };
        Ok(Self(rows.iter().enumerate().map(exact).collect::<Result<_>>()?))
    }

    /// One row of K values for all parameters.
    ///
    /// # Errors
    /// Those of [`Coefficients::new`].
    pub fn one(values: Vec<f64>) -> Result<Self> {
        Self::new(&[values])
    }

    /// The rows divided by their sums.
    ///
    /// # Errors
    /// Those of [`Coefficients::new`]; also a sum that is zero or not finite.
    pub fn renormalised(rows: &[Vec<f64>]) -> Result<Self> {
        let divided = |row: &Vec<f64>| {
            let sum: f64 = row.iter().sum();
            row.iter().map(|v| v / sum).collect()
        };
        Self::new(&rows.iter().map(divided).collect::<Vec<_>>())
    }

    /// G rows of K values.
    pub fn rows(&self) -> &[Vec<f64>] {
        &self.0
    }

    /// G, the number of groups.
    pub fn groups(&self) -> usize {
        self.0.len()
    }

    /// K, the number of checkpoints.
    pub fn checkpoints(&self) -> usize {
        self.0[0].len()
    }

    /// The combination moved along a trajectory: each coefficient goes to the saved weights of its track whose age, counted
    /// from the last of all, is nearest. Where checkpoints are evenly spaced, ages agree.
    ///
    /// # Errors
    /// A track of `from` is none of `to`, or lengths differ.
    pub fn moved(&self, from: &[Saved], to: &[Saved]) -> Result<Self> {
        let end = |rows: &[Saved]| rows.iter().map(|r| r.nimg).fold(0.0, f64::max);
        let (old_end, new_end) = (end(from), end(to));
        let nearest = |old: &Saved| {
            let far = |new: &Saved| ((new_end - new.nimg) - (old_end - old.nimg)).abs();
            let same_track = to.iter().enumerate().filter(|(_, new)| new.track == old.track);
            same_track.min_by(|a, b| far(a.1).total_cmp(&far(b.1))).map(|(i, _)| i)
        };
        let places: Option<Vec<usize>> = from.iter().map(nearest).collect();
        match places {
            Some(places) if places.len() == self.checkpoints() => self.scattered(&places, to.len()),
            _ => bail!("coefficients cannot be moved to saved weights of other tracks"),
        }
    }

    /// The same combination of the same saved weights among others; none where one that takes part is missing.
    pub fn placed(&self, from: &[Saved], to: &[Saved]) -> Option<Self> {
        let unused = |i: usize| self.0.iter().all(|row| row[i] == 0.0);
        let place = |(i, old): (usize, &Saved)| to.iter().position(|new| new == old).or(unused(i).then_some(0));
        let places: Vec<usize> = from.iter().enumerate().map(place).collect::<Option<_>>()?;
        self.scattered(&places, to.len()).ok()
    }

    /// Adds each coefficient at its place among `k`.
    fn scattered(&self, places: &[usize], k: usize) -> Result<Self> {
        let scatter = |row: &Vec<f64>| {
            let mut new = vec![0.0; k];
            places.iter().zip(row).for_each(|(&i, a)| new[i] += a);
            new
        };
        Self::new(&self.0.iter().map(scatter).collect::<Vec<_>>())
    }

    /// The same combination with a row for each of `groups` groups.
    ///
    /// # Errors
    /// There are several rows, but not that many.
    pub fn spread(&self, groups: usize) -> Result<Self> {
        match self.0.as_slice() {
            [row] => Ok(Self(vec![row.clone(); groups])),
            rows if rows.len() == groups => Ok(self.clone()),
            rows => bail!("coefficients of {} groups for a model of {groups} groups", rows.len()),
        }
    }
}

impl TryFrom<Vec<Vec<f64>>> for Coefficients {
    type Error = Error;

    fn try_from(rows: Vec<Vec<f64>>) -> Result<Self> {
        for (group, row) in rows.iter().enumerate() {
            let sum: f64 = row.iter().sum();
            if (sum - 1.0).abs() > SUM_TOLERANCE {
                bail!("the coefficients of group {group} sum to {sum}, expected 1");
            }
        }
        Self::new(&rows)
    }
}

impl From<Coefficients> for Vec<Vec<f64>> {
    fn from(c: Coefficients) -> Self {
        c.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_trajectory::one_hot;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn rows() -> impl Strategy<Value = Vec<Vec<f64>>> {
        (1usize..5, 1usize..64).prop_flat_map(|(g, k)| vec(vec(-10.0..10.0, k), g))
    }

    proptest! {
        #[test]
        fn sums_are_one_and_the_free_values_are_kept(rows in rows()) {
            let c = Coefficients::new(&rows).unwrap();
            prop_assert_eq!((c.groups(), c.checkpoints()), (rows.len(), rows[0].len()));
            for (found, given) in c.rows().iter().zip(&rows) {
                prop_assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                prop_assert_eq!(&found[..found.len() - 1], &given[..given.len() - 1]);
            }
        }

        #[test]
        fn files_give_back_every_bit(rows in rows()) {
            let c = Coefficients::new(&rows).unwrap();
            let back: Coefficients = serde_json::from_str(&serde_json::to_string(&c).unwrap()).unwrap();
            prop_assert_eq!(&back, &c);
            prop_assert_eq!(Coefficients::new(c.rows()).unwrap(), c);
        }

        #[test]
        fn renormalising_keeps_the_proportions(values in vec(0.1..5.0, 1..64)) {
            let c = Coefficients::renormalised(std::slice::from_ref(&values)).unwrap();
            prop_assert!((c.rows()[0].iter().sum::<f64>() - 1.0).abs() < 1e-12);
            for (a, b) in c.rows()[0].iter().zip(&values) {
                prop_assert!((a * values[0] - b * c.rows()[0][0]).abs() < 1e-10);
            }
        }

        #[test]
        fn one_hot_is_exact(k in 1usize..64, i in 0usize..64) {
            let values = one_hot(k, i % k);
            let one = Coefficients::one(values.clone()).unwrap();
            prop_assert_eq!(&one.rows()[0], &values);
        }
    }

    #[test]
    fn one_row_spreads_to_all_groups() {
        let one = Coefficients::one(vec![0.25, 0.75]).unwrap();
        assert_eq!(one.spread(3).unwrap().rows(), vec![vec![0.25, 0.75]; 3]);
        assert_eq!(one.spread(3).unwrap().spread(3).unwrap(), one.spread(3).unwrap());
        let text = one.spread(3).unwrap().spread(2).unwrap_err().to_string();
        assert_eq!(text, "coefficients of 3 groups for a model of 2 groups");
    }

    fn saved(times: &[f64]) -> Vec<Saved> {
        times.iter().map(|&nimg| Saved { nimg, track: "raw".into() }).collect()
    }

    #[test]
    fn coefficients_move_along_the_window_by_age() {
        let alpha = Coefficients::new(&[vec![0.2, -0.5, 1.3], vec![0.0, 0.0, 1.0]]).unwrap();
        let from = saved(&[10.0, 20.0, 30.0]);
        let longer = alpha.moved(&from, &saved(&[10.0, 20.0, 30.0, 40.0])).unwrap();
        let close = |row: &[f64], expected: &[f64]| row.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(&longer.rows()[0], &[0.0, 0.2, -0.5, 1.3]), "{longer:?}");
        // Ages 20, 10 and 0 of the old ones, 50, 25 and 0 of the new ones.
        let coarser = alpha.moved(&from, &saved(&[20.0, 45.0, 70.0])).unwrap();
        assert!(
            close(&coarser.rows()[0], &[0.0, 0.2, 0.8]) && close(&coarser.rows()[1], &[0.0, 0.0, 1.0]),
            "{coarser:?}"
        );
        let ema = vec![Saved { nimg: 5.0, track: "ema".into() }];
        assert!(alpha.moved(&from, &ema).is_err());
    }

    #[test]
    fn coefficients_keep_their_weights_where_those_are() {
        let alpha = Coefficients::one(vec![0.0, -0.5, 1.5]).unwrap();
        let from = saved(&[10.0, 20.0, 30.0]);
        let placed = alpha.placed(&from, &saved(&[20.0, 25.0, 30.0, 40.0])).unwrap();
        assert_eq!(placed.rows()[0], [-0.5, 0.0, 1.5, 0.0]);
        assert_eq!(alpha.placed(&from, &saved(&[10.0, 30.0, 40.0])), None);
    }

    #[test]
    fn what_is_no_combination_is_refused() {
        let text = Coefficients::one(vec![0.5, f64::NAN, 0.5]).unwrap_err().to_string();
        assert_eq!(text, "coefficient 1 of 3 in group 0 is NaN, expected a finite number");
        assert!(Coefficients::one(vec![f64::MAX, f64::MAX, 0.0]).is_err());
        assert!(Coefficients::renormalised(&[vec![1.0, -1.0]]).is_err());
        for rows in [vec![], vec![vec![]], vec![vec![1.0], vec![0.5, 0.5]]] {
            assert!(Coefficients::new(&rows).unwrap_err().to_string().contains("all of one length"));
        }
        let text = serde_json::from_str::<Coefficients>("[[1.0, 0.0], [0.5, 0.4]]").unwrap_err().to_string();
        assert!(text.contains("group 1 sum to 0.9, expected 1"), "{text}");
    }
}
