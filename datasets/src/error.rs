//! Errors, each with a message of one line.

use std::path::PathBuf;

use thiserror::Error;

/// An image that cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{name}: {problem}")]
pub struct ImageError {
    /// The name that the source gives the image; the path of a file.
    pub name: String,
    /// What is wrong with it.
    pub problem: ImageProblem,
}

/// What is wrong with an image.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageProblem {
    /// Reading the bytes failed.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The path is not a regular file. Such a path is not read: it may have no end, or never answer.
    #[error("is {0}, not a file")]
    NotAFile(&'static str),
    /// There are no bytes.
    #[error("the file is empty")]
    Empty,
    /// The bytes end before the image does.
    #[error("the file is cut off before the end of the image")]
    Truncated,
    /// The first bytes do not belong to a supported format.
    #[error("not a JPEG, PNG, WebP, GIF, TIFF or BMP image")]
    UnknownFormat,
    /// The decoder failed.
    #[error("broken image: {0}")]
    Broken(String),
    /// The file or its pixels would take too much memory.
    #[error("is too large: {size} bytes, and the limit is {limit}")]
    TooLarge {
        /// The size of the file, of its pixels, or of its pixels as 8 bit RGB, in bytes: the one that exceeds the
        /// limit.
        size: u64,
        /// The largest accepted size, in bytes.
        limit: u64,
    },
    /// The image has too few pixels to train on.
    #[error("too small: {width}x{height} pixels, and the shorter side must have at least {min_side}")]
    Tiny {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The smallest accepted length of the shorter side, in pixels.
        min_side: u32,
    },
    /// A loss needs a caption, and there is none.
    #[error("has no caption: {0}")]
    NoCaption(String),
}

impl ImageProblem {
    /// Adds the name of the image.
    pub fn named(self, name: impl Into<String>) -> ImageError {
        ImageError { name: name.into(), problem: self }
    }
}

/// A setting that does not fit the source that the configuration names.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{key}` {message}")]
pub struct SettingError {
    /// The key, as in `data.path`.
    pub key: &'static str,
    /// What is wrong with it.
    pub message: String,
}

/// Why data cannot be opened or loaded.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataError {
    /// A setting does not fit the source.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The folder of images does not exist.
    #[error("the folder of images {} does not exist", .path.display())]
    Missing {
        /// The path in the settings.
        path: PathBuf,
    },
    /// The path of the folder is not a folder.
    #[error("{} is a file; a folder of images is needed", .path.display())]
    NotAFolder {
        /// The path in the settings.
        path: PathBuf,
    },
    /// The folder and its subfolders have no images.
    #[error("no images in {} or its subfolders (looked for {extensions}; saw {other_files} other files{kinds})", .path.display())]
    NoImages {
        /// The path in the settings.
        path: PathBuf,
        /// The file name extensions that count as an image.
        extensions: String,
        /// How many other files there are.
        other_files: usize,
        /// `: 1200 heic, 3 json`, their most frequent extensions; empty if there are no other files.
        kinds: String,
    },
    /// A subfolder cannot be listed.
    #[error("cannot list {}: {reason}", .path.display())]
    Unlistable {
        /// The subfolder.
        path: PathBuf,
        /// What the operating system reports.
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
    /// There are no images.
    #[error("the data set is empty")]
    EmptySet,
    /// An index exceeds those of its source.
    #[error("image {index} was asked for, but the source has only {len}")]
    OutOfRange {
        /// The requested index.
        index: usize,
        /// The number of images in the source.
        len: usize,
    },
    /// The validation images leave none to train on.
    #[error("{wanted} images for validation leave none of the {len} to train on")]
    ValidationTooLarge {
        /// The requested number of validation images.
        wanted: usize,
        /// The number of all images.
        len: usize,
    },
    /// The fraction of validation images is not in 0..1.
    #[error("the validation fraction must be at least 0 and below 1, not {fraction}")]
    ValidationFraction {
        /// The fraction in the settings, as Rust writes it.
        fraction: String,
    },
    /// A resolution at which no training is possible.
    #[error("the resolution must be between 1 and {limit} pixels, not {resolution}")]
    Resolution {
        /// The resolution in the settings, in pixels.
        resolution: u32,
        /// The largest accepted resolution.
        limit: u32,
    },
    /// At this size shapes cannot be told apart, or take too long to draw.
    #[error("shapes are drawn at {least} to {limit} pixels, not {size}")]
    ShapesSize {
        /// The size in the settings, in pixels.
        size: u32,
        /// The smallest accepted size.
        least: u32,
        /// The largest accepted size.
        limit: u32,
    },
    /// There are more distinct bad images than the configuration allows.
    #[error("{count} bad images, and at most {limit} are allowed; the last: {last}")]
    TooManyBad {
        /// How many distinct bad images were found.
        count: usize,
        /// How many are allowed.
        limit: usize,
        /// The image that exceeded the limit.
        last: ImageError,
    },
    /// Every image of the set is bad.
    #[error("none of the {len} images can be used; the last: {last}")]
    NoneUsable {
        /// The number of images in the set.
        len: usize,
        /// The last image that was tried.
        last: ImageError,
    },
    /// Waiting for samples was interrupted. No sample is lost: the next call continues.
    #[error("reading images was interrupted")]
    Interrupted,
    /// Loading a sample panicked, which is a bug of the source.
    #[error("loading sample {draw} failed inside the program: {message}")]
    Panicked {
        /// The position of the sample in its stream.
        draw: u64,
        /// The message of the panic.
        message: String,
    },
}
