//! Python's pickle format, read as data: protocols 0 to 5, nothing is ever imported, called or executed.
//!
//! Where Python would call a function or build an object, a [`Value::Object`] keeps the name of the callable and its
//! arguments. Values lie in one arena and name each other by [`Id`], so a value shared or nested in itself costs
//! nothing, and no hostile nesting can exhaust the call stack.

mod input;
mod machine;
mod values;

pub use values::PickleError;
pub(crate) use values::{Id, Pickle, Value};
