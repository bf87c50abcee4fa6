//! How the names of others become names of the lake.
//!
//! A name that is valid as it stands is kept. In any other, letters become lower-case and other characters `_`, one that does not begin
//! with a letter gets `x_` in front, and one longer than a name may be is cut and ends in a checksum of the whole.

use crate::{Name, catalog, names::MAX_NAME_BYTES};

/// What goes before a name that Plimsoll has given to something else.
pub const EXPORTED: &str = "exported_";

/// Names that no tag or field may have, with the reason.
const RESERVED_COLUMNS: [(&str, &str); 26] = [
    ("ts", "every table has a column of that name"),
    ("host", "every table has a column of that name"),
    // DuckLake holds small tables in its catalog, beside columns of its own.
    ("row_id", IN_DUCKLAKE),
    ("begin_snapshot", IN_DUCKLAKE),
    ("end_snapshot", IN_DUCKLAKE),
    // A column would hide them from what reads them.
    ("rowid", "the lake tells rows apart by it"),
    ("snapshot_id", "the lake tells rows apart by it"),
    ("cmax", IN_POSTGRES),
    ("cmin", IN_POSTGRES),
    ("ctid", IN_POSTGRES),
    ("tableoid", IN_POSTGRES),
    ("xmax", IN_POSTGRES),
    ("xmin", IN_POSTGRES),
    // DuckLake quotes what is a keyword to DuckDB, and these are none.
    ("autoincrement", IN_SQL),
    ("current_catalog", IN_SQL),
    ("current_date", IN_SQL),
    ("current_role", IN_SQL),
    ("current_schema", IN_SQL),
    ("current_time", IN_SQL),
    ("current_timestamp", IN_SQL),
    ("current_user", IN_SQL),
    ("localtime", IN_SQL),
    ("localtimestamp", IN_SQL),
    ("raise", IN_SQL),
    ("session_user", IN_SQL),
    ("system_user", IN_SQL),
];
const IN_DUCKLAKE: &str = "DuckLake keeps it for itself";
const IN_POSTGRES: &str = "PostgreSQL has one of that name in every table";
const IN_SQL: &str = "to SQLite or PostgreSQL, which hold the lake's catalog, it is a word of SQL";
/// What follows the name of a histogram or summary in the names of its samples, by the text formats of Prometheus.
const SAMPLE_ENDINGS: [&str; 4] = ["_bucket", "_sum", "_count", "_created"];
/// How the names of the lake's summaries by minute and hour end.
const SUMMARY_ENDINGS: [&str; 2] = ["_1m", "_1h"];
/// Bytes of a checksum and what is before it.
const CHECKSUM_BYTES: usize = 9;

/// The name that a measurement, tag or field of that spelling gets.
#[must_use]
pub fn normalise(spelled: &str) -> Name {
    Name::parse(spelled).unwrap_or_else(|_| {
        let name = mapped(spelled);
        Name::parse(&name).unwrap_or_else(|_| checked(&name, spelled))
    })
}

/// The name that a tag or field of that spelling gets: as [`normalise`], with `exported_` before names that tables have already.
#[must_use]
pub fn column(spelled: &str) -> Name {
    let name = normalise(spelled);
    if column_problem(&name).is_some() { normalise(&format!("{EXPORTED}{name}")) } else { name }
}

/// Why no tag or field may have that name; none where it may.
#[must_use]
pub fn column_problem(name: &str) -> Option<&'static str> {
    RESERVED_COLUMNS.iter().find(|(reserved, _)| *reserved == name).map(|(_, why)| *why)
}

/// The name of a tag or field whose usual name another spelling has.
#[must_use]
pub fn distinct(spelled: &str) -> Name {
    checked(&mapped(spelled), spelled)
}

/// Why no measurement of others may have that name; none where it may.
#[must_use]
pub fn measurement_problem(name: &str) -> Option<&'static str> {
    if catalog::measurement(name).is_some() {
        Some("a built-in measurement")
    } else if name == "positions" {
        Some("a table of the lake's own")
    } else if SUMMARY_ENDINGS.iter().any(|ending| name.ends_with(ending)) {
        Some("a name that the lake keeps for summaries by minute and hour")
    } else {
        None
    }
}

/// The measurement that holds a metric of an exporter: the first `words` words of its name, without the endings of samples, or all but
/// the last where it has no more. `exported_` goes before what would be a built-in measurement, and `_1m` and `_1h` at the end are left
/// out.
#[must_use]
pub fn group(metric: &str, words: usize) -> Name {
    let name = mapped(metric);
    let family = SAMPLE_ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(&name);
    let end = |word: usize| family.match_indices('_').nth(word - 1).map(|(at, _)| at);
    let end = end(words).or_else(|| family.rfind('_')).filter(|end| *end > 0).unwrap_or(family.len());
    let group = without_summary_ending(&family[..end]);
    if measurement_problem(&normalise(group)).is_some() {
        normalise(&format!("{EXPORTED}{group}"))
    } else {
        normalise(group)
    }
}

fn without_summary_ending(mut name: &str) -> &str {
    while let Some(rest) = SUMMARY_ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)) {
        name = rest;
    }
    name
}

fn mapped(spelled: &str) -> String {
    let mapped = spelled.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' });
    let begins_well = spelled.starts_with(|c: char| c.is_ascii_alphabetic());
    if begins_well { mapped.collect() } else { "x_".chars().chain(mapped).collect() }
}

fn checked(name: &str, spelled: &str) -> Name {
    let kept = name.len().min(MAX_NAME_BYTES - CHECKSUM_BYTES);
    let text = format!("{}_{:08x}", &name[..kept], crc32fast::hash(spelled.as_bytes()));
    Name::parse(&text).expect("letters, digits and underscores that begin with a letter, cut to the longest length")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use ulid::Ulid;

    use super::*;
    use crate::{Batch, Column, HostId};

    #[test]
    fn valid_names_are_kept_and_others_changed_as_documented() {
        for kept in ["node_load1", "a", "pg_stat_database_numbackends"] {
            assert_eq!(&*normalise(kept), kept);
        }
        assert_eq!(&*normalise("node_memory_MemAvailable_bytes"), "node_memory_memavailable_bytes");
        assert_eq!(&*normalise("instance:cpu:rate5m"), "instance_cpu_rate5m");
        assert_eq!(&*normalise("1min"), "x_1min");
        assert_eq!(&*normalise("_hidden"), "x__hidden");
        assert_eq!(&*normalise("größe"), "gr__e");
        assert_eq!(&*normalise(""), "x_");
        let (long, other) = ("a".repeat(64), format!("{}b", "a".repeat(63)));
        assert_eq!(normalise(&long).len(), MAX_NAME_BYTES);
        assert_ne!(normalise(&long), normalise(&other));
        assert_ne!(distinct("Foo"), distinct("foo"));
    }

    #[test]
    fn columns_that_tables_have_already_are_exported() {
        assert_eq!(&*column("host"), "exported_host");
        assert_eq!(&*column("Host"), "exported_host");
        assert_eq!(&*column("xmin"), "exported_xmin");
        assert_eq!(&*column("device"), "device");
        // What the contract refuses must be known here.
        for name in ["ts", "host", "row_id", "begin_snapshot", "end_snapshot"] {
            let (host, measurement) = (HostId::parse("h").unwrap(), Name::parse("m").unwrap());
            let fields = BTreeMap::from([(Name::parse(name).unwrap(), Column::Float(vec![Some(1.0)]))]);
            let batch = Batch {
                host: host.clone(),
                measurement: measurement.clone(),
                epoch: Ulid::generate(),
                seq: 1,
                times: vec![1],
                tags: BTreeMap::new(),
                fields,
            };
            assert!(Batch::decode(&host, &measurement, None, &batch.encode()).is_err(), "{name}");
            assert!(column_problem(name).is_some(), "{name}");
        }
    }

    #[test]
    fn metrics_are_grouped_by_the_first_words_of_their_names() {
        for (metric, words, expected) in [
            ("node_memory_MemAvailable_bytes", 2, "node_memory"),
            ("node_memory_MemAvailable_bytes", 1, "node"),
            ("node_memory_MemAvailable_bytes", 3, "node_memory_memavailable"),
            ("node_load1", 2, "node"),
            ("node_intr_total", 2, "node_intr"),
            ("go_info", 2, "go"),
            ("rpc_latency", 2, "rpc"),
            ("rpc_latency_bucket", 2, "rpc"),
            ("rpc_latency_sum", 2, "rpc"),
            ("up", 2, "up"),
            ("process_threads", 2, "exported_process"),
            ("process_cpu_seconds_total", 2, "process_cpu"),
            ("process_cpu_seconds_total", 1, "exported_process"),
            ("_x", 2, "x_"),
            ("_sum", 2, "x"),
            ("instance:cpu:rate5m", 2, "instance_cpu"),
            ("rate_5_1m", 2, "rate_5"),
            ("rate_1m_x", 2, "rate"),
            ("cpu_1h_x", 2, "exported_cpu"),
        ] {
            assert_eq!(&*group(metric, words), expected, "{metric} by {words}");
        }
    }

    proptest! {
        #[test]
        fn every_text_gets_a_name(text in "\\PC{0,100}", words in 1_usize..5) {
            prop_assert_eq!(normalise(&text), normalise(&text));
            prop_assert_eq!(column_problem(&column(&text)), None);
            prop_assert!(distinct(&text).len() <= MAX_NAME_BYTES);
            prop_assert_eq!(measurement_problem(&group(&text, words)), None);
        }
    }
}
