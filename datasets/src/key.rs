//! Counter-based random numbers: every random choice has its own generator, seeded by what the choice is for.

use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

/// One sample of one run. All random choices for the sample depend on this key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SampleKey {
    /// The run's seed.
    pub seed: u64,
    /// The position of the sample in the endless training stream, over all epochs.
    pub draw: u64,
}

/// What a random choice is for. Two purposes never share random numbers, so adding a purpose does not change the
/// others.
///
/// Never change or reuse the number of a purpose: a resumed run must make the same choices as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u64)]
pub enum Purpose {
    /// The order of an epoch. The key has the epoch in place of the draw.
    Shuffle = 1,
    /// Which images are for validation; one choice for a whole run.
    Split = 2,
    /// The image that replaces a bad one.
    Substitute = 3,
    /// Where an image is cropped.
    Crop = 4,
    /// Whether an image is mirrored.
    Flip = 5,
    /// What an image of shapes shows. The key has the index of the image in place of the draw.
    Shape = 6,
    /// Which of several captions is taken.
    Caption = 7,
    /// Where cutouts for CLIP are taken.
    Cutout = 8,
    /// Augmentation of the images that a loss or a discriminator sees.
    Augment = 9,
    /// Noise that is added to pixels or latents.
    Noise = 10,
    /// The noise with which a Gumbel quantizer draws its codes.
    Gumbel = 11,
}

impl SampleKey {
    /// The generator for one purpose. It depends on the key and the purpose alone.
    pub fn rng(self, purpose: Purpose) -> ChaCha8Rng {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&self.draw.to_le_bytes());
        key[16..24].copy_from_slice(&(purpose as u64).to_le_bytes());
        ChaCha8Rng::from_seed(key)
    }

    /// The generator for one of many choices with the same purpose. Every index has another one, and so has
    /// [`Self::rng`].
    pub fn rng_at(self, purpose: Purpose, index: u64) -> ChaCha8Rng {
        let mut rng = self.rng(purpose);
        // `rng` uses stream 0.
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
