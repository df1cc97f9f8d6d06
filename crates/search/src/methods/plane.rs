//! An orthonormal basis of the vectors of R^K that sum to zero: steps on the plane Σα = 1.

/// The vector Σ y_i·b_i [K] of the coordinates y [K−1], where b_i = (1, …, 1, −i, 0, …, 0)/√(i(i+1)) with i ones
/// (Helmert's matrix): sums to zero and has the length of y.
pub(super) fn from_coordinates(y: &[f64]) -> Vec<f64> {
    let scaled: Vec<f64> = (1..).zip(y).map(|(i, y)| y / f64::from(i * (i + 1)).sqrt()).collect();
    let mut tail = 0.0; // Σ of what later basis vectors add alike to all entries before
    let mut d: Vec<f64> = Vec::with_capacity(y.len() + 1);
    for i in (0..=y.len()).rev() {
        let own = if i > 0 { -(i as f64) * scaled[i - 1] } else { 0.0 };
        d.push(own + tail);
        tail += if i > 0 { scaled[i - 1] } else { 0.0 };
    }
    d.reverse();
    d
}

/// The coordinates ⟨d, b_i⟩ [K−1] of a vector d [K] that sums to zero.
pub(super) fn to_coordinates(d: &[f64]) -> Vec<f64> {
    let mut sum = 0.0;
    let coordinate = |(i, pair): (u32, &[f64])| {
        sum += pair[0];
        (sum - f64::from(i) * pair[1]) / f64::from(i * (i + 1)).sqrt()
    };
    (1..).zip(d.windows(2)).map(coordinate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn coordinates_keep_lengths_and_come_back(y in vec(-3.0..3.0, 1..60)) {
            let d = from_coordinates(&y);
            prop_assert_eq!(d.len(), y.len() + 1);
            prop_assert!(d.iter().sum::<f64>().abs() < 1e-12);
            let square = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>();
            prop_assert!((square(&d) - square(&y)).abs() < 1e-10);
            for (a, b) in to_coordinates(&d).iter().zip(&y) {
                prop_assert!((a - b).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn the_first_direction_is_the_difference_of_the_first_two() {
        let half = 0.5f64.sqrt();
        for (y, expected) in [(vec![1.0], vec![half, -half]), (vec![0.0, 6f64.sqrt()], vec![1.0, 1.0, -2.0])] {
            let d = from_coordinates(&y);
            assert!(d.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{d:?}");
        }
    }
}
