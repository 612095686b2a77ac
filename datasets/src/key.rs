//! Counter-based randomness: every random choice has its own generator, found by what the choice is for.

use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

/// Names one sample of one run: the key of everything random about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SampleKey {
    /// The run's seed.
    pub seed: u64,
    /// The sample's position in the endless training stream, counted over all epochs.
    pub draw: u64,
}

/// What a random choice is for. Two purposes never share random numbers, so a new one leaves the others as they were.
///
/// The numbers are part of every run that can be resumed: never change one, never use one again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u64)]
pub enum Purpose {
    /// The order of an epoch; keyed by the epoch instead of a draw.
    Shuffle = 1,
    /// The choice of the validation images; one choice for a whole run.
    Split = 2,
    /// The image that stands in for a bad one.
    Substitute = 3,
    /// Where an image is cropped.
    Crop = 4,
    /// Whether an image is mirrored.
    Flip = 5,
    /// What a drawn picture shows; keyed by the picture's index.
    Shape = 6,
    /// The choice of one of several captions.
    Caption = 7,
    /// Where cutouts for CLIP are taken.
    Cutout = 8,
    /// Augmentation of what a loss or a discriminator sees.
    Augment = 9,
    /// Noise that is added to pixels or latents.
    Noise = 10,
    /// The noise by which a Gumbel quantizer draws its codes.
    Gumbel = 11,
}

impl SampleKey {
    /// The generator for one purpose: always the same for the same key and purpose, independent for any other.
    pub fn rng(self, purpose: Purpose) -> ChaCha8Rng {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&self.draw.to_le_bytes());
        key[16..24].copy_from_slice(&(purpose as u64).to_le_bytes());
        ChaCha8Rng::from_seed(key)
    }

    /// The generator for one of many choices of the same purpose: independent for any other index, and of [`Self::rng`].
    pub fn rng_at(self, purpose: Purpose, index: u64) -> ChaCha8Rng {
        let mut rng = self.rng(purpose);
        // Stream 0 is the one of `rng`.
        rng.set_stream(index.wrapping_add(1));
        rng
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::{Rng, RngExt};

    use super::*;

    #[test]
    fn each_key_and_purpose_has_its_own_numbers() {
        let mut seen = HashSet::new();
        for seed in 0..10 {
            for draw in 0..10 {
                for purpose in [Purpose::Crop, Purpose::Flip, Purpose::Noise] {
                    seen.insert(SampleKey { seed, draw }.rng(purpose).next_u64());
                }
            }
        }
        assert_eq!(seen.len(), 300);
    }

    // A resumed run must see what the interrupted one would have seen, also when it was built with newer libraries.
    #[test]
    fn numbers_never_change() {
        let mut rng = SampleKey { seed: 42, draw: 7 }.rng(Purpose::Crop);
        let numbers: Vec<u32> = (0..4).map(|_| rng.random_range(0..1000)).collect();
        assert_eq!(numbers, [585, 601, 901, 743]);

        let numbers = [0, 1, 2].map(|index| SampleKey { seed: 42, draw: 7 }.rng_at(Purpose::Cutout, index).next_u32());
        assert_eq!(numbers, [4_168_053_515, 4_101_954_229, 2_900_748_861]);
    }

    #[test]
    fn each_index_has_its_own_numbers() {
        let mut seen = HashSet::new();
        for draw in 0..10 {
            let key = SampleKey { seed: 3, draw };
            for purpose in [Purpose::Cutout, Purpose::Noise] {
                seen.insert(key.rng(purpose).next_u64());
                seen.extend((0..20).map(|index| key.rng_at(purpose, index).next_u64()));
            }
        }
        assert_eq!(seen.len(), 10 * 2 * 21);
    }
}
