//! Draws a scene with smooth edges.
//!
//! Every shape is a signed distance function, negative inside. The distance smooths an edge over the width of a pixel:
//! this looks like supersampling, with one evaluation per pixel (after Inigo Quilez, "2D distance functions").

use std::f32::consts::{PI, TAU};

use image::RgbImage;

use super::scene::{Background, Form, Object, Pattern, Rgb, Scene, mix};

type Point = [f32; 2];

/// Draws the scene at `size * size` pixels.
pub fn draw(scene: &Scene, size: u32) -> RgbImage {
    let side = size as usize;
    let pixel = 1.0 / size as f32;
    let mut canvas = vec![[0.0; 3]; side * side];
    for (row, line) in canvas.chunks_exact_mut(side).enumerate() {
        let y = (row as f32 + 0.5) * pixel;
        for (column, to) in line.iter_mut().enumerate() {
            *to = background(&scene.background, [(column as f32 + 0.5) * pixel, y], pixel);
        }
    }
    for object in &scene.objects {
        draw_object(&mut canvas, side, object);
    }
    let bytes = canvas.as_flattened().iter();
    let bytes: Vec<u8> = bytes.map(|value| (value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8).collect();
    // There are exactly as many bytes as the image has, so the fallback is never used.
    RgbImage::from_raw(size, size, bytes).unwrap_or_default()
}

/// The shadow: how far it is to the right and below, how soft its edge is, and how dark it is.
const SHADOW: (Point, f32, f32) = ([0.010, 0.018], 0.030, 0.30);

fn draw_object(canvas: &mut [Rgb], side: usize, object: &Object) {
    let pixel = 1.0 / side as f32;
    let outline = Outline::of(object.form);
    let (sin, cos) = object.turn.sin_cos();
    let distance = |x: f32, y: f32| {
        let (x, y) = ((x - object.x) / object.radius, (y - object.y) / object.radius);
        outline.distance([x * cos + y * sin, y * cos - x * sin]) * object.radius
    };
    let (shift, blur, darkness) = SHADOW;
    let reach = object.radius + blur + shift[1] + pixel;
    let span = |centre: f32| {
        let from = ((centre - reach) * side as f32).max(0.0) as usize;
        let to = ((centre + reach) * side as f32 + 1.0) as usize;
        from.min(side)..to.min(side)
    };
    for row in span(object.y) {
        let y = (row as f32 + 0.5) * pixel;
        // The light comes from above.
        let light = 0.10 * (object.y - y) / object.radius;
        let lit = match light > 0.0 {
            true => mix(object.colour, [1.0; 3], light * 2.0),
            false => mix(object.colour, [0.0; 3], -light * 1.5),
        };
        for column in span(object.x) {
            let x = (column as f32 + 0.5) * pixel;
            let to = &mut canvas[row * side + column];
            let inside = coverage(distance(x, y), pixel);
            if inside < 1.0 {
                let depth = (0.5 - distance(x - shift[0], y - shift[1]) / blur).clamp(0.0, 1.0);
                let shade = depth * depth * (3.0 - 2.0 * depth) * darkness;
                *to = mix(*to, [0.0; 3], shade);
            }
            *to = mix(*to, lit, inside);
        }
    }
}

/// How much of a pixel is inside, for a signed distance of its centre to the edge.
fn coverage(distance: f32, pixel: f32) -> f32 {
    (0.5 - distance / pixel).clamp(0.0, 1.0)
}

fn background(background: &Background, at: Point, pixel: f32) -> Rgb {
    let [first, second] = background.colours;
    let (sin, cos) = background.turn.sin_cos();
    let [x, y] = [at[0] - 0.5, at[1] - 0.5];
    let (along, across) = (x * cos + y * sin, y * cos - x * sin);
    let repeats = background.repeats;
    // Distances below are in repeats of the pattern.
    let pixel = pixel * repeats;
    let [u, v] = [along * repeats + background.phase, across * repeats + background.phase];
    let share = match background.pattern {
        Pattern::Plain => 0.0,
        Pattern::Gradient => (along / std::f32::consts::SQRT_2 + 0.5).clamp(0.0, 1.0),
        Pattern::Striped => coverage(band(u, 0.5), pixel),
        Pattern::Checkered => {
            let (u, v) = (coverage(band(u / 2.0, 0.5) * 2.0, pixel), coverage(band(v / 2.0, 0.5) * 2.0, pixel));
            u + v - 2.0 * u * v
        }
        Pattern::Dotted => coverage(middle(u).hypot(middle(v)) - 0.27, pixel),
        Pattern::Wavy => coverage(band(u + 0.22 * (v * PI).sin(), 0.5), pixel),
        Pattern::Tiled => {
            let (u, v) = (coverage(band(u, 0.12), pixel), coverage(band(v, 0.12), pixel));
            u.max(v)
        }
    };
    mix(first, second, share)
}

/// The signed distance to the middle of the repeat, from -0.5 to 0.5.
fn middle(value: f32) -> f32 {
    value - value.floor() - 0.5
}

/// The signed distance to a band that fills `share` of each repeat.
fn band(value: f32, share: f32) -> f32 {
    middle(value).abs() - share / 2.0
}

/// The outline of a form within the unit circle; y points down.
enum Outline {
    Circle,
    Ring,
    Heart,
    Moon,
    Polygon(Vec<Edge>),
}

/// An edge of a polygon: its ends, the vector between them, and 1 / its squared length.
struct Edge {
    from: Point,
    to: Point,
    along: Point,
    inverse: f32,
}

impl Outline {
    fn of(form: Form) -> Self {
        match form {
            Form::Circle => Self::Circle,
            Form::Ring => Self::Ring,
            Form::Heart => Self::Heart,
            Form::Moon => Self::Moon,
            Form::Square => Self::regular(4, 0.5, 1.0),
            Form::Triangle => Self::regular(3, 0.0, 1.0),
            Form::Diamond => Self::polygon(&[[0.0, -1.0], [0.68, 0.0], [0.0, 1.0], [-0.68, 0.0]]),
            Form::Pentagon => Self::regular(5, 0.0, 1.0),
            Form::Hexagon => Self::regular(6, 0.5, 1.0),
            Form::Star => Self::regular(10, 0.0, 0.42),
            Form::Cross => {
                let (long, wide) = (0.93, 0.32);
                let corner = [[wide, -long], [wide, -wide], [long, -wide]];
                let corners: Vec<Point> =
                    (0..4).flat_map(|quarter| corner.map(|point| turn(point, quarter as f32 * PI / 2.0))).collect();
                Self::polygon(&corners)
            }
        }
    }

    /// A polygon with `corners` on the unit circle, starting `offset` corners after the top; every second one has the
    /// radius `inner`.
    fn regular(corners: usize, offset: f32, inner: f32) -> Self {
        let points: Vec<Point> = (0..corners)
            .map(|corner| {
                let radius = if corner % 2 == 1 { inner } else { 1.0 };
                turn([0.0, -radius], (corner as f32 + offset) * TAU / corners as f32)
            })
            .collect();
        Self::polygon(&points)
    }

    fn polygon(points: &[Point]) -> Self {
        let ends = points.iter().skip(1).chain(points.first());
        let edges = points.iter().zip(ends).map(|(from, to)| {
            let along = [to[0] - from[0], to[1] - from[1]];
            Edge { from: *from, to: *to, along, inverse: 1.0 / (along[0] * along[0] + along[1] * along[1]) }
        });
        Self::Polygon(edges.collect())
    }

    fn distance(&self, [x, y]: Point) -> f32 {
        match self {
            Self::Circle => x.hypot(y) - 1.0,
            Self::Ring => (x.hypot(y) - 0.74).abs() - 0.26,
            Self::Moon => (x.hypot(y) - 1.0).max(0.80 - (x - 0.48).hypot(y)),
            Self::Heart => {
                const SCALE: f32 = 0.632;
                heart([x.abs() * SCALE, 0.63 - y * SCALE]) / SCALE
            }
            Self::Polygon(edges) => polygon(edges, [x, y]),
        }
    }
}

fn turn([x, y]: Point, angle: f32) -> Point {
    let (sin, cos) = angle.sin_cos();
    [x * cos - y * sin, x * sin + y * cos]
}

/// The signed distance to a heart with its tip at the origin, 1.1 high; y points up, and `x` is not negative.
fn heart([x, y]: Point) -> f32 {
    if x + y > 1.0 {
        return (x - 0.25).hypot(y - 0.75) - std::f32::consts::SQRT_2 / 4.0;
    }
    let foot = 0.5 * (x + y).max(0.0);
    let squared = (x * x + (y - 1.0) * (y - 1.0)).min((x - foot) * (x - foot) + (y - foot) * (y - foot));
    squared.sqrt() * (x - y).signum()
}

fn polygon(edges: &[Edge], [x, y]: Point) -> f32 {
    let mut nearest = f32::INFINITY;
    let mut inside = false;
    for Edge { from, to, along, inverse } in edges {
        let [dx, dy] = [x - from[0], y - from[1]];
        let share = ((dx * along[0] + dy * along[1]) * inverse).clamp(0.0, 1.0);
        let (px, py) = (dx - along[0] * share, dy - along[1] * share);
        nearest = nearest.min(px * px + py * py);
        // A point is inside if a ray to the right crosses an odd number of edges.
        let (begins_above, ends_above) = (y >= from[1], y >= to[1]);
        if begins_above != ends_above && (along[0] * dy > along[1] * dx) == (along[1] > 0.0) {
            inside = !inside;
        }
    }
    if inside { -nearest.sqrt() } else { nearest.sqrt() }
}

#[cfg(test)]
mod tests {
    use strum::VariantArray;

    use super::super::scene::ALL;
    use super::*;

    #[test]
    fn every_form_lies_within_the_unit_circle_and_fills_some_of_it() {
        for &form in Form::VARIANTS {
            let outline = Outline::of(form);
            let mut inside = 0;
            for row in 0..200 {
                for column in 0..200 {
                    let point = [column as f32 / 80.0 - 1.25, row as f32 / 80.0 - 1.25];
                    if outline.distance(point) < 0.0 {
                        assert!(point[0].hypot(point[1]) < 1.01, "{form:?} reaches {point:?}");
                        inside += 1;
                    }
                }
            }
            let share = inside as f32 / (80.0 * 80.0 * PI);
            assert!((0.25..=1.01).contains(&share), "{form:?} fills {share} of the circle");
        }
    }

    #[test]
    fn areas_are_those_of_geometry() {
        for (form, area) in [
            (Form::Circle, PI),
            (Form::Square, 2.0),
            (Form::Triangle, 1.299),
            (Form::Hexagon, 2.598),
            (Form::Diamond, 1.36),
            (Form::Ring, PI * (1.0 - 0.48 * 0.48)),
        ] {
            let outline = Outline::of(form);
            let pixels = (0..400 * 400).map(|at| {
                let point = [(at % 400) as f32 / 160.0 - 1.25, (at / 400) as f32 / 160.0 - 1.25];
                coverage(outline.distance(point), 1.0 / 160.0)
            });
            let measured = pixels.sum::<f32>() / (160.0 * 160.0);
            assert!((measured - area).abs() < 0.02, "{form:?}: {measured}, not {area}");
        }
    }

    #[test]
    fn edges_are_smooth() {
        let scene = Scene::compose(&ALL, 0, 0);
        let mut plain = scene.clone();
        plain.background.pattern = Pattern::Plain;
        plain.background.colours = [[0.0; 3]; 2];
        plain.objects.truncate(1);
        plain.objects[0].form = Form::Circle;
        plain.objects[0].colour = [1.0; 3];
        let image = draw(&plain, 64);
        let between = image.pixels().filter(|pixel| (30..200).contains(&pixel.0[0])).count();
        assert!(between > 10, "{between} pixels between black and white");
    }
}
