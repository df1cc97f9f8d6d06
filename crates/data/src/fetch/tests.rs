//! Downloads from a server on this machine.

use super::*;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::thread::JoinHandle;

/// How the server answers one connection.
#[derive(Clone, Copy)]
enum Answer {
    /// As asked, with ranges, but so many bytes at most.
    Ranges(usize),
    /// All from the beginning, whatever is asked.
    Whole,
    /// An error.
    Status(&'static str),
}

fn content() -> Vec<u8> {
    (0..100_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect()
}

/// Serves one connection an answer; gives its address, and in the end the bytes that were asked for first.
fn serve(answers: &[Answer]) -> (String, JoinHandle<Vec<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", listener.local_addr().unwrap());
    let answers = answers.to_vec();
    let server = std::thread::spawn(move || answers.iter().map(|answer| respond(&listener, *answer)).collect());
    (url, server)
}

fn respond(listener: &TcpListener, answer: Answer) -> usize {
    let (mut stream, _) = listener.accept().unwrap();
    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let head: Vec<String> = lines.map(|line| line.unwrap()).take_while(|line| !line.is_empty()).collect();
    let range = head.iter().find_map(|l| l.to_ascii_lowercase().strip_prefix("range: bytes=").map(String::from));
    let first: usize = range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    let content = content();
    let total = content.len();
    let (head, body) = match answer {
        Answer::Ranges(_) if first >= total => {
            (format!("416 Range Not Satisfiable\r\nContent-Range: bytes */{total}\r\nContent-Length: 0"), &content[..0])
        }
        Answer::Ranges(most) => {
            let status = match first {
                0 => "200 OK".to_string(),
                _ => format!("206 Partial Content\r\nContent-Range: bytes {first}-{}/{total}", total - 1),
            };
            (
                format!("{status}\r\nContent-Length: {}", total - first),
                &content[first..total.min(first.saturating_add(most))],
            )
        }
        Answer::Whole => (format!("200 OK\r\nContent-Length: {total}"), &content[..]),
        Answer::Status(status) => (format!("{status}\r\nContent-Length: 0"), &content[..0]),
    };
    let _ = stream.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes());
    let _ = stream.write_all(body); // a client that has seen enough goes away
    first
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Fetches into a folder that has a part of `before`; gives the outcome, and the first bytes asked for.
fn fetched(before: &[u8], answers: &[Answer], expected: &str) -> (Result<Vec<u8>>, Vec<usize>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file.part"), before).unwrap();
    let (url, server) = serve(answers);
    let remote = Remote { url: &url, file: "file", hash: Hash::Sha256(expected), limit: 1 << 20 };
    let path = fetch(&remote, None, folder.path(), &ProgressBar::hidden());
    (path.map(|path| std::fs::read(path).unwrap()), server.join().unwrap(), folder)
}

/// Names in a folder.
fn left(folder: &tempfile::TempDir) -> Vec<String> {
    std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_whole_file_comes_once() {
    let all = content();
    let (bytes, asked, folder) = fetched(&[], &[Answer::Ranges(usize::MAX)], &hash(&all)[..8]);
    assert!(bytes.unwrap() == all && asked == [0]);
    assert_eq!(left(&folder), ["file"]);
    // Nobody listens any more.
    let hash = hash(&all);
    let remote = Remote { url: "http://127.0.0.1:9/", file: "file", hash: Hash::Sha256(&hash), limit: 1 };
    fetch(&remote, None, folder.path(), &ProgressBar::hidden()).unwrap();
    let md5 = Remote { hash: Hash::Md5("00"), ..remote };
    let text = fetch(&md5, None, folder.path(), &ProgressBar::hidden()).unwrap_err().to_string();
    assert!(text.contains("has MD5 ") && text.contains("expected 00"), "{text}");
}

#[test]
fn a_cut_connection_is_continued_at_once_and_by_the_next_call() {
    let all = content();
    let hash = hash(&all);
    let (bytes, asked, _folder) =
        fetched(&all[..1000], &[Answer::Ranges(30_000), Answer::Ranges(7), Answer::Ranges(usize::MAX)], &hash);
    assert!(bytes.unwrap() == all);
    assert_eq!(asked, [1000, 31_000, 31_007]);
    let (outcome, asked, folder) = fetched(&[], &[Answer::Ranges(500), Answer::Ranges(0)], &hash);
    let text = outcome.unwrap_err().to_string();
    assert!(text.contains("the same command goes on from byte 500"), "{text}");
    assert_eq!((asked, left(&folder)), (vec![0, 500], vec!["file.part".to_string()]));
    assert!(std::fs::read(folder.path().join("file.part")).unwrap() == all[..500]);
}

#[test]
fn a_part_that_is_whole_or_too_long_is_no_obstacle() {
    let all = content();
    let (bytes, ..) = fetched(&all, &[Answer::Ranges(usize::MAX)], &hash(&all));
    assert!(bytes.unwrap() == all);
    let longer = [&all[..], b"more"].concat();
    let (bytes, asked, _folder) = fetched(&longer, &[Answer::Ranges(usize::MAX); 2], &hash(&all));
    assert!(bytes.unwrap() == all);
    assert_eq!(asked, [longer.len(), 0]);
}

#[test]
fn a_server_without_ranges_begins_again() {
    let all = content();
    let (bytes, asked, _folder) = fetched(b"something else", &[Answer::Whole], &hash(&all));
    assert!(bytes.unwrap() == all);
    assert_eq!(asked, [14]);
}

#[test]
fn another_file_is_refused_and_removed() {
    let (outcome, _, folder) = fetched(&[], &[Answer::Whole], "00ff");
    let text = outcome.unwrap_err().to_string();
    assert!(text.contains("expected 00ff") && text.contains("It was removed: fetch it again"), "{text}");
    assert!(left(&folder).is_empty());
}

#[test]
fn errors_of_the_server_are_told() {
    let (outcome, _, folder) = fetched(b"kept", &[Answer::Status("404 Not Found")], "00");
    let text = outcome.unwrap_err().to_string();
    assert!(text.contains("the server answers 404 to a request from byte 4; --url names another place"), "{text}");
    assert_eq!(left(&folder), ["file.part"]);
    let remote = Remote { url: "http://127.0.0.1:1/", file: "file", hash: Hash::Sha256("00"), limit: 9 };
    let text = fetch(&remote, None, folder.path(), &ProgressBar::hidden()).unwrap_err().to_string();
    assert!(text.starts_with("http://127.0.0.1:1/: ") && text.contains("--url"), "{text}");
}

#[test]
fn a_file_without_an_end_is_left_at_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let (url, server) = serve(&[Answer::Whole]);
    let remote = Remote { url: &url, file: "file", hash: Hash::Sha256("00"), limit: 99 };
    let text = fetch(&remote, None, folder.path(), &ProgressBar::hidden()).unwrap_err().to_string();
    assert!(text.contains("more than 99 bytes come, it is another file"), "{text}");
    server.join().unwrap();
}
