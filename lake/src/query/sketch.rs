//! Quantiles from sketches, which add up where quantiles do not.
//!
//! Sketches are added up here and not by DuckDB, which would make a row of each of their counts and group these: nine tenths of such a
//! query's time. What DuckDB holds of a result at once is bounded: many hosts' sketches are read a part of the hosts at a time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use duckdb::arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray},
    datatypes::{Field, Int32Type, Int64Type, Schema},
    error::ArrowError,
};

use super::{
    QueryError,
    cells::Keys,
    points::MAX_VALUES,
    series::{Series, text_at},
    source::Source,
    tiers::TierPart,
};
use crate::{LakeError, error::Context, rollup::Sketch};

/// Quantiles by series and bucket start, in the order in which they were asked for.
pub(super) type Quantiles = HashMap<(Series, i64), Vec<f64>>;

/// Most rows whose sketches DuckDB holds at once; one takes some hundred bytes.
const ROWS_AT_ONCE: i64 = 2_000_000;

/// Reads the quantiles of a field by series and bucket; one bucket of start 0 where there is no step.
pub(super) fn read(
    source: &Source<'_>,
    parts: &[TierPart],
    index: usize,
    step_ms: Option<i64>,
    quantiles: &[f64],
) -> Result<Quantiles, QueryError> {
    let keys = source.series_keys();
    let mut found = Quantiles::new();
    each(source, parts, index, &keys, step_ms, quantiles, &mut |keys, bucket, values| {
        let mut keys = keys.iter().cloned();
        let host = keys.next().flatten().unwrap_or_default();
        let tags = source.tags.iter().cloned().zip(keys).filter_map(|(tag, value)| Some((tag, value?))).collect();
        found.insert((Series { host, tags }, bucket), values);
        Ok(())
    })?;
    Ok(found)
}

/// Puts a quantile of the field by `keys` and bucket into a new temporary table with the columns of the keys, `bucket` and `_value`.
pub(super) fn stage(
    source: &Source<'_>,
    parts: &[TierPart],
    keys: &[String],
    bucket: (&str, Option<i64>),
    quantile: f64,
    table: &str,
) -> Result<(), QueryError> {
    let (name, step_ms) = bucket;
    let (mut groups, mut buckets, mut values) = (vec![Vec::new(); keys.len()], Vec::new(), Vec::new());
    each(source, parts, 0, keys, step_ms, &[quantile], &mut |keys, bucket, found| {
        groups.iter_mut().zip(keys).for_each(|(column, key)| column.push(key.clone()));
        buckets.push(bucket);
        values.extend(found);
        if values.len() > MAX_VALUES { Err(QueryError::TooLarge { limit: MAX_VALUES }) } else { Ok(()) }
    })?;
    let columns: String = keys.iter().map(|key| format!("{key} VARCHAR, ")).collect();
    let create = format!("CREATE OR REPLACE TEMP TABLE {table} ({columns}{name} BIGINT, _value DOUBLE)");
    source.connection.execute_batch(&create).context("create a table of quantiles")?;
    if values.is_empty() {
        return Ok(());
    }
    let rows = record_batch(groups, buckets, values);
    let rows = rows.map_err(|error| LakeError::Columns { table: table.to_owned(), source: error })?;
    let appender = source.connection.appender_to_catalog_and_db(table, "temp", "main");
    let mut appender = appender.context("open the table of quantiles")?;
    appender.append_record_batch(rows).context("stage quantiles")?;
    appender.flush().context("stage quantiles")?;
    Ok(())
}

fn record_batch(groups: Vec<Keys>, buckets: Vec<i64>, values: Vec<f64>) -> Result<RecordBatch, ArrowError> {
    let mut columns: Vec<ArrayRef> =
        groups.into_iter().map(|column| Arc::new(StringArray::from(column)) as ArrayRef).collect();
    columns.push(Arc::new(Int64Array::from(buckets)));
    columns.push(Arc::new(Float64Array::from(values)));
    let fields: Vec<Field> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| Field::new(format!("c{index}"), column.data_type().clone(), true))
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// Takes the quantiles of a group's bucket.
type Take<'t> = dyn FnMut(&Keys, i64, Vec<f64>) -> Result<(), QueryError> + 't;

/// Adds up the sketches by `keys`, quoted, and bucket, and gives each one's quantiles: the buckets of a group in their order.
fn each(
    source: &Source<'_>,
    parts: &[TierPart],
    index: usize,
    keys: &[String],
    step_ms: Option<i64>,
    quantiles: &[f64],
    take: &mut Take<'_>,
) -> Result<(), QueryError> {
    let slices = source.rows_within(parts) / ROWS_AT_ONCE + 1;
    let list: String = keys.iter().map(|key| format!("{key}, ")).collect();
    let bucket = bucket_sql(step_ms);
    // Each group is in one slice, its rows one after another, so that only one is held at a time.
    let (sliced, order) = match keys {
        [] => ("host".to_owned(), String::new()),
        keys => (keys.join(", "), format!("ORDER BY {}", keys.join(", "))),
    };
    let mut groups = Groups { keys: vec![None; keys.len()], buckets: BTreeMap::new() };
    for slice in 0..slices {
        let of_slice = if slices > 1 { format!("WHERE hash({sliced}) % {slices} = {slice}") } else { String::new() };
        let sketches = source.sketches(parts, index);
        let sql = format!("SELECT {list}{bucket} AS _b, _k, _n FROM {sketches} {of_slice} {order}");
        let mut statement = source.connection.prepare(&sql).context("prepare quantiles")?;
        for batch in statement.query_arrow([]).context("compute quantiles")? {
            groups.add(&batch, quantiles, take)?;
        }
    }
    groups.finish(quantiles, take)
}

/// The buckets of the group whose rows come now.
struct Groups {
    keys: Keys,
    buckets: BTreeMap<i64, Sketch>,
}

impl Groups {
    fn add(&mut self, batch: &RecordBatch, quantiles: &[f64], take: &mut Take<'_>) -> Result<(), QueryError> {
        let keys: Vec<&StringArray> = (0..self.keys.len()).map(|column| batch.column(column).as_string()).collect();
        let first = self.keys.len();
        let buckets = batch.column(first).as_primitive::<Int64Type>();
        let (of_keys, of_counts) = (batch.column(first + 1).as_list::<i32>(), batch.column(first + 2).as_list::<i32>());
        let numbers = of_keys.values().as_primitive::<Int32Type>();
        let counts = of_counts.values().as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let is_same = keys.iter().zip(&self.keys).all(|(column, key)| text_at(column, row) == key.as_deref());
            if !is_same {
                self.finish(quantiles, take)?;
                self.keys = keys.iter().map(|column| text_at(column, row).map(str::to_owned)).collect();
            }
            if of_keys.is_null(row) || of_counts.is_null(row) {
                continue;
            }
            let places = |list: &ListArray| list.value_offsets()[row] as usize..list.value_offsets()[row + 1] as usize;
            let sketch = self.buckets.entry(buckets.value(row)).or_default();
            for (key, count) in places(of_keys).zip(places(of_counts)) {
                if numbers.is_valid(key) {
                    sketch.add(numbers.value(key), counts.value(count).unsigned_abs());
                }
            }
        }
        Ok(())
    }

    /// Gives the quantiles of the group, and forgets it.
    fn finish(&mut self, quantiles: &[f64], take: &mut Take<'_>) -> Result<(), QueryError> {
        for (bucket, sketch) in std::mem::take(&mut self.buckets) {
            if let Some(values) = sketch.quantiles(quantiles) {
                take(&self.keys, bucket, values)?;
            }
        }
        Ok(())
    }
}

/// The start of a row's bucket in Unix ms; 0 where the whole interval is one.
pub(super) fn bucket_sql(step_ms: Option<i64>) -> String {
    step_ms.map_or_else(|| "0::BIGINT".to_owned(), |step| format!("epoch_ms(ts) // {step} * {step}"))
}
