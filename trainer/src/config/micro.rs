//! `batch.micro`

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `batch.micro`: the samples on the device at a time. The gradient does not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Micro {
    /// As many as fit `memory.limit`, measured at the start of the run.
    Auto,
    /// This many.
    Samples(usize),
}

const AUTO: &str = "auto";

impl Micro {
    /// The number of samples, if it is known before anything is measured.
    pub fn samples(self) -> Option<usize> {
        match self {
            Self::Auto => None,
            Self::Samples(samples) => Some(samples),
        }
    }
}

impl fmt::Display for Micro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str(AUTO),
            Self::Samples(samples) => samples.fmt(f),
        }
    }
}

impl Serialize for Micro {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Samples(samples) => samples.serialize(serializer),
        }
    }
}

impl JsonSchema for Micro {
    fn schema_name() -> Cow<'static, str> {
        "Micro".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "const": AUTO, "description": "As many as fit `memory.limit`, measured at the start of the run." },
            { "type": "integer", "minimum": 1 },
        ] })
    }
}

impl<'de> Deserialize<'de> for Micro {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Micro;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("\"auto\" or a number of samples")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Micro, E> {
                match text {
                    AUTO => Ok(Micro::Auto),
                    other => Err(E::invalid_value(Unexpected::Str(other), &self)),
                }
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Micro, E> {
                let samples = usize::try_from(number);
                samples.map(Micro::Samples).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Micro, E> {
                let samples = usize::try_from(number);
                samples.map(Micro::Samples).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
