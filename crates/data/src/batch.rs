//! Batches drawn from a dataset, wherever it lives.

use crate::augment::{apply, mirror};
use crate::dataset::Dataset;
use crate::sampler::Sampler;
use lcsc_torch::{Error, Result, bail, to_float, upload};
use tch::{Device, Tensor};

/// Images as networks take them.
#[derive(Debug)]
pub struct Batch {
    /// f32 `[B,C,H,W]` in [−1,1].
    pub images: Tensor,
    /// Classes, i64 `[B]`.
    pub labels: Option<Tensor>,
    /// What augmentation did to each image, f32 `[B,9]`, where the dataset has augmentation.
    pub augment_labels: Option<Tensor>,
}

impl Dataset {
    /// Moves the images to a device, unless they are larger than `device_budget_mib`: then they stay where they are, and
    /// batches are moved.
    ///
    /// # Errors
    /// The device has no room.
    pub fn to_device(self, device: Device) -> Result<Dataset> {
        let bytes = self.images.numel() as u64;
        if device != Device::Cpu && bytes > self.device_budget_mib.saturating_mul(1 << 20) {
            let (mib, budget) = (bytes >> 20, self.device_budget_mib);
            tracing::info!("{} ({mib} MiB) stays in host memory: data.device_budget_mib = {budget}", self.name);
            return Ok(self);
        }
        let no_room = |e: tch::TchError| {
            let remedy = format!("with data.device_budget_mib below {} it stays in host memory", (bytes >> 20).max(1));
            Error::msg(format!("moving {} ({bytes} bytes) to {device:?}: {}; {remedy}", self.name, Error::from(e)))
        };
        let images = self.images.f_to(device).map_err(no_room)?;
        let labels = self.labels.as_ref().map(|l| l.f_to(device)).transpose()?;
        Ok(Dataset { images, labels, ..self })
    }

    /// The images at the positions `first..first+n` of the sampler's order, mirrored where `xflip` says, on `device`, and
    /// augmented there.
    ///
    /// # Errors
    /// The sampler is for another number of images, or the device has no room.
    pub fn batch(&self, sampler: &mut Sampler, first: u64, n: usize, device: Device) -> Result<Batch> {
        let (ordered, present) = (sampler.images() as i64, self.images.size()[0]);
        if ordered != present {
            bail!("the sampler orders {ordered} images, {} has {present}: make one for this dataset", self.name);
        }
        let home = self.images.device();
        let indices = upload(&Tensor::f_from_slice(&sampler.indices(first, n))?, home)?;
        let mut images = self.images.f_index_select(0, &indices)?; // u8 [B,C,H,W]
        if self.xflip {
            images = mirror(&images, 3, &sampler.flips(first, n))?;
        }
        let labels = self.labels.as_ref().map(|l| upload(&l.f_index_select(0, &indices)?, device)).transpose()?;
        let images = to_float(&upload(&images, device)?);
        let Some(p) = self.augment else { return Ok(Batch { images, labels, augment_labels: None }) };
        let (images, augment_labels) = apply(&images, &sampler.augmentations(first, n, p))?;
        Ok(Batch { images, labels, augment_labels: Some(augment_labels) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DataConfig;
    use indicatif::ProgressBar;
    use tch::Kind;

    #[test]
    fn a_batch_equals_one_made_by_hand() {
        let config = DataConfig { xflip: true, ..DataConfig::default() };
        let set = Dataset::open(&config, &ProgressBar::hidden()).unwrap().to_device(Device::Cpu).unwrap();
        let (mut sampler, first, n) = (Sampler::new(1797, 2), 1790, 20); // across the edge of an epoch
        let batch = set.batch(&mut sampler, first, n, Device::Cpu).unwrap();
        assert_eq!((batch.images.size(), batch.images.kind()), (vec![20, 1, 8, 8], Kind::Float));
        let (order, flips) = (sampler.indices(first, n), sampler.flips(first, n));
        assert!(flips.contains(&true) && flips.contains(&false));
        let pixels = Vec::<u8>::try_from(set.images.flatten(0, -1)).unwrap();
        let all = Vec::<i64>::try_from(set.labels.as_ref().unwrap()).unwrap();
        for (b, (&i, &flip)) in order.iter().zip(&flips).enumerate() {
            assert_eq!(batch.labels.as_ref().unwrap().int64_value(&[b as i64]), all[i as usize]);
            for (at, x) in Vec::<f32>::try_from(batch.images.get(b as i64).flatten(0, -1)).unwrap().iter().enumerate() {
                let from = if flip { at - at % 8 + 7 - at % 8 } else { at };
                assert_eq!(*x, f32::from(pixels[64 * i as usize + from]) / 127.5 - 1.0);
            }
        }
        let text = set.batch(&mut Sampler::new(9, 2), 0, 1, Device::Cpu).unwrap_err().to_string();
        assert!(text.contains("orders 9 images, digits has 1797"), "{text}");
    }
}
