//! The sketch in DuckDB against exact quantiles.

use duckdb::Connection;
use plimsoll_lake::rollup::{
    Sketch,
    sketch::{Grouping, quantiles_sql},
};
use plimsoll_nats::{Name, batch::FieldType};
use proptest::{collection::vec, prelude::*};

const QUANTILES: [f64; 8] = [0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0];
const HOUR_MS: i64 = 3_600_000;

/// A value of a part: which part, and the value.
type Parted = (u8, f64);

fn grouping(kind: FieldType) -> Grouping {
    let field = Name::parse("v").expect("a name");
    Grouping { bucket_ms: HOUR_MS, tags: vec![Name::parse("k").expect("a name")], fields: vec![(field, kind)] }
}

fn connection(values: &[Parted], kind: &str) -> Connection {
    let connection = Connection::open_in_memory().expect("opens");
    connection
        .execute_batch(&format!(
            "CREATE TABLE raw (ts TIMESTAMP_MS, host VARCHAR, k VARCHAR, part UTINYINT, v {kind});
             INSERT INTO raw VALUES (make_timestamp_ms(0), 'h', NULL, 0, NULL)"
        ))
        .expect("creates");
    let mut appender = connection.appender("raw").expect("appends");
    for (part, value) in values {
        // Times of one hour, each part in minutes of its own.
        let time = duckdb::types::Value::Timestamp(duckdb::types::TimeUnit::Millisecond, i64::from(*part) * 60_000 + 7);
        appender.append_row(duckdb::params![time, "h", None::<String>, part, value]).expect("appends");
    }
    appender.flush().expect("appends");
    drop(appender);
    connection
}

/// Count, least and largest value, and the quantiles.
fn read(connection: &Connection, relation: &str) -> (usize, f64, f64, Vec<f64>) {
    let summaries = quantiles_sql(relation, &["host"], "v", &QUANTILES);
    let listed: Vec<String> = (1..=QUANTILES.len()).map(|index| format!("quantiles[{index}]")).collect();
    let sql = format!("SELECT count, min, max, {} FROM ({summaries})", listed.join(", "));
    let row = connection.query_row(&sql, [], |row| {
        let quantiles = (0..QUANTILES.len()).map(|index| row.get(3 + index)).collect::<Result<_, _>>()?;
        Ok((row.get::<_, u64>(0)? as usize, row.get(1)?, row.get(2)?, quantiles))
    });
    row.expect("one row")
}

/// What lies at the rank, interpolated, and the larger of the two values that it lies between.
fn exact(sorted: &[f64], quantile: f64) -> (f64, f64) {
    let rank = quantile * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    (below * (1.0 - rank.fract()) + above * rank.fract(), below.abs().max(above.abs()))
}

/// The same sketches, added up in memory.
fn read_counts(connection: &Connection, relation: &str) -> Vec<f64> {
    let sql = format!("SELECT unnest(map_keys(v.sketch)), unnest(map_values(v.sketch)) FROM {relation}");
    let mut statement = connection.prepare(&sql).expect("prepares");
    let mut rows = statement.query([]).expect("reads");
    let mut sketch = Sketch::default();
    while let Some(row) = rows.next().expect("reads") {
        sketch.add(row.get(0).expect("a key"), row.get(1).expect("a count"));
    }
    sketch.quantiles(&QUANTILES).expect("values")
}

fn check(values: &[Parted], relation: &str, connection: &Connection) -> Result<(), TestCaseError> {
    let mut sorted: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
    sorted.sort_by(f64::total_cmp);
    let (count, low, high, quantiles) = read(connection, relation);
    prop_assert_eq!(count, sorted.len());
    prop_assert_eq!((low, high), (sorted[0], sorted[sorted.len() - 1]));
    let added_up = read_counts(connection, relation).into_iter().map(|found| found.max(low).min(high));
    for (quantile, found) in QUANTILES.iter().zip(quantiles).chain(QUANTILES.iter().zip(added_up)) {
        let (wanted, larger) = exact(&sorted, *quantile);
        let error = (found - wanted).abs();
        prop_assert!(error <= 0.01 * larger, "quantile {} is {} where {} was wanted", quantile, found, wanted);
    }
    Ok(())
}

/// Summaries in one go, and by way of the summaries of parts that are added up in two steps.
fn relations(kind: FieldType) -> [String; 3] {
    let grouping = grouping(kind);
    let whole = grouping.of_raw("raw", "part >= 0");
    let minutes = Grouping { bucket_ms: 60_000, ..grouping.clone() };
    let parts: Vec<String> = (0..4).map(|part| minutes.of_raw("raw", &format!("part % 4 = {part}"))).collect();
    let parts = format!("({})", parts.join(" UNION ALL BY NAME "));
    let hour = grouping.of_summaries(&parts, "true");
    [format!("({whole})"), parts, format!("({hour})")]
}

fn doubles() -> impl Strategy<Value = f64> {
    prop_oneof![
        3 => -1e3..1e3_f64,
        2 => prop_oneof![Just(0.0), Just(-0.0), Just(1.0), Just(-1.0), Just(42.5), Just(1.02), Just(1.02 * 1.02)],
        2 => (-1e4..1e4_f64).prop_map(f64::round),
        2 => any::<f64>().prop_filter("finite and not below what 1 % can tell", |v| v.is_finite() && (v.abs() > 1e-300 || *v == 0.0)),
        1 => prop_oneof![Just(f64::MAX), Just(f64::MIN), Just(f64::MIN_POSITIVE), Just(5e-324), Just(-5e-324)],
    ]
}

fn parted<T: Strategy<Value = f64>>(value: T) -> impl Strategy<Value = Vec<Parted>> {
    vec((0_u8..12, value), 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn quantiles_of_doubles_are_within_one_percent_however_parts_are_added_up(values in parted(doubles())) {
        let connection = connection(&values, "DOUBLE");
        for relation in relations(FieldType::Float) {
            check(&values, &relation, &connection)?;
        }
    }

    #[test]
    fn quantiles_of_integers_are_within_one_percent(
        values in parted(prop_oneof![-20..20_i32, any::<i32>()].prop_map(f64::from))
    ) {
        let connection = connection(&values, "BIGINT");
        for relation in relations(FieldType::Integer) {
            check(&values, &relation, &connection)?;
        }
    }

    #[test]
    fn added_up_parts_are_what_one_go_makes(values in parted((-100..100_i32).prop_map(f64::from))) {
        let connection = connection(&values, "DOUBLE");
        let [whole, _, merged] = relations(FieldType::Float);
        let sorted = |relation| format!(
            "SELECT ts, host, k, v.count, v.sum, v.min, v.max, list_sort(map_entries(v.sketch)) FROM {relation}"
        );
        let sql = format!("SELECT count(*) FROM (({}) EXCEPT ({}))", sorted(&whole), sorted(&merged));
        let differing: i64 = connection.query_row(&sql, [], |row| row.get(0)).expect("compares");
        prop_assert_eq!(differing, 0);
    }
}

#[test]
fn bools_count_as_zero_and_one_and_what_is_no_number_not_at_all() {
    let values: Vec<Parted> = (0..10).map(|index| (0, f64::from(index % 2))).collect();
    let bools = connection(&values, "BOOLEAN");
    let [whole, ..] = relations(FieldType::Bool);
    let (count, low, high, quantiles) = read(&bools, &whole);
    assert_eq!((count, low, high, quantiles[2]), (10, 0.0, 1.0, 0.0));
    assert!((0.49..=0.51).contains(&quantiles[3]), "half of them: {quantiles:?}");
    assert!((0.99..=1.0).contains(&quantiles[4]), "the ninetieth is a true one: {quantiles:?}");
    let odd: Vec<Parted> = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 2.0].map(|value| (0, value)).to_vec();
    let odd = connection(&odd, "DOUBLE");
    let [whole, ..] = relations(FieldType::Float);
    let (count, low, high, quantiles) = read(&odd, &whole);
    assert_eq!((count, low, high), (1, 2.0, 2.0));
    assert_eq!(quantiles, [2.0; 8]);
}

#[test]
fn times_before_1970_fall_into_their_bucket() {
    let connection = Connection::open_in_memory().expect("opens");
    connection
        .execute_batch(
            "CREATE TABLE raw AS SELECT make_timestamp_ms(-1)::TIMESTAMP_MS AS ts, 'h' AS host, NULL AS k, 1.0 AS v",
        )
        .expect("creates");
    let sql = format!("SELECT epoch_ms(ts) FROM ({})", grouping(FieldType::Float).of_raw("raw", "true"));
    let bucket: i64 = connection.query_row(&sql, [], |row| row.get(0)).expect("one row");
    assert_eq!(bucket, -HOUR_MS);
}

#[test]
fn the_largest_doubles_are_told_apart() {
    let values: Vec<Parted> =
        [f64::MIN, f64::MIN, -1.280_991_272_310_302_5e308, 9e307, 1.7e308, f64::MAX].map(|v| (0, v)).to_vec();
    let connection = connection(&values, "DOUBLE");
    for relation in relations(FieldType::Float) {
        check(&values, &relation, &connection).expect("within 1 %");
    }
}
