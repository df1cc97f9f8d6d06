//! The order of the training images: a pure function of (seed, position), so that resuming needs no generator state.

use crate::augment::Augmentation;
use lcsc_torch::{Stream, permutation, rng, unit_f64};

/// Which image is drawn at a position, and whether it is mirrored. Position p lies in epoch `p / images`, and each
/// epoch is a permutation of its own.
#[derive(Debug, Clone)]
pub struct Sampler {
    images: usize,
    seed: u64,
    /// The epoch drawn from last: order is cheap to make again, so only speed depends on it.
    cached: Option<(u64, Vec<i64>)>,
}

impl Sampler {
    /// An order of `images` (at least one: datasets are never empty).
    pub fn new(images: usize, seed: u64) -> Self {
        Self { images, seed, cached: None }
    }

    /// Number of images of one epoch.
    pub fn images(&self) -> usize {
        self.images
    }

    /// The images at the positions `first..first+n`, each in `0..images`.
    pub fn indices(&mut self, first: u64, n: usize) -> Vec<i64> {
        let per_epoch = self.images as u64;
        let mut indices = Vec::with_capacity(n);
        while indices.len() < n {
            let position = first + indices.len() as u64;
            let offset = (position % per_epoch) as usize;
            let order = self.order(position / per_epoch);
            let end = order.len().min(offset + n - indices.len());
            indices.extend_from_slice(&order[offset..end]);
        }
        indices
    }

    /// Whether the images at the positions `first..first+n` are mirrored: each with probability ½, the first draw of
    /// the position's own augmentation stream.
    pub fn flips(&self, first: u64, n: usize) -> Vec<bool> {
        (first..first + n as u64).map(|p| unit_f64(&mut rng(self.seed, Stream::Augment, p)) < 0.5).collect()
    }

    /// What augmentation does to the images at the positions `first..first+n`, each transformation with probability
    /// `p`: the draws of the position's own augmentation stream that follow the one of [`Sampler::flips`].
    pub fn augmentations(&self, first: u64, n: usize, p: f64) -> Vec<Augmentation> {
        let draw = |position| {
            let mut rng = rng(self.seed, Stream::Augment, position);
            unit_f64(&mut rng);
            Augmentation::draw(&mut rng, p)
        };
        (first..first + n as u64).map(draw).collect()
    }

    fn order(&mut self, epoch: u64) -> &[i64] {
        let order = match self.cached.take() {
            Some((cached, order)) if cached == epoch => order,
            _ => permutation(self.images, self.seed, Stream::Order, epoch),
        };
        &self.cached.insert((epoch, order)).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_chunking_gives_the_same_sequence() {
        let whole = Sampler::new(10, 3).indices(0, 57);
        let mut chunked = Sampler::new(10, 3);
        let pieces: Vec<i64> = (0..19).flat_map(|i| chunked.indices(3 * i, 3)).collect();
        assert_eq!(pieces, whole);
        let backwards: Vec<i64> = (0..57).rev().flat_map(|i| chunked.indices(i, 1)).collect();
        assert!(backwards.iter().rev().eq(&whole));
        assert_eq!(Sampler::new(10, 3).indices(25, 32), whole[25..]);
    }

    #[test]
    fn each_epoch_is_a_permutation_of_its_own() {
        let epochs: Vec<Vec<i64>> = (0..4).map(|e| Sampler::new(100, 0).indices(100 * e, 100)).collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..100));
        }
        assert!((0..4).all(|a| (0..a).all(|b| epochs[a] != epochs[b])));
        assert_ne!(epochs[0], Sampler::new(100, 1).indices(0, 100));
    }

    #[test]
    fn the_order_is_part_of_the_format() {
        // Changed values would change every stored run.
        assert_eq!(Sampler::new(8, 0).indices(0, 8), FIRST_EPOCH);
        assert_eq!(Sampler::new(8, 0).flips(0, 8), FIRST_FLIPS);
    }

    #[test]
    fn every_image_comes_first_equally_often() {
        let mut sampler = Sampler::new(4, 5);
        let mut counts = [0; 4];
        for epoch in 0..4000 {
            counts[sampler.indices(4 * epoch, 1)[0] as usize] += 1;
        }
        assert!(counts.iter().all(|c| (900..1100).contains(c)), "{counts:?}");
    }

    #[test]
    fn half_of_the_images_are_mirrored_whatever_the_batch() {
        let sampler = Sampler::new(10, 3);
        let whole = sampler.flips(0, 4000);
        assert_eq!(sampler.flips(1234, 100), whole[1234..1334]);
        let mirrored = whole.iter().filter(|f| **f).count();
        assert!((1850..2150).contains(&mirrored), "{mirrored}");
    }

    const FIRST_EPOCH: [i64; 8] = [6, 4, 2, 3, 7, 1, 0, 5];
    const FIRST_FLIPS: [bool; 8] = [false, true, true, false, true, false, true, true];
}
