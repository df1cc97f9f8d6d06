//! Which files become which checkpoints of a trajectory.

use crate::args::ImportArgs;
use lcsc_torch::{Context, Error, Result, bail};
use std::path::{Path, PathBuf};
use wildmatch::WildMatch;

/// What EDM counts in, in images, and how its files begin.
const KIMG: u64 = 1000;
const OF_EDM: [&str; 2] = ["network-snapshot-", "training-state-"];
/// The weights that the optimizer trains.
const RAW: &str = "raw";

/// A file of other weights, and the checkpoint that it becomes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Images that the stage had trained.
    pub nimg: u64,
    /// `raw`, or an EMA track of the stage.
    pub track: String,
    /// The file.
    pub path: PathBuf,
}

/// A line of a list.
impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.nimg, self.track, self.path.display())
    }
}

/// The files that are asked for, in the order of training; a step has `batch` images, and the stage has these `tracks`.
///
/// # Errors
/// A name has no number, a line of the list is none, a track is not of the stage, two files are of one checkpoint, or a
/// track has fewer than two.
pub fn sources(args: &ImportArgs, batch: u64, tracks: &[String]) -> Result<Vec<Source>> {
    let mut found = match &args.list {
        Some(list) => listed(list)?,
        None => Vec::new(),
    };
    for asked in &args.trajectory {
        found.extend(matching(asked, args.unit, batch)?);
    }
    found.sort();
    for source in &found {
        if !tracks.contains(&source.track) {
            let message = format!(
                "the config's stage has no track `{}`; it has: {} (its `ema` makes further ones)",
                source.track,
                tracks.join(", ")
            );
            return Err(Error::file(&source.path, message));
        }
    }
    for pair in found.windows(2) {
        if let [a, b] = pair
            && (a.nimg, &a.track) == (b.nimg, &b.track)
        {
            let (of, a, b) = (format!("{} images of track {}", a.nimg, a.track), a.path.display(), b.path.display());
            bail!("{a} and {b} are both of {of}: choose one kind of file by the pattern, or name tracks");
        }
    }
    if let Some(track) = tracks.iter().find(|t| found.iter().filter(|s| s.track == **t).count() == 1) {
        bail!(
            "track {track} has 1 file, expected at least 2 (patterns in quotes, so that the shell leaves them alone)"
        );
    }
    if found.is_empty() {
        bail!("there are no such files (patterns in quotes, so that the shell leaves them alone)");
    }
    Ok(found)
}

/// The files of `[TRACK=]PATTERN`, with the images that their names tell.
fn matching(asked: &str, unit: Option<u64>, batch: u64) -> Result<Vec<Source>> {
    let is_track = |text: &str| !text.is_empty() && !text.contains(['/', '*', '?']);
    let (track, pattern) = match asked.split_once('=') {
        Some((track, pattern)) if is_track(track) => (track, pattern),
        Some(_) | None => (RAW, asked),
    };
    let path = Path::new(pattern);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let matcher = WildMatch::new(name);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).at(folder)? {
        let path = entry.at(folder)?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|name| matcher.matches(name)) else {
            continue;
        };
        let default = if OF_EDM.iter().any(|prefix| name.starts_with(prefix)) { KIMG } else { batch };
        let count = last_number(name).and_then(|count| count.checked_mul(unit.unwrap_or(default)));
        let Some(nimg) = count else {
            let message = "its name has no number that tells how far the training was: rename it, or make a --list";
            return Err(Error::file(&path, message));
        };
        files.push(Source { nimg, track: track.into(), path });
    }
    Ok(files)
}

/// The last number in a name, its extension apart.
fn last_number(name: &str) -> Option<u64> {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    stem.split(|c: char| !c.is_ascii_digit()).rfind(|digits| !digits.is_empty())?.parse().ok()
}

/// The files of a list, a line each: images, track, file.
fn listed(list: &Path) -> Result<Vec<Source>> {
    let text = std::fs::read_to_string(list).at(list)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| {
            let mut fields = line.trim().splitn(3, ' ');
            let nimg = fields.next().and_then(|nimg| nimg.parse().ok());
            match (nimg, fields.next(), fields.next()) {
                (Some(nimg), Some(track), Some(path)) => Ok(Source { nimg, track: track.into(), path: path.into() }),
                _ => {
                    let message =
                        format!("line {}: `{line}`, expected IMAGES TRACK FILE (`51200 raw model.pt`)", i + 1);
                    Err(Error::file(list, message))
                }
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    /// The arguments of `lcsc import` with these ones.
    fn arguments(given: &[&str]) -> ImportArgs {
        let all = [&["lcsc", "import", "run", "--config", "c.toml"], given].concat();
        match crate::args::Args::try_parse_from(all).unwrap().command {
            crate::args::Command::Import(args) => args,
            _ => panic!("another command"),
        }
    }

    fn found(folder: &Path, given: &[&str]) -> Result<Vec<(u64, String)>> {
        let given: Vec<String> = given.iter().map(|g| g.replace('@', &folder.display().to_string())).collect();
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        let tracks = ["raw".to_string(), "ema-b0.9".to_string()];
        Ok(sources(&arguments(&given), 64, &tracks)?.into_iter().map(|s| (s.nimg, s.track)).collect())
    }

    #[test]
    fn names_tell_how_far_the_training_was() {
        assert_eq!(last_number("network-snapshot-000123.pkl"), Some(123));
        assert_eq!(last_number("ema_0.9999_010000.pt"), Some(10_000));
        assert_eq!(last_number("model.pt"), None);
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for name in ["model000200.pt", "model000100.pt", "ema_0.9_000100.pt", "ema_0.9_000200.pt", "last.pt"] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        let raw = |nimg: u64| (nimg, "raw".to_string());
        assert_eq!(found(folder, &["--trajectory", "@/model*.pt"]).unwrap(), [raw(6400), raw(12_800)]);
        let unit = ["--trajectory", "@/model*.pt", "--unit", "1"];
        assert_eq!(found(folder, &unit).unwrap(), [raw(100), raw(200)]);
        let ema = |nimg: u64| (nimg, "ema-b0.9".to_string());
        let both = [&unit[..], &["--trajectory", "ema-b0.9=@/ema*.pt"]].concat();
        assert_eq!(found(folder, &both).unwrap(), [ema(100), raw(100), ema(200), raw(200)]);
        let refused = |given: &[&str]| found(folder, given).unwrap_err().to_string();
        assert!(refused(&["--trajectory", "@/*000*00*"]).contains("both of 6400 images of track raw"));
        assert!(refused(&["--trajectory", "@/model0001*"]).contains("track raw has 1 file, expected at least 2"));
        assert!(refused(&["--trajectory", "@/none*"]).contains("no such files"));
        assert!(refused(&["--trajectory", "@/*"]).contains("last.pt: its name has no number"));
        assert!(refused(&["--trajectory", "ema=@/ema*"]).contains("no track `ema`; it has: raw, ema-b0.9"));
    }

    #[test]
    fn a_list_tells_it_where_names_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let list = folder.join("list.txt");
        std::fs::write(&list, "300 raw my last.pt\n\n100 raw a.pt\n").unwrap();
        let all = sources(&arguments(&["--list", list.to_str().unwrap()]), 64, &["raw".into()]).unwrap();
        assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), ["100 raw a.pt", "300 raw my last.pt"]);
        std::fs::write(&list, "100 raw a.pt\n300 b.pt\n").unwrap();
        let message = found(folder, &["--list", "@/list.txt"]).unwrap_err().to_string();
        assert!(message.contains("list.txt: line 2: `300 b.pt`, expected IMAGES TRACK FILE"), "{message}");
    }
}
