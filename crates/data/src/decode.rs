//! One image: from the bytes of a file to planes of pixels.

use image::imageops::FilterType;
use image::{DynamicImage, GrayImage, Luma};

/// An 8-bit grey or RGB image out of a png or jpeg file.
///
/// # Errors
/// The bytes are no such image: what is wrong, to follow the file's name.
pub(crate) fn decode(bytes: &[u8]) -> Result<DynamicImage, String> {
    match image::load_from_memory(bytes).map_err(|e| format!("is no readable image ({e})"))? {
        image @ (DynamicImage::ImageLuma8(_) | DynamicImage::ImageRgb8(_)) => Ok(image),
        other => Err(format!("has pixels of type {:?}, expected 8-bit grey or RGB: convert it", other.color())),
    }
}

/// A grey image of H×W = `side`² pixels.
pub(crate) fn grey(pixels: &[u8], side: usize) -> DynamicImage {
    GrayImage::from_fn(side as u32, side as u32, |x, y| Luma([pixels[y as usize * side + x as usize]])).into()
}

/// The centre square after the shorter side was resized to `resolution` (Lanczos, widened where it shrinks).
pub(crate) fn fit(image: DynamicImage, resolution: u32) -> DynamicImage {
    if (image.width(), image.height()) == (resolution, resolution) {
        return image;
    }
    image.resize_to_fill(resolution, resolution, FilterType::Lanczos3)
}

/// Channels, height, width.
pub(crate) fn shape(image: &DynamicImage) -> [usize; 3] {
    [image.color().channel_count() as usize, image.height() as usize, image.width() as usize]
}

/// Pixels as u8 C×H×W.
pub(crate) fn write_planes(image: &DynamicImage, planes: &mut [u8]) {
    let [channels, h, w] = shape(image);
    for (c, plane) in planes.chunks_exact_mut(h * w).enumerate() {
        for (to, from) in plane.iter_mut().zip(image.as_bytes()[c..].iter().step_by(channels)) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageFormat, Rgb, RgbImage};
    use std::io::Cursor;

    #[test]
    fn colours_become_planes() {
        let image = RgbImage::from_fn(3, 2, |x, y| Rgb([x as u8, 10 + y as u8, 20])).into();
        let mut planes = vec![0; 18];
        write_planes(&image, &mut planes);
        assert_eq!(planes, [0, 1, 2, 0, 1, 2, 10, 10, 10, 11, 11, 11, 20, 20, 20, 20, 20, 20]);
    }

    #[test]
    fn fitting_keeps_the_centre_square() {
        // Dark left and right thirds around a bright square: the crop sees the square alone, at any scale.
        let wide = GrayImage::from_fn(36, 12, |x, _| Luma([if (12..24).contains(&x) { 200 } else { 10 }]));
        let same = fit(wide.clone().into(), 12);
        assert_eq!(same.as_bytes(), [200; 144]);
        for resolution in [6, 24] {
            let image = fit(wide.clone().into(), resolution);
            assert_eq!(shape(&image), [1, resolution as usize, resolution as usize]);
            let middle = image.as_luma8().unwrap().get_pixel(resolution / 2, resolution / 2).0[0];
            assert!(middle.abs_diff(200) <= 6, "{middle}"); // beside the edge the filter rings
        }
    }

    #[test]
    fn shrinking_averages() {
        // A checkerboard of single pixels has no frequency that survives halving: grey all over, no aliasing.
        let board = GrayImage::from_fn(32, 32, |x, y| Luma([if (x + y) % 2 == 0 { 255 } else { 0 }]));
        let small = fit(board.into(), 8);
        assert!(small.as_bytes().iter().all(|v| v.abs_diff(127) <= 16), "{:?}", small.as_bytes());
    }

    #[test]
    fn other_pixels_and_other_bytes_are_refused() {
        let mut png = Cursor::new(Vec::new());
        image::RgbaImage::new(2, 2).write_to(&mut png, ImageFormat::Png).unwrap();
        let text = decode(png.get_ref()).unwrap_err();
        assert!(text.contains("Rgba8, expected 8-bit grey or RGB"), "{text}");
        assert!(decode(b"text").unwrap_err().starts_with("is no readable image"));
    }
}
