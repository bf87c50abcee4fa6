//! A line on standard error that tells how far a command has come.

use std::{
    io::{IsTerminal, Write, stderr},
    time::{Duration, Instant},
};

/// Time between two lines on a terminal, which overwrite each other.
const ON_TERMINAL: Duration = Duration::from_millis(200);
/// Time between two lines in a log.
const IN_LOG: Duration = Duration::from_secs(10);
const BAR: u64 = 30;

/// Tells how far a command has come; on a terminal as a bar.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    total: Option<u64>,
    terminal: bool,
    started: Instant,
    told: Option<Instant>,
}

impl Progress {
    /// Counts `what` up to `total`, where that is known.
    #[must_use]
    pub fn new(what: &'static str, total: Option<u64>) -> Self {
        Self { what, total, terminal: stderr().is_terminal(), started: Instant::now(), told: None }
    }

    /// Tells that `done` are done, unless it was told a moment ago; `note` is shown behind it.
    pub fn show(&mut self, done: u64, note: &str) {
        let pause = if self.terminal { ON_TERMINAL } else { IN_LOG };
        if self.told.is_none_or(|told| told.elapsed() >= pause) || Some(done) == self.total {
            self.told = Some(Instant::now());
            self.write(done, note);
        }
    }

    fn write(&self, done: u64, note: &str) {
        let (what, seconds) = (self.what, self.started.elapsed().as_secs());
        let line = match self.total {
            Some(total) => {
                let filled = usize::try_from(BAR * done.min(total) / total.max(1)).unwrap_or(0);
                let (full, empty) = ("#".repeat(filled), ".".repeat(BAR as usize - filled));
                format!("[{full}{empty}] {done} of {total} {what}, {seconds} s{note}")
            }
            None => format!("{done} {what}, {seconds} s{note}"),
        };
        // A progress that nobody can read is no reason to stop.
        let _ = if self.terminal { write!(stderr(), "\r\x1b[K{line}") } else { writeln!(stderr(), "{line}") };
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && self.told.is_some() {
            let _ = writeln!(stderr());
        }
    }
}
