//! Injects faults for tests: `--inject-fault STEP:PLACE[:KIND]`, which the help does not show. They let a CPU show what
//! a GPU's lack of memory does to a run, and what is left when a process is killed during a save.

use std::cell::{Cell, RefCell};
use std::process::{self, Command};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// A fault that happens once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The optimizer step, counted from 1.
    step: u64,
    place: Place,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A phase, by its name in `metrics.jsonl`, or `update`, which is when the weights move.
    Phase(String),
    /// In the save of the step, after this number of writes, renames and removals: `save-3`.
    Save(u64),
}

/// What happens. In a phase: one of the ways in which Burn and CubeCL report that a device failed. In a save: the
/// process is killed, or the save hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Out of memory, by a panic.
    Panic,
    /// Out of memory, by a panic of a worker thread, and then a panic of this thread that does not say why.
    Worker,
    /// Out of memory, by an error when the run waits for results.
    Error,
    /// Something else, by a panic.
    OtherPanic,
    /// Something else, by an error.
    OtherError,
    /// The process is killed without any clean-up, as by `kill -9` or a crash of the machine.
    Kill,
    /// The save hangs: it neither continues nor ends.
    Hang,
}

const KINDS: [(&str, Kind); 7] = [
    ("panic", Kind::Panic),
    ("worker", Kind::Worker),
    ("error", Kind::Error),
    ("other-panic", Kind::OtherPanic),
    ("other-error", Kind::OtherError),
    ("kill", Kind::Kill),
    ("hang", Kind::Hang),
];

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            let kinds: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
            let kinds = kinds.join(", ");
            format!(
                "is not STEP:PLACE or STEP:PLACE:KIND with a kind of {kinds}, the last two in a place such as save-3"
            )
        };
        let mut parts = text.split(':');
        let step = parts.next().and_then(|step| step.parse().ok()).ok_or_else(wrong)?;
        let place = parts.next().filter(|place| !place.is_empty()).ok_or_else(wrong)?;
        let place = match place.strip_prefix("save-") {
            Some(count) => Place::Save(count.parse().map_err(|_| wrong())?),
            None => Place::Phase(place.to_owned()),
        };
        let name = parts.next().unwrap_or(KINDS[0].0);
        let (_, kind) = *KINDS.iter().find(|(known, _)| *known == name).ok_or_else(wrong)?;
        let fits = matches!(place, Place::Save(_)) == matches!(kind, Kind::Kill | Kind::Hang);
        if parts.next().is_some() || !fits { Err(wrong()) } else { Ok(Self { step, place, kind }) }
    }
}

const OUT_OF_MEMORY: &str = "out of device memory allocating 1234 bytes (injected)";
const OTHER: &str = "an illegal address was accessed (injected)";

/// The faults of a run that have not happened yet.
#[derive(Debug, Default)]
pub(super) struct Faults {
    left: RefCell<Vec<Fault>>,
    /// The error of the next wait for results.
    error: Cell<Option<&'static str>>,
    saves: SaveFaults,
}

/// The fault of the save in progress, shared with the thread that writes it.
#[derive(Debug, Default, Clone)]
pub(super) struct SaveFaults(Arc<Mutex<Option<(u64, Kind)>>>);

impl Faults {
    pub(super) fn new(faults: Vec<Fault>) -> Self {
        Self { left: RefCell::new(faults), ..Self::default() }
    }

    /// Returns the handle to which the saving thread reports everything that it writes.
    pub(super) fn of_saves(&self) -> SaveFaults {
        self.saves.clone()
    }

    /// Sets the fault of the save of `step`, which begins now. No other save may be in progress.
    pub(super) fn save_begins(&self, step: u64) {
        let next = self.left.borrow().iter().find_map(|fault| match fault.place {
            Place::Save(count) if fault.step == step => Some((count, fault.kind)),
            _ => None,
        });
        *self.saves.0.lock().unwrap_or_else(PoisonError::into_inner) = next;
    }

    /// Causes the fault of `place` in `step`, counted from 1, if there is one.
    pub(super) fn meet(&self, step: u64, place: &str) {
        let mut left = self.left.borrow_mut();
        if left.is_empty() || self.error.get().is_some() {
            return;
        }
        let is_here = |fault: &Fault| matches!(&fault.place, Place::Phase(name) if name == place);
        let Some(index) = left.iter().position(|fault| fault.step == step && is_here(fault)) else { return };
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
            // These happen in saves.
            Kind::Kill | Kind::Hang => {}
        }
    }

    /// Returns the error that an injected fault gives when the run waits for results.
    pub(super) fn wait(&self) -> Result<(), String> {
        self.error.take().map_or(Ok(()), |message| Err(message.to_owned()))
    }
}

impl SaveFaults {
    /// Counts `what`, which was written, renamed or removed, and causes the fault that is due.
    pub(super) fn wrote(&self, what: &'static str) {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((left, kind)) = next.as_mut() else { return };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        let kind = *kind;
        note!("injected after: {what}");
        *next = None;
        drop(next);
        match kind {
            Kind::Hang => loop {
                thread::park();
            },
            _ => kill(),
        }
    }
}

fn kill() -> ! {
    // The standard library has no signals, and an abort would still run handlers.
    if cfg!(unix) {
        let _ = Command::new("kill").args(["-KILL", &process::id().to_string()]).status();
    }
    process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_read() {
        let fault = |kind| Fault { step: 3, place: Place::Phase("backward".into()), kind };
        assert_eq!("3:backward".parse(), Ok(fault(Kind::Panic)));
        assert_eq!("3:backward:error".parse(), Ok(fault(Kind::Error)));
        assert_eq!("3:save-7:kill".parse(), Ok(Fault { step: 3, place: Place::Save(7), kind: Kind::Kill }));
        let wrong = ["", "3", "x:backward", "3:", "3:backward:slow", "3:backward:error:1"];
        for wrong in wrong.into_iter().chain(["3:save-7", "3:save-x:kill", "3:backward:kill", "3:save-7:kill:1"]) {
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
