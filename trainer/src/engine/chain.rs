//! A chain of blocks that runs forward once and backward once.
//!
//! With recomputation it keeps only the input of each block. The backward pass runs a block again with a graph, and
//! frees that graph before it turns to the previous block (Chen et al. 2016, arXiv 1604.06174). A residual block, the
//! largest kind, is recomputed in two parts, so that only one of them has a graph at a time.

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::models::blocks::Block;
use crate::models::surrogate::surrogate;
use crate::models::vqgan::forward;
use crate::optim::GradientSum;
use crate::precision::Probe;

/// What the backward pass recomputes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, strum::Display, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Recompute {
    /// Nothing: the whole graph is kept, which is fastest.
    #[default]
    None,
    /// The inside of each block: only its input is kept, which takes the least memory. The gradient is the same up to
    /// the order of its sums.
    Blocks,
}

impl Recompute {
    /// All modes, fastest first.
    pub const ALL: [Self; 2] = [Self::None, Self::Blocks];
}

/// The part of a chain that gradients go through. Blocks before it run without keeping anything.
pub(super) struct Chain<'a> {
    links: Vec<Link<'a>>,
    kept: Kept,
    upstream: bool,
    probe: Option<&'a Probe>,
}

/// One block, on the autodiff device and without autodiff.
#[derive(Clone, Copy)]
struct Link<'a> {
    tracked: Block<'a>,
    plain: Block<'a>,
}

enum Kept {
    Graph(Box<Graph>),
    /// `None` where an input is recomputed from the previous one.
    Inputs(Vec<Option<Tensor<4>>>),
}

struct Graph {
    input: Tensor<4>,
    output: Tensor<4>,
}

impl<'a> Chain<'a> {
    /// Runs `input` through all blocks; input and output are without autodiff. `tracked` are the blocks on the autodiff
    /// device and `plain` the same blocks without it. `upstream` says whether something before the chain needs the
    /// gradient at its input. `probe` checks the output of each block, which requires recomputation.
    pub(super) fn forward(
        tracked: &[Block<'a>],
        plain: &[Block<'a>],
        input: Tensor<4>,
        upstream: bool,
        recompute: Recompute,
        probe: Option<&'a Probe>,
    ) -> (Self, Tensor<4>) {
        let trained = tracked.iter().position(Block::is_trained).unwrap_or(tracked.len());
        let first = if upstream { 0 } else { trained };
        let through = |block: &Block, input| {
            let output = block.forward(input);
            if let Some(probe) = probe {
                probe.forward(|| probe.name(block), &output);
            }
            output
        };
        let input = plain[..first].iter().fold(input, |input, block| through(block, input));
        let pairs = tracked.iter().zip(plain).skip(first);
        let links: Vec<Link> = pairs.map(|(&tracked, &plain)| Link { tracked, plain }).collect();
        if links.is_empty() {
            return (Self { links, kept: Kept::Inputs(Vec::new()), upstream, probe }, input);
        }
        let (kept, output) = match recompute {
            Recompute::None => {
                let input = leaf(input, upstream);
                let output = forward(&tracked[first..], input.clone());
                (Kept::Graph(Box::new(Graph { input, output: output.clone() })), output.without_autodiff())
            }
            Recompute::Blocks => {
                let (mut inputs, mut at) = (Vec::new(), input);
                for block in &plain[first..] {
                    let output = through(block, at.clone());
                    inputs.push(Some(std::mem::replace(&mut at, output)));
                }
                (Kept::Inputs(inputs), at)
            }
        };
        (Self { links, kept, upstream, probe }, output)
    }

    /// Whether [`backward`](Self::backward) needs the gradient at the output.
    pub(super) fn has_gradient(&self) -> bool {
        !self.links.is_empty()
    }

    /// Drops the largest of the blocks' inputs, for a chain whose backward pass comes much later. That pass recomputes
    /// them from the chain's first input.
    pub(super) fn drop_largest_inputs(&mut self) {
        let Kept::Inputs(inputs) = &mut self.kept else { return };
        let size = |input: &Option<Tensor<4>>| input.as_ref().map_or(0, |input| input.shape().num_elements());
        let largest = inputs.iter().map(size).max().unwrap_or(0);
        inputs.iter_mut().skip(1).filter(|input| size(input) == largest).for_each(|input| *input = None);
    }

    /// Recomputes the inputs that were dropped up to block `index`, and takes that block's input.
    fn take_input(links: &[Link], inputs: &mut [Option<Tensor<4>>], index: usize) -> Option<Tensor<4>> {
        let known = inputs[..=index].iter().rposition(Option::is_some)?;
        for at in known..index {
            inputs[at + 1] = inputs[at].clone().map(|input| links[at].plain.forward(input));
        }
        inputs[index].take()
    }

    /// Takes the gradient at the output, adds the parameters' gradients to `sum`, and returns the gradient at the input
    /// if something upstream needs it.
    pub(super) fn backward(self, at_output: Tensor<4>, sum: &mut GradientSum) -> Option<Tensor<4>> {
        match self.kept {
            Kept::Graph(graph) => {
                let Graph { input, output } = *graph;
                let mut gradients = surrogate(output, at_output).backward();
                for link in &self.links {
                    sum.add(&mut gradients, |taking| link.tracked.visit(taking));
                }
                input.grad_remove(&mut gradients)
            }
            Kept::Inputs(mut inputs) => {
                let mut at = at_output;
                for (index, link) in self.links.iter().enumerate().rev() {
                    let input = Self::take_input(&self.links, &mut inputs, index)?;
                    let at_input = link.backward(input, at, self.upstream || index > 0, sum);
                    if let Some(probe) = self.probe {
                        probe.parameters(&link.tracked, sum.so_far());
                        at_input.iter().for_each(|at| probe.backward(|| probe.name(&link.tracked), at));
                    }
                    at = at_input?;
                }
                self.upstream.then_some(at)
            }
        }
    }
}

impl Link<'_> {
    /// Runs the block again from its input, with a graph, then its backward pass. Returns the gradient at the input if
    /// `upstream` asks for it.
    fn backward(
        &self,
        input: Tensor<4>,
        at_output: Tensor<4>,
        upstream: bool,
        sum: &mut GradientSum,
    ) -> Option<Tensor<4>> {
        let (Block::Resnet(tracked), Block::Resnet(plain)) = (self.tracked, self.plain) else {
            return self.part(|x| self.tracked.forward(x), input, at_output, upstream, sum);
        };
        let middle = plain.first_half(input.clone());
        let at_middle = self.part(|h| tracked.second_half(h), middle, at_output.clone(), true, sum)?;
        let through_first = |x: Tensor<4>| {
            let around = surrogate(tracked.shortcut(x.clone()), at_output);
            surrogate(tracked.first_half(x), at_middle) + around
        };
        let input = leaf(input, upstream);
        self.take(through_first(input.clone()), input, sum)
    }

    /// Recomputes one part of the block with a graph of its own, then runs its backward pass.
    fn part(
        &self,
        run: impl FnOnce(Tensor<4>) -> Tensor<4>,
        input: Tensor<4>,
        at_output: Tensor<4>,
        upstream: bool,
        sum: &mut GradientSum,
    ) -> Option<Tensor<4>> {
        let input = leaf(input, upstream);
        self.take(surrogate(run(input.clone()), at_output), input, sum)
    }

    /// Runs the backward pass from `scalar`, if it has a graph, and returns the gradient at `input`.
    fn take(&self, scalar: Tensor<1>, input: Tensor<4>, sum: &mut GradientSum) -> Option<Tensor<4>> {
        if !scalar.is_tracked() {
            return None;
        }
        let mut gradients = scalar.backward();
        sum.add(&mut gradients, |taking| self.tracked.visit(taking));
        input.grad_remove(&mut gradients)
    }
}

fn leaf(input: Tensor<4>, with_gradient: bool) -> Tensor<4> {
    let input = input.autodiff();
    if with_gradient { input.require_grad() } else { input }
}
