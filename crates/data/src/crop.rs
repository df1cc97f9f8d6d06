//! How images of any size become squares of one size.

use crate::picture::Picture;
use crate::resize::{Filter, resize};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most pixels that an image has while it is resized.
const MAX_PIXELS: f64 = (1 << 28) as f64;

/// How an image becomes a square of a resolution; both are those of EDM's dataset tool, bit by bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// The centre square, resized (Lanczos).
    #[default]
    Center,
    /// That of Dhariwal and Nichol 2021 for ImageNet: halved (box) while it is at least twice too large, resized to the
    /// shorter side (bicubic), then the centre square.
    CenterDhariwal,
}

impl Crop {
    /// The square of `side` pixels, at least one.
    ///
    /// # Errors
    /// The picture is so long that resizing all of it would exhaust the memory: what is wrong, to follow its name.
    pub(crate) fn apply(self, picture: Picture, side: usize) -> Result<Picture, String> {
        match self {
            Crop::Center => {
                let shorter = picture.height.min(picture.width);
                Ok(resize(&picture.middle(shorter, shorter), side, side, Filter::Lanczos))
            }
            Crop::CenterDhariwal => {
                let picture = halve(picture, side);
                let scale = side as f64 / picture.height.min(picture.width) as f64;
                // As Python rounds.
                let [height, width] = [picture.height, picture.width].map(|d| (d as f64 * scale).round_ties_even());
                if height * width > MAX_PIXELS {
                    let found = format!("is {}×{} (H×W)", picture.height, picture.width);
                    return Err(format!("{found}, too long for `center-dhariwal`: take it out, or use `center`"));
                }
                Ok(resize(&picture, height as usize, width as usize, Filter::Bicubic).middle(side, side))
            }
        }
    }
}

fn halve(mut picture: Picture, side: usize) -> Picture {
    while picture.height.min(picture.width) >= 2 * side {
        picture = resize(&picture, picture.height / 2, picture.width / 2, Filter::Box);
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pillow;

    #[test]
    fn crops_have_the_bits_of_pillow() {
        for case in 0..6 {
            for (crop, name) in [(Crop::Center, "center"), (Crop::CenterDhariwal, "center-dhariwal")] {
                let expected = pillow(&format!("crop{case}.{name}"));
                let cropped = crop.apply(pillow(&format!("crop{case}.in")), expected.height).unwrap();
                assert!(cropped == expected, "{case} {name}");
            }
        }
    }

    #[test]
    fn a_thread_is_refused_before_it_is_enlarged() {
        let thread = Picture { pixels: vec![0; 16384], height: 1, width: 16384, channels: 1 };
        let text = Crop::CenterDhariwal.apply(thread.clone(), 4096).unwrap_err();
        assert!(text.contains("is 1×16384 (H×W), too long"), "{text}");
        assert_eq!(Crop::Center.apply(thread, 2).unwrap().shape(), [1, 2, 2]);
    }
}
