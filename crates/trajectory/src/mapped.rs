//! Checkpoint files that stay on disk: their parameters are read as they are needed.

use crate::checkpoint::Stamp;
use lcsc_torch::{Context, Device, Kind, ParamLayout, Result, SafeFile, Tensor};
use memmap2::Mmap;
use std::fs::File;
use std::path::PathBuf;

/// Parameters that lie one after the other in the file as they do in theta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    /// Place of the first in theta, in bytes of the file's type.
    theta: usize,
    /// Place of the first in the file, in bytes.
    file: usize,
    /// How many bytes.
    len: usize,
}

/// The file of one checkpoint, mapped into memory.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    stamp: Stamp,
    map: Mmap,
    segments: Vec<Segment>,
}

impl MappedFile {
    /// Maps a file whose hash was checked, and which bore `stamp` then.
    ///
    /// # Errors
    /// The file was altered since, or cannot be mapped.
    pub fn open(file: &SafeFile, stamp: Stamp, layout: &ParamLayout) -> Result<Self> {
        let path = file.path().to_path_buf();
        let handle = File::open(&path).at(&path)?;
        stamp.check(&path, handle.metadata())?;
        // SAFETY: the mapping is only read, each time after a look at the stamp. A change at that very moment cannot be
        // guarded against; our own writer replaces files and never writes into one.
        let map = unsafe { Mmap::map(&handle) }.at(&path)?;
        Ok(Self { path, stamp, map, segments: segments(file, layout)? })
    }

    /// To be called before the file is read.
    ///
    /// # Errors
    /// The file is no longer the one whose hash was checked.
    pub fn check(&self) -> Result<()> {
        self.stamp.check(&self.path, std::fs::metadata(&self.path))
    }

    /// The bytes `start..end` of theta in the file's type, in pieces.
    fn pieces(&self, start: usize, end: usize) -> impl Iterator<Item = &[u8]> {
        let first = self.segments.partition_point(|s| s.theta + s.len <= start);
        self.segments[first..].iter().take_while(move |s| s.theta < end).map(move |s| {
            let (begin, end) = (start.max(s.theta) - s.theta, end.min(s.theta + s.len) - s.theta);
            &self.map[s.file + begin..s.file + end]
        })
    }
}

/// Where theta lies in a file: buffers may lie between parameters.
fn segments(file: &SafeFile, layout: &ParamLayout) -> Result<Vec<Segment>> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut theta = 0;
    for spec in layout.params() {
        let range = file.range(&spec.name)?;
        match segments.last_mut() {
            Some(last) if last.file + last.len == range.start => last.len += range.len(),
            _ => segments.push(Segment { theta, file: range.start, len: range.len() }),
        }
        theta += range.len();
    }
    Ok(segments)
}

/// Columns `start..start + len` of the rows that these files hold, `kind` [k,len] on the CPU.
///
/// # Errors
/// There is no room.
pub(crate) fn read_columns(files: &[MappedFile], kind: Kind, start: i64, len: i64) -> Result<Tensor> {
    let columns = Tensor::f_empty([files.len() as i64, len], (kind, Device::Cpu))?;
    let size = kind.elt_size_in_bytes();
    let (start, end) = (start as usize * size, (start + len) as usize * size);
    let mut to = columns.data_ptr().cast::<u8>();
    for piece in files.iter().flat_map(|file| file.pieces(start, end)) {
        // SAFETY: the tensor was made contiguous here with as many bytes as the pieces of all its rows have together.
        unsafe {
            to.copy_from_nonoverlapping(piece.as_ptr(), piece.len());
            to = to.add(piece.len());
        }
    }
    Ok(columns)
}
