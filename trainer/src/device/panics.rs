//! Records the messages of panics. Panics in libraries and worker threads are returned as errors, because the panic
//! that the caller's thread sees is often only a consequence of another one.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

/// The messages since [`forget`], oldest first.
static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Maximum number of messages; more add nothing new.
const MOST: usize = 16;

/// Records each panic from now on, and hides it from the screen unless a backtrace was asked for.
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
    // Keeps the whole text: later lines can name the cause.
    seen.push(text.to_owned());
}

/// Returns the first line of the newest message.
pub fn last() -> String {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    seen.last().and_then(|text| text.lines().next()).unwrap_or_default().to_owned()
}

fn forget() {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Runs `work`. A lack of memory that panicked this thread, or another one that made it panic, is returned as an error;
/// any other panic resumes.
///
/// # Errors
/// The line that reports the lack of memory.
pub fn catch_out_of_memory<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    forget();
    panic::catch_unwind(AssertUnwindSafe(work))
        .or_else(|payload| find_out_of_memory(&*payload).map_or_else(|| panic::resume_unwind(payload), Err))
}

/// Runs `work`. Returns a panic as an error.
///
/// # Errors
/// The line that reports a lack of memory, if there is one, otherwise the first line of the panic.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    forget();
    panic::catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let first =
            || text(&*payload).and_then(|text| text.lines().next()).unwrap_or("a panic without a text").to_owned();
        find_out_of_memory(&*payload).unwrap_or_else(first)
    })
}

/// Returns the line that reports a lack of memory, from the panics since [`forget`] or from `payload`.
fn find_out_of_memory(payload: &(dyn Any + Send)) -> Option<String> {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    seen.iter().map(String::as_str).chain(text(payload)).find_map(out_of_memory).map(str::to_owned)
}

/// Returns the line of an error's text that reports a lack of memory, in the words of Rust's allocator, the system,
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
    fn an_out_of_memory_panic_is_distinguished_from_others() {
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
    fn out_of_memory_errors_are_recognised_in_all_wordings() {
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
