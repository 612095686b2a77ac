//! Takes the terminal for the dashboard, and gives it back, also where the process ends at once.

use std::io::{self, Stdout, stdout};
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};

/// Whether the dashboard has the terminal.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Whether the terminal that the dashboard had is gone.
static GONE: AtomicBool = AtomicBool::new(false);

/// Takes the terminal.
pub(super) fn take() -> io::Result<Terminal<CrosstermBackend<Stdout>>> {
    TAKEN.store(true, Ordering::SeqCst);
    enable_raw_mode()?;
    keep_signals();
    execute!(stdout(), EnterAlternateScreen)?;
    Terminal::new(CrosstermBackend::new(stdout()))
}

/// Gives the terminal back if a dashboard has it.
pub fn give_terminal_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // A terminal that cannot be restored is gone.
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

/// Lets go of a terminal that is gone, if a dashboard has it.
pub fn let_go_of_terminal() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        GONE.store(true, Ordering::SeqCst);
    }
}

pub(super) fn is_gone() -> bool {
    GONE.load(Ordering::SeqCst)
}

/// Turns signals back on. A terminal that is read key by key sends none for Ctrl-C, but Ctrl-C must always ask the run to save
/// and stop.
#[cfg(unix)]
fn keep_signals() {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

    if let Ok(mut settings) = tcgetattr(io::stdin()) {
        settings.local_modes |= LocalModes::ISIG;
        // Without it, `q` still stops the run.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &settings);
    }
}

#[cfg(not(unix))]
fn keep_signals() {}
