//! What candidates take from some rows of W in one group of parameters.

use lcsc_torch::{Device, Kind, Result, Tensor};
use std::ops::Range;

/// What M candidates take from consecutive rows of W in one group.
pub(crate) struct Share {
    /// The rows.
    pub rows: Range<usize>,
    takes: Vec<(usize, Take)>,
}

/// What one of the candidates takes.
enum Take {
    /// Coefficients f32 [1,k].
    Product(Tensor),
    /// The one row, bit for bit: a product would turn −0 into 0.
    Copy,
}

impl Share {
    /// All that candidates take: products of whole stretches of rows (consecutive, finite, of one type), each candidate by
    /// itself so that its sums do not depend on the others; and single rows. `alphas` are the K coefficients of each
    /// candidate in this group.
    ///
    /// # Errors
    /// The device has no room.
    pub fn all(stretches: &[Range<usize>], alphas: &[&[f64]], device: Device) -> Result<Vec<Self>> {
        let copied: Vec<Option<usize>> = alphas.iter().map(|alpha| one_hot(alpha)).collect();
        let product = |rows: &Range<usize>, m: usize| -> Result<(usize, Take)> {
            let alpha = Tensor::f_from_slice(&alphas[m][rows.clone()])?.f_unsqueeze(0)?;
            Ok((m, Take::Product(alpha.f_to_device_(device, Kind::Float, false, false)?)))
        };
        let mut shares = Vec::new();
        for rows in stretches {
            let uses = |m: &usize| copied[*m].is_none() && alphas[*m][rows.clone()].iter().any(|a| *a != 0.0);
            let takes = (0..alphas.len()).filter(uses).map(|m| product(rows, m)).collect::<Result<_>>()?;
            shares.push(Self { rows: rows.clone(), takes });
        }
        for (m, row) in copied.iter().enumerate() {
            shares.extend(row.map(|i| Self { rows: i..i + 1, takes: vec![(m, Take::Copy)] }));
        }
        shares.retain(|share| !share.takes.is_empty());
        Ok(shares)
    }

    /// Adds to the candidates' parameters, f32 [M,b], what they take from the rows, `w` f32 [k,b].
    ///
    /// # Errors
    /// The device has no room.
    pub fn add(&self, thetas: &Tensor, w: &Tensor) -> Result<()> {
        for (m, take) in &self.takes {
            let mut theta = thetas.f_narrow(0, *m as i64, 1)?;
            match take {
                Take::Product(alpha) => drop(theta.f_addmm_(alpha, w)?),
                Take::Copy => theta.f_copy_(w)?,
            }
        }
        Ok(())
    }
}

/// The one row that these coefficients take as it is.
fn one_hot(alpha: &[f64]) -> Option<usize> {
    let mut used = alpha.iter().enumerate().filter(|(_, a)| **a != 0.0);
    match (used.next(), used.next()) {
        (Some((i, a)), None) if *a == 1.0 => Some(i),
        _ => None,
    }
}
