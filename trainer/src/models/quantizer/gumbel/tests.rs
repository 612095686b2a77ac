use burn::tensor::{DType, Device};

use super::*;
use crate::losses::divergence;

const CODES: usize = 5;
const DIM: usize = 3;
const SIDE: usize = 2;
const POSITIONS: usize = 2 * SIDE * SIDE;

/// The inputs of a Gumbel quantizer, in f64: latents as vectors, projection, bias, codes.
#[derive(Clone)]
struct Inputs([Vec<f64>; 4]);

impl Inputs {
    fn new() -> Self {
        let wave = |count: usize, phase: f64| (0..count).map(|i| 0.8 * (i as f64 * 1.7 + phase).sin()).collect();
        Self([wave(POSITIONS * DIM, 0.3), wave(CODES * DIM, 1.1), wave(CODES, 2.0), wave(CODES * DIM, 0.7)])
    }

    fn nudged(&self, (input, index): (usize, usize), amount: f64) -> Self {
        let mut nudged = self.clone();
        nudged.0[input][index] += amount;
        nudged
    }

    fn leaf<const D: usize>(&self, input: usize, shape: [usize; D]) -> Tensor<D> {
        let data = TensorData::new(self.0[input].clone(), shape);
        Tensor::from_data(data, (&Device::flex().autodiff(), DType::F64)).require_grad()
    }

    fn terms(&self, sampling: Option<Sampling>) -> GumbelTerms {
        GumbelTerms {
            vectors: self.leaf(0, [POSITIONS, DIM]),
            weight: self.leaf(1, [CODES, DIM]),
            bias: self.leaf(2, [CODES]),
            embed: self.leaf(3, [CODES, DIM]),
            per_sample: SIDE * SIDE,
            sampling,
        }
    }
}

fn sampling() -> Sampling {
    Sampling { noise: Arc::new(SeededNoise { seed: 3 }), draws: vec![8, 5], temperature: 0.6 }
}

fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.without_autodiff().into_data().try_into_vec().unwrap()
}

fn gradients(terms: &GumbelTerms, scalar: Tensor<1>) -> [Vec<f64>; 4] {
    let gradients = scalar.backward();
    let read2 = |leaf: &Tensor<2>| leaf.grad(&gradients).map(read).unwrap_or_default();
    [
        read2(&terms.vectors),
        read2(&terms.weight),
        terms.bias.grad(&gradients).map(read).unwrap_or_default(),
        read2(&terms.embed),
    ]
}

/// Compares `gradients` with central differences of `value`.
fn check(gradients: &[Vec<f64>], value: impl Fn(&Inputs) -> f64) {
    let (inputs, step) = (Inputs::new(), 1e-6);
    for (input, gradient) in gradients.iter().enumerate() {
        assert_eq!(gradient.len(), inputs.0[input].len());
        assert!(gradient.iter().any(|g| g.abs() > 1e-3), "{input}: {gradient:?}");
        for (index, found) in gradient.iter().enumerate() {
            let at = |amount| value(&inputs.nudged((input, index), amount));
            let difference = (at(step) - at(-step)) / (2.0 * step);
            assert!((difference - found).abs() < 1e-8, "{input} {index}: {found} against {difference}");
        }
    }
}

#[test]
fn the_divergences_gradient_is_that_of_finite_differences() {
    let value = |inputs: &Inputs| read(divergence(&inputs.terms(Some(sampling()))).0)[0];
    let terms = Inputs::new().terms(Some(sampling()));
    let [vectors, weight, bias, embed] = gradients(&terms, divergence(&terms).1);
    assert!(embed.is_empty(), "the codes have no part in it");
    check(&[vectors, weight, bias], value);
    // The divergence ignores noise, and it is 0 for even probabilities.
    assert_eq!(value(&Inputs::new()), read(divergence(&Inputs::new().terms(None)).0)[0]);
    let mut even = Inputs::new();
    even.0[1].fill(0.0);
    even.0[2].fill(0.0);
    assert!(value(&even).abs() < 1e-9, "{}", value(&even));
}

/// The straight-through gradient is the derivative of the mean of the codes, weighted by their probabilities.
#[test]
fn the_gradient_through_a_choice_is_that_of_finite_differences_of_the_softmax() {
    let at_latent: Vec<f64> = (0..POSITIONS * DIM).map(|i| (i as f64 * 0.9).cos()).collect();
    for sampling in [Some(sampling()), None] {
        let temperature = sampling.as_ref().map_or(1.0, |sampling| sampling.temperature);
        let gradient = || {
            let rows = Tensor::<2>::from_data(
                TensorData::new(at_latent.clone(), [POSITIONS, DIM]),
                (&Device::flex(), DType::F64),
            );
            rows.reshape([2, SIDE, SIDE, DIM]).permute([0, 3, 1, 2])
        };
        let value = |inputs: &Inputs| {
            let terms = inputs.terms(sampling.clone());
            let mut sum = 0.0;
            terms.each_tile(|logits, _, rows| {
                let shares = softmax(terms.with_noise(logits, rows.clone()) / temperature, 1);
                let mean = shares.matmul(terms.embed.clone().without_autodiff());
                let at_latent = as_vectors(gradient(), DType::F64).narrow(0, rows.start, rows.len());
                sum += read((mean * at_latent).sum())[0];
            });
            sum
        };
        let terms = Inputs::new().terms(sampling.clone());
        let codes = [0, 4, 4, 1, 0, 2, 4, 0];
        let indices = Tensor::<1, Int>::from_data(codes, &Device::flex());
        let [vectors, weight, bias, embed] = gradients(&terms, terms.straight_through(indices, gradient()));
        check(&[vectors, weight, bias], value);
        // Only the chosen codes learn.
        let mut expected = vec![0.0; CODES * DIM];
        for (code, at) in codes.iter().zip(at_latent.chunks(DIM)) {
            expected[*code as usize * DIM..].iter_mut().zip(at).for_each(|(sum, at)| *sum += at);
        }
        assert!(embed.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12), "{embed:?} {expected:?}");
    }
}

#[test]
fn noise_is_distributed_as_gumbel_says() {
    const COUNT: usize = 200_000;
    let mut values = vec![0.0; COUNT];
    SeededNoise { seed: 1 }.fill(2, 3, &mut values);
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / COUNT as f64;
    let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / COUNT as f64;
    assert!((mean - 0.577_215_7).abs() < 0.01, "{mean}");
    assert!((variance - std::f64::consts::PI.powi(2) / 6.0).abs() < 0.02, "{variance}");
    // P(g < x) = exp(-exp(-x)).
    for x in [-1.0f32, 0.0, 1.0, 3.0] {
        let share = values.iter().filter(|v| **v < x).count() as f64 / COUNT as f64;
        let expected = (-f64::from(-x).exp()).exp();
        assert!((share - expected).abs() < 0.005, "{x}: {share} against {expected}");
    }
    assert!(values.iter().all(|v| v.is_finite()));
}

#[test]
fn a_position_has_its_own_noise_and_a_sample_has_it_in_any_company() {
    let noise = |draws: &[u64], rows: Range<usize>| -> Vec<f64> {
        let sampling = Sampling { draws: draws.to_vec(), ..sampling() };
        let logits = Tensor::<2>::zeros([rows.len(), CODES], (&Device::flex(), DType::F64));
        read(Inputs::new().terms(Some(sampling)).with_noise(logits, rows))
    };
    let together = noise(&[8, 5], 0..8);
    assert_eq!(noise(&[5], 0..4), together[4 * CODES..]);
    assert_eq!(noise(&[8, 5], 3..6), together[3 * CODES..6 * CODES]);
    let mut positions: Vec<&[f64]> = together.chunks(CODES).collect();
    positions.sort_by(|a, b| a.partial_cmp(b).unwrap());
    assert!(positions.windows(2).all(|pair| pair[0] != pair[1]), "{positions:?}");
    let mut other = vec![0.0; CODES];
    SeededNoise { seed: 4 }.fill(8, 0, &mut other);
    assert_ne!(f64::from(other[0]), together[0]);
}

/// Over many draws, each code occurs as often as its probability says.
#[test]
fn codes_are_drawn_by_their_probabilities() {
    const DRAWS: u64 = 4000;
    let quantizer = |inputs: &Inputs| GumbelQuantizer {
        proj: Projection {
            weight: Param::from_tensor(inputs.leaf(1, [CODES, DIM, 1, 1])),
            bias: Param::from_tensor(inputs.leaf(2, [CODES])),
        },
        embed: Embedding { weight: Param::from_tensor(inputs.leaf(3, [CODES, DIM])) },
    };
    let inputs = Inputs::new();
    let one = inputs.leaf(0, [POSITIONS, DIM]).without_autodiff().narrow(0, 0, 1);
    let latent = one.clone().reshape([1, DIM, 1, 1]).repeat_dim(0, DRAWS as usize);
    let quantizer = quantizer(&inputs).valid();
    let sampling = Sampling { draws: (0..DRAWS).collect(), ..sampling() };
    let drawn = quantizer.forward(latent.clone(), Some(sampling));
    let counts = super::super::count_codes(drawn.codes.clone(), CODES).into_data().try_into_vec::<f32>().unwrap();
    let logits = one.matmul(quantizer.proj.weight.val().reshape([CODES, DIM]).swap_dims(0, 1))
        + quantizer.proj.bias.val().unsqueeze::<2>();
    let probabilities = read(softmax(logits, 1));
    for (count, probability) in counts.iter().zip(&probabilities) {
        let share = f64::from(*count) / DRAWS as f64;
        assert!((share - probability).abs() < 0.03, "{counts:?} {probabilities:?}");
    }
    // Without noise the likeliest code is always chosen, and the decoder gets its vector.
    let likeliest = (0..CODES).max_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b])).unwrap();
    let plain = quantizer.forward(latent, None);
    assert!(
        plain.codes.into_data().convert::<i64>().try_into_vec::<i64>().unwrap().iter().all(|c| *c == likeliest as i64)
    );
    assert_eq!(read(plain.latent.narrow(0, 0, 1)), inputs.0[3][likeliest * DIM..][..DIM]);
}
