//! Post-hoc EMA: any power-function EMA as a combination of the few that were recorded (EDM2, arXiv 2312.02696, §3.2).

use crate::sigma_rel_to_gamma;
use lcsc_torch::{Result, bail};

/// The power-function EMA of width `sigma_rel` that ends at step `end`, as the weights of the steps 0…`len`−1: zero after
/// `end`, sum one.
pub fn power_function_response(end: f64, sigma_rel: f64, len: usize) -> Vec<f64> {
    let gamma = sigma_rel_to_gamma(sigma_rel);
    let weight = |t: f64| if t <= end { (t / end).powf(gamma) } else { 0.0 };
    let weights: Vec<f64> = (0..len).map(|t| weight(t as f64)).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

/// Least-squares coefficients X `[in][out]` that make each wanted power-function EMA (at time `out_ofs`, of width
/// `out_std`) out of the recorded ones (`in_ofs`, `in_std`): A·X = B with the inner products of the profiles, columns
/// normalised to sum one (arXiv 2312.02696, appendix C).
///
/// # Errors
/// Times and widths differ in number, or two recorded profiles are the same.
pub fn solve_posthoc(in_ofs: &[f64], in_std: &[f64], out_ofs: &[f64], out_std: &[f64]) -> Result<Vec<Vec<f64>>> {
    if in_ofs.len() != in_std.len() || out_ofs.len() != out_std.len() {
        bail!(
            "post-hoc EMA: {} recorded times with {} widths and {} wanted times with {} widths; each time needs one width",
            in_ofs.len(),
            in_std.len(),
            out_ofs.len(),
            out_std.len()
        );
    }
    let recorded = profiles(in_ofs, in_std);
    let wanted = profiles(out_ofs, out_std);
    // [A|B], each profile at unit norm: that spares the badly conditioned system the scale of times.
    let norms: Vec<f64> = recorded.iter().map(|&p| inner_product(p, p).sqrt()).collect();
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(recorded.len());
    for (&p, norm) in recorded.iter().zip(&norms) {
        let a = recorded.iter().zip(&norms).map(|(&q, n)| inner_product(p, q) / (norm * n));
        let b = wanted.iter().map(|&q| inner_product(p, q) / norm);
        rows.push(a.chain(b).collect());
    }
    let mut x = solve(rows)?;
    for (row, norm) in x.iter_mut().zip(&norms) {
        row.iter_mut().for_each(|v| *v /= norm);
    }
    for column in 0..wanted.len() {
        let sum: f64 = x.iter().map(|row| row[column]).sum();
        x.iter_mut().for_each(|row| row[column] /= sum);
    }
    Ok(x)
}

/// A power-function profile: its time and exponent.
type Profile = (f64, f64);

fn profiles(ofs: &[f64], std: &[f64]) -> Vec<Profile> {
    ofs.iter().zip(std).map(|(&t, &sigma_rel)| (t, sigma_rel_to_gamma(sigma_rel))).collect()
}

/// ⟨p_a,p_b⟩ = (γa+1)(γb+1)·(ta/tb)^{γb if ta<tb else −γa} / ((γa+γb+1)·max(ta,tb)).
fn inner_product((ta, ga): Profile, (tb, gb): Profile) -> f64 {
    let exponent = if ta < tb { gb } else { -ga };
    (ga + 1.0) * (gb + 1.0) * (ta / tb).powf(exponent) / ((ga + gb + 1.0) * ta.max(tb))
}

/// A⁻¹B from the rows of [A|B], by Gaussian elimination with partial pivoting.
fn solve(mut rows: Vec<Vec<f64>>) -> Result<Vec<Vec<f64>>> {
    let n = rows.len();
    for column in 0..n {
        let pivot = (column..n).max_by(|&i, &j| rows[i][column].abs().total_cmp(&rows[j][column].abs()));
        rows.swap(column, pivot.unwrap_or(column));
        let (above, below) = rows.split_at_mut(column + 1);
        let pivot = &above[column];
        if pivot[column] == 0.0 {
            bail!("post-hoc EMA: two recorded profiles have the same time and width; leave one out");
        }
        for row in below {
            let factor = row[column] / pivot[column];
            row.iter_mut().zip(pivot).skip(column).for_each(|(r, p)| *r -= factor * p);
        }
    }
    for column in (0..n).rev() {
        let (above, below) = rows.split_at_mut(column);
        let pivot = &mut below[0];
        let scale = pivot[column];
        pivot.iter_mut().skip(column).for_each(|v| *v /= scale);
        for row in above {
            let factor = row[column];
            row.iter_mut().zip(&*pivot).skip(column).for_each(|(r, p)| *r -= factor * p);
        }
    }
    Ok(rows.into_iter().map(|row| row[n..].to_vec()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Computed by EDM2's reference code.
    #[test]
    fn responses_follow_the_reference() {
        let first = power_function_response(800.0, 0.1, 1000);
        let second = power_function_response(500.0, 0.05, 1000);
        for (t, a, b) in [
            (0, 0.0, 0.0),
            (1, 7.16305133588789e-23, 5.500434246334927e-48),
            (100, 5.364212068041139e-09, 4.839429661247711e-14),
            (499, 0.0003735698283048622, 0.03412677794992294),
            (500, 0.0003787942738132066, 0.03530627605892154),
            (700, 0.0039095195544533185, 0.0),
            (800, 0.009872459314308043, 0.0),
            (801, 0.0, 0.0),
            (999, 0.0, 0.0),
        ] {
            for (found, expected) in [(first[t], a), (second[t], b)] {
                assert!((found - expected).abs() <= 1e-11 * expected, "{t}: {found} instead of {expected}");
            }
        }
    }

    // Computed by EDM2's reference code. The system is badly conditioned: two solvers do not agree to the last digit.
    #[test]
    fn posthoc_coefficients_follow_the_reference() {
        let in_ofs: Vec<f64> = (0..16).map(|i| f64::from(i / 2 + 1) * 1e6).collect();
        let in_std: Vec<f64> = (0..16).map(|i| [0.05, 0.1][i % 2]).collect();
        let x = solve_posthoc(&in_ofs, &in_std, &[8e6, 8e6, 6e6], &[0.03, 0.15, 0.08]).unwrap();
        for (row, expected) in x.iter().zip(COEFFICIENTS) {
            for (found, expected) in row.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-11, "{found} instead of {expected}");
            }
        }
        for column in 0..3 {
            assert!((x.iter().map(|row| row[column]).sum::<f64>() - 1.0).abs() < 1e-14);
        }
    }

    const COEFFICIENTS: [[f64; 3]; 16] = [
        [-1.9756842093575878e-23, -2.310621251633102e-05, 1.9406508690296665e-09],
        [4.785531419201897e-22, 7.992397244272026e-05, -2.652488577190667e-08],
        [-6.045363415790273e-17, -0.0005405309602212771, 2.6050716427738884e-06],
        [1.9712371451628286e-15, 0.0015630650408306583, -1.4117984266327127e-05],
        [-4.120812058030392e-12, -0.003205000344061367, 0.00016628755158608016],
        [4.353980353266846e-11, 0.008239137666580057, -0.00060685416805749],
        [-1.4334663310082967e-08, -0.010372944523473097, 0.0029937381234370485],
        [8.653974355134349e-08, 0.02522871756519091, -0.009043308087803003],
        [-9.05156964448476e-06, -0.02457425721327763, 0.027079691263593574],
        [4.004310902968125e-05, 0.05819882991189832, -0.07415022613214174],
        [-0.0018763516093953446, -0.04865177874856588, 0.22898478244997775],
        [0.00688483255931963, 0.11359105887650568, 0.8245874264962664],
        [-0.17716896168799667, -0.085808139012468, 8.230378030138341e-17],
        [0.5766506097678558, 0.19866360006528763, -4.8836726163123334e-17],
        [2.3289138060020287, -0.17304279237913692, 1.5967884385387134e-16],
        [-1.7334349988156985, 0.9406542162949846, -2.7014239283840097e-16],
    ];

    #[test]
    fn a_recorded_profile_is_its_own_combination() {
        let x = solve_posthoc(&[1e3, 2e3, 2e3], &[0.1, 0.1, 0.05], &[2e3], &[0.05]).unwrap();
        for (row, expected) in x.iter().zip([0.0, 0.0, 1.0]) {
            assert!((row[0] - expected).abs() < 1e-12, "{}", row[0]);
        }
    }

    #[test]
    fn equal_profiles_and_missing_widths_are_refused() {
        let text = solve_posthoc(&[1e3, 1e3], &[0.1, 0.1], &[1e3], &[0.2]).unwrap_err().to_string();
        assert!(text.contains("same time and width"), "{text}");
        let text = solve_posthoc(&[1e3, 2e3], &[0.1], &[1e3], &[0.2]).unwrap_err().to_string();
        assert!(text.contains("2 recorded times with 1 widths"), "{text}");
    }
}
