//! The Hub as this crate sees it, played by a server on this machine.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::clip;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NEXT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// What the server does for all requests, or for the contents of files only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    NeedsToken,
    Gated,
    NotGranted,
    BadToken,
    Busy,
    Broken,
    Silent,
    ErrorPageForContents,
    FlippedByte,
    LoginPage,
}

struct State {
    mood: Mood,
    commit: &'static str,
    files: BTreeMap<&'static str, Vec<u8>>,
    requests: Vec<String>,
}

/// A server with the one repository `taming/vqgan`, which has the branches `main` and `refs/pr/1`.
struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn new(files: &[(&'static str, &str)]) -> Server {
        let files = files.iter().map(|(name, text)| (*name, text.as_bytes().to_vec())).collect();
        let state = Arc::new(Mutex::new(State { mood: Mood::Well, commit: COMMIT, files, requests: Vec::new() }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || answer(stream, &shared));
            }
        });
        Server { address, state }
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    fn requests(&self) -> Vec<String> {
        self.with(|state| std::mem::take(&mut state.requests))
    }
}

fn answer(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut token = None;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).unwrap_or(0) == 0 || header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.trim().strip_prefix("authorization: Bearer ") {
            token = Some(value.to_owned());
        }
    }
    let mut parts = line.split_whitespace();
    let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut state = state.lock().unwrap();
    state.requests.push(format!("{method} {target}"));
    let (status, headers, body) = respond(&state, method, target, token.as_deref());
    let silent = state.mood == Mood::Silent;
    drop(state);
    if silent {
        thread::sleep(Duration::from_secs(20));
        return;
    }
    let mut stream = stream;
    let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name == "Content-Length") {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    if method != "HEAD" {
        let _ = stream.write_all(&body);
    }
    // Closing with unread bytes would reset the connection under the client.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = reader.read(&mut [0]);
}

type Response = (u16, Vec<(String, String)>, Vec<u8>);

fn respond(state: &State, method: &str, target: &str, token: Option<&str>) -> Response {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let refuse = |status: u16, code: &str, message: &str| {
        let headers = [("X-Error-Code", code), ("X-Error-Message", message)];
        let headers = headers.iter().filter(|(_, value)| !value.is_empty());
        (status, headers.map(|(name, value)| ((*name).into(), (*value).into())).collect(), Vec::new())
    };
    let contents = path.contains("/resolve/");
    match state.mood {
        Mood::NeedsToken if token != Some("good") => {
            return refuse(401, "", "Invalid username or password.");
        }
        Mood::Gated if contents => return refuse(401, "GatedRepo", "Access is restricted."),
        Mood::NotGranted if contents => return refuse(403, "GatedRepo", "Access is restricted."),
        Mood::BadToken => return refuse(401, "", "Invalid credentials in Authorization header"),
        Mood::Busy => {
            return (429, vec![("Retry-After".into(), "7".into())], Vec::new());
        }
        Mood::Broken => return refuse(503, "", ""),
        Mood::LoginPage => return (200, Vec::new(), b"<html>Please log in</html>".to_vec()),
        _ => {}
    }
    if let Some(rest) = path.strip_prefix("/api/models/") {
        assert!(query.contains("expand=sha") && query.contains("expand=siblings"));
        return match rest.split_once("/revision/") {
            Some(("taming/vqgan", "main" | "refs%2Fpr%2F1" | COMMIT | NEXT)) => {
                let names: Vec<_> = state.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
                let info = serde_json::json!({
                    "_id": "1", "id": "taming/vqgan", "sha": state.commit, "siblings": names,
                });
                (200, Vec::new(), info.to_string().into_bytes())
            }
            Some(("taming/vqgan", _)) => refuse(404, "RevisionNotFound", "Invalid rev id"),
            _ => refuse(404, "RepoNotFound", "Repository not found"),
        };
    }
    let file = path.strip_prefix(&format!("/taming/vqgan/resolve/{}/", state.commit));
    let Some((name, body)) = file.and_then(|name| state.files.get_key_value(name)) else {
        return refuse(404, "EntryNotFound", "Entry not found");
    };
    // Weights are large files: the Hub names their SHA-256 and sends the bytes from elsewhere.
    let etag = match name.ends_with("json") || name.ends_with("yaml") {
        true => format!("\"git-{}\"", body.len()),
        false => format!("\"{}\"", hex(body)),
    };
    let mut headers = vec![("ETag".into(), etag), ("X-Repo-Commit".into(), state.commit.into())];
    if method == "HEAD" {
        headers.push(("Content-Length".into(), body.len().to_string()));
    }
    match state.mood {
        Mood::ErrorPageForContents if method == "GET" => (403, Vec::new(), b"<html>expired</html>".to_vec()),
        Mood::FlippedByte if method == "GET" => (200, headers, body.iter().map(|byte| byte ^ 1).collect()),
        _ => (200, headers, body.clone()),
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A server and an empty cache.
struct Setup {
    server: Server,
    settings: HubSettings,
    _cache: TempDir,
}

fn setup(files: &[(&'static str, &str)]) -> Setup {
    let server = Server::new(files);
    let cache = tempfile::tempdir().unwrap();
    let settings = HubSettings {
        cache: cache.path().join("hub"),
        token: None,
        endpoint: format!("http://{}", server.address),
        offline: false,
        timeout: Duration::from_secs(30),
    };
    Setup { server, settings, _cache: cache }
}

impl Setup {
    fn fetch(&self, spec: &str) -> Result<Fetched, HubError> {
        fetch(&Location::parse(spec).unwrap(), FileChoice::Vqgan, &self.settings, &())
    }

    fn fails(&self, spec: &str) -> String {
        let line = self.fetch(spec).unwrap_err().to_string();
        assert!(!line.contains('\n'), "{line}");
        line.replace(&self.settings.endpoint, "HUB")
    }

    fn offline(mut self) -> Setup {
        self.settings.offline = true;
        self
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

const DIFFUSERS: [(&str, &str); 4] = [
    ("README.md", "read me"),
    ("vqvae/config.json", "{}"),
    ("vqvae/diffusion_pytorch_model.safetensors", "weights"),
    ("unet/diffusion_pytorch_model.safetensors", "other weights"),
];

#[test]
fn specs_are_read_and_written() {
    let hub = |revision: Option<&str>, file: Option<&str>| Location::Hub {
        owner: "CompVis".into(),
        name: "ldm-4.x_y".into(),
        revision: revision.map(str::to_owned),
        file: file.map(str::to_owned),
        key: None,
    };
    let local = |path: &str, key: Option<&str>| Location::Local { path: path.into(), key: key.map(str::to_owned) };
    let keyed = |location: Location, asked: &str| match location {
        Location::Hub { owner, name, revision, file, .. } => {
            Location::Hub { owner, name, revision, file, key: Some(asked.to_owned()) }
        }
        Location::Local { path, .. } => Location::Local { path, key: Some(asked.to_owned()) },
    };
    for (spec, location) in [
        ("hf://CompVis/ldm-4.x_y", hub(None, None)),
        ("hf://CompVis/ldm-4.x_y@v1.0", hub(Some("v1.0"), None)),
        ("hf://CompVis/ldm-4.x_y/vqvae", hub(None, Some("vqvae"))),
        ("hf://CompVis/ldm-4.x_y/a b/c@d.ckpt", hub(None, Some("a b/c@d.ckpt"))),
        ("hf://CompVis/ldm-4.x_y@main/vqvae/a.bin", hub(Some("main"), Some("vqvae/a.bin"))),
        ("hf://CompVis/ldm-4.x_y@refs/pr/12", hub(Some("refs/pr/12"), None)),
        ("hf://CompVis/ldm-4.x_y@refs/pr/12/a.bin", hub(Some("refs/pr/12"), Some("a.bin"))),
        ("hf://CompVis/ldm-4.x_y@fix%2Fit/a.bin", hub(Some("fix/it"), Some("a.bin"))),
        ("hf://CompVis/ldm-4.x_y#ema", keyed(hub(None, None), "ema")),
        ("hf://CompVis/ldm-4.x_y/a.ckpt#state/generator", keyed(hub(None, Some("a.ckpt")), "state/generator")),
        ("hf://CompVis/ldm-4.x_y@fix%231/a.bin#ema", keyed(hub(Some("fix#1"), Some("a.bin")), "ema")),
        ("weights/last.ckpt", local("weights/last.ckpt", None)),
        ("weights/last.ckpt#params_ema", local("weights/last.ckpt", Some("params_ema"))),
        ("last.ckpt#state/generator", local("last.ckpt", Some("state/generator"))),
        ("C:\\weights", local("C:\\weights", None)),
    ] {
        assert_eq!(Location::parse(spec).unwrap(), location, "{spec}");
        assert_eq!(location.to_string(), spec);
        assert_eq!(spec.parse::<Location>().unwrap(), location);
    }
    assert_eq!(Location::parse("hf://CompVis/ldm-4.x_y/vqvae/").unwrap(), hub(None, Some("vqvae")));
    assert_ne!(Location::parse("~/w.ckpt#ema").unwrap(), local("~/w.ckpt", Some("ema")));
    assert_eq!(expand_home("~user/w.ckpt"), PathBuf::from("~user/w.ckpt"));
}

#[test]
fn wrong_specs_say_what_is_wrong() {
    for (spec, reason) in [
        ("", "it is empty"),
        ("hf:owner/name", "two slashes after `hf:`"),
        ("hf:/owner/name", "two slashes after `hf:`"),
        ("https://huggingface.co/a/b", "only hf:// is known"),
        ("hf://", "the name after the owner is missing"),
        ("hf://gpt2", "the name after the owner is missing"),
        ("hf:///name", "the owner is missing"),
        ("hf://owner/", "the name is missing"),
        ("hf://owner/@main", "the name is missing"),
        ("hf://owner/name@", "the revision after `@` is missing"),
        ("hf://owner/name@/file", "the revision after `@` is missing"),
        ("hf://owner/name@..", "\"..\" cannot be a revision"),
        ("hf://owner/name@..%2F..%2Fx", "\"../../x\" cannot be a revision"),
        ("hf://../name", "\"..\" cannot be the owner"),
        ("hf://ow ner/name", "\"ow ner\" cannot be the owner"),
        ("hf://owner/name/../../x", "\"../../x\" cannot be a file"),
        ("hf://owner/name/a//b", "\"a//b\" cannot be a file"),
        ("hf://owner/name/a.ckpt#", "the key after `#` is missing"),
        ("a.ckpt#", "the key after `#` is missing"),
    ] {
        let line = Location::parse(spec).unwrap_err().to_string();
        assert!(line.contains(reason) && line.contains("write a path, hf://owner/name"), "{line}");
    }
}

#[test]
fn downloads_once_and_is_there_offline() {
    let setup = setup(&DIFFUSERS);
    let fetched = setup.fetch("hf://taming/vqgan").unwrap();
    let snapshot = setup.settings.cache.join("models--taming--vqgan/snapshots").join(COMMIT);
    assert_eq!(fetched.weights, snapshot.join("vqvae/diffusion_pytorch_model.safetensors"));
    assert_eq!(text(&snapshot.join("vqvae/config.json")), "{}");
    assert_eq!(text(&fetched.weights), "weights");
    assert_eq!(text(&setup.settings.cache.join("models--taming--vqgan/refs/main")), COMMIT);
    assert_eq!(setup.server.requests().iter().filter(|line| line.starts_with("GET /taming")).count(), 2);

    assert_eq!(setup.fetch("hf://taming/vqgan").unwrap(), fetched);
    let again = setup.server.requests();
    assert!(again.len() == 1 && again[0].starts_with("GET /api/models/taming/vqgan/revision/main?"), "{again:?}");

    // A commit is what it is; with everything here, nobody is asked.
    assert_eq!(setup.fetch(&format!("hf://taming/vqgan@{COMMIT}/vqvae")).unwrap(), fetched);
    assert!(setup.server.requests().is_empty());

    let setup = setup.offline();
    for spec in ["hf://taming/vqgan", "hf://taming/vqgan@main/vqvae", &format!("hf://taming/vqgan@{COMMIT}")] {
        assert_eq!(setup.fetch(spec).unwrap(), fetched);
    }
    assert!(setup.server.requests().is_empty());
    for spec in ["hf://taming/other", "hf://taming/vqgan@v2", "hf://taming/vqgan/unet"] {
        let line = setup.fails(spec);
        assert!(line.starts_with(&format!("{spec} is not in ")) && line.contains("HF_HUB_OFFLINE"), "{line}");
    }
}

#[test]
fn a_clip_comes_with_what_lies_beside_it() {
    // Lengths differ, since the server tells small files apart by them.
    let files = [
        ("1_Pooling/config.json", "{ }"),
        ("README.md", "read me"),
        ("config.json", "{}"),
        ("merges.txt", "#version: 0.2"),
        ("open_clip_config.json", "{    }"),
        ("open_clip_model.safetensors", "weights under other names"),
        ("preprocessor_config.json", "{   }"),
        ("pytorch_model.bin", "weights"),
        ("special_tokens_map.json", "{      }"),
        ("tokenizer.json", "{       }"),
        ("vocab.json", "{        }"),
    ];
    let setup = setup(&files);
    let get = |setup: &Setup, spec: &str| {
        fetch(&Location::parse(spec).unwrap(), FileChoice::Clip, &setup.settings, &()).unwrap()
    };
    let fetched = get(&setup, "hf://taming/vqgan/pytorch_model.bin");
    let snapshot = fetched.weights.parent().unwrap().to_owned();
    let mut here: Vec<String> = choose::list_folder(&snapshot).unwrap();
    let beside = |weights: &str| {
        let mut all = clip::BESIDE.map(str::to_owned).to_vec();
        all.push(weights.to_owned());
        all.sort();
        all
    };
    assert_eq!(here, beside("pytorch_model.bin"));
    assert_eq!(text(&snapshot.join("tokenizer.json")), "{       }");

    // A commit that another program fetched in part is completed.
    fs::remove_file(snapshot.join("vocab.json")).unwrap();
    let spec = format!("hf://taming/vqgan@{COMMIT}/pytorch_model.bin");
    assert_eq!(get(&setup, &spec), fetched);
    here = choose::list_folder(&snapshot).unwrap();
    assert_eq!(here, beside("pytorch_model.bin"));
    // And what is here is enough without the Hub.
    let setup = setup.offline();
    setup.server.requests();
    assert_eq!(get(&setup, &spec), fetched);
    assert!(setup.server.requests().is_empty());

    let listing: Vec<String> = files.iter().map(|(name, _)| (*name).to_owned()).collect();
    let chosen = choose(&listing, None, FileChoice::Clip).unwrap();
    assert_eq!(chosen.weights, "open_clip_model.safetensors");
    assert_eq!(chosen.beside, clip::BESIDE);
    let listing = ["a/model.safetensors", "a/tokenizer.json", "tokenizer.json", "vocab.json"].map(str::to_owned);
    assert_eq!(choose(&listing, Some("a"), FileChoice::Clip).unwrap().beside, ["a/tokenizer.json"]);
    assert!(choose(&listing, Some("a"), FileChoice::Any).unwrap().beside.is_empty());
}

#[test]
fn a_new_commit_is_fetched() {
    let setup = setup(&DIFFUSERS);
    setup.fetch("hf://taming/vqgan").unwrap();
    setup.server.with(|state| {
        state.commit = NEXT;
        state.files.insert("vqvae/diffusion_pytorch_model.safetensors", b"newer".to_vec());
    });
    assert_eq!(text(&setup.fetch("hf://taming/vqgan").unwrap().weights), "newer");
    let setup = setup.offline();
    assert_eq!(text(&setup.fetch("hf://taming/vqgan").unwrap().weights), "newer");
    assert_eq!(text(&setup.fetch(&format!("hf://taming/vqgan@{COMMIT}")).unwrap().weights), "weights");
}

#[test]
fn a_branch_with_slashes_is_found() {
    let setup = setup(&DIFFUSERS);
    let fetched = setup.fetch("hf://taming/vqgan@refs/pr/1").unwrap();
    assert_eq!(setup.offline().fetch("hf://taming/vqgan@refs/pr/1").unwrap(), fetched);
}

#[test]
fn progress_ends_at_the_size_of_the_file() {
    let weights = "w".repeat(3_000_000);
    let setup = setup(&[("config.json", "model: {}"), ("last.ckpt", &weights)]);
    let seen = RefCell::new(BTreeMap::new());
    let progress = |bytes: u64, total: u64, file: &str| {
        let before = seen.borrow_mut().insert(file.to_owned(), (bytes, total));
        assert!(before.is_none_or(|(before, _)| before <= bytes));
    };
    let location = Location::parse("hf://taming/vqgan").unwrap();
    fetch(&location, FileChoice::Vqgan, &setup.settings, &progress).unwrap();
    assert_eq!(seen.borrow()["last.ckpt"], (3_000_000, 3_000_000));
    assert_eq!(seen.borrow()["config.json"], (9, 9));
}

#[test]
fn what_cannot_be_chosen_is_listed() {
    let setup = setup(&[("a.ckpt", "a"), ("sub/b.ckpt", "b"), ("sub/notes.txt", "n"), ("docs/c.txt", "c")]);
    assert_eq!(
        setup.fails("hf://taming/vqgan@main"),
        "hf://taming/vqgan@main has several weight files, so name one: hf://taming/vqgan@main/a.ckpt, \
         hf://taming/vqgan@main/sub/b.ckpt"
    );
    assert!(setup.fetch("hf://taming/vqgan/sub").unwrap().weights.ends_with("sub/b.ckpt"));
    assert!(setup.fetch("hf://taming/vqgan/a.ckpt").unwrap().weights.ends_with("a.ckpt"));
    assert_eq!(
        setup.fails("hf://taming/vqgan/b.ckpt"),
        "hf://taming/vqgan/b.ckpt does not exist; there is hf://taming/vqgan/a.ckpt, hf://taming/vqgan/sub/b.ckpt"
    );
    assert!(setup.fails("hf://taming/vqgan/docs").starts_with("hf://taming/vqgan/docs has no weights"));
}

#[test]
fn refusals_say_what_to_do() {
    let mut setup = setup(&DIFFUSERS);
    let spec = "hf://taming/vqgan";
    let missing = "HUB has no public repository taming/nothing: check the spelling, or set HF_TOKEN if it is private";
    assert_eq!(setup.fails("hf://taming/nothing"), missing);
    assert_eq!(setup.fails("hf://taming/nothing@v1"), missing);
    assert_eq!(
        setup.fails("hf://taming/vqgan@v9"),
        "taming/vqgan has no branch, tag or commit \"v9\": see HUB/taming/vqgan/tree/main"
    );
    let lines = [
        (Mood::NeedsToken, "HUB has no public repository taming/vqgan: check the spelling, or set HF_TOKEN"),
        (Mood::Gated, "taming/vqgan is gated: accept its terms at HUB/taming/vqgan, then set HF_TOKEN"),
        (Mood::Busy, "HUB limits the number of requests: wait 7 s"),
        (Mood::Broken, "HUB answered 503 Service Unavailable: try again later"),
        (Mood::LoginPage, "HUB did not answer like the Hugging Face Hub"),
        (Mood::ErrorPageForContents, "the download of vqvae/config.json from HUB is damaged: it was cut short"),
        (
            Mood::FlippedByte,
            "the download of vqvae/diffusion_pytorch_model.safetensors from HUB is damaged: it was cut short",
        ),
    ];
    for (mood, expected) in lines {
        setup.server.with(|state| state.mood = mood);
        let line = setup.fails(spec);
        assert!(line.starts_with(expected), "{line}");
    }
    setup.settings.token = Some("good".into());
    for (mood, expected) in [
        (
            Mood::NotGranted,
            "the account of this HF_TOKEN may not read taming/vqgan: ask for access at HUB/taming/vqgan",
        ),
        (Mood::BadToken, "HUB does not accept this HF_TOKEN: renew it at HUB/settings/tokens, or unset it"),
    ] {
        setup.server.with(|state| state.mood = mood);
        assert_eq!(setup.fails(spec), expected);
    }
    setup.server.with(|state| state.mood = Mood::NeedsToken);
    // Nothing that was wrong before has stayed in the cache.
    assert_eq!(text(&setup.fetch(spec).unwrap().weights), "weights");
}

#[test]
fn without_a_network_the_cache_is_used_or_the_reason_is_told() {
    let mut setup = setup(&DIFFUSERS);
    let fetched = setup.fetch("hf://taming/vqgan").unwrap();
    // A port that was free a moment ago.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    setup.settings.endpoint = format!("http://{nobody}");

    struct Notes(RefCell<Vec<String>>);
    impl DownloadProgress for Notes {
        fn advance(&self, _: u64, _: u64, _: &str) {}
        fn note(&self, line: &str) {
            self.0.borrow_mut().push(line.to_owned());
        }
    }
    let notes = Notes(RefCell::default());
    let location = Location::parse("hf://taming/vqgan").unwrap();
    assert_eq!(fetch(&location, FileChoice::Vqgan, &setup.settings, &notes).unwrap(), fetched);
    let [note] = &notes.0.borrow()[..] else { panic!("one note was expected") };
    assert!(note.contains("Connection refused") && note.ends_with("using the copy in the cache"), "{note}");

    let line = setup.fails("hf://taming/other");
    assert!(line.starts_with("cannot reach HUB: ") && line.contains("check the network"), "{line}");
}

#[test]
fn a_silent_server_is_given_up() {
    let mut setup = setup(&DIFFUSERS);
    setup.server.with(|state| state.mood = Mood::Silent);
    setup.settings.timeout = Duration::from_secs(1);
    assert_eq!(
        setup.fails("hf://taming/vqgan"),
        "HUB sent nothing of the list of files for 1 s: check the network and try again"
    );
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let mut setup = setup(&DIFFUSERS);
    let file = setup._cache.path().join("a file");
    fs::write(&file, "").unwrap();
    setup.settings.cache = file.join("hub");
    let line = setup.fails("hf://taming/vqgan");
    assert!(line.starts_with("cannot write to the cache ") && line.contains("set HF_HOME"), "{line}");
}

#[test]
fn local_files_and_folders_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for file in
        ["logs/run/checkpoints/last.ckpt", "logs/run/configs/model.yaml", "one/a.safetensors", "one/config.json"]
    {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let find = |path: &str| {
        fetch(&Location::Local { path: root.join(path), key: None }, FileChoice::Vqgan, &HubSettings::from_env(), &())
            .map_err(|error| error.to_string())
    };
    let found = |weights: &str| Ok(Fetched::from(root.join(weights)));
    assert_eq!(find("one"), found("one/a.safetensors"));
    assert_eq!(find("one/a.safetensors"), found("one/a.safetensors"));
    assert_eq!(find("logs/run"), found("logs/run/checkpoints/last.ckpt"));
    assert_eq!(find("logs/run/checkpoints/last.ckpt"), found("logs/run/checkpoints/last.ckpt"));
    let line = find("two").unwrap_err();
    assert!(line.contains("two does not exist; for a repository") && line.contains("hf://owner/name"), "{line}");
    assert!(find("logs/run/configs").unwrap_err().contains("configs has no weights"));
    fs::write(root.join("one/b.safetensors"), "x").unwrap();
    assert!(find("one").unwrap_err().contains("one/b.safetensors"));
}

fn chosen(listing: &[&str], asked: Option<&str>, files: FileChoice) -> Result<String, Refused> {
    let listing: Vec<String> = listing.iter().map(|file| (*file).to_owned()).collect();
    choose(&listing, asked, files).map(|chosen| chosen.weights)
}

#[test]
fn the_usual_names_are_preferred() {
    let diffusers = ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors", "model.ckpt"];
    assert_eq!(chosen(&diffusers, None, FileChoice::Vqgan).unwrap(), "diffusion_pytorch_model.safetensors");
    let movq = ["movq/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.bin"];
    assert_eq!(chosen(&movq, None, FileChoice::Vqgan).unwrap(), "movq/diffusion_pytorch_model.bin");
    let clip = ["flax_model.msgpack", "open_clip_pytorch_model.bin", "pytorch_model.bin", "x/model.safetensors"];
    assert_eq!(chosen(&clip, None, FileChoice::Clip).unwrap(), "pytorch_model.bin");
    let one_of_a_kind = ["a.bin", "b.bin", "last.ckpt", "optimizer.pt"];
    assert_eq!(chosen(&one_of_a_kind, None, FileChoice::Any).unwrap(), "last.ckpt");
    let trainer = ["optimizer.bin", "scheduler.bin", "training_args.bin", "vq.pth"];
    assert_eq!(chosen(&trainer, None, FileChoice::Any).unwrap(), "vq.pth");
    let two = ["a.safetensors", "b.safetensors", "c.ckpt"];
    let several = Refused::Several(two.map(str::to_owned).to_vec());
    assert_eq!(chosen(&two, None, FileChoice::Any).unwrap_err(), several);
    assert_eq!(chosen(&two, Some("d"), FileChoice::Any).unwrap_err(), Refused::NoSuchFile);
    assert_eq!(chosen(&["a.txt"], None, FileChoice::Any).unwrap_err(), Refused::NoWeights);
}

/// The layout of most VQGANs on the Hub.
#[test]
fn only_what_belongs_to_the_weights_is_downloaded() {
    let taming =
        [(".gitattributes", "*"), ("README.md", "me"), ("config.yaml", "model: {}"), ("model.ckpt", "weights")];
    let setup = setup(&taming);
    assert_eq!(text(&setup.fetch("hf://taming/vqgan").unwrap().weights), "weights");
    let contents = |line: &&String| line.starts_with("GET /taming/");
    assert_eq!(setup.server.requests().iter().filter(contents).count(), 1);
}

#[test]
fn settings_come_from_the_usual_variables() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_str().unwrap();
    let settings = |variables: &[(&str, &str)]| {
        HubSettings::from_variables(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    };
    let plain = settings(&[]);
    assert!(plain.cache.ends_with(".cache/huggingface/hub"));
    assert_eq!((plain.endpoint.as_str(), plain.offline), ("https://huggingface.co", false));

    fs::write(folder.path().join("token"), "from-file\n").unwrap();
    let with_home = settings(&[("HF_HOME", home), ("HF_TOKEN", "")]);
    assert_eq!(with_home.cache, folder.path().join("hub"));
    assert_eq!(with_home.token.as_deref(), Some("from-file"));

    let all = settings(&[
        ("HF_HOME", home),
        ("HF_HUB_CACHE", "/cache"),
        ("HF_TOKEN", " secret\n"),
        ("HF_ENDPOINT", "https://mirror.example/"),
        ("HF_HUB_OFFLINE", "Yes"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "5"),
    ]);
    assert_eq!(all.cache, PathBuf::from("/cache"));
    assert_eq!(all.token.as_deref(), Some("secret"));
    assert_eq!((all.endpoint.as_str(), all.offline), ("https://mirror.example", true));
    assert_eq!(all.timeout, Duration::from_secs(5));
    assert!(!format!("{all:?}").contains("secret"));

    assert_eq!(settings(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
    assert!(!settings(&[("HF_HUB_OFFLINE", "0")]).offline);
    assert!(settings(&[("XDG_CACHE_HOME", home)]).cache.ends_with("huggingface/hub"));
}

#[test]
fn an_endpoint_is_an_address() {
    let mut setup = setup(&DIFFUSERS);
    let (endpoint, fetched) = (setup.settings.endpoint.clone(), setup.fetch("hf://taming/vqgan").unwrap());
    for wrong in
        ["hf-mirror.example", "localhost:8080", "//hf-mirror.example", "https:", "https:/x", "ftp://x", "https://a b"]
    {
        setup.settings.endpoint = wrong.to_owned();
        let error = setup.fetch("hf://taming/vqgan").unwrap_err();
        assert!(matches!(&error, HubError::BadEndpoint { .. }) && error.is_wrong_usage(), "{wrong}: {error}");
        assert!(error.to_string().contains("HF_ENDPOINT") && !error.to_string().contains('\n'), "{error}");
    }
    // What needs no Hub is found without.
    assert_eq!(setup.fetch(fetched.weights.to_str().unwrap()).unwrap(), fetched);
    setup.settings.endpoint = endpoint;
    assert_eq!(setup.fetch("hf://taming/vqgan").unwrap(), fetched);
}

#[test]
fn all_shards_are_downloaded() {
    let index =
        r#"{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors", "c": "../x.bin"}}"#;
    let name = "vqvae/diffusion_pytorch_model.safetensors.index.json";
    let shards = ["vqvae/model-1-of-2.safetensors", "vqvae/model-2-of-2.safetensors"];
    let files =
        [("vqvae/config.json", "{}"), (name, index), (shards[0], "one"), (shards[1], "two"), ("unet/model.bin", "x")];
    let setup = setup(&files);
    let fetched = setup.fetch("hf://taming/vqgan").unwrap();
    assert!(fetched.weights.ends_with(name));
    let snapshot = fetched.weights.parent().unwrap().parent().unwrap().to_owned();
    let mut expected = files.map(|(name, _)| name).to_vec();
    expected.retain(|name| name.starts_with("vqvae"));
    assert_eq!(choose::list_folder(&snapshot).unwrap(), expected);
    // One that is gone again is fetched again, and missed where there is no network.
    fs::remove_file(snapshot.join(shards[1])).unwrap();
    let spec = format!("hf://taming/vqgan@{COMMIT}/vqvae");
    assert_eq!(setup.fetch(&spec).unwrap(), fetched);
    assert!(snapshot.join(shards[1]).is_file());
    let setup = setup.offline();
    assert_eq!(setup.fetch(&spec).unwrap(), fetched);
    fs::remove_file(snapshot.join(shards[0])).unwrap();
    assert!(matches!(setup.fetch(&spec), Err(HubError::NotCached { .. })));
}

#[test]
fn a_key_is_no_part_of_the_file() {
    let setup = setup(&[("c.ckpt", "two")]);
    for spec in ["hf://taming/vqgan/c.ckpt#state/generator", "hf://taming/vqgan#state/generator"] {
        let fetched = setup.fetch(spec).unwrap();
        assert_eq!((text(&fetched.weights).as_str(), fetched.key.as_deref()), ("two", Some("state/generator")));
    }
}

/// Everything that is fetched: the weights, then what belongs to them.
fn fetched(listing: &[&str], asked: Option<&str>, files: FileChoice) -> Vec<String> {
    let listing: Vec<String> = listing.iter().map(|file| (*file).to_owned()).collect();
    let chosen = choose(&listing, asked, files).unwrap();
    [vec![chosen.weights], chosen.beside].concat()
}

#[test]
fn of_published_repositories_only_what_is_needed_is_fetched() {
    let timm = [".gitattributes", "README.md", "config.json", "model.safetensors", "pytorch_model.bin"];
    assert_eq!(fetched(&timm, None, FileChoice::Any), ["model.safetensors"]);

    let many: Vec<String> = (0..300).map(|number| format!("weights-{number:03}.pth")).collect();
    let mut iqa: Vec<&str> = many.iter().map(String::as_str).collect();
    iqa.extend(["README.md", "LPIPS_v0.1_vgg-a78928a0.pth"]);
    let named = Some("LPIPS_v0.1_vgg-a78928a0.pth");
    assert_eq!(fetched(&iqa, named, FileChoice::Any), ["LPIPS_v0.1_vgg-a78928a0.pth"]);

    let amused = [
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
        "vqvae/config.json",
        "vqvae/diffusion_pytorch_model.fp16.safetensors",
        "vqvae/diffusion_pytorch_model.safetensors",
    ];
    let vqvae = ["vqvae/diffusion_pytorch_model.safetensors", "vqvae/config.json"];
    assert_eq!(fetched(&amused, None, FileChoice::Vqgan), vqvae);
    assert_eq!(fetched(&amused, Some("vqvae"), FileChoice::Vqgan), vqvae);
    assert_eq!(
        fetched(&amused, Some("tokenizer"), FileChoice::Tokenizer),
        ["tokenizer/vocab.json", "tokenizer/merges.txt"]
    );

    let llamagen = [
        "README.md",
        "c2i_3B_384.pt",
        "c2i_B_256.pt",
        "c2i_XL_384.pt",
        "t2i_XL_stage1_256.pt",
        "vq_ds16_c2i.pt",
        "vq_ds16_t2i.pt",
        "vq_ds8_c2i.pt",
    ];
    let Err(Refused::Several(files)) = chosen(&llamagen, None, FileChoice::Vqgan) else { panic!("one was chosen") };
    assert_eq!(files[..3], ["vq_ds16_c2i.pt", "vq_ds16_t2i.pt", "vq_ds8_c2i.pt"]);
    assert_eq!(files.len(), 7);
    assert_eq!(fetched(&llamagen, Some("vq_ds16_c2i.pt"), FileChoice::Vqgan), ["vq_ds16_c2i.pt"]);

    let clip = [
        ".gitattributes",
        "README.md",
        "config.json",
        "flax_model.msgpack",
        "merges.txt",
        "preprocessor_config.json",
        "pytorch_model.bin",
        "special_tokens_map.json",
        "tf_model.h5",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ];
    let beside = ["config.json", "preprocessor_config.json", "tokenizer.json", "vocab.json", "merges.txt"];
    assert_eq!(fetched(&clip, None, FileChoice::Clip), [&["pytorch_model.bin"][..], &beside].concat());
    let newer = [&clip[..], &["model.safetensors"]].concat();
    assert_eq!(fetched(&newer, None, FileChoice::Clip), [&["model.safetensors"][..], &beside].concat());
}

#[test]
fn tokenizers_are_chosen_as_such() {
    let whole = ["config.json", "merges.txt", "model.safetensors", "tokenizer.json", "vocab.json"];
    assert_eq!(fetched(&whole, None, FileChoice::Tokenizer), ["tokenizer.json", "vocab.json", "merges.txt"]);
    assert_eq!(fetched(&whole, Some("vocab.json"), FileChoice::Tokenizer)[0], "vocab.json");
    let folder = ["clip/merges.txt", "clip/vocab.json", "model.safetensors"];
    assert_eq!(fetched(&folder, Some("clip"), FileChoice::Tokenizer), ["clip/vocab.json", "clip/merges.txt"]);
    let openai = ["ViT-B-32.pt", "bpe_simple_vocab_16e6.txt.gz"];
    assert_eq!(fetched(&openai, None, FileChoice::Tokenizer), ["bpe_simple_vocab_16e6.txt.gz"]);
    // A vocabulary alone says nothing, and weights are no tokenizer.
    for none in [&["model.safetensors", "vocab.json"][..], &["pytorch_model.bin"]] {
        assert_eq!(chosen(none, None, FileChoice::Tokenizer).unwrap_err(), Refused::NoTokenizer);
    }
}

#[test]
fn of_a_trainings_checkpoints_the_last_is_taken() {
    let logs = [
        "checkpoints/epoch=000012.ckpt",
        "checkpoints/last.ckpt",
        "checkpoints/trainstep_checkpoints/step=1.ckpt",
        "configs/2021-04-03T19-39-50-project.yaml",
        "configs/model.yaml",
        "testtube/version_0/metrics.csv",
    ];
    assert_eq!(fetched(&logs, None, FileChoice::Vqgan), ["checkpoints/last.ckpt"]);
    let two = ["a/checkpoints/last.ckpt", "b/checkpoints/last.ckpt", "b/checkpoints/epoch=1.ckpt"];
    assert!(matches!(chosen(&two, None, FileChoice::Vqgan), Err(Refused::Several(_))));
    assert_eq!(fetched(&two, Some("b"), FileChoice::Vqgan), ["b/checkpoints/last.ckpt"]);
    // Weights that are split over files are those of their index, under any name.
    let sharded = ["vq-00001-of-00002.safetensors", "vq-00002-of-00002.safetensors", "vq.safetensors.index.json"];
    assert_eq!(fetched(&sharded, None, FileChoice::Any), ["vq.safetensors.index.json"]);
}
