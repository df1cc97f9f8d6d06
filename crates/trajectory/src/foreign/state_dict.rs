//! A state dict as `torch.save` writes it: a zip of a pickle and the tensors' values.

use lcsc_torch::{Device, Error, Kind, Result, Tensor, bail};
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The bytes of a file that `torch.load(…, weights_only=True)` reads as an `OrderedDict` of these f32 tensors, in this order;
/// `usage` is the text of an entry of the zip, beside the values.
///
/// # Errors
/// A tensor is of another type.
pub fn state_dict(tensors: &[(String, Tensor)], usage: &str) -> Result<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let broken = |e: &dyn std::fmt::Display| Error::msg(format!("writing a state dict: {e}"));
    let mut entry = |name: &str, bytes: &[u8]| -> Result<()> {
        let large = bytes.len() as u64 > u64::from(u32::MAX);
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(large);
        zip.start_file(format!("archive/{name}"), options).map_err(|e| broken(&e))?;
        zip.write_all(bytes).map_err(|e| broken(&e))
    };
    entry("data.pkl", &pickle(tensors))?;
    entry("byteorder", b"little")?;
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        if tensor.kind() != Kind::Float {
            bail!("writing a state dict: `{name}` is of type {:?}, expected Float", tensor.kind());
        }
        let tensor = tensor.f_to(Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0; tensor.numel() * 4];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        entry(&format!("data/{i}"), &bytes)?;
    }
    entry("version", b"3\n")?;
    entry("usage.txt", usage.as_bytes())?;
    Ok(zip.finish().map_err(|e| broken(&e))?.into_inner())
}

/// The pickle, protocol 2: storage i belongs to tensor i.
fn pickle(tensors: &[(String, Tensor)]) -> Vec<u8> {
    const EMPTY_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";
    let mut p = vec![0x80, 2];
    p.extend(EMPTY_DICT);
    p.push(b'(');
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        text(&mut p, name);
        p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut p, "storage");
        p.extend(b"ctorch\nFloatStorage\n");
        text(&mut p, &i.to_string());
        text(&mut p, "cpu");
        int(&mut p, tensor.numel() as i64);
        p.extend(b"tQK\0"); // the persistent id; offset 0
        let size = tensor.size();
        tuple(&mut p, &size);
        tuple(&mut p, &strides(&size));
        p.push(0x89); // no gradient
        p.extend(EMPTY_DICT); // no hooks
        p.extend(b"tR");
    }
    p.extend(b"u.");
    p
}

/// Of a contiguous tensor.
fn strides(size: &[i64]) -> Vec<i64> {
    (0..size.len()).map(|axis| size[axis + 1..].iter().product()).collect()
}

fn text(p: &mut Vec<u8>, text: &str) {
    p.push(b'X');
    p.extend((text.len() as u32).to_le_bytes());
    p.extend(text.as_bytes());
}

fn int(p: &mut Vec<u8>, value: i64) {
    p.extend([0x8a, 8]);
    p.extend(value.to_le_bytes());
}

fn tuple(p: &mut Vec<u8>, values: &[i64]) {
    p.push(b'(');
    values.iter().for_each(|&value| int(p, value));
    p.push(b't');
}
