//! `metrics.jsonl`: one JSON object per optimizer step, appended; a resumed run neither doubles nor loses a step.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::RunError;
use super::atomic::replace;

/// The open log of a run.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    length: u64,
    dropped: usize,
}

impl MetricsLog {
    /// Opens the log for a run that resumes after `resume_step` (0 for a new run).
    ///
    /// Drops the lines of later steps, which will be done again, and lines that a crash left incomplete. All other
    /// lines keep their bytes.
    pub fn open(path: &Path, resume_step: u64) -> Result<MetricsLog, RunError> {
        let dropped = match rewind(path, resume_step) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            rewound => rewound.map_err(RunError::io("rewrite", path))?,
        };
        let file = File::options().create(true).append(true).open(path).map_err(RunError::io("write", path))?;
        let length = file.metadata().map_err(RunError::io("read", path))?.len();
        Ok(MetricsLog { path: path.to_path_buf(), file, length, dropped })
    }

    /// How many lines opening it dropped.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// Adds one line. A line that does not fit on the disk is removed again, so that the next one starts on its own
    /// line.
    pub fn append(&mut self, line: &Value) -> Result<(), RunError> {
        let mut text = line.to_string();
        text.push('\n');
        match self.file.write_all(text.as_bytes()).and_then(|()| self.file.flush()) {
            Ok(()) => {
                self.length += text.len() as u64;
                Ok(())
            }
            Err(error) => {
                let _ = self.file.set_len(self.length);
                Err(RunError::io("write", &self.path)(error))
            }
        }
    }

    /// Makes the lines so far survive a power cut. To be called before a checkpoint is saved, so that no checkpoint is
    /// ahead of its log.
    pub fn sync(&self) -> Result<(), RunError> {
        self.file.sync_data().map_err(RunError::io("write", &self.path))
    }
}

/// Takes the log back to `step`; returns how many lines were dropped. A log without such lines is not written.
fn rewind(path: &Path, step: u64) -> io::Result<usize> {
    let found = scan(path, step, |_| Ok(()))?;
    if found.dropped > 0 || found.torn {
        replace(path, |new| {
            let mut new = BufWriter::new(new);
            scan(path, step, |line| new.write_all(line).and_then(|()| new.write_all(b"\n")))?;
            new.flush()
        })?;
    }
    Ok(found.dropped)
}

struct Scan {
    dropped: usize,
    torn: bool,
}

/// Gives every line that belongs to the first `step` steps to `keep`, one at a time: a log may be large.
fn scan(path: &Path, step: u64, mut keep: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<Scan> {
    let mut log = BufReader::new(File::open(path)?);
    let mut found = Scan { dropped: 0, torn: false };
    let mut line = Vec::new();
    while log.read_until(b'\n', &mut line)? > 0 {
        found.torn = !line.ends_with(b"\n");
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        if belongs(text, step) {
            keep(text)?;
        } else {
            found.dropped += 1;
        }
        line.clear();
    }
    Ok(found)
}

/// Whether a line is whole and not of a later step. An object without a step is a remark and stays.
fn belongs(line: &[u8], step: u64) -> bool {
    match serde_json::from_slice::<Value>(line) {
        Ok(Value::Object(object)) => match object.get("step") {
            Some(value) => value.as_u64().is_some_and(|at| at <= step),
            None => true,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// Writes `text`, resumes after `step`, appends the next step; gives the log and how many lines went.
    fn resumed(text: impl AsRef<[u8]>, step: u64) -> (String, usize) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, text).unwrap();
        let mut log = MetricsLog::open(&path, step).unwrap();
        log.append(&json!({"step": step + 1})).unwrap();
        log.sync().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        (fs::read_to_string(&path).unwrap(), log.dropped())
    }

    #[test]
    fn starts_empty_and_appends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        log.append(&json!({"step": 1})).unwrap();
        log.append(&json!({"step": 2})).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
    }

    #[test]
    fn later_steps_go_and_the_others_stay_to_the_byte() {
        let log = "{ \"step\": 1, \"loss\": 0.10 }\n{\"step\":2}\n{\"step\":3}\n{\"step\":4}\n";
        assert_eq!(resumed(log, 2), ("{ \"step\": 1, \"loss\": 0.10 }\n{\"step\":2}\n{\"step\":3}\n".into(), 2));
    }

    #[test]
    fn a_torn_last_line_goes() {
        for torn in ["{\"step\":2,\"lo", "{", "{\"step\":2", "\0\0\0\0"] {
            assert_eq!(resumed(format!("{{\"step\":1}}\n{torn}"), 1), ("{\"step\":1}\n{\"step\":2}\n".into(), 1));
        }
        assert_eq!(resumed(b"{\"step\":1}\n{\"a\":\"\xc3", 1), ("{\"step\":1}\n{\"step\":2}\n".into(), 1));
    }

    #[test]
    fn a_whole_last_line_without_its_newline_stays() {
        assert_eq!(resumed("{\"step\":1}", 1), ("{\"step\":1}\n{\"step\":2}\n".into(), 0));
        assert_eq!(resumed("{\"step\":1}\n{\"step\":2}", 1), ("{\"step\":1}\n{\"step\":2}\n".into(), 1));
    }

    #[test]
    fn a_line_torn_in_the_middle_goes_and_a_remark_stays() {
        let log = "{\"step\":1}\n{\"step\":2,{\"step\":2}\n{\"note\":\"resumed\"}\n{\"step\":2}\n";
        let kept = "{\"step\":1}\n{\"note\":\"resumed\"}\n{\"step\":2}\n{\"step\":3}\n";
        assert_eq!(resumed(log, 2), (kept.into(), 1));
    }

    #[test]
    fn a_log_that_is_right_is_not_rewritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, "{\"step\":1}\n").unwrap();
        let before = fs::metadata(&path).unwrap();
        let log = MetricsLog::open(&path, 1).unwrap();
        assert_eq!(log.dropped(), 0);
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            assert_eq!(before.ino(), fs::metadata(&path).unwrap().ino());
        }
        let _ = before;
    }

    #[test]
    fn the_error_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = MetricsLog::open(folder.path(), 0).unwrap_err().to_string();
        assert!(error.contains(folder.path().to_str().unwrap()) && !error.contains('\n'), "{error}");
    }
}
