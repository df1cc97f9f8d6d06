//! Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991): fidelity apart from variety.

use crate::frechet::is_finite;
use lcsc_torch::{Kind, Result, Tensor, bail};
use serde::Serialize;

/// The largest block of distances, in bytes.
const BLOCK: i64 = 64 << 20;
/// The most points of a set that are compared with another: the paper uses 50,000, but the work grows with the square.
const POINTS: i64 = 10_000;

/// How far generated and real images cover each other; depends on the sizes of both sets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PrecisionRecall {
    /// The share of generated images that lie in the manifold of the real ones: how real they look.
    pub precision: f64,
    /// The share of real images that lie in the manifold of the generated ones: how varied these are.
    pub recall: f64,
}

/// Precision and recall (equations 1 and 2) of the features `fake` `[N,D]` by the features `real` `[M,D]`, compared in
/// f64 on the device of `real`.
///
/// The manifold of a set is the union of balls around its points, each as large as the distance to the point's k-th
/// nearest neighbour in the set. Generated features that are not all finite get 0 and 0, the worst values.
///
/// # Errors
/// The shapes do not fit, k < 1, a set has fewer than k+1 points, the real features are not finite, or libtorch failed.
pub fn precision_recall(real: &Tensor, fake: &Tensor, k: i64) -> Result<PrecisionRecall> {
    in_blocks(real, fake, k, BLOCK)
}

fn in_blocks(real: &Tensor, fake: &Tensor, k: i64, bytes: i64) -> Result<PrecisionRecall> {
    check(real, fake, k)?;
    if !is_finite(fake) {
        return Ok(PrecisionRecall { precision: 0.0, recall: 0.0 });
    }
    tch::no_grad(|| {
        let real = real.f_to_kind(Kind::Double)?;
        let fake = fake.f_to_device_(real.device(), Kind::Double, false, false)?;
        let (real_radii, fake_radii) = (radii(&real, k, bytes)?, radii(&fake, k, bytes)?);
        let (mut precise, mut recalled) = (0.0, real_radii.f_zeros_like()?.f_to_kind(Kind::Bool)?);
        let rows = rows(real.size()[0], bytes);
        for (points, radii) in fake.f_split(rows, 0)?.iter().zip(fake_radii.f_split(rows, 0)?) {
            let distances = distances(points, &real)?;
            let inside = distances.f_le_tensor(&real_radii)?.f_any_dim(1, false)?;
            precise += inside.f_sum(Kind::Double)?.double_value(&[]);
            let covered = distances.f_le_tensor(&radii.f_unsqueeze(1)?)?.f_any_dim(0, false)?;
            recalled = recalled.f_logical_or(&covered)?;
        }
        let precision = precise / fake.size()[0] as f64;
        Ok(PrecisionRecall { precision, recall: recalled.f_mean(Kind::Double)?.double_value(&[]) })
    })
}

fn check(real: &Tensor, fake: &Tensor, k: i64) -> Result<()> {
    let (m, n) = match (&real.size()[..], &fake.size()[..]) {
        (&[m, d], &[n, d1]) if d == d1 => (m, n),
        (r, f) => bail!("real features are {r:?} and generated ones {f:?}, expected [M, D] and [N, D]"),
    };
    if k < 1 || m.min(n) <= k {
        bail!(
            "precision and recall of {n} generated and {m} real images by the {k}-nearest neighbours need k of at least 1 \
             and more than k images on both sides"
        );
    }
    if !is_finite(real) {
        bail!("the real features hold values that are not finite: compute them again from the real images");
    }
    Ok(())
}

/// The distance of each point of f64 [N,D] to its k-th nearest neighbour among the others, f64 [N].
fn radii(points: &Tensor, k: i64, bytes: i64) -> Result<Tensor> {
    let mut radii = Vec::new();
    for rows in points.f_split(rows(points.size()[0], bytes), 0)? {
        // A point is its own nearest neighbour, at distance 0: hence k+1.
        radii.push(distances(&rows, points)?.f_topk(k + 1, 1, false, true)?.0.f_select(1, k)?);
    }
    Ok(Tensor::f_cat(&radii, 0)?)
}

/// The distances f64 [A,B] between points f64 [A,D] and [B,D].
fn distances(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    // By products, which is ten times as fast as by differences for many features; in f64 the cancellation is harmless.
    const BY_PRODUCTS: i64 = 1;
    Ok(Tensor::f_cdist(a, b, 2.0, BY_PRODUCTS)?)
}

/// Rows of f64 distances to `columns` points that fit into a block.
fn rows(columns: i64, bytes: i64) -> i64 {
    (bytes / (8 * columns)).max(1)
}

/// The indices of min(n, 10,000) points, evenly spaced over 0..n.
pub fn evenly_spaced(n: i64) -> Vec<i64> {
    spaced(n, POINTS)
}

/// The indices of min(n, most) points, evenly spaced over 0..n.
pub fn spaced(n: i64, most: i64) -> Vec<i64> {
    let m = n.min(most);
    (0..m).map(|j| j * n / m).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::{Device, Stream, latents};

    fn normal(seed: u64, n: usize, d: i64) -> Tensor {
        latents(seed, Stream::Features, 0, n, [d, 1, 1], Device::Cpu).unwrap().view([n as i64, d])
    }

    /// Points on a line.
    fn line(x: &[f32]) -> Tensor {
        Tensor::from_slice(x).view([-1, 1])
    }

    fn values(real: &Tensor, fake: &Tensor, k: i64) -> [f64; 2] {
        let PrecisionRecall { precision, recall } = precision_recall(real, fake, k).unwrap();
        [precision, recall]
    }

    #[test]
    fn values_of_points_on_a_line() {
        // Radii at k = 1: 1, 1, 2, 6 and 0.5, 0.5, 8.5, 12; at k = 2: 3, 2, 3, 8.
        let real = line(&[0.0, 1.0, 3.0, 9.0]);
        let fake = line(&[-1.5, -1.0, 7.5, 19.5]);
        // −1 lies on the rim of 0's ball, 7.5 in 9's; all real points lie in 7.5's.
        assert_eq!(values(&real, &fake, 1), [0.5, 1.0]);
        assert_eq!(values(&real, &fake, 2), [0.75, 1.0]);
        // Now the generated points are the manifold.
        assert_eq!(values(&fake, &real, 1), [1.0, 0.5]);
        // Two modes of three: all is real, but 100 and 101 are missed.
        let real = line(&[0.0, 1.0, 50.0, 51.0, 100.0, 101.0]);
        assert_eq!(values(&real, &line(&[0.2, 0.9, 50.1, 50.9]), 1), [1.0, 4.0 / 6.0]);
        assert_eq!(values(&real, &line(&[200.0, 201.0, 300.0]), 1), [0.0, 0.0]);
    }

    #[test]
    fn a_collapsed_set_is_precise_and_recalls_nothing() {
        let real = normal(1, 200, 5);
        let fake = real.get(3).unsqueeze(0).repeat([50, 1]) + 1e-3;
        assert_eq!(values(&real, &fake, 3), [1.0, 0.0]);
        assert_eq!(values(&real, &real, 3), [1.0, 1.0]);
        assert_eq!(values(&real, &(&real + 100.0), 3), [0.0, 0.0]);
    }

    #[test]
    fn equal_distributions_agree_and_a_wider_one_is_less_precise() {
        let (real, fake) = (normal(1, 800, 4), normal(2, 800, 4));
        let [p, r] = values(&real, &fake, 3);
        assert!(p > 0.85 && r > 0.85 && (p - r).abs() < 0.05, "{p} {r}");
        let [p, r] = values(&real, &(fake * 2.0), 3);
        assert!(p < 0.6 && r > 0.85, "{p} {r}");
    }

    #[test]
    fn blocks_change_nothing() {
        let (real, fake) = (normal(1, 333, 6), normal(2, 217, 6) * 1.3);
        let whole = precision_recall(&real, &fake, 3).unwrap();
        assert!(
            whole.precision > 0.1 && whole.precision < 0.9 && whole.recall > 0.1 && whole.recall < 0.98,
            "{whole:?}"
        );
        for bytes in [1, 8 * 333, 40_000] {
            assert_eq!(in_blocks(&real, &fake, 3, bytes).unwrap(), whole);
        }
        assert_eq!((rows(10_000, BLOCK), rows(10_000, 1)), (838, 1));
        assert_eq!(precision_recall(&real.to_kind(Kind::Double), &fake, 3).unwrap(), whole);
    }

    #[test]
    fn features_that_are_not_finite_are_worst() {
        let (real, fake) = (normal(1, 20, 3), normal(1, 20, 3));
        for bad in [f64::NAN, f64::INFINITY] {
            let _ = fake.get(3).fill_(bad);
            assert_eq!(values(&real, &fake, 3), [0.0, 0.0]);
            let text = precision_recall(&fake, &real, 3).unwrap_err().to_string();
            assert!(text.contains("real features") && text.contains("not finite"), "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (a, b) = (normal(1, 20, 3), normal(1, 4, 3));
        let refused = |r: &Tensor, f: &Tensor, k| precision_recall(r, f, k).unwrap_err().to_string();
        for text in [refused(&a, &b, 4), refused(&b, &a, 4), refused(&a, &b, 0)] {
            assert!(text.contains("more than k images on both sides"), "{text}");
        }
        assert!(precision_recall(&a, &b, 3).is_ok());
        let text = refused(&a, &normal(1, 20, 2), 3);
        assert!(text.contains("[20, 3] and generated ones [20, 2]"), "{text}");
    }

    #[test]
    fn spaced_indices_are_all_or_ten_thousand() {
        assert_eq!(evenly_spaced(4), [0, 1, 2, 3]);
        let spaced = evenly_spaced(25_000);
        assert_eq!((spaced.len(), &spaced[..4], spaced[9999]), (10_000, &[0, 2, 5, 7][..], 24_997));
    }
}
