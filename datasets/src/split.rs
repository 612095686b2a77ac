//! Which images are for training, and which for validation.

use rand::seq::SliceRandom;

use crate::error::DataError;
use crate::key::{Purpose, SampleKey};

/// How many images are for validation, and never trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Validation {
    /// This number of images.
    Count(usize),
    /// This fraction of the images, at least 0 and below 1. At least one image if the fraction is not 0.
    Fraction(f64),
}

/// The indices of a source in two parts without a common index, each in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// For training; never empty.
    pub train: Vec<usize>,
    /// For validation; may be empty.
    pub validation: Vec<usize>,
}

impl Split {
    /// Divides the indices below `len`. The result depends on the arguments alone. With the same `len` and `seed`, a
    /// larger validation part contains a smaller one.
    ///
    /// # Errors
    /// There are no images, none is left to train on, or the fraction is not in 0..1.
    pub fn new(len: usize, validation: Validation, seed: u64) -> Result<Self, DataError> {
        if len == 0 {
            return Err(DataError::EmptySet);
        }
        let wanted = match validation {
            Validation::Count(count) => count,
            Validation::Fraction(fraction) if !(0.0..1.0).contains(&fraction) => {
                return Err(DataError::ValidationFraction { fraction: fraction.to_string() });
            }
            Validation::Fraction(0.0) => 0,
            Validation::Fraction(fraction) => {
                let rounded = (fraction * len as f64).round() as usize;
                rounded.clamp(1, (len - 1).max(1))
            }
        };
        if wanted >= len {
            return Err(DataError::ValidationTooLarge { wanted, len });
        }
        let mut order: Vec<usize> = (0..len).collect();
        order.shuffle(&mut SampleKey { seed, draw: 0 }.rng(Purpose::Split));
        let mut train = order.split_off(wanted);
        let mut validation = order;
        train.sort_unstable();
        validation.sort_unstable();
        Ok(Self { train, validation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint_and_complete() {
        for (len, validation, expected) in [
            (100, Validation::Count(13), 13),
            (100, Validation::Count(0), 0),
            (100, Validation::Fraction(0.25), 25),
            (100, Validation::Fraction(0.0), 0),
            (100, Validation::Fraction(0.001), 1),
            (100, Validation::Fraction(0.9999), 99),
            (2, Validation::Fraction(0.1), 1),
            (2, Validation::Fraction(0.99), 1),
            (2, Validation::Count(1), 1),
            (1, Validation::Count(0), 0),
        ] {
            let split = Split::new(len, validation, 5).unwrap();
            assert_eq!(split.validation.len(), expected, "{len} {validation:?}");
            assert!(split.train.is_sorted() && split.validation.is_sorted());
            let mut all = [split.train, split.validation].concat();
            all.sort_unstable();
            assert_eq!(all, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_seed_decides_and_a_smaller_part_lies_in_a_larger() {
        let split = |count, seed| Split::new(1000, Validation::Count(count), seed).unwrap();
        assert_eq!(split(50, 1), split(50, 1));
        assert_ne!(split(50, 1), split(50, 2));
        let large = split(100, 1).validation;
        assert!(split(50, 1).validation.iter().all(|index| large.contains(index)));
        // Spread over the whole source, not its beginning or its end.
        assert!(large[..50].iter().all(|index| *index < 700) && large[50..].iter().all(|index| *index > 300));
    }

    #[test]
    fn the_impossible_is_refused() {
        for (len, validation) in [
            (0, Validation::Count(0)),
            (10, Validation::Count(10)),
            (10, Validation::Count(usize::MAX)),
            (1, Validation::Count(1)),
            (1, Validation::Fraction(0.5)),
            (10, Validation::Fraction(1.0)),
            (10, Validation::Fraction(-0.1)),
            (10, Validation::Fraction(f64::NAN)),
        ] {
            assert!(Split::new(len, validation, 0).is_err(), "{len} {validation:?}");
        }
    }
}
