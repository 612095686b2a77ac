//! Saves checkpoints in the background while the run continues.

use std::error::Error;
use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use thread_priority::ThreadPriority;

use super::{FileRecords, RunStore, SaveError};

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
    /// Time from the call of `save` until the checkpoint was safe on the disk.
    pub took: Duration,
}

/// Gives this thread a lower priority than the run's own: a step ends when the slowest of its threads does, and a
/// checkpoint can wait. If the system refuses, the checkpoint is saved all the same.
fn step_aside() {
    // Niceness is not enough on Linux: a thread that wakes up waits until a running one, nice or not, has used its time
    // slice, which is as long as many operations of a step.
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

/// Writes checkpoints in a thread of its own, one at a time. If no thread can be started, `save` writes them itself.
#[derive(Debug)]
pub struct BackgroundWriter<E: Error + Send + 'static> {
    store: Arc<RunStore>,
    pending: Option<Pending<E>>,
}

/// Writes a checkpoint.
type Work<E> = Box<dyn FnOnce() -> Result<Saved, SaveError<E>> + Send>;

#[derive(Debug)]
enum Pending<E: Error + 'static> {
    Writing(JoinHandle<Result<Saved, SaveError<E>>>),
    Done(Result<Saved, SaveError<E>>),
}

impl<E: Error + Send + 'static> BackgroundWriter<E> {
    /// Writes into `store`.
    pub fn new(store: RunStore) -> Self {
        Self { store: Arc::new(store), pending: None }
    }

    /// The folder of checkpoints. While a checkpoint is written it may only be read.
    pub fn store(&self) -> &RunStore {
        &self.store
    }

    /// Begins to save a checkpoint: `write` fills the folder that it is given, as in [`RunStore::save`], and is
    /// dropped. Then the best checkpoint is marked and old ones are deleted. If no thread can be started, most likely
    /// for lack of memory, all this is done on return.
    ///
    /// # Errors
    /// If the checkpoint before this one, which is waited for, could not be saved.
    pub fn save(
        &mut self,
        step: u64,
        keep: Keep,
        write: impl FnOnce(&Path) -> Result<FileRecords, E> + Send + 'static,
    ) -> Result<Option<Saved>, SaveError<E>> {
        self.save_by(|work| Builder::new().name("checkpoint".into()).spawn(work), step, keep, write)
    }

    fn save_by(
        &mut self,
        spawn: impl FnOnce(Work<E>) -> io::Result<JoinHandle<Result<Saved, SaveError<E>>>>,
        step: u64,
        keep: Keep,
        write: impl FnOnce(&Path) -> Result<FileRecords, E> + Send + 'static,
    ) -> Result<Option<Saved>, SaveError<E>> {
        let before = self.wait()?;
        let (store, started) = (self.store.clone(), Instant::now());
        let work = move || {
            let mut write = Some(write);
            let path =
                store.save(step, &mut |folder| write.take().map_or(Ok(FileRecords::new()), |write| write(folder)))?;
            // The best checkpoint may be in the run from which this one was branched off.
            if let Some(best) = keep.best
                && store.steps()?.contains(&best)
            {
                store.set_best(best)?;
            }
            store.prune(keep.last, keep.every)?;
            Ok(Saved { step, path, took: started.elapsed() })
        };
        // A closure is lost if its thread cannot be started, so the work is sent to the thread once it runs.
        let (give, given) = channel::<Work<E>>();
        let thread = spawn(Box::new(move || {
            step_aside();
            given.recv().expect("work is given to each thread")()
        }));
        self.pending = Some(match thread {
            Ok(thread) => {
                give.send(Box::new(work)).expect("the thread waits for its work");
                Pending::Writing(thread)
            }
            Err(_) => Pending::Done(work()),
        });
        Ok(before)
    }

    /// The checkpoint that has become safe since the last call, if one has. Does not wait.
    ///
    /// # Errors
    /// If it could not be saved.
    pub fn poll(&mut self) -> Result<Option<Saved>, SaveError<E>> {
        match &self.pending {
            Some(Pending::Writing(thread)) if !thread.is_finished() => Ok(None),
            _ => self.wait(),
        }
    }

    /// Waits for the checkpoint that is being written, if there is one.
    ///
    /// # Errors
    /// If it could not be saved.
    pub fn wait(&mut self) -> Result<Option<Saved>, SaveError<E>> {
        match self.pending.take() {
            None => Ok(None),
            Some(Pending::Writing(thread)) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)).map(Some),
            Some(Pending::Done(saved)) => saved.map(Some),
        }
    }
}

/// Finishes the checkpoint that is being written, even if the run ends by an error.
impl<E: Error + Send + 'static> Drop for BackgroundWriter<E> {
    fn drop(&mut self) {
        if let Some(Pending::Writing(thread)) = self.pending.take() {
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
        let mut writer = BackgroundWriter::<io::Error>::new(RunStore::open(folder.path()).unwrap());
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

    #[test]
    fn what_no_thread_can_be_had_for_is_saved_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = BackgroundWriter::<io::Error>::new(RunStore::open(folder.path()).unwrap());
        let keep = Keep { last: 2, every: None, best: None };
        let mut save = |step, write: fn(&Path) -> io::Result<()>| {
            let refuse = |_: Work<io::Error>| Err(io::ErrorKind::WouldBlock.into());
            let begun = writer.save_by(refuse, step, keep, move |folder| write(folder).map(|()| FileRecords::new()));
            (begun.unwrap(), writer.poll())
        };
        let (before, saved) = save(1, |folder| std::fs::write(folder.join("state.json"), "{}"));
        assert_eq!((before, saved.unwrap().unwrap().step), (None, 1));
        let (before, failed) = save(2, |_| Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(before, None);
        assert!(failed.is_err());
        assert_eq!(RunStore::open(folder.path()).unwrap().steps().unwrap(), [1]);
    }
}
