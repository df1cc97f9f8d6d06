//! Published formats that are no images by themselves, built small; damaged and crafted ones.

use super::*;
use crate::Dataset;
use crate::dataset::bytes as pixels;
use flate2::{Compression, write::GzEncoder};
use indicatif::ProgressBar;
use npyz::WriterBuilder;
use npyz::npz::NpzWriter;
use proptest::prelude::*;
use std::fs;
use tempfile::TempDir;

fn config(path: &Path) -> DataConfig {
    DataConfig { source: path.display().to_string(), ..DataConfig::default() }
}

fn dataset(config: &DataConfig) -> Result<Dataset> {
    Dataset::open(config, &ProgressBar::hidden())
}

fn refusal(path: &Path) -> String {
    dataset(&config(path)).unwrap_err().to_string()
}

fn labels(set: &Dataset) -> Vec<i64> {
    Vec::try_from(set.labels.as_ref().unwrap()).unwrap()
}

/// The planes of an image in which every value tells its place and the image.
fn planes(image: usize, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 7 + image * 31) as u8).collect()
}

/// Two images a batch, with classes 2b and 2b + 1 of batch b.
fn binary_batches() -> Vec<(String, Vec<u8>)> {
    let batch = |b: usize| (2 * b..2 * b + 2).flat_map(|i| [vec![(i % 10) as u8], planes(i, 3072)].concat()).collect();
    let names = (1..=5).map(|b| format!("data_batch_{b}.bin")).chain(["test_batch.bin".into()]);
    names.enumerate().map(|(b, name)| (name, batch(b))).collect()
}

/// The same as Python 2 pickles them.
fn python_batches() -> Vec<(String, Vec<u8>)> {
    let batch = |b: usize| {
        let data: Vec<u8> = (2 * b..2 * b + 2).flat_map(|i| planes(i, 3072)).collect();
        pickled(&data, 2, &[(2 * b % 10) as u32, ((2 * b + 1) % 10) as u32])
    };
    let names = (1..=5).map(|b| format!("data_batch_{b}")).chain(["test_batch".into()]);
    names.enumerate().map(|(b, name)| (name, batch(b))).collect()
}

/// `{'data': ndarray u8 [images, …], 'labels': […]}` in protocol 2.
fn pickled(data: &[u8], images: u32, labels: &[u32]) -> Vec<u8> {
    let int = |out: &mut Vec<u8>, i: u32| out.extend([&b"J"[..], &i.to_le_bytes()].concat());
    let mut out =
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01".to_vec();
    int(&mut out, images);
    int(&mut out, data.len() as u32 / images);
    out.extend(b"\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T");
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    out.extend(b"tbU\x06labels](");
    labels.iter().for_each(|&label| int(&mut out, label));
    out.extend(b"eu.");
    out
}

fn packed(folder: &str, files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("{folder}/{name}"), &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn write(files: &[(String, Vec<u8>)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(folder.path().join(name), bytes).unwrap());
    folder
}

#[test]
fn all_four_forms_of_cifar_10_are_the_same_images() {
    let (binary, python) = (binary_batches(), python_batches());
    let archives = write(&[
        ("cifar-10-binary.tar.gz".into(), packed("cifar-10-batches-bin", &binary)),
        ("cifar-10-python.tar.gz".into(), packed("cifar-10-batches-py", &python)),
    ]);
    let folders = [write(&binary), write(&python)];
    let paths = [
        archives.path().join("cifar-10-binary.tar.gz"),
        archives.path().join("cifar-10-python.tar.gz"),
        folders[0].path().into(),
        folders[1].path().into(),
    ];
    for path in paths {
        let train = dataset(&config(&path)).unwrap();
        assert_eq!((train.images.size(), labels(&train)), (vec![10, 3, 32, 32], (0..10).collect()));
        let expected: Vec<u8> = (0..10).flat_map(|i| planes(i, 3072)).collect();
        assert!(pixels(&train.images) == expected, "{}", path.display());
        let test = dataset(&DataConfig { split: Split::Test, ..config(&path) }).unwrap();
        assert_eq!((test.images.size()[0], labels(&test)), (2, vec![0, 1]));
        assert!(pixels(&test.images)[..3072] == planes(10, 3072));
    }
    let name = dataset(&config(&archives.path().join("cifar-10-binary.tar.gz"))).unwrap().name;
    assert_eq!(name, "cifar-10-binary");
}

#[test]
fn damaged_cifar_10_is_refused() {
    let mut files = binary_batches();
    files[2].1[3073] = 10;
    let text = refusal(write(&files).path());
    assert!(text.contains("`data_batch_3.bin`: image 1 has class 10, expected 0…9"), "{text}");
    files[2].1.pop();
    let text = refusal(write(&files).path());
    assert!(text.contains("`data_batch_3.bin` has 6145 bytes, expected a multiple of 3073"), "{text}");
    files.remove(2);
    let text = refusal(write(&files).path());
    assert!(text.contains("lacks `data_batch_3.bin`"), "{text}");
    let mut files = python_batches();
    files[0].1.truncate(5000);
    let text = refusal(write(&files).path());
    assert!(text.contains("`data_batch_1` cannot be read (the pickle is cut off"), "{text}");
    let whole = packed("x", &binary_batches());
    let folder =
        write(&[("cut.tar.gz".into(), whole[..whole.len() / 2].to_vec()), ("no.tar.gz".into(), packed("x", &[]))]);
    let text = refusal(&folder.path().join("cut.tar.gz"));
    assert!(text.contains("cut.tar.gz: "), "{text}");
    let text = refusal(&folder.path().join("no.tar.gz"));
    assert!(text.contains("holds no batches of CIFAR-10"), "{text}");
}

#[test]
fn a_batch_that_never_ends_is_left_at_its_limit() {
    let folder = write(&[("bomb.tar.gz".into(), packed("x", &[("data_batch_1.bin".into(), vec![0; (1 << 26) + 1])]))]);
    let text = refusal(&folder.path().join("bomb.tar.gz"));
    assert!(text.contains("`data_batch_1.bin` has more than the expected 67108864 bytes"), "{text}");
}

#[derive(Clone, Copy)]
enum Values<'a> {
    U8(&'a [u8]),
    I64(&'a [i64]),
}

/// An npz, stored or deflated.
fn npz(arrays: &[(&str, &[u64], Values)], method: npyz::zip::CompressionMethod) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    let mut writer = NpzWriter::new(&mut file);
    let options = npyz::zip::write::FileOptions::default().compression_method(method);
    for (name, shape, values) in arrays {
        match values {
            Values::U8(values) => {
                let array = writer.array(name, options).unwrap();
                let mut array = array.default_dtype().shape(shape).begin_nd().unwrap();
                array.extend(values.iter().copied()).unwrap();
                array.finish().unwrap();
            }
            Values::I64(values) => {
                let array = writer.array(name, options).unwrap();
                let mut array = array.default_dtype().shape(shape).begin_nd().unwrap();
                array.extend(values.iter().copied()).unwrap();
                array.finish().unwrap();
            }
        }
    }
    drop(writer);
    file.into_inner()
}

const STORED: npyz::zip::CompressionMethod = npyz::zip::CompressionMethod::Stored;
const DEFLATED: npyz::zip::CompressionMethod = npyz::zip::CompressionMethod::Deflated;

#[test]
fn an_npz_holds_images_and_classes() {
    let values: Vec<u8> = (0..24).collect();
    for method in [STORED, DEFLATED] {
        let arrays: [(&str, &[u64], Values); 2] =
            [("arr_0", &[2, 2, 2, 3], Values::U8(&values)), ("arr_1", &[2], Values::I64(&[4, 1]))];
        let folder = write(&[("some.npz".into(), npz(&arrays, method))]);
        let set = dataset(&config(&folder.path().join("some.npz"))).unwrap();
        assert_eq!((set.images.size(), labels(&set), set.name.as_str()), (vec![2, 3, 2, 2], vec![4, 1], "some"));
        assert_eq!(pixels(&set.images)[..12], [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]);
    }
    let arrays: [(&str, &[u64], Values); 1] = [("x", &[6, 2, 2], Values::U8(&values))];
    let folder = write(&[("grey.npz".into(), npz(&arrays, DEFLATED))]);
    let set = dataset(&config(&folder.path().join("grey.npz"))).unwrap();
    assert_eq!((set.images.size(), set.labels.is_none()), (vec![6, 1, 2, 2], true));
}

#[test]
fn an_npz_of_something_else_is_refused() {
    let refused = |arrays: &[(&str, &[u64], Values)]| {
        let folder = write(&[("a.npz".into(), npz(arrays, STORED))]);
        refusal(&folder.path().join("a.npz"))
    };
    let text = refused(&[("mu", &[1], Values::U8(&[0]))]);
    assert!(text.contains("holds no images; expected u8 images"), "{text}");
    let text = refused(&[("x", &[2, 1, 1], Values::I64(&[0, 1]))]);
    assert!(text.contains("`x` is (Int, 8) of shape [2, 1, 1]; expected"), "{text}");
    let text = refused(&[("x", &[1, 1, 1], Values::U8(&[0])), ("y", &[1], Values::I64(&[-1]))]);
    assert!(text.contains("`y`: image 0 has class -1, expected classes 0, 1, …"), "{text}");
    let text = refused(&[("x", &[1, 1, 1], Values::U8(&[0])), ("y", &[2], Values::I64(&[0, 1]))]);
    assert!(text.contains("`y` has shape [2], expected a class for each of 1 images"), "{text}");
}

#[test]
fn the_downsampled_imagenet_is_read_from_npz_and_pickles() {
    let size = 3 * 8 * 8;
    let data = |first: usize| [planes(first, size), planes(first + 1, size)].concat();
    let arrays = |data: &[u8], labels: &[i64]| {
        let arrays: [(&str, &[u64], Values); 2] =
            [("data", &[2, size as u64], Values::U8(data)), ("labels", &[2], Values::I64(labels))];
        npz(&arrays, DEFLATED)
    };
    let mut files = vec![
        ("train_data_batch_1.npz".into(), arrays(&data(0), &[1, 1000])),
        ("train_data_batch_2".into(), pickled(&data(2), 2, &[3, 2])),
        ("val_data.npz".into(), arrays(&data(4), &[7, 8])),
    ];
    let folder = write(&files);
    let train = dataset(&config(folder.path())).unwrap();
    assert_eq!((train.images.size(), labels(&train)), (vec![4, 3, 8, 8], vec![0, 999, 2, 1]));
    assert!(pixels(&train.images) == [data(0), data(2)].concat());
    let test = dataset(&DataConfig { split: Split::Test, ..config(folder.path()) }).unwrap();
    assert_eq!((labels(&test), test.images.size()[0]), (vec![6, 7], 2));
    files[0].1 = arrays(&data(0), &[0, 1]);
    let text = refusal(write(&files).path());
    assert!(text.contains("train_data_batch_1.npz: `labels`: image 0 has 0, expected 1…1000"), "{text}");
    let text = refusal(write(&[files.remove(1)]).path());
    assert!(text.contains("lacks the batch `train_data_batch_1`"), "{text}");
}

#[test]
fn what_has_no_splits_has_no_test_images() {
    let text = dataset(&DataConfig { split: Split::Test, ..DataConfig::default() }).unwrap_err().to_string();
    assert!(text.contains("data.split = \"test\": the digits has no splits"), "{text}");
}

/// A sound zip of two PNGs and an index.
fn edm_zip() -> Vec<u8> {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let png = |i| Picture { pixels: planes(i, 48), height: 4, width: 4, channels: 3 }.to_png().unwrap();
    let index = br#"{"labels": [["0.png", 1], ["1.png", 0]]}"#.to_vec();
    for (name, bytes) in [("0.png", png(0)), ("1.png", png(1)), ("dataset.json", index)] {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Reading a mutated file gives a dataset or an error.
fn survives(mut bytes: Vec<u8>, name: &str, mutations: &[(usize, u8)], keep: usize) {
    let length = bytes.len();
    mutations.iter().for_each(|&(at, value)| bytes[at % length] = value);
    bytes.truncate(length.min(keep));
    let folder = write(&[(name.into(), bytes)]);
    if let Err(e) = dataset(&DataConfig { on_corrupt: OnCorrupt::Skip, ..config(&folder.path().join(name)) }) {
        assert!(!e.to_string().is_empty());
    }
}

fn mutations() -> impl Strategy<Value = (Vec<(usize, u8)>, usize)> {
    (prop::collection::vec((any::<usize>(), any::<u8>()), 0..6), prop_oneof![Just(usize::MAX), 0usize..2000])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mutated_zips_never_panic((mutations, keep) in mutations()) {
        survives(edm_zip(), "a.zip", &mutations, keep);
    }

    #[test]
    fn mutated_npz_never_panic((mutations, keep) in mutations(), deflated in any::<bool>()) {
        let arrays: [(&str, &[u64], Values); 2] =
            [("arr_0", &[2, 2, 2, 3], Values::U8(&[9; 24])), ("arr_1", &[2], Values::I64(&[0, 1]))];
        survives(npz(&arrays, if deflated { DEFLATED } else { STORED }), "a.npz", &mutations, keep);
    }

    #[test]
    fn mutated_archives_never_panic((mutations, keep) in mutations()) {
        survives(packed("x", &[("data_batch_1".into(), pickled(&planes(0, 3072), 1, &[3]))]), "a.tar.gz", &mutations, keep);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 1..300), head in 0usize..3) {
        let head: &[u8] = [&b""[..], spill::GZIP, b"PK\x03\x04"][head];
        survives([head, &bytes[..]].concat(), "a", &[], usize::MAX);
    }
}
