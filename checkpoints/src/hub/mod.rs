//! Where pretrained weights come from: a path, or a repository on the Hugging Face Hub.
//!
//! Downloads go to the usual cache of the Hub, so what another tool fetched is not fetched again, and a cached
//! revision needs no network.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

mod cache;
mod choose;
mod client;
mod error;
mod settings;
#[cfg(test)]
mod tests;

pub use crate::files::Fetched;
use crate::files::{INDEX, enumerate, shards_of};
use cache::RepoCache;
use choose::{Chosen, Refused, choose};
use client::Client;
pub use error::HubError;
pub use settings::{HubSettings, expand_home};

/// What `pretrained = "…"` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A file or folder on this machine.
    Local {
        /// The file or folder.
        path: PathBuf,
        /// The key of a torch file that holds the weights; `/` leads into inner dicts.
        key: Option<String>,
    },
    /// A repository of the Hugging Face Hub.
    Hub {
        /// The user or organization.
        owner: String,
        /// The repository's name without its owner.
        name: String,
        /// A branch, tag or commit; `main` if none is named.
        revision: Option<String>,
        /// A file or folder of the repository; if none is named, [`FileChoice`] decides.
        file: Option<String>,
        /// The key of a torch file that holds the weights; `/` leads into inner dicts.
        key: Option<String>,
    },
}

impl Location {
    /// Reads `hf://owner/name[@revision][/path/to/file][#key]`; anything without a scheme is a path with or without a
    /// key.
    ///
    /// A revision with slashes is written with `%2F`, but for `refs/pr/3` and `refs/convert/parquet`, and one with a
    /// `#` with `%23`. A path that is there as it is written has no key.
    pub fn parse(spec: &str) -> Result<Location, HubError> {
        let bad = |reason: &str| HubError::BadSpec { spec: spec.to_owned(), reason: reason.to_owned() };
        let Some(path) = spec.strip_prefix("hf://") else {
            return match spec.split_once(':') {
                _ if spec.is_empty() => Err(bad("it is empty")),
                Some(("hf", _)) => Err(bad("it needs two slashes after `hf:`")),
                Some((_, rest)) if rest.starts_with("//") => Err(bad("only hf:// is known")),
                _ => {
                    let (path, key) = split_local(spec);
                    if key == Some("") {
                        return Err(bad("the key after `#` is missing"));
                    }
                    Ok(Location::Local { path: expand_home(path), key: key.map(str::to_owned) })
                }
            };
        };
        let (path, key) = path.split_once('#').map_or((path, None), |(path, key)| (path, Some(key)));
        if key == Some("") {
            return Err(bad("the key after `#` is missing"));
        }
        let (owner, rest) = path.split_once('/').ok_or_else(|| bad("the name after the owner is missing"))?;
        let (repository, file) = match rest.find(['/', '@']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        for (part, what) in [(owner, "owner"), (repository, "name")] {
            if part.is_empty() {
                return Err(bad(&format!("the {what} is missing")));
            }
            if part.starts_with('.') || !part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
                return Err(bad(&format!("{part:?} cannot be the {what} of a repository")));
            }
        }
        let (revision, file) = match file.strip_prefix('@') {
            Some(file) => {
                let (revision, file) = split_revision(file);
                let revision = revision.replace("%2F", "/").replace("%2f", "/").replace("%23", "#");
                if revision.is_empty() {
                    return Err(bad("the revision after `@` is missing"));
                }
                if !is_inside(&revision) || revision.contains(char::is_whitespace) {
                    return Err(bad(&format!("{revision:?} cannot be a revision")));
                }
                (Some(revision), file)
            }
            None => (None, file),
        };
        let file = file.trim_matches('/');
        if !file.is_empty() && !is_inside(file) {
            return Err(bad(&format!("{file:?} cannot be a file of a repository")));
        }
        Ok(Location::Hub {
            owner: owner.to_owned(),
            name: repository.to_owned(),
            revision,
            file: (!file.is_empty()).then(|| file.to_owned()),
            key: key.map(str::to_owned),
        })
    }

    /// The key of a torch file that holds the weights.
    fn key(&self) -> Option<&String> {
        match self {
            Location::Local { key, .. } | Location::Hub { key, .. } => key.as_ref(),
        }
    }
}

/// Splits `last.ckpt#ema` before its key, unless a file or folder has that whole name.
fn split_local(spec: &str) -> (&str, Option<&str>) {
    let is_there = |path: &str| expand_home(path).exists();
    let cut = |(at, _)| (&spec[..at], Some(&spec[at + 1..]));
    if is_there(spec) {
        return (spec, None);
    }
    let mut cuts = spec.rmatch_indices('#').map(cut);
    let there = cuts.find(|(path, _)| is_there(path));
    there.or_else(|| spec.match_indices('#').next().map(cut)).unwrap_or((spec, None))
}

/// Splits `main/folder/file` after the revision. The Hub has two kinds of revisions with slashes.
fn split_revision(text: &str) -> (&str, &str) {
    let parts = if text.starts_with("refs/pr/") || text.starts_with("refs/convert/") { 3 } else { 1 };
    match text.match_indices('/').nth(parts - 1) {
        Some((at, _)) => text.split_at(at),
        None => (text, ""),
    }
}

/// Whether joining `path` to a folder stays in that folder: both revisions and files become paths in the cache.
fn is_inside(path: &str) -> bool {
    let part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', '\0']);
    path.split('/').all(part)
}

impl FromStr for Location {
    type Err = HubError;

    fn from_str(spec: &str) -> Result<Location, HubError> {
        Location::parse(spec)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Location::Local { path, .. } => write!(to, "{}", path.display())?,
            Location::Hub { owner, name, revision, file, .. } => {
                write!(to, "hf://{owner}/{name}")?;
                match revision {
                    Some(revision) if revision.starts_with("refs/") => write!(to, "@{revision}")?,
                    Some(revision) => write!(to, "@{}", revision.replace('/', "%2F").replace('#', "%23"))?,
                    None => {}
                }
                file.iter().try_for_each(|file| write!(to, "/{file}"))?;
            }
        }
        self.key().iter().try_for_each(|key| write!(to, "#{key}"))
    }
}

/// The kind of weights to look for if no file is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileChoice {
    /// A VQGAN: `diffusion_pytorch_model.*` at the root or in `vqvae/`, `vqgan/`, `movq/`, else the only weights; the
    /// `config.json` of diffusers comes with it.
    Vqgan,
    /// A CLIP model: the names of transformers and open_clip at the root, else the only weights. All configs and the
    /// tokenizer's files come with it, to lie beside the weights.
    Clip,
    /// The tokenizer of a CLIP: `tokenizer.json`, else `vocab.json` with its `merges.txt`, else OpenAI's merges.
    Tokenizer,
    /// The only weights.
    Any,
}

/// Receives the progress of a download, to show it.
pub trait DownloadProgress {
    /// `bytes` of the `total` of `file` have arrived; a `total` of 0 is not known yet.
    fn advance(&self, bytes: u64, total: u64, file: &str);

    /// One line for the user, for example that a cached copy is used because the Hub cannot be reached.
    fn note(&self, _line: &str) {}
}

impl DownloadProgress for () {
    fn advance(&self, _bytes: u64, _total: u64, _file: &str) {}
}

impl<F: Fn(u64, u64, &str)> DownloadProgress for F {
    fn advance(&self, bytes: u64, total: u64, file: &str) {
        self(bytes, total, file);
    }
}

/// Finds the weights of a location, downloading them and what belongs to them if need be.
pub fn fetch(
    location: &Location,
    files: FileChoice,
    settings: &HubSettings,
    progress: &dyn DownloadProgress,
) -> Result<Fetched, HubError> {
    match location {
        Location::Local { path, key } => {
            let weights = find_local(path, location, files)?;
            Ok(Fetched { weights, key: key.clone() })
        }
        Location::Hub { owner, name, revision, file, key } => {
            let revision = revision.as_deref().unwrap_or("main");
            let cache = RepoCache::new(&settings.cache, owner, name);
            let request = Request { location, cache, revision, file: file.as_deref(), key, files };
            request.fetch(settings, progress)
        }
    }
}

/// What fetching a location would download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Nothing: it is on this machine.
    Here,
    /// This many bytes; `None` if only an index of shards tells.
    Download(Option<u64>),
}

/// Finds out what [`fetch`] would download. A local path only has to exist.
pub fn look(location: &Location, files: FileChoice, settings: &HubSettings) -> Result<Presence, HubError> {
    match location {
        Location::Local { path, .. } => match fs::metadata(path) {
            Ok(_) => Ok(Presence::Here),
            Err(source) => Err(HubError::Unreadable { path: path.clone(), source }),
        },
        Location::Hub { owner, name, revision, file, key } => {
            let revision = revision.as_deref().unwrap_or("main");
            let cache = RepoCache::new(&settings.cache, owner, name);
            Request { location, cache, revision, file: file.as_deref(), key, files }.look(settings)
        }
    }
}

fn find_local(path: &Path, location: &Location, files: FileChoice) -> Result<PathBuf, HubError> {
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => HubError::NoSuchPath { path: path.to_path_buf() },
        _ => HubError::Unreadable { path: path.to_path_buf(), source },
    };
    if fs::metadata(path).map_err(unreadable)?.is_dir() {
        let listing = choose::list_folder(path).map_err(unreadable)?;
        let chosen = choose(&listing, None, files).map_err(|refused| explain(refused, location, &listing))?;
        return Ok(path.join(chosen.weights));
    }
    // Not canonicalized: in the Hub's cache that would lead away from the files beside it.
    Ok(path.to_path_buf())
}

fn explain(refused: Refused, location: &Location, listing: &[String]) -> HubError {
    let place = location.to_string();
    let whole = |file: &str| match location {
        Location::Local { path, .. } => path.join(file).display().to_string(),
        Location::Hub { owner, name, revision, .. } => Location::Hub {
            owner: owner.clone(),
            name: name.clone(),
            revision: revision.clone(),
            file: Some(file.to_owned()),
            key: None,
        }
        .to_string(),
    };
    let candidates = |files: &[String]| enumerate(&files.iter().map(|file| whole(file)).collect::<Vec<_>>());
    match refused {
        Refused::NoSuchFile => HubError::NoSuchFile { place, candidates: candidates(&choose::weights_in(listing, "")) },
        Refused::NoWeights => HubError::NoWeights { place, found: enumerate(listing) },
        Refused::NoTokenizer => HubError::NoTokenizer { place, found: enumerate(listing) },
        Refused::Several(files) => HubError::Several { place, candidates: candidates(&files) },
    }
}

/// A location on the Hub.
struct Request<'a> {
    location: &'a Location,
    cache: RepoCache,
    revision: &'a str,
    file: Option<&'a str>,
    key: &'a Option<String>,
    files: FileChoice,
}

impl Request<'_> {
    fn fetch(&self, settings: &HubSettings, progress: &dyn DownloadProgress) -> Result<Fetched, HubError> {
        if settings.offline {
            return self.cached();
        }
        // A commit never changes: if all files that could belong to the weights are here, the Hub is not asked.
        if cache::is_commit(self.revision)
            && self.file.is_some()
            && let Ok(fetched) = self.cached()
            && self.files.beside().iter().all(|name| fetched.weights.with_file_name(name).exists())
        {
            return Ok(fetched);
        }
        match self.downloaded(settings, progress) {
            Err(error) if error.is_about_the_network() => match self.cached() {
                Ok(fetched) => {
                    progress.note(&format!("{error}; using the copy in the cache"));
                    Ok(fetched)
                }
                Err(_) => Err(error),
            },
            answer => answer,
        }
    }

    fn look(&self, settings: &HubSettings) -> Result<Presence, HubError> {
        match self.cached() {
            Ok(_) => return Ok(Presence::Here),
            Err(error) if settings.offline => return Err(error),
            Err(_) => {}
        }
        let client = Client::connect(self.location, settings)?;
        let (commit, listing) = client.list(self.revision, &())?;
        let Chosen { weights, beside } =
            choose(&listing, self.file, self.files).map_err(|refused| explain(refused, self.location, &listing))?;
        if weights.ends_with(INDEX) {
            return Ok(Presence::Download(None));
        }
        let sizes = beside.iter().chain([&weights]).map(|file| client.size(&commit, file));
        Ok(Presence::Download(Some(sizes.sum::<Result<u64, _>>()?)))
    }

    fn cached(&self) -> Result<Fetched, HubError> {
        let not_cached =
            || HubError::NotCached { place: self.location.to_string(), cache: self.cache.folder().to_path_buf() };
        let snapshot = self.cache.snapshot(self.revision).ok_or_else(not_cached)?;
        let listing = choose::list_folder(&snapshot).map_err(|_| not_cached())?;
        let chosen = choose(&listing, self.file, self.files).map_err(|refused| match refused {
            Refused::Several(_) => explain(refused, self.location, &listing),
            Refused::NoSuchFile | Refused::NoWeights | Refused::NoTokenizer => not_cached(),
        })?;
        let weights = snapshot.join(chosen.weights);
        // A file that is missing from the repository too is reported by the reader of the index.
        if !shards_of(&weights).iter().all(|shard| weights.with_file_name(shard).is_file()) {
            return Err(not_cached());
        }
        Ok(Fetched { weights, key: self.key.clone() })
    }

    fn downloaded(&self, settings: &HubSettings, progress: &dyn DownloadProgress) -> Result<Fetched, HubError> {
        let client = Client::connect(self.location, settings)?;
        let (commit, listing) = client.list(self.revision, progress)?;
        let Chosen { weights, beside } =
            choose(&listing, self.file, self.files).map_err(|refused| explain(refused, self.location, &listing))?;
        // The small files first: they show at once if access is refused.
        beside.iter().try_for_each(|file| client.download(&commit, file, progress).map(drop))?;
        let (folder, _) = choose::split(&weights);
        let weights = client.download(&commit, &weights, progress)?;
        let shards = shards_of(&weights).into_iter().map(|shard| format!("{folder}{shard}"));
        for shard in shards.filter(|shard| listing.contains(shard)) {
            client.download(&commit, &shard, progress)?;
        }
        self.cache.remember(self.revision, &commit);
        Ok(Fetched { weights, key: self.key.clone() })
    }
}
