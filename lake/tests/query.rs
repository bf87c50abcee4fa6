//! Queries on a real lake and a tail beside it.

mod support;

use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc, time::Duration};

use plimsoll_lake::{
    LakeConfig, LakeError, LakeReader, LakeWriter, Tail,
    query::{Hosts, PointSeries, Points, PointsQuery, QueryError, Selection, TierChoice, Value},
};
use plimsoll_nats::{Batch, Column, HostId, PartitionId, Position, Sequence, testing::eventually};
use support::{Fixture, LIFE, START_MS, all_of, limits, name, partition};
use tempfile::TempDir;

/// A second of disk `disk`: a float, an integer that no float can hold, a bool and a text.
fn sample(disk: &str, second: i64) -> Batch {
    let fields = [
        ("busy_percent", Column::Float(vec![Some(second as f64)])),
        ("read_bytes_total", Column::Integer(vec![Some(i64::MAX - 100 + second)])),
        ("read_only", Column::Bool(vec![(second % 2 == 0).then_some(true).or(Some(false))])),
        ("state", Column::Text(vec![Some(format!("s{second}"))])),
    ];
    Batch {
        host: HostId::parse("web-1").expect("host"),
        measurement: name("disk"),
        epoch: ulid::Ulid::nil(),
        seq: 1,
        times: vec![START_MS + second * 1000],
        tags: BTreeMap::from([(name("device"), vec![disk.to_owned()])]),
        fields: fields.into_iter().map(|(field, column)| (name(field), column)).collect(),
    }
}

fn all() -> Selection {
    all_of("web-1", "disk")
}

async fn points(fixture: &Fixture, query: PointsQuery) -> Vec<PointSeries> {
    fixture.reader.points(&fixture.tail, all(), query).await.expect("answers").rows
}

fn query(fields: &[&str], step: Option<Duration>, limit: usize) -> PointsQuery {
    let fields = Some(fields.iter().map(|field| name(field)).collect());
    PointsQuery { fields, step, ..PointsQuery::new(NonZeroUsize::new(limit).expect("not 0")) }
}

#[tokio::test]
async fn lake_and_tail_count_each_sample_once() {
    let mut fixture = Fixture::new();
    let messages: Vec<_> = (0..10).map(|second| fixture.arrive(sample("a", second))).collect();
    let count = async |fixture: &Fixture| {
        let answer = fixture.reader.stats(&fixture.tail, all(), None, TierChoice::Auto).await.expect("answers");
        assert!(answer.complete && answer.host_known);
        assert_eq!(answer.rows.len(), 4, "a field each");
        answer.rows[0].count
    };
    assert_eq!(count(&fixture).await, 10, "only the tail has them");
    fixture.commit(messages);
    assert_eq!(count(&fixture).await, 10, "the tail has not forgotten them yet");
    fixture.tail.forget(&fixture.reader.positions().await.expect("reads"));
    assert_eq!(count(&fixture).await, 10, "only the lake has them");
    for second in 10..13 {
        fixture.arrive(sample("a", second));
    }
    assert_eq!(count(&fixture).await, 13, "both have some");
}

#[tokio::test]
async fn statistics_are_exact() {
    let mut fixture = Fixture::new();
    let messages: Vec<_> = (0..=100).map(|second| fixture.arrive(sample("a", second))).collect();
    fixture.commit(messages);
    fixture.arrive(sample("b", 7));
    let mut selection = all();
    selection.tags.insert(name("device"), "a".to_owned());
    let rows = fixture.reader.stats(&fixture.tail, selection, None, TierChoice::Auto).await.expect("answers").rows;
    let by_field: BTreeMap<&str, _> = rows.iter().map(|stats| (&*stats.field, stats)).collect();
    let busy = by_field["busy_percent"].summary.as_ref().expect("numbers");
    assert_eq!((busy.min.clone(), busy.max.clone(), busy.avg), (Value::Float(0.0), Value::Float(100.0), 50.0));
    assert_eq!((busy.p50, busy.p95, busy.p99), (50.0, 95.0, 99.0));
    let bytes = by_field["read_bytes_total"];
    let summary = bytes.summary.as_ref().expect("numbers");
    assert_eq!((&summary.min, &summary.max), (&Value::Integer(i64::MAX - 100), &Value::Integer(i64::MAX)));
    assert_eq!((&bytes.last, bytes.last_time_ms), (&Some(Value::Integer(i64::MAX)), START_MS + 100_000));
    let read_only = by_field["read_only"].summary.as_ref().expect("numbers");
    assert_eq!((&read_only.min, &read_only.max), (&Value::Integer(0), &Value::Integer(1)));
    assert_eq!(by_field["state"].summary, None);
    assert_eq!(by_field["state"].last, Some(Value::Text("s100".to_owned())));
}

#[tokio::test]
async fn last_values_are_found_whenever_they_were() {
    let mut fixture = Fixture::new();
    let mut messages: Vec<_> = (0..10).map(|second| fixture.arrive(sample("a", second))).collect();
    messages.push(fixture.arrive(sample("gone", 2)));
    fixture.commit(messages);
    let mut sparse = sample("a", 50);
    sparse.fields.remove("state");
    fixture.arrive(sparse);
    let rows = fixture.reader.stats(&fixture.tail, all(), None, TierChoice::Auto).await.expect("answers").rows;
    let last: BTreeMap<(&str, &str), _> = rows
        .iter()
        .map(|stats| {
            ((stats.tags["device"].as_str(), &*stats.field), ((stats.last_time_ms - START_MS) / 1000, &stats.last))
        })
        .collect();
    assert_eq!(last[&("a", "busy_percent")], (50, &Some(Value::Float(50.0))));
    assert_eq!(last[&("a", "state")], (9, &Some(Value::Text("s9".to_owned()))));
    assert_eq!(last[&("gone", "state")], (2, &Some(Value::Text("s2".to_owned()))));
    assert_eq!(rows.len(), 8);
}

#[tokio::test]
async fn the_interval_holds_its_start_and_not_its_end() {
    let mut fixture = Fixture::new();
    for second in 0..10 {
        fixture.arrive(sample("a", second));
    }
    let selection = Selection { from_ms: START_MS + 2000, to_ms: Some(START_MS + 5000), ..all() };
    let rows = fixture.reader.stats(&fixture.tail, selection, None, TierChoice::Auto).await.expect("answers").rows;
    assert_eq!((rows[0].count, rows[0].last_time_ms), (3, START_MS + 4000));
}

#[tokio::test]
async fn the_newest_points_of_each_series_are_given_in_order() {
    let mut fixture = Fixture::new();
    let messages: Vec<_> = (0..6).map(|second| fixture.arrive(sample("a", second))).collect();
    fixture.commit(messages);
    let mut sparse = sample("a", 6);
    sparse.fields.remove("busy_percent");
    fixture.arrive(sparse);
    fixture.arrive(sample("b", 0));
    let series = points(&fixture, query(&["busy_percent", "state"], None, 3)).await;
    let told: Vec<_> =
        series.iter().map(|s| (s.tags["device"].as_str(), &*s.field, s.truncated, s.points.len())).collect();
    assert_eq!(
        told,
        [
            ("a", "busy_percent", true, 3),
            ("a", "state", true, 3),
            ("b", "busy_percent", false, 1),
            ("b", "state", false, 1)
        ]
    );
    let Points::Values(points) = &series[0].points else { panic!("raw points") };
    let expected = [3, 4, 5].map(|second| (START_MS + second * 1000, Value::Float(second as f64)));
    assert_eq!(points.iter().cloned().collect::<Vec<_>>(), expected, "a nil takes no place");
}

#[tokio::test]
async fn buckets_begin_at_multiples_of_the_step() {
    let mut fixture = Fixture::new();
    for second in 5..25 {
        fixture.arrive(sample("a", second));
    }
    let series = points(&fixture, query(&["busy_percent", "state"], Some(Duration::from_secs(10)), 100)).await;
    let Points::Buckets(buckets) = &series[0].points else { panic!("buckets") };
    let told: Vec<_> = buckets.iter().map(|b| (b.time_ms - START_MS, b.avg, b.min.clone(), b.max.clone())).collect();
    let float = Value::Float;
    assert_eq!(
        told,
        [
            (0, 7.0, float(5.0), float(9.0)),
            (10_000, 14.5, float(10.0), float(19.0)),
            (20_000, 22.0, float(20.0), float(24.0))
        ]
    );
    let Points::Values(texts) = &series[1].points else { panic!("texts") };
    assert_eq!(texts[0], (START_MS, Value::Text("s9".to_owned())));
}

#[tokio::test]
async fn what_a_commit_would_reject_is_not_shown() {
    let mut fixture = Fixture::new();
    let message = fixture.arrive(sample("a", 0));
    fixture.commit(vec![message]);
    let mut misfit = sample("a", 1);
    misfit.fields.insert(name("busy_percent"), Column::Text(vec![Some("much".to_owned())]));
    fixture.arrive(misfit);
    let mut wider = sample("a", 2);
    wider.fields.insert(name("added"), Column::Integer(vec![Some(1)]));
    fixture.arrive(wider);
    let rows = fixture.reader.stats(&fixture.tail, all(), None, TierChoice::Auto).await.expect("answers").rows;
    let counts: BTreeMap<&str, u64> = rows.iter().map(|stats| (&*stats.field, stats.count)).collect();
    assert_eq!((counts["busy_percent"], counts["added"]), (2, 1));
    let (complete, stored) = fixture.reader.measurements(&fixture.tail).await.expect("answers");
    assert!(complete);
    assert_eq!((&*stored[0].name, stored[0].fields.len(), stored[0].rows), ("disk", 5, 2));
}

#[tokio::test]
async fn the_rows_of_a_measurement_are_those_that_are_there() {
    let mut fixture = Fixture::new();
    for i in 0..6 {
        let message = fixture.arrive(sample("a", i));
        fixture.commit(vec![message]);
    }
    fixture.execute("CALL ducklake_merge_adjacent_files('lake')");
    fixture.execute(&format!("DELETE FROM lake.disk WHERE ts = make_timestamp_ms({START_MS})::TIMESTAMP_MS"));
    fixture.arrive(sample("a", 6));
    let (_, stored) = fixture.reader.measurements(&fixture.tail).await.expect("answers");
    assert_eq!(stored[0].rows, 6, "five in the lake, one in the tail");
}

#[tokio::test]
async fn what_is_unknown_is_named() {
    let mut fixture = Fixture::new();
    fixture.arrive(sample("a", 0));
    let ask = async |selection: Selection, field: &str| {
        fixture.reader.stats(&fixture.tail, selection, Some(vec![name(field)]), TierChoice::Auto).await
    };
    let nothing = Selection { measurement: name("nothing"), ..all() };
    assert!(matches!(ask(nothing, "x").await, Err(QueryError::UnknownMeasurement { .. })));
    let Err(QueryError::UnknownField { known, .. }) = ask(all(), "nothing").await else { panic!("unknown field") };
    assert_eq!(known.len(), 4);
    let tagged = Selection { tags: BTreeMap::from([(name("core"), "0".to_owned())]), ..all() };
    assert!(matches!(ask(tagged, "state").await, Err(QueryError::UnknownTag { .. })));
    let stranger = Selection { hosts: Hosts::from(HostId::parse("web-2").expect("host")), ..all() };
    let answer = ask(stranger, "state").await.expect("the measurement is known");
    assert!(!answer.host_known && answer.rows.is_empty());
    let later = Selection { from_ms: START_MS + 1_000_000, ..all() };
    assert!(ask(later, "state").await.expect("answers").host_known, "whatever the interval");
}

#[tokio::test]
async fn the_tail_answers_until_there_is_a_lake() {
    let dir = TempDir::new().expect("a folder");
    let config = LakeConfig::embedded(dir.path());
    let reader = LakeReader::new(&config, limits(Duration::from_secs(30))).expect("opens");
    assert!(matches!(reader.attach(), Err(LakeError::NotCreated)));
    let tail = Arc::new(Tail::new(usize::MAX));
    tail.reset(partition(), Position::start(LIFE));
    tail.push(partition(), Sequence(1), Some(Arc::new(sample("a", 0))));
    let answer = reader.stats(&tail, all(), None, TierChoice::Auto).await.expect("answers");
    assert!(answer.complete);
    assert_eq!(answer.rows[0].count, 1);
    let _writer = LakeWriter::open(&config).expect("creates the lake");
    reader.attach().expect("attaches");
    assert_eq!(reader.stats(&tail, all(), None, TierChoice::Auto).await.expect("answers").rows[0].count, 1);
}

#[tokio::test]
async fn a_query_ends_at_its_limit_and_its_connection_lives_on() {
    let mut fixture = Fixture::new();
    let long = (0..60_000).map(|row| START_MS + row).collect::<Vec<_>>();
    for _ in 0..20 {
        let mut batch = sample("a", 0);
        batch.tags.values_mut().for_each(|values| *values = (0..long.len()).map(|row| row.to_string()).collect());
        batch.fields = BTreeMap::from([(name("v"), Column::Integer(vec![Some(1); long.len()]))]);
        batch.times.clone_from(&long);
        fixture.arrive(batch);
    }
    let config = LakeConfig::embedded(fixture.dir.path());
    let hasty = LakeReader::new(&config, limits(Duration::from_millis(100))).expect("opens");
    hasty.attach().expect("attaches");
    let outcome = hasty.stats(&fixture.tail, all(), None, TierChoice::Auto).await;
    assert!(matches!(outcome, Err(QueryError::Lake(LakeError::Interrupted))), "{outcome:?}");
    // A busy machine may take more than the limit for a short query too: some of the next ones must come through.
    let tail = Arc::new(Tail::new(0));
    let stored = eventually("a query within its limit", Duration::from_secs(60), async || {
        match hasty.measurements(&tail).await {
            Err(QueryError::Lake(LakeError::Interrupted)) => None,
            outcome => Some(outcome.expect("the next query is not harmed").1),
        }
    });
    assert!(stored.await.is_empty());
}

#[tokio::test]
async fn rows_that_another_host_has_made_unfit_are_not_shown() {
    // The other host's partition comes after and before this one's: the order of the stream counts, not that of partitions.
    for elsewhere in [1, 5] {
        let mut fixture = Fixture::new();
        let elsewhere = PartitionId::new(elsewhere).expect("exists");
        fixture.tail.reset(elsewhere, Position::start(LIFE));
        let stored = fixture.arrive(sample("a", 0));
        fixture.commit(vec![stored]);
        // Each of the two fields is text to whom sent it first, and a number to the other.
        let (text, number) = (Column::Text(vec![Some("x".to_owned())]), Column::Integer(vec![Some(1)]));
        let with = |second, field: &str, column: &Column| {
            let mut batch = sample("a", second);
            batch.fields.insert(name(field), column.clone());
            batch
        };
        let from_elsewhere = |fixture: &mut Fixture, batch: Batch| {
            fixture.sequence += 1;
            let batch = Batch { host: HostId::parse("web-2").expect("host"), ..batch };
            fixture.tail.push(elsewhere, Sequence(fixture.sequence), Some(Arc::new(batch)));
        };
        from_elsewhere(&mut fixture, with(1, "theirs", &text));
        fixture.arrive(with(1, "theirs", &number));
        fixture.arrive(with(2, "ours", &text));
        from_elsewhere(&mut fixture, with(2, "ours", &number));
        let rows = fixture.reader.stats(&fixture.tail, all(), None, TierChoice::Auto).await.expect("answers").rows;
        let counts: BTreeMap<&str, u64> = rows.iter().map(|stats| (&*stats.field, stats.count)).collect();
        assert_eq!((counts.get("theirs"), counts["ours"], counts["state"]), (None, 1, 2), "{counts:?}");
        let (_, stored) = fixture.reader.measurements(&fixture.tail).await.expect("answers");
        assert_eq!(stored[0].rows, 3, "stored: one row, and one of each host that fits");
    }
}
