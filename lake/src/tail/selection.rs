//! What the tail adds to a snapshot, and its rows as columns.
//!
//! Messages stay packed until their rows are laid out: a column is filled from message after message, and what was not asked for is not
//! touched. Those of a series are together, in the order of the stream, since most of them have the same columns.

use std::sync::Arc;

use duckdb::arrow::{
    array::{
        ArrayRef, ArrowPrimitiveType, BooleanBuilder, PrimitiveBuilder, RecordBatch, StringBuilder,
        TimestampMillisecondBuilder,
    },
    datatypes::{Float64Type, Int64Type},
    error::ArrowError,
};
use plimsoll_nats::{Batch, HostId, Name, Sequence, batch::FieldType};

use super::packed::{Packed, Place, Shape};
use crate::{
    arrow::columns,
    schema::{ColumnSchema, LakeSchema, Role, TableSchema},
};

/// What the tail adds to a snapshot of the lake.
#[derive(Debug, Default)]
pub struct TailSelection {
    series: Vec<TailSeries>,
    /// Whether nothing between snapshot and stream is missing.
    pub complete: bool,
}

/// The messages of a host's measurement, in the order of the stream.
#[derive(Debug)]
pub(super) struct TailSeries {
    pub(super) host: HostId,
    pub(super) measurement: Name,
    pub(super) messages: Vec<(Sequence, Arc<Packed>)>,
}

/// Messages one after another that have their columns in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'s> {
    host: &'s HostId,
    measurement: &'s Name,
    shape: &'s Shape,
    messages: &'s [(Sequence, Arc<Packed>)],
}

impl TailSelection {
    pub(super) fn new(series: Vec<TailSeries>, complete: bool) -> Self {
        Self { series, complete }
    }

    /// The messages' batches, in the order of the stream, those of all partitions together.
    #[must_use]
    pub fn batches(&self) -> Vec<Batch> {
        let of_series = |series: &TailSeries| {
            let TailSeries { host, measurement, messages } = series;
            let batches = messages.iter().map(|(sequence, rows)| (*sequence, rows.unpack(host, measurement)));
            batches.collect::<Vec<_>>()
        };
        let mut batches: Vec<(Sequence, Batch)> = self.series.iter().flat_map(of_series).collect();
        batches.sort_by_key(|(sequence, _)| *sequence);
        batches.into_iter().map(|(_, batch)| batch).collect()
    }

    /// Takes the messages that fit into the schema, in the order of the stream, as a commit would; the others will never be in the lake.
    ///
    /// Whether a message fits is decided once for those that have their columns in common: what fits once fits ever after, and what does not,
    /// never will.
    pub(crate) fn admitted(&self, schema: &mut LakeSchema) -> Vec<Run<'_>> {
        let mut runs: Vec<Run<'_>> = self.series.iter().flat_map(TailSeries::runs).collect();
        runs.sort_by_key(|run| run.messages.first().map(|(sequence, _)| *sequence));
        runs.retain(|run| schema.admit_columns(run.measurement, run.shape.columns()).is_ok());
        runs
    }
}

impl TailSeries {
    fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        let runs = self.messages.chunk_by(|(_, a), (_, b)| a.shares_with(b));
        runs.map(|messages| {
            let (host, measurement, shape) = (&self.host, &self.measurement, messages[0].1.shape());
            Run { host, measurement, shape, messages }
        })
    }
}

impl Run<'_> {
    pub(crate) fn host(&self) -> &HostId {
        self.host
    }

    pub(crate) fn measurement(&self) -> &Name {
        self.measurement
    }

    pub(crate) fn rows(&self) -> usize {
        self.packed().map(Packed::rows).sum()
    }

    fn packed(&self) -> impl Iterator<Item = &Packed> {
        self.messages.iter().map(|(_, rows)| &**rows)
    }
}

/// The rows of one measurement in the order of the runs, with every column of its table.
pub(crate) fn record_batch(table: &TableSchema, runs: &[Run<'_>]) -> Result<RecordBatch, ArrowError> {
    let rows = runs.iter().map(Run::rows).sum();
    let arrays = table.columns().map(|(name, column)| array(name, column, runs, rows));
    columns(table, times(runs, rows), hosts(runs, rows), arrays)
}

fn times(runs: &[Run<'_>], rows: usize) -> ArrayRef {
    let mut builder = TimestampMillisecondBuilder::with_capacity(rows);
    for packed in runs.iter().flat_map(Run::packed) {
        packed.times().for_each(|time| builder.append_value(time));
    }
    Arc::new(builder.finish())
}

fn hosts(runs: &[Run<'_>], rows: usize) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(rows, 0);
    for run in runs {
        (0..run.rows()).for_each(|_| builder.append_value(run.host));
    }
    Arc::new(builder.finish())
}

fn array(name: &Name, column: ColumnSchema, runs: &[Run<'_>], rows: usize) -> ArrayRef {
    let places: Vec<_> = runs.iter().map(|run| (run, run.shape.place(name))).collect();
    match (column.role, column.column_type) {
        (Role::Tag, _) | (Role::Field, FieldType::Text) => texts(&places, rows),
        (Role::Field, FieldType::Float) => numbers::<Float64Type>(&places, rows, |kind| match kind {
            FieldType::Float => Some(f64::from_bits),
            FieldType::Integer => Some(|bits| bits.cast_signed() as f64),
            FieldType::Bool | FieldType::Text => None,
        }),
        (Role::Field, FieldType::Integer) => {
            numbers::<Int64Type>(&places, rows, |kind| (kind == FieldType::Integer).then_some(u64::cast_signed))
        }
        (Role::Field, FieldType::Bool) => bools(&places, rows),
    }
}

/// Runs and where the column is in each.
type Places<'p> = [(&'p Run<'p>, Option<Place<'p>>)];

fn texts(places: &Places<'_>, rows: usize) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(rows, 0);
    for (run, place) in places {
        match place {
            Some(Place::Tag(values)) => {
                run.packed().flat_map(|_| *values).for_each(|value| builder.append_value(value));
            }
            Some(Place::Text(place)) => run.packed().for_each(|packed| builder.extend(packed.texts(*place))),
            Some(Place::Number(..)) | None => builder.append_nulls(run.rows()),
        }
    }
    Arc::new(builder.finish())
}

/// How the bits of a value of some type become a number of another one.
type Conversion<T> = fn(u64) -> <T as ArrowPrimitiveType>::Native;

/// Numbers; null where the values are of a type that has no conversion.
fn numbers<T: ArrowPrimitiveType>(
    places: &Places<'_>,
    rows: usize,
    conversion: impl Fn(FieldType) -> Option<Conversion<T>>,
) -> ArrayRef {
    let mut builder = PrimitiveBuilder::<T>::with_capacity(rows);
    for (run, place) in places {
        let converted = match place {
            Some(Place::Number(place, kind)) => conversion(*kind).map(|convert| (*place, convert)),
            _ => None,
        };
        match converted {
            Some((place, convert)) => {
                let values = run.packed().flat_map(|packed| packed.numbers(place));
                values.for_each(|value| builder.append_option(value.map(convert)));
            }
            None => builder.append_nulls(run.rows()),
        }
    }
    Arc::new(builder.finish())
}

fn bools(places: &Places<'_>, rows: usize) -> ArrayRef {
    let mut builder = BooleanBuilder::with_capacity(rows);
    for (run, place) in places {
        match place {
            Some(Place::Number(place, FieldType::Bool)) => {
                let values = run.packed().flat_map(|packed| packed.numbers(*place));
                values.for_each(|value| builder.append_option(value.map(|bit| bit != 0)));
            }
            _ => builder.append_nulls(run.rows()),
        }
    }
    Arc::new(builder.finish())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::{
        super::packed::{Names, tests::batches},
        *,
    };
    use crate::arrow;

    /// The messages of some series, as the tail holds them.
    fn selection(messages: &[(usize, Batch)]) -> TailSelection {
        let (mut series, mut names) = (Vec::<TailSeries>::new(), Names::default());
        for (sequence, (host, batch)) in messages.iter().enumerate() {
            let host = HostId::parse(&format!("h{host}")).expect("host");
            let place = series.iter().position(|known| known.host == host).unwrap_or_else(|| {
                let (host, measurement) = (host.clone(), batch.measurement.clone());
                series.push(TailSeries { host, measurement, messages: Vec::new() });
                series.len() - 1
            });
            let messages = &mut series[place].messages;
            let rows = Packed::new(batch, messages.last().map(|(_, before)| &**before), &mut names);
            messages.push((Sequence(sequence as u64), Arc::new(rows)));
        }
        TailSelection::new(series, true)
    }

    /// The rows, in whatever order.
    fn rows(batch: &RecordBatch) -> Vec<String> {
        let row = |row| format!("{:?}", batch.slice(row, 1).columns());
        let mut rows: Vec<String> = (0..batch.num_rows()).map(row).collect();
        rows.sort();
        rows
    }

    proptest! {
        #[test]
        fn rows_are_those_of_the_batches_that_a_commit_would_take(
            different in vec(batches(), 1..4), places in vec((0..3_usize, select(vec![0, 1, 2, 3])), 1..12), fields in vec(0..6_u8, 0..4)
        ) {
            let message = |(host, which): &(usize, usize)| {
                let id = HostId::parse(&format!("h{host}")).expect("host");
                (*host, Batch { host: id, ..different[which % different.len()].clone() })
            };
            let messages: Vec<(usize, Batch)> = places.iter().map(message).collect();
            let selection = selection(&messages);
            let batches: Vec<Batch> = messages.iter().map(|(_, batch)| batch.clone()).collect();
            prop_assert_eq!(&selection.batches(), &batches);
            let (mut schema, mut wanted) = (LakeSchema::default(), LakeSchema::default());
            let admitted = selection.admitted(&mut schema);
            let taken: Vec<&Batch> = batches.iter().filter(|batch| wanted.admit(batch).is_ok()).collect();
            prop_assert_eq!(&schema, &wanted);
            let Some(table) = schema.table("m") else { return Ok(()) };
            let fields: Vec<Name> = fields.iter().map(|n| Name::parse(&format!("f{n}")).expect("name")).collect();
            let table = table.with_fields(&fields);
            let found = record_batch(&table, &admitted).expect("columns of one length");
            prop_assert_eq!(rows(&found), rows(&arrow::record_batch(&table, &taken).expect("columns of one length")));
        }
    }
}
