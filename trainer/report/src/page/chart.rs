//! Draws a chart as SVG: one curve per run over the steps.

use std::fmt::Write;

use super::escape;
use super::number::{Unit, shown};
use crate::curve::Curve;

/// The size of the drawing, in its own units.
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 210.0;
/// The area between the axes.
const LEFT: f64 = 68.0;
const RIGHT: f64 = 392.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 182.0;

/// The number of buckets of neighbouring steps; the smallest and the largest value of each are drawn.
const BUCKETS: usize = 300;

/// The largest number of points whose values are shown under the pointer.
const MOST_READ: usize = 240;

/// An average is taken over about this fraction of all steps.
const WINDOW: f64 = 1.0 / 40.0;

/// One metric of all runs that have it.
pub(super) struct Chart<'a> {
    pub(super) title: String,
    pub(super) unit: Unit,
    /// Whether to draw an average over the values, because they are noisy.
    pub(super) smooth: bool,
    /// Whether to draw a dot for each value, because there are few.
    pub(super) dots: bool,
    /// The number, the name and the curve of each run.
    pub(super) curves: Vec<(usize, &'a str, Curve)>,
}

impl Chart<'_> {
    /// A `figure` element with its caption, and the numbers that are shown for the point under the pointer.
    pub(super) fn html(&self) -> String {
        let Some(axes) = Axes::around(&self.curves, self.unit) else { return String::new() };
        let mut drawn = String::new();
        axes.draw(&mut drawn);
        let mut data = Vec::new();
        for (run, _, curve) in &self.curves {
            let window = curve.steps.len() as f64 * WINDOW;
            let average = (self.smooth && window > 1.0).then(|| curve.smoothed(window));
            let class = if average.is_some() { "every" } else { "line" };
            let _ = write!(drawn, r#"<g class="run-{run} colour-{}">"#, run % 8);
            let _ = write!(drawn, r#"<path class="{class}" d="{}"/>"#, axes.path(&curve.decimated(BUCKETS)));
            if let Some(average) = &average {
                let _ = write!(drawn, r#"<path class="line" d="{}"/>"#, axes.path(&average.decimated(BUCKETS)));
            }
            // A single value would be a line without length.
            if self.dots && curve.steps.len() <= 60 || curve.steps.len() == 1 {
                for (step, value) in curve.points() {
                    let (x, y) = axes.place(step, value);
                    let _ = write!(drawn, r#"<circle cx="{x:.1}" cy="{y:.1}" r="2.5"/>"#);
                }
            }
            drawn += "</g>";
            data.push(read_points(*run, curve, average.as_ref()));
        }
        let (title, label) = (escape(&self.title), escape(&self.in_words()));
        let log = if axes.log { r#" <span class="note">logarithmic</span>"# } else { "" };
        let last = self.last_values();
        let frame = serde_json::json!([axes.first, axes.last, LEFT, RIGHT, WIDTH]);
        let data = serde_json::Value::Array(data);
        format!(
            r#"<figure class="chart" data-unit="{unit}" data-frame="{frame}" data-runs="{data}"><figcaption>{title}{log}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{label}">{drawn}<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{BOTTOM}" visibility="hidden"/></svg><p class="readout">{last}</p></figure>"#,
            unit = self.unit.name(),
            frame = escape(&frame.to_string()),
            data = escape(&data.to_string()),
        )
    }

    fn last_values(&self) -> String {
        let mut text = "last".to_owned();
        for (run, name, curve) in &self.curves {
            if let Some(value) = curve.last() {
                let (colour, name, value) = (run % 8, escape(name), shown(value, self.unit));
                let _ = write!(text, r#" <span class="run-{run} colour-{colour}" title="{name}">{value}</span>"#);
            }
        }
        text
    }

    /// A description of the chart for screen readers.
    fn in_words(&self) -> String {
        let mut text = format!("{} over the steps.", self.title);
        for (_, name, curve) in &self.curves {
            let first = curve.points().next();
            if let (Some((from, first)), Some((to, last)), Some((least, greatest))) =
                (first, curve.points().next_back(), curve.range())
            {
                let [first, last, least, greatest] =
                    [first, last, least, greatest].map(|value| shown(value, self.unit));
                let _ = write!(
                    text,
                    " {name}: {first} at step {from}, {last} at step {to}, between {least} and {greatest}."
                );
            }
        }
        text
    }
}

/// `[run, [step, value, average], …]`, without averages if there are none.
fn read_points(run: usize, curve: &Curve, average: Option<&Curve>) -> serde_json::Value {
    let number = |value: f64| serde_json::Number::from_f64(rounded(value)).map_or(serde_json::Value::Null, Into::into);
    let thin = curve.thinned(MOST_READ);
    let averages = average.map(|average| average.thinned(MOST_READ).values);
    let mut points: Vec<serde_json::Value> = vec![run.into()];
    for (index, (step, value)) in thin.steps.iter().zip(&thin.values).enumerate() {
        let mut point = vec![(*step).into(), number(*value)];
        point.extend(averages.as_ref().map(|averages| number(averages[index])));
        points.push(point.into());
    }
    points.into()
}

/// Rounds to six digits; fewer are shown.
fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// Maps steps and values to places on the drawing.
struct Axes {
    first: u64,
    last: u64,
    /// A logarithm if the axis is logarithmic.
    least: f64,
    greatest: f64,
    log: bool,
    unit: Unit,
}

impl Axes {
    /// Axes on which all `curves` fit; `None` if they have no values.
    fn around(curves: &[(usize, &str, Curve)], unit: Unit) -> Option<Self> {
        let ranges: Vec<_> = curves.iter().filter_map(|(_, _, curve)| curve.range()).collect();
        let least = ranges.iter().map(|range| range.0).reduce(f64::min)?;
        let greatest = ranges.iter().map(|range| range.1).reduce(f64::max)?;
        let steps =
            || curves.iter().flat_map(|(_, _, curve)| curve.steps.first().into_iter().chain(curve.steps.last()));
        let log = unit.may_be_logarithmic() && least > 0.0 && greatest / least >= 30.0;
        let [mut least, mut greatest] = [least, greatest].map(|value| if log { value.log10() } else { value });
        // The axis starts at zero, unless all values have about the same size.
        if !log && least > 0.0 && least < 0.4 * greatest {
            least = 0.0;
        }
        let margin = match greatest - least {
            0.0 if least == 0.0 => 1.0,
            0.0 => 0.1 * least.abs(),
            height => 0.04 * height,
        };
        greatest += margin;
        if least != 0.0 || log {
            least -= margin;
        }
        Some(Self { first: *steps().min()?, last: *steps().max()?, least, greatest, log, unit })
    }

    fn place(&self, step: u64, value: f64) -> (f64, f64) {
        let across = match self.last - self.first {
            0 => 0.5,
            steps => (step - self.first) as f64 / steps as f64,
        };
        let value = if self.log { value.log10() } else { value };
        let up = (value - self.least) / (self.greatest - self.least);
        (LEFT + across * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP))
    }

    /// A path with gaps at steps without a value.
    fn path(&self, curve: &Curve) -> String {
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

    fn draw(&self, svg: &mut String) {
        for (value, text) in self.values() {
            let y = BOTTOM - (value - self.least) / (self.greatest - self.least) * (BOTTOM - TOP);
            let _ = write!(svg, r#"<path class="grid" d="M{LEFT} {y:.1}H{RIGHT}"/>"#);
            let _ = write!(svg, r#"<text class="tick end" x="{:.1}" y="{:.1}">{text}</text>"#, LEFT - 6.0, y + 4.0);
        }
        let _ = write!(svg, r#"<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>"#);
        let _ = write!(svg, r#"<text class="tick end" x="{:.1}" y="{:.1}">step</text>"#, LEFT - 14.0, BOTTOM + 17.0);
        for step in ticks(self.first as f64, self.last as f64, 4) {
            let (x, _) = self.place(step as u64, if self.log { 1.0 } else { 0.0 });
            let place = if x > RIGHT - 20.0 { " end" } else { "" };
            let step = shown(step, Unit::Steps);
            let _ = write!(svg, r#"<text class="tick{place}" x="{x:.1}" y="{:.1}">{step}</text>"#, BOTTOM + 17.0);
        }
    }

    /// The ticks of the value axis: their places and labels.
    fn values(&self) -> Vec<(f64, String)> {
        let text = |value: f64| shown(value, self.unit);
        if !self.log {
            // Bytes have units of powers of 1024.
            let unit = self.unit.tick_unit(self.greatest);
            let round = ticks(self.least / unit, self.greatest / unit, 5);
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

/// About `count` round numbers from `from` to `to`.
fn ticks(from: f64, to: f64, count: usize) -> Vec<f64> {
    let rough = (to - from) / count as f64;
    if rough <= 0.0 || !rough.is_finite() {
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

    fn chart(curves: Vec<Curve>) -> String {
        let curves = curves.into_iter().enumerate().map(|(run, curve)| (run, "a \"run\"", curve)).collect();
        Chart { title: "a < b".into(), unit: Unit::Number, smooth: true, dots: false, curves }.html()
    }

    fn curve(values: &[f64]) -> Curve {
        Curve { steps: (1..=values.len() as u64).collect(), values: values.to_vec() }
    }

    #[test]
    fn all_that_is_drawn_is_on_the_drawing() {
        for values in
            [&[1.0, 2.0][..], &[5.0], &[0.0, 0.0], &[-3.0, 1e9, 0.5], &[1e-8, 1.0], &[f64::NAN, 2.0, f64::NAN]]
        {
            let html = chart(vec![curve(values)]);
            for word in html.split("class=\"").flat_map(|part| part.split(" d=\"").nth(1)) {
                let path = word.split('"').next().unwrap();
                for point in path.split(['M', 'L']).filter(|point| point.contains(' ') && !point.contains('H')) {
                    let (x, y) = point.trim_end_matches("h0").split_once(' ').unwrap();
                    let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                    assert!((LEFT..=RIGHT).contains(&x) && (TOP..=BOTTOM).contains(&y), "{values:?}: {path}");
                }
            }
        }
        assert_eq!(chart(vec![curve(&[f64::NAN])]), "");
    }

    #[test]
    fn names_are_escaped_and_the_curve_is_said_in_words() {
        let html = chart(vec![curve(&[1.0, 0.25]), curve(&[2.0])]);
        assert!(html.contains("a &lt; b") && !html.contains("a < b"), "{html}");
        assert!(html.contains("a &quot;run&quot;: 1 at step 1, 0.25 at step 2, between 0.25 and 1."), "{html}");
        assert!(html.contains("run-1 colour-1"), "{html}");
    }

    #[test]
    fn a_gap_is_not_drawn_over() {
        let html = chart(vec![curve(&[1.0, 2.0, f64::NAN, 3.0, f64::NAN, 4.0])]);
        let path = html.split(r#"class="line" d=""#).nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(path.matches('M').count(), 3, "{path}");
        assert_eq!(path.matches("h0").count(), 2, "{path}");
    }

    #[test]
    fn a_long_run_is_no_larger_than_a_short_one() {
        let long: Vec<f64> = (0..1_000_000).map(|n| f64::from(n).sin() + 2.0).collect();
        assert!(chart(vec![curve(&long)]).len() < 40_000);
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 350.0, 4), [0.0, 100.0, 200.0, 300.0]);
        assert_eq!(ticks(0.12, 0.52, 4), [2.0 * 0.1, 3.0 * 0.1, 4.0 * 0.1, 5.0 * 0.1]);
        assert_eq!(ticks(7.0, 7.0, 4), [7.0]);
    }
}
