//! W [K,P] wherever it lies: rows in the type of their files, handed out as column blocks in f32 on the device.

use crate::checkpoint::Stamp;
use crate::mapped::{MappedFile, read_columns};
use crate::{Checkpoint, Memory, Placement};
use lcsc_torch::{Device, Error, Kind, ParamLayout, Result, SafeFile, Tensor};
use std::ops::Range;

/// Values of W in a column block. On the CPU it stays in the cache between conversion and product: of 2^16 to 2^23 this
/// was about the fastest for bf16 (K = 50).
const CPU_BLOCK: i64 = 1 << 20;
/// On a GPU launches must be few; this is 64 MiB in f32.
const GPU_BLOCK: i64 = 1 << 24;

/// The rows of W: the parameters of K checkpoints.
#[derive(Debug)]
pub(crate) struct Rows {
    blocks: Vec<Block>,
    finite: Vec<bool>,
    device: Device,
}

/// Consecutive rows of one type.
#[derive(Debug)]
struct Block {
    first: usize,
    kind: Kind,
    data: Data,
}

#[derive(Debug)]
enum Data {
    /// [k,P], on the device or on the CPU.
    Held(Tensor),
    Mapped(Vec<MappedFile>),
}

impl Rows {
    /// Room for the parameters of these checkpoints; each is then given to [`Rows::push`].
    ///
    /// # Errors
    /// There is no room.
    pub fn new(checkpoints: &[Checkpoint], columns: i64, memory: Memory, placement: Placement) -> Result<Self> {
        let mut blocks = Vec::new();
        let mut first = 0;
        for same in checkpoints.chunk_by(|a, b| a.dtype == b.dtype) {
            let (size, kind) = ([same.len() as i64, columns], same[0].dtype.kind());
            let data = match placement {
                Placement::Device => Data::Held(Tensor::f_empty(size, (kind, memory.device))?),
                Placement::Host => Data::Held(Tensor::f_empty(size, (kind, Device::Cpu))?),
                Placement::Mapped => Data::Mapped(Vec::with_capacity(same.len())),
            };
            blocks.push(Block { first, kind, data });
            first += same.len();
        }
        Ok(Self { blocks, finite: Vec::with_capacity(first), device: memory.device })
    }

    /// The next row: `theta` [P], as it was read from `file`, which bore `stamp` then.
    ///
    /// # Errors
    /// `theta` has another type than the manifest says, or the file cannot be mapped.
    pub fn push(&mut self, theta: &Tensor, file: &SafeFile, stamp: Stamp, layout: &ParamLayout) -> Result<()> {
        let row = self.finite.len();
        let at = self.block_of(row);
        let block = &mut self.blocks[at];
        if theta.kind() != block.kind {
            let message = format!("its parameters are {:?}, the manifest says {:?}", theta.kind(), block.kind);
            return Err(Error::file(file.path(), message));
        }
        self.finite.push(theta.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0);
        match &mut block.data {
            Data::Held(w) => w.f_select(0, (row - block.first) as i64)?.f_copy_(theta)?,
            Data::Mapped(files) => files.push(MappedFile::open(file, stamp, layout)?),
        }
        Ok(())
    }

    /// K.
    pub fn len(&self) -> usize {
        self.finite.len()
    }

    /// The rows in stretches of consecutive ones of one type. A row that is not finite stands alone: a product would
    /// spread it, coefficient zero or not.
    pub fn stretches(&self) -> Vec<Range<usize>> {
        let joined = |&i: &usize, &j: &usize| self.finite[i] && self.finite[j] && self.block_of(i) == self.block_of(j);
        let all: Vec<usize> = (0..self.len()).collect();
        all.chunk_by(joined).map(|rows| rows[0]..rows[0] + rows.len()).collect()
    }

    /// To be called before rows of one stretch are read.
    ///
    /// # Errors
    /// A file of theirs is no longer the one whose hash was checked.
    pub fn check(&self, rows: &Range<usize>) -> Result<()> {
        let block = &self.blocks[self.block_of(rows.start)];
        match &block.data {
            Data::Held(_) => Ok(()),
            Data::Mapped(files) => {
                files[rows.start - block.first..][..rows.len()].iter().try_for_each(MappedFile::check)
            }
        }
    }

    /// Calls `work(start, w)` with `w` f32 [k,b] on the device, for each block of columns `start..start + b` of `columns`.
    /// The `rows` are of one stretch. f32 rows on the device are views, on the CPU of all columns at once where `whole`
    /// says that the work divides them itself.
    ///
    /// # Errors
    /// The first of `work`, or there is no room.
    pub fn each_block(
        &self,
        rows: &Range<usize>,
        columns: Range<i64>,
        whole: bool,
        mut work: impl FnMut(i64, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let width = match &self.blocks[self.block_of(rows.start)] {
            _ if self.device != Device::Cpu => GPU_BLOCK / rows.len() as i64,
            Block { data: Data::Held(_), kind: Kind::Float, .. } if whole => columns.end - columns.start,
            _ => CPU_BLOCK / rows.len() as i64,
        };
        let width = width.max(1);
        for start in columns.clone().step_by(width as usize) {
            let w = self.block(rows, start, width.min(columns.end - start))?;
            work(start, &w.f_to(self.device)?.f_to_kind(Kind::Float)?)?;
        }
        Ok(())
    }

    /// Columns of rows of one stretch, [k,b] in their type, where they lie.
    fn block(&self, rows: &Range<usize>, start: i64, len: i64) -> Result<Tensor> {
        let block = &self.blocks[self.block_of(rows.start)];
        let first = rows.start - block.first;
        Ok(match &block.data {
            Data::Held(w) => w.f_narrow(0, first as i64, rows.len() as i64)?.f_narrow(1, start, len)?,
            Data::Mapped(files) => read_columns(&files[first..][..rows.len()], block.kind, start, len)?,
        })
    }

    fn block_of(&self, row: usize) -> usize {
        self.blocks.partition_point(|block| block.first <= row) - 1
    }
}
