//! What the user sees of an import: a bar where there is a terminal, bad lines, and a summary.

use std::{fmt::Display, fs::File, io::Read, path::Path, time::Duration};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use plimsoll_lake::import::Stored;

/// A bar for one file; it goes when it is dropped.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Begins with a file that may take a while to be looked through.
    pub fn begin(path: &Path, into: &dyn Display) -> Self {
        let bar = ProgressBar::new_spinner().with_message(format!("{} into {into}", path.display()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar }
    }

    /// Tells how many rows there are.
    pub fn rows(&self, rows: u64) {
        self.length(rows, "{msg} {wide_bar} {human_pos}/{human_len} rows, {per_sec}, {eta} left");
    }

    /// Tells how many bytes there are.
    pub fn bytes(&self, bytes: u64) {
        self.length(bytes, "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}, {eta} left");
    }

    fn length(&self, length: u64, template: &str) {
        self.bar.set_length(length);
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
    }

    /// Counts what is read of a file.
    pub fn reading(&self, file: File) -> impl Read + use<> {
        self.bar.wrap_read(file)
    }

    /// So much is done.
    pub fn at(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Tells of a line or row that is left out.
    #[expect(clippy::print_stderr, reason = "what the one who imports asked to be told")]
    pub fn left_out(&self, path: &Path, what: &dyn Display) {
        self.bar.suspend(|| eprintln!("left out: `{}`, {what}", path.display()));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Tells what came of everything.
#[expect(clippy::print_stderr, reason = "the outcome, for the one who started it")]
pub fn summary(total: &Stored, files: usize, took: Duration, dry_run: bool) {
    let rate = HumanCount((total.read as f64 / took.as_secs_f64().max(1e-3)) as u64);
    let (of, stored) = if dry_run { ("would be stored", "checked") } else { ("stored", "imported") };
    let mut text = format!(
        "{stored} {files} file{}: {} rows read, {} {of}, {} in the lake already",
        if files == 1 { "" } else { "s" },
        HumanCount(total.read),
        HumanCount(total.rows),
        HumanCount(total.contained),
    );
    for (count, what) in [
        (total.joined, "joined with another of the same series and time"),
        (total.differing, "with another value than the one that came first and stays"),
        (total.bad, "left out"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {} {what}", HumanCount(count)));
        }
    }
    eprintln!("{text}; {:.1} s, {rate} rows/s", took.as_secs_f64());
}
