//! Normal numbers drawn on a device: the ChaCha8 generators of the host in tensor operations.

use crate::device::upload;
use crate::error::Result;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

/// The words of ChaCha's state that are always the same, "expand 32-byte k" (Bernstein 2008).
const CONSTANTS: [i64; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];
const DOUBLE_ROUNDS: usize = 4;
const WORD: i64 = 0xffff_ffff;
/// A block of 16 words gives 4 pairs of normal numbers.
const NORMALS_A_BLOCK: i64 = 8;

/// The first `size` normal numbers of each fresh generator, f32 [N,size]: those of `normal_pair`, up to the rounding of the
/// device's logarithm and cosine.
pub(crate) fn normals(generators: &[ChaCha8Rng], size: i64, device: Device) -> Result<Tensor> {
    let n = generators.len() as i64;
    let pairs = words(generators, (size + NORMALS_A_BLOCK - 1) / NORMALS_A_BLOCK, device)?.f_reshape([n, -1, 4])?;
    // 53 bits of the two words of a 64-bit number, the low one first.
    let unit = |low: i64| {
        let bits = pairs.select(2, low).bitwise_right_shift_tensor_scalar(11) + pairs.select(2, low + 1) * (1 << 21);
        bits.to_kind(Kind::Double) * (1.0 / (1u64 << 53) as f64)
    };
    let radius = (unit(0).rsub_scalar(1.0).log() * -2.0).sqrt();
    let angle = unit(2) * std::f64::consts::TAU;
    let pairs = Tensor::f_stack(&[&radius * angle.cos(), &radius * angle.sin()], 2)?;
    Ok(pairs.to_kind(Kind::Float).flatten(1, -1).f_narrow(1, 0, size)?)
}

/// The words of the first blocks of each generator, i64 [N·blocks,4,4].
fn words(generators: &[ChaCha8Rng], blocks: i64, device: Device) -> Result<Tensor> {
    let n = generators.len() as i64;
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | i64::from(*byte));
    let keys: Vec<i64> =
        generators.iter().flat_map(|g| g.get_seed().chunks_exact(4).map(word).collect::<Vec<_>>()).collect();
    let keys = upload(&Tensor::f_from_slice(&keys)?.f_view([n, 1, 8])?, device)?.f_expand([n, blocks, 8], false)?;
    let constants = upload(&Tensor::f_from_slice(&CONSTANTS)?, device)?.f_expand([n, blocks, 4], false)?;
    let counters =
        Tensor::f_arange(blocks, (Kind::Int64, device))?.f_view([1, blocks, 1])?.f_expand([n, blocks, 1], false)?;
    let zeros = Tensor::f_zeros([n, blocks, 3], (Kind::Int64, device))?;
    let begin = Tensor::f_cat(&[constants, keys, counters, zeros], 2)?.f_view([-1, 4, 4])?.f_permute([1, 2, 0])?;
    let [mut a, mut b, mut c, mut d] = [0, 1, 2, 3].map(|row| begin.select(0, row)); // each [4,N·blocks]
    for round in 0..2 * DOUBLE_ROUNDS {
        a = (a + &b).bitwise_and(WORD);
        d = rotated(&d.bitwise_xor_tensor(&a), 16);
        c = (c + &d).bitwise_and(WORD);
        b = rotated(&b.bitwise_xor_tensor(&c), 12);
        a = (a + &b).bitwise_and(WORD);
        d = rotated(&d.bitwise_xor_tensor(&a), 8);
        c = (c + &d).bitwise_and(WORD);
        b = rotated(&b.bitwise_xor_tensor(&c), 7);
        // Columns become diagonals, and columns again.
        let by = if round % 2 == 0 { [3, 2, 1] } else { [1, 2, 3] };
        (b, c, d) = (b.roll(by[0], 0), c.roll(by[1], 0), d.roll(by[2], 0));
    }
    let end = (Tensor::f_stack(&[a, b, c, d], 0)? + begin).bitwise_and(WORD);
    Ok(end.f_permute([2, 0, 1])?)
}

/// Words of 32 bits rotated to the left.
fn rotated(words: &Tensor, by: i64) -> Tensor {
    (words * (1 << by)).bitwise_and(WORD) + words.bitwise_right_shift_tensor_scalar(32 - by)
}
