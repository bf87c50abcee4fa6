//! The comparison in small and without other stores: that it counts and answers all, not how soon.

use std::{path::Path, process::Command};

use tempfile::TempDir;

/// The cells of the one row of a table that begins so.
fn row<'a>(page: &'a str, first: &str) -> Vec<&'a str> {
    let cells = |line: &'a str| -> Vec<&'a str> { line.trim_matches(['|', ' ']).split(" | ").collect() };
    let rows: Vec<_> = page.lines().map(cells).filter(|cells| cells[0] == first).collect();
    let [row] = &rows[..] else { panic!("{} rows of `{first}` in {page}", rows.len()) };
    row.clone()
}

/// How many messages and points a way to send them has stored, as the comparison says.
fn stored(said: &str, name: &str) -> (u64, u64) {
    let (_, counts) = said.split_once(&format!("{name}: ")).unwrap_or_else(|| panic!("nothing of `{name}` in {said}"));
    let words: Vec<&str> = counts.split_whitespace().collect();
    let [messages, "messages", "with", points, "points", ..] = words[..] else { panic!("{counts}") };
    (messages.parse().expect("a number"), points.parse().expect("a number"))
}

/// That `make bench` finds as many points in the lake as it has sent, and that each question has its answer.
#[test]
fn plimsolls_side_counts_all_points_and_answers_all_questions() {
    let bench = Path::new(env!("CARGO_BIN_EXE_plimsoll-bench"));
    for name in ["plimsoll-ingest", "plimsoll-query-api"] {
        let is_built = bench.with_file_name(name).is_file();
        assert!(is_built, "`{name}` is missing: `cargo build --workspace --bins` builds it, as `make test` does");
    }
    let folder = TempDir::new().expect("a folder");
    let sizes = ["--hosts=2", "--minutes=1", "--week-days=1", "--fleet-hosts=3", "--fleet-interval=60"];
    let mut compare = Command::new(bench);
    compare.args(["compare", "--alone", "--folder"]).arg(folder.path()).args(sizes).env("PLIMSOLL_LOG", "info");
    let compare = compare.output().expect("starts");
    let [page, said] = [compare.stdout, compare.stderr].map(|text| String::from_utf8(text).expect("text"));
    assert!(compare.status.success(), "{said}");

    // Both ways to send the same points; `compare` fails where the lake holds others.
    let [each, gathered] =
        ["Plimsoll, each sample a message", "Plimsoll, 10 s a message"].map(|name| stored(&said, name));
    assert_eq!(each.1, gathered.1, "points");
    assert!(each.0 > 5 * gathered.0 && gathered.0 > 0, "{} and {} messages", each.0, gathered.0);
    for (question, values) in [
        ("one host's 7-day p95 at 1 s", 1),
        ("last hour of one host at 1 s, 10 fields", 36_000),
        ("per-minute average over the fleet, 24 h", 1440),
        ("top 10 hosts by memory now", 3),
    ] {
        assert_eq!(row(&page, question)[1], values.to_string(), "{question}");
    }
    let above: usize = row(&page, "hosts over 90 % CPU by minute, 24 h")[1].parse().expect("a number");
    assert!(above <= 1440, "{above}");
    let left: Vec<_> = folder.path().read_dir().expect("a folder").collect();
    assert!(left.is_empty(), "{left:?}");
}
