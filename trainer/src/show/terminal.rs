//! Writes results to stdout and all else to stderr. A terminal that is gone, a reader that has died and a full disk
//! never end a run: what cannot be written is dropped.

#[cfg(unix)]
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use console::Term;
use indicatif::{ProgressDrawTarget, TermLike};

use crate::show::log_file;

/// How long a message may delay a process that must continue or end. A pipe that nobody reads would delay it for ever.
const PATIENCE: Duration = Duration::from_millis(500);

const REDRAWS_PER_SECOND: u8 = 20;

/// How much is said on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors.
    Quiet,
    /// What a user should know, and the progress.
    Normal,
    /// A line for every step too.
    Verbose,
}

/// When text has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

static VERBOSITY: Mutex<Verbosity> = Mutex::new(Verbosity::Normal);

/// How much is said.
pub fn verbosity() -> Verbosity {
    *VERBOSITY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets how much is said, and in which colours.
pub fn set_up(verbosity: Verbosity, color: Color) {
    *VERBOSITY.lock().unwrap_or_else(PoisonError::into_inner) = verbosity;
    let colored = match color {
        Color::Auto => return,
        Color::Always => true,
        Color::Never => false,
    };
    console::set_colors_enabled(colored);
    console::set_colors_enabled_stderr(colored);
}

/// Writes a line to stderr, formatted as by `println!`.
macro_rules! note {
    ($($text:tt)*) => { $crate::show::terminal::write_line(&format!($($text)*)) };
}

/// Writes a line to the log and, if that is possible and the user wants to hear it, to stderr.
pub fn write_line(line: &str) {
    log_file::add(line);
    if verbosity() != Verbosity::Quiet {
        write_to_stderr(line);
    }
}

/// Writes an error to the log and to stderr.
pub fn write_error(message: &str) {
    log_file::add(&format!("error: {message}"));
    write_to_stderr(&format!("{} {message}", console::style("error:").for_stderr().red().bold()));
}

/// Writes a line to stderr alone, if that is possible.
pub fn write_to_stderr(line: &str) {
    // In one piece, so that lines of other processes do not come between.
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// Writes a line to stderr like [`write_line`], but does not wait long for a terminal that takes nothing. For threads
/// that must not be delayed.
pub fn write_line_soon(line: String) {
    let (done, is_done) = sync_channel(1);
    let writes = move || {
        write_line(&line);
        let _ = done.send(());
    };
    if thread::Builder::new().spawn(writes).is_ok() {
        let _ = is_done.recv_timeout(PATIENCE);
    }
}

/// Writes a line to stdout.
///
/// # Errors
/// If it cannot be written although somebody may still read it.
pub fn write_result(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe || has_hung_up(&stdout, &error) => Ok(()),
        written => written,
    }
}

/// Whether `error` means that `stdout` is a terminal that is gone. The system reports that like a broken disk.
#[cfg(unix)]
fn has_hung_up(stdout: &io::StdoutLock, error: &io::Error) -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt;

    let metadata = || fs::File::from(stdout.as_fd().try_clone_to_owned()?).metadata();
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
        && metadata().is_ok_and(|metadata| metadata.file_type().is_char_device())
}

#[cfg(not(unix))]
fn has_hung_up(_stdout: &io::StdoutLock, _error: &io::Error) -> bool {
    false
}

/// Whether there is a terminal for progress bars, and a user who wants to see them.
pub fn shows_bars() -> bool {
    io::stderr().is_terminal() && verbosity() != Verbosity::Quiet
}

/// Returns the target for progress bars: stderr if that is a terminal, until its first error. indicatif's own target
/// panics when the terminal is gone.
pub fn draw_target() -> ProgressDrawTarget {
    match shows_bars() {
        true => ProgressDrawTarget::term_like_with_hz(Box::new(Bars::default()), REDRAWS_PER_SECOND),
        false => ProgressDrawTarget::hidden(),
    }
}

#[derive(Debug)]
struct Bars {
    term: Term,
    is_gone: AtomicBool,
}

impl Default for Bars {
    fn default() -> Self {
        Self { term: Term::buffered_stderr(), is_gone: AtomicBool::new(false) }
    }
}

impl Bars {
    fn draw(&self, draw: impl FnOnce(&Term) -> io::Result<()>) -> io::Result<()> {
        if !self.is_gone.load(Ordering::Relaxed) && draw(&self.term).is_err() {
            self.is_gone.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl TermLike for Bars {
    fn width(&self) -> u16 {
        self.term.size().1
    }

    fn height(&self) -> u16 {
        self.term.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.draw(|term| term.move_cursor_up(n))
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.draw(|term| term.move_cursor_down(n))
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.draw(|term| term.move_cursor_right(n))
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.draw(|term| term.move_cursor_left(n))
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.draw(|term| term.write_line(text))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.draw(|term| term.write_str(text))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.draw(Term::clear_line)
    }

    fn flush(&self) -> io::Result<()> {
        self.draw(Term::flush)
    }
}
