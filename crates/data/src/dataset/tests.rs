//! Datasets out of zips and folders, and what is refused.

use super::*;
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use std::io::{Cursor, Write};
use std::path::Path;
use tempfile::TempDir;

fn config(source: &Path) -> DataConfig {
    DataConfig { source: source.display().to_string(), ..DataConfig::default() }
}

fn open(config: &DataConfig) -> Result<Dataset> {
    Dataset::open(config, &ProgressBar::hidden())
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn rgb(side: u32, red: u8) -> Vec<u8> {
    encoded(RgbImage::from_fn(side, side, |x, y| Rgb([red, x as u8, y as u8])), ImageFormat::Png)
}

fn grey(w: u32, h: u32) -> Vec<u8> {
    encoded(GrayImage::from_pixel(w, h, Luma([7])), ImageFormat::Png)
}

/// A zip, or the same files in a folder.
fn zip(folder: &TempDir, files: &[(&str, Vec<u8>)]) -> DataConfig {
    let path = folder.path().join("set.zip");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    for (name, bytes) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    config(&path)
}

fn folder(folder: &TempDir, files: &[(&str, Vec<u8>)]) -> DataConfig {
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    config(folder.path())
}

fn refusal(files: &[(&str, Vec<u8>)]) -> String {
    let (a, b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let text = open(&zip(&a, files)).unwrap_err().to_string();
    assert!(text.starts_with(&a.path().display().to_string()), "{text}");
    open(&folder(&b, files)).unwrap_err();
    text
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    Vec::try_from(tensor.flatten(0, -1)).unwrap()
}

fn classes(dataset: &Dataset) -> Vec<i64> {
    Vec::try_from(dataset.labels.as_ref().unwrap()).unwrap()
}

#[test]
fn the_digits_are_embedded() {
    let bar = ProgressBar::hidden();
    let digits = Dataset::open(&DataConfig::default(), &bar).unwrap();
    assert_eq!(digits.images.size(), [1797, 1, 8, 8]);
    assert_eq!(digits.images.to_kind(Kind::Int64).sum(Kind::Int64).int64_value(&[]), 8_953_801);
    assert_eq!(classes(&digits)[..4], [0, 1, 2, 3]);
    assert_eq!((bar.length(), bar.position(), bar.message().as_str()), (Some(1797), 1797, "reading digits"));
    let info = DataInfo { images: 1797, channels: 1, resolution: 8, classes: 10, name: "digits".into() };
    assert_eq!(inspect(&DataConfig::default()).unwrap(), info);
    let larger = DataConfig { resolution: Some(16), labels: false, ..DataConfig::default() };
    assert_eq!(inspect(&larger).unwrap(), DataInfo { resolution: 16, classes: 0, ..info });
}

#[test]
fn a_zip_is_read_in_the_order_of_its_names() {
    let jpeg = encoded(RgbImage::from_pixel(4, 4, Rgb([200, 100, 50])), ImageFormat::Jpeg);
    let index = br#"{"labels": [["00/a.PNG", 4], ["00/b.jpg", 0]]}"#.to_vec();
    let place = TempDir::new().unwrap();
    let config = zip(&place, &[("00/b.jpg", jpeg), ("dataset.json", index), ("00/a.PNG", rgb(4, 9))]);
    let set = open(&config).unwrap();
    assert_eq!(set.images.size(), [2, 3, 4, 4]);
    assert_eq!((classes(&set), set.classes, set.name.as_str()), (vec![4, 0], 5, "set"));
    let png = bytes(&set.images.get(0));
    assert_eq!(png[..16], [9; 16]);
    assert_eq!(png[16..24], [0, 1, 2, 3, 0, 1, 2, 3]);
    assert_eq!(png[32..40], [0, 0, 0, 0, 1, 1, 1, 1]);
    let jpeg = bytes(&set.images.get(1));
    assert!(
        [(0, 200), (16, 100), (32, 50)].iter().all(|(at, v): &(usize, u8)| jpeg[*at].abs_diff(*v) <= 3),
        "{jpeg:?}"
    );
    assert!(open(&DataConfig { labels: false, ..config }).unwrap().labels.is_none());
}

#[test]
fn folders_are_flat_or_have_a_sub_folder_a_class_or_an_index() {
    let files = |names: [&'static str; 3]| names.map(|name| (name, grey(2, 2)));
    let place = TempDir::new().unwrap();
    let set = open(&folder(&place, &files(["dog/1.png", "cat/1.png", "dog/.hidden.png"]))).unwrap();
    assert_eq!((set.images.size(), classes(&set), set.classes), (vec![2, 1, 2, 2], vec![0, 1], 2));
    let place = TempDir::new().unwrap();
    let set = open(&folder(&place, &files(["1.png", "2.png", "3.png"]))).unwrap();
    assert_eq!((set.images.size(), set.labels.is_none(), set.classes), (vec![3, 1, 2, 2], true, 0));
    let index = br#"{"labels": null}"#.to_vec();
    let place = TempDir::new().unwrap();
    let set = open(&folder(&place, &[("00/1.png", grey(2, 2)), ("dataset.json", index)])).unwrap();
    assert!(set.labels.is_none());
}

#[test]
fn what_is_wrong_is_named_with_its_remedy() {
    let text = refusal(&[("a.png", rgb(4, 0)), ("b.png", rgb(5, 0))]);
    assert!(text.contains("`b.png` is 5×5 (H×W), the first image `a.png` 4×4: set data.resolution"), "{text}");
    let text = refusal(&[("a.png", rgb(4, 0)), ("b.png", grey(4, 4))]);
    assert!(text.contains("`b.png` has channels: 1, the first image `a.png`: 3"), "{text}");
    let text = refusal(&[("a.png", grey(4, 6))]);
    assert!(text.contains("`a.png` is 6×4 (H×W), not square: set data.resolution"), "{text}");
    let text = refusal(&[("a.png", grey(4, 4)), ("b.png", grey(4, 4)[..40].to_vec())]);
    assert!(text.contains("`b.png` is no readable image"), "{text}");
    let text = refusal(&[("a.txt", vec![1])]);
    assert!(text.contains("holds no images"), "{text}");
    let text = refusal(&[("a.png", grey(4, 4)), ("dataset.json", br#"{"labels": []}"#.to_vec())]);
    assert!(text.contains("no label for `a.png`"), "{text}");
}

#[test]
fn wrong_sources_resolutions_and_probabilities_are_refused() {
    let text = open(&config(Path::new("/no/such"))).unwrap_err().to_string();
    assert!(text.contains("data.source = \"/no/such\"") && text.contains("an EDM zip, a folder"), "{text}");
    let place = TempDir::new().unwrap();
    std::fs::write(place.path().join("x.zip"), b"PK no").unwrap();
    let text = inspect(&config(&place.path().join("x.zip"))).unwrap_err().to_string();
    assert!(text.contains("is no whole zip"), "{text}");
    for r in [0, 1 << 40] {
        let text = inspect(&DataConfig { resolution: Some(r), ..DataConfig::default() }).unwrap_err().to_string();
        assert!(text.contains(&format!("data.resolution = {r}: expected")), "{text}");
    }
    for p in [0.0, -0.1, 1.5, f64::NAN] {
        let text = inspect(&DataConfig { augment: Some(p), ..DataConfig::default() }).unwrap_err().to_string();
        assert!(text.contains(&format!("data.augment = {p}: expected")), "{text}");
    }
    inspect(&DataConfig { augment: Some(1.0), ..DataConfig::default() }).unwrap();
}

#[test]
fn a_resolution_brings_images_to_one_size() {
    let place = TempDir::new().unwrap();
    let config = zip(&place, &[("a.png", grey(4, 6)), ("b.png", grey(9, 5))]);
    let set = open(&DataConfig { resolution: Some(8), ..config }).unwrap();
    assert_eq!(set.images.size(), [2, 1, 8, 8]);
    assert_eq!(bytes(&set.images), [7; 128]);
}

#[test]
fn the_hash_is_of_the_content() {
    let (a, b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let index = |class| (("dataset.json"), format!(r#"{{"labels": [["a.png", {class}]]}}"#).into_bytes());
    let hash = |config: &DataConfig| open(config).unwrap().hash;
    let zipped = hash(&zip(&a, &[("a.png", rgb(4, 0)), index(1)]));
    assert_eq!(zipped, hash(&folder(&b, &[("a.png", rgb(4, 0)), index(1)])));
    assert_ne!(zipped, hash(&folder(&b, &[("a.png", rgb(4, 0)), index(0)])));
    assert_ne!(zipped, hash(&folder(&b, &[("a.png", rgb(4, 1)), index(1)])));
    assert_ne!(zipped, hash(&DataConfig { labels: false, ..config(b.path()) }));
}
