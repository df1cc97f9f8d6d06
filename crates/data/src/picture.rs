//! One image in memory.

use image::{DynamicImage, ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

/// An 8-bit image, grey or RGB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Values in the order H×W×C.
    pub pixels: Vec<u8>,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
}

impl Picture {
    /// The picture that planes C×H×W hold.
    pub(crate) fn from_planes(planes: &[u8], [channels, height, width]: [usize; 3]) -> Picture {
        let area = height * width;
        let pixels = (0..area).flat_map(|at| (0..channels).map(move |c| planes[c * area + at])).collect();
        Picture { pixels, height, width, channels }
    }

    /// Channels, height, width.
    pub(crate) fn shape(&self) -> [usize; 3] {
        [self.channels, self.height, self.width]
    }

    /// Writes the pixels as planes C×H×W of the same size.
    pub(crate) fn write_planes(&self, planes: &mut [u8]) {
        for (c, plane) in planes.chunks_exact_mut(self.height * self.width).enumerate() {
            for (to, from) in plane.iter_mut().zip(self.pixels[c..].iter().step_by(self.channels)) {
                *to = *from;
            }
        }
    }

    /// The same picture with three channels.
    pub(crate) fn into_rgb(self) -> Picture {
        match self.channels {
            1 => Picture { pixels: self.pixels.iter().flat_map(|&v| [v; 3]).collect(), channels: 3, ..self },
            _ => self,
        }
    }

    /// The `height`×`width` in its middle, which are no larger than its own; half a pixel off, they lie left and up.
    pub(crate) fn middle(&self, height: usize, width: usize) -> Picture {
        let (top, left) = ((self.height - height) / 2, (self.width - width) / 2);
        let rows = self.pixels.chunks_exact(self.width * self.channels).skip(top).take(height);
        let pixels = rows.flat_map(|row| &row[left * self.channels..(left + width) * self.channels]).copied().collect();
        Picture { pixels, height, width, ..*self }
    }

    /// The bytes of a PNG file; the same picture always gives the same bytes.
    ///
    /// # Errors
    /// The picture has more than 2³² pixels a side.
    pub(crate) fn to_png(&self) -> image::ImageResult<Vec<u8>> {
        let color = if self.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
        let mut png = Vec::new();
        PngEncoder::new(&mut png).write_image(&self.pixels, self.width as u32, self.height as u32, color)?;
        Ok(png)
    }
}

/// The picture that an 8-bit grey or RGB image is; the image itself where it is another.
impl TryFrom<DynamicImage> for Picture {
    type Error = DynamicImage;

    fn try_from(image: DynamicImage) -> Result<Picture, DynamicImage> {
        let [height, width] = [image.height(), image.width()].map(|d| d as usize);
        match image {
            DynamicImage::ImageLuma8(image) => Ok(Picture { pixels: image.into_raw(), height, width, channels: 1 }),
            DynamicImage::ImageRgb8(image) => Ok(Picture { pixels: image.into_raw(), height, width, channels: 3 }),
            other => Err(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_become_planes_and_back() {
        let pixels = (0..6).flat_map(|i| [i % 3, 10 + i / 3, 20]).collect();
        let picture = Picture { pixels, height: 2, width: 3, channels: 3 };
        let mut planes = vec![0; 18];
        picture.write_planes(&mut planes);
        assert_eq!(planes, [0, 1, 2, 0, 1, 2, 10, 10, 10, 11, 11, 11, 20, 20, 20, 20, 20, 20]);
        assert_eq!(Picture::from_planes(&planes, picture.shape()), picture);
        let png = image::load_from_memory(&picture.to_png().unwrap()).unwrap();
        assert_eq!(Picture::try_from(png).unwrap(), picture);
    }

    #[test]
    fn grey_becomes_rgb_and_the_middle_is_cut_out() {
        let grey = Picture { pixels: (0..12).collect(), height: 3, width: 4, channels: 1 };
        assert_eq!(grey.middle(2, 1).pixels, [1, 5]);
        assert_eq!(grey.into_rgb().middle(1, 2).pixels, [5, 5, 5, 6, 6, 6]);
    }
}
