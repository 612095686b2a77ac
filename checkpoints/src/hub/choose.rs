//! Chooses the file of a repository or folder that holds the weights, and the files that belong to it.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::Path;

use super::FileChoice;
use crate::clip;
use crate::family::Family;
use crate::files::INDEX;

/// Paths inside the repository or folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) weights: String,
    /// Other files that belong to the weights, in the same folder.
    pub(super) beside: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    NoSuchFile,
    NoWeights,
    NoTokenizer,
    Several(Vec<String>),
}

impl FileChoice {
    fn folders(self) -> &'static [&'static str] {
        match self {
            FileChoice::Vqgan => &["", "vqvae/", "vqgan/", "movq/"],
            FileChoice::Clip | FileChoice::Tokenizer | FileChoice::Any => &[""],
        }
    }

    /// The names that the libraries give to weights, the preferred first.
    fn names(self) -> &'static [&'static str] {
        match self {
            FileChoice::Vqgan => &["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"],
            FileChoice::Clip => &clip::WEIGHTS,
            FileChoice::Tokenizer => &clip::CLIP_TOKENIZERS,
            FileChoice::Any => &[],
        }
    }

    /// Puts names that sound like a VQGAN first, if one is looked for.
    fn likely_first(self, mut weights: Vec<String>) -> Vec<String> {
        const TOKENIZERS: [&str; 5] = ["vq", "tokenizer", "autoencoder", "first_stage", "movq"];
        let is_likely = |file: &String| TOKENIZERS.iter().any(|word| file.to_ascii_lowercase().contains(word));
        weights.sort_by_key(|file| self == FileChoice::Vqgan && !is_likely(file));
        weights
    }

    /// The small files beside the weights that loading them needs.
    pub(super) fn beside(self) -> Vec<&'static str> {
        match self {
            FileChoice::Vqgan => Family::config_files(),
            FileChoice::Clip => clip::BESIDE.to_vec(),
            FileChoice::Tokenizer => clip::CLIP_TOKENIZERS.to_vec(),
            FileChoice::Any => Vec::new(),
        }
    }
}

/// Endings of weights. An earlier row is preferred; the endings in a row are equal.
const ENDINGS: [&[&str]; 4] = [&["safetensors"], &["ckpt"], &["pt", "pth"], &["bin"]];

/// Files of a trainer that end like weights.
const NOT_WEIGHTS: [&str; 6] = ["optimizer", "random_states", "rng_state", "scaler", "scheduler", "training_args"];

/// Chooses from a listing: the file `asked` for, or the weights in the folder `asked` for, or those of the whole.
pub(super) fn choose(listing: &[String], asked: Option<&str>, files: FileChoice) -> Result<Chosen, Refused> {
    let has = |path: &str| listing.iter().any(|file| file == path);
    let chosen = |weights: String| {
        let (folder, _) = split(&weights);
        let beside = files.beside().into_iter().map(|name| format!("{folder}{name}"));
        let beside = beside.filter(|file| has(file) && *file != weights).collect();
        Ok(Chosen { weights, beside })
    };
    let folder = match asked {
        Some(file) if has(file) => return chosen(file.to_owned()),
        Some(folder) => format!("{folder}/"),
        None => String::new(),
    };
    if !folder.is_empty() && !listing.iter().any(|file| file.starts_with(&folder)) {
        return Err(Refused::NoSuchFile);
    }
    for inner in files.folders() {
        for name in files.names() {
            let path = format!("{folder}{inner}{name}");
            let index = format!("{path}{INDEX}");
            // A vocabulary cannot be used without its merges.
            let is_whole = *name != "vocab.json" || has(&format!("{folder}{inner}merges.txt"));
            if let Some(path) = [path, index].into_iter().find(|path| has(path) && is_whole) {
                return chosen(path);
            }
        }
    }
    if files == FileChoice::Tokenizer {
        return Err(Refused::NoTokenizer);
    }
    let weights = weights_in(listing, &folder);
    for endings in ENDINGS {
        let alike: Vec<&String> = weights.iter().filter(|file| ends(file, endings)).collect();
        match alike[..] {
            [] => {}
            [only] => return chosen(only.clone()),
            _ => {
                // Lightning's link to the newest of its checkpoints; the index of weights that are split over files.
                let is_index = |file: &&String| {
                    let whole = file.strip_suffix(INDEX).filter(|whole| whole.starts_with(&folder));
                    whole.is_some_and(|whole| ends(whole, endings))
                };
                let last = alike.iter().copied().filter(|file| split(file).1 == "last.ckpt");
                let mut obvious = last.chain(listing.iter().filter(is_index));
                if let (Some(only), None) = (obvious.next(), obvious.next()) {
                    return chosen(only.clone());
                }
                return Err(Refused::Several(files.likely_first(weights)));
            }
        }
    }
    Err(Refused::NoWeights)
}

/// Files below a folder that look like weights. `folder` is empty or ends in a slash.
pub(super) fn weights_in(listing: &[String], folder: &str) -> Vec<String> {
    let is_weights = |file: &&String| {
        let (_, name) = split(file);
        ENDINGS.iter().any(|endings| ends(name, endings)) && !NOT_WEIGHTS.iter().any(|not| name.starts_with(not))
    };
    listing.iter().filter(|file| file.starts_with(folder)).filter(is_weights).cloned().collect()
}

/// Every file below a folder, sorted, with `/` between folders. Deeper folders are not listed: they could be a whole
/// disk.
pub(super) fn list_folder(root: &Path) -> io::Result<Vec<String>> {
    const DEPTH: usize = 3;
    let mut files = Vec::new();
    let mut folders = VecDeque::from([(root.to_path_buf(), String::new(), DEPTH)]);
    while let Some((folder, inside, depth)) = folders.pop_front() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let path = entry.path();
            // The Hub's cache consists of links, so they are followed. A link to nothing is a file that is not here.
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_file() => files.push(format!("{inside}{name}")),
                Ok(metadata) if metadata.is_dir() && depth > 0 => {
                    folders.push_back((path, format!("{inside}{name}/"), depth - 1));
                }
                _ => {}
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Parts a path into the folder with its slash and the name.
pub(super) fn split(path: &str) -> (&str, &str) {
    path.split_at(path.rfind('/').map_or(0, |slash| slash + 1))
}

fn ends(file: &str, endings: &[&str]) -> bool {
    file.rsplit_once('.').is_some_and(|(_, ending)| endings.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}
