//! Shows how far a command is: a bar on a terminal, else a line every few seconds.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a line comes where there is no terminal.
const LINES: Duration = Duration::from_secs(5);

/// How far a command is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// What is done of it.
    pub done: u64,
    /// All of it; 0 until known.
    pub total: u64,
    /// The rest, in words.
    pub text: String,
}

/// Where it is shown: on standard error.
pub struct Display {
    bar: Option<ProgressBar>,
    is_quiet: bool,
    started: Instant,
    told: Instant,
}

impl Display {
    /// A bar, lines, or nothing.
    pub fn new(is_quiet: bool) -> Self {
        let bar = (!is_quiet && std::io::stderr().is_terminal()).then(|| {
            let style =
                ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}").expect("a template that is tested");
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style)
        });
        Self { bar, is_quiet, started: Instant::now(), told: Instant::now() }
    }

    /// Shows how far it is.
    pub fn show(&mut self, shown: &Shown) {
        let left = left(shown, self.started.elapsed());
        match &self.bar {
            Some(bar) => {
                bar.set_length(shown.total);
                bar.set_position(shown.done);
                bar.set_message(format!("{}{left}", shown.text));
            }
            None if !self.is_quiet && self.told.elapsed() >= LINES => {
                self.told = Instant::now();
                let percent = (shown.done * 100).checked_div(shown.total).unwrap_or(0).min(100);
                tell(&format!("{percent} %  {}{left}", shown.text));
            }
            None => {}
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The estimated time to the end.
fn left(shown: &Shown, elapsed: Duration) -> String {
    if shown.done == 0 || shown.total <= shown.done {
        return String::new();
    }
    let seconds = elapsed.as_secs_f64() * (shown.total - shown.done) as f64 / shown.done as f64;
    format!(", {} left", span(Duration::from_secs_f64(seconds)))
}

/// A time span in words.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, _) => format!("{:.1} s", span.as_secs_f64()),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// A number with its thousands apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in words.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "kB", "MB", "GB", "TB"];
    let unit = (bytes.max(1).ilog10() / 3).min(4);
    match unit {
        0 => format!("{bytes} bytes"),
        unit => format!("{:.1} {}", bytes as f64 / 1000_f64.powi(unit.cast_signed()), UNITS[unit as usize]),
    }
}

/// Prints a line on standard error.
#[expect(clippy::print_stderr, reason = "progress is for the one who watches, results are on standard output")]
pub fn tell(line: &str) {
    eprintln!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sizes_and_spans_are_readable() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"],
            [0, 999, 1000, 1_234_567].map(count).each_ref().map(String::as_str)
        );
        assert_eq!(
            ["0 bytes", "999 bytes", "1.5 kB", "20.0 GB"],
            [0, 999, 1500, 20_000_000_000].map(size).each_ref().map(String::as_str)
        );
        let spans = [1.25, 61.0, 7300.0].map(|seconds| span(Duration::from_secs_f64(seconds)));
        assert_eq!(spans, ["1.2 s", "1 min 1 s", "2 h 1 min"]);
    }

    #[test]
    fn the_rest_is_estimated_from_what_is_done() {
        let shown = |done, total| Shown { done, total, text: String::new() };
        assert_eq!(left(&shown(25, 100), Duration::from_secs(20)), ", 1 min 0 s left");
        for (done, total) in [(0, 100), (100, 100), (101, 100), (5, 0)] {
            assert_eq!(left(&shown(done, total), Duration::from_secs(20)), "");
        }
    }

    #[test]
    fn the_bar_has_a_valid_template() {
        let mut display = Display::new(true);
        assert!(ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}").is_ok());
        display.show(&Shown { done: 1, total: 2, text: "x".to_owned() });
        display.clear();
    }
}
