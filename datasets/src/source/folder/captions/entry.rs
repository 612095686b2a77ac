//! What a file of metadata says of images.

/// The captions of one image.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// As it is written in the file.
    pub file_name: String,
    /// None of them empty.
    pub captions: Vec<String>,
}

/// Why a file has no entries.
#[derive(Debug, PartialEq, Eq)]
pub enum Unread {
    /// It should have captions, but is broken.
    Broken(String),
    /// It is about something else.
    NotUsed(String),
}
