//! Bicubic resampling of one axis (Keys 1981) that widens as it shrinks, as Pillow and PyTorch's `antialias` do it.

/// Keys' parameter in Pillow, and in PyTorch with `antialias`.
const A: f64 = -0.5;

/// Pixels on either side of a point that the kernel reaches when nothing shrinks.
const REACH: f64 = 2.0;

/// Weights that take the window `(start, length)` of an axis of `input` pixels to `output` pixels: `[output, input]`, row by
/// row, each row of sum 1. The window is in pixels from the axis' first edge and may begin and end between two pixels.
///
/// As with Pillow's `box`, pixels around the window count where the kernel reaches them; what lies beyond the axis does not.
pub fn resample_weights(input: usize, (start, length): (f64, f64), output: usize) -> Vec<f64> {
    let scale = length / output as f64;
    let widening = scale.max(1.0);
    let reach = REACH * widening;
    let mut weights = vec![0.0; output * input];
    for (index, row) in weights.chunks_exact_mut(input.max(1)).enumerate() {
        let center = start + (index as f64 + 0.5) * scale;
        let first = (center - reach + 0.5).max(0.0) as usize;
        let last = ((center + reach + 0.5).max(0.0) as usize).min(input);
        let taps = row.get_mut(first..last).unwrap_or_default();
        for (offset, tap) in taps.iter_mut().enumerate() {
            *tap = kernel(((first + offset) as f64 + 0.5 - center) / widening);
        }
        let sum: f64 = taps.iter().sum();
        taps.iter_mut().for_each(|tap| *tap /= sum);
    }
    weights
}

fn kernel(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < REACH {
        A * (((x - 5.0) * x + 8.0) * x - 4.0)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::clip::fixture::Expected;

    fn assert_near(found: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < tolerance, "{off:e}");
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
        for (name, window, output) in [("inside", (3.0, 9.0), 4), ("enlarged", (6.0, 4.0), 9), ("end", (11.5, 8.5), 3)]
        {
            let found = resample_weights(20, window, output);
            assert_near(&found, &expected.read(&format!("window.{name}")), 1e-6);
        }
    }
}
