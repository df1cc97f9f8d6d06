//! Weights in memory and in safetensors files: strict both ways, written atomically.

use crate::error::{Context, Error, Result};
use crate::group::Group;
use crate::layout::{ParamLayout, TensorSpec};
use safetensors::tensor::{Dtype, SafeTensors, TensorInfo, TensorView};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// One network's values: the flat vector and the untrained buffers beside it.
#[derive(Debug)]
pub struct Weights {
    /// All parameters, f32 `[P]`, in the order of the layout.
    pub theta: Tensor,
    /// Buffers, f32, in the order of the layout.
    pub buffers: Vec<Tensor>,
}

// SAFETY: as for `Params`; an optimizer, which writes, has weights of its own.
unsafe impl Sync for Weights {}

impl Weights {
    /// The same buffers beside another flat vector.
    pub fn with_theta(&self, theta: Tensor) -> Weights {
        Weights { theta, buffers: self.buffers.iter().map(Tensor::shallow_clone).collect() }
    }

    /// What rank 0 makes or reads, on all ranks.
    ///
    /// # Errors
    /// Those of `make`, on all ranks; the device has no room; another rank is gone.
    pub fn shared(
        group: &Group,
        layout: &ParamLayout,
        device: Device,
        make: impl FnOnce() -> Result<Weights>,
    ) -> Result<Weights> {
        let weights = group.all_ok(if group.leads() { make() } else { layout.init(0, device) })?;
        group.broadcast(&weights.theta)?;
        weights.buffers.iter().try_for_each(|buffer| group.broadcast(buffer))?;
        Ok(weights)
    }
}

/// The type in which files keep parameters. Buffers are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StorageDtype {
    /// Exact.
    #[default]
    F32,
    /// Half the size, 8 bits of mantissa.
    Bf16,
    /// Half the size, 11 bits of mantissa, values up to 65504.
    F16,
}

impl StorageDtype {
    /// The tensor type.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }

    /// Bytes a value.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// The one metadata entry of our files: a name and a JSON text. One entry, so that equal content gives equal bytes.
pub type Metadata<'a> = (&'a str, &'a str);

fn dtype_of(kind: Kind) -> Result<Dtype> {
    Ok(match kind {
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Half => Dtype::F16,
        Kind::Int64 => Dtype::I64,
        Kind::Uint8 => Dtype::U8,
        other => return Err(Error::Message(format!("tensors of type {other:?} are not written to files"))),
    })
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F16 => Kind::Half,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::U8 => Kind::Uint8,
        _ => return None, // the foreign, growing enum of the safetensors crate
    })
}

/// The bytes of a safetensors file.
///
/// # Errors
/// A tensor type that files do not hold.
pub fn serialize(tensors: &[(String, Tensor)], metadata: Metadata) -> Result<Vec<u8>> {
    let mut parts = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let tensor = tensor.f_to(Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        let shape = tensor.size().iter().map(|&d| d as usize).collect::<Vec<_>>();
        parts.push((name.as_str(), dtype_of(tensor.kind())?, shape, bytes));
    }
    let views = parts
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|e| Error::Message(format!("writing safetensors: {e}")))?;
    let metadata = HashMap::from([(metadata.0.to_string(), metadata.1.to_string())]);
    safetensors::serialize(views, Some(metadata)).map_err(|e| Error::Message(format!("writing safetensors: {e}")))
}

/// The tensors of a weights file: parameters in `dtype`, buffers in f32, by name.
///
/// # Errors
/// libtorch ran out of memory.
pub fn pack_weights(layout: &ParamLayout, weights: &Weights, dtype: StorageDtype) -> Result<Vec<(String, Tensor)>> {
    let theta = weights.theta.f_detach()?.f_to_device_(Device::Cpu, dtype.kind(), false, false)?;
    let sizes: Vec<i64> = layout.params().iter().map(|p| p.numel()).collect();
    let pieces = theta.f_split_with_sizes(sizes, 0)?;
    let mut tensors = Vec::with_capacity(pieces.len() + weights.buffers.len());
    for (spec, piece) in layout.params().iter().zip(&pieces) {
        tensors.push((spec.name.clone(), piece.f_view(spec.shape.as_slice())?));
    }
    for (spec, buffer) in layout.buffers().iter().zip(&weights.buffers) {
        tensors.push((spec.name.clone(), buffer.f_to(Device::Cpu)?));
    }
    Ok(tensors)
}

/// A safetensors file held in memory, its header checked against its length.
pub struct SafeFile {
    path: PathBuf,
    bytes: Vec<u8>,
    header: safetensors::tensor::Metadata,
    data: usize,
}

impl SafeFile {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is no whole safetensors file (truncated, overwritten).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_bytes(path, std::fs::read(path).at(path)?)
    }

    /// The same for bytes that were read already (and hashed); `path` is what errors name.
    ///
    /// # Errors
    /// The bytes are no whole safetensors file.
    pub fn from_bytes(path: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let damaged = |e| Error::file(&path, format!("not a whole safetensors file ({e})"));
        let (header_len, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        SafeTensors::deserialize(&bytes).map_err(damaged)?;
        Ok(Self { path, bytes, header, data: 8 + header_len })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A metadata entry.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn metadata(&self, key: &str) -> Result<&str> {
        let found = self.header.metadata().as_ref().and_then(|m| m.get(key));
        found.map(String::as_str).ok_or_else(|| {
            Error::file(&self.path, format!("has no metadata entry `{key}`: it was not written by this program"))
        })
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.header.tensors().keys().cloned().collect();
        names.sort();
        names
    }

    /// A tensor in its own type, on the CPU.
    ///
    /// # Errors
    /// There is none of that name, or its type is unknown here.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self.info(name)?;
        let kind = kind_of(info.dtype).ok_or_else(|| {
            Error::file(&self.path, format!("tensor `{name}` has type {:?}, unknown here", info.dtype))
        })?;
        let shape: Vec<i64> = info.shape.iter().map(|&d| d as i64).collect();
        Tensor::f_from_data_size(&self.bytes[self.range(name)?], &shape, kind).at(&self.path)
    }

    /// All tensors, in the order of their names.
    ///
    /// # Errors
    /// A type is unknown here.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        self.names().into_iter().map(|name| Ok((name.clone(), self.tensor(&name)?))).collect()
    }

    /// Where in the file the bytes of a tensor lie.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn range(&self, name: &str) -> Result<Range<usize>> {
        let (begin, end) = self.info(name)?.data_offsets;
        Ok(self.data + begin..self.data + end)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header
            .info(name)
            .ok_or_else(|| Error::file(&self.path, format!("has no tensor `{name}`; it holds {}", list(&self.names()))))
    }

    /// The weights of a network as the file holds them, on the CPU: `theta` is f32, bf16 or f16.
    ///
    /// # Errors
    /// A tensor is missing, extra, mis-shaped or mis-typed (parameters: all f32, all bf16 or all f16; buffers: f32).
    pub fn weights(&self, layout: &ParamLayout) -> Result<Weights> {
        self.no_others(layout)?;
        let mut kinds = vec![Kind::Float, Kind::BFloat16, Kind::Half];
        let mut pieces = Vec::with_capacity(layout.params().len());
        for spec in layout.params() {
            let piece = self.expect(spec, &kinds)?;
            kinds = vec![piece.kind()];
            pieces.push(piece.f_flatten(0, -1)?);
        }
        let buffers = layout.buffers().iter().map(|spec| self.expect(spec, &[Kind::Float])).collect::<Result<_>>()?;
        Ok(Weights { theta: Tensor::f_cat(&pieces, 0)?, buffers })
    }

    /// Whether the file holds the tensors of a network, by their names and shapes alone.
    ///
    /// # Errors
    /// A tensor is missing, extra or mis-shaped.
    pub fn check(&self, layout: &ParamLayout) -> Result<()> {
        self.no_others(layout)?;
        for spec in layout.params().iter().chain(layout.buffers()) {
            let shape: Vec<i64> = self.info(&spec.name)?.shape.iter().map(|&d| d as i64).collect();
            self.expect_shape(spec, &shape)?;
        }
        Ok(())
    }

    fn no_others(&self, layout: &ParamLayout) -> Result<()> {
        let expected: HashSet<&str> = layout.params().iter().chain(layout.buffers()).map(|s| s.name.as_str()).collect();
        let extra: Vec<String> = self.names().into_iter().filter(|n| !expected.contains(n.as_str())).collect();
        if extra.is_empty() {
            return Ok(());
        }
        let message = format!("holds tensors that this network does not have: {}", list(&extra));
        Err(Error::file(&self.path, message))
    }

    fn expect_shape(&self, spec: &TensorSpec, found: &[i64]) -> Result<()> {
        if found == spec.shape {
            return Ok(());
        }
        let message = format!("tensor `{}` has shape {found:?}, expected {:?}", spec.name, spec.shape);
        Err(Error::file(&self.path, message))
    }

    /// A tensor of the network, of one of these types.
    fn expect(&self, spec: &TensorSpec, kinds: &[Kind]) -> Result<Tensor> {
        let tensor = self.tensor(&spec.name)?;
        self.expect_shape(spec, &tensor.size())?;
        if !kinds.contains(&tensor.kind()) {
            let message = format!("tensor `{}` has type {:?}, expected {kinds:?}", spec.name, tensor.kind());
            return Err(Error::file(&self.path, message));
        }
        Ok(tensor)
    }
}

/// The first few of a list of names.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// The weights of a network out of a file, in f32 on `device`.
///
/// # Errors
/// Those of [`SafeFile::weights`], or the device has no room.
pub fn load_weights(layout: &ParamLayout, file: &SafeFile, device: Device) -> Result<Weights> {
    let Weights { theta, buffers } = file.weights(layout)?;
    let buffers = buffers.iter().map(|b| Ok(b.f_to(device)?)).collect::<Result<_>>()?;
    Ok(Weights { theta: theta.f_to_kind(Kind::Float)?.f_to(device)?, buffers })
}

/// Writes a file so that a reader finds the old one or the whole new one, also after a power cut.
///
/// # Errors
/// The folder is missing or not writable, or the disk is full; the old file is then untouched.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Readable as any new file is (the umask applies), not for the owner alone as temporary files are.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let mut temp = tempfile::Builder::new().suffix(".tmp").permissions(mode).tempfile_in(folder).at(folder)?;
    temp.write_all(bytes).at(path)?;
    temp.as_file().sync_all().at(path)?;
    temp.persist(path).map_err(|e| e.error).at(path)?;
    sync_folder(folder)
}

/// Makes a rename inside a folder durable.
///
/// # Errors
/// The folder cannot be opened or synced.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).at(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Init, LayoutBuilder};

    fn layout() -> ParamLayout {
        let mut b = LayoutBuilder::default();
        b.param("z.weight", &[2, 2], Init::Normal(1.0));
        b.param("a.bias", &[3], Init::Normal(1.0));
        b.buffer("freqs", &[2], Init::Normal(16.0));
        b.finish()
    }

    fn saved(layout: &ParamLayout, dtype: StorageDtype) -> (Weights, SafeFile) {
        let weights = layout.init(1, Device::Cpu).unwrap();
        let tensors = pack_weights(layout, &weights, dtype).unwrap();
        let file = SafeFile::from_bytes("x", serialize(&tensors, ("lcsc", "{}")).unwrap()).unwrap();
        (weights, file)
    }

    #[test]
    fn weights_survive_a_file_bit_for_bit() {
        let layout = layout();
        let (weights, file) = saved(&layout, StorageDtype::F32);
        let back = load_weights(&layout, &file, Device::Cpu).unwrap();
        assert!(back.theta.equal(&weights.theta));
        assert!(back.buffers[0].equal(&weights.buffers[0]));
        assert_eq!(file.metadata("lcsc").unwrap(), "{}");
    }

    #[test]
    fn half_types_round_once_and_leave_buffers_alone() {
        let layout = layout();
        for dtype in [StorageDtype::Bf16, StorageDtype::F16] {
            let (weights, file) = saved(&layout, dtype);
            let back = load_weights(&layout, &file, Device::Cpu).unwrap();
            assert!(back.theta.equal(&weights.theta.to_kind(dtype.kind()).to_kind(Kind::Float)));
            assert!(back.buffers[0].equal(&weights.buffers[0]));
        }
    }

    #[test]
    fn a_file_gives_its_own_type_and_where_its_bytes_lie() {
        let layout = layout();
        let weights = layout.init(1, Device::Cpu).unwrap();
        let tensors = pack_weights(&layout, &weights, StorageDtype::Bf16).unwrap();
        let bytes = serialize(&tensors, ("lcsc", "{}")).unwrap();
        let file = SafeFile::from_bytes("x", bytes.clone()).unwrap();
        let theta = file.weights(&layout).unwrap().theta;
        assert!(theta.kind() == Kind::BFloat16 && theta.equal(&weights.theta.to_kind(Kind::BFloat16)));
        let found = Tensor::from_data_size(&bytes[file.range("z.weight").unwrap()], &[4], Kind::BFloat16);
        assert!(found.equal(&theta.narrow(0, 3, 4)));
        assert!(file.range("y").unwrap_err().to_string().contains("no tensor `y`"));
    }

    #[test]
    fn loading_is_strict_both_ways() {
        let (_, file) = saved(&layout(), StorageDtype::F32);
        let load = |change: &dyn Fn(&mut LayoutBuilder)| {
            let mut b = LayoutBuilder::default();
            change(&mut b);
            load_weights(&b.finish(), &file, Device::Cpu).unwrap_err().to_string()
        };
        let extra = load(&|b| {
            b.param("a.bias", &[3], Init::Zeros);
        });
        assert!(extra.contains("`freqs`, `z.weight`"), "{extra}");
        let missing = load(&|b| {
            b.param("a.bias", &[3], Init::Zeros);
            b.param("z.weight", &[2, 2], Init::Zeros);
            b.param("y", &[1], Init::Zeros);
            b.buffer("freqs", &[2], Init::Zeros);
        });
        assert!(missing.contains("no tensor `y`"), "{missing}");
        let shape = load(&|b| {
            b.param("a.bias", &[3], Init::Zeros);
            b.param("z.weight", &[4], Init::Zeros);
            b.buffer("freqs", &[2], Init::Zeros);
        });
        assert!(shape.contains("`z.weight` has shape [2, 2], expected [4]"), "{shape}");
    }

    #[test]
    fn mixed_types_and_torn_files_are_refused() {
        let layout = layout();
        let (weights, _) = saved(&layout, StorageDtype::F32);
        let mut tensors = pack_weights(&layout, &weights, StorageDtype::F32).unwrap();
        tensors[1].1 = tensors[1].1.to_kind(Kind::Half);
        let bytes = serialize(&tensors, ("lcsc", "{}")).unwrap();
        let file = SafeFile::from_bytes("x", bytes.clone()).unwrap();
        let text = load_weights(&layout, &file, Device::Cpu).unwrap_err().to_string();
        assert!(text.contains("`z.weight` has type Half, expected [Float]"), "{text}");
        let torn = SafeFile::from_bytes("torn.safetensors", bytes[..bytes.len() - 3].to_vec()).err().unwrap();
        assert!(torn.to_string().starts_with("torn.safetensors: not a whole safetensors file"), "{torn}");
    }

    #[test]
    fn equal_content_gives_equal_bytes() {
        let layout = layout();
        let weights = layout.init(1, Device::Cpu).unwrap();
        let bytes = || serialize(&pack_weights(&layout, &weights, StorageDtype::F32).unwrap(), ("lcsc", "{}")).unwrap();
        assert_eq!(bytes(), bytes());
    }

    #[test]
    fn an_atomic_write_replaces_and_leaves_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
