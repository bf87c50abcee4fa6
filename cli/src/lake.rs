//! `plimsoll lake`: what the lake holds.

use std::{fmt::Write as _, path::PathBuf};

use clap::Subcommand;
use jiff::Timestamp;
use plimsoll_lake::{
    LakeError, LakeStatus,
    status::{SMALL_BYTES, Usage},
};

use crate::{
    display::count,
    place::{self, Place, PlaceArgs, UsageError},
};

/// What can be done with a lake.
#[derive(Debug, Subcommand)]
pub enum LakeCommand {
    /// Print tables with their rows, sizes and times, and the catalog; also while Plimsoll runs
    Status(StatusArgs),
}

/// Flags of `plimsoll lake status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Configuration file with a section [lake], such as that of `plimsoll up` or of ingest; variables PLIMSOLL_LAKE__… override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Also tell what each host takes, which reads a column of every file
    #[arg(long)]
    hosts: bool,
    /// Print JSON with exact numbers
    #[arg(long)]
    json: bool,
}

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// There is no lake.
    #[error("there is no lake at {place}: name its folder with --data-dir or its configuration with --config")]
    NoLake {
        /// Where it should be.
        place: String,
    },
    /// The lake can't be read.
    #[error("failed to read the lake")]
    Lake(#[source] LakeError),
    /// The status has no JSON form.
    #[error("failed to write the status as JSON")]
    Json(#[from] serde_json::Error),
}

/// Reads where the lake is. Fails on anything wrong.
pub fn configure(args: &StatusArgs) -> Result<Place, UsageError> {
    place::configure(&args.place, args.config.as_deref(), None)
}

/// The status as text or JSON.
pub fn status(args: &StatusArgs, place: &Place) -> Result<String, StatusError> {
    let status = LakeStatus::read(&place.lake, args.hosts).map_err(|error| match error {
        LakeError::NotCreated => StatusError::NoLake { place: place.shown() },
        error => StatusError::Lake(error),
    })?;
    if args.json { Ok(serde_json::to_string_pretty(&status)? + "\n") } else { Ok(text(&status)) }
}

fn text(status: &LakeStatus) -> String {
    let mut text = catalog_text(status);
    let header = ["table", "tier", "rows", "points", "size", "bytes/point", "oldest", "newest", "files", "small"];
    let tables = status.tables.iter().map(|table| {
        let mut line = vec![table.table.clone(), table.tier.label().to_owned()];
        line.extend(usage(&table.usage, [table.oldest_ms, table.newest_ms]));
        line
    });
    let mut lines: Vec<Vec<String>> = vec![header.map(str::to_owned).to_vec()];
    lines.extend(tables);
    let mut total = vec!["total".to_owned(), String::new()];
    total.extend(usage(&status.total, [None, None]));
    lines.push(total);
    text.push_str(&aligned(&lines, &[0, 1, 6, 7]));
    let _ = write!(text, "\nSmall are files below {}; maintenance merges them.\n", size(SMALL_BYTES));
    if status.total.inlined_rows > 0 {
        let _ = writeln!(
            text,
            "{} of the rows are in the catalog, where they count for no bytes.",
            count(status.total.inlined_rows)
        );
    }
    text.push_str(&measurements_text(status));
    if let Some(hosts) = &status.hosts {
        let mut lines = vec![["host", "rows", "size, roughly", "share"].map(str::to_owned).to_vec()];
        let share = |bytes| share(bytes, status.total.bytes);
        lines.extend(
            hosts.iter().map(|host| vec![host.host.clone(), count(host.rows), size(host.bytes), share(host.bytes)]),
        );
        text.push('\n');
        text.push_str(&aligned(&lines, &[0]));
        text.push_str("\nA host's size is its part of each table's by rows: files hold the rows of many hosts.\n");
    }
    text
}

/// What each measurement takes on disk.
fn measurements_text(status: &LakeStatus) -> String {
    let header = ["measurement", "samples", "by minute", "by hour", "together", "share"];
    let mut lines = vec![header.map(str::to_owned).to_vec()];
    lines.extend(status.measurements.iter().map(|usage| {
        let sizes = [usage.raw_bytes, usage.minute_bytes, usage.hour_bytes, usage.bytes].map(size);
        let mut line = vec![usage.measurement.clone()];
        line.extend(sizes);
        line.push(share(usage.bytes, status.total.bytes));
        line
    }));
    format!("\n{}", aligned(&lines, &[0]))
}

/// A part of a whole in percent.
fn share(part: u64, whole: u64) -> String {
    if whole == 0 { String::new() } else { format!("{:.1} %", part as f64 * 100.0 / whole as f64) }
}

fn catalog_text(status: &LakeStatus) -> String {
    let catalog = &status.catalog;
    let of = catalog.bytes.map(|bytes| format!(", {}", size(bytes))).unwrap_or_default();
    let reached: Vec<String> = status
        .positions
        .iter()
        .filter(|position| position.sequence > 0)
        .map(|position| format!("{}:{}", position.partition, position.sequence))
        .collect();
    let reached = if reached.is_empty() { "nothing yet".to_owned() } else { reached.join(" ") };
    format!(
        "catalog    {}, format DuckLake {}{of}\nsnapshots  {}, the oldest of {}\nunused     {} files to be deleted\npositions  {reached}\n\n",
        catalog.kind,
        catalog.version,
        count(catalog.snapshots),
        time(catalog.oldest_snapshot_ms),
        count(status.unused_files),
    )
}

fn usage(usage: &Usage, times: [Option<i64>; 2]) -> Vec<String> {
    let [oldest, newest] = times.map(|ms| ms.map(time).unwrap_or_default());
    let bytes_a_point = usage.bytes_a_point().map(|bytes| format!("{bytes:.2}")).unwrap_or_default();
    vec![
        count(usage.rows),
        count(usage.points),
        size(usage.bytes),
        bytes_a_point,
        oldest,
        newest,
        count(usage.files),
        count(usage.small_files),
    ]
}

/// A size with its unit.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be shown as 1024.0 of a unit is 1.0 of the next.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A time in UTC, to the second.
fn time(unix_ms: i64) -> String {
    let time = Timestamp::from_second(unix_ms.div_euclid(1000));
    time.map_or_else(|_| format!("{unix_ms} ms"), |time| time.to_string())
}

/// The lines in columns: the named ones begin, and the others end, at the same place.
fn aligned(lines: &[Vec<String>], left: &[usize]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if left.contains(&column) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_fits() {
        let sizes = [0, 1023, 1024, 1_048_575, 1_048_576, 1_500_000_000, 5 << 40, u64::MAX].map(size);
        let expected = ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.0 MiB", "1.4 GiB", "5.0 TiB", "16777216.0 TiB"];
        assert_eq!(sizes, expected);
    }

    #[test]
    fn columns_are_aligned() {
        let line = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = aligned(&[line(["a", "b", ""]), line(["long", "1234", "x"])], &[0]);
        assert_eq!(text, "a        b\nlong  1234  x\n");
    }
}
