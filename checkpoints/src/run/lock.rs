//! One writer per run folder.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::Path;

use super::RunError;

const LOCK: &str = "run.lock";

/// Held while a process writes a run's folder. The operating system holds the lock, so a crash releases it.
#[derive(Debug)]
pub struct RunLock {
    enforced: bool,
    _file: File,
}

impl RunLock {
    /// Locks a run's folder, creating it if need be, or says which process has it.
    pub fn acquire(run_dir: &Path) -> Result<RunLock, RunError> {
        fs::create_dir_all(run_dir).map_err(RunError::io("create", run_dir))?;
        let path = run_dir.join(LOCK);
        let mut options = File::options();
        // Not truncated on opening: until the lock is ours the text in it is the holder's.
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(RunError::io("open", &path))?;
        let enforced = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => {
                return Err(RunError::Locked { path: run_dir.to_path_buf(), holder: holder(&path) });
            }
            // Some cluster file systems have no locks; a run there must still be possible.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => false,
            Err(TryLockError::Error(error)) => return Err(RunError::io("lock", &path)(error)),
        };
        let owner = format!("process {} on {}\n", std::process::id(), host());
        file.set_len(0).and_then(|()| file.write_all(owner.as_bytes())).map_err(RunError::io("write", &path))?;
        Ok(RunLock { enforced, _file: file })
    }

    /// False where the file system has no locks: then nothing stops a second process, and the user should know.
    pub fn is_enforced(&self) -> bool {
        self.enforced
    }
}

/// Windows does not let others read a locked file, and a new holder may not have written its name yet.
fn holder(path: &Path) -> String {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => text.trim().replace('\n', " "),
        _ => "another process".to_owned(),
    }
}

/// The standard library has no call for it; a name that helps a reader is enough.
fn host() -> String {
    let named = |name: &String| !name.is_empty();
    fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| fs::read_to_string("/etc/hostname"))
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(named)
        .or_else(|| std::env::var("HOSTNAME").ok().filter(named))
        .or_else(|| std::env::var("COMPUTERNAME").ok().filter(named))
        .unwrap_or_else(|| "an unnamed host".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_learns_who_has_it_and_gets_it_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("runs/faces");
        let first = RunLock::acquire(&run).unwrap();
        assert!(first.is_enforced());
        let error = RunLock::acquire(&run).unwrap_err().to_string();
        assert!(error.contains("faces is in use by process "), "{error}");
        assert!(error.contains(&format!("process {} on {}", std::process::id(), host())), "{error}");
        assert!(!error.contains('\n'));
        drop(first);
        RunLock::acquire(&run).unwrap();
    }

    #[test]
    fn text_left_by_a_crash_does_not_hold_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(LOCK), "process 4194305 on a-much-longer-host-name-than-ours\n").unwrap();
        let _lock = RunLock::acquire(folder.path()).unwrap();
        let text = fs::read_to_string(folder.path().join(LOCK)).unwrap();
        assert_eq!(text, format!("process {} on {}\n", std::process::id(), host()));
    }
}
