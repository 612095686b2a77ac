//! `[precision]`

use std::borrow::Cow;

use burn::tensor::DType;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// `[precision]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PrecisionConfig {
    /// What the model and the discriminator compute in; their weights and all sums are in f32.
    pub compute: Compute,
    /// The type of LPIPS and CLIP; the default is `compute`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Compute>,
    /// `"dynamic"`, or a number; the default is dynamic in fp16 and 1 otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScaleConfig>,
    /// Optimizer steps in a row that may be skipped because of values that are not finite; one more ends the run.
    #[schemars(range(min = 1))]
    pub max_skips: u64,
    /// How a dynamic loss scale changes; by default as PyTorch's `GradScaler` does.
    pub scaler: ScalerConfig,
}

impl Default for PrecisionConfig {
    fn default() -> Self {
        // A scale of 65,536 reaches 1 after 16 halvings.
        Self { compute: Compute::Fp32, frozen: None, loss_scale: None, max_skips: 20, scaler: ScalerConfig::default() }
    }
}

impl PrecisionConfig {
    /// What LPIPS and CLIP compute in.
    pub fn frozen(&self) -> Compute {
        self.frozen.unwrap_or(self.compute)
    }

    /// Returns the rule of a dynamic loss scale.
    ///
    /// # Errors
    /// A fixed scale, as its value.
    pub fn scaling(&self) -> Result<ScalerConfig, f64> {
        match self.loss_scale {
            Some(LossScaleConfig::Fixed(scale)) => Err(scale),
            Some(LossScaleConfig::Dynamic) => Ok(self.scaler.clone()),
            None if self.compute == Compute::Fp16 => Ok(self.scaler.clone()),
            None => Err(1.0),
        }
    }
}

/// A precision to compute in.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, strum::Display, strum::IntoStaticStr, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Compute {
    /// 32-bit floating point.
    #[default]
    Fp32,
    /// bfloat16: the range of f32 with 8 bits of precision.
    Bf16,
    /// IEEE half precision: 11 bits of precision, up to 65,504.
    Fp16,
}

impl Compute {
    /// All precisions, widest first.
    pub const ALL: [Self; 3] = [Self::Fp32, Self::Bf16, Self::Fp16];

    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The type of tensors.
    pub fn dtype(self) -> DType {
        match self {
            Self::Fp32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::Fp16 => DType::F16,
        }
    }
}

/// `precision.loss_scale`
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum LossScaleConfig {
    /// Changes by `[precision.scaler]`.
    #[serde(serialize_with = "dynamic")]
    Dynamic,
    /// The same in every step; 1 does not scale.
    Fixed(f64),
}

const DYNAMIC: &str = "dynamic";

fn dynamic<S: serde::Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(DYNAMIC)
}

impl JsonSchema for LossScaleConfig {
    fn schema_name() -> Cow<'static, str> {
        "LossScale".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "const": DYNAMIC, "description": "Changes by `[precision.scaler]`." },
            { "type": "number", "exclusiveMinimum": 0 },
        ] })
    }
}

impl<'de> Deserialize<'de> for LossScaleConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = LossScaleConfig;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("\"dynamic\" or a number")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                match text {
                    DYNAMIC => Ok(LossScaleConfig::Dynamic),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }

            fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
                Ok(LossScaleConfig::Fixed(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
                Ok(LossScaleConfig::Fixed(value as f64))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
                Ok(LossScaleConfig::Fixed(value as f64))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// `[precision.scaler]`: how a dynamic loss scale changes. The defaults are those of PyTorch's `GradScaler`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScalerConfig {
    /// The scale of the first step.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub init: f64,
    /// Factor of the scale after `growth_interval` steps without an overflow.
    #[schemars(extend("exclusiveMinimum" = 1))]
    pub growth_factor: f64,
    /// Factor of the scale after an overflow.
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub backoff_factor: f64,
    /// Steps in a row without an overflow before the scale grows.
    #[schemars(range(min = 1))]
    pub growth_interval: u64,
    /// The smallest scale.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub min: f64,
}

impl Default for ScalerConfig {
    fn default() -> Self {
        Self { init: 65536.0, growth_factor: 2.0, backoff_factor: 0.5, growth_interval: 2000, min: 1.0 }
    }
}
