//! PNG contact sheets: samples of one model, and the same latents through several models.

use crate::error::{Error, Result, write_atomic};
use crate::font;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use std::path::Path;

/// Pixels between tiles and around them.
const GAP: usize = 2;
/// Smaller images are enlarged until both sides of a tile have at least so many pixels.
const MIN_TILE: usize = 32;
/// Enlargement of the label font.
const FONT_SCALE: usize = 2;
/// Columns a character takes.
const ADVANCE: usize = (font::WIDTH + 1) * FONT_SCALE;

/// Images as bytes, N×C×H×W.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBatch {
    /// Values 0…255 in the order N, C, H, W.
    pub data: Vec<u8>,
    /// Number of images.
    pub n: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl ImageBatch {
    fn shape(&self) -> [usize; 4] {
        [self.n, self.channels, self.height, self.width]
    }

    fn check(&self, path: &Path) -> Result<()> {
        let shape @ [n, channels, height, width] = self.shape();
        if n == 0 || height == 0 || width == 0 || !matches!(channels, 1 | 3) {
            let message = format!("images of shape {shape:?}, expected some images [N, C, H, W] of 1 or 3 channels");
            return Err(Error::content(path, message));
        }
        let expected: usize = shape.iter().product();
        if self.data.len() != expected {
            let message = format!("{} bytes of images, expected {expected} for shape {shape:?}", self.data.len());
            return Err(Error::content(path, message));
        }
        Ok(())
    }

    /// The integer factor by which images are enlarged.
    fn factor(&self) -> usize {
        MIN_TILE.div_ceil(self.height.min(self.width))
    }
}

/// A white canvas, H×W×C.
struct Sheet {
    data: Vec<u8>,
    width: usize,
    channels: usize,
}

impl Sheet {
    fn new(width: usize, height: usize, channels: usize) -> Self {
        Self { data: vec![255; width * height * channels], width, channels }
    }

    fn pixel(&mut self, x: usize, y: usize) -> &mut [u8] {
        let at = (y * self.width + x) * self.channels;
        &mut self.data[at..at + self.channels]
    }

    /// Draws image `index`, enlarged by a whole factor, with its upper left corner at (x, y).
    fn draw_image(&mut self, x: usize, y: usize, images: &ImageBatch, index: usize, factor: usize) {
        let [_, channels, height, width] = images.shape();
        for row in 0..height * factor {
            for column in 0..width * factor {
                let pixel = self.pixel(x + column, y + row);
                for (c, value) in pixel.iter_mut().enumerate() {
                    let plane = index * channels + c;
                    *value = images.data[(plane * height + row / factor) * width + column / factor];
                }
            }
        }
    }

    /// Writes a line of black text with its upper left corner at (x, y).
    fn draw_text(&mut self, x: usize, y: usize, text: &str) {
        for (i, character) in text.chars().enumerate() {
            let glyph = font::glyph(character);
            for row in 0..font::HEIGHT * FONT_SCALE {
                for column in 0..font::WIDTH * FONT_SCALE {
                    if glyph[row / FONT_SCALE] >> (font::WIDTH - 1 - column / FONT_SCALE) & 1 == 1 {
                        self.pixel(x + i * ADVANCE + column, y + row).fill(0);
                    }
                }
            }
        }
    }

    fn write(&self, path: &Path) -> Result<()> {
        let too_large = || Error::content(path, "more than 2³² pixels a side: write fewer images");
        let width = u32::try_from(self.width).map_err(|_| too_large())?;
        let height = u32::try_from(self.data.len() / (self.width * self.channels)).map_err(|_| too_large())?;
        let color = if self.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
        let mut png = Vec::new();
        PngEncoder::new(&mut png)
            .write_image(&self.data, width, height, color)
            .map_err(|e| Error::content(path, e.to_string()))?;
        write_atomic(path, &png)
    }
}

/// Writes image `i` of a batch as a PNG, pixel by pixel.
///
/// # Errors
/// There is no image `i`, channels other than 1 or 3, a wrong number of bytes, or the file cannot be written.
pub fn write_image(path: impl AsRef<Path>, images: &ImageBatch, i: usize) -> Result<()> {
    let path = path.as_ref();
    images.check(path)?;
    if i >= images.n {
        return Err(Error::content(path, format!("there is no image {i}, there are {}", images.n)));
    }
    let mut sheet = Sheet::new(images.width, images.height, images.channels);
    sheet.draw_image(0, 0, images, i, 1);
    sheet.write(path)
}

/// Writes images as one PNG sheet, `columns` a row (fewer where there are fewer images).
///
/// Small images are enlarged by a whole factor, nearest neighbour.
///
/// # Errors
/// No images, channels other than 1 or 3, a wrong number of bytes, or the file cannot be written.
pub fn write_grid(path: impl AsRef<Path>, images: &ImageBatch, columns: usize) -> Result<()> {
    let path = path.as_ref();
    images.check(path)?;
    let columns = columns.clamp(1, images.n);
    let (tile_w, tile_h) = (images.width * images.factor() + GAP, images.height * images.factor() + GAP);
    let rows = images.n.div_ceil(columns);
    let mut sheet = Sheet::new(columns * tile_w + GAP, rows * tile_h + GAP, images.channels);
    for i in 0..images.n {
        sheet.draw_image(GAP + i % columns * tile_w, GAP + i / columns * tile_h, images, i, images.factor());
    }
    sheet.write(path)
}

/// Writes one PNG sheet with a labelled row a model: column j shows image j of every model (the same latents).
///
/// Labels show ASCII letters (as capitals), digits, `-` and `.`.
///
/// # Errors
/// No rows, batches of different shapes, and what [`write_grid`] refuses.
pub fn write_comparison(path: impl AsRef<Path>, rows: &[(String, ImageBatch)]) -> Result<()> {
    let path = path.as_ref();
    let Some((first_label, first)) = rows.first() else {
        return Err(Error::content(path, "no models to compare"));
    };
    for (label, images) in rows {
        images.check(path)?;
        if images.shape() != first.shape() {
            let (found, expected) = (images.shape(), first.shape());
            let message = format!("images of {label} have shape {found:?}, those of {first_label} {expected:?}");
            return Err(Error::content(path, message));
        }
    }
    let characters = rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    let left = GAP + if characters > 0 { characters * ADVANCE + GAP } else { 0 };
    let (tile_w, tile_h) = (first.width * first.factor() + GAP, first.height * first.factor() + GAP);
    let mut sheet = Sheet::new(left + first.n * tile_w, rows.len() * tile_h + GAP, first.channels);
    for (row, (label, images)) in rows.iter().enumerate() {
        let y = GAP + row * tile_h;
        sheet.draw_text(GAP, y + (tile_h - GAP - font::HEIGHT * FONT_SCALE) / 2, label);
        for i in 0..images.n {
            sheet.draw_image(left + i * tile_w, y, images, i, images.factor());
        }
    }
    sheet.write(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Image i, channel c holds 10·i + c everywhere, but 200 in its last pixel.
    fn batch(n: usize, channels: usize, height: usize, width: usize) -> ImageBatch {
        let plane = |p: usize| {
            let mut values = vec![(p / channels * 10 + p % channels) as u8; height * width];
            values[height * width - 1] = 200;
            values
        };
        ImageBatch { data: (0..n * channels).flat_map(plane).collect(), n, channels, height, width }
    }

    #[test]
    fn a_grid_holds_every_image_at_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grid.png");
        write_grid(&path, &batch(3, 3, 8, 16), 2).unwrap();
        let sheet = image::open(&path).unwrap();
        assert_eq!(sheet.color(), image::ColorType::Rgb8);
        let sheet = sheet.to_rgb8();
        // Factor 4: tiles of 64×32, two columns, two rows.
        assert_eq!(sheet.dimensions(), (2 + 2 * 66, 2 + 2 * 34));
        let at = |x, y| sheet.get_pixel(x, y).0;
        assert_eq!(at(1, 1), [255; 3], "border");
        assert_eq!(at(2, 2), [0, 1, 2], "first pixel of image 0");
        assert_eq!(at(65, 33), [200; 3], "last pixel of image 0");
        assert_eq!((at(61, 33), at(62, 29)), ([0, 1, 2], [0, 1, 2]), "beside the last pixel");
        assert_eq!((at(66, 2), at(67, 2)), ([255; 3], [255; 3]), "gap");
        assert_eq!(at(68, 2), [10, 11, 12], "image 1");
        assert_eq!(at(2, 36), [20, 21, 22], "image 2");
        assert_eq!(at(68, 36), [255; 3], "no image");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn grey_stays_grey_and_large_images_keep_their_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grid.png");
        write_grid(&path, &batch(2, 1, 40, 33), 10).unwrap();
        let sheet = image::open(&path).unwrap();
        assert_eq!(sheet.color(), image::ColorType::L8);
        assert_eq!((sheet.width(), sheet.height()), (2 + 2 * 35, 42 + 2));
        assert_eq!(sheet.to_luma8().get_pixel(37, 2).0, [10]);
    }

    #[test]
    fn a_comparison_has_a_labelled_row_a_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("models.png");
        let mut other = batch(2, 1, 8, 8);
        other.data.iter_mut().for_each(|v| *v += 3);
        write_comparison(&path, &[("EMA".into(), batch(2, 1, 8, 8)), ("T".into(), other)]).unwrap();
        let sheet = image::open(&path).unwrap().to_luma8();
        let left = 2 + 3 * 12 + 2;
        assert_eq!(sheet.dimensions(), (left + 2 * 34, 2 + 2 * 34));
        let at = |x, y| sheet.get_pixel(x, y).0[0];
        assert_eq!([at(left, 2), at(left + 34, 2), at(left, 36), at(left + 34, 36)], [0, 10, 3, 13]);
        // "T" of the second row: its bar spans five font pixels, its stem stands in the middle.
        let top = 36 + (32 - 14) / 2;
        assert_eq!([at(2, top), at(11, top + 1), at(12, top)], [0, 0, 255]);
        assert_eq!([at(2, top + 2), at(6, top + 13), at(7, top + 13), at(8, top + 13)], [255, 0, 0, 255]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |images: &ImageBatch| write_grid("g.png", images, 2).unwrap_err().to_string();
        let mut short = batch(2, 1, 8, 8);
        short.data.pop();
        assert_eq!(refused(&short), "g.png: 127 bytes of images, expected 128 for shape [2, 1, 8, 8]");
        assert!(refused(&batch(2, 2, 8, 8)).contains("shape [2, 2, 8, 8], expected"));
        assert!(refused(&batch(0, 1, 8, 8)).contains("shape [0, 1, 8, 8], expected"));
        let rows = [("last".to_string(), batch(2, 1, 8, 8)), ("ema".to_string(), batch(3, 1, 8, 8))];
        let message = write_comparison("c.png", &rows).unwrap_err().to_string();
        assert_eq!(message, "c.png: images of ema have shape [3, 1, 8, 8], those of last [2, 1, 8, 8]");
        let folder = write_grid("/nonexistent/g.png", &batch(2, 1, 8, 8), 2).unwrap_err().to_string();
        assert!(folder.starts_with("/nonexistent: "), "{folder}");
    }
}
