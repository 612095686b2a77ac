//! Reads the settings for the Hub from the environment variables that all Hugging Face tools read.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HubError;

/// How the Hub is reached, and where its files are kept.
#[derive(Clone, PartialEq, Eq)]
pub struct HubSettings {
    /// The cache: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `~/.cache/huggingface`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, else the file that `hf auth login` writes.
    pub token: Option<String>,
    /// `HF_ENDPOINT`, else the public Hub.
    pub endpoint: String,
    /// `HF_HUB_OFFLINE`: only the cache is used.
    pub offline: bool,
    /// `HF_HUB_DOWNLOAD_TIMEOUT` in seconds: how long the Hub may send nothing at all.
    pub timeout: Duration,
}

const ENDPOINT: &str = "https://huggingface.co";
const TIMEOUT: Duration = Duration::from_secs(60);

impl HubSettings {
    /// Reads the environment.
    pub fn from_env() -> HubSettings {
        HubSettings::from_variables(&|name| std::env::var(name).ok())
    }

    /// The same with another source of variables: tests cannot safely change those of the process.
    pub(super) fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> HubSettings {
        let set = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(|value| expand_home(&value));
        let yes = |name: &str| set(name).is_some_and(|value| is_yes(&value));
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .unwrap_or_else(|| expand_home("~/.cache/huggingface"));
        let token = || {
            set("HF_TOKEN")
                .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
                .or_else(|| read_token(&path("HF_TOKEN_PATH")?))
                .or_else(|| read_token(&home.join("token")))
        };
        HubSettings {
            token: (!yes("HF_HUB_DISABLE_IMPLICIT_TOKEN")).then(token).flatten(),
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()).trim_end_matches('/').to_owned(),
            offline: yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE"),
            timeout: set("HF_HUB_DOWNLOAD_TIMEOUT")
                .and_then(|seconds| seconds.parse().ok())
                .filter(|seconds| *seconds > 0)
                .map_or(TIMEOUT, Duration::from_secs),
            cache: path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub")),
        }
    }

    /// Checks the Hub's address. Called only where it is used.
    pub(super) fn check_endpoint(&self) -> Result<(), HubError> {
        let host = ["https://", "http://"].iter().find_map(|scheme| self.endpoint.strip_prefix(scheme));
        match host {
            Some(host) if !host.is_empty() && !host.contains(char::is_whitespace) => Ok(()),
            _ => Err(HubError::BadEndpoint { endpoint: self.endpoint.clone() }),
        }
    }
}

impl std::fmt::Debug for HubSettings {
    // A token must not end up in a log.
    fn fmt(&self, to: &mut std::fmt::Formatter) -> std::fmt::Result {
        to.debug_struct("HubSettings")
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("endpoint", &self.endpoint)
            .field("offline", &self.offline)
            .field("timeout", &self.timeout)
            .finish()
    }
}

fn read_token(path: &Path) -> Option<String> {
    let token = fs::read_to_string(path).ok()?;
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

fn is_yes(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

/// Replaces a leading `~/` by the home folder, as a shell would: paths in a configuration file do not pass through one.
pub fn expand_home(path: &str) -> PathBuf {
    let rest = path.strip_prefix("~/").or_else(|| (path == "~").then_some(""));
    match (rest, std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}
