//! What candidates take from some rows of W in one group of parameters.

use crate::combine::add_products;
use lcsc_torch::{Device, Kind, Result, Tensor, exact_products};
use std::collections::BTreeSet;
use std::ops::Range;

/// What M candidates take from consecutive rows of W in one group.
pub(crate) struct Share {
    /// The rows.
    pub rows: Range<usize>,
    /// The candidates that take a product, and their coefficients f32 [m,k] on the device.
    products: Option<(Vec<usize>, Tensor)>,
    /// The candidates that take the one row bit for bit: a product would turn −0 into 0.
    copies: Vec<usize>,
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
        let mut shares = Vec::new();
        for rows in stretches {
            let uses = |m: &usize| copied[*m].is_none() && alphas[*m][rows.clone()].iter().any(|a| *a != 0.0);
            let candidates: Vec<usize> = (0..alphas.len()).filter(uses).collect();
            if !candidates.is_empty() {
                let values: Vec<f64> = candidates.iter().flat_map(|&m| &alphas[m][rows.clone()]).copied().collect();
                let values = Tensor::f_from_slice(&values)?.f_view([candidates.len() as i64, rows.len() as i64])?;
                let values = values.f_to_device_(device, Kind::Float, false, false)?;
                shares.push(Self { rows: rows.clone(), products: Some((candidates, values)), copies: vec![] });
            }
        }
        for row in copied.iter().flatten().copied().collect::<BTreeSet<_>>() {
            let copies = (0..alphas.len()).filter(|&m| copied[m] == Some(row)).collect();
            shares.push(Self { rows: row..row + 1, products: None, copies });
        }
        Ok(shares)
    }

    /// Adds to the candidates' parameters, f32 [M,b], what they take from the rows, `w` f32 [k,b]; the first to add begins
    /// at zero.
    ///
    /// # Errors
    /// The device has no room.
    pub fn add(&self, thetas: &mut Tensor, w: &Tensor, first: bool) -> Result<()> {
        match &self.products {
            Some((candidates, alphas)) if w.device() == Device::Cpu => {
                add_products(thetas, candidates, alphas, w, first)?;
            }
            Some((candidates, alphas)) => {
                if first {
                    let _ = thetas.f_zero_()?;
                }
                for (&m, alpha) in candidates.iter().zip(alphas.f_split(1, 0)?) {
                    let mut theta = thetas.f_narrow(0, m as i64, 1)?;
                    let _ = exact_products(|| theta.f_addmm_(&alpha, w))?;
                }
            }
            None if first => drop(thetas.f_zero_()?),
            None => {}
        }
        for &m in &self.copies {
            thetas.f_narrow(0, m as i64, 1)?.f_copy_(w)?;
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
