//! A progress bar for downloads.

use std::cell::RefCell;

use checkpoints::hub::DownloadProgress;
use indicatif::{ProgressBar, ProgressStyle};

use crate::show::terminal::draw_target;

/// Draws one bar for each file on stderr, if that is a terminal.
#[derive(Default)]
pub struct DownloadBar {
    current: RefCell<Option<(String, ProgressBar)>>,
}

impl DownloadProgress for DownloadBar {
    fn advance(&self, bytes: u64, total: u64, file: &str) {
        let mut current = self.current.borrow_mut();
        if current.as_ref().is_none_or(|(name, _)| name != file) {
            if let Some((_, bar)) = current.take() {
                bar.finish();
            }
            let template =
                "{prefix} {wide_bar} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::with_draw_target(Some(total), draw_target())
                .with_style(style)
                .with_prefix(file.to_owned());
            *current = Some((file.to_owned(), bar));
        }
        if let Some((_, bar)) = current.as_ref() {
            bar.set_length(total);
            bar.set_position(bytes);
        }
    }

    fn note(&self, line: &str) {
        match self.current.borrow().as_ref() {
            Some((_, bar)) => bar.suspend(|| note!("{line}")),
            None => note!("{line}"),
        }
    }
}
