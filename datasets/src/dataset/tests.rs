use image::{Rgb, RgbImage};

use super::*;
use crate::source::SourceImage;

/// Images of one colour, which is the index. Those in `bad` are broken if their index is even, tiny if it is odd.
pub(crate) struct Plain {
    pub len: usize,
    pub bad: HashSet<usize>,
}

impl Source for Plain {
    fn len(&self) -> usize {
        self.len
    }

    fn name(&self, index: usize) -> String {
        format!("plain {index}")
    }

    fn load(&self, index: usize) -> Result<SourceImage, ImageError> {
        let side = match (self.bad.contains(&index), index % 2) {
            (true, 0) => {
                return Err(ImageProblem::Broken("test".into()).named(self.name(index)));
            }
            (true, _) => 1,
            (false, _) => 8,
        };
        Ok(RgbImage::from_pixel(side, side, Rgb([index as u8; 3])).into())
    }

    fn captions(&self, index: usize) -> Vec<String> {
        vec![format!("number {index}")]
    }
}

pub(crate) fn training(len: usize, bad: &[usize], max_bad: usize) -> TrainingSet {
    let bad = bad.iter().copied().collect();
    let source = Arc::new(Plain { len, bad });
    TrainingSet::new(source, (0..len).collect(), Transform::training(8, true), 7, max_bad).unwrap()
}

#[test]
fn a_sample_is_its_image() {
    let source = Arc::new(Plain { len: 100, bad: HashSet::new() });
    let indices = vec![90, 3, 57];
    let set = TrainingSet::new(source, indices.clone(), Transform::training(8, true), 7, 0).unwrap();
    let mut seen: Vec<usize> = (0..3).map(|draw| set.sample(draw).unwrap().index).collect();
    for draw in 0..20 {
        let sample = set.sample(draw).unwrap();
        assert_eq!(sample.draw, draw);
        assert_eq!(sample.pixels, [sample.index as u8; 8 * 8 * 3]);
        assert_eq!(sample.caption, Some(format!("number {}", sample.index)));
    }
    seen.sort_unstable();
    assert_eq!(seen, [3, 57, 90]);
    assert_eq!((set.epoch(2), set.epoch(3)), (0, 1));
}

const FIRST_WORDINGS: [&str; 6] = ["4.0", "4.2", "4.3", "4.3", "4.0", "4.2"];

/// Images with as many captions as their index.
struct Told;

impl Source for Told {
    fn len(&self) -> usize {
        5
    }

    fn name(&self, index: usize) -> String {
        format!("told {index}")
    }

    fn load(&self, _: usize) -> Result<SourceImage, ImageError> {
        Ok(RgbImage::new(8, 8).into())
    }

    fn captions(&self, index: usize) -> Vec<String> {
        (0..index).map(|wording| format!("{index}.{wording}")).collect()
    }
}

#[test]
fn one_of_several_captions_is_drawn_with_the_sample() {
    let set = |seed, indices| TrainingSet::new(Arc::new(Told), indices, Transform::training(8, true), seed, 0).unwrap();
    let drawn = |seed| -> Vec<Option<String>> {
        let set = set(seed, vec![4]);
        (0..400).map(|draw| set.sample(draw).unwrap().caption).collect()
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    for wording in 0..4 {
        let times = drawn(1).iter().filter(|caption| **caption == Some(format!("4.{wording}"))).count();
        assert!((60..140).contains(&times), "wording {wording} came {times} times in 400");
    }
    // A resumed run must see what the interrupted one would have seen.
    let first: Vec<String> = drawn(1).into_iter().take(6).flatten().collect();
    assert_eq!(first, FIRST_WORDINGS);

    let one = set(1, vec![1]);
    assert!((0..9).all(|draw| one.sample(draw).unwrap().caption.as_deref() == Some("1.0")));
    assert_eq!(set(1, vec![0]).sample(0).unwrap().caption, None);
    let name = |error: Option<ImageError>| error.map(|error| error.name);
    assert_eq!(name(set(1, vec![3, 1, 0, 4]).first_without_caption()).as_deref(), Some("told 0"));
    assert_eq!(set(1, vec![3, 1, 4]).first_without_caption(), None);
    let validation = |indices| ValidationSet::new(Arc::new(Told), indices, 8, 0).unwrap();
    assert_eq!(name(validation(vec![4, 4, 0]).first_without_caption()).as_deref(), Some("told 0"));
    assert_eq!(validation(vec![4]).batch(0..1), validation(vec![4]).batch(0..1));
}

#[test]
fn bad_images_are_replaced_the_same_way_in_any_order() {
    let bad = [0, 1, 4, 5, 9];
    let good = training(20, &[], 5);
    let straight = training(20, &bad, 5);
    let samples: Vec<Sample> = (0..60).map(|draw| straight.sample(draw).unwrap()).collect();
    let backwards = training(20, &bad, 5);
    for draw in (0..60).rev() {
        assert_eq!(backwards.sample(draw).unwrap(), samples[draw as usize]);
    }
    for sample in &samples {
        assert!(!bad.contains(&sample.index));
        let undisturbed = good.sample(sample.draw).unwrap();
        if !bad.contains(&undisturbed.index) {
            assert_eq!(*sample, undisturbed);
        }
    }
    // The substitutes are not always the same image.
    let substitutes: HashSet<usize> = (samples.iter())
        .filter(|sample| bad.contains(&good.sample(sample.draw).unwrap().index))
        .map(|sample| sample.index)
        .collect();
    assert!(substitutes.len() > 3, "{substitutes:?}");
}

#[test]
fn each_bad_image_is_named_once() {
    let set = training(20, &[2, 3, 11], 3);
    for draw in 0..60 {
        set.sample(draw).unwrap();
    }
    let warnings = set.take_warnings();
    let mut names: Vec<&str> = warnings.iter().map(|warning| warning.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["plain 11", "plain 2", "plain 3"]);
    for draw in 60..100 {
        set.sample(draw).unwrap();
    }
    assert!(set.take_warnings().is_empty());
}

#[test]
fn more_bad_images_than_allowed_end_it() {
    let set = training(20, &[2, 3, 11], 2);
    let error = (0..20).find_map(|draw| set.sample(draw).err()).unwrap();
    let DataError::TooManyBad { count: 3, limit: 2, last } = &error else {
        panic!("{error}");
    };
    assert!(error.to_string().contains(&last.name), "{error}");
    assert_eq!(set.take_warnings().len(), 3);
}

#[test]
fn nothing_usable_is_an_error_and_not_an_endless_search() {
    let all: Vec<usize> = (0..5).collect();
    let error = training(5, &all, 100).sample(0).unwrap_err();
    assert!(matches!(error, DataError::NoneUsable { len: 5, .. }), "{error}");
    let error = training(1, &[0], 1).sample(3).unwrap_err();
    assert!(matches!(error, DataError::NoneUsable { len: 1, .. }), "{error}");
}

#[test]
fn impossible_sets_are_refused() {
    let source = || -> Arc<dyn Source> { Arc::new(Plain { len: 3, bad: HashSet::new() }) };
    let transform = Transform::training(8, true);
    let error = TrainingSet::new(source(), vec![], transform, 0, 0).err();
    assert_eq!(error, Some(DataError::EmptySet));
    let error = TrainingSet::new(source(), vec![0, 3], transform, 0, 0).err();
    assert_eq!(error, Some(DataError::OutOfRange { index: 3, len: 3 }));
    let error = TrainingSet::new(source(), vec![0], Transform::training(0, true), 0, 0).err();
    assert!(matches!(error, Some(DataError::Resolution { .. })));
    assert!(ValidationSet::new(source(), vec![7], 8, 0).is_err());
    assert!(ValidationSet::new(source(), vec![], 8, 0).unwrap().batch(0..4).unwrap().is_empty());
}

#[test]
fn validation_leaves_bad_images_out_and_names_them() {
    let source = Arc::new(Plain { len: 50, bad: [20, 31].into() });
    let set = ValidationSet::new(source, vec![10, 20, 30, 31, 40], 8, 2).unwrap();
    let batch = set.batch(0..99).unwrap();
    assert_eq!(batch.draws, [0, 2, 4]);
    assert_eq!(batch.pixels.len(), 3 * 8 * 8 * 3);
    assert_eq!(batch.captions[1].as_deref(), Some("number 30"));
    assert_eq!(set.batch(2..3).unwrap().draws, [2]);
    assert_eq!(set.take_warnings().len(), 2);
    set.batch(0..5).unwrap();
    assert!(set.take_warnings().is_empty());
}
