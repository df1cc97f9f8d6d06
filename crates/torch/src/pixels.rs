//! The one place where pixels change between u8 and f32.

use tch::{Kind, Tensor};

/// Pixels u8 0…255 to f32 in [−1,1]: `x/127.5 − 1`. Any shape.
pub fn to_float(images: &Tensor) -> Tensor {
    images.to_kind(Kind::Float) / 127.5 - 1.0
}

/// Pixels of any float type to u8: `127.5·x + 127.5`, rounded and clamped to 0…255. Any shape; finite values.
pub fn to_u8(images: &Tensor) -> Tensor {
    (images.to_kind(Kind::Float) * 127.5 + 127.5).round().clamp(0.0, 255.0).to_kind(Kind::Uint8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn all_values_survive_the_round_trip() {
        let all = Tensor::arange(256, (Kind::Uint8, Device::Cpu));
        let float = to_float(&all);
        assert_eq!(float.kind(), Kind::Float);
        assert_eq!((float.double_value(&[0]), float.double_value(&[255])), (-1.0, 1.0));
        assert!(to_u8(&float).equal(&all));
    }

    #[test]
    fn values_outside_are_clamped_and_others_rounded() {
        let x = Tensor::from_slice(&[-7.0f64, -1.0, 0.0, 0.005, 1.0, 1.3]);
        assert_eq!(Vec::<u8>::try_from(to_u8(&x)).unwrap(), [0, 0, 128, 128, 255, 255]);
    }
}
