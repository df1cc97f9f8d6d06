//! NumPy's arrays and scalars inside pickles.

use crate::error::{Error, Result};
use crate::node::{Id, Node, Pickle};
use std::borrow::Cow;

/// An array in row-major order, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array<'a> {
    /// Sizes of its axes.
    pub shape: Vec<usize>,
    /// Its type as NumPy names it, without byte order: `u1`, `f4`, `f8`, `i8`, …
    pub dtype: String,
    /// Its bytes, as many as shape and type say.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Array<'a> {
    /// The array or scalar that a node is; a scalar has no axes.
    ///
    /// # Errors
    /// The node is something else, or the array is big-endian, in column order, of objects, or of another size than its
    /// bytes.
    pub fn read(pickle: &Pickle<'a>, id: Id) -> Result<Array<'a>> {
        let object = pickle.object(id).ok_or_else(|| wrong("found no object"))?;
        let (module, name) = pickle.global(object.callee).unwrap_or_default();
        match (module, name, object.state, pickle.tuple(object.args)?) {
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct", Some(state), _) => {
                match pickle.tuple(state)? {
                    &[_, shape, dtype, by_columns, bytes] => {
                        let by_columns = *pickle.node(by_columns) == Node::Bool(true);
                        Self::checked(pickle, Some(shape), dtype, bytes, by_columns)
                    }
                    _ => Err(wrong("its state is none")),
                }
            }
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar", _, &[dtype, bytes]) => {
                Self::checked(pickle, None, dtype, bytes, false)
            }
            // Protocol 5.
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer", _, &[bytes, dtype, shape, order]) => {
                Self::checked(pickle, Some(shape), dtype, bytes, pickle.text(order)? == "F")
            }
            _ => Err(wrong("found another object")),
        }
    }

    fn checked(pickle: &Pickle<'a>, shape: Option<Id>, dtype: Id, bytes: Id, by_columns: bool) -> Result<Array<'a>> {
        if by_columns {
            return Err(wrong("its values lie in column order; save it with numpy.ascontiguousarray"));
        }
        let size = |&axis: &Id| usize::try_from(pickle.int(axis)?).map_err(|_| wrong("an axis of negative size"));
        let axes = shape.map_or(Ok(&[][..]), |shape| pickle.tuple(shape))?;
        let shape = axes.iter().map(size).collect::<Result<Vec<_>>>()?;
        let (dtype, width) = self::dtype(pickle, dtype)?;
        let bytes = pickle.bytes(bytes)?;
        let expected = shape.iter().try_fold(width, |n, &axis| n.checked_mul(axis));
        if expected != Some(bytes.len()) {
            return Err(wrong(&format!("its shape is {shape:?} of `{dtype}`, but it has {} bytes", bytes.len())));
        }
        Ok(Array { shape, dtype, bytes })
    }

    /// The values of an array of `f8`.
    ///
    /// # Errors
    /// The array is of another type.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        if self.dtype != "f8" {
            return Err(Error::Unexpected(format!("expected a NumPy array of float64, found `{}`", self.dtype)));
        }
        let (values, _) = self.bytes.as_chunks::<8>();
        Ok(values.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect())
    }
}

fn wrong(what: &str) -> Error {
    Error::Unexpected(format!("expected a NumPy array: {what}"))
}

/// Name and bytes of a type.
fn dtype(pickle: &Pickle, id: Id) -> Result<(String, usize)> {
    let wrong = |what: &str| Error::Unexpected(format!("expected the type of a NumPy array: {what}"));
    let object = pickle.object(id).ok_or_else(|| wrong("found no object"))?;
    let name = pickle.tuple(object.args)?.first().copied().ok_or_else(|| wrong("it has no name"))?;
    let name = pickle.text(name)?;
    let order = object.state.and_then(|state| pickle.tuple(state).ok()?.get(1).copied());
    if order.is_some_and(|order| pickle.text(order) == Ok(">")) {
        return Err(wrong("it is big-endian"));
    }
    let width = match (name.get(..1), name.get(1..).map(str::parse)) {
        (Some("b" | "i" | "u" | "f"), Some(Ok(width @ (1 | 2 | 4 | 8)))) => width,
        _ => return Err(wrong(&format!("`{}` is no number", name.escape_debug()))),
    };
    Ok((name.into(), width))
}
