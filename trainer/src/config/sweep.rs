//! `[sweep]`: what `train sweep` varies, and the bars that each row must meet.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::de::{self, IntoDeserializer, Visitor, value};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Compute, Recompute};

/// `[sweep]`. An empty list means the run's own value.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SweepConfig {
    /// Values of `batch.micro`.
    #[schemars(inner(range(min = 1)))]
    pub micro: Vec<usize>,
    /// Values of `batch.effective`.
    #[schemars(inner(range(min = 1)))]
    pub effective: Vec<usize>,
    /// Values of `precision.compute`.
    pub precision: Vec<Compute>,
    /// Values of `data.resolution`.
    pub resolution: Vec<u32>,
    /// Values of `memory.recompute`.
    pub recompute: Vec<Recompute>,
    /// Optimizer steps of a row, at least 2: the first one warms up and does not count for the speed.
    #[schemars(range(min = 2))]
    pub steps: u64,
    /// Seconds after which a row is given up.
    #[schemars(range(min = 1))]
    pub timeout: u64,
    /// Bar: the most memory that a row may take, such as `"4GiB"`.
    #[schemars(with = "Option<String>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<Bytes>,
    /// Bar: the largest deviation of a row's gradient from the reference's. A number for all rows, or by precision, as
    /// in `"fp32=1e-5,bf16=0.1"`; a precision that is not named has no bar.
    #[schemars(with = "Option<NumberOrText>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_deviation: Option<MaxDeviation>,
    /// Bar: the fewest images per second.
    #[schemars(range(min = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_images_per_second: Option<f64>,
    /// Bar: an earlier `sweep.json`. No row may be worse than in it by more than `tolerance`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<PathBuf>,
    /// How much more memory and how much less speed than `baseline` a row may have, such as `"10%"`, or each as in
    /// `"memory=2%,speed=30%"`.
    #[schemars(with = "String")]
    pub tolerance: Tolerance,
}

/// How a bar on the deviation is written.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes a type that reads itself")]
enum NumberOrText {
    Number(f64),
    Text(String),
}

impl Default for SweepConfig {
    fn default() -> Self {
        Self {
            micro: Vec::new(),
            effective: Vec::new(),
            precision: Vec::new(),
            resolution: Vec::new(),
            recompute: Vec::new(),
            steps: 3,
            timeout: 600,
            max_memory: None,
            max_deviation: None,
            min_images_per_second: None,
            baseline: None,
            tolerance: Tolerance::default(),
        }
    }
}

impl SweepConfig {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A number of bytes, written as people write it: `"4GiB"`, `"500MB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = text.parse::<ByteSize>().ok().filter(|size| size.as_u64() > 0);
        size.map(|size| Self(size.as_u64())).ok_or_else(|| format!("is \"{text}\", must be a size such as \"4GiB\""))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        indicatif::BinaryBytes(self.0).fmt(f)
    }
}

/// A bar on the deviation; see [`SweepConfig::max_deviation`].
#[derive(Debug, Clone, PartialEq)]
pub enum MaxDeviation {
    /// For every row.
    All(f64),
    /// For the rows of some precisions.
    ByPrecision(Vec<(Compute, f64)>),
}

impl MaxDeviation {
    /// The bar for rows of `precision`, if there is one.
    pub fn of(&self, precision: Compute) -> Option<f64> {
        match self {
            Self::All(limit) => Some(*limit),
            Self::ByPrecision(limits) => limits.iter().find(|(other, _)| *other == precision).map(|(_, limit)| *limit),
        }
    }
}

impl FromStr for MaxDeviation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let number = text.trim().parse::<f64>().ok().filter(|number| *number >= 0.0);
            number.ok_or_else(|| format!("is \"{text}\", must be a number such as 1e-5, or \"fp32=1e-5,bf16=0.1\""))
        };
        if !text.contains('=') {
            return number(text).map(Self::All);
        }
        let part = |part: &str| {
            let (name, limit) = part.split_once('=').ok_or_else(|| format!("has \"{part}\" without a ="))?;
            let precision = name.trim().parse().map_err(|error: String| format!("has the {error}"))?;
            Ok::<_, String>((precision, number(limit)?))
        };
        text.split(',').map(part).collect::<Result<_, _>>().map(Self::ByPrecision)
    }
}

impl fmt::Display for MaxDeviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(limit) => write!(f, "{limit:e}"),
            Self::ByPrecision(limits) => {
                let parts: Vec<String> = limits.iter().map(|(name, limit)| format!("{name}={limit:e}")).collect();
                f.write_str(&parts.join(","))
            }
        }
    }
}

/// Shares of the baseline; see [`SweepConfig::tolerance`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// How much more memory.
    pub memory: f64,
    /// How much less speed.
    pub speed: f64,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { memory: 0.1, speed: 0.1 }
    }
}

impl FromStr for Tolerance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("is \"{text}\", must be a share such as \"10%\", or \"memory=2%,speed=30%\"");
        let share = |text: &str| {
            let number = text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
            number.filter(|number| (0.0..).contains(number)).map(|number| number / 100.0).ok_or_else(wrong)
        };
        if !text.contains('=') {
            return share(text).map(|both| Self { memory: both, speed: both });
        }
        let mut tolerance = Self::default();
        for part in text.split(',') {
            match part.split_once('=').map(|(name, value)| (name.trim(), value)) {
                Some(("memory", value)) => tolerance.memory = share(value)?,
                Some(("speed", value)) => tolerance.speed = share(value)?,
                _ => return Err(wrong()),
            }
        }
        Ok(tolerance)
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory={}%,speed={}%", 100.0 * self.memory, 100.0 * self.speed)
    }
}

/// Reads and writes an enum by the names that serde has for it.
macro_rules! word {
    ($type:ty) => {
        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let words: value::StrDeserializer<value::Error> = text.into_deserializer();
                Self::deserialize(words).map_err(|error| super::read::explain(&error.to_string()))
            }
        }
    };
}
word!(Compute);
word!(Recompute);

/// Stored in TOML as a string that [`FromStr`] reads. A plain number is read as well.
macro_rules! text {
    ($type:ty) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a string")
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                        text.parse().map_err(|error: String| E::custom(format!("the value {error}")))
                    }
                    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
                        self.visit_str(&number.to_string())
                    }
                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                        self.visit_str(&number.to_string())
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}
text!(MaxDeviation);
text!(Tolerance);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"4GiB\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(|error: String| E::custom(format!("the value {error}")))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}B", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::read::tests::load_text;

    #[test]
    fn bars_are_read_as_people_write_them_and_survive_being_written() {
        let text = "[sweep]\nmicro = [1, 2]\nprecision = [\"fp32\"]\nrecompute = [\"none\", \"blocks\"]\n\
                    max_memory = \"1.5GiB\"\nmax_deviation = \"fp32=1e-5\"\ntolerance = \"memory=2%,speed=30%\"\n";
        let config = load_text(text, &["sweep.min_images_per_second=2"]).unwrap();
        let sweep = &config.sweep;
        assert_eq!(sweep.max_memory, Some(Bytes(3 << 29)));
        assert_eq!(sweep.max_deviation, Some(MaxDeviation::ByPrecision(vec![(Compute::Fp32, 1e-5)])));
        assert_eq!(sweep.tolerance, Tolerance { memory: 0.02, speed: 0.3 });
        assert_eq!(sweep.min_images_per_second, Some(2.0));
        assert_eq!(toml::from_str::<Config>(&toml::to_string(&config).unwrap()).unwrap(), config);
        assert_eq!(
            load_text("[sweep]\nmax_deviation = 1e-5\n", &[]).unwrap().sweep.max_deviation,
            Some(MaxDeviation::All(1e-5))
        );
        assert!(!toml::to_string(&Config::default()).unwrap().contains("sweep"));
    }

    #[test]
    fn a_bar_that_makes_no_sense_points_at_its_line() {
        for (line, words) in [
            ("max_memory = \"much\"", "the value is \"much\", must be a size such as \"4GiB\""),
            ("max_deviation = \"fp33=1\"", "the value has the unknown value `fp33`, did you mean `fp32`?"),
            ("max_deviation = -1", "must be a number such as 1e-5"),
            ("tolerance = \"ten\"", "must be a share such as \"10%\""),
            ("steps = 1", "`sweep.steps` is 1, must be at least 2"),
            ("micro = [0]", "`sweep.micro` is 0, must be at least 1"),
            ("mikro = [0]", "did you mean `micro`?"),
        ] {
            let error = load_text(&format!("[sweep]\n{line}\n"), &[]).unwrap_err();
            assert!(error.starts_with("mine.toml:2: ") && error.contains(words), "{error}");
        }
    }
}
