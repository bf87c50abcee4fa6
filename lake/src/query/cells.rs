//! Aggregates of many groups by bucket.
//!
//! They are added up here and not by DuckDB, which would hash each pair of group and bucket: nine tenths of such a query's time. Rows come
//! out of files in the order of hosts and times, so that nearly each belongs to the cell of the row before or to the next one. What DuckDB
//! holds of a result at once is bounded: many hosts' rows are read a part of the groups at a time.
//!
//! A row tells its keys by their hashes, which DuckDB makes once for each entry of a file's dictionary, while texts are copied for each row.
//! Which texts these are is asked for by itself, and so it is certain that no two have the same hash.

use std::{
    cmp::Ordering,
    collections::{HashMap, hash_map::Entry},
    ops::Range,
};

use duckdb::arrow::{
    array::{Array, AsArray, PrimitiveArray, RecordBatch},
    datatypes::{Float64Type, Int64Type, UInt64Type},
};

use super::{QueryError, series::text_at, source::Source, tiers::TierPart};
use crate::error::Context;

/// Most rows that DuckDB holds at once.
const ROWS_AT_ONCE: i64 = 2_000_000;
/// Most parts of the groups: each reads the rows of all.
const MAX_SLICES: i64 = 8;

/// What becomes of the values of a group's bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Combine {
    Mean,
    Min,
    Max,
    Count,
}

/// The values of what tells groups apart.
pub(super) type Keys = Vec<Option<String>>;
/// The start of each bucket, in order, and its aggregate.
pub(super) type Points = Vec<(i64, f64)>;
/// Takes the points of a group.
type Take<'t> = dyn FnMut(Keys, Points) -> Result<(), QueryError> + 't;

/// Gives the aggregates of the source's first field by `keys`, quoted, and buckets: each group that has some once, in whatever order.
///
/// Returns whether that was possible: not where more rows must be read than can be held, or nobody knows how many.
pub(super) fn each(
    source: &Source<'_>,
    parts: &[TierPart],
    keys: &[String],
    step_ms: i64,
    combine: Combine,
    take: &mut Take<'_>,
) -> Result<bool, QueryError> {
    let Some(rows) = source.rows_at_most(parts) else { return Ok(false) };
    let slices = rows / ROWS_AT_ONCE + 1;
    let rows_of_slice = usize::try_from(rows.min(ROWS_AT_ONCE)).unwrap_or(0);
    if slices > MAX_SLICES || keys.is_empty() {
        return Ok(false);
    }
    let partials = source.partials(parts);
    let mut texts = Vec::new();
    for key in keys {
        let mut of_key = Texts::default();
        let sql = format!("SELECT hash({key}), {key} FROM (SELECT {key} FROM {partials} GROUP BY {key})");
        let mut statement = source.connection.prepare(&sql).context("prepare keys")?;
        if !statement.query_arrow([]).context("list keys")?.all(|rows| of_key.add(&rows)) {
            return Ok(false);
        }
        texts.push(of_key);
    }
    let hashes: Vec<String> = keys.iter().map(|key| format!("hash({key})")).collect();
    let (list, columns) = (hashes.join(", "), combine.columns());
    for slice in 0..slices {
        let of_slice = if slices > 1 { format!("WHERE hash({list}) % {slices} = {slice}") } else { String::new() };
        let sql = format!("SELECT {list}, epoch_ms(ts), {columns} FROM {partials} {of_slice}");
        let mut statement = source.connection.prepare(&sql).context("prepare aggregates")?;
        let mut groups = Groups::new(keys.len(), step_ms, combine, rows_of_slice);
        statement.query_arrow([]).context("compute aggregates")?.for_each(|rows| groups.add(&rows));
        groups.finish(&texts, take)?;
    }
    Ok(true)
}

/// Gives for each group and bucket the sum of the means of its series, as [`each`] does. The keys are some of those that tell series apart.
pub(super) fn each_sum(
    source: &Source<'_>,
    parts: &[TierPart],
    keys: &[String],
    step_ms: i64,
    take: &mut Take<'_>,
) -> Result<bool, QueryError> {
    let series = source.series_keys();
    let places: Vec<usize> = keys.iter().filter_map(|key| series.iter().position(|known| known == key)).collect();
    let mut sums = HashMap::<Keys, Buckets<f64>>::new();
    let is_done = each(source, parts, &series, step_ms, Combine::Mean, &mut |of_series, points| {
        let of_group = sums.entry(places.iter().map(|place| of_series[*place].clone()).collect()).or_default();
        points.into_iter().for_each(|(start_ms, mean)| *of_group.at(start_ms) += mean);
        Ok(())
    })?;
    sums.into_iter().try_for_each(|(keys, sums)| take(keys, sums.into_sorted()))?;
    Ok(is_done)
}

/// The values of a key by their hashes.
#[derive(Debug, Default)]
struct Texts(HashMap<u64, Option<String>>);

impl Texts {
    /// Adds hashes and their texts; returns whether each hash is that of one text only.
    fn add(&mut self, rows: &RecordBatch) -> bool {
        let (hashes, texts) = (rows.column(0).as_primitive::<UInt64Type>(), rows.column(1).as_string());
        (0..rows.num_rows()).all(|row| {
            let text = text_at(texts, row);
            match self.0.entry(hashes.value(row)) {
                Entry::Occupied(known) => known.get().as_deref() == text,
                Entry::Vacant(place) => {
                    place.insert(text.map(str::to_owned));
                    true
                }
            }
        })
    }
}

impl Combine {
    /// The columns of partial values: the value, and how often it counts where that matters.
    fn columns(self) -> &'static str {
        match self {
            Self::Mean => "_s0, _c0",
            Self::Min => "_n0",
            Self::Max => "_x0",
            Self::Count => "_c0::DOUBLE",
        }
    }

    fn value(self, cell: &Cell) -> Option<f64> {
        match self {
            Self::Mean => Some(cell.value / cell.count as f64),
            Self::Min | Self::Max => Some(cell.value),
            Self::Count => (cell.value > 0.0).then_some(cell.value),
        }
    }
}

/// What is known of a group's bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cell {
    start_ms: i64,
    value: f64,
    count: i64,
}

impl Cell {
    fn add(&mut self, other: &Self, combine: Combine) {
        self.count += other.count;
        match combine {
            Combine::Mean | Combine::Count => self.value += other.value,
            Combine::Min => self.value = self.value.min(other.value),
            Combine::Max => self.value = self.value.max(other.value),
        }
    }
}

/// The cells of all groups, each group's as they came.
struct Groups {
    step_ms: i64,
    combine: Combine,
    keys: usize,
    /// All cells as they came: in one piece, since memory of many pieces that grow costs more than all else here.
    cells: Vec<Cell>,
    /// Which group the cells belong to from which place on.
    runs: Vec<Run>,
    places: HashMap<Vec<u64>, usize>,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    group: usize,
    first: usize,
}

/// The columns of some rows.
struct Columns<'a> {
    keys: Vec<&'a [u64]>,
    times: &'a [i64],
    values: &'a PrimitiveArray<Float64Type>,
    counts: Option<&'a [i64]>,
}

impl Groups {
    fn new(keys: usize, step_ms: i64, combine: Combine, rows: usize) -> Self {
        let (cells, runs, places) = (Vec::with_capacity(rows), Vec::new(), HashMap::new());
        Self { step_ms, combine, keys, cells, runs, places }
    }

    fn add(&mut self, rows: &RecordBatch) {
        let (keys, others) = rows.columns().split_at(self.keys);
        let columns = Columns {
            keys: keys.iter().map(|column| &**column.as_primitive::<UInt64Type>().values()).collect(),
            times: others[0].as_primitive::<Int64Type>().values(),
            values: others[1].as_primitive(),
            counts: others.get(2).map(|column| &**column.as_primitive::<Int64Type>().values()),
        };
        let mut start = 0;
        while start < rows.num_rows() {
            let is_same = |row: &usize| columns.keys.iter().all(|column| column[*row] == column[start]);
            let end = (start + 1..rows.num_rows()).find(|row| !is_same(row)).unwrap_or(rows.num_rows());
            self.add_group(&columns, start..end);
            start = end;
        }
    }

    /// Adds rows of one group.
    fn add_group(&mut self, columns: &Columns<'_>, rows: Range<usize>) {
        let keys = columns.keys.iter().map(|column| column[rows.start]).collect();
        let groups = self.places.len();
        let group = *self.places.entry(keys).or_insert(groups);
        if self.runs.last().is_none_or(|run| run.group != group) {
            self.runs.push(Run { group, first: self.cells.len() });
        }
        let first = self.runs.last().map_or(0, |run| run.first);
        for row in rows.filter(|row| columns.values.is_valid(*row)) {
            let last = self.cells[first..].last_mut();
            let start_ms = start_of(columns.times[row], self.step_ms, last.as_ref().map_or(0, |cell| cell.start_ms));
            let count = columns.counts.map_or(1, |counts| counts[row]);
            let cell = Cell { start_ms, value: columns.values.value(row), count };
            match last {
                Some(last) if last.start_ms == start_ms => last.add(&cell, self.combine),
                _ => self.cells.push(cell),
            }
        }
    }

    fn finish(mut self, texts: &[Texts], take: &mut Take<'_>) -> Result<(), QueryError> {
        let combine = self.combine;
        let ends = self.runs.iter().skip(1).map(|run| run.first).chain([self.cells.len()]);
        let mut ranges: Vec<(usize, Range<usize>)> =
            self.runs.iter().zip(ends).map(|(run, end)| (run.group, run.first..end)).collect();
        ranges.sort_by_key(|(group, _)| *group);
        let mut ranges = ranges.chunk_by(|a, b| a.0 == b.0);
        let mut groups: Vec<(Vec<u64>, usize)> = self.places.drain().collect();
        groups.sort_by_key(|(_, group)| *group);
        // Each group has a run, by the first of its rows.
        for ((hashes, _), ranges) in groups.into_iter().zip(&mut ranges) {
            let cells = ranges.iter().flat_map(|(_, range)| &self.cells[range.clone()]);
            let point = |cell: &Cell| Some((cell.start_ms, combine.value(cell)?));
            let points: Points = if is_in_order(cells.clone()) {
                cells.filter_map(point).collect()
            } else {
                added_up(cells.copied().collect(), combine).iter().filter_map(point).collect()
            };
            let keys = hashes.iter().zip(texts).map(|(hash, texts)| texts.0.get(hash).cloned().flatten());
            if !points.is_empty() {
                take(keys.collect(), points)?;
            }
        }
        Ok(())
    }
}

/// Whether the cells are in order, one for each bucket.
fn is_in_order<'c>(cells: impl Iterator<Item = &'c Cell>) -> bool {
    cells.is_sorted_by(|a, b| a.start_ms < b.start_ms)
}

/// The start of a time's bucket, with one division at most: the bucket is likely to be the one before or the next.
fn start_of(time_ms: i64, step_ms: i64, before_ms: i64) -> i64 {
    match time_ms.checked_sub(before_ms) {
        Some(since) if (0..step_ms).contains(&since) && before_ms >= 0 => before_ms,
        Some(since) if since == step_ms && before_ms >= 0 => time_ms,
        _ => time_ms / step_ms * step_ms,
    }
}

/// The cells in order, one for each bucket.
fn added_up(mut cells: Vec<Cell>, combine: Combine) -> Vec<Cell> {
    cells.sort_by_key(|cell| cell.start_ms);
    cells.dedup_by(|next, cell| {
        let is_same = next.start_ms == cell.start_ms;
        if is_same {
            cell.add(next, combine);
        }
        is_same
    });
    cells
}

/// Something for each bucket, found quickly where buckets are asked for in order.
#[derive(Debug, Default)]
pub(super) struct Buckets<T> {
    found: Vec<(i64, T)>,
    places: HashMap<i64, usize>,
    /// Where the next bucket is likely to be.
    next: usize,
}

impl<T: Default> Buckets<T> {
    /// That of the bucket with this start.
    pub(super) fn at(&mut self, start_ms: i64) -> &mut T {
        let is_next = self.found.get(self.next).is_some_and(|(start, _)| *start == start_ms);
        let place = if is_next { self.next } else { *self.places.entry(start_ms).or_insert(self.found.len()) };
        if place == self.found.len() {
            self.found.push((start_ms, T::default()));
        }
        self.next = place + 1;
        &mut self.found[place].1
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.found.len()
    }

    /// All of them in order.
    pub(super) fn into_sorted(mut self) -> Vec<(i64, T)> {
        self.found.sort_by_key(|(start_ms, _)| *start_ms);
        self.found
    }
}

/// The order of keys as SQL has it: what is null comes last.
pub(super) fn in_order(a: &Keys, b: &Keys) -> Ordering {
    let order = |(a, b): (&Option<String>, &Option<String>)| a.is_none().cmp(&b.is_none()).then_with(|| a.cmp(b));
    a.iter().zip(b).map(order).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use duckdb::arrow::{
        array::{ArrayRef, Float64Array, Int64Array, StringArray, UInt64Array},
        datatypes::{Field, Schema},
    };
    use proptest::prelude::*;

    use super::*;

    /// A row: its keys, time, value and count.
    type Row = ((u8, Option<u8>), i64, Option<i8>, i64);

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let row = ((0..3_u8, prop::option::of(0..2_u8)), 0..40_i64, prop::option::of(-5..5_i8), 1..4_i64);
        prop::collection::vec(row, 0..60).prop_flat_map(|mut rows| {
            let unsorted = rows.clone();
            rows.sort();
            prop_oneof![Just(rows), Just(unsorted)]
        })
    }

    /// Stands for DuckDB's.
    fn hash(key: Option<u8>) -> u64 {
        key.map_or(99, u64::from)
    }

    fn texts(keys: &[Option<u8>]) -> Option<Texts> {
        let columns: [(&str, ArrayRef); 2] = [
            ("hash", Arc::new(UInt64Array::from_iter_values(keys.iter().map(|key| hash(*key))))),
            ("key", Arc::new(StringArray::from_iter(keys.iter().map(|key| key.map(|key| key.to_string()))))),
        ];
        let mut texts = Texts::default();
        texts.add(&RecordBatch::try_from_iter(columns).expect("columns of one length")).then_some(texts)
    }

    fn batch(rows: &[Row], with_counts: bool) -> RecordBatch {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| hash(Some(row.0.0))))),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| hash(row.0.1)))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))),
            Arc::new(rows.iter().map(|row| row.2.map(f64::from)).collect::<Float64Array>()),
        ];
        if with_counts {
            columns.push(Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.3))));
        }
        let field =
            |(index, column): (usize, &ArrayRef)| Field::new(index.to_string(), column.data_type().clone(), true);
        let fields: Vec<Field> = columns.iter().enumerate().map(field).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("columns of one length")
    }

    fn naive(rows: &[Row], step: i64, combine: Combine) -> BTreeMap<Keys, BTreeMap<i64, f64>> {
        let mut cells = BTreeMap::<Keys, BTreeMap<i64, Vec<(f64, i64)>>>::new();
        for (keys, time, value, count) in rows {
            let keys = vec![Some(keys.0.to_string()), keys.1.map(|tag| tag.to_string())];
            let Some(value) = value else { continue };
            cells.entry(keys).or_default().entry(time / step * step).or_default().push((f64::from(*value), *count));
        }
        let value = |values: Vec<(f64, i64)>| {
            let (each, sum) = (values.iter().map(|value| value.0), values.iter().map(|value| value.0).sum::<f64>());
            match combine {
                Combine::Mean => Some(sum / values.iter().map(|value| value.1).sum::<i64>() as f64),
                Combine::Min => each.reduce(f64::min),
                Combine::Max => each.reduce(f64::max),
                Combine::Count => Some(sum).filter(|sum| *sum > 0.0),
            }
        };
        let group = |(keys, cells): (Keys, BTreeMap<i64, Vec<(f64, i64)>>)| {
            (keys, cells.into_iter().filter_map(|(start, values)| Some((start, value(values)?))).collect())
        };
        let groups = cells.into_iter().map(group);
        groups.filter(|(_, points): &(_, BTreeMap<_, _>)| !points.is_empty()).collect()
    }

    proptest! {
        #[test]
        fn cells_add_up_in_whatever_order_rows_come(
            rows in rows(), split in 0..60_usize, step in 1..20_i64,
            combine in prop::sample::select(vec![Combine::Mean, Combine::Min, Combine::Max, Combine::Count])
        ) {
            let mut groups = Groups::new(2, step, combine, 0);
            let (first, second) = rows.split_at(split.min(rows.len()));
            for part in [first, second] {
                groups.add(&batch(part, combine == Combine::Mean));
            }
            let known: Vec<Option<u8>> = (0..3).map(Some).chain([None]).collect();
            let texts = [texts(&known).expect("no two are the same"), texts(&known).expect("no two are the same")];
            let mut found = BTreeMap::new();
            groups.finish(&texts, &mut |keys, points| {
                assert!(points.is_sorted_by(|a, b| a.0 < b.0), "each bucket once and in order: {points:?}");
                assert!(found.insert(keys, points.into_iter().collect()).is_none(), "each group once");
                Ok(())
            }).expect("nothing fails");
            prop_assert_eq!(found, naive(&rows, step, combine));
        }

        #[test]
        fn a_bucket_starts_where_division_says(time in -50..500_i64, step in 1..20_i64, before in -3..40_i64) {
            prop_assert_eq!(start_of(time, step, before * step), time / step * step);
        }

        #[test]
        fn buckets_are_those_asked_for(starts in prop::collection::vec(0..9_i64, 0..40)) {
            let (mut buckets, mut wanted) = (Buckets::<u64>::default(), BTreeMap::<i64, u64>::new());
            for start in starts {
                *buckets.at(start) += 1;
                *wanted.entry(start).or_default() += 1;
            }
            prop_assert_eq!(buckets.len(), wanted.len());
            prop_assert_eq!(buckets.into_sorted(), wanted.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn keys_are_in_the_order_of_sql(
            a in prop::collection::vec(prop::option::of("[ab]{0,2}"), 2), b in prop::collection::vec(prop::option::of("[ab]{0,2}"), 2)
        ) {
            let number = |keys: &Keys| keys.iter().map(|key| (key.is_none(), key.clone())).collect::<Vec<_>>();
            prop_assert_eq!(in_order(&a, &b), number(&a).cmp(&number(&b)));
        }
    }

    #[test]
    fn texts_of_the_same_hash_are_seen() {
        assert!(texts(&[Some(1), None, Some(1)]).is_some());
        assert!(texts(&[Some(1), Some(99), None]).is_none(), "a text has the hash that stands for none");
    }
}
