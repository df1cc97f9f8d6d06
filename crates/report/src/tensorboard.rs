//! TensorBoard's event files: records of checksummed protocol-buffer messages, appended as things happen.
//!
//! The format is that of TensorFlow's `event.proto`, `summary.proto` and `record_writer.h`: field numbers below are theirs.

use crate::error::{Error, Result};
use prost::Message;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A line of TensorBoard's log: something about a step.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    /// Step; images trained, or candidates scored.
    #[prost(int64, tag = "2")]
    pub step: i64,
    /// What there is to tell.
    #[prost(oneof = "What", tags = "3, 5, 7")]
    pub what: Option<What>,
}

/// What an event tells.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum What {
    /// The first event of a file: its format.
    #[prost(string, tag = "3")]
    FileVersion(String),
    /// Values.
    #[prost(message, tag = "5")]
    Summary(Values),
    /// Events from this step on that other files of the folder hold are not valid any more.
    #[prost(message, tag = "7")]
    Session(Session),
}

/// A beginning.
#[derive(Clone, PartialEq, Message)]
pub struct Session {
    /// 1: start.
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// Values of a step.
#[derive(Clone, PartialEq, Message)]
pub struct Values {
    /// One a tag.
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Tagged>,
}

/// A value under its name.
#[derive(Clone, PartialEq, Message)]
pub struct Tagged {
    /// Name; a slash parts groups.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// The value.
    #[prost(oneof = "Value", tags = "2, 4, 5")]
    pub value: Option<Value>,
}

/// A value.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Value {
    /// A number.
    #[prost(float, tag = "2")]
    Scalar(f32),
    /// A picture.
    #[prost(message, tag = "4")]
    Image(Image),
    /// Many numbers.
    #[prost(message, tag = "5")]
    Histogram(Histogram),
}

/// A picture.
#[derive(Clone, PartialEq, Message)]
pub struct Image {
    /// Pixels.
    #[prost(int32, tag = "1")]
    pub height: i32,
    /// Pixels.
    #[prost(int32, tag = "2")]
    pub width: i32,
    /// 1 grey, 3 RGB.
    #[prost(int32, tag = "3")]
    pub colorspace: i32,
    /// PNG file.
    #[prost(bytes = "vec", tag = "4")]
    pub encoded: Vec<u8>,
}

/// Numbers counted in buckets.
#[derive(Clone, PartialEq, Message)]
pub struct Histogram {
    /// Smallest.
    #[prost(double, tag = "1")]
    pub min: f64,
    /// Largest.
    #[prost(double, tag = "2")]
    pub max: f64,
    /// How many.
    #[prost(double, tag = "3")]
    pub num: f64,
    /// Their sum.
    #[prost(double, tag = "4")]
    pub sum: f64,
    /// Sum of their squares.
    #[prost(double, tag = "5")]
    pub sum_squares: f64,
    /// Upper end of each bucket, rising.
    #[prost(double, repeated, tag = "6")]
    pub bucket_limit: Vec<f64>,
    /// How many lie in it.
    #[prost(double, repeated, tag = "7")]
    pub bucket: Vec<f64>,
}

/// Buckets of a histogram.
const BUCKETS: usize = 30;

impl Histogram {
    /// Counts finite numbers; none of no numbers.
    pub fn of(values: &[f64]) -> Option<Self> {
        let min = values.iter().copied().reduce(f64::min)?;
        let max = values.iter().copied().reduce(f64::max)?;
        let width = if max > min { (max - min) / BUCKETS as f64 } else { 1.0 / BUCKETS as f64 };
        let mut bucket = vec![0.0; BUCKETS];
        for value in values {
            bucket[(((value - min) / width) as usize).min(BUCKETS - 1)] += 1.0;
        }
        Some(Self {
            min,
            max,
            num: values.len() as f64,
            sum: values.iter().sum(),
            sum_squares: values.iter().map(|v| v * v).sum(),
            bucket_limit: (1..=BUCKETS).map(|i| min + i as f64 * width).collect(),
            bucket,
        })
    }
}

/// Values of a step on their way to a file.
#[derive(Debug, Clone, Default)]
pub struct Step {
    value: Vec<Tagged>,
}

impl Step {
    fn with(mut self, tag: impl Into<String>, value: Value) -> Self {
        self.value.push(Tagged { tag: tag.into(), value: Some(value) });
        self
    }

    /// And a number, where it is finite.
    #[must_use]
    pub fn scalar(self, tag: impl Into<String>, value: impl Into<Option<f64>>) -> Self {
        match value.into().filter(|v| v.is_finite()) {
            Some(value) => self.with(tag, Value::Scalar(value as f32)),
            None => self,
        }
    }

    /// And how numbers are spread.
    #[must_use]
    pub fn histogram(self, tag: impl Into<String>, values: &[f64]) -> Self {
        match Histogram::of(values) {
            Some(histogram) => self.with(tag, Value::Histogram(histogram)),
            None => self,
        }
    }

    /// And a PNG file.
    ///
    /// # Errors
    /// It cannot be read, or is no PNG.
    pub fn picture(self, tag: impl Into<String>, png: &Path) -> Result<Self> {
        let encoded = std::fs::read(png).map_err(|e| Error::io(png, e))?;
        let (width, height) = image::image_dimensions(png).map_err(|e| Error::content(png, e.to_string()))?;
        let image = Image { height: height as i32, width: width as i32, colorspace: 3, encoded };
        Ok(self.with(tag, Value::Image(image)))
    }
}

/// What names of event files begin with.
pub const PREFIX: &str = "events.out.tfevents.";

/// An event file that is being written.
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins a new file in a folder, which is made where it is missing. What older files of the folder tell of steps from
    /// `first` on is withdrawn.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn begin(folder: &Path, first: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let now = now();
        // TensorBoard reads the files of a folder in the order of their names.
        let name = format!("{PREFIX}{:010}.{:09}.lcsc.{}", now as u64, nanos(now), std::process::id());
        let path = folder.join(name);
        let file = File::options().create_new(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        let mut events = Self { path, file };
        events.append(&Event { wall_time: now, step: 0, what: Some(What::FileVersion("brain.Event:2".into())) })?;
        let start = What::Session(Session { status: 1 });
        events.append(&Event { wall_time: now, step: first as i64, what: Some(start) })?;
        Ok(events)
    }

    /// Appends the values of a step.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&mut self, step: u64, values: Step) -> Result<()> {
        let summary = What::Summary(Values { value: values.value });
        self.append(&Event { wall_time: now(), step: step as i64, what: Some(summary) })
    }

    /// A record: length, its checksum, bytes, their checksum.
    fn append(&mut self, event: &Event) -> Result<()> {
        let bytes = event.encode_to_vec();
        let length = (bytes.len() as u64).to_le_bytes();
        let checksum = |bytes: &[u8]| masked(crc32c::crc32c(bytes)).to_le_bytes();
        let record = [&length[..], &checksum(&length), &bytes, &checksum(&bytes)].concat();
        self.file.write_all(&record).map_err(|e| Error::io(&self.path, e))
    }
}

/// A checksum as records hold it, so that a record of records is not taken for one.
pub fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn nanos(seconds: f64) -> u32 {
    (seconds.fract() * 1e9) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counted_in_buckets() {
        let found = Histogram::of(&[-1.0, 0.0, 0.5, 2.0]).unwrap();
        assert_eq!((found.min, found.max, found.num, found.sum, found.sum_squares), (-1.0, 2.0, 4.0, 1.5, 5.25));
        assert_eq!(found.bucket.iter().sum::<f64>(), 4.0);
        for (value, bucket) in [(-1.0, 0), (0.0, 10), (0.5, 15), (2.0, 29)] {
            assert_eq!(found.bucket[bucket], 1.0, "{value} in {:?}", found.bucket);
            assert!(value <= found.bucket_limit[bucket] + 1e-12);
        }
        assert_eq!(Histogram::of(&[3.0]).unwrap().bucket[0], 1.0);
        assert!(Histogram::of(&[]).is_none());
    }

    #[test]
    fn records_are_framed_as_tensorflow_frames_them() {
        let temp = tempfile::tempdir().unwrap();
        let mut events = EventFile::begin(temp.path(), 7).unwrap();
        events.write(8, Step::default().scalar("loss", 0.5).scalar("none", None).scalar("nan", f64::NAN)).unwrap();
        let bytes = std::fs::read(&events.path).unwrap();
        // "brain.Event:2" makes a first record of 24 bytes: time 9, version 15.
        assert_eq!(bytes[..8], 24u64.to_le_bytes());
        // The masked checksum of that length, as TensorFlow's files begin.
        assert_eq!(bytes[8..12], [0xa3, 0x7f, 0x4b, 0x22]);
        assert_eq!(&bytes[23..36], b"brain.Event:2");
        let last = &bytes[bytes.len() - 4 - 26..bytes.len() - 4];
        let event = Event::decode(last).unwrap();
        assert_eq!(event.step, 8);
        let value = vec![Tagged { tag: "loss".into(), value: Some(Value::Scalar(0.5)) }];
        assert_eq!(event.what, Some(What::Summary(Values { value })));
    }
}
