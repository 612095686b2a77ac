//! Loads samples ahead of the training step, on any number of threads, and hands them out in order.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use host_memory::aside;

use crate::error::DataError;
use crate::sample::{Attempt, Batch, SampleStream};
use crate::text::panic_message;

/// Hands out the samples of a stream in order, and loads them ahead. The samples do not depend on the number of threads
/// or on their timing.
///
/// At most `prefetch` samples are being loaded or are waiting in memory, also while a slow one holds up those after it.
/// Dropping the loader stops its threads and waits for them for a short time: a thread that reads from a disk that does
/// not answer is left behind. The memory of the threads is not counted as the program's, see [`aside`].
pub struct Loader {
    stream: Arc<dyn SampleStream>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// The next draw to take.
    next: u64,
    /// The first draw of the next batch. Less than `next` if collecting it was interrupted.
    batch_start: u64,
    /// The samples of the next batch that were collected before it was interrupted.
    collected: Option<Batch>,
    end: u64,
    waited: Duration,
    failed: Option<DataError>,
}

/// The image that a [`Loader`] waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// The name of the image; the path of a file.
    pub name: String,
    /// When reading it started.
    pub since: Instant,
}

/// How often the caller is asked whether to wait on.
const TICK: Duration = Duration::from_millis(100);

/// How long a dropped loader waits for its threads: most images are decoded in that time. A run that is asked to stop
/// is saved after it.
const END: Duration = Duration::from_millis(500);

struct Shared {
    state: Mutex<State>,
    /// A sample was taken, or it is time to stop. Threads wait for this.
    sample_taken: Condvar,
    /// A sample is loaded. The caller waits for this.
    sample_loaded: Condvar,
    /// A thread has ended.
    thread_ended: Condvar,
}

struct State {
    /// The next draw that a thread starts to load.
    next_load: u64,
    /// The next draw that is handed out.
    next_taken: u64,
    /// The caller waits for the draws below this one.
    awaited: u64,
    /// What each thread reads: the draw, the index of the image, and since when. Its memory is reserved at the start,
    /// because later allocations are not counted.
    reading: Vec<(u64, usize, Instant)>,
    /// How many threads have not ended.
    running: usize,
    /// Samples that are not taken yet. The message of a panic becomes an error when its draw is taken.
    loaded: BTreeMap<u64, Result<Attempt, String>>,
    stop: bool,
}

impl Drop for State {
    fn drop(&mut self) {
        std::mem::take(&mut self.loaded).into_values().for_each(|loaded| aside(|| drop(loaded)));
    }
}

impl Loader {
    /// Starts to load the samples from `first_draw` on: `draws` of them, or without end.
    ///
    /// With 0 `workers` nothing is loaded ahead: one thread works while [`next_batch`](Self::next_batch) waits, so that
    /// waiting can be interrupted. `prefetch` is a number of samples, at least 1. The system may give fewer threads,
    /// for example when memory runs out. Then these do the work, or the thread of the caller if there are none: the
    /// samples are the same.
    pub fn start<S: SampleStream + 'static>(
        stream: Arc<S>,
        first_draw: u64,
        draws: Option<u64>,
        workers: usize,
        prefetch: usize,
    ) -> Self {
        let spawn = |name: String, work: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name(name).spawn(work);
        Self::start_by(spawn, stream, first_draw, draws, workers, prefetch)
    }

    fn start_by<S: SampleStream + 'static>(
        spawn: impl Fn(String, Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>,
        stream: Arc<S>,
        first_draw: u64,
        draws: Option<u64>,
        workers: usize,
        prefetch: usize,
    ) -> Self {
        let end = first_draw.saturating_add(draws.unwrap_or(u64::MAX));
        let mut loader = Self {
            stream,
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    next_load: first_draw,
                    next_taken: first_draw,
                    awaited: first_draw,
                    reading: Vec::with_capacity(workers.max(1)),
                    running: 0,
                    loaded: BTreeMap::new(),
                    stop: false,
                }),
                sample_taken: Condvar::new(),
                sample_loaded: Condvar::new(),
                thread_ended: Condvar::new(),
            }),
            threads: Vec::new(),
            next: first_draw,
            batch_start: first_draw,
            collected: None,
            end,
            waited: Duration::ZERO,
            failed: None,
        };
        let ahead = if workers == 0 { 0 } else { prefetch.max(1) as u64 };
        for worker in 0..workers.max(1) {
            let stream = Arc::clone(&loader.stream);
            let shared = Arc::clone(&loader.shared);
            let work = move || shared.work(stream, end, ahead);
            loader.shared.lock().running += 1;
            let Ok(thread) = spawn(format!("loader-{worker}"), Box::new(work)) else {
                loader.shared.lock().running -= 1;
                break;
            };
            loader.threads.push(thread);
        }
        loader
    }

    /// The next `n` samples. Fewer at the end of the stream, none after it.
    ///
    /// # Errors
    /// The stream has no more usable samples, or loading panicked. Every further call returns the same error.
    pub fn next_batch(&mut self, n: usize) -> Result<Batch, DataError> {
        self.next_batch_while(n, &mut |_| true)
    }

    /// The next `n` samples. While it waits for a sample, it calls `wait` several times a second with the image that is
    /// being read.
    ///
    /// # Errors
    /// [`DataError::Interrupted`] when `wait` returns false; the next call continues with the samples collected so far.
    /// Otherwise as for [`next_batch`](Self::next_batch).
    pub fn next_batch_while(
        &mut self,
        n: usize,
        wait: &mut dyn FnMut(Option<&Awaited>) -> bool,
    ) -> Result<Batch, DataError> {
        let start = Instant::now();
        let result = match &self.failed {
            Some(error) => Err(error.clone()),
            None => self.collect(n, wait),
        };
        match &result {
            Ok(_) => self.batch_start = self.next,
            Err(DataError::Interrupted) => {}
            Err(error) => {
                self.failed = Some(error.clone());
                self.shared.stop();
            }
        }
        self.waited += start.elapsed();
        result
    }

    /// The first draw of the next batch: where a resumed run starts.
    pub fn next_draw(&self) -> u64 {
        self.batch_start
    }

    /// How long all calls of [`next_batch`](Self::next_batch) together took, in seconds.
    pub fn wait_seconds(&self) -> f64 {
        self.waited.as_secs_f64()
    }

    /// How many loaded samples are waiting in memory.
    pub fn waiting(&self) -> usize {
        self.shared.lock().loaded.len()
    }

    /// The size of the pixels of these samples, in bytes.
    pub fn bytes_waiting(&self) -> usize {
        let bytes = |attempt: &Attempt| attempt.sample.as_ref().map_or(0, |sample| sample.pixels.len());
        self.shared.lock().loaded.values().flatten().map(bytes).sum()
    }

    fn collect(&mut self, n: usize, wait: &mut dyn FnMut(Option<&Awaited>) -> bool) -> Result<Batch, DataError> {
        let mut batch = self.collected.take().unwrap_or_else(|| Batch::empty(self.stream.resolution()));
        while batch.len() < n && self.next < self.end {
            let draw = self.next;
            let attempt = match self.threads.is_empty() {
                true => attempt(&*self.stream, draw, &|_| ()),
                false => {
                    let mut asked = |reading: Option<(usize, Instant)>| {
                        wait(reading.map(|(index, since)| Awaited { name: self.stream.name(index), since }).as_ref())
                    };
                    match self.shared.take(draw, &mut asked) {
                        Some(attempt) => attempt,
                        None => {
                            self.collected = Some(batch);
                            return Err(DataError::Interrupted);
                        }
                    }
                }
            };
            let attempt = attempt.map_err(|message| DataError::Panicked { draw, message })?;
            self.next += 1;
            if let Some(sample) = self.stream.deliver(attempt)? {
                batch.push(sample);
            }
        }
        Ok(batch)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.stop();
        let state = self.shared.thread_ended.wait_timeout_while(self.shared.lock(), END, |state| state.running > 0);
        let all_ended = state.unwrap_or_else(PoisonError::into_inner).0.running == 0;
        for thread in self.threads.drain(..).filter(|thread| all_ended || thread.is_finished()) {
            // A panic was already caught and handed out as an error.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.lock().stop = true;
        self.sample_taken.notify_all();
    }

    /// The work of a thread. It drops the stream before it ends.
    fn work(&self, stream: Arc<dyn SampleStream>, end: u64, ahead: u64) {
        while let Some(draw) = self.begin(end, ahead) {
            let reading = |index| {
                let mut state = self.lock();
                state.reading.retain(|(other, ..)| *other != draw);
                state.reading.push((draw, index, Instant::now()));
            };
            let loaded = aside(|| attempt(&*stream, draw, &reading));
            let mut state = self.lock();
            state.reading.retain(|(other, ..)| *other != draw);
            state.loaded.insert(draw, loaded);
            drop(state);
            self.sample_loaded.notify_one();
        }
        drop(stream);
        self.lock().running -= 1;
        self.thread_ended.notify_all();
    }

    /// Waits until a sample may be loaded, and returns its draw; `None` when there is nothing more to do. A draw counts
    /// against `ahead` from here until it is taken, so samples being loaded and samples waiting are limited together.
    fn begin(&self, end: u64, ahead: u64) -> Option<u64> {
        let full = |state: &mut State| {
            let State { next_load, next_taken, awaited, stop, .. } = *state;
            !stop && next_load < end && next_load - next_taken >= ahead && next_load >= awaited
        };
        let state = self.sample_taken.wait_while(self.lock(), full);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.stop || state.next_load >= end {
            return None;
        }
        state.next_load += 1;
        Some(state.next_load - 1)
    }

    /// Waits for a draw and takes it. `None` if `wait`, which is called with the image that is being read, returns
    /// false first.
    fn take(
        &self,
        draw: u64,
        wait: &mut dyn FnMut(Option<(usize, Instant)>) -> bool,
    ) -> Option<Result<Attempt, String>> {
        let mut state = self.lock();
        state.awaited = draw + 1;
        self.sample_taken.notify_one();
        let mut asked = Instant::now();
        loop {
            if let Some(loaded) = state.loaded.remove(&draw) {
                state.next_taken = draw + 1;
                drop(state);
                self.sample_taken.notify_one();
                // The copy is counted as the program's memory. What is not counted must be freed in the same way.
                let counted = loaded.clone();
                aside(|| drop(loaded));
                return Some(counted);
            }
            if asked.elapsed() >= TICK {
                let reading = state.reading.iter().find(|(of, ..)| *of == draw);
                let reading = reading.map(|(_, index, since)| (*index, *since));
                drop(state);
                if !wait(reading) {
                    return None;
                }
                asked = Instant::now();
                state = self.lock();
                continue;
            }
            state = self.sample_loaded.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Loads one sample. Returns the message of a panic: if the thread just ended, the caller would wait for ever.
fn attempt(stream: &dyn SampleStream, draw: u64, reading: &dyn Fn(usize)) -> Result<Attempt, String> {
    catch_unwind(AssertUnwindSafe(|| stream.attempt(draw, reading))).map_err(panic_message)
}

#[cfg(test)]
mod tests;
