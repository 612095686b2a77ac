//! What can go wrong, each in one readable line.

use std::path::PathBuf;

use thiserror::Error;

/// One picture that cannot be used, by name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{name}: {problem}")]
pub struct ImageError {
    /// The picture's name as its source gives it; a path for a file.
    pub name: String,
    /// What is wrong with it.
    pub problem: ImageProblem,
}

/// What is wrong with one picture.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageProblem {
    /// The file or the network did not give its bytes.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The path leads to something that is not read, since it might be without end or never answer.
    #[error("is {0}, not a file")]
    NotAFile(&'static str),
    /// There are no bytes.
    #[error("the file is empty")]
    Empty,
    /// The bytes end before the picture does.
    #[error("the file is cut off before the end of the picture")]
    Truncated,
    /// The first bytes belong to no format that is read here.
    #[error("not a JPEG, PNG, WebP, GIF, TIFF or BMP image")]
    UnknownFormat,
    /// The decoder gave up.
    #[error("broken picture: {0}")]
    Broken(String),
    /// The file or its pixels would take more memory than any sensible image needs.
    #[error("is too large: {size} bytes, and the limit is {limit}")]
    TooLarge {
        /// Bytes of the file, of its pixels, or of its pixels as 8 bit RGB, whichever is over the limit.
        size: u64,
        /// The most that is accepted, in bytes.
        limit: u64,
    },
    /// Fewer pixels than a training picture may have.
    #[error("too small: {width}x{height} pixels, and the shorter side must have at least {min_side}")]
    Tiny {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The least accepted length of the shorter side, in pixels.
        min_side: u32,
    },
    /// A loss needs a caption, and there is none.
    #[error("has no caption: {0}")]
    NoCaption(String),
}

impl ImageProblem {
    /// Puts the picture's name to the problem.
    pub fn named(self, name: impl Into<String>) -> ImageError {
        ImageError { name: name.into(), problem: self }
    }
}

/// Why the data cannot be opened or cannot go on.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataError {
    /// The folder of pictures does not exist.
    #[error("the folder of images {} does not exist", .path.display())]
    Missing {
        /// The path as it was asked for.
        path: PathBuf,
    },
    /// The path of the folder is not a folder.
    #[error("{} is a file; a folder of images is needed", .path.display())]
    NotAFolder {
        /// The path as it was asked for.
        path: PathBuf,
    },
    /// The folder and its subfolders hold no pictures.
    #[error("no images in {} or its subfolders (looked for {extensions}; saw {other_files} other files{kinds})", .path.display())]
    NoImages {
        /// The path as it was asked for.
        path: PathBuf,
        /// The file name extensions that count as a picture.
        extensions: String,
        /// How many files of other kinds there are.
        other_files: usize,
        /// `: 1200 heic, 3 json`, the most frequent of their extensions; nothing if there are no other files.
        kinds: String,
    },
    /// A subfolder cannot be listed.
    #[error("cannot list {}: {reason}", .path.display())]
    Unlistable {
        /// The subfolder.
        path: PathBuf,
        /// The operating system's words.
        reason: String,
    },
    /// A file with the captions of a folder's images is broken.
    #[error("captions in {} cannot be read: {reason}", .path.display())]
    Captions {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// There is not a single picture to draw from.
    #[error("the data set is empty")]
    EmptySet,
    /// An index points behind the end of its source.
    #[error("image {index} was asked for and the source has {len}")]
    OutOfRange {
        /// The index that was asked for.
        index: usize,
        /// The number of pictures in the source.
        len: usize,
    },
    /// More pictures are asked for validation than can be spared.
    #[error("{wanted} images for validation leave none of the {len} to train on")]
    ValidationTooLarge {
        /// The number asked for.
        wanted: usize,
        /// The number there is.
        len: usize,
    },
    /// A share that is not a share.
    #[error("the validation fraction must be at least 0 and below 1, not {fraction}")]
    ValidationFraction {
        /// The share as it was given, in Rust's notation.
        fraction: String,
    },
    /// A resolution nothing can be trained at.
    #[error("the resolution must be between 1 and {limit} pixels, not {resolution}")]
    Resolution {
        /// The resolution as it was given, in pixels.
        resolution: u32,
        /// The largest accepted one.
        limit: u32,
    },
    /// A size at which shapes cannot be told apart, or would take too long to draw.
    #[error("shapes are drawn at {least} to {limit} pixels, not {size}")]
    ShapesSize {
        /// The size as it was given, in pixels.
        size: u32,
        /// The least accepted size.
        least: u32,
        /// The largest accepted size.
        limit: u32,
    },
    /// More distinct bad pictures than the configuration allows.
    #[error("{count} bad images, and at most {limit} are allowed; the last: {last}")]
    TooManyBad {
        /// How many distinct bad pictures were met.
        count: usize,
        /// How many are allowed.
        limit: usize,
        /// The one that went over the limit.
        last: ImageError,
    },
    /// Every picture of the set is bad.
    #[error("none of the {len} images can be used; the last: {last}")]
    NoneUsable {
        /// The number of pictures in the set.
        len: usize,
        /// The last one tried.
        last: ImageError,
    },
    /// Whoever waited for samples was asked to stop. Nothing is lost: the next call goes on.
    #[error("reading images was interrupted")]
    Interrupted,
    /// Loading a sample ended in a panic, which is a defect of the source or of a decoder.
    #[error("loading sample {draw} failed inside the program: {message}")]
    Panicked {
        /// The sample's position in its stream.
        draw: u64,
        /// The panic's message.
        message: String,
    },
}
