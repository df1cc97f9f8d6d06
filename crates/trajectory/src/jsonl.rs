//! Append-only files of one JSON value a line, which survive being killed at any instant.

use lcsc_torch::{Context, Error, Result, sync_folder, write_atomic};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::error::Category;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file of one `T` a line.
///
/// JSON has no infinities and no NaN: they are written as `null`, so a value that can be one is an `Option<f64>` in `T`.
#[derive(Debug)]
pub struct JsonLines<T> {
    path: PathBuf,
    file: File,
    /// Bytes and lines that were read or written through this handle.
    known: (u64, usize),
    values: PhantomData<fn(&T) -> T>,
}

impl<T: Serialize + DeserializeOwned> JsonLines<T> {
    /// Opens or makes a file for appending; also its values so far. A torn last line (cut short by a kill or a power
    /// cut) is cut off the file with a warning.
    ///
    /// # Errors
    /// The file cannot be read or written, or a line is no `T`.
    pub fn open(path: impl AsRef<Path>) -> Result<(Self, Vec<T>)> {
        let path = path.as_ref().to_path_buf();
        let is_new = !path.exists();
        let file = File::options().create(true).read(true).append(true).open(&path).at(&path)?;
        if is_new {
            sync_folder(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        }
        let mut lines = Self { path, file, known: (0, 0), values: PhantomData };
        let values = lines.follow()?;
        Ok((lines, values))
    }

    /// The values that other handles have appended since this one last read or wrote. A torn last line is cut off, so
    /// that nobody may be writing meanwhile: writers that share a file hold a lock.
    ///
    /// # Errors
    /// The file cannot be read or written, or a line is no `T`.
    pub fn follow(&mut self) -> Result<Vec<T>> {
        let (bytes_known, lines_known) = self.known;
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(bytes_known)).at(&self.path)?;
        self.file.read_to_end(&mut bytes).at(&self.path)?;
        let (values, whole) = parse(&self.path, &bytes, lines_known)?;
        self.known = (bytes_known + whole as u64, lines_known + values.len());
        if whole < bytes.len() {
            tracing::warn!("{}: the last line was torn and is cut off", self.path.display());
            self.file.set_len(self.known.0).at(&self.path)?;
        }
        Ok(values)
    }

    /// The values of a file that is left as it is: a missing file has none, a torn last line is passed over.
    ///
    /// # Errors
    /// The file cannot be read, or a line is no `T`.
    pub fn read(path: impl AsRef<Path>) -> Result<Vec<T>> {
        let path = path.as_ref();
        match std::fs::read(path) {
            Ok(bytes) => Ok(parse(path, &bytes, 0)?.0),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e).at(path),
        }
    }

    /// Keeps the values of a file for which `keep` says so; where that is all of them, it is left as it is.
    ///
    /// # Errors
    /// The file cannot be read or written, or a line is no `T`.
    pub fn retain(path: impl AsRef<Path>, keep: impl Fn(&T) -> bool) -> Result<()> {
        let path = path.as_ref();
        let values = Self::read(path)?;
        if values.iter().all(&keep) {
            return Ok(());
        }
        let line = |value: &T| serde_json::to_string(value).map(|line| line + "\n");
        let text: serde_json::Result<String> = values.iter().filter(|v| keep(v)).map(line).collect();
        write_atomic(path, text.map_err(|e| Error::file(path, e.to_string()))?.as_bytes())
    }

    /// Appends a line in one write: another reader sees all of it or nothing. Lines of other handles must have been
    /// read before ([`JsonLines::follow`]).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, value: &T) -> Result<()> {
        let unwritable = |e| Error::file(&self.path, format!("a value cannot be written as JSON: {e}"));
        let mut line = serde_json::to_vec(value).map_err(unwritable)?;
        line.push(b'\n');
        self.file.write_all(&line).at(&self.path)?;
        self.known = (self.known.0 + line.len() as u64, self.known.1 + 1);
        Ok(())
    }

    /// The same, and returns only when the line would survive a power cut.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append_durable(&mut self, value: &T) -> Result<()> {
        self.append(value)?;
        self.file.sync_data().at(&self.path)
    }
}

/// The values of a file that another process writes to, which is left as it is.
#[derive(Debug)]
pub struct Tail<T> {
    path: PathBuf,
    /// Inode, bytes and lines that were read.
    known: (u64, u64, usize),
    values: Vec<T>,
}

impl<T: DeserializeOwned> Tail<T> {
    /// Of a file that need not be there yet.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_path_buf(), known: (0, 0, 0), values: Vec::new() }
    }

    /// Reads what has come since the last time; from the beginning where the file was replaced or cut.
    ///
    /// # Errors
    /// The file cannot be read, or a line is no `T`.
    pub fn update(&mut self) -> Result<()> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e).at(&self.path),
        };
        let found = file.metadata().at(&self.path)?;
        if found.ino() != self.known.0 || found.len() < self.known.1 {
            self.known = (found.ino(), 0, 0);
            self.values.clear();
        }
        let (_, bytes_known, lines_known) = self.known;
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(bytes_known)).at(&self.path)?;
        file.read_to_end(&mut bytes).at(&self.path)?;
        let (values, whole) = parse(&self.path, &bytes, lines_known)?;
        self.known = (found.ino(), bytes_known + whole as u64, lines_known + values.len());
        self.values.extend(values);
        Ok(())
    }

    /// All values read so far.
    pub fn values(&self) -> &[T] {
        &self.values
    }
}

/// The values of lines that follow `lines_before` others, and how many bytes these lines have: fewer than there are where
/// the last line is torn.
fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8], lines_before: usize) -> Result<(Vec<T>, usize)> {
    let mut values = Vec::new();
    let mut whole = 0;
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        if !line.ends_with(b"\n") {
            break; // also where it parses: 12 may be a torn 123
        }
        match serde_json::from_slice(line) {
            Ok(value) => values.push(value),
            Err(e) if whole + line.len() == bytes.len() && e.classify() != Category::Data => break,
            Err(e) => {
                let message = format!("line {} is not what this program writes: {e}", lines_before + values.len() + 1);
                return Err(Error::file(path, message));
            }
        }
        whole += line.len();
    }
    Ok((values, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("log.jsonl");
        std::fs::write(&path, content).unwrap();
        (temp, path)
    }

    #[test]
    fn lines_come_back_and_go_on() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("log.jsonl");
        let (mut lines, values) = JsonLines::<u64>::open(&path).unwrap();
        assert!(values.is_empty());
        lines.append(&1).unwrap();
        lines.append_durable(&2).unwrap();
        let (mut lines, values) = JsonLines::<u64>::open(&path).unwrap();
        assert_eq!(values, [1, 2]);
        lines.append(&3).unwrap();
        assert_eq!(JsonLines::<u64>::read(&path).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn one_handle_follows_another() {
        let (_temp, path) = file(b"1\n");
        let (mut a, _) = JsonLines::<u64>::open(&path).unwrap();
        let (mut b, values) = JsonLines::<u64>::open(&path).unwrap();
        assert_eq!(values, [1]);
        a.append(&2).unwrap();
        a.append(&3).unwrap();
        assert_eq!(b.follow().unwrap(), [2, 3]);
        b.append(&4).unwrap();
        assert!(b.follow().unwrap().is_empty());
        assert_eq!(a.follow().unwrap(), [4]);
        std::fs::write(&path, b"1\n2\n3\n4\n5\n6").unwrap();
        assert_eq!(b.follow().unwrap(), [5]);
        assert_eq!(std::fs::read(&path).unwrap(), b"1\n2\n3\n4\n5\n");
        std::fs::write(&path, b"1\n2\n3\n4\n5\nx\n7\n").unwrap();
        assert!(b.follow().unwrap_err().to_string().contains("line 6"));
    }

    #[test]
    fn a_tail_follows_and_begins_anew_where_the_file_was_replaced() {
        let (temp, path) = file(b"1\n2\n3");
        let mut tail = Tail::<u64>::new(&path);
        tail.update().unwrap();
        assert_eq!(tail.values(), [1, 2]);
        std::fs::write(&path, b"1\n2\n34\n5\n").unwrap();
        tail.update().unwrap();
        assert_eq!(tail.values(), [1, 2, 34, 5]);
        std::fs::write(&path, b"7\n").unwrap();
        tail.update().unwrap();
        assert_eq!(tail.values(), [7]);
        let other = temp.path().join("other");
        std::fs::write(&other, b"8\n9\n10\n").unwrap();
        std::fs::rename(&other, &path).unwrap();
        tail.update().unwrap();
        assert_eq!(tail.values(), [8, 9, 10]);
        let mut missing = Tail::<u64>::new(temp.path().join("none"));
        missing.update().unwrap();
        assert!(missing.values().is_empty());
    }

    #[test]
    fn a_torn_tail_is_cut_off() {
        for tail in [&b"12"[..], b"{\"a\": ", b"\0\0\0\0\n", b"\xff\n"] {
            let (_temp, path) = file(&[b"1\n2\n", tail].concat());
            assert_eq!(JsonLines::<u64>::read(&path).unwrap(), [1, 2]);
            assert_eq!(std::fs::read(&path).unwrap().len(), 4 + tail.len());
            let (mut lines, values) = JsonLines::<u64>::open(&path).unwrap();
            assert_eq!(values, [1, 2]);
            lines.append(&3).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"1\n2\n3\n");
        }
    }

    #[test]
    fn a_bad_line_before_the_end_is_named_and_left_alone() {
        let (_temp, path) = file(b"1\nx\n3\n");
        for outcome in [JsonLines::<u64>::open(&path).map(|(_, v)| v), JsonLines::<u64>::read(&path)] {
            let text = outcome.unwrap_err().to_string();
            assert!(text.contains("log.jsonl: line 2"), "{text}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"1\nx\n3\n");
    }

    #[test]
    fn a_whole_last_line_of_another_type_is_no_torn_one() {
        let (_temp, path) = file(b"1\n\"two\"\n");
        let text = JsonLines::<u64>::open(&path).unwrap_err().to_string();
        assert!(text.contains("line 2"), "{text}");
    }

    #[test]
    fn what_is_not_retained_is_gone() {
        let (_temp, path) = file(b"1\n2\n3\n4");
        JsonLines::<u64>::retain(&path, |n| *n < 9).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"1\n2\n3\n4", "left as it is");
        JsonLines::<u64>::retain(&path, |n| n % 2 == 1).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"1\n3\n");
        JsonLines::<u64>::retain(path.with_file_name("none"), |_| false).unwrap();
        assert!(!path.with_file_name("none").exists());
    }

    #[test]
    fn a_missing_file_has_no_lines_to_read() {
        let temp = tempfile::tempdir().unwrap();
        assert!(JsonLines::<u64>::read(temp.path().join("none")).unwrap().is_empty());
    }
}
