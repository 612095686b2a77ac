//! What is done of an evaluation, kept in its folder: it goes on there after it was stopped or killed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use checkpoints::run::{RunError, atomic_write};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Evaluated;
use super::pass::PassState;

/// The folder of the progress, in that of the evaluation.
const FOLDER: &str = "progress";

/// The file in it that says what is done.
const STATE: &str = "progress.json";

/// The progress of an evaluation of one or several checkpoints.
pub struct Progress {
    folder: PathBuf,
    state: State,
    every: Duration,
    saved: Instant,
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// How is measured, on which images.
    protocol: Value,
    /// Checkpoints that are done, with the hash of their weights.
    done: Vec<(String, Evaluated)>,
    /// The checkpoint that is being evaluated.
    now: Option<(String, PassState)>,
}

impl Progress {
    /// Opens what is done of an evaluation by `protocol` in the folder `output`. It is saved `every` so often. What is there of
    /// another evaluation is removed, and the line that is returned says so.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn open(output: &Path, protocol: Value, every: Duration) -> Result<(Self, Option<String>), RunError> {
        let folder = output.join(FOLDER);
        let path = folder.join(STATE);
        let found = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<State>(&bytes).ok().filter(|state| state.protocol == protocol),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(RunError::io("read", &path)(error)),
        };
        if let Some(state) = found {
            return Ok((Self { folder, state, every, saved: Instant::now() }, None));
        }
        let note = folder.exists().then(|| format!("{} was of another evaluation: started again", folder.display()));
        if note.is_some() {
            fs::remove_dir_all(&folder).map_err(RunError::io("remove", &folder))?;
        }
        fs::create_dir_all(&folder).map_err(RunError::io("create", &folder))?;
        let state = State { protocol, done: Vec::new(), now: None };
        let mut new = Self { folder, state, every, saved: Instant::now() };
        // From now on all that is in the folder is known to be of this evaluation.
        new.write()?;
        Ok((new, note))
    }

    /// The folder for what a pass keeps on the disk.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The result for these weights, if it is there.
    pub fn result(&self, weights: &str) -> Option<&Evaluated> {
        self.state.done.iter().find(|(of, _)| of == weights).map(|(_, evaluated)| evaluated)
    }

    /// How far the pass of these weights is, if it has been saved.
    pub fn pass(&self, weights: &str) -> Option<&PassState> {
        self.state.now.as_ref().filter(|(of, _)| of == weights).map(|(_, state)| state)
    }

    /// Whether it is time to save.
    pub fn is_due(&self) -> bool {
        self.saved.elapsed() >= self.every
    }

    /// Saves how far the pass of these weights is.
    ///
    /// # Errors
    /// The disk.
    pub fn save(&mut self, weights: &str, state: &PassState) -> Result<(), RunError> {
        self.state.now = Some((weights.to_owned(), state.clone()));
        self.write()
    }

    /// Saves the result for these weights.
    ///
    /// # Errors
    /// The disk.
    pub fn finish(&mut self, weights: &str, evaluated: &Evaluated) -> Result<(), RunError> {
        self.state.done.push((weights.to_owned(), evaluated.clone()));
        self.state.now = None;
        self.write()
    }

    fn write(&mut self) -> Result<(), RunError> {
        let path = self.folder.join(STATE);
        let bytes = serde_json::to_vec(&self.state).map_err(|error| RunError::io("write", &path)(error.into()))?;
        atomic_write(&path, &bytes)?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Removes all of it: the evaluation is over.
    ///
    /// # Errors
    /// The disk.
    pub fn remove(self) -> Result<(), RunError> {
        fs::remove_dir_all(&self.folder).map_err(RunError::io("remove", &self.folder))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_progress_of_the_same_evaluation_is_gone_on_with() {
        let output = tempfile::tempdir().unwrap();
        let open = |images: u64| {
            let (progress, note) = Progress::open(output.path(), json!({ "images": images }), Duration::ZERO).unwrap();
            (progress.folder().join("originals.f32"), note)
        };
        let (file, note) = open(5);
        assert_eq!(note, None);
        fs::write(&file, "embeddings").unwrap();
        assert_eq!(open(5).1, None);
        assert!(file.exists());
        assert!(open(6).1.is_some());
        assert!(!file.exists());
    }
}
