//! The phases of an optimizer step, which it reports while it is computed.

use std::fmt;

/// A part of an optimizer step whose memory is measured separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before any computation: weights, optimizer state, average, networks of the losses.
    Weights,
    /// The first pass, which keeps no graph, with the losses that run in it.
    FirstPass,
    /// The forward pass of a micro-batch through the model.
    Forward,
    /// One loss with its gradient at the image; all CLIP losses count as one.
    Loss(&'static str),
    /// The backward pass through the codebook and the model.
    Backward,
    /// Norms, clipping, the optimizers and the average.
    Optimizer,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weights => "weights",
            Self::FirstPass => "first_pass",
            Self::Forward => "forward",
            Self::Loss(name) => name,
            Self::Backward => "backward",
            Self::Optimizer => "optimizer",
        })
    }
}

/// What a step reports while it is computed.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// Another part of the step begins.
    Phase(Phase),
    /// This many more samples are done.
    Samples(usize),
}
