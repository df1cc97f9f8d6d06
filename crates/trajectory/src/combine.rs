//! Σ_i α_i·W[i,·] on the CPU at the speed of memory.

use lcsc_torch::{Device, Kind, Result, Tensor, bail, cpu_threads};

/// Columns of a row that are taken at once.
const TILE: usize = 1024;
/// Rows that are taken at once: their columns stay in the cache while the candidates pass by.
const DEPTH: usize = 64;
/// Candidates whose sums are formed at once.
const FOUR: usize = 4;
/// Columns of them that are in registers.
const LANES: usize = 16;
/// Fewer products than this are not worth a second thread.
const PART: usize = 1 << 16;

/// Adds Σ_i α\[i\]·w\[i,·\] to those rows of `thetas` f32 [M,b] that `candidates` names, with the rows α of `alphas`
/// f32 [m,k] and `w` f32 [k,b], all on the CPU.
///
/// The `first` products begin at zero, in all rows of `thetas`. The sums run over the rows in their order, each product and
/// each sum rounded to f32: bit for bit those of a plain loop over checkpoints, whatever the machine, the threads and the
/// other candidates.
///
/// # Errors
/// The values of a row do not lie side by side.
pub(crate) fn add_products<'a>(
    thetas: &'a mut Tensor,
    candidates: &[usize],
    alphas: &'a Tensor,
    w: &Tensor,
    first: bool,
) -> Result<()> {
    let (rows, alphas) = (matrix(w)?, matrix(alphas)?);
    let columns = rows.first().map_or(0, |row| row.len());
    let mut sums: Vec<Sum> = Vec::with_capacity(candidates.len());
    for (m, theta) in matrix_mut(thetas)?.into_iter().enumerate() {
        match candidates.iter().position(|&c| c == m) {
            Some(i) => sums.push((theta, alphas[i])),
            None if first => theta.fill(0.0),
            None => {}
        }
    }
    let products = columns * rows.len() * sums.len();
    let threads = cpu_threads().min(products / PART).max(1);
    let width = columns.div_ceil(threads).next_multiple_of(TILE);
    rayon::scope(|scope| {
        for start in (0..columns).step_by(width) {
            let here = start..columns.min(start + width);
            let rows = rows.iter().map(|row| &row[here.clone()]).collect();
            let part = |(theta, alpha): &mut Sum<'a>| (theta.split_off_mut(..here.len()).unwrap_or_default(), *alpha);
            let part = sums.iter_mut().map(part).collect();
            scope.spawn(move |_| add_tiles(part, rows, first));
        }
    });
    Ok(())
}

/// Parameters [b] of a candidate, and its coefficients [k].
type Sum<'a> = (&'a mut [f32], &'a [f32]);

/// What one thread does.
#[multiversion::multiversion(targets("x86_64+avx2"))]
fn add_tiles(mut sums: Vec<Sum>, rows: Vec<&[f32]>, first: bool) {
    let columns = rows.first().map_or(0, |row| row.len());
    for start in (0..columns).step_by(TILE) {
        let tile = start..columns.min(start + TILE);
        let rows: Vec<&[f32]> = rows.iter().map(|row| &row[tile.clone()]).collect();
        for (i, rows) in rows.chunks(DEPTH).enumerate() {
            let here = DEPTH * i..DEPTH * i + rows.len();
            let mut sums: Vec<Sum> =
                sums.iter_mut().map(|(theta, alpha)| (&mut theta[tile.clone()], &alpha[here.clone()])).collect();
            let first = first && i == 0;
            let (fours, rest) = sums.as_chunks_mut();
            for (n, four) in fours.iter_mut().enumerate() {
                add_to_four(four, rows, first, n == 0);
            }
            for (theta, alpha) in rest {
                add_to_one(theta, alpha, rows, first);
            }
        }
    }
}

/// The sums of some columns stay in registers while the rows pass by; the `first` begin at zero. That reads a little of
/// each row in turn, so the columns of the next tile are asked for while those of this one are `new` to the cache.
#[inline(always)]
fn add_to_four(sums: &mut [Sum; FOUR], rows: &[&[f32]], first: bool, new: bool) {
    let alphas: Vec<[f32; FOUR]> = (0..rows.len()).map(|i| sums.each_ref().map(|(_, alpha)| alpha[i])).collect();
    let columns = sums[0].0.len();
    let whole = columns - columns % LANES;
    for j in (0..whole).step_by(LANES) {
        let mut sum = [[0.0; LANES]; FOUR];
        if !first {
            for m in 0..FOUR {
                sum[m].copy_from_slice(&sums[m].0[j..j + LANES]);
            }
        }
        for (row, alpha) in rows.iter().zip(&alphas) {
            let w = &row[j..j + LANES];
            if new {
                prefetch(w.as_ptr().wrapping_add(TILE));
            }
            for m in 0..FOUR {
                for l in 0..LANES {
                    sum[m][l] += alpha[m] * w[l];
                }
            }
        }
        for m in 0..FOUR {
            sums[m].0[j..j + LANES].copy_from_slice(&sum[m]);
        }
    }
    let rest: Vec<&[f32]> = rows.iter().map(|row| &row[whole..]).collect();
    for (theta, alpha) in sums {
        add_to_one(&mut theta[whole..], alpha, &rest, first);
    }
}

/// Four rows side by side, so that the sums are loaded and stored once for all of them.
#[inline(always)]
fn add_to_one(theta: &mut [f32], alpha: &[f32], rows: &[&[f32]], first: bool) {
    if first {
        theta.fill(0.0);
    }
    let (fours, rest) = rows.as_chunks::<4>();
    let (alphas, rest_alpha) = alpha.as_chunks::<4>();
    for (w, a) in fours.iter().zip(alphas) {
        // Slices of one length: without checks of indices the loop becomes one of vectors.
        let w = w.map(|row| &row[..theta.len()]);
        for j in 0..theta.len() {
            theta[j] = (((theta[j] + a[0] * w[0][j]) + a[1] * w[1][j]) + a[2] * w[2][j]) + a[3] * w[3][j];
        }
    }
    for (row, alpha) in rest.iter().zip(rest_alpha) {
        for (sum, w) in theta.iter_mut().zip(*row) {
            *sum += alpha * w;
        }
    }
}

/// Brings what lies there into the cache, without waiting; it need not be memory of ours.
#[inline(always)]
fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint: it reads nothing and does not fault, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The place of the first value, and how far rows are apart.
fn parts(w: &Tensor) -> Result<(*mut f32, usize, usize, usize)> {
    match (&w.size()[..], &w.stride()[..]) {
        (&[rows, columns], &[apart, 1])
            if w.kind() == Kind::Float && w.device() == Device::Cpu && (apart >= columns || rows < 2) =>
        {
            Ok((w.data_ptr().cast(), rows as usize, columns as usize, apart as usize))
        }
        (size, _) => bail!("rows to combine, {size:?} of type {:?}: values do not lie side by side", w.kind()),
    }
}

fn matrix(w: &Tensor) -> Result<Vec<&[f32]>> {
    let (first, rows, columns, apart) = parts(w)?;
    // SAFETY: rows of so many f32 values lie in the tensor's memory, which lives as long as it is borrowed.
    Ok((0..rows).map(|i| unsafe { std::slice::from_raw_parts(first.add(i * apart), columns) }).collect())
}

fn matrix_mut(w: &mut Tensor) -> Result<Vec<&mut [f32]>> {
    let (first, rows, columns, apart) = parts(w)?;
    // SAFETY: as above, and rows do not overlap.
    Ok((0..rows).map(|i| unsafe { std::slice::from_raw_parts_mut(first.add(i * apart), columns) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::{Stream, latents};

    #[test]
    fn products_are_those_of_a_plain_loop_bit_for_bit() {
        let (k, p) = (DEPTH + 7, 3 * TILE as i64 + 5);
        let w = latents(0, Stream::Noise, 0, k, [1, 1, p], Device::Cpu).unwrap().view([k as i64, p]);
        // Four at once, and two more.
        let candidates = [0, 1, 3, 4, 5, 6];
        let alphas = Tensor::arange(6 * k as i64, (Kind::Float, Device::Cpu)).sin().view([6, k as i64]);
        let mut thetas = Tensor::ones([7, p], (Kind::Float, Device::Cpu));
        let expected = |row: i64, start: f64| {
            let start = Tensor::full([p], start, (Kind::Float, Device::Cpu));
            (0..k as i64).fold(start, |sum, i| sum + w.get(i) * alphas.get(row).get(i))
        };
        // A block of columns, as they are given for wide rows.
        let block = |t: &Tensor| t.narrow(1, 2, p - 2);
        add_products(&mut block(&thetas), &candidates, &alphas, &block(&w), false).unwrap();
        for (row, m) in (0..).zip(candidates) {
            let expected = expected(row, 1.0);
            let _ = expected.narrow(0, 0, 2).fill_(1.0);
            assert!(thetas.get(m as i64).equal(&expected), "candidate {m}");
        }
        assert!(thetas.get(2).equal(&Tensor::ones([p], (Kind::Float, Device::Cpu))));
        add_products(&mut thetas, &candidates, &alphas, &w, true).unwrap();
        for (row, m) in (0..).zip(candidates) {
            assert!(thetas.get(m as i64).equal(&expected(row, 0.0)), "candidate {m} from zero");
        }
        assert_eq!(thetas.get(2).abs().max().double_value(&[]), 0.0);
        assert!(
            add_products(&mut thetas, &candidates, &alphas, &w.tr(), true)
                .unwrap_err()
                .to_string()
                .contains("side by side")
        );
    }
}
