//! Writes TensorBoard's event files: scalars, histograms and images of a run while it is going on.
//!
//! Every process writes its own file, so a record that is torn by a crash is the last of its file and hides no others.
//! Each file starts with its first step, and TensorBoard drops this and later steps of earlier files.

mod event;
mod record;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use self::event::Event;
pub use self::event::{Histogram, Value};
use self::record::framed;

/// A file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct WriteError {
    /// The file or its folder.
    pub path: PathBuf,
    /// The error of the system.
    pub source: io::Error,
}

/// An open event file.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl EventFile {
    /// Starts a file in `folder`, which is created if it does not exist, for a process whose first step is
    /// `first_step`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(folder: &Path, first_step: u64) -> Result<Self, WriteError> {
        let named = |path: &Path| {
            let path = path.to_owned();
            move |source| WriteError { path, source }
        };
        fs::create_dir_all(folder).map_err(named(folder))?;
        // TensorBoard reads files in the order of their names, so a later process gets a later name, even if the clock
        // is wrong.
        let now = since_epoch().as_secs();
        let last = newest_second(folder).map_err(named(folder))?;
        let second = last.map_or(now, |last| now.max(last + 1));
        let path = folder.join(format!("{PREFIX}{second:010}.vqgan-trainer.{}", std::process::id()));
        let file = File::options().create_new(true).append(true).open(&path).map_err(named(&path))?;
        let mut events = Self { path, file, length: 0 };
        events.append(&Event::version(wall_time()))?;
        events.append(&Event::start(wall_time(), first_step))?;
        Ok(events)
    }

    /// Adds the values of `step` as one record. A record that does not fit on the disk is removed, because a torn
    /// record would hide later ones.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&mut self, step: u64, values: &[(String, Value)]) -> Result<(), WriteError> {
        match values {
            [] => Ok(()),
            values => self.append(&Event::summary(wall_time(), step, values)),
        }
    }

    fn append(&mut self, event: &Event) -> Result<(), WriteError> {
        let record = framed(event.as_bytes());
        match self.file.write_all(&record) {
            Ok(()) => {
                self.length += record.len() as u64;
                Ok(())
            }
            Err(source) => {
                let _ = self.file.set_len(self.length);
                Err(WriteError { path: self.path.clone(), source })
            }
        }
    }
}

/// The start of an event file's name. The second at which the file was started follows.
const PREFIX: &str = "events.out.tfevents.";

/// The second in the name of the newest event file.
fn newest_second(folder: &Path) -> io::Result<Option<u64>> {
    let mut newest = None;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let second = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok());
        newest = newest.max(second);
    }
    Ok(newest)
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    since_epoch().as_secs_f64()
}

#[cfg(test)]
mod tests;
