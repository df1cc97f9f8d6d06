//! The flat arrays that PyTorch's tensors are views of.

use lcsc_pickle::{Id, Node, Pickle};
use lcsc_torch::{Device, Error, Kind, Result, Tensor, bail};
use std::borrow::Cow;
use std::collections::HashMap;

/// The values of a storage.
#[derive(Debug, Clone)]
pub(super) struct Storage<'a> {
    pub kind: Kind,
    pub bytes: Cow<'a, [u8]>,
}

/// Reads an entry of a zip by its key.
pub(super) type ReadEntry<'a> = &'a mut dyn FnMut(&str) -> Result<Vec<u8>>;

/// Where storages are that a pickle only names.
pub(super) enum Storages<'a> {
    /// There are none.
    None,
    /// They were read with it.
    Known(HashMap<String, Storage<'a>>),
    /// Entries of a zip.
    Entries { read: ReadEntry<'a>, known: HashMap<String, Storage<'a>> },
}

impl<'a> Storages<'a> {
    /// The storage with this key.
    pub(super) fn get(&mut self, key: &str, kind: Kind) -> Result<&Storage<'a>> {
        if let Self::Entries { read, known } = self
            && !known.contains_key(key)
        {
            known.insert(key.to_string(), Storage { kind, bytes: Cow::Owned(read(key)?) });
        }
        let known = match self {
            Self::None => None,
            Self::Known(known) | Self::Entries { known, .. } => known.get(key),
        };
        match known {
            Some(storage) if storage.kind == kind => Ok(storage),
            Some(_) => bail!("it lies in a storage `{key}` that another tensor reads as another type"),
            None => bail!("it lies in a storage `{key}` that the file does not hold"),
        }
    }
}

impl<'a> Storage<'a> {
    /// A storage of a legacy file: the number of its values as i64, then these; and how many bytes that is.
    pub(super) fn after_count(bytes: &'a [u8], kind: Kind) -> Result<(Self, usize)> {
        let count = bytes.get(..8).and_then(|count| Some(i64::from_le_bytes(count.try_into().ok()?)));
        let size = count.and_then(|n| usize::try_from(n).ok()?.checked_mul(kind.elt_size_in_bytes()));
        let end = size.and_then(|size| size.checked_add(8));
        match end.and_then(|end| Some((bytes.get(8..end)?, end))) {
            Some((values, end)) => Ok((Self { kind, bytes: Cow::Borrowed(values) }, end)),
            None => bail!("is cut off inside a storage"),
        }
    }

    /// The tensor [size] at an offset with these strides, in values. A copy of at most `budget` bytes.
    ///
    /// # Errors
    /// It reaches beyond the storage, has more values than that, or more bytes than allowed.
    pub(super) fn view(&self, offset: i64, size: &[i64], stride: &[i64], budget: usize) -> Result<Tensor> {
        let width = self.kind.elt_size_in_bytes();
        let values = self.bytes.len() / width;
        let numel = size.iter().try_fold(1i64, |n, &d| n.checked_mul(d).filter(|_| d >= 0));
        let last = size.iter().zip(stride).try_fold(offset, |at, (&d, &s)| {
            at.checked_add(d.saturating_sub(1).max(0).checked_mul(s)?).filter(|_| s >= 0)
        });
        let (Some(numel), Some(last)) = (numel, last) else {
            bail!("a tensor has the shape {size:?} with strides {stride:?}")
        };
        let fits = numel == 0 || (offset >= 0 && last < values as i64 && numel <= values as i64);
        if size.len() != stride.len() || !fits {
            bail!("a tensor of shape {size:?} at {offset} reaches beyond its storage of {values} values");
        }
        if numel == 0 {
            return Ok(Tensor::f_zeros(size, (self.kind, Device::Cpu))?);
        }
        if numel as usize * width > budget {
            bail!("the file's tensors take many times its own length");
        }
        // Of the storage, no more than the tensor spans.
        let (offset, last) = (offset as usize, last as usize);
        let span = &self.bytes[offset * width..(last + 1) * width];
        let flat = Tensor::f_from_data_size(span, &[(last + 1 - offset) as i64], self.kind)?;
        Ok(flat.f_as_strided(size, stride, 0)?.f_contiguous()?)
    }
}

/// The type of a storage by the name of its class.
pub(super) fn kind(name: &str) -> Result<Kind> {
    Ok(match name {
        "FloatStorage" => Kind::Float,
        "DoubleStorage" => Kind::Double,
        "HalfStorage" => Kind::Half,
        "BFloat16Storage" => Kind::BFloat16,
        "LongStorage" => Kind::Int64,
        "IntStorage" => Kind::Int,
        "ShortStorage" => Kind::Int16,
        "CharStorage" => Kind::Int8,
        "ByteStorage" | "UntypedStorage" => Kind::Uint8,
        "BoolStorage" => Kind::Bool,
        other => bail!("a tensor is of the type `{other}`, unknown here"),
    })
}

/// Key and type that a persistent id `("storage", type, key, location, numel, …)` stands for.
pub(super) fn named<'p>(pickle: &'p Pickle, id: Id) -> Result<(&'p str, Kind)> {
    let wrong = || Error::msg("a tensor lies in something that is no storage");
    let parts = pickle.tuple(id).map_err(|_| wrong())?;
    let &[tag, class, key, ..] = parts else { return Err(wrong()) };
    if pickle.text(tag) != Ok("storage") {
        return Err(wrong());
    }
    let (_, name) = pickle.global(class).ok_or_else(wrong)?;
    Ok((pickle.text(key).map_err(|_| wrong())?, kind(name)?))
}

/// The types of all storages that a pickle names.
pub(super) fn types(pickle: &Pickle) -> Result<HashMap<String, Kind>> {
    let mut types = HashMap::new();
    for node in pickle.nodes() {
        if let Node::Persistent(id) = node {
            let (key, kind) = named(pickle, *id)?;
            types.insert(key.to_string(), kind);
        }
    }
    Ok(types)
}
