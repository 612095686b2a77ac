//! Images of shapes with captions, drawn by the program: for a first run, for tests, and to judge a model by eye.

mod draw;
mod scene;

pub use self::scene::Attribute;
use self::scene::{ALL, Domain, PLAIN, Scene};
use super::interface::{FromSettings, Source, SourceImage, SourceSettings};
use crate::error::{DataError, ImageError, SettingError};
use crate::key::{Purpose, SampleKey};

/// The smallest size at which small shapes can be told apart, in pixels.
const MIN_SIZE: u32 = 16;
/// The largest size, in pixels.
const MAX_SIZE: u32 = 4096;

/// Any number of images of shapes, each with a caption such as "a large red circle at the top left and a small blue
/// star in the centre on a green striped background".
///
/// The caption and the shapes depend on (seed, index) alone, the pixels on (seed, index, size).
#[derive(Clone, Debug)]
pub struct ShapesSource {
    domain: &'static Domain,
    seed: u64,
    len: usize,
    size: u32,
}

impl ShapesSource {
    /// `len` images of `size * size` pixels.
    ///
    /// # Errors
    /// `len` is 0, or `size` is not in 16..=4096.
    pub fn new(seed: u64, len: usize, size: u32) -> Result<Self, DataError> {
        Self::of(&ALL, seed, len, size)
    }

    fn of(domain: &'static Domain, seed: u64, len: usize, size: u32) -> Result<Self, DataError> {
        if len == 0 {
            return Err(DataError::EmptySet);
        }
        if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
            return Err(DataError::ShapesSize { size, least: MIN_SIZE, limit: MAX_SIZE });
        }
        Ok(Self { domain, seed, len, size })
    }

    /// The caption of the image at `index`.
    fn caption(&self, index: usize) -> String {
        self.scene(index).caption()
    }

    /// A caption that differs from that of the image at `index` in one attribute alone, so that it is wrong. Each
    /// `draw` gives another one.
    pub fn changed_caption(&self, index: usize, attribute: Attribute, draw: u64) -> String {
        let mut rng = SampleKey { seed: self.seed, draw: index as u64 }.rng_at(Purpose::Shape, draw);
        self.scene(index).changed_caption(self.domain, attribute, &mut rng)
    }

    fn scene(&self, index: usize) -> Scene {
        Scene::compose(self.domain, self.seed, index as u64)
    }
}

impl Source for ShapesSource {
    fn len(&self) -> usize {
        self.len
    }

    fn name(&self, index: usize) -> String {
        // Saved runs hold a hash of these names, so they keep the word.
        let kind = if std::ptr::eq(self.domain, &PLAIN) { "plain shapes" } else { "shapes" };
        format!("{kind} image {index} of seed {}", self.seed)
    }

    fn load(&self, index: usize) -> Result<SourceImage, ImageError> {
        Ok(draw::draw(&self.scene(index), self.size).into())
    }

    fn captions(&self, index: usize) -> Vec<String> {
        vec![self.caption(index)]
    }
}

impl FromSettings for ShapesSource {
    fn check(settings: &SourceSettings) -> Result<(), SettingError> {
        check_path("shapes", settings)
    }

    fn from_settings(settings: &SourceSettings) -> Result<Self, DataError> {
        Self::new(settings.seed, settings.images, settings.resolution)
    }
}

/// A narrower domain than that of [`ShapesSource`], which a model learns faster: one or two larger objects of four
/// forms and four colours on plain white, grey or black.
#[derive(Clone, Debug)]
pub struct PlainShapesSource(ShapesSource);

impl Source for PlainShapesSource {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn name(&self, index: usize) -> String {
        self.0.name(index)
    }

    fn load(&self, index: usize) -> Result<SourceImage, ImageError> {
        self.0.load(index)
    }

    fn captions(&self, index: usize) -> Vec<String> {
        self.0.captions(index)
    }
}

impl FromSettings for PlainShapesSource {
    fn check(settings: &SourceSettings) -> Result<(), SettingError> {
        check_path("plain-shapes", settings)
    }

    fn from_settings(settings: &SourceSettings) -> Result<Self, DataError> {
        ShapesSource::of(&PLAIN, settings.seed, settings.images, settings.resolution).map(Self)
    }
}

fn check_path(source: &str, settings: &SourceSettings) -> Result<(), SettingError> {
    let Some(path) = settings.path else { return Ok(()) };
    let path = path.display();
    let message = format!("is {path}, but data.source = \"{source}\" reads no files; did you mean \"folder\"?");
    Err(SettingError { key: "data.path", message })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use strum::VariantArray;

    use super::*;
    use crate::{Loader, TrainingSet, Transform, ValidationSet};

    #[test]
    fn an_image_follows_from_seed_index_and_size() {
        let source = ShapesSource::new(1, 50, 32).unwrap();
        let again = ShapesSource::new(1, 9, 32).unwrap();
        let other = ShapesSource::new(2, 50, 32).unwrap();
        let mut differing = 0;
        for index in (0..9).rev() {
            let image = source.load(index).unwrap();
            assert_eq!(image.pixels, again.load(index).unwrap().pixels);
            assert_eq!(image.pixels.dimensions(), (32, 32));
            assert_eq!(source.captions(index), [again.caption(index)]);
            assert_eq!(source.name(index), format!("shapes image {index} of seed 1"));
            differing += usize::from(image.pixels != other.load(index).unwrap().pixels);
        }
        assert_eq!(differing, 9);
    }

    #[test]
    fn there_are_tens_of_thousands_of_captions_and_images() {
        let source = ShapesSource::new(0, 60_000, 16).unwrap();
        let captions: HashSet<String> = (0..60_000).map(|index| source.caption(index)).collect();
        assert!(captions.len() > 50_000, "{}", captions.len());
        let images: HashSet<Vec<u8>> = (0..2000).map(|index| source.load(index).unwrap().pixels.into_raw()).collect();
        assert_eq!(images.len(), 2000);
    }

    #[test]
    fn the_size_changes_the_detail_and_not_the_image() {
        let small = ShapesSource::new(3, 20, 64).unwrap();
        let large = ShapesSource::new(3, 20, 256).unwrap();
        for index in 0..20 {
            let drawn = small.load(index).unwrap();
            let scaled = large.load(index).unwrap();
            assert_eq!(small.caption(index), large.caption(index));
            let scaled = image::imageops::resize(&scaled.pixels, 64, 64, image::imageops::FilterType::Triangle);
            let error: f64 =
                (drawn.pixels.as_raw().iter().zip(scaled.as_raw())).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
            let mean = error / (64.0 * 64.0 * 3.0);
            assert!(mean < 3.0, "image {index} differs by {mean} on average");
        }
    }

    // Saved runs and the models trained on shapes rely on it.
    #[test]
    fn images_and_captions_never_change() {
        let source = ShapesSource::new(0, 3, 64).unwrap();
        assert_eq!(
            [0, 1, 2].map(|index| source.caption(index)),
            [
                "a large green square at the top right and a small teal pentagon at the bottom on an orange dotted background",
                "a medium green triangle in the centre, a medium red square at the top right and a small purple circle on the right on a teal dotted background",
                "a small orange moon at the bottom, a large green moon on the right and a medium yellow ring at the bottom left on a purple wavy background"
            ]
        );
        let plain = PlainShapesSource(ShapesSource::of(&PLAIN, 0, 200, 32).unwrap());
        for index in 0..200 {
            let [caption] = plain.captions(index).try_into().unwrap();
            assert!(caption.ends_with(" plain background") && !caption.contains("small"), "{caption}");
        }
    }

    #[test]
    fn a_changed_caption_differs_in_its_attribute_alone() {
        let source = ShapesSource::new(4, 300, 16).unwrap();
        for index in 0..300 {
            let own = source.caption(index);
            let words: Vec<&str> = own.split(' ').collect();
            for attribute in Attribute::VARIANTS {
                let other = source.changed_caption(index, *attribute, 3);
                assert_ne!(own, other, "{attribute:?}");
                assert_eq!(other, source.changed_caption(index, *attribute, 3));
                let others: Vec<&str> = other.split(' ').collect();
                match attribute {
                    Attribute::Number => assert_ne!(words.len(), others.len(), "{own}: {other}"),
                    // A place has one to four words, and an article follows its noun.
                    Attribute::Position | Attribute::Background => {}
                    _ => {
                        let differing = words.iter().zip(&others).filter(|(a, b)| a != b).count();
                        assert_eq!((words.len(), differing), (others.len(), 1), "{own}: {other}");
                    }
                }
            }
        }
        let draws: HashSet<String> = (0..50).map(|draw| source.changed_caption(0, Attribute::Form, draw)).collect();
        assert!(draws.len() > 5, "{draws:?}");
    }

    #[test]
    fn captions_reach_the_batch() {
        let source = Arc::new(ShapesSource::new(5, 40, 16).unwrap());
        let set = TrainingSet::new(source.clone(), (3..40).collect(), Transform::training(16, false), 1, 0).unwrap();
        assert_eq!(set.first_without_caption(), None);
        let expected: Vec<_> = (0..50).map(|draw| Some(source.caption(set.sample(draw).unwrap().index))).collect();
        let mut loader = Loader::start(Arc::new(set), 0, None, 2, 8);
        assert_eq!(loader.next_batch(50).unwrap().captions, expected);
        let set = ValidationSet::new(source.clone(), vec![7, 9], 16, 0).unwrap();
        assert_eq!(set.first_without_caption(), None);
        assert_eq!(set.batch(0..2).unwrap().captions, [7, 9].map(|index| Some(source.caption(index))));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(ShapesSource::new(0, 0, 64).is_err());
        assert!(ShapesSource::new(0, 1, 15).is_err());
        assert!(ShapesSource::new(0, 1, 5000).is_err());
    }

    // Far above what it takes, so that only a change of kind fails on a busy machine.
    #[test]
    fn drawing_is_fast() {
        let source = ShapesSource::new(0, 200, 64).unwrap();
        let began = Instant::now();
        for index in 0..200 {
            source.load(index).unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{:?} for 200", began.elapsed());
    }
}
