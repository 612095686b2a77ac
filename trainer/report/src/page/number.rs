//! Numbers and units as text.

/// The unit of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// A plain number.
    Number,
    /// Optimizer steps, or other things that are counted.
    Steps,
    /// Memory.
    Bytes,
    /// Time.
    Seconds,
    /// A fraction of 1, shown in percent.
    Share,
}

impl Unit {
    /// The unit of a curve, by its tag.
    pub(super) fn of(tag: &str) -> Self {
        match tag.split_once('/') {
            Some(("memory", _)) => Self::Bytes,
            Some(("speed", "data_wait")) => Self::Seconds,
            Some((_, "codes_used" | "right_caption")) => Self::Share,
            Some((_, "skipped" | "micro" | "images")) => Self::Steps,
            Some((_, name)) if name.ends_with("_bytes") => Self::Bytes,
            Some((_, name)) if name.ends_with("_seconds") => Self::Seconds,
            _ => Self::Number,
        }
    }

    /// The name of the unit in the script.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Number => "number",
            Self::Steps => "steps",
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
            Self::Share => "share",
        }
    }

    /// Whether the axis may be logarithmic, so that small values can be seen beside large ones.
    pub(super) fn may_be_logarithmic(self) -> bool {
        self == Self::Number
    }

    /// The unit in which ticks are round numbers, on an axis that goes up to `greatest`.
    pub(super) fn tick_unit(self, greatest: f64) -> f64 {
        match self {
            Self::Bytes => binary(greatest).0,
            Self::Share => 0.01,
            _ => 1.0,
        }
    }
}

/// The largest unit that is at most `bytes`.
fn binary(bytes: f64) -> (f64, &'static str) {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (0..units.len()).rev().find(|power| bytes.abs() >= 1024f64.powi(*power as i32)).unwrap_or(0);
    (1024f64.powi(power as i32), units[power])
}

/// A value as text: four digits, with a power of ten only for very small and very large values.
pub(super) fn shown(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Number => digits(value),
        Unit::Steps if value.fract() == 0.0 && value.abs() < 1e4 => format!("{value}"),
        Unit::Steps if value.abs() >= 1e6 => format!("{}M", digits(value / 1e6)),
        Unit::Steps if value.abs() >= 1e4 => format!("{}k", digits(value / 1e3)),
        Unit::Steps => digits(value),
        Unit::Bytes => {
            let (size, name) = binary(value);
            format!("{} {name}", digits(value / size))
        }
        Unit::Seconds if value != 0.0 && value.abs() < 1.0 => format!("{} ms", digits(1e3 * value)),
        Unit::Seconds => format!("{} s", digits(value)),
        Unit::Share => format!("{} %", digits(100.0 * value)),
    }
}

fn digits(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e6).contains(&size) {
        let text = format!("{value:.3e}");
        let (mantissa, power) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{power}", trimmed(mantissa));
    }
    let before = size.log10().floor() as i32 + 1;
    trimmed(&format!("{value:.*}", (4 - before).clamp(0, 6) as usize)).to_owned()
}

/// Removes zeros at the end of a fraction.
fn trimmed(number: &str) -> &str {
    match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits_and_no_idle_zeros() {
        for (value, unit, expected) in [
            (0.063_449, Unit::Number, "0.06345"),
            (0.25, Unit::Number, "0.25"),
            (7.2e-5, Unit::Number, "7.2e-5"),
            (-123.456, Unit::Number, "-123.5"),
            (65536.0, Unit::Number, "65536"),
            (3e9, Unit::Number, "3e9"),
            (0.0, Unit::Number, "0"),
            (350.0, Unit::Steps, "350"),
            (250_000.0, Unit::Steps, "250k"),
            (1_500_000.0, Unit::Steps, "1.5M"),
            (43_358_618.0, Unit::Bytes, "41.35 MiB"),
            (2.0, Unit::Bytes, "2 B"),
            (0.125, Unit::Share, "12.5 %"),
            (0.0004, Unit::Seconds, "0.4 ms"),
            (1.5, Unit::Seconds, "1.5 s"),
            (0.0, Unit::Seconds, "0 s"),
        ] {
            assert_eq!(shown(value, unit), expected);
        }
    }
}
