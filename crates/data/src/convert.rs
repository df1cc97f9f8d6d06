//! Any dataset as a zip in EDM's layout: `00000/img00000000.png`, …, and `dataset.json` with the labels.

use crate::config::DataConfig;
use crate::labels::INDEX;
use crate::source::{First, Reader, Source};
use indicatif::ProgressBar;
use lcsc_torch::{Context, Error, Result, bail, sync_folder};
use rayon::prelude::*;
use std::io::{BufWriter, Seek, Write};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// Images that are in memory at once.
const CHUNK: usize = 512;

/// Writes the dataset of a config as a zip in EDM's layout, and gives the number of its images. Each is decoded, cropped
/// and encoded on all cores, and then forgotten; `bar` counts them. The same images give the same bytes. Until all is
/// written there is no file `to`, and none is left behind where `stop` asks to end early.
///
/// # Errors
/// As [`Dataset::open`](crate::Dataset::open); `to` is there already or cannot be written; `stop` said so.
pub fn convert(config: &DataConfig, to: &Path, bar: &ProgressBar, stop: &dyn Fn() -> bool) -> Result<usize> {
    if to.exists() {
        return Err(Error::file(to, "is there already: remove it or give another name"));
    }
    let source = Source::open(config)?;
    let first = source.first()?;
    bar.set_length(source.images() as u64);
    bar.set_message(format!("converting {}", source.name));
    let folder = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let readable = std::fs::Permissions::from_mode(0o666); // less the umask, as for any new file
    let temp = tempfile::Builder::new().suffix(".tmp").permissions(readable).tempfile_in(folder).at(folder)?;
    let mut zip = ZipWriter::new(BufWriter::new(temp));
    let labels = write_images(&source, &first, &mut zip, to, bar, stop)?;
    write_index(&mut zip, &labels).at(to)?;
    let temp = zip.finish().map_err(std::io::Error::from).at(to)?.into_inner().map_err(|e| e.into_error()).at(to)?;
    temp.as_file().sync_all().at(to)?;
    temp.persist_noclobber(to).map_err(|e| e.error).at(to)?;
    sync_folder(folder)?;
    Ok(labels.len())
}

/// Writes the images; gives the class of each.
fn write_images(
    source: &Source,
    first: &First,
    zip: &mut ZipWriter<impl Write + Seek>,
    to: &Path,
    bar: &ProgressBar,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Option<i64>>> {
    let (mut labels, mut skipped) = (Vec::new(), Vec::new());
    for start in (0..source.images()).step_by(CHUNK) {
        if stop() {
            bail!("stopped: {} was not written", to.display());
        }
        let range = start..source.images().min(start + CHUNK);
        for (i, png) in range.clone().zip(encode(source, first, range)?) {
            let Some(png) = png else {
                skipped.push(i);
                continue;
            };
            zip.start_file(image_name(labels.len()), stored()).map_err(std::io::Error::from).at(to)?;
            zip.write_all(&png).at(to)?;
            labels.push(source.labels.as_ref().map(|labels| labels[i]));
            bar.inc(1);
        }
    }
    source.warn_of_skipped(&skipped)?;
    Ok(labels)
}

/// Images as PNG files, on all cores; none for those that are skipped.
fn encode(source: &Source, first: &First, range: Range<usize>) -> Result<Vec<Option<Vec<u8>>>> {
    let one = |reader: &mut Reader, i: usize| {
        let Some(picture) = source.read(reader, i, first)? else { return Ok(None) };
        picture.to_png().map(Some).map_err(|e| Error::msg(format!("encoding image {i} as PNG: {e}")))
    };
    range.into_par_iter().map_init(|| source.reader.clone(), one).collect()
}

/// Writes `dataset.json`, a label at a time.
fn write_index(zip: &mut ZipWriter<impl Write + Seek>, labels: &[Option<i64>]) -> std::io::Result<()> {
    zip.start_file(INDEX, stored())?;
    if labels.iter().any(Option::is_none) {
        return zip.write_all(br#"{"labels": null}"#);
    }
    zip.write_all(br#"{"labels": ["#)?;
    for (i, class) in labels.iter().flatten().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        write!(zip, r#"{comma}["{}", {class}]"#, image_name(i))?;
    }
    zip.write_all(b"]}")
}

/// A thousand images a folder, as EDM has them.
fn image_name(i: usize) -> String {
    let number = format!("{i:08}");
    format!("{}/img{number}.png", &number[..5])
}

/// PNGs are packed already; without a time of day the bytes depend on the images alone.
fn stored() -> SimpleFileOptions {
    SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Crop, Dataset, OnCorrupt};
    use std::fs;

    fn dataset(config: &DataConfig) -> Dataset {
        Dataset::open(config, &ProgressBar::hidden()).unwrap()
    }

    fn at(path: &Path) -> DataConfig {
        DataConfig { source: path.display().to_string(), ..DataConfig::default() }
    }

    #[test]
    fn the_zip_holds_the_same_dataset_in_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a.zip", "b.zip"].map(|name| folder.path().join(name));
        let bar = ProgressBar::hidden();
        assert_eq!(convert(&DataConfig::default(), &a, &bar, &|| false).unwrap(), 1797);
        assert_eq!((bar.position(), bar.length()), (1797, Some(1797)));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| convert(&DataConfig::default(), &b, &ProgressBar::hidden(), &|| false)).unwrap();
        assert!(fs::read(&a).unwrap() == fs::read(&b).unwrap());
        assert_eq!(dataset(&at(&a)).hash, dataset(&DataConfig::default()).hash);
        let zip = zip::ZipArchive::new(fs::File::open(&a).unwrap()).unwrap();
        assert!(zip.index_for_name("00001/img00001796.png").is_some());
        let text = convert(&DataConfig::default(), &a, &bar, &|| false).unwrap_err().to_string();
        assert!(text.ends_with("a.zip: is there already: remove it or give another name"), "{text}");
    }

    #[test]
    fn images_without_labels_are_cropped_and_damaged_ones_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("images");
        fs::create_dir(&source).unwrap();
        let png = |side| crate::Picture { pixels: vec![7; side * 9], height: side, width: 9, channels: 1 };
        fs::write(source.join("a.png"), b"no").unwrap();
        fs::write(source.join("b.png"), png(7).to_png().unwrap()).unwrap();
        fs::write(source.join("c.PNG"), png(12).to_png().unwrap()).unwrap();
        let config = DataConfig { resolution: Some(4), crop: Crop::CenterDhariwal, rgb: true, ..at(&source) };
        let to = folder.path().join("to.zip");
        let text = convert(&config, &to, &ProgressBar::hidden(), &|| false).unwrap_err().to_string();
        assert!(text.contains("`a.png` is no readable image") && text.contains("data.on_corrupt"), "{text}");
        let config = DataConfig { on_corrupt: OnCorrupt::Skip, ..config };
        assert_eq!(convert(&config, &to, &ProgressBar::hidden(), &|| false).unwrap(), 2);
        let set = dataset(&at(&to));
        assert_eq!((set.images.size(), set.labels.is_none()), (vec![2, 3, 4, 4], true));
    }

    #[test]
    fn nothing_is_left_of_what_was_not_finished() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("to.zip");
        let text = convert(&DataConfig::default(), &to, &ProgressBar::hidden(), &|| true).unwrap_err().to_string();
        assert!(text.starts_with("stopped: "), "{text}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
