//! Listens for signals that ask the program to stop.

use super::CommandError;
use crate::training::Reason;

/// Calls `act` for each SIGINT, SIGTERM and SIGHUP from now on, on its own thread. A SIGHUP that was ignored when the
/// program started, as under `nohup`, stays ignored.
///
/// # Errors
/// If the system refuses the handler or the thread.
pub(super) fn on_stop_signals(act: impl FnMut(Reason) + Send + 'static) -> Result<(), CommandError> {
    listen(act).map_err(|error| CommandError::Usage(format!("cannot listen to signals: {error}")))
}

#[cfg(unix)]
fn listen(mut act: impl FnMut(Reason) + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    let mut wanted = vec![SIGINT, SIGTERM];
    wanted.extend(Some(SIGHUP).filter(|signal| !is_ignored(*signal)));
    let mut signals = Signals::new(wanted)?;
    let reason = |signal| if signal == SIGHUP { Reason::Hangup } else { Reason::Signal };
    let handle = move || signals.forever().for_each(|signal| act(reason(signal)));
    std::thread::Builder::new().name("signals".to_owned()).spawn(handle).map(drop)
}

#[cfg(not(unix))]
fn listen(mut act: impl FnMut(Reason) + Send + 'static) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || act(Reason::Signal))
}

/// Whether this process ignores a signal, according to Linux; false on other systems.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}
