//! The axes of a chart: steps to the right, values upwards.

use std::fmt::Write;

use super::number::{Unit, shown};
use crate::curve::Curve;

/// The size of the drawing, in its own units.
pub(super) const WIDTH: f64 = 400.0;
pub(super) const HEIGHT: f64 = 210.0;
/// The area between the axes.
pub(super) const LEFT: f64 = 68.0;
pub(super) const RIGHT: f64 = 392.0;
pub(super) const TOP: f64 = 10.0;
pub(super) const BOTTOM: f64 = 182.0;

/// An axis spans at least this part of its largest value, so that a small change looks small.
const LEAST_SPAN: f64 = 0.05;

/// About the width of a character of a label.
const CHARACTER: f64 = 7.2;

/// Maps steps and values to places on the drawing.
pub(super) struct Axes {
    pub(super) first: u64,
    pub(super) last: u64,
    /// A logarithm if the axis is logarithmic.
    least: f64,
    greatest: f64,
    pub(super) log: bool,
    unit: Unit,
}

impl Axes {
    /// Axes on which all `curves` fit; `None` if they have no values.
    pub(super) fn around<'a>(curves: impl Iterator<Item = &'a Curve> + Clone, unit: Unit) -> Option<Self> {
        let ranges = || curves.clone().filter_map(Curve::range);
        let (lowest, highest) =
            (ranges().map(|range| range.0).reduce(f64::min)?, ranges().map(|range| range.1).reduce(f64::max)?);
        let steps = || curves.clone().flat_map(|curve| curve.steps.first().into_iter().chain(curve.steps.last()));
        let (first, last) = (*steps().min()?, *steps().max()?);
        let log = unit.may_be_logarithmic() && lowest > 0.0 && highest / lowest >= 30.0;
        let (least, greatest) = match log {
            true => {
                let margin = 0.04 * (highest / lowest).log10();
                (lowest.log10() - margin, highest.log10() + margin)
            }
            false => linear(lowest, highest, unit),
        };
        Some(Self { first, last, least, greatest, log, unit })
    }

    pub(super) fn place(&self, step: u64, value: f64) -> (f64, f64) {
        let across = match self.last - self.first {
            0 => 0.5,
            steps => (step - self.first) as f64 / steps as f64,
        };
        let value = if self.log { value.log10() } else { value };
        (LEFT + across * (RIGHT - LEFT), self.height(value))
    }

    fn height(&self, value: f64) -> f64 {
        BOTTOM - (value - self.least) / (self.greatest - self.least) * (BOTTOM - TOP)
    }

    /// A path with gaps at steps without a value.
    pub(super) fn path(&self, curve: &Curve) -> String {
        let mut path = String::new();
        let mut alone = None;
        for (step, value) in curve.steps.iter().zip(&curve.values) {
            if !value.is_finite() {
                if alone == Some(true) {
                    path += "h0";
                }
                alone = None;
                continue;
            }
            let (x, y) = self.place(*step, *value);
            let _ = write!(path, "{}{x:.1} {y:.1}", if alone.is_some() { 'L' } else { 'M' });
            alone = Some(alone.is_none());
        }
        // A point between gaps is drawn as a line without length, which shows its round ends.
        if alone == Some(true) {
            path += "h0";
        }
        path
    }

    /// A closed path between the lower axis and the curve. A single value is drawn as a narrow bar.
    pub(super) fn area(&self, curve: &Curve) -> String {
        const HALF_BAR: f64 = 6.0;
        let places: Vec<(f64, f64)> = curve.points().map(|(step, value)| self.place(step, value)).collect();
        let places = match places[..] {
            [(x, y)] => vec![((x - HALF_BAR).max(LEFT), y), ((x + HALF_BAR).min(RIGHT), y)],
            _ => places,
        };
        let [(from, _), .., (to, _)] = places[..] else { return String::new() };
        let line: String = places.iter().map(|(x, y)| format!("L{x:.1} {y:.1}")).collect();
        format!("M{from:.1} {BOTTOM}{line}L{to:.1} {BOTTOM}Z")
    }

    /// Draws the axes with their ticks and labels.
    pub(super) fn draw(&self, svg: &mut String) {
        for (value, text) in self.values() {
            let y = self.height(value);
            let _ = write!(svg, r#"<path class="grid" d="M{LEFT} {y:.1}H{RIGHT}"/>"#);
            let _ = write!(svg, r#"<text class="tick end" x="{:.1}" y="{:.1}">{text}</text>"#, LEFT - 6.0, y + 4.0);
        }
        let _ = write!(svg, r#"<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>"#);
        let _ = write!(svg, r#"<text class="tick end" x="{:.1}" y="{:.1}">step</text>"#, LEFT - 14.0, BOTTOM + 17.0);
        for step in ticks(self.first as f64, self.last as f64, 4, 1.0) {
            let (x, _) = self.place(step as u64, if self.log { 1.0 } else { 0.0 });
            let text = shown(step, Unit::Steps);
            let half = CHARACTER / 2.0 * text.len() as f64;
            let anchor = match x {
                _ if x + half > WIDTH => " end",
                _ if x - half < LEFT - 10.0 => " start",
                _ => "",
            };
            let _ = write!(svg, r#"<text class="tick{anchor}" x="{x:.1}" y="{:.1}">{text}</text>"#, BOTTOM + 17.0);
        }
    }

    /// The ticks of the value axis: their places and labels.
    fn values(&self) -> Vec<(f64, String)> {
        let text = |value: f64| shown(value, self.unit);
        if !self.log {
            // Bytes have units of powers of 1024.
            let unit = self.unit.tick_unit(self.greatest);
            let round = ticks(self.least / unit, self.greatest / unit, 5, 0.0);
            return round.into_iter().map(|value| (value * unit, text(value * unit))).collect();
        }
        let decades = (self.greatest - self.least).ceil() as i32;
        let every = (decades / 4).max(1) as usize;
        let (from, to) = (self.least.floor() as i32, self.greatest.ceil() as i32);
        let between: &[f64] = if decades <= 2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let places = (from..=to).step_by(every).flat_map(|power| between.iter().map(move |n| n * 10f64.powi(power)));
        places
            .map(|value| (value.log10(), text(value)))
            .filter(|(place, _)| (self.least..=self.greatest).contains(place))
            .collect()
    }
}

/// The ends of a linear axis for values from `lowest` to `highest`.
fn linear(lowest: f64, highest: f64, unit: Unit) -> (f64, f64) {
    // The axis starts at zero, unless all values have about the same size. That of memory always does.
    let from_zero = lowest >= 0.0 && (lowest < 0.4 * highest || unit == Unit::Bytes);
    let least = if from_zero { 0.0 } else { lowest };
    let lacking = (LEAST_SPAN * lowest.abs().max(highest.abs()) - (highest - least)).max(0.0);
    let span = highest - least + lacking;
    let margin = if span == 0.0 { 1.0 } else { lacking / 2.0 + 0.04 * span };
    let greatest = highest + margin;
    // Nothing is above 100 %.
    let greatest = if unit == Unit::Share && highest <= 1.0 { greatest.min(1.0) } else { greatest };
    (if least == 0.0 { 0.0 } else { least - margin }, greatest)
}

/// About `count` round numbers from `from` to `to`, at least `apart` apart.
fn ticks(from: f64, to: f64, count: usize, apart: f64) -> Vec<f64> {
    let rough = ((to - from) / count as f64).max(apart);
    if to <= from || !rough.is_finite() {
        return vec![from];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|n| n * power >= rough * 0.999).unwrap_or(10.0) * power;
    let first = (from / step).ceil();
    let count = ((to / step).floor() - first).max(0.0) as usize;
    // Adding steps up would collect rounding errors, so that 0.3 would not be 0.3.
    (0..=count.min(20)).map(|n| (first + n as f64) * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(first: u64, values: &[f64]) -> Curve {
        Curve { steps: (first..).take(values.len()).collect(), values: values.to_vec() }
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 350.0, 4, 1.0), [0.0, 100.0, 200.0, 300.0]);
        assert_eq!(ticks(0.12, 0.52, 4, 0.0), [2.0 * 0.1, 3.0 * 0.1, 4.0 * 0.1, 5.0 * 0.1]);
        assert_eq!(ticks(7.0, 7.0, 4, 1.0), [7.0]);
        assert_eq!(ticks(1.0, 2.0, 4, 1.0), [1.0, 2.0], "there is no step 1.5");
    }

    #[test]
    fn a_small_change_looks_small() {
        for (lowest, highest, unit) in [
            (0.4753, 0.4795, Unit::Number),
            (-5.81, -5.8, Unit::Number),
            (0.98, 0.99, Unit::Share),
            (3.0, 3.0, Unit::Number),
        ] {
            let (least, greatest) = linear(lowest, highest, unit);
            let size = lowest.abs().max(highest.abs());
            assert!(greatest - least >= 0.03 * size && greatest - least <= 0.2 * size, "{least} to {greatest}");
            assert!(least < lowest && highest < greatest && (unit != Unit::Share || greatest <= 1.0));
        }
        assert_eq!(linear(9e8, 1e9, Unit::Bytes).0, 0.0, "memory is seen from zero");
        assert_eq!(linear(0.0, 0.0, Unit::Number), (0.0, 1.0));
        assert_eq!(linear(1.0, 10.0, Unit::Number).0, 0.0);
    }

    /// Left, right and height of each label.
    fn labels(svg: &str) -> Vec<(String, f64, f64, f64)> {
        let attribute = |tag: &str, name: &str| {
            let value = tag.split_once(&format!(" {name}=\"")).unwrap().1.split_once('"').unwrap().0;
            value.to_owned()
        };
        let label = |part: &str| {
            let (tag, rest) = part.split_once('>').unwrap();
            let tag = format!(" {tag}");
            let text = rest.split_once('<').unwrap().0.to_owned();
            let (x, width) = (attribute(&tag, "x").parse::<f64>().unwrap(), CHARACTER * text.len() as f64);
            let left = match attribute(&tag, "class").as_str() {
                "tick end" => x - width,
                "tick start" => x,
                _ => x - width / 2.0,
            };
            (text, left, left + width, attribute(&tag, "y").parse().unwrap())
        };
        svg.split("<text ").skip(1).map(label).collect()
    }

    #[test]
    fn labels_stand_apart_and_on_the_drawing() {
        let values: [&[f64]; 6] = [
            &[0.5, 0.4753],
            &[1.0],
            &[-3.0, 1e9, 0.5],
            &[1e-8, 1.0, 5.0],
            &[20.0, 900.0],
            &[-1234.5, 0.0, 1234.5, 7.0, 8.0],
        ];
        for (first, unit) in [(0, Unit::Number), (1, Unit::Steps), (1_234_567, Unit::Seconds), (99_998, Unit::Bytes)] {
            for values in values {
                let mut svg = String::new();
                Axes::around([curve(first, values)].iter(), unit).unwrap().draw(&mut svg);
                let labels = labels(&svg);
                for (index, (text, left, right, y)) in labels.iter().enumerate() {
                    assert!(*left >= 0.0 && *right <= WIDTH, "{text} at {left} to {right}");
                    for (other, from, to, height) in &labels[..index] {
                        let meet = left < to && from < right && (y - height).abs() < 12.0;
                        assert!(!meet, "{unit:?} {values:?}: {text} and {other}");
                    }
                }
            }
        }
    }
}
