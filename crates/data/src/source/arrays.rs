//! Images that lie unencoded in memory or in mapped files.

use crate::picture::Picture;
use bytes::Bytes;

/// How the values of an image lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// C×H×W.
    Planes,
    /// H×W×C.
    Pixels,
}

/// Equal records one after another, each an image with what lies before it.
#[derive(Debug, Clone)]
struct Part {
    records: Bytes,
    /// Bytes of a record before the image.
    head: usize,
    images: usize,
}

/// Images of one shape, in several parts.
#[derive(Debug, Clone)]
pub(crate) struct Arrays {
    parts: Vec<Part>,
    shape: [usize; 3],
    order: Order,
}

impl Arrays {
    /// Images [N,C,H,W].
    pub(super) fn new(shape: [usize; 3], images: Bytes) -> Arrays {
        let mut arrays = Arrays::empty(shape, Order::Planes);
        arrays.push(0, images);
        arrays
    }

    /// No images yet of a shape C×H×W.
    pub(super) fn empty(shape: [usize; 3], order: Order) -> Arrays {
        Arrays { parts: Vec::new(), shape, order }
    }

    /// Appends images, as many as whole records fit in.
    pub(super) fn push(&mut self, head: usize, records: Bytes) {
        let images = records.len() / (head + self.size()).max(1);
        self.parts.push(Part { records, head, images });
    }

    /// Number of images.
    pub(super) fn images(&self) -> usize {
        self.parts.iter().map(|part| part.images).sum()
    }

    /// Image `i`.
    pub(super) fn picture(&self, mut i: usize) -> Picture {
        let [channels, height, width] = self.shape;
        let mut parts = self.parts.iter();
        let image = loop {
            match parts.next() {
                Some(part) if i < part.images => {
                    let at = i * (part.head + self.size()) + part.head;
                    break &part.records[at..at + self.size()];
                }
                Some(part) => i -= part.images,
                None => unreachable!("an image beyond the last"),
            }
        };
        match self.order {
            Order::Planes => Picture::from_planes(image, self.shape),
            Order::Pixels => Picture { pixels: image.to_vec(), height, width, channels },
        }
    }

    fn size(&self) -> usize {
        self.shape.iter().product()
    }
}
