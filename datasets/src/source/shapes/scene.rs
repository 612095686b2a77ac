//! What an image of shapes shows, and its caption.

use std::fmt;

use rand::RngExt;
use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use strum::{IntoStaticStr, VariantArray};

use crate::key::{Purpose, SampleKey};

/// A colour as red, green, blue in 0..=1, sRGB.
pub type Rgb = [f32; 3];

/// A colour with its name.
type NamedColour = (&'static str, Rgb);

/// Colours by name. A random index chooses from the list, so keep its order.
const COLOURS: [NamedColour; 12] = [
    ("red", [0.84, 0.17, 0.18]),
    ("orange", [0.95, 0.53, 0.14]),
    ("yellow", [0.98, 0.82, 0.22]),
    ("green", [0.22, 0.62, 0.29]),
    ("teal", [0.10, 0.60, 0.62]),
    ("blue", [0.17, 0.36, 0.83]),
    ("purple", [0.50, 0.25, 0.68]),
    ("pink", [0.95, 0.50, 0.70]),
    ("brown", [0.50, 0.32, 0.19]),
    ("black", [0.11, 0.11, 0.13]),
    ("white", [0.97, 0.97, 0.97]),
    ("grey", [0.55, 0.56, 0.58]),
];

/// The outline of an object. Captions use the name in lower case. A random index chooses from the list, so keep its
/// order.
#[derive(Clone, Copy, Debug, IntoStaticStr, PartialEq, Eq, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum Form {
    Circle,
    Square,
    Triangle,
    Diamond,
    Pentagon,
    Hexagon,
    Star,
    Cross,
    Ring,
    Heart,
    Moon,
}

/// What covers the background. Captions use the name in lower case. A random index chooses from the list, so keep its
/// order.
#[derive(Clone, Copy, Debug, IntoStaticStr, PartialEq, Eq, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum Pattern {
    Plain,
    Gradient,
    Striped,
    Checkered,
    Dotted,
    Wavy,
    Tiled,
}

/// The name of a size and its smallest and largest radius, as a fraction of the image's side.
type Size = (&'static str, f32, f32);

const SIZES: [Size; 3] = [("small", 0.085, 0.105), ("medium", 0.135, 0.165), ("large", 0.205, 0.255)];

/// The name of a place and its column and row in thirds of the image.
const PLACES: [(&str, f32, f32); 9] = [
    ("at the top left", 0.0, 0.0),
    ("at the top", 1.0, 0.0),
    ("at the top right", 2.0, 0.0),
    ("on the left", 0.0, 1.0),
    ("in the centre", 1.0, 1.0),
    ("on the right", 2.0, 1.0),
    ("at the bottom left", 0.0, 2.0),
    ("at the bottom", 1.0, 2.0),
    ("at the bottom right", 2.0, 2.0),
];

/// The smallest distance between an object and an edge or another object, as a fraction of the image's side.
const GAP: f32 = 0.025;

/// One object. Lengths are fractions of the image's side, from its top left corner.
#[derive(Clone, Debug)]
pub struct Object {
    pub form: Form,
    pub colour: Rgb,
    /// The centre.
    pub x: f32,
    pub y: f32,
    /// The radius of the circle around the outline.
    pub radius: f32,
    /// Radians, clockwise.
    pub turn: f32,
    words: ObjectWords,
}

/// What a caption says of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ObjectWords {
    size: &'static str,
    colour: &'static str,
    form: &'static str,
    place: &'static str,
}

impl fmt::Display for ObjectWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {} {} {} {}", self.size, self.colour, self.form, self.place)
    }
}

/// What a caption says of the background.
#[derive(Clone, Copy, Debug)]
struct BackgroundWords {
    colour: &'static str,
    pattern: &'static str,
}

impl fmt::Display for BackgroundWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let article = if self.colour == "orange" { "an" } else { "a" };
        write!(f, "{article} {} {} background", self.colour, self.pattern)
    }
}

/// The background.
#[derive(Clone, Debug)]
pub struct Background {
    pub pattern: Pattern,
    /// The main colour, and the colour of the pattern.
    pub colours: [Rgb; 2],
    /// How often the pattern repeats along a side of the image.
    pub repeats: f32,
    /// Radians.
    pub turn: f32,
    /// Where the pattern starts, in repeats.
    pub phase: f32,
    words: BackgroundWords,
}

/// A background and one to three objects that do not overlap.
#[derive(Clone, Debug)]
pub struct Scene {
    pub background: Background,
    pub objects: Vec<Object>,
}

/// What scenes are made of.
#[derive(Debug)]
pub struct Domain {
    /// Colours of objects.
    colours: &'static [NamedColour],
    /// Colours of backgrounds.
    backgrounds: &'static [NamedColour],
    patterns: &'static [Pattern],
    forms: &'static [Form],
    sizes: &'static [Size],
    /// Most objects in an image.
    objects: usize,
}

/// Everything that there is.
pub static ALL: Domain = Domain {
    colours: &COLOURS,
    backgrounds: &COLOURS,
    patterns: Pattern::VARIANTS,
    forms: Form::VARIANTS,
    sizes: &SIZES,
    objects: 3,
};

/// One or two objects of four forms and four colours, none of them small, on plain white, grey or black.
pub static PLAIN: Domain = Domain {
    colours: &[COLOURS[0], COLOURS[2], COLOURS[3], COLOURS[5]],
    backgrounds: &[COLOURS[9], COLOURS[10], COLOURS[11]],
    patterns: &[Pattern::Plain],
    forms: &[Form::Circle, Form::Square, Form::Triangle, Form::Star],
    sizes: &[SIZES[1], SIZES[2]],
    objects: 2,
};

/// What of a caption can be changed so that it no longer fits its image.
#[derive(Clone, Copy, Debug, IntoStaticStr, PartialEq, Eq, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum Attribute {
    /// The form of an object.
    Form,
    /// The colour of an object.
    Colour,
    /// The place of an object.
    Position,
    /// The size of an object.
    Size,
    /// The number of objects: one is left out or added.
    Number,
    /// The colour or the pattern of the background.
    Background,
}

impl Scene {
    /// The scene at `index`, which depends on the domain, the seed and the index alone.
    pub fn compose(domain: &Domain, seed: u64, index: u64) -> Self {
        let mut rng = SampleKey { seed, draw: index }.rng(Purpose::Shape);
        let background = compose_background(domain, &mut rng);
        let wanted = rng.random_range(1..=domain.objects);
        let mut objects: Vec<Object> = Vec::new();
        // There is nearly always space for all objects; otherwise the caption names those that are there.
        for _ in 0..60 {
            if objects.len() == wanted {
                break;
            }
            let object = compose_object(domain, &mut rng, &background);
            let free = objects.iter().all(|other| {
                let apart = (object.x - other.x).hypot(object.y - other.y);
                apart > object.radius + other.radius + GAP && object.words != other.words
            });
            if free {
                objects.push(object);
            }
        }
        Self { background, objects }
    }

    /// The scene in words.
    pub fn caption(&self) -> String {
        let objects: Vec<ObjectWords> = self.objects.iter().map(|object| object.words).collect();
        in_words(&objects, self.background.words)
    }

    /// A caption that differs in one attribute from the scene's own; `rng` draws of which object and to what.
    pub fn changed_caption(&self, domain: &Domain, attribute: Attribute, rng: &mut ChaCha8Rng) -> String {
        let mut objects: Vec<ObjectWords> = self.objects.iter().map(|object| object.words).collect();
        let mut background = self.background.words;
        let at = rng.random_range(0..objects.len());
        let object = &mut objects[at];
        match attribute {
            Attribute::Form => object.form = pick_other(rng, domain.forms.iter().map(Into::into), object.form),
            Attribute::Colour => {
                object.colour = pick_other(rng, domain.colours.iter().map(|colour| colour.0), object.colour);
            }
            Attribute::Position => {
                object.place = pick_other(rng, PLACES.iter().map(|place| place.0), object.place);
            }
            Attribute::Size => object.size = pick_other(rng, domain.sizes.iter().map(|size| size.0), object.size),
            Attribute::Number => {
                let is_full = objects.len() == domain.objects;
                if objects.len() > 1 && (is_full || rng.random_bool(0.5)) {
                    objects.remove(at);
                } else {
                    objects.insert(at, compose_object(domain, rng, &self.background).words);
                }
            }
            Attribute::Background if domain.patterns.len() > 1 && rng.random_bool(0.5) => {
                background.pattern = pick_other(rng, domain.patterns.iter().map(Into::into), background.pattern);
            }
            Attribute::Background => {
                let colours = domain.backgrounds.iter().map(|colour| colour.0);
                background.colour = pick_other(rng, colours, background.colour);
            }
        }
        in_words(&objects, background)
    }
}

fn in_words(objects: &[ObjectWords], background: BackgroundWords) -> String {
    let objects = objects.iter().map(ToString::to_string).collect::<Vec<_>>();
    let objects = match objects.as_slice() {
        [rest @ .., last] if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        few => few.concat(),
    };
    format!("{objects} on {background}")
}

fn compose_background(domain: &Domain, rng: &mut ChaCha8Rng) -> Background {
    let (name, colour) = pick(rng, domain.backgrounds);
    let pattern = pick(rng, domain.patterns);
    // A background is paler than an object of the same colour, so that objects stand out. White and black are not made
    // paler.
    let (first, second) = match name {
        "white" => (colour, [0.86, 0.87, 0.89]),
        "black" => (colour, [0.24, 0.24, 0.28]),
        _ => (mix(colour, [1.0; 3], 0.25), mix(colour, [1.0; 3], 0.58)),
    };
    let mut colours = [first, second];
    // A plain background shows the first colour only, which is nearer to its name.
    if pattern != Pattern::Plain && rng.random_bool(0.5) {
        colours.reverse();
    }
    Background {
        pattern,
        colours,
        repeats: rng.random_range(4.0..9.0),
        turn: rng.random_range(0.0..std::f32::consts::TAU),
        phase: rng.random_range(0.0..1.0),
        words: BackgroundWords { colour: name, pattern: pattern.into() },
    }
}

fn compose_object(domain: &Domain, rng: &mut ChaCha8Rng, background: &Background) -> Object {
    let visible: Vec<NamedColour> = (domain.colours.iter().copied())
        .filter(|(_, colour)| background.colours.iter().all(|other| distance(*colour, *other) > 0.42))
        .collect();
    let (colour_name, colour) = pick(rng, &visible);
    let form = pick(rng, domain.forms);
    let (size_name, least, greatest) = pick(rng, domain.sizes);
    let (place_name, column, row) = pick(rng, &PLACES);
    let radius = rng.random_range(least..greatest);
    let mut coordinate = |third: f32| {
        let jittered = (third + 0.5) / 3.0 + rng.random_range(-0.04..0.04);
        jittered.clamp(radius + GAP, 1.0 - radius - GAP)
    };
    let (x, y) = (coordinate(column), coordinate(row));
    Object {
        form,
        colour: colour.map(|channel| (channel + rng.random_range(-0.04..0.04)).clamp(0.0, 1.0)),
        x,
        y,
        radius,
        turn: rng.random_range(-0.2..0.2),
        words: ObjectWords { size: size_name, colour: colour_name, form: form.into(), place: place_name },
    }
}

/// Draws another word of a list than `not`.
fn pick_other(rng: &mut ChaCha8Rng, words: impl Iterator<Item = &'static str>, not: &'static str) -> &'static str {
    let others: Vec<&'static str> = words.filter(|word| *word != not).collect();
    others.choose(rng).copied().unwrap_or(not)
}

/// Draws one element of a list that is not empty.
fn pick<T: Copy>(rng: &mut ChaCha8Rng, list: &[T]) -> T {
    *list.choose(rng).unwrap_or(&list[0])
}

/// Mixes two colours: `share` is that of the second one.
pub fn mix(from: Rgb, to: Rgb, share: f32) -> Rgb {
    std::array::from_fn(|channel| from[channel] + (to[channel] - from[channel]) * share)
}

fn distance(a: Rgb, b: Rgb) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn captions_read_as_english() {
        let captions: Vec<String> = (0..3000).map(|index| Scene::compose(&ALL, 0, index).caption()).collect();
        for caption in &captions {
            assert!(caption.starts_with("a "), "{caption}");
            assert!(caption.ends_with(" background"), "{caption}");
            assert!(!caption.contains(" a orange") && !caption.contains("  "), "{caption}");
        }
        for word in (COLOURS.iter().map(|(name, _)| *name))
            .chain(Form::VARIANTS.iter().map(Into::into))
            .chain(Pattern::VARIANTS.iter().map(Into::into))
            .chain(SIZES.iter().map(|(name, ..)| *name))
            .chain(PLACES.iter().map(|(name, ..)| *name))
        {
            assert!(captions.iter().any(|caption| caption.contains(word)), "never {word}");
        }
    }

    #[test]
    fn one_to_three_objects_stay_apart_inside_and_visible() {
        let mut counts = [0; 4];
        for index in 0..3000 {
            let scene = Scene::compose(&ALL, 5, index);
            counts[scene.objects.len()] += 1;
            for (at, object) in scene.objects.iter().enumerate() {
                for place in [object.x, object.y] {
                    assert!(place >= object.radius && place <= 1.0 - object.radius);
                }
                for other in &scene.objects[..at] {
                    let apart = (object.x - other.x).hypot(object.y - other.y);
                    assert!(apart > object.radius + other.radius);
                }
                for colour in scene.background.colours {
                    assert!(distance(object.colour, colour) > 0.3, "{}", scene.caption());
                }
            }
        }
        assert_eq!(counts[0], 0);
        assert!(counts[1..].iter().all(|count| *count > 800), "{counts:?}");
    }

    #[test]
    fn every_background_leaves_a_choice_of_colours() {
        let mut rng = SampleKey { seed: 0, draw: 0 }.rng(Purpose::Shape);
        for _ in 0..500 {
            let background = compose_background(&ALL, &mut rng);
            let colours: HashSet<String> =
                (0..300).map(|_| compose_object(&ALL, &mut rng, &background).words.colour.to_owned()).collect();
            assert!(colours.len() >= 5, "{} has only {colours:?}", background.words);
        }
    }
}
