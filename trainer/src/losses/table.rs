//! What the tables `[losses.*]` have in common.

pub use super::loss::LossKeys;
use super::loss::{Sees, Surroundings};
use crate::problem::Problem;

/// A table `[losses.*]`: the settings of a loss.
pub trait LossTable: LossKeys {
    /// What the loss looks at.
    fn sees(&self) -> Sees;

    /// Whether the loss, if on, compares with each image's own caption.
    fn needs_captions(&self) -> bool {
        false
    }

    /// Checks the table's values and, if the loss is on, whether they fit the rest of the configuration.
    ///
    /// # Errors
    /// The first problem.
    fn check(&self, around: &Surroundings) -> Result<(), Problem>;
}

/// Defines a table `[losses.NAME]`: a strict TOML table with `weight`, `start` and `ramp`, and the listed keys with
/// their types and defaults.
macro_rules! loss_table {
    (
        $(#[$doc:meta])*
        $name:ident: $Table:ident, weight = $weight:literal,
        $($(#[$about:meta])* $key:ident: $Type:ty = $default:expr,)*
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, schemars::JsonSchema, serde::Deserialize, serde::Serialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $Table {
            /// Weight; 0 disables the loss.
            #[schemars(range(min = 0.0))]
            pub weight: f64,
            /// First optimizer step at which the weight applies.
            pub start: u64,
            /// Optimizer steps over which the weight grows.
            pub ramp: u64,
            $($(#[$about])* pub $key: $Type,)*
        }

        impl Default for $Table {
            fn default() -> Self {
                Self { weight: $weight, start: 0, ramp: 0, $($key: $default,)* }
            }
        }

        impl $crate::losses::loss::LossKeys for $Table {
            fn name(&self) -> &'static str {
                stringify!($name)
            }

            fn weight_key(&self) -> &'static str {
                concat!("losses.", stringify!($name), ".weight")
            }

            fn weight(&self) -> $crate::losses::loss::Weight {
                $crate::losses::loss::Weight { value: self.weight, start: self.start, ramp: self.ramp }
            }

            fn set_weight(&mut self, weight: $crate::losses::loss::Weight) {
                (self.weight, self.start, self.ramp) = (weight.value, weight.start, weight.ramp);
            }
        }
    };
}
pub(crate) use loss_table;
