//! A chain of blocks that runs forward once and backward once.
//!
//! With recomputation it keeps no more than each block's input: the backward pass runs a block again, this time with a
//! graph, and frees that graph before it goes on to the block before (Chen et al. 2016, arXiv 1604.06174).

use burn::tensor::Tensor;

use crate::gradients::GradientSum;
use crate::models::blocks::Block;
use crate::models::vqgan::forward;

/// What a chain keeps between its forward and its backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpoint {
    /// The whole graph: the least work.
    None,
    /// The blocks' inputs: the least memory. The same gradient up to the order of its sums.
    Blocks,
}

/// The part of a chain that gradients go through; blocks before it have run and left nothing behind.
pub(super) struct Chain<'a> {
    blocks: Vec<Block<'a>>,
    kept: Kept,
    upstream: bool,
}

enum Kept {
    Graph(Box<Graph>),
    Inputs(Vec<Tensor<4>>),
}

struct Graph {
    input: Tensor<4>,
    output: Tensor<4>,
}

impl<'a> Chain<'a> {
    /// Runs `input`, which is without autodiff as the output is, through all blocks. `tracked` are the blocks on the
    /// autodiff device and `plain` the same blocks without it. `upstream` says whether something before the chain needs
    /// the gradient at its input.
    pub(super) fn forward(
        tracked: Vec<Block<'a>>,
        plain: &[Block],
        input: Tensor<4>,
        upstream: bool,
        checkpoint: Checkpoint,
    ) -> (Self, Tensor<4>) {
        let trained = tracked.iter().position(Block::is_trained).unwrap_or(tracked.len());
        let first = if upstream { 0 } else { trained };
        let input = forward(&plain[..first], input);
        let blocks = tracked[first..].to_vec();
        if blocks.is_empty() {
            return (Self { blocks, kept: Kept::Inputs(Vec::new()), upstream }, input);
        }
        let (kept, output) = match checkpoint {
            Checkpoint::None => {
                let input = leaf(input, upstream);
                let output = forward(&blocks, input.clone());
                (Kept::Graph(Box::new(Graph { input, output: output.clone() })), output.without_autodiff())
            }
            Checkpoint::Blocks => {
                let (mut inputs, mut at) = (Vec::new(), input);
                for block in &plain[first..] {
                    let output = block.forward(at.clone());
                    inputs.push(std::mem::replace(&mut at, output));
                }
                (Kept::Inputs(inputs), at)
            }
        };
        (Self { blocks, kept, upstream }, output)
    }

    /// Whether [`backward`](Self::backward) needs the gradient at the output.
    pub(super) fn has_gradient(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Takes the gradient at the output, adds the parameters' gradients to `sum`, and returns the gradient at the input if
    /// something upstream needs it.
    pub(super) fn backward(self, at_output: Tensor<4>, sum: &mut GradientSum) -> Option<Tensor<4>> {
        match self.kept {
            Kept::Graph(graph) => {
                let Graph { input, output } = *graph;
                let mut gradients = surrogate(output, at_output).backward();
                for block in &self.blocks {
                    sum.add(&mut gradients, |taking| block.visit(taking));
                }
                input.grad_remove(&mut gradients)
            }
            Kept::Inputs(mut inputs) => {
                let mut at = at_output;
                for (index, block) in self.blocks.iter().enumerate().rev() {
                    let input = leaf(inputs.pop()?, self.upstream || index > 0);
                    let mut gradients = surrogate(block.forward(input.clone()), at).backward();
                    sum.add(&mut gradients, |taking| block.visit(taking));
                    at = input.grad_remove(&mut gradients)?;
                }
                // Without blocks the chain is not run, and the gradient at its output is that at its input.
                self.upstream.then_some(at)
            }
        }
    }
}

fn leaf(input: Tensor<4>, with_gradient: bool) -> Tensor<4> {
    let input = input.autodiff();
    if with_gradient { input.require_grad() } else { input }
}

/// A scalar whose gradient at `output` is `gradient`.
pub(super) fn surrogate<const D: usize>(output: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    (output * gradient.autodiff()).sum()
}
