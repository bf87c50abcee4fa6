//! Every point of some fields, as it was sampled.
//!
//! Rows come out of files in the order of series and times, so that neither DuckDB nor this sorts them: where they come in another order, that is
//! seen here and mended. They are read by column and not row by row, and no further than an answer may be long.

use std::collections::HashMap;

use duckdb::arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    datatypes::{Float64Type, Int64Type},
};
use plimsoll_nats::{Name, batch::FieldType};

use super::{
    GroupKey, PointSeries, Points, QueryError, Value,
    points::MAX_VALUES,
    series::{Series, text_at},
    source::Source,
    value,
};
use crate::{error::Context, sql::ident};

/// Reads all points of the fields, or the newest `limit` of each series; none where there are too many to be held before the older ones
/// are left out.
pub(super) fn read(
    source: &Source<'_>,
    fields: &[usize],
    limit: Option<usize>,
) -> Result<Option<Vec<PointSeries>>, QueryError> {
    let fields: Vec<&(Name, FieldType)> = fields.iter().map(|index| &source.fields[*index]).collect();
    let values: Vec<String> = fields.iter().map(|(name, kind)| value::expression(&ident(name), *kind)).collect();
    let mut gathered = Gathered::new(source);
    let keys: String = gathered.keys.iter().map(|key| format!("{}, ", key.column())).collect();
    let rows = source.rows(source.selection.from_ms, source.selection.to_ms);
    let sql = format!("SELECT {keys}epoch_ms(ts), {} FROM {rows}", values.join(", "));
    let mut statement = source.connection.prepare(&sql).context("prepare points")?;
    let _ = statement.stream_arrow([]).context("read points")?;
    // By steps and not by the iterator, which panics where reading fails half way.
    while let Some(rows) = statement.step().context("read points")? {
        gathered.add(&RecordBatch::from(&rows), &fields)?;
        if gathered.values > MAX_VALUES {
            return Ok(None);
        }
    }
    Ok(Some(gathered.finish(&fields, limit)))
}

/// The points of a series, by field.
struct SeriesPoints {
    series: Series,
    fields: Vec<Vec<(i64, Value)>>,
}

struct Gathered {
    /// What tells the series of a selection apart, as far as the selection does not say it.
    keys: Vec<GroupKey>,
    /// What all series have in common.
    common: Series,
    found: Vec<SeriesPoints>,
    places: HashMap<Series, usize>,
    values: usize,
}

impl Gathered {
    fn new(source: &Source<'_>) -> Self {
        let selection = &source.selection;
        let host = selection.hosts.single().map(ToString::to_string);
        let others = source.tags.iter().filter(|tag| !selection.tags.contains_key(*tag)).cloned().map(GroupKey::Tag);
        let keys = host.is_none().then_some(GroupKey::Host).into_iter().chain(others).collect();
        let common = Series { host: host.unwrap_or_default(), tags: selection.tags.clone() };
        Self { keys, common, found: Vec::new(), places: HashMap::new(), values: 0 }
    }

    fn add(&mut self, batch: &RecordBatch, fields: &[&(Name, FieldType)]) -> Result<(), QueryError> {
        let (keys, columns) = batch.columns().split_at(self.keys.len());
        let keys: Vec<&StringArray> = keys.iter().map(|column| column.as_string()).collect();
        let times = columns[0].as_primitive::<Int64Type>().values();
        let mut start = 0;
        while start < times.len() {
            let is_same = |row: usize| keys.iter().all(|column| text_at(column, row) == text_at(column, start));
            let end = (start + 1..times.len()).find(|row| !is_same(*row)).unwrap_or(times.len());
            let series = self.series(&keys, start);
            let place = self.place(series, fields.len());
            for ((column, (_, kind)), points) in columns[1..].iter().zip(fields).zip(&mut self.found[place].fields) {
                let before = points.len();
                append(points, column, *kind, times, start..end);
                self.values += points.len() - before;
            }
            start = end;
        }
        Ok(())
    }

    fn series(&self, keys: &[&StringArray], row: usize) -> Series {
        let mut series = self.common.clone();
        for (key, column) in self.keys.iter().zip(keys) {
            match (key, text_at(column, row).map(str::to_owned)) {
                (GroupKey::Host, host) => series.host = host.unwrap_or_default(),
                (GroupKey::Tag(tag), Some(value)) => drop(series.tags.insert(tag.clone(), value)),
                (GroupKey::Tag(_), None) => {}
            }
        }
        series
    }

    fn place(&mut self, series: Series, fields: usize) -> usize {
        if let Some(place) = self.places.get(&series) {
            return *place;
        }
        self.places.insert(series.clone(), self.found.len());
        self.found.push(SeriesPoints { series, fields: vec![Vec::new(); fields] });
        self.found.len() - 1
    }

    fn finish(self, fields: &[&(Name, FieldType)], limit: Option<usize>) -> Vec<PointSeries> {
        let mut all = Vec::new();
        for SeriesPoints { series, fields: found } in self.found {
            for ((field, kind), mut points) in fields.iter().zip(found).filter(|(_, points)| !points.is_empty()) {
                if !points.is_sorted_by_key(|(time, _)| *time) {
                    points.sort_by_key(|(time, _)| *time);
                }
                let too_many = limit.map_or(0, |limit| points.len().saturating_sub(limit));
                points.drain(..too_many);
                all.push(PointSeries {
                    host: series.host.clone(),
                    tags: series.tags.clone(),
                    field: field.clone(),
                    field_type: *kind,
                    rate: false,
                    truncated: too_many > 0,
                    points: Points::Values(points.into()),
                    gaps: Vec::new(),
                });
            }
        }
        all
    }
}

/// Adds the values of some rows that are there.
fn append(
    points: &mut Vec<(i64, Value)>,
    column: &ArrayRef,
    kind: FieldType,
    times: &[i64],
    rows: std::ops::Range<usize>,
) {
    let is_there = |row: &usize| column.is_valid(*row);
    points.reserve(rows.len());
    match kind {
        FieldType::Float => {
            let values = column.as_primitive::<Float64Type>().values();
            points.extend(rows.filter(is_there).map(|row| (times[row], Value::Float(values[row]))));
        }
        FieldType::Integer | FieldType::Bool => {
            let values = column.as_primitive::<Int64Type>().values();
            points.extend(rows.filter(is_there).map(|row| (times[row], Value::Integer(values[row]))));
        }
        FieldType::Text => {
            let values: &StringArray = column.as_string();
            let value = |row| Value::Text(values.value(row).to_owned());
            points.extend(rows.filter(is_there).map(|row| (times[row], value(row))));
        }
    }
}
