//! A metric over the steps, and how to show it with few points.

/// A metric over the steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curve {
    /// Ascending.
    pub steps: Vec<u64>,
    /// One value for each step; NaN if the run has none.
    pub values: Vec<f64>,
}

impl Curve {
    /// Adds a step after all others.
    pub fn push(&mut self, step: u64, value: f64) {
        self.steps.push(step);
        self.values.push(value);
    }

    /// Removes `step` and all later steps.
    pub fn forget_from(&mut self, step: u64) {
        let kept = self.steps.partition_point(|at| *at < step);
        self.steps.truncate(kept);
        self.values.truncate(kept);
    }

    /// The finite values with their steps.
    pub fn points(&self) -> impl DoubleEndedIterator<Item = (u64, f64)> + '_ {
        self.steps.iter().copied().zip(self.values.iter().copied()).filter(|(_, value)| value.is_finite())
    }

    /// The last finite value.
    pub fn last(&self) -> Option<f64> {
        self.points().next_back().map(|(_, value)| value)
    }

    /// The median of the finite values.
    pub fn median(&self) -> Option<f64> {
        let mut values: Vec<f64> = self.points().map(|(_, value)| value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// The smallest and the largest finite value.
    pub fn range(&self) -> Option<(f64, f64)> {
        let values = || self.points().map(|(_, value)| value);
        Some((values().reduce(f64::min)?, values().reduce(f64::max)?))
    }

    /// The sum of the values up to each step.
    pub fn running_sum(&self) -> Self {
        let mut sum = 0.0;
        let add = |value: &f64| {
            sum += if value.is_finite() { *value } else { 0.0 };
            sum
        };
        Self { steps: self.steps.clone(), values: self.values.iter().map(add).collect() }
    }

    /// The exponential moving average over about `window` values, corrected for the bias at the start. A step without a
    /// value has no average and does not change it.
    pub fn smoothed(&self, window: f64) -> Self {
        let keep = 1.0 - 1.0 / window.max(1.0);
        let (mut sum, mut weight) = (0.0, 0.0);
        let average = |value: &f64| {
            if !value.is_finite() {
                return f64::NAN;
            }
            sum = sum * keep + value * (1.0 - keep);
            weight = weight * keep + (1.0 - keep);
            sum / weight
        };
        Self { steps: self.steps.clone(), values: self.values.iter().map(average).collect() }
    }

    /// At most `2 * buckets + 2` points that show the same curve: the first, the last, and the smallest and largest
    /// value of each bucket of neighbouring steps. A bucket without values gives one point without a value.
    pub fn decimated(&self, buckets: usize) -> Self {
        let count = self.steps.len();
        if count <= 2 * buckets + 2 {
            return self.clone();
        }
        let mut kept = vec![0];
        for bucket in 0..buckets {
            let indices = bucket * count / buckets..(bucket + 1) * count / buckets;
            let finite = || indices.clone().filter(|index| self.values[*index].is_finite());
            let by_value = |a: &usize, b: &usize| self.values[*a].total_cmp(&self.values[*b]);
            match finite().min_by(by_value).zip(finite().max_by(by_value)) {
                Some((least, greatest)) => kept.extend([least.min(greatest), least.max(greatest)]),
                None => kept.push(indices.start),
            }
        }
        kept.push(count - 1);
        kept.dedup();
        self.at(&kept)
    }

    /// At most `most` points, evenly spaced, with the first and the last.
    pub fn thinned(&self, most: usize) -> Self {
        let count = self.steps.len();
        match count <= most {
            true => self.clone(),
            false => self.at(&evenly(count, most)),
        }
    }

    fn at(&self, indices: &[usize]) -> Self {
        Self {
            steps: indices.iter().map(|index| self.steps[*index]).collect(),
            values: indices.iter().map(|index| self.values[*index]).collect(),
        }
    }
}

/// At most `most` of `0..count`, evenly spaced, with the first and the last if `most` is at least 2.
pub(crate) fn evenly(count: usize, most: usize) -> Vec<usize> {
    match most {
        _ if count <= most => (0..count).collect(),
        0 => Vec::new(),
        1 => vec![count - 1],
        _ => (0..most).map(|n| n * (count - 1) / (most - 1)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(values: impl IntoIterator<Item = f64>) -> Curve {
        let values: Vec<f64> = values.into_iter().collect();
        Curve { steps: (1..=values.len() as u64).collect(), values }
    }

    #[test]
    fn a_long_curve_keeps_its_ends_and_its_peaks() {
        let mut long = curve((0..100_000).map(|n| f64::from(n % 7)));
        long.values[54_321] = 1e6;
        long.values[77_777] = -1e6;
        let short = long.decimated(300);
        assert!(short.steps.len() <= 602 && short.steps.is_sorted(), "{}", short.steps.len());
        assert_eq!(short.range(), Some((-1e6, 1e6)));
        assert_eq!((short.steps[0], short.steps.last()), (1, Some(&100_000)));
        assert!(short.steps.iter().zip(&short.values).all(|(step, value)| long.values[*step as usize - 1] == *value));
        assert_eq!(curve([1.0, 2.0]).decimated(300), curve([1.0, 2.0]));
    }

    #[test]
    fn a_gap_stays_a_gap() {
        let mut long = curve((0..10_000).map(f64::from));
        long.values[4_000..5_000].fill(f64::NAN);
        let short = long.decimated(100);
        assert!(short.values.iter().any(|value| value.is_nan()));
        assert_eq!(short.range(), Some((0.0, 9_999.0)));
    }

    #[test]
    fn the_average_starts_at_the_first_value_and_passes_over_gaps() {
        let smooth = curve([4.0, f64::NAN, 4.0, 8.0]).smoothed(2.0);
        assert_eq!((smooth.values[0], smooth.values[2]), (4.0, 4.0));
        assert!(smooth.values[1].is_nan());
        // Weights 1/2, 1/4 and 1/8, made to add up to 1.
        assert!((smooth.values[3] - (8.0 * 4.0 + 4.0 * 2.0 + 4.0) / 7.0).abs() < 1e-12);
        assert_eq!(curve([1.0, 5.0]).smoothed(0.1), curve([1.0, 5.0]));
    }

    #[test]
    fn even_choices_have_both_ends() {
        assert_eq!(evenly(3, 5), [0, 1, 2]);
        assert_eq!(evenly(101, 3), [0, 50, 100]);
        assert_eq!(evenly(10, 1), [9]);
        assert_eq!(curve((0..1000).map(f64::from)).thinned(300).steps.len(), 300);
    }
}
