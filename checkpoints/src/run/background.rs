//! Saving beside the run: what is to be written is handed over, and the run goes on.

use std::error::Error;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use thread_priority::ThreadPriority;

use super::{FileRecords, RunError, RunStore, SaveError};

/// What stays on the disk after a save; see [`RunStore::prune`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Newest checkpoints.
    pub last: usize,
    /// Those of the multiples of this step.
    pub every: Option<u64>,
    /// The best so far, by its step.
    pub best: Option<u64>,
}

/// A checkpoint that is on the disk, whole and under its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The optimizer step after which it was taken.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// From being handed over to being safe.
    pub took: Duration,
}

/// Lets the run's own threads go before this one: a step of theirs ends when the slowest of them is through, and a checkpoint can
/// wait. Where that is refused, the checkpoint is as good.
fn step_aside() {
    // Niceness is not enough on Linux: a thread that wakes up waits for one of any niceness to have had its slice, which is as long
    // as many of a step's operations.
    #[cfg(target_os = "linux")]
    let _ = {
        use thread_priority::unix::{
            NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
        };
        let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle)
    };
    #[cfg(not(target_os = "linux"))]
    let _ = thread_priority::set_current_thread_priority(ThreadPriority::Min);
}

/// Writes checkpoints in a thread of its own, one at a time.
#[derive(Debug)]
pub struct BackgroundWriter<E: Error + Send + 'static> {
    store: Arc<RunStore>,
    pending: Option<JoinHandle<Result<Saved, SaveError<E>>>>,
}

impl<E: Error + Send + 'static> BackgroundWriter<E> {
    /// Writes into `store`.
    pub fn new(store: RunStore) -> Self {
        Self { store: Arc::new(store), pending: None }
    }

    /// The folder of checkpoints. Only to be read while a checkpoint is written.
    pub fn store(&self) -> &RunStore {
        &self.store
    }

    /// Begins to save a checkpoint: `write` fills the folder that it is given, as in [`RunStore::save`], and what it holds is
    /// freed. Then the best one is marked and old ones go.
    ///
    /// # Errors
    /// If there can be no thread, or the checkpoint before this one, which is waited for, could not be saved.
    pub fn save(
        &mut self,
        step: u64,
        keep: Keep,
        write: impl FnOnce(&Path) -> Result<FileRecords, E> + Send + 'static,
    ) -> Result<Option<Saved>, SaveError<E>> {
        let before = self.wait()?;
        let (store, started) = (self.store.clone(), Instant::now());
        let work = move || {
            step_aside();
            let mut write = Some(write);
            let path =
                store.save(step, &mut |folder| write.take().map_or(Ok(FileRecords::new()), |write| write(folder)))?;
            // That of a run that this one is a branch of is not here.
            if let Some(best) = keep.best
                && store.steps()?.contains(&best)
            {
                store.set_best(best)?;
            }
            store.prune(keep.last, keep.every)?;
            Ok(Saved { step, path, took: started.elapsed() })
        };
        let thread = Builder::new().name("checkpoint".into()).spawn(work);
        self.pending = Some(thread.map_err(RunError::io("start a thread that writes", &self.store.folder))?);
        Ok(before)
    }

    /// The checkpoint that has become safe since the last call, if one has. Does not wait.
    ///
    /// # Errors
    /// If it could not be saved.
    pub fn poll(&mut self) -> Result<Option<Saved>, SaveError<E>> {
        match self.pending.as_ref().is_some_and(JoinHandle::is_finished) {
            true => self.wait(),
            false => Ok(None),
        }
    }

    /// Waits for the checkpoint that is being written, if there is one.
    ///
    /// # Errors
    /// If it could not be saved.
    pub fn wait(&mut self) -> Result<Option<Saved>, SaveError<E>> {
        match self.pending.take().map(JoinHandle::join) {
            None => Ok(None),
            Some(Ok(saved)) => saved.map(Some),
            Some(Err(panic)) => resume_unwind(panic),
        }
    }
}

/// What was begun is finished, even if the run ends by an error.
impl<E: Error + Send + 'static> Drop for BackgroundWriter<E> {
    fn drop(&mut self) {
        if let Some(thread) = self.pending.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_run_goes_before_the_writer() {
        // The 41st field; the second one, the name, is in brackets.
        let policy = || -> u32 {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(38).unwrap().parse().unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let mut writer = BackgroundWriter::<std::io::Error>::new(RunStore::open(folder.path()).unwrap());
        let (own, (tell, told)) = (policy(), std::sync::mpsc::channel());
        let keep = Keep { last: 1, every: None, best: None };
        writer
            .save(1, keep, move |folder| {
                tell.send(policy()).unwrap();
                std::fs::write(folder.join("state.json"), "{}").map(|()| FileRecords::new())
            })
            .unwrap();
        writer.wait().unwrap();
        const SCHED_IDLE: u32 = 5;
        assert_eq!((told.recv().unwrap(), policy()), (SCHED_IDLE, own));
    }
}
