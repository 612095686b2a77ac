//! CLIP's tokenizer: byte pairs (Sennrich et al. 2016, arXiv 1508.07909) over the bytes of lower-case words.
//!
//! It does what transformers' `CLIPTokenizer` does. OpenAI's and OpenCLIP's first repair quotes, ligatures, full-width
//! letters and broken encodings (ftfy) and resolve HTML entities (`&amp;`). Captions without these give the same
//! tokens, except for a capital sigma at the end of a Greek word and a literal `<|endoftext|>`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use checkpoints::{CLIP_TOKENIZERS, ClipArchitecture};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// Words of a caption, as transformers 5 finds them.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// Largest size of an unpacked tokenizer file, in bytes; CLIP's files have 3 MB.
const MAX_FILE: u64 = 64 << 20;

/// Why a tokenizer cannot be loaded, or cannot split a text.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file cannot be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not a tokenizer, or not the model's.
    #[error("{} is not the tokenizer of this CLIP: {what}", path.display())]
    Unsuitable {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The library could not split a text.
    #[error("a caption cannot be split into tokens: {0}")]
    Text(String),
}

/// A caption as the text tower reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// As many ids as the context is long: start of text, the caption, end of text, then padding.
    ///
    /// The padding is the end of text, as in transformers. OpenAI pads with 0. The embedding is the same, because the
    /// tower reads only up to the first end of text.
    pub ids: Vec<u32>,
    /// Whether the caption was too long and was truncated.
    pub truncated: bool,
}

/// Splits captions into tokens.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    context: usize,
    end_of_text: u32,
}

impl ClipTokenizer {
    /// Opens the tokenizer of a model: a `tokenizer.json`, a `vocab.json` with its `merges.txt` beside it, OpenAI's
    /// `bpe_simple_vocab_16e6.txt` (or `.txt.gz`), or a folder with any of these.
    ///
    /// # Errors
    /// One line that says which file cannot be read, or why it is not a tokenizer of `architecture`.
    pub fn open(path: &Path, architecture: &ClipArchitecture) -> Result<Self, TokenizerError> {
        let path = if path.is_dir() { find_in_folder(path)? } else { path.to_owned() };
        let json = description(&path, architecture.end_of_text)?;
        Self::read(json, path, architecture)
    }

    /// Returns a tokenizer without merges, for a model that knows no language: every byte is a token, so texts get more
    /// tokens than with the model's own.
    ///
    /// # Errors
    /// If `architecture` has fewer tokens than there are bytes.
    pub fn of_bytes(architecture: &ClipArchitecture) -> Result<Self, TokenizerError> {
        let path = PathBuf::from("one token for each byte");
        let unsuitable = |what| TokenizerError::Unsuitable { path: path.clone(), what };
        let vocabulary = Value::Object(byte_vocabulary(architecture.end_of_text));
        let json = clip_description(vocabulary, Vec::new(), architecture.end_of_text).map_err(unsuitable)?;
        Self::read(json, path, architecture)
    }

    /// Reads a `tokenizer.json`. Errors name `path`.
    fn read(json: Vec<u8>, path: PathBuf, architecture: &ClipArchitecture) -> Result<Self, TokenizerError> {
        let unsuitable = |what: String| TokenizerError::Unsuitable { path: path.clone(), what };
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|error| unsuitable(one_line(&error.to_string())))?;
        // These depend on the model, not on the file.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| unsuitable(error.to_string()))?;

        let (context, end_of_text) = (architecture.context_length, architecture.end_of_text);
        let opened = Self { tokenizer, context, end_of_text };
        let empty = opened.split("")?;
        if empty.len() != 2 || empty[0] == end_of_text || empty[1] != end_of_text {
            return Err(unsuitable(format!("an empty caption is {empty:?}, must be [start of text, {end_of_text}]")));
        }
        let largest = opened.tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= architecture.vocabulary {
            let vocabulary = architecture.vocabulary;
            return Err(unsuitable(format!("it has token {largest}, but the model has only {vocabulary} tokens")));
        }
        Ok(opened)
    }

    /// Splits a caption into tokens. One that is too long loses its last words and keeps the end of text.
    ///
    /// # Errors
    /// If the library cannot split it.
    pub fn encode(&self, text: &str) -> Result<Tokens, TokenizerError> {
        let mut ids = self.split(text)?;
        let truncated = ids.len() > self.context;
        ids.resize(self.context, self.end_of_text);
        if let (true, Some(last)) = (truncated, ids.last_mut()) {
            *last = self.end_of_text;
        }
        Ok(Tokens { ids, truncated })
    }

    /// Returns all tokens of a caption, with start and end.
    fn split(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.tokenizer.encode(text, true);
        Ok(encoding.map_err(|error| TokenizerError::Text(one_line(&error.to_string())))?.get_ids().to_vec())
    }
}

fn find_in_folder(folder: &Path) -> Result<PathBuf, TokenizerError> {
    let found = CLIP_TOKENIZERS.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| TokenizerError::Unsuitable {
        path: folder.to_owned(),
        what: format!("the folder has none of {}", CLIP_TOKENIZERS.join(", ")),
    })
}

/// Returns the tokenizer at `path` as a `tokenizer.json`, whatever format it is stored in.
fn description(path: &Path, end_of_text: u32) -> Result<Vec<u8>, TokenizerError> {
    let unsuitable = |what: String| TokenizerError::Unsuitable { path: path.to_owned(), what };
    let bytes = read(path)?;
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return merges_only(&bytes, end_of_text).map_err(unsuitable);
    }
    let json: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|error| unsuitable(error.to_string()))?;
    // In CLIP's vocabulary "model" is a token.
    if json.contains_key("model") && !json.contains_key(START) {
        return Ok(bytes);
    }
    let beside = path.with_file_name("merges.txt");
    let merges = read(&beside)?;
    let merges = merge_lines(&merges).map_err(|what| TokenizerError::Unsuitable { path: beside, what })?;
    clip_description(Value::Object(json), merges, end_of_text).map_err(unsuitable)
}

/// Reads a file and unpacks it if it is a gzip.
fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let failed = |source| TokenizerError::Io { path: path.to_owned(), source };
    let read_all = |from: &mut dyn Read| {
        let mut bytes = Vec::new();
        from.take(MAX_FILE + 1).read_to_end(&mut bytes).map(|_| bytes)
    };
    let packed = read_all(&mut File::open(path).map_err(failed)?).map_err(failed)?;
    let gzip = packed.starts_with(&[0x1f, 0x8b]);
    let bytes =
        if gzip { read_all(&mut flate2::read::MultiGzDecoder::new(&packed[..])).map_err(failed)? } else { packed };
    if bytes.len() as u64 > MAX_FILE {
        let what = format!("it has more than {} MiB", MAX_FILE >> 20);
        return Err(TokenizerError::Unsuitable { path: path.to_owned(), what });
    }
    Ok(bytes)
}

/// Reads the pairs of a file of merges, best first; its first line is a heading.
fn merge_lines(bytes: &[u8]) -> Result<Vec<(&str, &str)>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
    let (heading, lines) = text.split_once('\n').unwrap_or((text, ""));
    if !heading.contains("#version") {
        return Err("it is neither JSON nor a list of merges, which begins with #version".to_owned());
    }
    let pair = |line: &'_ str| -> Result<_, String> { Err(format!("not a pair of tokens: {}", one_line(line))) };
    let lines = lines.lines().filter(|line| !line.is_empty());
    lines.map(|line| line.split_once(' ').map_or_else(|| pair(line), Ok)).collect()
}

/// OpenAI numbers the bytes, the bytes that end a word, the merges, then start and end of text. So the id of the end of
/// text tells how many of the merges are used.
fn merges_only(bytes: &[u8], end_of_text: u32) -> Result<Vec<u8>, String> {
    let mut merges = merge_lines(bytes)?;
    let characters = byte_characters();
    let before = 2 * characters.len() + 1;
    let wanted = (end_of_text as usize).checked_sub(before);
    let wanted = wanted.filter(|&wanted| wanted <= merges.len()).ok_or_else(|| {
        format!("it has {} merges, which cannot give an end of text numbered {end_of_text}", merges.len())
    })?;
    merges.truncate(wanted);

    let bytes = characters.iter().map(char::to_string);
    let last_bytes = characters.iter().map(|character| format!("{character}</w>"));
    let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
    let tokens = bytes.chain(last_bytes).chain(merged).chain([START.to_owned(), END.to_owned()]);
    let vocabulary: Map<String, Value> = tokens.zip(0u32..).map(|(token, id)| (token, id.into())).collect();
    clip_description(Value::Object(vocabulary), merges, end_of_text)
}

/// Returns a vocabulary without merges: every byte is a token, so texts get more tokens than they should.
fn byte_vocabulary(end_of_text: u32) -> Map<String, Value> {
    let characters = byte_characters();
    let bytes = characters.iter().map(char::to_string);
    let tokens = bytes.chain(characters.iter().map(|character| format!("{character}</w>")));
    let ends = [(START.to_owned(), end_of_text.saturating_sub(1).into()), (END.to_owned(), end_of_text.into())];
    tokens.zip(0u32..).map(|(token, id)| (token, id.into())).chain(ends).collect()
}

/// Returns a printable character for each byte, in the order in which GPT-2 and CLIP number them: first the bytes that
/// are printable themselves, then the others.
fn byte_characters() -> Vec<char> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let by_themselves = (0..=255u8).filter(printable).map(char::from);
    let others = (0..=255u8).filter(|byte| !printable(byte)).zip(0x100..).filter_map(|(_, code)| char::from_u32(code));
    by_themselves.chain(others).collect()
}

/// Builds a `tokenizer.json` of transformers' `CLIPTokenizer` from a vocabulary and merges.
fn clip_description(vocabulary: Value, merges: Vec<(&str, &str)>, end_of_text: u32) -> Result<Vec<u8>, String> {
    let start = vocabulary.get(START).and_then(Value::as_u64).ok_or_else(|| format!("it has no token {START}"))?;
    let special = |id: u64, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let end = u64::from(end_of_text);
    if vocabulary.get(END).and_then(Value::as_u64) != Some(end) {
        return Err(format!("its token {END} is not number {end_of_text}"));
    }
    let description = json!({
        "version": "1.0",
        "added_tokens": [special(start, START), special(end, END)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": {"type": "RobertaProcessing", "sep": [END, end], "cls": [START, start],
                           "trim_offsets": false, "add_prefix_space": false},
        "model": {"type": "BPE", "unk_token": END, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
                  "fuse_unk": false, "vocab": vocabulary, "merges": merges},
    });
    serde_json::to_vec(&description).map_err(|error| error.to_string())
}

/// Shortens a text for an error message.
fn one_line(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(200).collect()
}
