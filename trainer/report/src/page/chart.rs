//! Draws a chart as SVG: one curve per run over the steps.

use std::fmt::Write;

use serde_json::{Value, json};

use super::axes::{Axes, BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH};
use super::escape;
use super::number::{Unit, shown};
use crate::curve::Curve;

/// The number of buckets of neighbouring steps; the smallest and the largest value of each are drawn.
pub(super) const BUCKETS: usize = 300;

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
        let Some(axes) = Axes::around(self.curves.iter().map(|(_, _, curve)| curve), self.unit) else {
            return String::new();
        };
        let (mut drawn, mut data, mut last) = (String::new(), Vec::new(), "last".to_owned());
        axes.draw(&mut drawn);
        for (run, name, curve) in &self.curves {
            let window = curve.steps.len() as f64 * WINDOW;
            let average = (self.smooth && window > 1.0).then(|| curve.smoothed(window));
            let class = if average.is_some() { "every" } else { "line" };
            let of_run = format!("run-{run} colour-{}", run % 8);
            let _ = write!(drawn, r#"<g class="{of_run}">"#);
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
            if let Some(value) = curve.last() {
                let (name, value) = (escape(name), shown(value, self.unit));
                let _ = write!(last, r#" <span class="{of_run}" title="{name}">{value}</span>"#);
            }
            data.push(read_points(&of_run, "", curve, average.as_ref()));
        }
        let note = if axes.log { "logarithmic" } else { "" };
        let words = &self.in_words();
        Figure { class: "", title: &self.title, note, unit: self.unit, words, drawn: &drawn, data, last: &last }
            .html(&axes)
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

/// A drawn chart with what is around it.
pub(super) struct Figure<'a> {
    /// Classes besides `chart`.
    pub(super) class: &'a str,
    pub(super) title: &'a str,
    /// Behind the title, in small print.
    pub(super) note: &'a str,
    pub(super) unit: Unit,
    /// A description for screen readers.
    pub(super) words: &'a str,
    /// SVG.
    pub(super) drawn: &'a str,
    /// What is shown for the step under the pointer, by [`read_points`].
    pub(super) data: Vec<Value>,
    /// HTML of what is shown else.
    pub(super) last: &'a str,
}

impl Figure<'_> {
    pub(super) fn html(self, axes: &Axes) -> String {
        let Self { class, title, note, unit, words, drawn, data, last } = self;
        let (title, words, unit) = (escape(title), escape(words), unit.name());
        let note = if note.is_empty() { String::new() } else { format!(r#" <span class="note">{note}</span>"#) };
        let frame = escape(&json!([axes.first, axes.last, LEFT, RIGHT, WIDTH]).to_string());
        let data = escape(&Value::from(data).to_string());
        format!(
            r#"<figure class="chart{class}" data-unit="{unit}" data-frame="{frame}" data-curves="{data}"><figcaption>{title}{note}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{words}">{drawn}<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{BOTTOM}" visibility="hidden"/></svg><p class="readout">{last}</p></figure>"#
        )
    }
}

/// `[class, label, [step, value, average], …]`, without averages if there are none.
pub(super) fn read_points(class: &str, label: &str, curve: &Curve, average: Option<&Curve>) -> Value {
    let number = |value: f64| serde_json::Number::from_f64(rounded(value)).map_or(Value::Null, Into::into);
    let thin = curve.thinned(MOST_READ);
    let averages = average.map(|average| average.thinned(MOST_READ).values);
    let mut points: Vec<Value> = vec![class.into(), label.into()];
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
}
