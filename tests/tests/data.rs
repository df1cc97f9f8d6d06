//! `lcsc data`: converting, showing and fetching.

use lcsc_tests::*;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

/// CIFAR-10's binary version with two images a batch, the i-th all of value 20·i and of class i mod 10.
fn cifar(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    let names = (1..=5).map(|b| format!("data_batch_{b}.bin")).chain(["test_batch.bin".into()]);
    for (b, name) in names.enumerate() {
        let record = |i: usize| [vec![(i % 10) as u8], vec![(20 * i) as u8; 3072]].concat();
        std::fs::write(folder.join(name), [record(2 * b), record(2 * b + 1)].concat()).unwrap();
    }
}

/// The value of a line of `lcsc data info`.
fn line<'a>(info: &'a str, name: &str) -> &'a str {
    info.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("no `{name}` in {info}")).trim()
}

#[test]
fn a_published_dataset_becomes_a_zip_that_is_the_same_dataset() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    cifar(&folder.join("cifar"));
    assert_eq!(succeed(folder, &["data", "convert", "cifar", "train.zip"]), "train.zip: 10 images\n");
    succeed(folder, &["data", "convert", "cifar", "again.zip"]);
    let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap();
    assert!(bytes("train.zip") == bytes("again.zip"));
    let [published, zipped] =
        ["cifar", "train.zip"].map(|source| succeed(folder, &["data", "info", source, "--sheet", "sheet.png"]));
    assert_eq!(published.lines().skip(1).collect::<Vec<_>>(), zipped.lines().skip(1).collect::<Vec<_>>());
    assert!(line(&zipped, "images").starts_with("10 of 3×32×32"), "{zipped}");
    assert_eq!(line(&zipped, "classes"), "10 of 1 images each");
    // Of 0, 20, …, 180: 90/127.5 − 1, and 20·√8.25/127.5.
    assert!(line(&zipped, "mean").starts_with("-0.2941 -0.2941 -0.2941"), "{zipped}");
    assert_eq!(line(&zipped, "std"), "+0.4506 +0.4506 +0.4506");
    assert_eq!(image::open(folder.join("sheet.png")).unwrap().width(), 10 * 34 + 2);
    let test = succeed(folder, &["data", "info", "cifar", "--split", "test", "--resolution", "16"]);
    assert!(line(&test, "images").starts_with("2 of 3×16×16"), "{test}");
}

#[test]
fn what_cannot_be_converted_leaves_nothing_behind() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let images = folder.join("images/n01440764");
    std::fs::create_dir_all(&images).unwrap();
    image::RgbImage::new(20, 30).save(images.join("b.png")).unwrap();
    image::GrayImage::new(30, 20).save_with_format(images.join("c.JPEG"), image::ImageFormat::Jpeg).unwrap();
    std::fs::write(images.join("a.png"), b"\x89PNG").unwrap();
    let convert = ["data", "convert", "images", "x.zip", "--resolution", "8", "--crop", "center-dhariwal"];
    let text = refuse(folder, &convert);
    assert!(text.contains("`n01440764/a.png` is no readable image"), "{text}");
    let text = refuse(folder, &[&convert[..], &["--skip-corrupt"]].concat());
    assert!(text.contains("`n01440764/c.JPEG` has channels: 1") && text.contains("data.rgb = true"), "{text}");
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1);
    let ended = lcsc_in(folder, &[&convert[..], &["--skip-corrupt", "--rgb"]].concat());
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(0), "x.zip: 2 images\n"));
    assert!(ended.message().contains("1 damaged images left out: `n01440764/a.png`"), "{}", ended.stderr);
    let info = succeed(folder, &["data", "info", "x.zip"]);
    assert_eq!(line(&info, "classes"), "1 of 2 images each");
}

#[test]
fn another_file_than_the_published_one_is_not_kept() {
    let temp = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnone").unwrap();
    });
    let text = refuse(temp.path(), &["data", "fetch", "inception", "--out", "here", "--url", &url]);
    server.join().unwrap();
    assert!(text.contains("expected 6726825d") && text.contains("fetch it again"), "{text}");
    assert_eq!(std::fs::read_dir(temp.path().join("here")).unwrap().count(), 0);
}
