//! The event files of a run, read by a reader of our own and by TensorBoard's.

use lcsc_report::tensorboard::{Event, Value, What, masked};
use lcsc_tests::*;
use prost::Message;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the events of a folder tell: step and value of each tag, in the order of the files' names.
#[derive(Debug, Default)]
struct Told {
    scalars: BTreeMap<String, Vec<(i64, f32)>>,
    /// Step, width and height.
    images: BTreeMap<String, Vec<(i64, i32, i32)>>,
    /// Step, count and sum.
    histograms: BTreeMap<String, Vec<(i64, f64, f64)>>,
}

/// The records of a file, both checksums right.
fn records(bytes: &[u8]) -> Vec<&[u8]> {
    let checked = |bytes: &[u8], crc: &[u8]| assert_eq!(masked(crc32c::crc32c(bytes)).to_le_bytes(), crc);
    let (mut at, mut found) = (0, Vec::new());
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        checked(&bytes[at..at + 8], &bytes[at + 8..at + 12]);
        let record = &bytes[at + 12..at + 12 + length];
        checked(record, &bytes[at + 12 + length..at + 16 + length]);
        found.push(record);
        at += 16 + length;
    }
    found
}

impl Told {
    fn read(folder: &Path) -> Self {
        let mut told = Self::default();
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        for file in files {
            for (i, record) in records(&std::fs::read(&file).unwrap()).into_iter().enumerate() {
                let event = Event::decode(record).unwrap();
                assert!(event.wall_time > 1.7e9);
                match event.what.unwrap() {
                    What::FileVersion(version) => assert_eq!((i, version.as_str()), (0, "brain.Event:2")),
                    What::Session(session) => {
                        assert_eq!((i, session.status), (1, 1));
                        told.forget(event.step);
                    }
                    What::Summary(values) => {
                        for tagged in values.value {
                            told.hear(event.step, tagged.tag, tagged.value.unwrap());
                        }
                    }
                }
            }
        }
        told
    }

    /// As TensorBoard does where a session starts again.
    fn forget(&mut self, from: i64) {
        self.scalars.values_mut().for_each(|values| values.retain(|v| v.0 < from));
        self.images.values_mut().for_each(|values| values.retain(|v| v.0 < from));
        self.histograms.values_mut().for_each(|values| values.retain(|v| v.0 < from));
    }

    fn hear(&mut self, step: i64, tag: String, value: Value) {
        match value {
            Value::Scalar(value) => self.scalars.entry(tag).or_default().push((step, value)),
            Value::Image(image) => {
                let size = image::load_from_memory(&image.encoded).unwrap();
                assert_eq!((image.width, image.height), (size.width() as i32, size.height() as i32));
                self.images.entry(tag).or_default().push((step, image.width, image.height));
            }
            Value::Histogram(h) => {
                assert_eq!(h.bucket.iter().sum::<f64>(), h.num);
                self.histograms.entry(tag).or_default().push((step, h.num, h.sum));
            }
        }
    }

    fn as_json(&self) -> serde_json::Value {
        serde_json::json!({ "scalars": self.scalars, "images": self.images, "histograms": self.histograms })
    }
}

/// A Python that has TensorBoard, where there is one: `$LCSC_PYTHON`, the one of the bench, or the system's.
fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let named = std::env::var_os("LCSC_PYTHON").map(PathBuf::from);
    let places = named.into_iter().chain([root.join(".bench/venv/bin/python"), "python3".into()]);
    let has = |python: &PathBuf| {
        let found = Command::new(python).args(["-c", "import tensorboard"]).output();
        found.is_ok_and(|output| output.status.success())
    };
    places.into_iter().find(has)
}

/// TensorBoard finds the same in a folder.
fn assert_tensorboard_agrees(folder: &Path, told: &Told) {
    let Some(python) = python() else {
        println!("skipped: no Python with TensorBoard (pip install tensorboard, LCSC_PYTHON=…)");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/events.py");
    let output = Command::new(python).arg(script).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    // As numbers of one width.
    let expected: serde_json::Value = serde_json::from_str(&told.as_json().to_string()).unwrap();
    assert_eq!(numbers(&found), numbers(&expected));
}

/// All numbers of a value by their place, as f32.
fn numbers(value: &serde_json::Value) -> BTreeMap<String, f32> {
    fn walk(place: String, value: &serde_json::Value, found: &mut BTreeMap<String, f32>) {
        match value {
            serde_json::Value::Object(map) => map.iter().for_each(|(k, v)| walk(format!("{place}/{k}"), v, found)),
            serde_json::Value::Array(all) => {
                all.iter().enumerate().for_each(|(i, v)| walk(format!("{place}/{i}"), v, found));
            }
            other => drop(found.insert(place, other.as_f64().unwrap() as f32)),
        }
    }
    let mut found = BTreeMap::new();
    walk(String::new(), value, &mut found);
    found
}

#[test]
fn event_files_tell_what_the_logs_tell_also_after_a_kill() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let sets = [
        "stage.0.nimg=384",
        "stage.0.sample_nimg=128",
        "stage.0.state_minutes=0",
        "search.images=64",
        "search.report_images=64",
        "search.budget.evaluations=6",
    ];
    let mut args = vec!["run", TINY, "--out", "run"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let log = folder.join("run/train.jsonl");
    kill_at(folder, &args, &[&log], 6, &mut Moments::begin());
    succeed(folder, &args);

    let of_stage = folder.join("run/tensorboard/edm");
    assert!(std::fs::read_dir(&of_stage).unwrap().count() > 1, "the killed run and the resumed one");
    let told = Told::read(&of_stage);
    let ticks = json_lines(&log);
    for (tag, key) in [("loss/all", "loss"), ("grad_norm", "grad_norm"), ("lr", "lr"), ("memory/host GiB", "host_gib")]
    {
        let logged = ticks.iter().map(|t| (t["total_nimg"].as_i64().unwrap(), t[key].as_f64().unwrap() as f32));
        assert_eq!(told.scalars[tag], logged.collect::<Vec<_>>(), "{tag}");
    }
    for quarter in 0..4 {
        let logged = ticks
            .iter()
            .filter_map(|t| Some((t["total_nimg"].as_i64().unwrap(), t["loss_by_sigma"][quarter].as_f64()? as f32)));
        let tag = format!("loss/sigma quarter {}", quarter + 1);
        assert_eq!(told.scalars[&tag], logged.collect::<Vec<_>>(), "{tag}");
    }
    let sheets: Vec<i64> = told.images["samples/ema-h200"].iter().map(|(step, ..)| *step).collect();
    assert_eq!(sheets, [128, 256, 384]);
    assert!(folder.join("run/samples/edm-000000000128.png").exists());
    assert_tensorboard_agrees(&of_stage, &told);

    let of_search = folder.join("run/tensorboard/search/default");
    let told = Told::read(&of_search);
    let evaluations = json_lines(&folder.join("run/search/default/evaluations.jsonl"));
    let scored = |phase: serde_json::Value| evaluations.iter().filter(move |e| e["phase"] == phase).count();
    assert_eq!(told.scalars["FD/baselines"].len(), scored("baseline".into()));
    assert_eq!(told.scalars["FD/gradient"].len(), scored(serde_json::json!({ "search": "gradient" })));
    assert_eq!(told.scalars["checkpoints/raw"].len(), 3);
    assert!(!told.histograms.is_empty());
    let summary = json(&folder.join("run/summary.json"));
    for model in summary["models"].as_array().unwrap() {
        let label = model["label"].as_str().unwrap();
        let tag = match label {
            "best_checkpoint" => "best checkpoint",
            "ema" => "best EMA",
            "lcsc" => "LCSC",
            label => label,
        };
        let [(_, value)] = told.scalars[&format!("held-out FD/{tag}")][..] else { panic!("{label}") };
        assert_eq!(value, model["fd_heldout"].as_f64().unwrap() as f32);
    }
    assert_tensorboard_agrees(&of_search, &told);
}
