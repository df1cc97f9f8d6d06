//! Published files, downloaded once: continued after a cut, checked by the hash that their authors publish.

use fs4::{FileExt, TryLockError};
use indicatif::ProgressBar;
use lcsc_torch::{Context, Error, Result, bail, sync_folder};
use md5::Md5;
use sha2::Sha256;
use sha2::digest::Digest;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::Agent;
use ureq::http::Response;

/// A published file.
#[derive(Debug, Clone, Copy)]
pub struct Remote<'a> {
    /// Where it is published.
    pub url: &'a str,
    /// Its name, on this machine as there.
    pub file: &'a str,
    /// What its authors publish of its hash.
    pub hash: Hash<'a>,
    /// More bytes than it has: what is longer is another file.
    pub limit: u64,
}

/// A hash in hex, or how it begins.
#[derive(Debug, Clone, Copy)]
pub enum Hash<'a> {
    /// SHA-256.
    Sha256(&'a str),
    /// MD5: against damage alone.
    Md5(&'a str),
}

/// CIFAR-10, binary version. Its page publishes an MD5.
pub const CIFAR10: Remote = Remote {
    url: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    file: "cifar-10-binary.tar.gz",
    hash: Hash::Md5("c32a1d4ab5d03f1284b67883e8d87530"),
    limit: 1 << 28,
};

/// FID's Inception weights for PyTorch, of pytorch-fid's release. Their name tells how their SHA-256 begins.
pub const INCEPTION: Remote = Remote {
    url: "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    file: "pt_inception-2015-12-05-6726825d.pth",
    hash: Hash::Sha256("6726825d"),
    limit: 1 << 28,
};

/// Why a download did not come to its end.
enum Failed {
    /// The connection broke: the rest may follow.
    Cut(String),
    /// Trying again gives the same.
    For(Error),
}

/// Downloads a file into a folder, unless it is there already, from `url` where that is given; `bar` counts bytes. What
/// has come is kept as `….part` and continued, at once or by the next call.
///
/// # Errors
/// The server cannot be reached or refuses, the connection breaks without any progress, the hash is another, the disk is
/// full, or another process is at it.
pub fn fetch(remote: &Remote, url: Option<&str>, folder: &Path, bar: &ProgressBar) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).at(folder)?;
    let (path, part) = (folder.join(remote.file), folder.join(format!("{}.part", remote.file)));
    if path.exists() {
        let checked = check(&path, &mut File::open(&path).at(&path)?, remote.hash);
        return checked.map(|()| path).map_err(|e| Error::msg(format!("{e}. Remove it, and fetch it again")));
    }
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(&part).at(&part)?;
    match FileExt::try_lock(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("{}: another process is fetching it", part.display()),
        Err(TryLockError::Error(e)) => return Err(e).at(&part),
    }
    download(remote, url.unwrap_or(remote.url), &part, &mut file, bar)?;
    if let Err(e) = check(&part, &mut file, remote.hash) {
        std::fs::remove_file(&part).at(&part)?;
        bail!("{e}. It was removed: fetch it again, or from another place (--url)");
    }
    file.sync_all().at(&part)?;
    std::fs::rename(&part, &path).at(&path)?;
    sync_folder(folder)?;
    Ok(path)
}

/// Appends all that lacks, in as many connections as each bring something.
fn download(remote: &Remote, url: &str, part: &Path, file: &mut File, bar: &ProgressBar) -> Result<()> {
    let config = Agent::config_builder().http_status_as_error(false).user_agent("lcsc");
    let patience = Some(Duration::from_secs(60));
    let agent: Agent =
        config.timeout_connect(patience).timeout_recv_response(patience).timeout_per_read(patience).build().into();
    let mut most = file.metadata().at(part)?.len();
    loop {
        match append(&agent, url, remote.limit, part, file, bar) {
            Ok(()) => return Ok(()),
            Err(Failed::For(e)) => return Err(e),
            Err(Failed::Cut(e)) => {
                let now = file.metadata().at(part)?.len();
                if now <= most {
                    bail!("{url}: {e}; the same command goes on from byte {now}, --url names another place");
                }
                tracing::info!("{url}: {e}; going on from byte {now}");
                most = now;
            }
        }
    }
}

/// One connection: appends what the server gives.
fn append(
    agent: &Agent,
    url: &str,
    limit: u64,
    part: &Path,
    file: &mut File,
    bar: &ProgressBar,
) -> std::result::Result<(), Failed> {
    let have = file.metadata().at(part).map_err(Failed::For)?.len();
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let response = request.call().map_err(|e| match e {
        ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => Failed::Cut(e.to_string()),
        e => Failed::For(Error::msg(format!("{url}: {e}; --url names another place"))),
    })?;
    match (response.status().as_u16(), header(&response, "content-range")) {
        (206, Some(range)) if range.starts_with(&format!("bytes {have}-")) => {}
        (416, Some(range)) if have > 0 && range == format!("bytes */{have}") => return Ok(()),
        // It does not know ranges, or has another file than before: from the beginning.
        (200, _) => file.set_len(0).at(part).map_err(Failed::For)?,
        (416, _) if have > 0 => {
            file.set_len(0).at(part).map_err(Failed::For)?;
            return append(agent, url, limit, part, file, bar);
        }
        (status, _) => {
            let answer = format!("{url}: the server answers {status} to a request from byte {have}");
            return Err(Failed::For(Error::msg(format!("{answer}; --url names another place"))));
        }
    }
    receive(response, limit, part, file, bar)
}

/// Appends the body of a response.
fn receive(
    response: Response<ureq::Body>,
    limit: u64,
    part: &Path,
    file: &mut File,
    bar: &ProgressBar,
) -> std::result::Result<(), Failed> {
    let length = |file: &File| Ok::<_, Failed>(file.metadata().at(part).map_err(Failed::For)?.len());
    let mut have = length(file)?;
    let total = header(&response, "content-length").and_then(|n| n.parse::<u64>().ok()).map(|n| n.saturating_add(have));
    bar.set_length(total.unwrap_or(limit));
    bar.set_position(have);
    // What was there before counts for no rate.
    bar.tick();
    bar.reset_eta();
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 1 << 16];
    loop {
        if have > limit || total.is_some_and(|total| total > limit) {
            file.set_len(0).at(part).map_err(Failed::For)?;
            return Err(Failed::For(Error::file(part, format!("more than {limit} bytes come, it is another file"))));
        }
        let n = body.read(&mut buffer).map_err(|e| Failed::Cut(format!("the connection broke ({e})")))?;
        if n == 0 {
            break;
        }
        file.write_all(&buffer[..n]).at(part).map_err(Failed::For)?;
        have += n as u64;
        bar.set_position(have);
    }
    match total {
        Some(total) if have < total => Err(Failed::Cut(format!("the connection ended at byte {have} of {total}"))),
        _ => Ok(()),
    }
}

fn header<'a>(response: &'a Response<ureq::Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// Compares the hash of a file with what is published.
fn check(path: &Path, file: &mut File, hash: Hash) -> Result<()> {
    file.rewind().at(path)?;
    let (name, expected, found) = match hash {
        Hash::Sha256(expected) => ("SHA-256", expected, digest::<Sha256>(file).at(path)?),
        Hash::Md5(expected) => ("MD5", expected, digest::<Md5>(file).at(path)?),
    };
    if found.starts_with(expected) {
        return Ok(());
    }
    Err(Error::file(path, format!("has {name} {found}, expected {expected}: it is damaged or another file")))
}

/// The hash of a file in hex.
fn digest<D: Digest>(file: &mut File) -> std::io::Result<String> {
    let (mut hasher, mut buffer) = (D::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests;
