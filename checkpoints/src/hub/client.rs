//! The network: lists the files of a repository, and downloads them into the cache one at a time.

use std::error::Error;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Instant;

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::{HFClient, HFError, HFRepositorySync, HFResult, RepoTypeModel};

use super::{DownloadProgress, HubError, HubSettings, Location};
use crate::disk::sha256_of;

/// One repository of the Hub.
pub(super) struct Client {
    repository: HFRepositorySync<RepoTypeModel>,
    settings: HubSettings,
}

impl Client {
    pub(super) fn connect(location: &Location, settings: &HubSettings) -> Result<Client, HubError> {
        let Location::Hub { owner, name, .. } = location else {
            return Err(HubError::BadSpec { spec: location.to_string(), reason: "it is not on the Hub".to_owned() });
        };
        settings.check_endpoint()?;
        let mut builder = HFClient::builder()
            .endpoint(&settings.endpoint)
            .cache_dir(&settings.cache)
            .retry_max_attempts(RETRIES)
            .user_agent(concat!("vqgan-trainer/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &settings.token {
            builder = builder.token(token);
        }
        let hub = builder.build_sync().map_err(|error| HubError::Download {
            file: location.to_string(),
            reason: format!("the connection could not be set up, {}", innermost(&error)),
        })?;
        Ok(Client { repository: hub.model(owner, name), settings: settings.clone() })
    }

    /// The commit that a revision stands for now, and the files that it has.
    pub(super) fn list(
        &self,
        revision: &str,
        progress: &dyn DownloadProgress,
    ) -> Result<(String, Vec<String>), HubError> {
        let repository = self.repository.clone();
        let asked = revision.to_owned();
        let mut advance = |bytes, total, what: &str| progress.advance(bytes, total, what);
        let info = self.watch("the list of files", &mut advance, move |_| {
            // Only what is used: other parts of the answer have changed their shape before.
            let expand = ["sha", "siblings"].map(str::to_owned).to_vec();
            repository.info().revision(asked).expand(expand).send()
        })?;
        let info = info.map_err(|error| self.explain(error, revision, &self.repository.repo_path()))?;
        let not_a_hub =
            |reason: &str| HubError::NotAHub { endpoint: self.settings.endpoint.clone(), reason: reason.to_owned() };
        let commit = info.sha.ok_or_else(|| not_a_hub("no commit"))?;
        let files = info.siblings.ok_or_else(|| not_a_hub("no list of files"))?;
        // These become paths in the cache.
        if !super::cache::is_commit(&commit) || !files.iter().all(|file| super::is_inside(&file.rfilename)) {
            return Err(not_a_hub("a file outside of the repository"));
        }
        let mut files: Vec<String> = files.into_iter().map(|file| file.rfilename).collect();
        files.sort();
        Ok((commit, files))
    }

    /// The bytes of a file.
    pub(super) fn size(&self, commit: &str, file: &str) -> Result<u64, HubError> {
        let repository = self.repository.clone();
        let (commit, name) = (commit.to_owned(), file.to_owned());
        let found = self.watch(file, &mut |_, _, _| (), move |_| {
            repository.get_file_metadata().filepath(name).revision(&commit).send()
        })?;
        found.map(|found| found.file_size).map_err(|error| self.explain(error, "", file))
    }

    /// The path of a file in the cache, after downloading it if it was not there.
    pub(super) fn download(
        &self,
        commit: &str,
        file: &str,
        progress: &dyn DownloadProgress,
    ) -> Result<PathBuf, HubError> {
        loop {
            let repository = self.repository.clone();
            let (commit, name) = (commit.to_owned(), file.to_owned());
            let mut expected = None;
            let mut advance = |bytes, total, file: &str| {
                expected = Some(total);
                progress.advance(bytes, total, file);
            };
            let outcome = self.watch(file, &mut advance, move |relay| {
                repository.download_file().filename(name).revision(commit).progress(relay).send()
            })?;
            match outcome {
                Ok(path) => {
                    // Without an event the file was in the cache already.
                    return match expected {
                        Some(size) => self.check(path, file, size),
                        None => Ok(path),
                    };
                }
                // The library waits ten seconds for another process; a large file takes longer.
                Err(HFError::CacheLockTimeout { .. }) => {
                    progress.note(&format!("waiting for another process that downloads {file}"));
                }
                Err(error) => return Err(self.explain(error, "", file)),
            }
        }
    }

    /// Does `work` on a thread of its own and gives up when nothing has arrived for too long: the library has no
    /// timeout, and a connection can stay open and silent for hours. That thread is then not waited for.
    fn watch<T: Send + 'static>(
        &self,
        file: &str,
        advance: &mut dyn FnMut(u64, u64, &str),
        work: impl FnOnce(Relay<T>) -> HFResult<T> + Send + 'static,
    ) -> Result<HFResult<T>, HubError> {
        let (events, received) = channel();
        let relay = Relay(events.clone());
        thread::spawn(move || events.send(Event::Done(work(relay))));
        let mut last = None;
        let mut patience = Instant::now() + self.settings.timeout;
        loop {
            match received.recv_timeout(patience.saturating_duration_since(Instant::now())) {
                Ok(Event::Done(outcome)) => return Ok(outcome),
                Ok(Event::Bytes { bytes, total }) => {
                    // Some events say only that nothing has changed.
                    if last.replace(bytes) != Some(bytes) {
                        patience = Instant::now() + self.settings.timeout;
                    }
                    advance(bytes, total, file);
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(HubError::Stalled {
                        endpoint: self.settings.endpoint.clone(),
                        seconds: self.settings.timeout.as_secs(),
                        file: file.to_owned(),
                    });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let reason = "the download ended without a result".to_owned();
                    return Err(HubError::Download { file: file.to_owned(), reason });
                }
            }
        }
    }

    /// Compares the bytes with what the Hub announced. The library takes any answer for the file, even an error page.
    fn check(&self, path: PathBuf, file: &str, size: u64) -> Result<PathBuf, HubError> {
        let failed = |source: io::Error| HubError::Unreadable { path: path.clone(), source };
        let blob = fs::canonicalize(&path).map_err(failed)?;
        let name = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // Large files are kept under their SHA-256; of the others only the size is known.
        let right = match name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            true => sha256_of(&blob).map_err(failed)?.eq_ignore_ascii_case(name),
            false => size == 0 || fs::metadata(&blob).map_err(failed)?.len() == size,
        };
        if right {
            return Ok(path);
        }
        for wrong in [&path, &blob] {
            let _ = fs::remove_file(wrong);
        }
        Err(HubError::Damaged { endpoint: self.settings.endpoint.clone(), file: file.to_owned() })
    }

    fn explain(&self, error: HFError, revision: &str, file: &str) -> HubError {
        let endpoint = self.settings.endpoint.clone();
        let repository = self.repository.repo_path();
        let file = file.to_owned();
        match error {
            HFError::AuthRequired { context } | HFError::Forbidden { context } => {
                let known = self.settings.token.is_some();
                let message = context.server_message.unwrap_or_default();
                if message.contains("Invalid credentials") || message.contains("token is expired") {
                    HubError::BadToken { endpoint }
                } else if context.error_code.as_deref() == Some("GatedRepo") && !known {
                    HubError::Gated { endpoint, repository }
                } else if context.error_code.as_deref() == Some("GatedRepo") || context.status == 403 {
                    HubError::Forbidden { endpoint, repository }
                } else {
                    // The Hub gives the same answer for what is missing, to keep private names secret.
                    HubError::NoRepository { endpoint, repository }
                }
            }
            HFError::RepoNotFound { .. } => HubError::NoRepository { endpoint, repository },
            HFError::RevisionNotFound { context, .. } => {
                let code = context.and_then(|context| context.error_code);
                match code.as_deref() {
                    Some("RepoNotFound") => HubError::NoRepository { endpoint, repository },
                    None if revision == "main" => HubError::NoRepository { endpoint, repository },
                    _ => HubError::NoRevision { endpoint, repository, revision: revision.to_owned() },
                }
            }
            HFError::RateLimited { retry_after, .. } => {
                let wait = retry_after.map_or_else(|| "a while".to_owned(), |wait| format!("{} s", wait.as_secs()));
                HubError::RateLimited { endpoint, wait }
            }
            HFError::Http { context } if context.status.is_server_error() => {
                HubError::Server { endpoint, status: context.status.to_string() }
            }
            HFError::Request { source, .. } if source.is_decode() => {
                HubError::NotAHub { endpoint, reason: innermost(&source) }
            }
            HFError::Request { source, .. } => HubError::NoNetwork { endpoint, reason: innermost(&source) },
            HFError::MalformedResponse { what, .. } => HubError::NotAHub { endpoint, reason: what },
            HFError::Io(source) => HubError::Cache { path: self.settings.cache.clone(), source },
            other => HubError::Download { file, reason: innermost(&other) },
        }
    }
}

/// How often a request is repeated: about three seconds in all.
const RETRIES: usize = 4;

enum Event<T> {
    Bytes { bytes: u64, total: u64 },
    Done(HFResult<T>),
}

/// Sends the library's progress to the caller's thread, so that the caller's handler need not be thread-safe.
struct Relay<T>(Sender<Event<T>>);

impl<T: Send> ProgressHandler for Relay<T> {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else {
            return;
        };
        let (bytes, total) = match event {
            DownloadEvent::Start { total_bytes, .. } => (0, *total_bytes),
            DownloadEvent::AggregateProgress { bytes_completed, total_bytes, .. } => (*bytes_completed, *total_bytes),
            DownloadEvent::Progress { files } => match files.last() {
                Some(file) => (file.bytes_completed, file.total_bytes),
                None => return,
            },
            DownloadEvent::Complete => return,
        };
        // After a timeout nobody listens any more.
        let _ = self.0.send(Event::Bytes { bytes, total });
    }
}

/// The cause at the end of the chain, where "error sending request" turns into "connection refused".
fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
