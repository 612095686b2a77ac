//! The order in which images are drawn: without end, in another order in every epoch.

use std::sync::{Arc, Mutex, PoisonError};

use rand::seq::SliceRandom;

use crate::error::DataError;
use crate::key::{Purpose, SampleKey};

/// Maps each draw to a position in the data set. A pure function of (seed, draw), so resuming a run needs no saved
/// state.
#[derive(Debug)]
pub struct Sampler {
    len: usize,
    seed: u64,
    /// The orders of two epochs: at the end of an epoch, threads need both.
    orders: Mutex<[Option<Order>; 2]>,
}

/// The positions of one epoch in the order in which they are drawn.
#[derive(Debug)]
struct Order {
    epoch: u64,
    positions: Arc<[usize]>,
}

impl Sampler {
    /// Draws from `len` images.
    ///
    /// # Errors
    /// `len` is 0.
    pub fn new(len: usize, seed: u64) -> Result<Self, DataError> {
        if len == 0 {
            return Err(DataError::EmptySet);
        }
        Ok(Self { len, seed, orders: Mutex::default() })
    }

    /// The position, below `len`, of the image at `draw`. In each epoch, every image is drawn once.
    pub fn position(&self, draw: u64) -> usize {
        let epoch = self.epoch(draw);
        let within = (draw % self.len as u64) as usize;
        self.order(epoch)[within]
    }

    /// How many epochs end before `draw`.
    pub fn epoch(&self, draw: u64) -> u64 {
        draw / self.len as u64
    }

    fn order(&self, epoch: u64) -> Arc<[usize]> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut orders[(epoch % 2) as usize];
        if let Some(known) = slot.as_ref().filter(|known| known.epoch == epoch) {
            return Arc::clone(&known.positions);
        }
        let key = SampleKey { seed: self.seed, draw: epoch };
        let mut positions: Vec<usize> = (0..self.len).collect();
        positions.shuffle(&mut key.rng(Purpose::Shuffle));
        let positions: Arc<[usize]> = positions.into();
        *slot = Some(Order { epoch, positions: Arc::clone(&positions) });
        positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(sampler: &Sampler, draws: impl IntoIterator<Item = u64>) -> Vec<usize> {
        draws.into_iter().map(|draw| sampler.position(draw)).collect()
    }

    #[test]
    fn an_epoch_sees_every_image_once_in_its_own_order() {
        let sampler = Sampler::new(37, 1).unwrap();
        let epochs: Vec<Vec<usize>> = (0..4).map(|epoch| positions(&sampler, epoch * 37..(epoch + 1) * 37)).collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..37).collect::<Vec<_>>());
        }
        assert_ne!(epochs[0], epochs[1]);
        assert_ne!(epochs[1], epochs[2]);
        assert_ne!(epochs[0], (0..37).collect::<Vec<_>>());
    }

    #[test]
    fn a_draw_does_not_depend_on_the_draws_before_it() {
        let straight = positions(&Sampler::new(10, 3).unwrap(), 0..100);
        let mut backwards = positions(&Sampler::new(10, 3).unwrap(), (0..100).rev());
        backwards.reverse();
        assert_eq!(straight, backwards);
        assert_eq!(positions(&Sampler::new(10, 3).unwrap(), 63..100), straight[63..]);
        assert_ne!(positions(&Sampler::new(10, 4).unwrap(), 0..100), straight);
    }

    #[test]
    fn the_ends_of_the_range_are_safe() {
        assert!(Sampler::new(0, 0).is_err());
        assert_eq!(Sampler::new(1, 0).unwrap().position(u64::MAX), 0);
        assert!(Sampler::new(7, 0).unwrap().position(u64::MAX) < 7);
    }

    // A resumed run must go on in the order of the interrupted one, also when it was built with newer libraries.
    #[test]
    fn the_order_never_changes() {
        let sampler = Sampler::new(8, 42).unwrap();
        assert_eq!(positions(&sampler, 0..8), [4, 5, 2, 7, 1, 6, 3, 0]);
    }
}
