//! `plimsoll lake status` on a real lake.

use std::{collections::BTreeMap, path::Path, process::Command};

use plimsoll_lake::{CommitOutcome, LakeConfig, LakeWriter, PendingMessage, writer::CommitSet};
use plimsoll_nats::{Batch, Column, HostId, Incarnation, Name, PartitionId, Position, Sequence};
use tempfile::TempDir;

const NOW_MS: i64 = 1_790_000_000_000;

fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

/// A lake with two measurements of two hosts; its writer stays open.
fn lake(data_dir: &Path) -> LakeWriter {
    let writer = LakeWriter::open(&LakeConfig::embedded(&data_dir.join("lake"))).expect("opens");
    let partition = PartitionId::new(7).expect("exists");
    let message = |sequence: u64, host: &str, measurement: &str, rows: i64| PendingMessage {
        partition,
        sequence: Sequence(sequence),
        stored_ms: NOW_MS,
        batch: Batch {
            host: HostId::parse(host).expect("host"),
            measurement: name(measurement),
            epoch: ulid::Ulid::nil(),
            seq: sequence,
            times: (0..rows).map(|row| NOW_MS - row * 1000).collect(),
            tags: BTreeMap::new(),
            fields: BTreeMap::from([(name("value"), Column::Integer((0..rows).map(Some).collect()))]),
        },
    };
    let set = CommitSet {
        messages: vec![
            message(1, "web-1", "cpu", 3000),
            message(2, "web-2", "cpu", 1000),
            message(3, "web-1", "load", 60),
        ],
        reached: BTreeMap::from([(partition, Position { incarnation: Incarnation(1), sequence: Sequence(3) })]),
        current: None,
    };
    assert!(matches!(writer.commit(&set).expect("commits"), CommitOutcome::Committed(_)));
    writer
}

fn plimsoll(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PLIMSOLL_LAKE__")) {
        command.env_remove(name);
    }
    let output = command.args(["lake", "status"]).args(arguments).output().expect("starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("is text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The text without what differs from run to run: sizes and the time of the oldest snapshot.
fn settled(text: &str) -> String {
    let mut settled = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_unit = |word: &str| matches!(word.trim_end_matches(','), "B" | "KiB" | "MiB");
        let is_varying = |index: usize| {
            is_unit(words[index])
                || words.get(index + 1).is_some_and(|next| is_unit(next))
                || index > 0
                    && is_unit(words[index - 1])
                    && words[index].parse::<f64>().is_ok_and(|_| words[index].contains('.'))
                || words.get(index + 1) == Some(&"%")
                || words.first() == Some(&"snapshots") && index + 1 == words.len()
        };
        let kept: Vec<&str> =
            (0..words.len()).map(|index| if is_varying(index) { "…" } else { words[index] }).collect();
        settled.push_str(&kept.join(" "));
        settled.push('\n');
    }
    settled
}

#[test]
fn the_status_is_a_table_for_people() {
    let dir = TempDir::new().expect("a folder");
    let _writer = lake(dir.path());
    let data_dir = dir.path().to_str().expect("is text");
    let (code, text, errors) = plimsoll(&["--data-dir", data_dir, "--hosts"]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    insta::assert_snapshot!(settled(&text), @r"
    catalog sqlite, format DuckLake 1.0, … …
    snapshots 4, the oldest of …
    unused 0 files to be deleted
    positions 7:3

    table tier rows points size bytes/point oldest newest files small
    cpu raw 4,000 4,000 … … … 2026-09-21T13:23:21Z 2026-09-21T14:13:20Z 1 1
    load raw 60 60 … … … 2026-09-21T14:12:21Z 2026-09-21T14:13:20Z 1 1
    total 4,060 4,060 … … … 2 2

    Small are files below 1.0 MiB; maintenance merges them.

    measurement samples by minute by hour together share
    cpu … … … … … … … … … %
    load … … … … … … … … … %

    host rows size, roughly share
    web-1 3,060 … … … %
    web-2 1,000 … … … %

    A host's size is its part of each table's by rows: files hold the rows of many hosts.
    ");
    let header = text.lines().find(|line| line.starts_with("table")).expect("has a header");
    let cpu = text.lines().find(|line| line.starts_with("cpu")).expect("has the table");
    assert_eq!(header.find("oldest"), cpu.find("2026-"), "columns are aligned:\n{text}");
}

#[test]
fn the_status_is_json_with_exact_numbers() {
    let dir = TempDir::new().expect("a folder");
    let _writer = lake(dir.path());
    let config = dir.path().join("plimsoll.toml");
    let folder = dir.path().join("lake");
    let text = format!(
        "commit_interval = \"10s\"\n[lake]\ncatalog = \"sqlite:{0}/catalog.sqlite\"\ndata_path = \"{0}/data\"\n",
        folder.display()
    );
    std::fs::write(&config, text).expect("writes");
    let (code, text, errors) = plimsoll(&["--config", config.to_str().expect("is text"), "--json"]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let status: serde_json::Value = serde_json::from_str(&text).expect("is JSON");
    assert_eq!(status["tables"][0]["table"], "cpu");
    assert_eq!(status["tables"][0]["tier"], "raw");
    assert_eq!((&status["tables"][0]["rows"], &status["total"]["points"]), (&4000.into(), &4060.into()));
    assert_eq!(status["tables"][0]["newest_ms"], NOW_MS);
    assert_eq!(status["positions"][7]["sequence"], 3);
    assert_eq!(status["measurements"][0]["measurement"], "cpu");
    assert_eq!(status["measurements"][0]["raw_bytes"], status["tables"][0]["bytes"]);
    assert_eq!(status["hosts"], serde_json::Value::Null);
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let dir = TempDir::new().expect("a folder");
    let (code, text, errors) = plimsoll(&["--data-dir", dir.path().to_str().expect("is text")]);
    assert_eq!((code, text.as_str()), (Some(64), ""));
    assert!(errors.contains("there is no lake at `") && errors.contains("--data-dir"), "{errors}");
    let (code, _, errors) = plimsoll(&["--config", "/nowhere/plimsoll.toml"]);
    assert_eq!(code, Some(64));
    assert!(errors.contains("/nowhere/plimsoll.toml` does not exist"), "{errors}");
}
