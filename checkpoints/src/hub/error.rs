//! Why weights could not be found or downloaded, and what to do about it, in one line.

use std::io;
use std::path::PathBuf;

/// Why weights could not be found or downloaded.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a path nor a place on the Hub.
    #[error(
        "{spec:?} does not name weights: {reason}; write a path, hf://owner/name, hf://owner/name@revision or \
         hf://owner/name/file"
    )]
    BadSpec {
        /// What was written.
        spec: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `HF_ENDPOINT` is no address.
    #[error("HF_ENDPOINT is {endpoint:?}, which is not an address: write it with https://, or unset it")]
    BadEndpoint {
        /// What was set.
        endpoint: String,
    },
    /// No such path on this machine.
    #[error("{} does not exist; for a repository on the Hugging Face Hub write hf://owner/name", .path.display())]
    NoSuchPath {
        /// The path.
        path: PathBuf,
    },
    /// A path on this machine that cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The folder or repository has no such file.
    #[error("{place} does not exist; there is {candidates}")]
    NoSuchFile {
        /// The location.
        place: String,
        /// Weights that the repository has.
        candidates: String,
    },
    /// The folder or repository has no weights at all.
    #[error("{place} has no weights (*.safetensors, *.ckpt, *.pt, *.bin); it has {found}")]
    NoWeights {
        /// The location.
        place: String,
        /// What it has instead.
        found: String,
    },
    /// The folder or repository has no tokenizer of a CLIP.
    #[error("{place} has no tokenizer (tokenizer.json, or vocab.json with merges.txt); it has {found}")]
    NoTokenizer {
        /// The location.
        place: String,
        /// What it has instead.
        found: String,
    },
    /// The folder or repository has several, and none is the obvious one.
    #[error("{place} has several weight files, so name one: {candidates}")]
    Several {
        /// The location.
        place: String,
        /// The files, each as it would be named.
        candidates: String,
    },
    /// Offline, and never downloaded.
    #[error(
        "{place} is not in {} and HF_HUB_OFFLINE is set: unset it to download, or set HF_HOME to a cache that has it",
        .cache.display()
    )]
    NotCached {
        /// The location.
        place: String,
        /// Where it would be.
        cache: PathBuf,
    },
    /// There is no such repository, or none that this user may see: the Hub does not tell which.
    #[error("{endpoint} has no public repository {repository}: check the spelling, or set HF_TOKEN if it is private")]
    NoRepository {
        /// The Hub.
        endpoint: String,
        /// Owner and name.
        repository: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repository} has no branch, tag or commit {revision:?}: see {endpoint}/{repository}/tree/main")]
    NoRevision {
        /// The Hub.
        endpoint: String,
        /// Owner and name.
        repository: String,
        /// The revision that was asked for.
        revision: String,
    },
    /// The owner requires terms to be accepted, and nobody is logged in.
    #[error(
        "{repository} is gated: accept its terms at {endpoint}/{repository}, then set HF_TOKEN to a token of that account"
    )]
    Gated {
        /// The Hub.
        endpoint: String,
        /// Owner and name.
        repository: String,
    },
    /// The account that is logged in has no access.
    #[error("the account of this HF_TOKEN may not read {repository}: ask for access at {endpoint}/{repository}")]
    Forbidden {
        /// The Hub.
        endpoint: String,
        /// Owner and name.
        repository: String,
    },
    /// The token itself is wrong.
    #[error("{endpoint} does not accept this HF_TOKEN: renew it at {endpoint}/settings/tokens, or unset it")]
    BadToken {
        /// The Hub.
        endpoint: String,
    },
    /// Too many requests.
    #[error("{endpoint} limits the number of requests: wait {wait}, or set HF_TOKEN for a higher limit")]
    RateLimited {
        /// The Hub.
        endpoint: String,
        /// How long, in words.
        wait: String,
    },
    /// No connection at all.
    #[error("cannot reach {endpoint}: {reason}; check the network, the proxy and HF_ENDPOINT")]
    NoNetwork {
        /// The Hub.
        endpoint: String,
        /// The innermost cause.
        reason: String,
    },
    /// A connection that stays open and sends nothing.
    #[error("{endpoint} sent nothing of {file} for {seconds} s: check the network and try again")]
    Stalled {
        /// The Hub.
        endpoint: String,
        /// How long it was waited for.
        seconds: u64,
        /// The file.
        file: String,
    },
    /// The Hub has a problem of its own.
    #[error("{endpoint} answered {status}: try again later")]
    Server {
        /// The Hub.
        endpoint: String,
        /// The HTTP status.
        status: String,
    },
    /// Something else than the Hub answered, for example the login page of a network.
    #[error("{endpoint} did not answer like the Hugging Face Hub ({reason}): check HF_ENDPOINT and the proxy")]
    NotAHub {
        /// The address.
        endpoint: String,
        /// What was missing.
        reason: String,
    },
    /// The bytes that arrived are not those of the file.
    #[error("the download of {file} from {endpoint} is damaged: it was cut short or changed on the way, so try again")]
    Damaged {
        /// The Hub.
        endpoint: String,
        /// The file.
        file: String,
    },
    /// The cache cannot be written to.
    #[error("cannot write to the cache {}: {source}; free some space there or set HF_HOME to another folder", .path.display())]
    Cache {
        /// The cache.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot download {file}: {reason}")]
    Download {
        /// The file.
        file: String,
        /// The innermost cause.
        reason: String,
    },
}

impl HubError {
    /// Whether the error is in what the user wrote, not in what was found.
    pub fn is_wrong_usage(&self) -> bool {
        matches!(self, HubError::BadSpec { .. } | HubError::BadEndpoint { .. })
    }

    /// Whether the network failed, so that a copy in the cache can be used instead.
    pub(super) fn is_about_the_network(&self) -> bool {
        matches!(
            self,
            HubError::NoNetwork { .. }
                | HubError::Stalled { .. }
                | HubError::Server { .. }
                | HubError::NotAHub { .. }
                | HubError::RateLimited { .. }
        )
    }
}
