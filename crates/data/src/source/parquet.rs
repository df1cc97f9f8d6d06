//! Hugging Face's image datasets: parquet files with a column `image` of encoded images and a column `label`.
//!
//! The encoded images are copied into one unnamed file, so that each can be had on its own.

use super::{Opened, Reader, spill};
use crate::config::Split;
use crate::labels;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::{Field, Row};
use bytes::Bytes;
use lcsc_torch::{Context, Error, Result, catch};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Names of a column of classes.
const LABELS: [&str; 2] = ["label", "labels"];

/// The dataset whose files lie in a folder, or in its `data`; none where there are no parquet files of the split.
///
/// # Errors
/// A file is damaged, or holds something else.
pub(super) fn open_folder(path: &Path, split: Split) -> Result<Option<Opened>> {
    for folder in [path.to_path_buf(), path.join("data")] {
        let files = files(&folder, split)?;
        if !files.is_empty() {
            return open(&files).map(Some);
        }
    }
    Ok(None)
}

/// The files `train-….parquet` or `test-….parquet` of a folder, in the order of their names.
fn files(folder: &Path, split: Split) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let prefixes: &[&str] = match split {
        Split::Train => &["train"],
        Split::Test => &["test", "valid"],
    };
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).at(folder)? {
        all.push(entry.at(folder)?.path());
    }
    all.sort_unstable();
    let of = |prefix: &&str| -> Vec<PathBuf> {
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_part = |path: &&PathBuf| name(path).ends_with(".parquet") && name(path).starts_with(prefix);
        all.iter().filter(is_part).cloned().collect()
    };
    Ok(prefixes.iter().map(of).find(|files| !files.is_empty()).unwrap_or_default())
}

/// The images of parquet files, one after another.
///
/// # Errors
/// A file is damaged, or holds something else.
pub(super) fn open(files: &[PathBuf]) -> Result<Opened> {
    let mut gathered = Gathered::default();
    let spilled = tempfile::tempfile().map_err(|e| Error::msg(format!("a temporary file for encoded images: {e}")))?;
    for path in files {
        // The library panics on some damaged files.
        catch("reading parquet", || gathered.append(path, &spilled)).map_err(|e| Error::file(path, e.to_string()))?;
    }
    let all = spill::map_file(&spilled).map_err(|e| Error::msg(format!("a temporary file for encoded images: {e}")))?;
    let starts = std::iter::once(0).chain(gathered.ends.iter().copied());
    let images: Vec<Bytes> = starts.zip(&gathered.ends).map(|(start, &end)| all.slice(start..end)).collect();
    if images.is_empty() {
        return Err(Error::msg(format!("{} parquet files hold no images", files.len())));
    }
    let first = files.first().map(PathBuf::as_path).unwrap_or(Path::new(""));
    let missing = gathered.labels.iter().position(Option::is_none);
    if let Some(i) = missing.filter(|_| gathered.labels.iter().any(Option::is_some)) {
        return Err(Error::file(first, format!("row {i} of it and the files after it has no label, others have")));
    }
    let labels: Option<Vec<i64>> = gathered.labels.into_iter().collect();
    labels::check(labels.as_deref().unwrap_or_default()).map_err(|e| Error::file(first, e))?;
    Ok(Opened { reader: Reader::Encoded(images.into()), labels })
}

/// What was read so far.
#[derive(Default)]
struct Gathered {
    /// Where each encoded image ends in the file that they were copied to.
    ends: Vec<usize>,
    labels: Vec<Option<i64>>,
}

impl Gathered {
    fn append(&mut self, path: &Path, to: &File) -> Result<()> {
        let wrong = |e: ::parquet::errors::ParquetError| Error::msg(format!("is no whole parquet file ({e})"));
        let reader = SerializedFileReader::new(File::open(path).at(path)?).map_err(wrong)?;
        let mut to = BufWriter::new(to);
        for row in reader.get_row_iter(None).map_err(wrong)? {
            let row = row.map_err(wrong)?;
            let i = self.ends.len();
            let image = image(&row).ok_or_else(|| Error::msg(format!("row {i} has no `image` with its `bytes`")))?;
            to.write_all(image).map_err(|e| Error::msg(format!("copying image {i}: {e}")))?;
            self.ends.push(self.ends.last().unwrap_or(&0) + image.len());
            self.labels.push(label(&row));
        }
        to.flush().map_err(|e| Error::msg(format!("copying images: {e}")))
    }
}

fn field<'a>(row: &'a Row, name: &str) -> Option<&'a Field> {
    row.get_column_iter().find(|(column, _)| *column == name).map(|(_, field)| field)
}

/// The bytes of the column `image`, or `img` as CIFAR-10 has it.
fn image(row: &Row) -> Option<&[u8]> {
    match field(row, "image").or_else(|| field(row, "img"))? {
        Field::Group(image) => match field(image, "bytes")? {
            Field::Bytes(bytes) => Some(bytes.data()),
            _ => None,
        },
        _ => None,
    }
}

fn label(row: &Row) -> Option<i64> {
    match LABELS.iter().find_map(|name| field(row, name))? {
        Field::Long(class) => Some(*class),
        Field::Int(class) => Some(i64::from(*class)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DataConfig, Dataset, Picture};
    use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;
    use indicatif::ProgressBar;
    use std::sync::Arc;

    /// A file as `datasets` writes it.
    fn write(path: &Path, images: &[Vec<u8>], labels: &[i64]) {
        let schema = "message m { OPTIONAL GROUP image { OPTIONAL BYTE_ARRAY bytes; OPTIONAL BYTE_ARRAY path (UTF8); }
                      OPTIONAL INT64 label; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let (deep, flat) = (vec![2; images.len()], vec![1; images.len()]);
        let images: Vec<ByteArray> = images.iter().map(|bytes| bytes.clone().into()).collect();
        let paths = vec![ByteArray::from("a.png"); images.len()];
        for values in [&images, &paths] {
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(values, Some(&deep), None).unwrap();
            column.close().unwrap();
        }
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(labels, Some(&flat), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
    }

    fn dataset(path: &Path, split: Split) -> Result<Dataset> {
        let config = DataConfig { source: path.display().to_string(), split, ..DataConfig::default() };
        Dataset::open(&config, &ProgressBar::hidden())
    }

    #[test]
    fn images_and_labels_of_hugging_face_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let png = |v| Picture { pixels: vec![v; 12], height: 2, width: 2, channels: 3 }.to_png().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        write(&data.join("train-00000-of-00002.parquet"), &[png(1), png(2)], &[3, 0]);
        write(&data.join("train-00001-of-00002.parquet"), &[png(3)], &[1]);
        write(&data.join("test-00000-of-00001.parquet"), &[png(4)], &[2]);
        let train = dataset(folder.path(), Split::Train).unwrap();
        assert_eq!(train.images.size(), [3, 3, 2, 2]);
        assert_eq!(crate::dataset::bytes(&train.images), [[1; 12], [2; 12], [3; 12]].concat());
        assert_eq!(Vec::<i64>::try_from(train.labels.unwrap()).unwrap(), [3, 0, 1]);
        assert_eq!(dataset(folder.path(), Split::Test).unwrap().images.size()[0], 1);
    }

    #[test]
    fn damaged_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        write(&path, &[b"no image".to_vec()], &[0]);
        let text = dataset(&path, Split::Train).unwrap_err().to_string();
        assert!(text.contains("`image 0` is no readable image"), "{text}");
        let whole = std::fs::read(&path).unwrap();
        for length in 4..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            dataset(&path, Split::Train).unwrap_err();
        }
    }
}
