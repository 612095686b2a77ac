//! Keeps what a run says on stderr in a file of its folder.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use console::strip_ansi_codes;

/// The log of this process.
static LOG: Mutex<Log> = Mutex::new(Log::Off);

enum Log {
    /// Nothing is kept.
    Off,
    /// Lines wait for the run's folder.
    Waiting(Vec<String>),
    Open(File),
}

fn with_log<T>(act: impl FnOnce(&mut Log) -> T) -> T {
    act(&mut LOG.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Keeps lines from now on, until [`open`] says where.
pub fn begin() {
    with_log(|log| *log = Log::Waiting(Vec::new()));
}

/// Appends the lines so far and all that follow to the file at `path`, if lines are kept. A file that cannot be opened is no
/// reason to end a run: then there is no log.
pub fn open(path: &Path) {
    with_log(|log| {
        let Log::Waiting(lines) = std::mem::replace(log, Log::Off) else { return };
        if let Ok(file) = OpenOptions::new().create(true).append(true).open(path) {
            *log = Log::Open(file);
            lines.iter().for_each(|line| log.add(line));
        }
    });
}

/// Closes the file.
pub fn close() {
    with_log(|log| *log = Log::Off);
}

/// Adds a line, without its colours.
pub fn add(line: &str) {
    with_log(|log| log.add(line));
}

impl Log {
    fn add(&mut self, line: &str) {
        let line = strip_ansi_codes(line);
        match self {
            Self::Off => {}
            Self::Waiting(lines) => lines.push(line.into_owned()),
            // In one piece. What cannot be written is dropped.
            Self::Open(file) => drop(file.write_all(format!("{line}\n").as_bytes())),
        }
    }
}
