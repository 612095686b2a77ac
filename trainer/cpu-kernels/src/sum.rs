//! Sums that are the same on every processor.

/// Sums in f64, eight values at a time, so that the processor can add them in parallel.
pub fn sum<T: Copy>(values: &[T], of: impl Fn(T) -> f64) -> f64 {
    let (eights, rest) = values.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for eight in eights {
        for (sum, value) in sums.iter_mut().zip(eight) {
            *sum += of(*value);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|value| of(*value)).sum::<f64>()
}
