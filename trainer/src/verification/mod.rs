//! What shows that the promises hold: `train check` on a device, `train sweep` over micro-batches. It runs trainings and reads what
//! they leave, and knows nothing of the command line.

pub mod check;
pub mod sweep;
