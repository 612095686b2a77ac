//! A memory budget for all images that are decoded at the same time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A number of bytes. Each thread takes a share of it for as long as it needs the memory.
#[derive(Debug)]
pub(crate) struct Budget {
    capacity: u64,
    taken: Mutex<u64>,
    returned: Condvar,
}

/// A part of a [`Budget`], returned when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    pub fn new(capacity: u64) -> Arc<Self> {
        Arc::new(Self { capacity, taken: Mutex::new(0), returned: Condvar::new() })
    }

    /// Waits until this many bytes are free. More than the whole budget is given to a thread that is alone.
    ///
    /// A thread that waits must not hold another share: two of these would wait for each other.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Share {
        let waits = |taken: &mut u64| !self.fits(*taken, bytes);
        let taken = self.returned.wait_while(self.lock(), waits);
        *taken.unwrap_or_else(PoisonError::into_inner) += bytes;
        Share { budget: Arc::clone(self), bytes }
    }

    fn fits(&self, taken_by_others: u64, bytes: u64) -> bool {
        taken_by_others == 0 || taken_by_others.saturating_add(bytes) <= self.capacity
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Changes the size of the share to `bytes`. Returns false, and changes nothing, if too few bytes are free.
    pub fn resize(&mut self, bytes: u64) -> bool {
        let mut taken = self.budget.lock();
        let others = *taken - self.bytes;
        let fits = bytes <= self.bytes || self.budget.fits(others, bytes);
        if fits {
            *taken = others + bytes;
            self.bytes = bytes;
            self.budget.returned.notify_all();
        }
        fits
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *self.budget.lock() -= self.bytes;
        self.budget.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn shares_together_stay_within_the_budget() {
        let budget = Budget::new(100);
        let mut first = budget.take(60);
        let second = budget.take(40);
        let (sender, receiver) = mpsc::channel();
        let waiting = std::thread::spawn({
            let budget = budget.clone();
            move || {
                let share = budget.take(50);
                sender.send(()).unwrap();
                drop(share);
            }
        });
        assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err());
        assert!(!first.resize(70) && first.resize(55));
        drop(second);
        assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err(), "5 are missing yet");
        assert!(first.resize(50));
        receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        waiting.join().unwrap();
        drop(first);
        assert_eq!(*budget.lock(), 0);
    }

    #[test]
    fn more_than_there_is_is_given_to_one_alone() {
        let budget = Budget::new(100);
        let mut share = budget.take(1000);
        assert!(share.resize(2000) && share.resize(10));
        let mut other = budget.take(90);
        assert!(!other.resize(91) && !share.resize(11));
        drop(share);
        assert!(other.resize(5000));
    }
}
