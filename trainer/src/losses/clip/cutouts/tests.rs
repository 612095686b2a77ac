//! Plans and views as a whole; each augmentation has its tests beside it.

use burn::tensor::{DType, Device};

use super::*;
use crate::losses::clip::fixture::Expected;

const HEIGHT: usize = 12;
const WIDTH: usize = 10;
const SIZE: usize = 7;

fn plain(size: usize) -> CutoutSettings {
    let probability = 0.0;
    let (affine, perspective, jitter, erasing) = (probability, probability, probability, probability);
    CutoutSettings { count: 3, power: 1.0, size, affine, perspective, jitter, erasing, noise: 0.0 }
}

fn augmented(probability: f64) -> CutoutSettings {
    let (affine, perspective, jitter, erasing) = (probability, probability, probability, probability);
    CutoutSettings { affine, perspective, jitter, erasing, noise: 0.1, ..plain(SIZE) }
}

fn key(draw: u64) -> SampleKey {
    SampleKey { seed: 11, draw }
}

fn wave(samples: usize) -> Vec<f64> {
    (0..samples * 3 * HEIGHT * WIDTH).map(|i| (i as f64 * 1.7 + 0.3).sin()).collect()
}

fn images(values: &[f64]) -> Tensor<4> {
    let data = TensorData::new(values.to_vec(), [values.len() / (3 * HEIGHT * WIDTH), 3, HEIGHT, WIDTH]);
    Tensor::from_data(data, (&Device::flex(), DType::F64))
}

fn read(tensor: Tensor<4>) -> Vec<f64> {
    tensor.cast(DType::F64).into_data().try_into_vec().unwrap()
}

fn assert_near(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(off < tolerance, "{off:e}");
}

fn draw(cutouts: &Cutouts, samples: u64, indices: std::ops::Range<usize>) -> Vec<Vec<Cutout>> {
    (0..samples).map(|draw| cutouts.draw(key(draw), indices.clone(), HEIGHT, WIDTH)).collect()
}

#[test]
fn a_plan_is_a_pure_function_of_sample_and_index() {
    let cutouts = Cutouts::new(augmented(0.5));
    let all = cutouts.draw(key(3), 0..40, HEIGHT, WIDTH);
    let parts = [cutouts.draw(key(3), 0..7, HEIGHT, WIDTH), cutouts.draw(key(3), 7..40, HEIGHT, WIDTH)].concat();
    assert_eq!(all, parts);
    let mut backwards = cutouts.draw(key(3), (0..40).rev(), HEIGHT, WIDTH);
    backwards.reverse();
    assert_eq!(all, backwards);
    let distinct = |plans: &[Cutout]| (1..plans.len()).all(|i| !plans[..i].contains(&plans[i]));
    assert!(distinct(&all));
    assert_ne!(all, cutouts.draw(key(4), 0..40, HEIGHT, WIDTH));
}

#[test]
fn switching_one_augmentation_off_leaves_the_others_as_they_are() {
    let settings = augmented(1.0);
    let all = Cutout::draw(&settings, key(1), 2, HEIGHT, WIDTH);
    let some = CutoutSettings { affine: 0.0, perspective: 0.0, jitter: 0.0, ..settings };
    let some = Cutout::draw(&some, key(1), 2, HEIGHT, WIDTH);
    assert_eq!(some, Cutout { warp: None, colour: None, ..all });
}

#[test]
fn sides_are_uniform_at_power_1_and_positions_reach_both_ends() {
    let settings = CutoutSettings { size: 20, ..plain(20) };
    let windows: Vec<Window> = (0..4000).map(|index| Cutout::draw(&settings, key(0), index, 120, 150).window).collect();
    assert!(windows.iter().all(|w| (20..120).contains(&w.side)));
    assert!(windows.iter().all(|w| w.top + w.side <= 120 && w.left + w.side <= 150));
    let mean = |of: &dyn Fn(&Window) -> f64| windows.iter().map(of).sum::<f64>() / windows.len() as f64;
    // Uniform over 20..=119: mean 69.5, deviation 29, so 0.46 for the mean of 4000.
    assert!((mean(&|w| w.side as f64) - 69.5).abs() < 1.5, "{}", mean(&|w| w.side as f64));
    assert!((mean(&|w| w.left as f64 / (150 - w.side) as f64) - 0.5).abs() < 0.02);
    assert!((mean(&|w| w.top as f64 / (120 - w.side) as f64) - 0.5).abs() < 0.02);
    assert!(windows.iter().any(|w| w.left == 0) && windows.iter().any(|w| w.left + w.side == 150));
}

#[test]
fn a_power_above_1_prefers_small_cutouts_and_0_takes_all() {
    let sides = |power: f64| -> Vec<f64> {
        let settings = CutoutSettings { power, ..plain(20) };
        (0..4000).map(|index| Cutout::draw(&settings, key(0), index, 120, 120).window.side as f64).collect()
    };
    let mean = sides(2.0).iter().sum::<f64>() / 4000.0;
    // 20 + 100 / 3, minus the half lost by rounding down.
    assert!((mean - 52.83).abs() < 1.5, "{mean}");
    assert!(sides(0.0).iter().all(|&side| side == 120.0));
}

#[test]
fn an_image_smaller_than_clips_input_is_seen_whole() {
    for index in 0..20 {
        let window = Cutout::draw(&plain(224), key(0), index, 64, 64).window;
        assert_eq!(window, Window { top: 0, left: 0, side: 64 });
    }
}

#[test]
fn without_augmentation_the_whole_image_is_resized() {
    let side = HEIGHT.min(WIDTH);
    let cutouts = Cutouts::new(CutoutSettings { power: 0.0, ..plain(SIZE) });
    let plans = draw(&cutouts, 2, 0..1);
    let found = read(cutouts.apply(images(&wave(2)), &plans));
    let (values, mut expected) = (wave(2), Vec::new());
    for (sample, plan) in plans.iter().enumerate() {
        let Window { top, left, side: drawn } = plan[0].window;
        assert_eq!((drawn, left), (side, 0));
        let rows = resample_weights(HEIGHT, (top as f64, side as f64), SIZE);
        let columns = resample_weights(WIDTH, (0.0, side as f64), SIZE);
        for at in 0..3 * SIZE * SIZE {
            let (channel, row, column) = (at / (SIZE * SIZE), at / SIZE % SIZE, at % SIZE);
            let mut sum = 0.0;
            for y in 0..HEIGHT {
                for x in 0..WIDTH {
                    let pixel = values[((sample * 3 + channel) * HEIGHT + y) * WIDTH + x];
                    sum += rows[row * HEIGHT + y] * columns[column * WIDTH + x] * pixel;
                }
            }
            expected.push(sum);
        }
    }
    assert_near(&found, &expected, 1e-12);
}

#[test]
fn a_cutout_of_clips_size_is_that_part_of_the_image() {
    let cutouts = Cutouts::new(plain(SIZE));
    let mut plan = Cutout::draw(&plain(SIZE), key(0), 0, HEIGHT, WIDTH);
    plan.window = Window { top: 4, left: 1, side: SIZE };
    let whole = images(&wave(1));
    let expected = read(whole.clone().slice([0..1, 0..3, 4..4 + SIZE, 1..1 + SIZE]));
    assert_near(&read(cutouts.apply(whole, &[vec![plan]])), &expected, 1e-12);
}

#[test]
fn views_do_not_depend_on_what_they_are_taken_with() {
    let cutouts = Cutouts::new(augmented(0.6));
    let (samples, k) = (3, 4);
    let values = wave(samples);
    let plans = draw(&cutouts, samples as u64, 0..k);
    let together = read(cutouts.apply(images(&values), &plans));
    let view = together.len() / (samples * k);
    for (sample, plans) in plans.iter().enumerate() {
        let alone = images(&values).narrow(0, sample, 1);
        for (index, plan) in plans.iter().enumerate() {
            let found = read(cutouts.apply(alone.clone(), &[vec![plan.clone()]]));
            assert_near(&found, &together[(sample * k + index) * view..][..view], 1e-12);
        }
    }
}

#[test]
fn the_gradient_at_the_image_is_that_of_finite_differences() {
    let cutouts = Cutouts::new(augmented(1.0));
    let plans = draw(&cutouts, 2, 0..2);
    let all = |cutout: &Cutout| {
        cutout.warp.is_some() && cutout.colour.is_some() && cutout.hole.is_some() && cutout.noise.is_some()
    };
    assert!(plans.iter().flatten().all(all));
    // Cubic in the pixels, with a different weight for each value of each view.
    let loss = |images: Tensor<4>| {
        let views = cutouts.apply(images, &plans);
        let weights: Vec<f64> = (0..views.shape().num_elements()).map(|i| (i as f64 * 0.9).cos()).collect();
        let place = (&views.device(), views.dtype());
        let weights = Tensor::<4>::from_data(TensorData::new(weights, views.dims()), place);
        (views.powi_scalar(3) * weights).sum()
    };
    let start = wave(2);
    let leaf = images(&start).autodiff().require_grad();
    let gradient = read(leaf.grad_remove(&mut loss(leaf.clone()).backward()).unwrap());
    assert!(gradient.iter().filter(|g| g.abs() > 1e-2).count() > gradient.len() / 4);
    let step = 1e-5;
    for index in (0..start.len()).step_by(7) {
        let value = |amount: f64| -> f64 {
            let mut values = start.clone();
            values[index] += amount;
            loss(images(&values)).into_data().try_into_vec().unwrap()[0]
        };
        let difference = (value(step) - value(-step)) / (2.0 * step);
        assert!((difference - gradient[index]).abs() < 1e-8, "{index}: {} against {difference}", gradient[index]);
    }
}

#[test]
fn an_autodiff_device_and_every_type_give_the_same_views() {
    let cutouts = Cutouts::new(augmented(1.0));
    let plans = draw(&cutouts, 2, 0..3);
    let whole = images(&wave(2));
    let expected = read(cutouts.apply(whole.clone(), &plans));
    let tracked = cutouts.apply(whole.clone().autodiff(), &plans);
    assert!(tracked.is_autodiff());
    assert_eq!(read(tracked.without_autodiff()), expected);
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 5e-3), (DType::BF16, 4e-2)] {
        let views = cutouts.apply(whole.clone().cast(dtype).autodiff(), &plans);
        assert_eq!((views.dtype(), views.dims()), (dtype, [6, 3, SIZE, SIZE]));
        assert_near(&read(views.without_autodiff()), &expected, tolerance);
    }
}

#[test]
fn a_whole_axis_is_resampled_as_pytorch_does_it() {
    let expected = Expected::open();
    for (input, output) in [(7, 7), (5, 12), (12, 5), (31, 4)] {
        let found = resample_weights(input, (0.0, input as f64), output);
        assert_near(&found, &expected.read(&format!("resize.{input}to{output}")), 1e-12);
    }
}

// Pillow computes in single precision.
#[test]
fn a_window_is_resampled_as_pillow_does_it() {
    let expected = Expected::open();
    for (name, window, output) in [("inside", (3.0, 9.0), 4), ("enlarged", (6.0, 4.0), 9), ("end", (11.5, 8.5), 3)] {
        let found = resample_weights(20, window, output);
        assert_near(&found, &expected.read(&format!("window.{name}")), 1e-6);
    }
}
