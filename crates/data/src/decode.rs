//! One image out of the bytes of a file.

use crate::picture::Picture;
use image::{DynamicImage, ImageError, ImageReader, Limits};
use std::io::Cursor;

/// Most pixels a side, beyond those of any photograph in a dataset.
const MAX_SIDE: u32 = 1 << 14;
/// Most bytes that decoding one image may take.
const MAX_BYTES: u64 = 1 << 29;

/// Why there is no image: what is wrong, to follow the file's name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The file is damaged.
    Corrupt(String),
    /// It is a sound image of a kind that cannot be used.
    Unfit(String),
}

/// An 8-bit grey or RGB image out of a png or jpeg file; with `rgb` always RGB, also of grey and transparent ones.
///
/// # Errors
/// The bytes are no such image, or a larger one than any dataset has.
pub(crate) fn decode(bytes: &[u8], rgb: bool) -> Result<Picture, Flaw> {
    let in_one_line = |e: image::ImageError| e.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let image = read(bytes).map_err(|e| Flaw::Corrupt(format!("is no readable image ({})", in_one_line(e))))?;
    let image = match image {
        DynamicImage::ImageLumaA8(_) | DynamicImage::ImageRgba8(_) if rgb => image.to_rgb8().into(),
        other => other,
    };
    let picture = Picture::try_from(image).map_err(|other| {
        let transparent =
            if other.color().has_alpha() { " or set data.rgb = true, which drops transparency" } else { "" };
        let found = format!("has pixels of type {:?}, expected 8-bit grey or RGB", other.color());
        Flaw::Unfit(format!("{found}: convert it{transparent}"))
    })?;
    Ok(if rgb { picture.into_rgb() } else { picture })
}

fn read(bytes: &[u8]) -> Result<DynamicImage, ImageError> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    reader.limits(limits);
    reader.decode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayAlphaImage, ImageFormat, LumaA};

    fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
        let mut png = Cursor::new(Vec::new());
        image.into().write_to(&mut png, ImageFormat::Png).unwrap();
        png.into_inner()
    }

    #[test]
    fn other_pixels_and_other_bytes_are_refused() {
        let Err(Flaw::Unfit(text)) = decode(&png(image::RgbaImage::new(2, 2)), false) else { panic!("transparent") };
        assert!(text.contains("Rgba8, expected 8-bit grey or RGB") && text.contains("data.rgb = true"), "{text}");
        let deep = image::ImageBuffer::<image::Luma<u16>, _>::new(2, 2);
        let Err(Flaw::Unfit(text)) = decode(&png(deep), true) else { panic!("16 bits") };
        assert!(text.ends_with("convert it"), "{text}");
        assert!(matches!(decode(b"text", false), Err(Flaw::Corrupt(text)) if text.starts_with("is no readable image")));
    }

    #[test]
    fn all_become_rgb_where_that_is_asked() {
        let grey = png(GrayAlphaImage::from_pixel(2, 1, LumaA([9, 0])));
        assert_eq!(decode(&grey, true).unwrap().pixels, [9; 6]);
    }

    #[test]
    fn an_image_that_claims_to_be_huge_is_not_begun() {
        let mut bytes = png(image::GrayImage::new(2, 2));
        bytes[16..24].copy_from_slice(&[0, 0, 255, 255, 0, 0, 255, 255]);
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        assert!(matches!(decode(&bytes, false), Err(Flaw::Corrupt(text)) if text.contains("limit")));
    }

    /// That of PNG chunks.
    fn crc32(bytes: &[u8]) -> u32 {
        let step = |crc: u32, byte: &u8| {
            (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
        };
        !bytes.iter().fold(!0, step)
    }
}
