//! Faults on purpose, by `--inject-fault STEP:PLACE[:KIND]`, which the help does not show: without them there would be no way
//! to see on a CPU what a GPU's want of memory does to a run.

use std::cell::{Cell, RefCell};
use std::str::FromStr;
use std::thread;

/// A fault that happens once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The optimizer step, counted from 1.
    step: u64,
    /// A phase, by its name in `metrics.jsonl`, or `update`, which is when the weights move.
    place: String,
    kind: Kind,
}

/// The ways in which Burn and CubeCL say that a device has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Out of memory, by a panic at once.
    Panic,
    /// Out of memory, by a panic of a worker thread, and one of ours that does not say why.
    Worker,
    /// Out of memory, by an error when results are waited for.
    Error,
    /// Something else, by a panic.
    OtherPanic,
    /// Something else, by an error.
    OtherError,
}

const KINDS: [(&str, Kind); 5] = [
    ("panic", Kind::Panic),
    ("worker", Kind::Worker),
    ("error", Kind::Error),
    ("other-panic", Kind::OtherPanic),
    ("other-error", Kind::OtherError),
];

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            let kinds: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
            format!("is not STEP:PLACE or STEP:PLACE:KIND with a kind of {}", kinds.join(", "))
        };
        let mut parts = text.split(':');
        let step = parts.next().and_then(|step| step.parse().ok()).ok_or_else(wrong)?;
        let place = parts.next().filter(|place| !place.is_empty()).ok_or_else(wrong)?.to_owned();
        let name = parts.next().unwrap_or(KINDS[0].0);
        let (_, kind) = *KINDS.iter().find(|(known, _)| *known == name).ok_or_else(wrong)?;
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self { step, place, kind }) }
    }
}

const OUT_OF_MEMORY: &str = "out of device memory allocating 1234 bytes (injected)";
const OTHER: &str = "an illegal address was accessed (injected)";

/// The faults of a run that are still to come.
#[derive(Debug, Default)]
pub(super) struct Faults {
    left: RefCell<Vec<Fault>>,
    /// What is said when results are waited for.
    error: Cell<Option<&'static str>>,
}

impl Faults {
    pub(super) fn new(faults: Vec<Fault>) -> Self {
        Self { left: RefCell::new(faults), error: Cell::default() }
    }

    /// The fault of `place` in `step`, counted from 1, if there is one.
    pub(super) fn meet(&self, step: u64, place: &str) {
        let mut left = self.left.borrow_mut();
        if left.is_empty() || self.error.get().is_some() {
            return;
        }
        let Some(index) = left.iter().position(|fault| fault.step == step && fault.place == place) else { return };
        let kind = left.remove(index).kind;
        drop(left);
        match kind {
            Kind::Panic => panic!("{OUT_OF_MEMORY}"),
            Kind::Worker => {
                let _ = thread::spawn(|| panic!("{OUT_OF_MEMORY}")).join();
                panic!("the channel is closed");
            }
            Kind::OtherPanic => panic!("{OTHER}"),
            Kind::Error => self.error.set(Some(OUT_OF_MEMORY)),
            Kind::OtherError => self.error.set(Some(OTHER)),
        }
    }

    /// What the device says now that results are waited for.
    pub(super) fn wait(&self) -> Result<(), String> {
        self.error.take().map_or(Ok(()), |message| Err(message.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_read() {
        let fault = |kind| Fault { step: 3, place: "backward".into(), kind };
        assert_eq!("3:backward".parse(), Ok(fault(Kind::Panic)));
        assert_eq!("3:backward:error".parse(), Ok(fault(Kind::Error)));
        for wrong in ["", "3", "x:backward", "3:", "3:backward:slow", "3:backward:error:1"] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_fault_happens_once() {
        let faults = Faults::new(vec!["2:forward:error".parse().unwrap()]);
        for (step, place) in [(1, "forward"), (2, "backward")] {
            faults.meet(step, place);
            assert_eq!(faults.wait(), Ok(()));
        }
        faults.meet(2, "forward");
        assert_eq!(faults.wait(), Err(OUT_OF_MEMORY.to_owned()));
        faults.meet(2, "forward");
        assert_eq!(faults.wait(), Ok(()));
    }
}
