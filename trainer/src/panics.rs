//! What panics said. Those of libraries and of worker threads come back as errors, and the panic that a user's thread sees is
//! often a mere consequence of one elsewhere.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

use crate::memory::out_of_memory;

/// The first lines of those since [`forget`], the oldest first.
static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// More say nothing new.
const MOST: usize = 16;

/// Notes each panic from now on, and keeps it off the screen unless a backtrace was asked for.
pub fn record() {
    let show = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or("a panic without a text");
        note(text);
        if show {
            default(info);
        }
    }));
}

fn note(text: &str) {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.len() == MOST {
        seen.pop();
    }
    // The whole of it: causes are said in later lines.
    seen.push(text.to_owned());
}

/// The first line of the newest.
pub fn last() -> String {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    seen.last().and_then(|text| text.lines().next()).unwrap_or_default().to_owned()
}

fn forget() {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Runs `work`. A panic for want of memory, of this thread or behind this one's, is returned as the line that says so; any other
/// goes on.
///
/// # Errors
/// That line.
pub fn catch_out_of_memory<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    forget();
    panic::catch_unwind(AssertUnwindSafe(work))
        .or_else(|payload| want_of_memory(&*payload).map_or_else(|| panic::resume_unwind(payload), Err))
}

/// Runs `work`. A panic is returned as the line that speaks of too little memory, if there is one, and else as its first line.
///
/// # Errors
/// That line.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    forget();
    panic::catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let first =
            || text(&*payload).and_then(|text| text.lines().next()).unwrap_or("a panic without a text").to_owned();
        want_of_memory(&*payload).unwrap_or_else(first)
    })
}

/// What says so of the panics since [`forget`], the newest of which has `payload`.
fn want_of_memory(payload: &(dyn Any + Send)) -> Option<String> {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    seen.iter().map(String::as_str).chain(text(payload)).find_map(out_of_memory).map(str::to_owned)
}

fn text(payload: &(dyn Any + Send)) -> Option<&str> {
    payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_for_want_of_memory_is_told_from_others() {
        let caught =
            catch_out_of_memory::<()>(|| panic!("it failed\nout of device memory allocating 12 bytes\n0: main"));
        assert_eq!(caught.unwrap_err(), "out of device memory allocating 12 bytes");
        assert_eq!(catch_out_of_memory(|| 7), Ok(7));
        let other = panic::catch_unwind(|| catch_out_of_memory::<()>(|| panic!("an illegal address")));
        assert_eq!(text(&*other.unwrap_err()), Some("an illegal address"));
        assert_eq!(catch::<()>(|| panic!("an illegal address\n0: main")), Err("an illegal address".to_owned()));
        assert_eq!(catch::<()>(|| panic!("it failed\nout of memory")), Err("out of memory".to_owned()));
    }
}
