//! Files into a real lake and out of it again: what was given is what is stored, row by row.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use plimsoll_lake::{
    CommitOutcome, LakeConfig, LakeWriter, PendingMessage, Tier,
    export::{ExportError, ExportFormat, ExportQuery, ExportReport, Exporter, Quantile},
    import::{Chunk, ImportError, ImportOptions, Importer, Precision, Stored, TableFormat, TableSource},
    rollup::{RollupLimits, SUMMARY_TYPE},
    schema::AdmitError,
    writer::CommitSet,
};
use plimsoll_nats::{Batch, Column, HostId, Incarnation, Name, PartitionId, Position, Sequence};
use tempfile::TempDir;

const NOW_MS: i64 = 1_790_000_000_000;
const OPTIONS: ImportOptions = ImportOptions { now_ms: NOW_MS, allow_old: false, dry_run: false };

fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

struct TestLake {
    config: LakeConfig,
    dir: TempDir,
}

impl TestLake {
    fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        Self { config: LakeConfig::embedded(&dir.path().join("lake")), dir }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).expect("written");
        path
    }

    fn importer(&self) -> Importer {
        Importer::open(&self.config, OPTIONS).expect("opens")
    }

    fn import(&self, source: TableSource) -> Result<Stored, ImportError> {
        import_with(&mut self.importer(), source).map(|(stored, _)| stored)
    }

    fn export(&self, query: &ExportQuery, file: &str) -> Result<(PathBuf, ExportReport), ExportError> {
        let path = self.dir.path().join(file);
        let report = Exporter::open(&self.config).expect("opens").export(query, &path)?;
        assert_eq!(report.bytes, fs::metadata(&path).expect("a file").len());
        Ok((path, report))
    }

    fn text(&self, sql: &str) -> String {
        let writer = LakeWriter::open(&self.config).expect("opens");
        let read = writer.lake().connection().query_row(sql, [], |row| row.get(0));
        read.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    fn execute(&self, sql: &str) {
        let writer = LakeWriter::open(&self.config).expect("opens");
        writer.lake().connection().execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// All rows of a measurement as text, in order.
    fn rows(&self, measurement: &str) -> String {
        self.text(&format!("SELECT coalesce(string_agg(m::VARCHAR, chr(10) ORDER BY m::VARCHAR), '') FROM lake.main.\"{measurement}\" m"))
    }
}

fn import_with(importer: &mut Importer, source: TableSource) -> Result<(Stored, Vec<Chunk>), ImportError> {
    let mut file = importer.open_table(source)?;
    let (mut total, mut chunks) = (Stored::default(), Vec::new());
    while let Some(chunk) = importer.next_chunk(&mut file)? {
        total.add(&chunk.stored);
        chunks.push(chunk);
    }
    Ok((total, chunks))
}

fn source(path: &Path, measurement: &str) -> TableSource {
    let file = path.to_str().expect("text");
    let format = match file.trim_end_matches(".zst").rsplit_once('.').expect("an extension").1 {
        "parquet" => TableFormat::Parquet,
        "jsonl" => TableFormat::JsonLines,
        _ => TableFormat::Csv,
    };
    TableSource {
        path: path.to_owned(),
        format,
        measurement: name(measurement),
        host: None,
        host_column: None,
        time_column: None,
        precision: None,
        tags: None,
        fields: None,
        exclude: Vec::new(),
        skip_bad: false,
        chunk_rows: 1000,
    }
}

fn query(measurement: &str, format: ExportFormat) -> ExportQuery {
    ExportQuery {
        measurement: name(measurement),
        tier: Tier::Raw,
        quantiles: Vec::new(),
        from_ms: None,
        to_ms: None,
        hosts: Vec::new(),
        fields: None,
        format,
        compress: false,
    }
}

/// Rows of every type, with values that are hard to keep: nil, empty texts, quotes, line breaks, the ends of integers and floats.
fn hard_batches() -> Vec<Batch> {
    let text = |text: &str| Some(text.to_owned());
    let fields = [
        ("f", Column::Float(vec![Some(0.1), None, Some(-1.7e308), Some(5e-324), Some(1e16)])),
        ("i", Column::Integer(vec![Some(i64::MAX), Some(i64::MIN), None, Some(0), Some(-1)])),
        ("b", Column::Bool(vec![Some(true), Some(false), None, None, Some(true)])),
        ("s", Column::Text(vec![text(""), None, text("a \"b\", c\nd"), text("NULL"), text("ünï \u{1f600}")])),
    ];
    let batch = Batch {
        host: HostId::parse("web-1").expect("host"),
        measurement: name("hard"),
        epoch: ulid::Ulid::nil(),
        seq: 1,
        times: (0..5).map(|n| NOW_MS - 5000 + n * 1001).collect(),
        tags: BTreeMap::from([(name("disk"), ["a", "", "b,c", "a\"", "a"].map(str::to_owned).to_vec())]),
        fields: fields.into_iter().map(|(field, column)| (name(field), column)).collect(),
    };
    let untagged = Batch { tags: BTreeMap::new(), host: HostId::parse("db-1").expect("host"), ..batch.clone() };
    vec![batch, untagged]
}

fn commit(lake: &TestLake, batches: Vec<Batch>) {
    let partition = PartitionId::new(0).expect("exists");
    let messages: Vec<_> = (1..)
        .zip(batches)
        .map(|(sequence, batch)| PendingMessage { partition, sequence: Sequence(sequence), stored_ms: NOW_MS, batch })
        .collect();
    let position = Position { incarnation: Incarnation(7), sequence: Sequence(messages.len() as u64) };
    let set = CommitSet { messages, reached: BTreeMap::from([(partition, position)]), current: None };
    let outcome = LakeWriter::open(&lake.config).expect("opens").commit(&set).expect("commits");
    assert!(matches!(outcome, CommitOutcome::Committed(_)), "{outcome:?}");
}

#[test]
fn what_is_exported_is_imported_as_it_was() {
    let lake = TestLake::new();
    commit(&lake, hard_batches());
    let expected = lake.rows("hard");
    assert_eq!(expected.lines().filter(|line| line.contains("web-1") || line.contains("db-1")).count(), 10);
    for (format, compress, file) in [
        (ExportFormat::Parquet, false, "hard.parquet"),
        (ExportFormat::Csv, false, "hard.csv"),
        (ExportFormat::Csv, true, "hard.csv.zst"),
        (ExportFormat::JsonLines, false, "hard.jsonl"),
        (ExportFormat::JsonLines, true, "hard.jsonl.zst"),
    ] {
        let (path, report) = lake.export(&ExportQuery { compress, ..query("hard", format) }, file).expect("exports");
        assert_eq!(report.rows, 10);
        let again = lake.import(source(&path, "hard")).expect("imports");
        assert_eq!((again.rows, again.contained, again.differing), (0, 10, 0), "{file}: the lake has them");
        let fresh = TestLake::new();
        let tags = (format != ExportFormat::Parquet).then(|| vec!["disk".to_owned()]);
        let stored = fresh.import(TableSource { tags, ..source(&path, "hard") }).expect("imports");
        assert_eq!((stored.read, stored.rows, stored.bad), (10, 10, 0), "{file}");
        assert_eq!(fresh.rows("hard"), expected, "{file}");
        let columns = |lake: &TestLake| {
            lake.text("SELECT string_agg(column_name || ' ' || data_type || ' ' || coalesce(comment, ''), ', ' ORDER BY column_name)
                       FROM duckdb_columns() WHERE table_name = 'hard' AND database_name = 'lake'")
        };
        assert_eq!(columns(&fresh), columns(&lake), "{file}");
        let again = fresh.import(TableSource { tags: None, ..source(&path, "hard") }).expect("imports");
        assert_eq!((again.rows, again.contained), (0, 10), "{file}: a second time changes nothing");
    }
}

#[test]
fn json_lines_hold_what_is_stored() {
    let lake = TestLake::new();
    commit(&lake, hard_batches());
    let (path, report) = lake.export(&query("hard", ExportFormat::JsonLines), "hard.jsonl").expect("exports");
    let text = fs::read_to_string(path).expect("text");
    assert_eq!((text.lines().count(), report.rows), (10, 10));
    let first = text.lines().next().expect("a line");
    assert_eq!(
        first,
        r#"{"ts":"2026-09-21T14:13:15.000Z","host":"db-1","disk":null,"b":true,"f":0.1,"i":9223372036854775807,"s":""}"#
    );
}

const JSON: &str = r#"{"time":"2026-09-21T16:13:21.2509+02:00","Host":"web.example.org","busyPercent":2,"Disk Name":"sda"}

{"Host":"db","busyPercent":NaN,"ops":9.5,"none":null,"e":{"x":1},"time":"2026-09-21T14:13:22Z","state":"","ok":true}
{"Host":"db","busyPercent":-1e-7,"big":-9223372036854775808,"time":"2026-09-21T14:13:23Z","state":"5ä","ok":null}
"#;

#[test]
fn foreign_json_lines_become_rows_by_the_types_of_their_values() {
    let lake = TestLake::new();
    let path = lake.file("disks.jsonl", &format!("\u{feff}{JSON}"));
    let told = lake.import(source(&path, "disks")).expect_err("an object").to_string();
    assert!(
        told.ends_with("column `e` is of type object, which no field has: leave it out with --exclude e"),
        "{told}"
    );
    let tags = Some(vec!["Disk Name".to_owned()]);
    let exclude = vec!["e".to_owned()];
    let stored = lake.import(TableSource { tags, exclude, ..source(&path, "disks") }).expect("imports");
    assert_eq!((stored.read, stored.rows, stored.bad), (3, 3, 0));
    let columns = "SELECT string_agg(column_name || ' ' || data_type, ', ' ORDER BY column_name)
                   FROM duckdb_columns() WHERE table_name = 'disks' AND database_name = 'lake'";
    assert_eq!(
        lake.text(columns),
        "big BIGINT, busypercent DOUBLE, disk_name VARCHAR, host VARCHAR, ok BOOLEAN, ops DOUBLE, state VARCHAR, ts TIMESTAMP_MS",
        "a name that never has a value is no column"
    );
    assert_eq!(
        lake.rows("disks"),
        "{'ts': '2026-09-21 14:13:21.25', 'host': web-example-org, 'big': NULL, 'busypercent': 2.0, 'disk_name': sda, 'ok': NULL, 'ops': NULL, 'state': NULL}\n\
         {'ts': '2026-09-21 14:13:22', 'host': db, 'big': NULL, 'busypercent': NULL, 'disk_name': NULL, 'ok': true, 'ops': 9.5, 'state': ''}\n\
         {'ts': '2026-09-21 14:13:23', 'host': db, 'big': -9223372036854775808, 'busypercent': -1e-07, 'disk_name': NULL, 'ok': NULL, 'ops': NULL, 'state': 5ä}"
    );
}

#[test]
fn a_bad_line_of_json_is_told_by_its_number_or_is_left_out_and_counted() {
    let lake = TestLake::new();
    let object = |second: &str, v: &str| {
        format!(r#"{{"ts":"2026-09-21T14:13:{second}Z","host":"h","v":{v},"f":0.5,"ok":true}}"#)
    };
    lake.import(source(&lake.file("first.jsonl", &object("00", "0")), "m")).expect("imports");
    let long = format!(r#"{{"ts":"{}"}}"#, "x".repeat(16 * 1024 * 1024));
    for (bad, expected) in [
        ("nonsense", "line 4: expected a JSON object (at column 2: expected ident), found `nonsense`"),
        (
            r#"{"ts":"x" "host":1}"#,
            "line 4: expected a JSON object (at column 11: expected `,` or `}`), found `{\\\"ts\\\":\\\"x\\\" \\\"host\\\":1}`",
        ),
        ("[1]", "line 4: expected a JSON object, found `[1]`"),
        (
            r#"{"v":1,"v":2}"#,
            "line 4: expected a JSON object that has each name once, found `{\\\"v\\\":1,\\\"v\\\":2}`",
        ),
        ("{\"v\":\"\u{ff}\"}", "line 4: expected text in UTF-8"),
        (&*long, "line 4: expected a line of less than 16777216 bytes"),
        (
            &*object("xx", "1"),
            "line 4, column `ts`: expected a time such as 2026-11-21T12:00:00Z, found `2026-09-21T14:13:xxZ`",
        ),
        (r#"{"host":"h","v":1}"#, "line 4, column `ts`: expected a time such as 2026-11-21T12:00:00Z, found nothing"),
        (
            &*object("09", "9223372036854775808"),
            "line 4, column `v`: expected an integer of 64 bits with sign, found `9223372036854775808`",
        ),
        (&*object("09", "\"one\""), "line 4, column `v`: expected an integer of 64 bits with sign, found `one`"),
        (&*object("09", "true"), "line 4, column `v`: expected an integer of 64 bits with sign, found `true`"),
        (&*object("09", "1").replace("0.5", "-Infinity"), "line 4, column `f`: expected a number, found `-Infinity`"),
        (&*object("09", "1").replace("true", "2"), "line 4, column `ok`: expected true or false, found `2`"),
    ] {
        let text = format!("{}\n\n{}\r\n{bad}\n{}", object("01", "1"), object("02", "2"), object("03", "3"));
        let path = lake.file("m.jsonl", "");
        let bytes: Vec<u8> =
            if bad.contains('\u{ff}') { text.chars().map(|c| c as u8).collect() } else { text.into_bytes() };
        fs::write(&path, bytes).expect("written");
        let dry = ImportOptions { dry_run: true, ..OPTIONS };
        let mut importer = Importer::open(&lake.config, dry).expect("opens");
        let error = import_with(&mut importer, source(&path, "m")).expect_err(expected).to_string();
        assert_eq!(error, format!("`{}`, {expected}", path.display()));
        let skipping = TableSource { skip_bad: true, ..source(&path, "m") };
        let (stored, chunks) = import_with(&mut importer, skipping).expect("imports");
        assert_eq!((stored.read, stored.rows, stored.bad), (4, 3, 1), "{expected}");
        let told: Vec<String> = chunks.iter().flat_map(|chunk| &chunk.bad).map(ToString::to_string).collect();
        assert_eq!(told, [expected]);
    }
    for (text, expected) in [
        ("", "expected a JSON object a line, found nothing"),
        (r#"{"ts":1,"V":1,"v":1}"#, "`V` and `v` differ in nothing but capitals: give one of them another name"),
        (r#"{"ts":1,"":1}"#, "an object has a value without a name: give it one"),
        (
            r#"{"ts":1790000000,"host":"h","v":1}"#,
            "column `ts` holds numbers such as 1790000000: tell their unit by --precision ns, us, ms or s (most likely s)",
        ),
    ] {
        let path = lake.file("m.jsonl", text);
        let error = lake.import(source(&path, "m")).expect_err(expected).to_string();
        assert_eq!(error, format!("`{}`: {expected}", path.display()));
    }
}

#[test]
fn an_export_is_sorted_and_of_the_range_hosts_and_fields_asked_for() {
    let lake = TestLake::new();
    commit(&lake, hard_batches());
    let asked = ExportQuery {
        from_ms: Some(NOW_MS - 5000 + 1001),
        to_ms: Some(NOW_MS - 5000 + 4 * 1001),
        hosts: vec!["web-*".to_owned()],
        fields: Some(vec![name("i")]),
        ..query("hard", ExportFormat::Csv)
    };
    let (path, _) = lake.export(&asked, "some.csv").expect("exports");
    let expected = "ts,host,disk,i\n\
        2026-09-21T14:13:16.001Z,web-1,\"\",-9223372036854775808\n\
        2026-09-21T14:13:18.003Z,web-1,\"a\"\"\",0\n\
        2026-09-21T14:13:17.002Z,web-1,\"b,c\",\n";
    assert_eq!(fs::read_to_string(path).expect("text"), expected);
    let unknown = lake.export(&query("other", ExportFormat::Csv), "other.csv").expect_err("no such measurement");
    assert_eq!(unknown.to_string(), "the lake has no measurement `other`: it has `hard`");
    let field = ExportQuery { fields: Some(vec![name("x")]), ..query("hard", ExportFormat::Csv) };
    let unknown = lake.export(&field, "other.csv").expect_err("no such field");
    assert_eq!(unknown.to_string(), "measurement `hard` has no field `x`: it has `b`, `f`, `i`, `s`");
    let nowhere = lake.export(&query("hard", ExportFormat::Csv), "no/folder.csv").expect_err("no such folder");
    assert!(matches!(nowhere, ExportError::Write { .. }), "{nowhere}");
    let left: Vec<_> =
        fs::read_dir(lake.dir.path()).expect("reads").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(left.len(), 2, "the lake and the one file: {left:?}");
}

#[test]
fn summaries_are_added_up() {
    let lake = TestLake::new();
    commit(&lake, hard_batches());
    let asked = ExportQuery { tier: Tier::Minute, ..query("hard", ExportFormat::Csv) };
    let missing = lake.export(&asked, "m.csv").expect_err("not built").to_string();
    assert!(missing.contains("export the tier `raw`"), "{missing}");
    lake.execute(&format!(
        "CREATE TABLE lake.main.hard_1m (ts TIMESTAMP_MS, host VARCHAR, disk VARCHAR, b {SUMMARY_TYPE}, f {SUMMARY_TYPE}, i {SUMMARY_TYPE});
         INSERT INTO lake.main.hard_1m BY NAME SELECT TIMESTAMP_MS '2026-09-21 14:13:00' AS ts, 'h' AS host,
             {{count: n, sum: n * 10, min: n, max: n + 1, sketch: MAP {{40000: n}}}} AS f FROM range(1, 3) r(n)"
    ));
    let (path, _) = lake.export(&asked, "m.csv").expect("exports");
    let text = fs::read_to_string(path).expect("text");
    let mut lines = text.lines();
    let header = lines.next().expect("names");
    assert_eq!(header, "ts,host,disk,b_count,b_sum,b_min,b_max,f_count,f_sum,f_min,f_max,i_count,i_sum,i_min,i_max");
    assert_eq!(lines.collect::<Vec<_>>(), ["2026-09-21T14:13:00.000Z,h,,,,,,3,30.0,1.0,3.0,,,,"]);
}

#[test]
fn quantiles_of_summaries_are_within_one_percent_of_the_exact_ones() {
    const MINUTE_MS: i64 = NOW_MS / 60_000 * 60_000 - 120_000;
    let value = |series: i64, second: i64| match (series * 7919 + second * 104_729) % 997 {
        n if n % 10 == 0 => 0.0,
        n if n % 3 == 0 => -(n as f64) * 1.7,
        n => (n as f64).powi(3) * 1e-4,
    };
    let batch = |disk: i64, seconds: std::ops::Range<i64>| Batch {
        host: HostId::parse("h").expect("host"),
        measurement: name("m"),
        epoch: ulid::Ulid::nil(),
        seq: 1,
        times: seconds.clone().map(|second| MINUTE_MS + second * 1000).collect(),
        tags: if disk == 0 {
            BTreeMap::new()
        } else {
            BTreeMap::from([(name("disk"), vec![disk.to_string(); seconds.clone().count()])])
        },
        fields: BTreeMap::from([
            (
                name("f"),
                Column::Float(seconds.clone().map(|second| (second % 4 > 0).then(|| value(disk, second))).collect()),
            ),
            (
                name("i"),
                Column::Integer(seconds.clone().map(|second| (disk == 0).then_some(second * second)).collect()),
            ),
            (name("s"), Column::Text(seconds.map(|_| Some("x".to_owned())).collect())),
        ]),
    };
    let lake = TestLake::new();
    let writer = LakeWriter::open(&lake.config).expect("opens");
    // Two commits, so that two rows stand for the second minute.
    for (number, seconds) in [0..70, 70..120].into_iter().enumerate() {
        let partition = PartitionId::new(0).expect("exists");
        let sequence = |n: u64| Sequence(number as u64 * 2 + n);
        let message = |n: u64, batch| PendingMessage { partition, sequence: sequence(n), stored_ms: NOW_MS, batch };
        let messages = vec![message(1, batch(0, seconds.clone())), message(2, batch(1, seconds))];
        let position = Position { incarnation: Incarnation(7), sequence: sequence(2) };
        let set = CommitSet { messages, reached: BTreeMap::from([(partition, position)]), current: None };
        writer.commit(&set).expect("commits");
        let at_once = RollupLimits { minute_every: Duration::ZERO, ..RollupLimits::default() };
        writer.roll_up(&at_once, || true).expect("rolls up");
    }
    drop(writer);
    assert_eq!(lake.text("SELECT count(*)::VARCHAR FROM lake.main.m_1m"), "6", "the second minute in two parts");
    let quantiles = [0.0, 0.5, 0.95, 0.999, 1.0];
    let asked = ExportQuery {
        tier: Tier::Minute,
        quantiles: quantiles.iter().filter_map(|q| Quantile::parse(&q.to_string())).collect(),
        ..query("m", ExportFormat::JsonLines)
    };
    let (path, report) = lake.export(&asked, "m.jsonl").expect("exports");
    assert_eq!(report.rows, 4);
    let text = fs::read_to_string(path).expect("text");
    for (line, (disk, minute)) in text.lines().zip([(1, 0), (1, 1), (0, 0), (0, 1)]) {
        let row: serde_json::Value = serde_json::from_str(line).expect("an object");
        let seconds = || (minute * 60..minute * 60 + 60).filter(|second| second % 4 > 0);
        let mut exact: Vec<f64> = seconds().map(|second| value(disk, second)).collect();
        exact.sort_by(f64::total_cmp);
        assert_eq!((&row["f_count"], &row["f_max"]), (&exact.len().into(), &exact[exact.len() - 1].into()), "{line}");
        for (quantile, suffix) in quantiles.iter().zip(["p0", "p50", "p95", "p99_9", "p100"]) {
            let rank: f64 = quantile * (exact.len() - 1) as f64;
            let (below, above) = (exact[rank.floor() as usize], exact[rank.ceil() as usize]);
            let wanted = below * (1.0 - rank.fract()) + above * rank.fract();
            let told = row[format!("f_{suffix}")].as_f64().expect("a number");
            let bound = 0.01 * below.abs().max(above.abs());
            assert!((told - wanted).abs() <= bound, "{suffix} of {line}: {wanted}");
        }
        assert_eq!(row["i_p50"].is_null(), disk == 1, "a field without values has no quantile: {line}");
    }
    let raw = ExportQuery { tier: Tier::Raw, ..asked };
    let refused = lake.export(&raw, "raw.jsonl").expect_err("raw rows are no summaries").to_string();
    assert_eq!(refused, "raw rows have no quantiles, summaries have: export the tier `1m` or `1h`");
}

const CSV: &str = "Time,Host,Disk Name,busyPercent,ops,state,Extra Col\n\
    2026-09-21T14:13:20Z,web.example.org,sda,1.5,7,ok,x\n\
    2026-09-21T16:13:21.2509+02:00,web.example.org,sda,2,,ok,\n\
    2026-09-21 14:13:22,db,sdb,nan,9.5,,y\n";

#[test]
fn a_foreign_csv_becomes_rows_by_the_rules_of_names_and_types() {
    let lake = TestLake::new();
    let path = lake.file("disks.csv", CSV);
    let tags = Some(vec!["Disk Name".to_owned()]);
    let given = TableSource { tags, exclude: vec!["extra col".to_owned()], ..source(&path, "disks") };
    let stored = lake.import(given).expect("imports");
    assert_eq!((stored.read, stored.rows), (3, 3));
    assert_eq!(
        lake.text("SELECT string_agg(concat_ws(' ', ts, host, disk_name, coalesce(busypercent::VARCHAR, '-'), coalesce(ops::VARCHAR, '-'), coalesce(state, '-')), chr(10) ORDER BY ts) FROM lake.main.disks"),
        "2026-09-21 14:13:20 web-example-org sda 1.5 7.0 ok\n\
         2026-09-21 14:13:21.25 web-example-org sda 2.0 - ok\n\
         2026-09-21 14:13:22 db sdb - 9.5 -"
    );
}

#[test]
fn a_bad_row_ends_the_import_and_is_told_or_is_left_out_and_counted() {
    let lake = TestLake::new();
    for (number, (line, expected)) in [
        ("yesterday,h,1,true", "row 3, column `ts`: expected a time such as 2026-11-21T12:00:00Z, found `yesterday`"),
        (",h,1,true", "row 3, column `ts`: expected a time such as 2026-11-21T12:00:00Z, found nothing"),
        (
            "2023-09-21T14:13:20Z,h,1,true",
            "row 3, column `ts`: expected a time of the last two years, or --allow-old, found `2023-09-21T14:13:20Z`",
        ),
        (
            "2026-09-21T14:23:20.001Z,h,1,true",
            "row 3, column `ts`: expected a time of at most ten minutes ahead, found `2026-09-21T14:23:20.001Z`",
        ),
        (
            "2026-09-21T14:13:20Z,,1,true",
            "row 3, column `host`: expected a host, or --host for rows without one, found nothing",
        ),
        ("2026-09-21T14:13:20Z,h,one,true", "row 3, column `v`: expected an integer of 64 bits with sign, found `one`"),
        (
            "2026-09-21T14:13:20Z,h,9223372036854775808,true",
            "row 3, column `v`: expected an integer of 64 bits with sign, found `9223372036854775808`",
        ),
        ("2026-09-21T14:13:20Z,h,1,maybe", "row 3, column `ok`: expected true or false, found `maybe`"),
        (
            "2026-09-21T14:13:20Z,h,1",
            "line 4: expected a row of the columns of the first line (Expected Number of Columns: 4 Found: 3)",
        ),
        (
            "2026-09-21T14:13:20Z,h,1,true,2",
            "line 4: expected a row of the columns of the first line (Expected Number of Columns: 4 Found: 5)",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let measurement = &format!("m{number}");
        let good = |n: i64| format!("2026-09-21T14:13:0{n}Z,h,{n},true\n");
        // Types are settled before, so that what is sniffed does not depend on the bad line.
        lake.import(source(&lake.file("first.csv", &format!("ts,host,v,ok\n{}", good(0))), measurement))
            .expect("imports");
        let path = lake.file("m.csv", &format!("ts,host,v,ok\n{}{}{line}\n{}", good(1), good(2), good(3)));
        let error = lake.import(source(&path, measurement)).expect_err(line).to_string();
        assert_eq!(error, format!("`{}`, {expected}", path.display()));
        assert_eq!(
            lake.text(&format!("SELECT count(*)::VARCHAR FROM lake.main.{measurement}")),
            "1",
            "nothing of the chunk is stored: {line}"
        );
        let skipping = TableSource { skip_bad: true, ..source(&path, measurement) };
        let (stored, chunks) = import_with(&mut lake.importer(), skipping).expect("imports");
        assert_eq!((stored.read, stored.rows, stored.bad), (4, 3, 1), "{line}");
        let told: Vec<String> = chunks.iter().flat_map(|chunk| &chunk.bad).map(ToString::to_string).collect();
        assert_eq!(told, [expected]);
        assert_eq!(
            lake.text(&format!("SELECT string_agg(v::VARCHAR, ' ' ORDER BY ts) FROM lake.main.{measurement}")),
            "0 1 2 3"
        );
    }
}

#[test]
fn texts_and_tags_are_as_long_as_they_may_be_and_no_longer() {
    let lake = TestLake::new();
    let row = |second: usize, tag: usize, text: usize| {
        format!("2026-09-21T14:13:{second:02}Z,h,{},{}\n", "t".repeat(tag), "x".repeat(text))
    };
    let content =
        ["ts,host,tag,note\n".to_owned(), row(1, 1024, 1), row(2, 1, 16384), row(3, 1025, 1), row(4, 1, 16385)];
    let path = lake.file("m.csv", &content.concat());
    let tags = Some(vec!["tag".to_owned()]);
    let (stored, chunks) =
        import_with(&mut lake.importer(), TableSource { tags, skip_bad: true, ..source(&path, "m") }).expect("imports");
    assert_eq!((stored.rows, stored.bad), (2, 2));
    let expected: Vec<_> = chunks[0].bad.iter().map(|bad| bad.expected.as_str()).collect();
    assert_eq!(expected, ["a tag of at most 1024 bytes", "a text of at most 16384 bytes"]);
}

#[test]
fn old_rows_need_leave() {
    let lake = TestLake::new();
    let path = lake.file("m.csv", "ts,host,v\n1999-12-31T23:59:59Z,h,1\n");
    lake.import(source(&path, "m")).expect_err("too old");
    let mut importer = Importer::open(&lake.config, ImportOptions { allow_old: true, ..OPTIONS }).expect("opens");
    assert_eq!(import_with(&mut importer, source(&path, "m")).expect("imports").0.rows, 1);
    assert_eq!(lake.text("SELECT min(ts)::VARCHAR FROM lake.main.m"), "1999-12-31 23:59:59");
}

#[test]
fn times_that_are_numbers_need_a_unit() {
    let lake = TestLake::new();
    for (time, unit, precision) in [
        ("1789999999", "s", Precision::Seconds),
        ("1789999999000", "ms", Precision::Milliseconds),
        ("1789999999000000", "us", Precision::Microseconds),
        ("1789999999000999999", "ns", Precision::Nanoseconds),
    ] {
        let path = lake.file("m.csv", &format!("time,host,v\n{time},{unit},1\n"));
        let error = lake.import(source(&path, "m")).expect_err("no unit").to_string();
        let expected = format!(
            "column `time` holds numbers such as {time}: tell their unit by --precision ns, us, ms or s (most likely {unit})"
        );
        assert_eq!(error, format!("`{}`: {expected}", path.display()));
        lake.import(TableSource { precision: Some(precision), ..source(&path, "m") }).expect("imports");
    }
    let times = lake.text("SELECT string_agg(DISTINCT epoch_ms(ts)::VARCHAR, ' ') || ' ' || count(*) FROM lake.main.m");
    assert_eq!(times, "1789999999000 4");
}

#[test]
fn columns_that_can_not_be_told_apart_are_told() {
    let lake = TestLake::new();
    for (content, expected) in [
        (
            "host,v\nh,1\n",
            "there is no column `ts`, `time`, `timestamp` or `_time`; name the one of the times with --time-column: it has `host`, `v`",
        ),
        (
            "ts,v\n2026-09-21,1\n",
            "there is no column `host`; name one with --host-column, or the host of all rows with --host: it has `ts`, `v`",
        ),
        ("ts,host\n2026-09-21,h\n", "no column is left to be a field: it has `ts`, `host`"),
    ] {
        let path = lake.file("m.csv", content);
        let error = lake.import(source(&path, "m")).expect_err(content).to_string();
        assert_eq!(error, format!("`{}`: {expected}", path.display()));
    }
    let missing = lake.import(source(&lake.dir.path().join("none.csv"), "m")).expect_err("no file");
    assert!(matches!(missing, ImportError::Read { .. }), "{missing}");
    let garbage = lake.import(source(&lake.file("m.parquet", "no parquet"), "m")).expect_err("garbage");
    assert!(matches!(garbage, ImportError::Read { .. }), "{garbage}");
}

#[test]
fn a_measurement_or_column_that_the_lake_refuses_is_told() {
    let lake = TestLake::new();
    let path = lake.file("m.csv", "ts,host,v,rowid\n2026-09-21T14:13:20Z,h,1,2\n");
    let refused = lake.import(source(&path, "cpu_1m")).expect_err("a rollup's name");
    assert!(matches!(refused, ImportError::Refused { reason: AdmitError::Rollup, .. }), "{refused}");
    lake.import(source(&path, "m")).expect("imports");
    assert_eq!(
        lake.text("SELECT (v + exported_rowid)::VARCHAR FROM lake.main.m"),
        "3",
        "what the lake keeps is renamed"
    );
    lake.execute("COPY (SELECT TIMESTAMP '2026-09-21 14:13:21' AS ts, 'h' AS host, 'text' AS v) TO '/dev/null'");
    let text = lake.dir.path().join("text.parquet");
    lake.execute(&format!(
        "COPY (SELECT TIMESTAMP '2026-09-21 14:13:21' AS ts, 'h' AS host, 'text' AS v) TO '{}'",
        text.display()
    ));
    let refused = lake.import(source(&text, "m")).expect_err("another type");
    assert!(matches!(refused, ImportError::Refused { reason: AdmitError::Type { .. }, .. }), "{refused}");
}

#[test]
fn a_foreign_parquet_of_every_type_is_read() {
    let lake = TestLake::new();
    let path = lake.dir.path().join("p.parquet");
    lake.execute(&format!(
        "COPY (SELECT (TIMESTAMPTZ '2026-09-21 14:13:20+00' + INTERVAL (n) SECOND) AS \"timestamp\", 'h' AS host, n::UTINYINT AS a,
                      n::UBIGINT AS b, (n + 0.25)::DECIMAL(9, 2) AS c, n::FLOAT AS d, n > 1 AS e, ('x' || n) AS f,
                      CASE n WHEN 1 THEN 'nan'::DOUBLE ELSE n END AS g, DATE '2026-01-01' AS day, [n] AS list
               FROM range(3) r(n)) TO '{}' (FORMAT parquet)",
        path.display()
    ));
    let told = lake.import(source(&path, "p")).expect_err("a list").to_string();
    assert!(
        told.ends_with("column `day` is of type DATE, which no field has: leave it out with --exclude day"),
        "{told}"
    );
    let exclude = vec!["day".to_owned(), "list".to_owned()];
    lake.import(TableSource { exclude, ..source(&path, "p") }).expect("imports");
    assert_eq!(
        lake.text("SELECT string_agg(concat_ws(' ', epoch_ms(ts), a, b, c, d, e, f, coalesce(g::VARCHAR, '-')), ', ' ORDER BY ts) FROM lake.main.p"),
        "1790000000000 0 0 0.25 0.0 false x0 0.0, 1790000001000 1 1 1.25 1.0 false x1 -, 1790000002000 2 2 2.25 2.0 true x2 2.0"
    );
}

#[test]
fn a_row_is_stored_once_and_what_it_lacks_is_added() {
    let lake = TestLake::new();
    let given = |content: &str| lake.import(source(&lake.file("m.csv", content), "m")).expect("imports");
    let head = "ts,host,a,b\n";
    let at = |second: i64, values: &str| format!("2026-09-21T14:13:{second:02}Z,h,{values}\n");
    let first = given(&format!("{head}{}{}{}", at(1, "1,"), at(2, "2,2"), at(1, ",10")));
    assert_eq!((first.read, first.joined, first.rows, first.differing), (3, 1, 2, 0), "lines of one time make one row");
    let second = given(&format!("{head}{}{}{}", at(1, "1,10"), at(2, "2,3"), at(3, "3,")));
    assert_eq!((second.rows, second.contained, second.differing), (1, 2, 1), "what is there stays");
    let third = given(&format!("ts,host,b,c\n{}", at(3, "30,300")));
    assert_eq!((third.rows, third.contained), (1, 0), "new fields make a further row of the time");
    let again = given(&format!("ts,host,b,c\n{}", at(3, "30,300")));
    assert_eq!((again.rows, again.contained), (0, 1));
    let doubles = given(&format!("{head}{}{}", at(4, "4,4"), at(4, "5,4")));
    assert_eq!((doubles.rows, doubles.joined, doubles.differing), (1, 1, 1), "the first value wins");
    assert_eq!(
        lake.text("SELECT string_agg(concat_ws(' ', second(ts), coalesce(a::VARCHAR, '-'), coalesce(b::VARCHAR, '-'), coalesce(c::VARCHAR, '-')), ', ' ORDER BY ts, a NULLS LAST) FROM lake.main.m"),
        "1 1 10 -, 2 2 2 -, 3 3 - -, 3 - 30 300, 4 4 4 -"
    );
}

#[test]
fn a_large_file_is_stored_in_chunks_and_goes_on_where_it_was_broken_off() {
    let lake = TestLake::new();
    let row = |n: i64| format!("{},h{},{n},{}\n", NOW_MS - 100_000 + n, n % 3, n as f64 / 4.0);
    let rows: String = (0..2500).map(row).collect();
    let head = "time,host,n,q\n";
    let precision = Some(Precision::Milliseconds);
    let broken = lake.file("m.csv", &format!("{head}{rows}never,h,1,1\n"));
    let error = lake.import(TableSource { precision, ..source(&broken, "m") }).expect_err("the last row is bad");
    assert!(error.to_string().ends_with("row 2501, column `time`: expected a number, found `never`"), "{error}");
    assert_eq!(lake.text("SELECT count(*)::VARCHAR FROM lake.main.m"), "2000", "two whole chunks");
    let mended = lake.file("m.csv", &format!("{head}{rows}"));
    let (stored, chunks) =
        import_with(&mut lake.importer(), TableSource { precision, ..source(&mended, "m") }).expect("imports");
    assert_eq!((stored.rows, stored.contained, chunks.len()), (500, 2000, 3));
    assert_eq!(chunks.iter().map(|chunk| chunk.done).collect::<Vec<_>>(), [1000, 2000, 2500]);
    assert_eq!(
        lake.text("SELECT concat(count(*), ' ', count(DISTINCT n), ' ', sum(q)) FROM lake.main.m"),
        "2500 2500 780937.5"
    );
}

#[test]
fn a_dry_run_tells_and_writes_nothing() {
    let lake = TestLake::new();
    let path = lake.file("m.csv", "ts,host,v\n2026-09-21T14:13:20Z,h,1\n2026-09-21T14:13:21Z,h,2\n");
    let dry = || Importer::open(&lake.config, ImportOptions { dry_run: true, ..OPTIONS }).expect("opens");
    assert_eq!(import_with(&mut dry(), source(&path, "m")).expect("reads").0.rows, 2);
    assert!(!lake.dir.path().join("lake").exists(), "not even a lake is made");
    lake.import(source(&lake.file("n.csv", "ts,host,v\n2026-09-21T14:13:20Z,h,1\n"), "m")).expect("imports");
    let (stored, _) = import_with(&mut dry(), source(&path, "m")).expect("reads");
    assert_eq!((stored.rows, stored.contained), (1, 1));
    assert_eq!(lake.text("SELECT count(*)::VARCHAR FROM lake.main.m"), "1");
}

#[test]
fn imports_at_the_same_time_as_each_other_and_as_ingest_store_each_row_once() {
    let lake = TestLake::new();
    let rows: String = (0..3000).map(|n| format!("{},h,{n}\n", NOW_MS - 100_000 + n)).collect();
    let path = lake.file("m.csv", &format!("time,host,n\n{rows}"));
    let precision = Some(Precision::Milliseconds);
    lake.importer();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let source = TableSource { precision, chunk_rows: 500, ..source(&path, "m") };
                lake.import(source).expect("imports");
            });
        }
        scope.spawn(|| {
            let writer = LakeWriter::open(&lake.config).expect("opens");
            let partition = PartitionId::new(1).expect("exists");
            for sequence in 1..=10_u64 {
                let batch = Batch {
                    host: HostId::parse("live").expect("host"),
                    measurement: name("m"),
                    times: vec![NOW_MS + sequence.cast_signed()],
                    tags: BTreeMap::new(),
                    fields: BTreeMap::from([(name("n"), Column::Integer(vec![Some(1)]))]),
                    epoch: ulid::Ulid::nil(),
                    seq: 1,
                };
                let message = PendingMessage { partition, sequence: Sequence(sequence), stored_ms: NOW_MS, batch };
                let position = Position { incarnation: Incarnation(7), sequence: Sequence(sequence) };
                let reached = BTreeMap::from([(partition, position)]);
                let set = CommitSet { messages: vec![message], reached, current: None };
                while writer.commit(&set).is_err() {}
            }
        });
    });
    let count = "SELECT concat(count(*), ' ', count(DISTINCT (host, ts))) FROM lake.main.m";
    assert_eq!(lake.text(count), "3010 3010");
    let positions = LakeWriter::open(&lake.config).expect("opens").positions().expect("reads");
    let stored = positions.stored(PartitionId::new(1).expect("exists")).expect("stored");
    assert_eq!(stored.sequence, Sequence(10), "positions are ingest's alone");
}

#[test]
fn batches_are_stored_by_the_same_rules() {
    let lake = TestLake::new();
    let mut importer = lake.importer();
    let first = importer.store_batches(&hard_batches()).expect("imports");
    assert_eq!((first.read, first.rows), (10, 10));
    let again = importer.store_batches(&hard_batches()).expect("imports");
    assert_eq!((again.rows, again.contained), (0, 10));
    let expected = TestLake::new();
    commit(&expected, hard_batches());
    assert_eq!(lake.rows("hard"), expected.rows("hard"), "as if they had come by the stream");
}
