//! What tests share.

use crate::picture::Picture;
use std::io::Cursor;

/// An array of tests/pillow/pillow.npz as a picture.
pub(crate) fn pillow(name: &str) -> Picture {
    const NPZ: &[u8] = include_bytes!("../tests/pillow/pillow.npz");
    let mut npz = npyz::npz::NpzArchive::new(Cursor::new(NPZ)).unwrap();
    let array = npz.by_name(name).unwrap().unwrap();
    let &[height, width, channels] = array.shape() else { panic!("{name} is no image") };
    let [height, width, channels] = [height, width, channels].map(|d| d as usize);
    Picture { pixels: array.into_vec().unwrap(), height, width, channels }
}
