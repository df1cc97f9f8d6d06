//! The embedded digits: UCI Machine Learning Repository, Optical Recognition of Handwritten Digits (E. Alpaydin,
//! C. Kaynak), CC BY 4.0.

use lcsc_torch::{Error, Result};
use std::io::Cursor;

const NPZ: &[u8] = include_bytes!("../../../data/digits-8x8.npz");
/// Height and width.
pub(crate) const SIDE: usize = 8;

/// Pixels u8 0…255 [N,8,8] (stored as 0…16) and labels 0…9 [N].
pub(crate) fn read() -> Result<(Vec<u8>, Vec<i64>)> {
    let pixels = array("x")?.into_iter().map(|v| ((u32::from(v) * 255 + 8) / 16).min(255) as u8).collect();
    Ok((pixels, array("y")?.into_iter().map(i64::from).collect()))
}

fn array(name: &str) -> Result<Vec<u8>> {
    let damaged = |e: std::io::Error| Error::msg(format!("the embedded digits, array `{name}`: {e}"));
    let mut npz = npyz::npz::NpzArchive::new(Cursor::new(NPZ)).map_err(damaged)?;
    let array = npz.by_name(name).map_err(damaged)?;
    array.ok_or_else(|| Error::msg(format!("the embedded digits have no array `{name}`")))?.into_vec().map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_and_labels_have_the_published_values() {
        let (pixels, labels) = read().unwrap();
        assert_eq!((pixels.len(), labels.len()), (1797 * SIDE * SIDE, 1797));
        assert_eq!(pixels.iter().map(|v| u64::from(*v)).sum::<u64>(), PIXEL_SUM);
        assert_eq!(labels.iter().sum::<i64>(), LABEL_SUM);
        assert_eq!(pixels[..8], [0, 0, 80, 207, 143, 16, 0, 0]);
        assert_eq!(labels[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    const PIXEL_SUM: u64 = 8_953_801;
    const LABEL_SUM: i64 = 8070;
}
