//! What panics said. Those of libraries and of worker threads come back as errors, and the panic that a user's thread sees is
//! often a mere consequence of one elsewhere.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

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

/// The line of an error's text that says that there is too little memory, in the words of Rust's allocator, the system,
/// CubeCL, CUDA or wgpu.
pub fn out_of_memory(text: &str) -> Option<&str> {
    const WORDS: [&str; 10] = [
        "memory allocation of",
        "out of memory",
        "out-of-memory",
        "out of device memory",
        "outofmemory",
        "out_of_memory",
        "not enough memory",
        "cannot allocate memory",
        "can't allocate",
        "buffertoobig",
    ];
    let says_so = |line: &&str| {
        let line = line.to_lowercase();
        WORDS.iter().any(|word| line.contains(word))
    };
    text.lines().map(str::trim).find(says_so)
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

    #[test]
    fn want_of_memory_is_told_from_other_errors_in_all_their_words() {
        for line in [
            "memory allocation of 274877906944 bytes failed",
            "out of device memory allocating 1048576 bytes",
            "An out-of-memory error happened during launch",
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "can't allocate buffer of size: 4294967296",
            "Can't allocate 512 bytes: every page size the memory tracks still holds live allocations",
            "Not enough memory left.",
            "Cannot allocate memory (os error 12)",
        ] {
            assert_eq!(
                out_of_memory(&format!("the device failed\nCaused by:\n  {line}\nBacktrace\n0: main")),
                Some(line)
            );
        }
        for text in
            ["CUDA_ERROR_ILLEGAL_ADDRESS", "the memory of a tensor", "No space left on device (os error 28)", ""]
        {
            assert_eq!(out_of_memory(text), None);
        }
    }
}
