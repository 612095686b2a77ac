//! A stand-in for the Hugging Face Hub on this machine: repositories with their real listings, answered as the Hub does. Large
//! files are redirected to another place, which serves ranges; small ones to a path of the Hub itself.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a repository has that nobody may fetch.
pub const OTHER: &[u8] = b"not to be fetched";

/// Files by name.
pub type Repository = BTreeMap<String, Vec<u8>>;

struct Content {
    repositories: BTreeMap<&'static str, Repository>,
    fetched: Mutex<Vec<String>>,
}

/// The server; it ends with the tests.
pub struct Hub {
    pub endpoint: String,
    content: Arc<Content>,
}

impl Hub {
    pub fn new<const N: usize>(repositories: [(&'static str, Repository); N]) -> Self {
        let content = Arc::new(Content { repositories: repositories.into(), fetched: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (shared, place) = (content.clone(), endpoint.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (content, place) = (shared.clone(), place.clone());
                thread::spawn(move || answer(stream, &content, &place));
            }
        });
        Self { endpoint, content }
    }

    /// The files whose bytes were asked for since the last call, as `owner/name/file`, sorted.
    pub fn fetched(&self) -> Vec<String> {
        let mut fetched = std::mem::take(&mut *self.content.fetched.lock().unwrap());
        fetched.sort();
        fetched.dedup();
        fetched
    }
}

struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: &'static str, headers: impl Into<Vec<(&'static str, String)>>) -> Self {
        Self { status, headers: headers.into(), body: Vec::new() }
    }

    fn not_found(code: &str) -> Self {
        Self::new("404 Not Found", [("X-Error-Code", code.to_owned()), ("X-Error-Message", "not found".to_owned())])
    }
}

fn answer(stream: TcpStream, content: &Content, place: &str) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut range = None;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).unwrap_or(0) == 0 || header.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = header.trim().split_once(": ")
            && name.eq_ignore_ascii_case("range")
        {
            range = Some(value.to_owned());
        }
    }
    let mut parts = line.split_whitespace();
    let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let Answer { status, headers, body } = respond(content, place, method, path, range.as_deref());
    let mut stream = stream;
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    if method != "HEAD" {
        let _ = stream.write_all(&body);
    }
    // Closing with unread bytes would reset the connection under the client.
    let _ = stream.shutdown(Shutdown::Write);
    let _ = reader.read(&mut [0]);
}

fn respond(content: &Content, place: &str, method: &str, path: &str, range: Option<&str>) -> Answer {
    if let Some(rest) = path.strip_prefix("/api/models/") {
        return listing(content, rest);
    }
    let found = |rest: &str| {
        let (name, file) = rest.split_once(&format!("/{COMMIT}/"))?;
        let (name, _) = name.split_once("/resolve").unwrap_or((name, ""));
        let (name, files) = content.repositories.get_key_value(name)?;
        let (file, bytes) = files.get_key_value(file)?;
        Some((*name, file.as_str(), bytes))
    };
    for (folder, is_large) in [("/large/", true), ("/api/resolve-cache/models/", false)] {
        let Some((name, file, bytes)) = path.strip_prefix(folder).and_then(found) else { continue };
        if method == "GET" {
            content.fetched.lock().unwrap().push(format!("{name}/{file}"));
        }
        return serve(bytes, is_large, range);
    }
    let Some((name, file, bytes)) = found(path.trim_start_matches('/')) else {
        return Answer::not_found("EntryNotFound");
    };
    if !is_large(file) {
        let location = format!("/api/resolve-cache/models/{name}/{COMMIT}/{file}");
        return Answer::new("307 Temporary Redirect", [("Location", location), ("X-Repo-Commit", COMMIT.to_owned())]);
    }
    Answer::new(
        "302 Found",
        [
            ("Location", format!("{place}/large/{name}/{COMMIT}/{file}")),
            ("X-Repo-Commit", COMMIT.to_owned()),
            ("X-Linked-Size", bytes.len().to_string()),
            ("X-Linked-ETag", format!("\"{}\"", hash(bytes))),
            ("Accept-Ranges", "bytes".to_owned()),
        ],
    )
}

fn listing(content: &Content, rest: &str) -> Answer {
    let Some((name, "main" | COMMIT)) = rest.split_once("/revision/") else {
        return Answer::not_found("RevisionNotFound");
    };
    let Some(files) = content.repositories.get(name) else { return Answer::not_found("RepoNotFound") };
    let names: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
    let body = serde_json::json!({ "_id": "1", "id": name, "sha": COMMIT, "siblings": names });
    let json = [("Content-Type", "application/json".to_owned())];
    Answer { body: body.to_string().into_bytes(), ..Answer::new("200 OK", json) }
}

fn serve(bytes: &[u8], is_large: bool, range: Option<&str>) -> Answer {
    // Elsewhere the tag is not the file's hash.
    let tag = if is_large { format!("\"{:032x}\"", bytes.len()) } else { format!("\"{}\"", &hash(bytes)[..40]) };
    let headers = [("ETag", tag), ("X-Repo-Commit", COMMIT.to_owned()), ("Accept-Ranges", "bytes".to_owned())];
    let wanted = range.and_then(|range| {
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        let from: usize = from.parse().ok()?;
        let to = to.parse::<usize>().map_or(bytes.len(), |to| (to + 1).min(bytes.len()));
        Some((from, bytes.get(from..to)?))
    });
    let Some((from, part)) = wanted else {
        return Answer { body: bytes.to_vec(), ..Answer::new("200 OK", headers) };
    };
    let mut partial = Answer { body: part.to_vec(), ..Answer::new("206 Partial Content", headers) };
    let place = format!("bytes {from}-{}/{}", from + part.len() - 1, bytes.len());
    partial.headers.push(("Content-Range", place));
    partial
}

/// What the Hub's `.gitattributes` keep in large-file storage.
fn is_large(file: &str) -> bool {
    let ending = file.rsplit_once('.').map_or("", |(_, ending)| ending);
    ["bin", "ckpt", "h5", "mat", "msgpack", "npz", "pt", "pth", "safetensors", "zip"].contains(&ending)
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
