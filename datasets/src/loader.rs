//! Loads samples ahead of the training step, on any number of threads, and hands them out in order.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use host_memory::aside;

use crate::text::shortened;
use crate::{Attempt, DataError, Sample, SampleStream};

/// Samples side by side, as a model takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The position of each sample in its stream, ascending.
    pub draws: Vec<u64>,
    /// Width and height of every sample, in pixels.
    pub resolution: u32,
    /// `len * resolution * resolution * 3` bytes: `[sample, row, column, channel]`, channels red green blue.
    pub pixels: Vec<u8>,
    /// What each sample shows, where the source knows it.
    pub captions: Vec<Option<String>>,
}

impl Batch {
    /// A batch of no samples.
    pub fn empty(resolution: u32) -> Self {
        Self { draws: Vec::new(), resolution, pixels: Vec::new(), captions: Vec::new() }
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.draws.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.draws.is_empty()
    }

    /// Puts a sample of the batch's resolution at the end.
    pub(crate) fn push(&mut self, sample: Sample) {
        self.draws.push(sample.draw);
        self.pixels.extend_from_slice(&sample.pixels);
        self.captions.push(sample.caption);
    }
}

/// Hands out the samples of a stream in order, loaded ahead of time. What it hands out depends neither on the number of
/// threads nor on their timing.
///
/// At most `prefetch` samples are being decoded or wait in memory, also while a slow one holds back those after it.
/// Dropping the loader stops the threads and waits for them, but not for long: one that reads from a disk that does not answer
/// is left behind. What the threads hold does not count as the program's memory, see [`aside`].
pub struct Loader {
    stream: Arc<dyn SampleStream>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// The next draw to take.
    next: u64,
    /// The draw that the next batch begins with: `next`, unless collecting it was interrupted.
    batch_begins: u64,
    /// What was collected of the next batch when that was interrupted.
    collected: Option<Batch>,
    end: u64,
    waited: Duration,
    failed: Option<DataError>,
}

/// What a [`Loader`] waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// The image's name; a path for a file.
    pub name: String,
    /// When reading it began.
    pub since: Instant,
}

/// How often whoever waits is asked whether to go on.
const TICK: Duration = Duration::from_millis(100);

/// How long threads may take to end when their loader is dropped: as long as most images take to decode. A run that is asked to
/// stop is saved only after that.
const END: Duration = Duration::from_millis(500);

struct Shared {
    state: Mutex<State>,
    /// A sample was taken, or it is time to stop: threads wait for this.
    room: Condvar,
    /// A sample is ready: the caller waits for this.
    ready: Condvar,
    /// A thread has ended.
    ended: Condvar,
}

struct State {
    /// The next draw that no thread has begun.
    next_begun: u64,
    /// The next draw that is handed out.
    next_taken: u64,
    /// Draws below this one are waited for.
    awaited: u64,
    /// What each thread reads: for which draw, the image's index, and since when. There is room for all from the beginning, as this
    /// is filled where allocations do not count.
    reading: Vec<(u64, usize, Instant)>,
    /// Threads that have not ended.
    running: usize,
    /// Loaded and not yet taken; the text of a panic instead of a sample is an error when its turn comes.
    loaded: BTreeMap<u64, Result<Attempt, String>>,
    stop: bool,
}

impl Drop for State {
    fn drop(&mut self) {
        std::mem::take(&mut self.loaded).into_values().for_each(|loaded| aside(|| drop(loaded)));
    }
}

impl Loader {
    /// Begins to load the samples from `first_draw` on: `draws` of them, or without end.
    ///
    /// With 0 `workers` nothing is loaded ahead: one thread works while [`next_batch`](Self::next_batch) waits, so that waiting
    /// can be interrupted. `prefetch` is a number of samples; at least 1 is taken. Where the system gives fewer threads, as it does
    /// when memory runs out, they have to do, and without any the caller's own thread does the work: the samples are the same.
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
                    next_begun: first_draw,
                    next_taken: first_draw,
                    awaited: first_draw,
                    reading: Vec::with_capacity(workers.max(1)),
                    running: 0,
                    loaded: BTreeMap::new(),
                    stop: false,
                }),
                room: Condvar::new(),
                ready: Condvar::new(),
                ended: Condvar::new(),
            }),
            threads: Vec::new(),
            next: first_draw,
            batch_begins: first_draw,
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

    /// The next `n` samples. Fewer at the end of a stream that has one, and none behind it.
    ///
    /// # Errors
    /// The stream cannot go on, or loading panicked. The same error comes again at each further call.
    pub fn next_batch(&mut self, n: usize) -> Result<Batch, DataError> {
        self.next_batch_while(n, &mut |_| true)
    }

    /// The next `n` samples, as long as `wait` says yes: it is asked several times a second while a sample is waited for, and told
    /// what is being read for it.
    ///
    /// # Errors
    /// [`DataError::Interrupted`] once `wait` says no: the next call goes on with what was collected until then. Otherwise as for
    /// [`next_batch`](Self::next_batch).
    pub fn next_batch_while(
        &mut self,
        n: usize,
        wait: &mut dyn FnMut(Option<&Awaited>) -> bool,
    ) -> Result<Batch, DataError> {
        let began = Instant::now();
        let result = match &self.failed {
            Some(error) => Err(error.clone()),
            None => self.collect(n, wait),
        };
        match &result {
            Ok(_) => self.batch_begins = self.next,
            Err(DataError::Interrupted) => {}
            Err(error) => {
                self.failed = Some(error.clone());
                self.shared.stop();
            }
        }
        self.waited += began.elapsed();
        result
    }

    /// The draw that the next batch begins with: where to start again after an interruption.
    pub fn next_draw(&self) -> u64 {
        self.batch_begins
    }

    /// For how many seconds [`next_batch`](Self::next_batch) has kept its callers, all calls together.
    pub fn wait_seconds(&self) -> f64 {
        self.waited.as_secs_f64()
    }

    /// How many decoded samples wait in memory now.
    pub fn waiting(&self) -> usize {
        self.shared.lock().loaded.len()
    }

    /// How many bytes the pixels of those samples take.
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
        let state = self.shared.ended.wait_timeout_while(self.shared.lock(), END, |state| state.running > 0);
        let all_ended = state.unwrap_or_else(PoisonError::into_inner).0.running == 0;
        for thread in self.threads.drain(..).filter(|thread| all_ended || thread.is_finished()) {
            // A panic was caught and handed out as an error already.
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
        self.room.notify_all();
    }

    /// A thread's whole life, at the end of which it has let go of the stream.
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
            // What nobody waits for any more goes with the loader.
            state.loaded.insert(draw, loaded);
            drop(state);
            self.ready.notify_one();
        }
        drop(stream);
        self.lock().running -= 1;
        self.ended.notify_all();
    }

    /// Waits for room and gives the next draw to load, or `None` when there is nothing more to do. A draw counts from here
    /// until it is taken, so samples in work and samples waiting are bounded together.
    fn begin(&self, end: u64, ahead: u64) -> Option<u64> {
        let full = |state: &mut State| {
            let State { next_begun, next_taken, awaited, stop, .. } = *state;
            !stop && next_begun < end && next_begun - next_taken >= ahead && next_begun >= awaited
        };
        let state = self.room.wait_while(self.lock(), full);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.stop || state.next_begun >= end {
            return None;
        }
        state.next_begun += 1;
        Some(state.next_begun - 1)
    }

    /// Waits for a draw and takes it, unless `wait`, which is told what is read for it, says no before.
    fn take(
        &self,
        draw: u64,
        wait: &mut dyn FnMut(Option<(usize, Instant)>) -> bool,
    ) -> Option<Result<Attempt, String>> {
        let mut state = self.lock();
        state.awaited = draw + 1;
        self.room.notify_one();
        let mut asked = Instant::now();
        loop {
            if let Some(loaded) = state.loaded.remove(&draw) {
                state.next_taken = draw + 1;
                drop(state);
                self.room.notify_one();
                // A copy that counts; what does not count has to be freed in the same way.
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
            state = self.ready.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Loads one sample; a panic becomes its message, since a thread that ended without a word would keep the caller waiting
/// for ever.
fn attempt(stream: &dyn SampleStream, draw: u64, reading: &dyn Fn(usize)) -> Result<Attempt, String> {
    catch_unwind(AssertUnwindSafe(|| stream.attempt(draw, reading))).map_err(message)
}

/// What a panic said, in a line.
pub(crate) fn message(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    shortened(&text.unwrap_or_else(|| "no message".into()), 200)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use image::{Rgb, RgbImage};

    use super::*;
    use crate::dataset::tests::{Plain, training};
    use crate::{ImageError, Picture, Source, TrainingSet, Transform, ValidationSet};

    const DEADLINE: Duration = Duration::from_secs(60);

    fn wait_until(condition: impl Fn() -> bool) {
        let began = Instant::now();
        while !condition() {
            assert!(began.elapsed() < DEADLINE, "waited too long");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes a different time for each picture, counts, and holds back one picture until it is let go.
    #[derive(Default)]
    struct Slow {
        held: Option<usize>,
        let_go: AtomicBool,
        begun: AtomicUsize,
        at_once: AtomicUsize,
        panics: Option<usize>,
    }

    impl Source for Slow {
        fn len(&self) -> usize {
            97
        }

        fn name(&self, index: usize) -> String {
            format!("slow {index}")
        }

        fn load(&self, index: usize) -> Result<Picture, ImageError> {
            self.begun.fetch_add(1, Ordering::SeqCst);
            self.at_once.fetch_add(1, Ordering::SeqCst);
            assert_ne!(self.panics, Some(index), "picture {index} has teeth");
            std::thread::sleep(Duration::from_micros((index * 7919 % 13 * 100) as u64));
            if self.held == Some(index) {
                wait_until(|| self.let_go.load(Ordering::SeqCst));
            }
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            if index % 10 == 3 {
                return Err(crate::ImageProblem::Empty.named(self.name(index)));
            }
            Ok(RgbImage::from_fn(12, 8, |x, y| Rgb([index as u8, x as u8, y as u8])).into())
        }

        fn captions(&self, index: usize) -> Vec<String> {
            vec![self.name(index), format!("also called {index}")]
        }
    }

    fn slow_set(source: Slow, max_bad: usize) -> (Arc<Slow>, Arc<TrainingSet>) {
        let source = Arc::new(source);
        let transform = Transform::training(8, true);
        let set = TrainingSet::new(source.clone(), (0..97).collect(), transform, 3, max_bad);
        (source, Arc::new(set.unwrap()))
    }

    fn join(batches: Vec<Batch>) -> Batch {
        let mut joined = Batch::empty(batches[0].resolution);
        for batch in batches {
            joined.draws.extend(batch.draws);
            joined.pixels.extend(batch.pixels);
            joined.captions.extend(batch.captions);
        }
        joined
    }

    #[test]
    fn output_depends_on_neither_threads_nor_batches_nor_prefetch() {
        let run = |workers, prefetch, sizes: &[usize]| {
            let (_, set) = slow_set(Slow::default(), 50);
            let mut loader = Loader::start(set.clone(), 1000, None, workers, prefetch);
            let batches = sizes.iter().map(|n| loader.next_batch(*n).unwrap()).collect();
            assert_eq!(loader.next_draw(), 1120);
            (join(batches), set.take_warnings())
        };
        let expected = run(0, 0, &[120]);
        assert_eq!(expected.0.draws, (1000..1120).collect::<Vec<_>>());
        assert_eq!(expected.0.pixels.len(), 120 * 8 * 8 * 3);
        assert!(!expected.1.is_empty());
        for (workers, prefetch, sizes) in
            [(1, 1, &[60, 60][..]), (1, 32, &[7, 113]), (2, 5, &[40, 40, 40]), (7, 3, &[120]), (7, 64, &[1, 2, 3, 114])]
        {
            assert!(run(workers, prefetch, sizes) == expected, "{workers} threads, {prefetch} ahead");
        }
    }

    #[test]
    fn a_later_start_goes_on_where_the_stream_was_left() {
        let set = Arc::new(training(20, &[4, 7], 5));
        let whole = Loader::start(set.clone(), 0, Some(90), 2, 8).next_batch(90).unwrap();
        let mut first = Loader::start(set.clone(), 0, None, 2, 8);
        let before = first.next_batch(33).unwrap();
        let at = first.next_draw();
        drop(first);
        let after = Loader::start(set, at, None, 3, 8).next_batch(57).unwrap();
        assert_eq!(join(vec![before, after]), whole);
    }

    #[test]
    fn a_slow_sample_does_not_let_the_others_pile_up() {
        let (probe, set) = slow_set(Slow::default(), 50);
        let held = set.sample(5).unwrap().index;
        drop((probe, set));
        let (source, set) = slow_set(Slow { held: Some(held), ..Slow::default() }, 50);
        let prefetch = 10;
        let mut loader = Loader::start(set, 0, None, 4, prefetch);
        // Draws 0..5 and 6..10 are loaded, 5 is held back: nothing more may begin.
        wait_until(|| loader.waiting() == prefetch - 1);
        let begun = source.begun.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(loader.waiting(), prefetch - 1);
        assert_eq!(source.begun.load(Ordering::SeqCst), begun);
        // Five are taken, so five more may begin.
        assert_eq!(loader.next_batch(5).unwrap().draws, [0, 1, 2, 3, 4]);
        wait_until(|| loader.waiting() == prefetch - 1);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(loader.waiting(), prefetch - 1);
        source.let_go.store(true, Ordering::SeqCst);
        assert_eq!(loader.next_batch(20).unwrap().draws, (5..25).collect::<Vec<_>>());
        assert!(loader.wait_seconds() > 0.0);
    }

    #[test]
    fn a_stream_with_an_end_gives_the_rest_and_then_nothing() {
        for workers in [0, 3] {
            let set = Arc::new(training(20, &[], 0));
            let mut loader = Loader::start(set, 5, Some(10), workers, 4);
            assert_eq!(loader.next_batch(7).unwrap().len(), 7);
            assert_eq!(loader.next_batch(7).unwrap().draws, [12, 13, 14]);
            assert!(loader.next_batch(7).unwrap().is_empty());
        }
    }

    #[test]
    fn validation_loads_the_same_way() {
        let source = Arc::new(Plain { len: 50, bad: [20, 31].into() });
        let set = Arc::new(ValidationSet::new(source, (15..45).collect(), 8, 2).unwrap());
        let serial = set.batch(0..30).unwrap();
        assert_eq!(serial.len(), 28);
        let mut loader = Loader::start(set.clone(), 0, Some(30), 3, 8);
        let batches = (0..5).map(|_| loader.next_batch(6).unwrap()).collect();
        assert_eq!(join(batches), serial);
        assert_eq!(set.take_warnings().len(), 2);
    }

    // The threads run ahead of the limit; the error must still come at the same sample.
    #[test]
    fn too_many_bad_images_end_it_at_the_same_sample() {
        let run = |workers| {
            let (_, set) = slow_set(Slow::default(), 4);
            let mut loader = Loader::start(set.clone(), 0, None, workers, 40);
            let mut good = 0;
            loop {
                match loader.next_batch(1) {
                    Ok(_) => good += 1,
                    Err(error) => {
                        assert_eq!(loader.next_batch(1), Err(error.clone()));
                        return (good, error, set.take_warnings());
                    }
                }
            }
        };
        let expected = run(0);
        assert!(matches!(expected.1, DataError::TooManyBad { count: 5, .. }));
        assert_eq!(expected.2.len(), 5);
        for workers in [1, 2, 7] {
            assert_eq!(run(workers), expected);
        }
    }

    #[test]
    fn a_panic_becomes_an_error_at_its_sample() {
        let (_, probe) = slow_set(Slow::default(), 50);
        let panics = Some(probe.sample(6).unwrap().index);
        for workers in [0, 1, 3] {
            let (_, set) = slow_set(Slow { panics, ..Slow::default() }, 50);
            let mut loader = Loader::start(set, 0, None, workers, 20);
            assert_eq!(loader.next_batch(6).unwrap().len(), 6);
            let error = loader.next_batch(1).unwrap_err();
            assert!(
                matches!(&error, DataError::Panicked { draw: 6, message } if message.contains("has teeth")),
                "{error}"
            );
        }
    }

    #[test]
    fn the_threads_that_there_are_have_to_do() {
        let samples = |threads: usize| {
            let left = AtomicUsize::new(threads);
            let spawn = |name: String, work: Box<dyn FnOnce() + Send>| {
                let one_less = |left: usize| left.checked_sub(1);
                match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
                    Ok(_) => std::thread::Builder::new().name(name).spawn(work),
                    Err(_) => Err(io::Error::from(io::ErrorKind::WouldBlock)),
                }
            };
            let (_, set) = slow_set(Slow::default(), 50);
            let mut loader = Loader::start_by(spawn, set, 3, Some(20), 4, 8);
            let batch = loader.next_batch(20).unwrap();
            assert_eq!(loader.threads.len(), threads);
            (batch.draws, batch.pixels)
        };
        let all = samples(4);
        assert_eq!(all.0.len(), 20);
        assert!(samples(0) == all && samples(1) == all);
    }

    #[test]
    fn dropping_ends_the_threads() {
        for taken in [0, 1, 30] {
            let (source, set) = slow_set(Slow::default(), 50);
            let mut loader = Loader::start(set, 0, None, 5, 16);
            loader.next_batch(taken).unwrap();
            drop(loader);
            // Only the test itself still holds the source: every thread has let go of it.
            assert_eq!(source.at_once.load(Ordering::SeqCst), 0);
            assert_eq!(Arc::strong_count(&source), 1);
        }
    }

    /// A loader that waits for the sixth draw's image, and what lets it go on.
    fn held_loader(workers: usize) -> (Arc<Slow>, Loader, String) {
        let (_, probe) = slow_set(Slow::default(), 50);
        let held = probe.sample(5).unwrap().index;
        let (source, set) = slow_set(Slow { held: Some(held), ..Slow::default() }, 50);
        (source, Loader::start(set, 0, None, workers, 8), format!("slow {held}"))
    }

    #[test]
    fn waiting_can_be_interrupted_and_goes_on_where_it_was() {
        let expected = {
            let (_, set) = slow_set(Slow::default(), 50);
            Loader::start(set, 0, None, 1, 8).next_batch(12).unwrap()
        };
        for workers in [0, 1, 3] {
            let (source, mut loader, held) = held_loader(workers);
            for _ in 0..2 {
                let began = Instant::now();
                let mut awaited = None;
                let result = loader.next_batch_while(8, &mut |file| {
                    awaited = file.cloned();
                    false
                });
                assert_eq!(result, Err(DataError::Interrupted));
                assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
                let awaited = awaited.unwrap();
                assert_eq!(awaited.name, held);
                assert!(awaited.since <= Instant::now());
                assert_eq!(loader.next_draw(), 0, "no batch was handed out");
            }
            source.let_go.store(true, Ordering::SeqCst);
            let first = loader.next_batch_while(8, &mut |_| true).unwrap();
            assert_eq!(loader.next_draw(), 8);
            assert_eq!(join(vec![first, loader.next_batch(4).unwrap()]), expected, "{workers} workers");
        }
    }

    #[test]
    fn a_stop_from_another_thread_ends_the_waiting() {
        let (source, mut loader, _) = held_loader(2);
        let stop = Arc::new(AtomicBool::new(false));
        let asks = std::thread::spawn({
            let stop = stop.clone();
            move || {
                std::thread::sleep(Duration::from_millis(300));
                stop.store(true, Ordering::SeqCst);
            }
        });
        let began = Instant::now();
        let result = loader.next_batch_while(8, &mut |_| !stop.load(Ordering::SeqCst));
        assert_eq!(result, Err(DataError::Interrupted));
        assert!((0.25..1.5).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
        assert!(loader.wait_seconds() > 0.25);
        asks.join().unwrap();
        source.let_go.store(true, Ordering::SeqCst);
    }

    // A network disk that does not answer any more.
    #[test]
    fn dropping_does_not_wait_for_a_thread_that_is_stuck() {
        for workers in [0, 1, 3] {
            let (source, mut loader, _) = held_loader(workers);
            assert!(loader.next_batch_while(8, &mut |_| false).is_err());
            let began = Instant::now();
            drop(loader);
            assert!(began.elapsed() < END + Duration::from_secs(2), "{:?}", began.elapsed());
            assert_eq!(source.at_once.load(Ordering::SeqCst), 1);
            // It ends by itself once it can.
            source.let_go.store(true, Ordering::SeqCst);
            wait_until(|| Arc::strong_count(&source) == 1);
        }
    }

    #[test]
    fn without_workers_nothing_is_loaded_ahead() {
        let (source, set) = slow_set(Slow::default(), 50);
        let mut loader = Loader::start(set, 0, None, 0, 8);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(source.begun.load(Ordering::SeqCst), 0);
        loader.next_batch(3).unwrap();
        let begun = source.begun.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!((source.begun.load(Ordering::SeqCst), loader.waiting()), (begun, 0));
    }
}
