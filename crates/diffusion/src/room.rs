//! How many images a device takes at once, found by trying.

use crate::generate::Draw;
use lcsc_torch::{Device, Result, bail, catch, release_memory};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How many images one kind of work has room for at once: any number, until libtorch reports that it is out of memory. Then it is
/// half of those that did not fit, and stays so.
#[derive(Debug)]
pub struct Room {
    /// What the work is, for messages: `sampling`.
    work: &'static str,
    most: AtomicUsize,
}

impl Room {
    /// For work of this name.
    pub fn for_work(work: &'static str) -> Self {
        Self { work, most: AtomicUsize::new(usize::MAX) }
    }

    /// What `make` gives for N images at once; none where there is no room for so many, which may be found out now.
    ///
    /// # Errors
    /// Those of `make`; there is no room for a single image.
    pub fn at_once<T>(&self, n: usize, device: Device, make: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        if n > self.most.load(Relaxed) {
            return Ok(None);
        }
        match catch(self.work, make) {
            Err(error) if error.is_out_of_memory() => {
                if n < 2 {
                    bail!(
                        "{error}: there is no room for a single image. End what else uses the memory, lower \
                         search.memory_gib, or compute in another precision (bf16)"
                    );
                }
                self.halve(n, device)?;
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }

    /// What `make` gives for the images of a draw, in as many pieces as there has to be for want of room.
    ///
    /// # Errors
    /// Those of [`Self::at_once`].
    pub fn in_pieces<T>(&self, draw: Draw, device: Device, mut make: impl FnMut(Draw) -> Result<T>) -> Result<Vec<T>> {
        let (mut made, mut done) = (Vec::new(), 0);
        while done < draw.n {
            let n = (draw.n - done).min(self.most.load(Relaxed));
            let piece = Draw { first: draw.first + done as u64, n, ..draw };
            if let Some(part) = self.at_once(n, device, || make(piece))? {
                made.push(part);
                done += n;
            }
        }
        Ok(made)
    }

    fn halve(&self, n: usize, device: Device) -> Result<()> {
        let most = n.div_ceil(2);
        if self.most.fetch_min(most, Relaxed) > most {
            let work = self.work;
            tracing::warn!("{work}: {device:?} is out of memory with {n} images at once; from here on {most} at once");
        }
        release_memory(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lcsc_torch::{Error, Kind, Stream, Tensor};

    fn draw(n: usize) -> Draw {
        Draw { seed: 0, stream: Stream::StepLatents, first: 100, n }
    }

    /// The first images and numbers of the pieces of a draw on a device that has room for `room` images.
    fn pieces(limited: &Room, n: usize, room: usize, tries: &mut Vec<usize>) -> Result<Vec<(u64, usize)>> {
        limited.in_pieces(draw(n), Device::Cpu, |Draw { first, n, .. }| {
            tries.push(n);
            // libtorch's own message, as a panic.
            let length = if n > room { 1 << 50 } else { 1 };
            drop(Tensor::zeros([length], (Kind::Float, Device::Cpu)));
            Ok((first, n))
        })
    }

    #[test]
    fn the_number_at_once_halves_until_it_fits_and_is_kept() {
        let (limited, mut tries) = (Room::for_work("sampling"), vec![]);
        assert_eq!(pieces(&limited, 21, 6, &mut tries).unwrap(), [(100, 6), (106, 6), (112, 6), (118, 3)]);
        assert_eq!(tries, [21, 11, 6, 6, 6, 3]);
        tries.clear();
        assert_eq!(pieces(&limited, 8, 6, &mut tries).unwrap(), [(100, 6), (106, 2)]);
        assert_eq!(tries, [6, 2], "nothing is tried again that did not fit");
        assert_eq!(limited.at_once(7, Device::Cpu, || Ok(())).unwrap(), None);
        assert_eq!(limited.at_once(6, Device::Cpu, || Ok(())).unwrap(), Some(()));
    }

    #[test]
    fn with_room_for_all_there_is_one_piece() {
        let mut tries = vec![];
        assert_eq!(pieces(&Room::for_work("sampling"), 21, 21, &mut tries).unwrap(), [(100, 21)]);
        assert_eq!(tries, [21]);
    }

    #[test]
    fn a_single_image_without_room_and_other_failures_are_errors() {
        let (limited, mut tries) = (Room::for_work("sampling"), vec![]);
        let text = pieces(&limited, 5, 0, &mut tries).unwrap_err().to_string();
        assert_eq!(tries, [5, 3, 2, 1]);
        assert!(text.contains("during sampling") && text.contains("memory") && text.contains("memory_gib"), "{text}");
        let other = Room::for_work("sampling");
        let failed = other.in_pieces(draw(4), Device::Cpu, |_| Err::<(), _>(Error::msg("no weights")));
        assert_eq!(failed.unwrap_err().to_string(), "no weights");
        assert_eq!(other.at_once(4, Device::Cpu, || Ok(())).unwrap(), Some(()));
    }
}
