use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use image::{Rgb, RgbImage};

use super::*;
use crate::dataset::tests::{Plain, training};
use crate::{ImageError, Source, SourceImage, TrainingSet, Transform, ValidationSet};

const DEADLINE: Duration = Duration::from_secs(60);

fn wait_until(condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "waited too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Takes a different time for each image, counts, and holds back one image until it is let go.
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

    fn load(&self, index: usize) -> Result<SourceImage, ImageError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.at_once.fetch_add(1, Ordering::SeqCst);
        assert_ne!(self.panics, Some(index), "image {index} has teeth");
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
        assert!(matches!(&error, DataError::Panicked { draw: 6, message } if message.contains("has teeth")), "{error}");
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
