//! Encoded images: the entries of a zip, or the files below a folder.

use super::{Checked, EXPECTED, Opened, Reader};
use crate::labels;
use bytes::Bytes;
use lcsc_torch::{Context, Error, Result};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use zip::ZipArchive;

/// A zip whose bytes all threads share.
pub(super) type Zip = ZipArchive<Cursor<Bytes>>;

/// Most bytes of one file, inflated: a hundred times what an image or an index of a million has, and no bomb.
const MAX_FILE: u64 = 1 << 28;

/// What gives the bytes of one file.
#[derive(Clone)]
pub(crate) enum Files {
    /// Entries of a zip.
    Zip(Zip),
    /// Files below a folder.
    Folder(PathBuf),
}

impl Files {
    /// The bytes of one file, or what is wrong, to follow its name.
    pub(super) fn bytes(&mut self, name: &str) -> Checked<Vec<u8>> {
        let unreadable = |e: std::io::Error| format!("cannot be read ({e})");
        match self {
            Files::Zip(archive) => read(archive.by_name(name).map_err(|e| unreadable(e.into()))?, MAX_FILE),
            Files::Folder(folder) => read(std::fs::File::open(folder.join(name)).map_err(unreadable)?, MAX_FILE),
        }
    }

    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        match self {
            Files::Zip(archive) => {
                for name in archive.file_names() {
                    names.push(name.map_err(|e| Error::msg(format!("a name of an entry: {e}")))?.to_string());
                }
            }
            Files::Folder(folder) => list(folder, "", &mut Vec::new(), &mut names)?,
        }
        Ok(names)
    }

    /// The class of each image: from `dataset.json` where it is, else from the sub-folders of a folder.
    fn labels(&mut self, indexed: bool, names: &[String]) -> Result<Option<Vec<i64>>> {
        if indexed {
            let json = self.bytes(labels::INDEX).map_err(|e| Error::msg(format!("`{}` {e}", labels::INDEX)))?;
            return labels::from_index(&json, names);
        }
        match self {
            Files::Zip(_) => Ok(None),
            Files::Folder(_) => labels::from_folders(names),
        }
    }
}

/// At most `limit` bytes, however many more would come.
fn read(file: impl Read, limit: u64) -> Checked<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read ({e})"))?;
    if bytes.len() as u64 > limit {
        return Err(format!("is larger than {limit} bytes"));
    }
    Ok(bytes)
}

/// The images of a folder.
pub(super) fn open_folder(path: &Path, with_labels: bool) -> Result<Opened> {
    open(path, Files::Folder(path.to_path_buf()), with_labels)
}

/// The images of a zip or folder at `path`, in the order of their names.
pub(super) fn open(path: &Path, mut files: Files, with_labels: bool) -> Result<Opened> {
    let all = files.names().map_err(|e| Error::file(path, e.to_string()))?;
    let indexed = all.iter().any(|name| name == labels::INDEX);
    let mut names: Vec<String> = all.into_iter().filter(|name| is_image(name)).collect();
    names.sort_unstable();
    if names.is_empty() {
        return Err(Error::file(path, format!("holds no images (.png, .jpg, .jpeg); {EXPECTED}")));
    }
    let labels = with_labels.then(|| files.labels(indexed, &names)).transpose();
    let labels = labels.map_err(|e| Error::file(path, e.to_string()))?.flatten();
    Ok(Opened { reader: Reader::Files(files, names.into()), labels })
}

/// The zip that a file is.
///
/// # Errors
/// It is none.
pub(super) fn open_zip(path: &Path, bytes: Bytes) -> Result<Zip> {
    ZipArchive::new(Cursor::new(bytes)).map_err(|e| Error::file(path, format!("is no whole zip ({e}); {EXPECTED}")))
}

/// Names of all files below a folder, relative to it, with `/`; `above` are the folders that it lies in.
fn list(folder: &Path, prefix: &str, above: &mut Vec<PathBuf>, names: &mut Vec<String>) -> Result<()> {
    let real = folder.canonicalize().at(folder)?;
    if above.contains(&real) {
        return Err(Error::file(folder, "is a link to a folder that it lies in: remove it"));
    }
    above.push(real);
    for entry in std::fs::read_dir(folder).at(folder)? {
        let path = entry.at(folder)?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
            return Err(Error::file(&path, "has a name that is not UTF-8: rename it"));
        };
        let name = format!("{prefix}{name}");
        if path.is_dir() { list(&path, &format!("{name}/"), above, names)? } else { names.push(name) }
    }
    above.pop();
    Ok(())
}

/// Whether a file is a png or jpeg by its name; hidden files, and those in hidden folders, are not.
fn is_image(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    let hidden = name.split('/').any(|part| part.starts_with('.'));
    matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg")) && !hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_holds_itself_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/loop")).unwrap();
        let text = Files::Folder(folder.path().into()).names().unwrap_err().to_string();
        assert!(text.contains("a/loop: is a link to a folder that it lies in"), "{text}");
    }

    #[test]
    fn a_file_without_an_end_is_left_at_the_limit() {
        assert_eq!(read(std::io::repeat(7), 1000).unwrap_err(), "is larger than 1000 bytes");
        assert_eq!(read(&[7; 1000][..], 1000).unwrap().len(), 1000);
    }
}
