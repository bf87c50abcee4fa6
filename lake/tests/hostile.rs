//! Names and types that would break a careless schema: on the way into a real lake, through growth, merges, deletes and queries.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use plimsoll_lake::{
    CommitOutcome, LakeConfig, LakeReader, LakeWriter, PendingMessage, Tail,
    query::{FieldStats, Points, PointsQuery, ReaderLimits, Selection, TierChoice, Value},
    schema::{AdmitError, MAX_COLUMNS, MAX_TABLES},
    writer::{CommitSet, Rejection},
};
use plimsoll_nats::{Batch, Column, HostId, Incarnation, Name, PartitionId, Position, Sequence, spelling};
use tempfile::TempDir;

const LIFE: Incarnation = Incarnation(1_700_000_000_000_000_000);
const NOW_MS: i64 = 1_790_000_000_000;

/// SQLite's list of keywords, as far as DuckDB's own lacks them. <https://www.sqlite.org/lang_keywords.html>
const SQLITE: &str = "autoincrement always abort conflict exclusive fail glob indexed isnull notnull raise regexp reindex match \
    exclude except plan query pragma others ties temp";
/// Reserved words of the SQL standard and of PostgreSQL, as far as DuckDB's own list lacks them.
/// <https://www.postgresql.org/docs/15/sql-keywords-appendix.html>
const POSTGRES: &str = "current_date current_time current_timestamp current_user session_user localtime localtimestamp user \
    current_catalog current_role current_schema system_user tablesample collation freeze authorization binary placing \
    value values row rows date time timestamp year month day hour minute second interval array multiset uescape unknown";
/// Names of DuckDB's, DuckLake's, SQLite's, PostgreSQL's and the lake's own tables, schemas, catalogs and functions.
const INTERNALS: &str = "ducklake_table ducklake_snapshot ducklake_column ducklake_inlined_data_1_1 duckdb_tables duckdb_columns \
    pg_class pg_catalog sqlite_master sqlite_schema sqlite_sequence information_schema main temp system lake plimsoll \
    positions rollups imports staging tail read_csv read_parquet range generate_series excluded old new";
/// DuckLake's virtual columns, of which nothing here makes use.
const VIRTUAL: [&str; 3] = ["filename", "file_row_number", "file_index"];
/// Those by which the lake tells rows apart.
const NEEDED: [&str; 2] = ["rowid", "snapshot_id"];

fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

fn partition() -> PartitionId {
    PartitionId::new(3).expect("exists")
}

/// A row at `second` with one tag and one integer, which is the second.
fn row(measurement: &str, tag: &str, field: &str, second: i64) -> Batch {
    with(measurement, tag, field, second, Column::Integer(vec![Some(second)]))
}

fn with(measurement: &str, tag: &str, field: &str, second: i64, column: Column) -> Batch {
    Batch {
        host: HostId::parse("h").expect("host"),
        measurement: name(measurement),
        epoch: ulid::Ulid::nil(),
        seq: 1,
        times: vec![NOW_MS + second * 1000],
        tags: BTreeMap::from([(name(tag), vec!["t".to_owned()])]),
        fields: BTreeMap::from([(name(field), column)]),
    }
}

fn floats(values: &[f64]) -> Column {
    Column::Float(values.iter().copied().map(Some).collect())
}

struct Fixture {
    writer: LakeWriter,
    reader: LakeReader,
    tail: Arc<Tail>,
    sequence: u64,
    _dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let config = LakeConfig::embedded(dir.path());
        let writer = LakeWriter::open(&config).expect("opens");
        let limits =
            ReaderLimits { connections: NonZeroUsize::new(2).expect("not 0"), timeout: Duration::from_secs(60) };
        let reader = LakeReader::new(&config, limits).expect("opens");
        reader.attach().expect("attaches");
        let tail = Arc::new(Tail::new(usize::MAX));
        tail.reset(partition(), Position::start(LIFE));
        Self { writer, reader, tail, sequence: 0, _dir: dir }
    }

    /// Puts a batch into the tail; gives what a commit would take.
    fn arrive(&mut self, batch: Batch) -> PendingMessage {
        self.sequence += 1;
        let sequence = Sequence(self.sequence);
        self.tail.push(partition(), sequence, Some(Arc::new(batch.clone())));
        PendingMessage { partition: partition(), sequence, stored_ms: NOW_MS, batch }
    }

    /// Commits as ingest does: what the lake refuses is put aside, the rest is stored. Returns what was put aside.
    fn ingest(&mut self, batches: impl IntoIterator<Item = Batch>) -> Vec<(Batch, AdmitError)> {
        let messages = batches.into_iter().map(|batch| self.arrive(batch)).collect();
        let reached = Position { incarnation: LIFE, sequence: Sequence(self.sequence) };
        let mut set = CommitSet { messages, reached: BTreeMap::from([(partition(), reached)]), current: None };
        let mut dead = Vec::new();
        loop {
            match self.writer.commit(&set).expect("commits") {
                CommitOutcome::Committed(_) => break,
                CommitOutcome::Rejected(rejections) => {
                    assert!(!rejections.is_empty());
                    for Rejection { index, reason } in rejections.into_iter().rev() {
                        dead.push((set.messages.remove(index).batch, reason));
                    }
                }
                other => panic!("not committed: {other:?}"),
            }
        }
        dead
    }

    /// The same of batches that all fit.
    fn store(&mut self, batches: impl IntoIterator<Item = Batch>) {
        let dead = self.ingest(batches);
        assert!(dead.is_empty(), "{dead:?}");
    }

    async fn forget(&self) {
        self.tail.forget(&self.reader.positions().await.expect("reads"));
    }

    fn execute(&self, sql: &str) {
        self.writer.lake().connection().execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// What maintenance does to small files and rows in the catalog.
    fn merge(&self) {
        self.execute("CALL ducklake_flush_inlined_data('lake'); CALL ducklake_merge_adjacent_files('lake')");
        // A reader that knows a table's rows in the catalog misses them until the schema changes: a fault of DuckLake 1.0.
        self.execute("COMMENT ON TABLE lake.plimsoll.positions IS 'merged'");
    }

    fn text(&self, sql: &str) -> String {
        let read = self.writer.lake().connection().query_row(sql, [], |row| row.get(0));
        read.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    async fn stats(&self, measurement: &str) -> Vec<FieldStats> {
        let answer = self.reader.stats(&self.tail, selection(measurement, "h"), None, TierChoice::Auto).await;
        answer.unwrap_or_else(|error| panic!("{measurement}: {error:?}")).rows
    }

    /// The points of the one field, from the lake and the tail.
    async fn points(&self, measurement: &str, host: &str) -> Vec<(i64, Value)> {
        let query = PointsQuery::new(NonZeroUsize::new(1000).expect("not 0"));
        let answer = self.reader.points(&self.tail, selection(measurement, host), query).await;
        let series = answer.unwrap_or_else(|error| panic!("{measurement}: {error:?}")).rows;
        let points = series.into_iter().flat_map(|series| match series.points {
            Points::Values(points) => points,
            Points::Buckets(points) => panic!("{points:?}"),
        });
        points.collect()
    }
}

fn selection(measurement: &str, host: &str) -> Selection {
    Selection {
        hosts: HostId::parse(host).expect("host").into(),
        measurement: name(measurement),
        from_ms: 0,
        to_ms: None,
        tags: BTreeMap::new(),
    }
}

/// Words that mean something in SQL and that may be names here.
fn words(fixture: &Fixture, condition: &str) -> Vec<String> {
    let connection = fixture.writer.lake().connection();
    let sql = format!("SELECT keyword_name FROM duckdb_keywords() WHERE {condition}");
    let mut statement = connection.prepare(&sql).expect("prepares");
    let rows = statement.query_map([], |row| row.get::<_, String>(0)).expect("runs");
    let duckdb: Vec<String> = rows.map(|row| row.expect("a word")).collect();
    assert!(duckdb.len() > 70, "DuckDB knows its keywords");
    let others = SQLITE.split_whitespace().chain(POSTGRES.split_whitespace()).map(str::to_owned);
    let all: BTreeSet<String> = duckdb.into_iter().chain(others).filter(|word| Name::parse(word).is_ok()).collect();
    all.into_iter().filter(|word| spelling::column_problem(word).is_none()).collect()
}

#[tokio::test]
async fn a_word_of_sql_names_a_measurement_a_tag_and_a_field() {
    let mut fixture = Fixture::new();
    let internals = INTERNALS.split_whitespace().map(str::to_owned);
    let words: Vec<String> = words(&fixture, "keyword_category = 'reserved'").into_iter().chain(internals).collect();
    let words: Vec<String> = words.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    assert!(words.len() > 120 && words.len() <= MAX_TABLES, "{}", words.len());
    let next = |index: usize, by: usize| &words[(index + by) % words.len()];
    let all = |second: i64, tag: usize, field: usize| {
        let words = words.iter().enumerate();
        words.map(move |(index, word)| row(word, next(index, tag), next(index, field), second)).collect::<Vec<_>>()
    };
    fixture.store(all(0, 1, 2));
    // A further tag and a further field of each.
    fixture.store(all(1, 3, 4));
    fixture.forget().await;
    fixture.merge();
    let waiting: Vec<_> = all(2, 1, 2).into_iter().map(|batch| fixture.arrive(batch)).collect();
    assert_eq!(waiting.len(), words.len());
    for (index, word) in words.iter().enumerate() {
        // Points take every word; statistics are asked of some, since they take longer.
        if index % 5 == 0 {
            let (first, second) = (next(index, 2), next(index, 4));
            let counts: BTreeMap<String, u64> =
                fixture.stats(word).await.into_iter().map(|stats| (stats.field.to_string(), stats.count)).collect();
            assert_eq!(counts, BTreeMap::from([(first.clone(), 2), (second.clone(), 1)]), "{word}");
        }
        let mut points = fixture.points(word, "h").await;
        points.sort_by_key(|(time, _)| *time);
        let expected: Vec<_> = (0..3).map(|second| (NOW_MS + second * 1000, Value::Integer(second))).collect();
        assert_eq!(points, expected, "{word}");
    }
}

#[tokio::test]
async fn every_keyword_is_a_column_beside_the_others() {
    let mut fixture = Fixture::new();
    let words = words(&fixture, "true");
    assert!(words.len() > 450, "{}", words.len());
    for (number, words) in words.chunks(MAX_COLUMNS / 2).enumerate() {
        let measurement = format!("m{number}");
        for (second, (tags, fields)) in [words.split_at(words.len() / 2), words.split_at(0)].into_iter().enumerate() {
            let mut batch = row(&measurement, "plain_tag", "plain_field", second as i64);
            batch.tags.extend(tags.iter().map(|word| (name(word), vec![format!("<{word}>")])));
            let fields = fields.iter().filter(|word| second == 0 || batch_has_no_tag(words, word));
            batch.fields.extend(fields.map(|word| (name(word), Column::Text(vec![Some(format!("={word}"))]))));
            fixture.store([batch]);
        }
        fixture.merge();
        fixture.forget().await;
        let stats = fixture.stats(&measurement).await;
        let series: BTreeSet<_> = stats.iter().map(|stats| &stats.tags).collect();
        assert_eq!(series.len(), 2, "with the words as tags, and without");
        for word in &words[words.len() / 2..] {
            let found = stats.iter().filter(|stats| *stats.field == **word);
            let values: Vec<_> = found.map(|stats| (stats.count, stats.last.clone())).collect();
            assert_eq!(values, vec![(1, Some(Value::Text(format!("={word}")))); 2], "{word}");
        }
        let tagged = series.iter().find(|series| series.len() > 1).expect("the one with tags");
        for word in &words[..words.len() / 2] {
            assert_eq!(tagged.get(&**word), Some(&format!("<{word}>")));
        }
    }
}

/// Whether a word is in the half that is fields.
fn batch_has_no_tag(words: &[String], word: &String) -> bool {
    !words[..words.len() / 2].contains(word)
}

#[tokio::test]
async fn names_of_virtual_columns_hide_nothing_that_the_lake_needs() {
    let mut fixture = Fixture::new();
    for hidden in VIRTUAL {
        let measurement = format!("has_{hidden}");
        for second in 0..3 {
            let rows = (0..20).map(|n| row(&measurement, "tag", hidden, second * 20 + n));
            fixture.store(rows);
        }
        fixture.execute(&format!("DELETE FROM lake.main.{measurement} WHERE {hidden} = 7"));
        fixture.execute(&format!(
            "CALL ducklake_merge_adjacent_files('lake', '{measurement}');
             CALL ducklake_rewrite_data_files('lake', '{measurement}', delete_threshold => 0)"
        ));
        let sql = format!("SELECT count({hidden}) || ' ' || sum({hidden})::BIGINT FROM lake.main.{measurement}");
        assert_eq!(fixture.text(&sql), format!("59 {}", (0..60).sum::<i64>() - 7), "{hidden}");
        fixture.forget().await;
        assert_eq!(fixture.stats(&measurement).await[0].count, 59, "{hidden}");
        // As a tag it would be text, and no more in the way.
        fixture.store([row(&format!("tag_{hidden}"), hidden, "v", 1)]);
    }
    for needed in NEEDED {
        let dead = fixture.ingest([
            row("refused", "tag", needed, 1),
            row("refused", needed, "v", 1),
            row("has_filename", "tag", needed, 1),
            row("refused", "tag", "v", 1),
        ]);
        assert_eq!(dead.len(), 3);
        for (_, reason) in &dead {
            let text = reason.to_string();
            assert_eq!(text, format!("a column may not be named `{needed}`: the lake tells rows apart by it"));
        }
        let rows = format!("SELECT min({needed}) IS NOT NULL AND count(*) > 0 FROM lake.main.refused");
        assert_eq!(fixture.text(&format!("SELECT ({rows})::VARCHAR")), "true", "the virtual column is there");
    }
    // What others spell so gets another name on its way.
    for refused in VIRTUAL.iter().chain(&NEEDED) {
        let column = spelling::column(refused);
        assert_eq!(fixture.ingest([row("spelled", "tag", &column, 1)]).len(), 0, "{column}");
    }
}

#[tokio::test]
async fn the_longest_names_stay_apart() {
    let mut fixture = Fixture::new();
    let long = |last: char| format!("{}{last}", "a".repeat(62));
    let mut batch = row(&long('m'), &long('t'), &long('f'), 1);
    batch.fields.insert(name(&long('g')), Column::Integer(vec![Some(7)]));
    fixture.store([batch, row(&long('n'), &long('t'), &long('f'), 2)]);
    // A rollup's name is longer still.
    fixture.execute(&format!("CREATE TABLE lake.main.{}_1m AS FROM lake.main.{}", long('m'), long('m')));
    fixture.forget().await;
    let stats = fixture.stats(&long('m')).await;
    let last: Vec<_> = stats.iter().map(|stats| (stats.field.to_string(), stats.last.clone())).collect();
    assert_eq!(last, [(long('f'), Some(Value::Integer(1))), (long('g'), Some(Value::Integer(7)))]);
    assert_eq!(fixture.points(&long('n'), "h").await, [(NOW_MS + 2000, Value::Integer(2))]);
    assert!(Name::parse(&"a".repeat(64)).is_err());
}

/// Each of them would fail every commit of everybody, or read as something else, on one of the catalogs.
#[test]
fn words_that_ducklake_does_not_quote_are_refused() {
    let mut fixture = Fixture::new();
    let words =
        ["autoincrement", "raise", "current_date", "current_user", "localtime", "session_user", "system_user", "xmin"];
    let dead = fixture.ingest(words.iter().flat_map(|word| [row("m", "tag", word, 0), row("m", word, "v", 0)]));
    assert_eq!(dead.len(), 2 * words.len());
    assert!(dead.iter().all(|(_, reason)| matches!(reason, AdmitError::Reserved { .. })), "{dead:?}");
    fixture.store(words.map(|word| row(word, "tag", &spelling::column(word), 0)));
}

#[test]
fn names_that_differ_only_in_case_can_not_come() {
    for spelled in ["CPU", "Cpu", "cPU"] {
        assert!(Name::parse(spelled).is_err());
        assert_eq!(&*spelling::normalise(spelled), "cpu");
    }
}

#[test]
fn a_measurement_has_as_many_columns_as_it_may_and_no_more() {
    let mut fixture = Fixture::new();
    let mut batch = row("wide", "tag", "f0", 0);
    batch.fields = (0..MAX_COLUMNS - 2).map(|n| (name(&format!("f{n}")), Column::Integer(vec![Some(1)]))).collect();
    fixture.store([batch]);
    let dead =
        fixture.ingest([row("wide", "tag", "last", 1), row("wide", "tag", "beyond", 2), row("wide", "tag", "f7", 3)]);
    let [(batch, reason)] = &dead[..] else { panic!("{dead:?}") };
    assert!(batch.fields.contains_key("beyond"));
    assert!(matches!(reason, AdmitError::TooManyColumns { columns } if *columns == MAX_COLUMNS + 1), "{reason}");
    let sql = "SELECT (SELECT count(*) FROM duckdb_columns() WHERE table_name = 'wide' AND database_name = 'lake')
                   || ' ' || count(*) || ' ' || count(last) FROM lake.main.wide";
    assert_eq!(fixture.text(sql), format!("{} 3 1", MAX_COLUMNS + 2));
}

#[test]
fn the_lake_has_as_many_measurements_as_it_may_and_no_more() {
    let mut fixture = Fixture::new();
    fixture.store((0..MAX_TABLES).map(|n| row(&format!("m{n}"), "tag", "v", 0)));
    let dead = fixture.ingest([row("beyond", "tag", "v", 1), row("m7", "tag", "v", 2)]);
    let [(batch, reason)] = &dead[..] else { panic!("{dead:?}") };
    assert_eq!((&*batch.measurement, reason), ("beyond", &AdmitError::TooManyTables));
    let sql = "SELECT count(*)::VARCHAR FROM duckdb_tables() WHERE database_name = 'lake' AND schema_name = 'main'";
    assert_eq!(fixture.text(sql), MAX_TABLES.to_string());
    assert_eq!(fixture.text("SELECT count(*)::VARCHAR FROM lake.main.m7"), "2");
}

#[test]
fn a_measurement_that_would_be_taken_for_a_rollup_is_refused() {
    let mut fixture = Fixture::new();
    let dead = fixture.ingest(["cpu_1m", "cpu_1h", "cpu_1m_1h", "cpu_1d", "x_1min"].map(|m| row(m, "tag", "v", 0)));
    let refused: BTreeSet<&str> = dead.iter().map(|(batch, _)| &*batch.measurement).collect();
    assert_eq!(refused, BTreeSet::from(["cpu_1h", "cpu_1m", "cpu_1m_1h"]));
    assert!(dead.iter().all(|(_, reason)| *reason == AdmitError::Rollup));
}

#[test]
fn rows_are_as_far_off_as_they_may_be_and_no_farther() {
    const AHEAD_MS: i64 = 600_000;
    const AGE_MS: i64 = 2 * 366 * 86_400_000;
    let mut fixture = Fixture::new();
    let at = |lead_ms: i64| Batch { times: vec![NOW_MS + lead_ms], ..row("m", "tag", "v", lead_ms) };
    let dead = fixture.ingest([at(AHEAD_MS), at(AHEAD_MS + 1), at(-AGE_MS), at(-AGE_MS - 1), at(0)]);
    let mut refused: Vec<_> =
        dead.iter().map(|(batch, reason)| (batch.times[0] - NOW_MS, reason.to_string())).collect();
    refused.sort();
    assert_eq!(
        refused,
        [
            (-AGE_MS - 1, "row 0 is 732 days older than its arrival: at most 732 are allowed".to_owned()),
            (AHEAD_MS + 1, "row 0 is 600 s ahead of the time of its arrival: at most 600 s are allowed".to_owned()),
        ]
    );
    assert_eq!(fixture.text("SELECT count(*)::VARCHAR FROM lake.main.m"), "3");
}

/// The types that a field's batches have, one after the other, and what comes of them: the stored column's type, and which of them are
/// refused.
#[test]
fn a_field_that_changes_type_is_stored_or_refused_by_the_rule() {
    let column = |kind: char, n: i64| match kind {
        'i' => Column::Integer(vec![Some(n)]),
        'f' => floats(&[n as f64 + 0.5]),
        'b' => Column::Bool(vec![Some(n % 2 == 0)]),
        _ => Column::Text(vec![Some(format!("t{n}"))]),
    };
    for (number, (kinds, stored, refused)) in [
        ("if", "DOUBLE", ""),
        ("fi", "DOUBLE", ""),
        ("iifiiffi", "DOUBLE", ""),
        ("itfi", "DOUBLE", "t"),
        ("tif", "VARCHAR", "if"),
        ("bif", "BOOLEAN", "if"),
        ("ibtf", "DOUBLE", "bt"),
        ("fbtif", "DOUBLE", "bt"),
        ("ii", "BIGINT", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let batches = || kinds.chars().zip(0..).map(|(kind, n)| with("m", "tag", "v", n, column(kind, n)));
        let (mut together, mut apart) = (Fixture::new(), Fixture::new());
        let first = together.ingest(batches());
        let second: Vec<_> = batches().flat_map(|batch| apart.ingest([batch])).collect();
        for (fixture, dead) in [(&together, first), (&apart, second)] {
            let kind =
                fixture.text("SELECT data_type FROM duckdb_columns() WHERE table_name = 'm' AND column_name = 'v'");
            assert_eq!(kind, stored, "{kinds}");
            assert!(dead.iter().all(|(_, reason)| matches!(reason, AdmitError::Type { .. })), "{dead:?}");
            let mut dead_at: Vec<_> = dead.iter().map(|(batch, _)| (batch.times[0] - NOW_MS) / 1000).collect();
            dead_at.sort_unstable();
            let expected: Vec<i64> =
                kinds.chars().zip(0..).filter(|(kind, _)| refused.contains(*kind)).map(|(_, n)| n).collect();
            assert_eq!(dead_at, expected, "{kinds}");
            let rows: Vec<String> = kinds
                .chars()
                .zip(0..)
                .filter(|(_, n)| !expected.contains(n))
                .map(|(kind, n)| match (kind, stored) {
                    ('i', "DOUBLE") => format!("{n}.0"),
                    ('i', _) => n.to_string(),
                    ('f', _) => format!("{n}.5"),
                    ('b', _) => (n % 2 == 0).to_string(),
                    _ => format!("t{n}"),
                })
                .collect();
            assert_eq!(
                fixture.text("SELECT string_agg(v::VARCHAR, ' ' ORDER BY ts) FROM lake.main.m"),
                rows.join(" "),
                "{number}"
            );
        }
    }
}

#[tokio::test]
async fn an_integer_column_that_became_one_of_floats_keeps_its_rows_through_merges_and_queries() {
    let mut fixture = Fixture::new();
    fixture.store((0..30).map(|n| row("m", "tag", "v", n)));
    // Few rows, which DuckLake keeps in the catalog.
    fixture.store([row("m", "tag", "v", 30)]);
    fixture.store([with("m", "tag", "v", 31, floats(&[31.5]))]);
    fixture.store((32..60).map(|n| row("m", "tag", "v", n)));
    fixture.forget().await;
    let expected: Vec<_> =
        (0..60).map(|n| (NOW_MS + n * 1000, Value::Float(if n == 31 { 31.5 } else { n as f64 }))).collect();
    assert_eq!(fixture.points("m", "h").await, expected);
    fixture.merge();
    assert_eq!(fixture.points("m", "h").await, expected);
    assert_eq!(
        fixture.text("SELECT string_agg(v::VARCHAR, ' ' ORDER BY v) FROM lake.main.m WHERE v + 0 BETWEEN 30.5 AND 32"),
        "31.5 32.0"
    );
}

#[tokio::test]
async fn lake_and_tail_widen_a_column_alike() {
    let mut fixture = Fixture::new();
    fixture.store([row("m", "tag", "v", 1)]);
    fixture.forget().await;
    // The lake still has a column of integers.
    let other = Batch { host: HostId::parse("other").expect("host"), ..with("m", "tag", "v", 2, floats(&[2.5])) };
    let mut waiting = vec![fixture.arrive(other)];
    assert_eq!(fixture.points("m", "h").await, [(NOW_MS + 1000, Value::Integer(1))], "the float is another host's");
    waiting.push(fixture.arrive(with("m", "tag", "v", 3, floats(&[3.5]))));
    waiting.push(fixture.arrive(row("m", "tag", "v", 4)));
    let expected = [(1, 1.0), (3, 3.5), (4, 4.0)].map(|(second, value)| (NOW_MS + second * 1000, Value::Float(value)));
    assert_eq!(fixture.points("m", "h").await, expected);
    let reached = Position { incarnation: LIFE, sequence: Sequence(fixture.sequence) };
    let set = CommitSet { messages: waiting, reached: BTreeMap::from([(partition(), reached)]), current: None };
    assert!(matches!(fixture.writer.commit(&set).expect("commits"), CommitOutcome::Committed(_)));
    assert_eq!(fixture.points("m", "h").await, expected, "the tail has not forgotten them yet");
    fixture.forget().await;
    assert_eq!(fixture.points("m", "h").await, expected);
    assert_eq!(fixture.points("m", "other").await, [(NOW_MS + 2000, Value::Float(2.5))]);
}
