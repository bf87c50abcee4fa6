//! Statistics of every series and field.

use std::collections::BTreeMap;

use duckdb::{Row, params_from_iter};
use plimsoll_nats::{Name, batch::FieldType};
use serde::Serialize;

use super::{QueryError, Selection, Value, source::Source, value};
use crate::{LakeError, error::Context, sql::ident};

/// A field of a series over the selected time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FieldStats {
    /// The series' tags; one that its rows lack is left out.
    pub tags: BTreeMap<Name, String>,
    /// The field.
    pub field: Name,
    /// The type of its values.
    #[serde(rename = "type")]
    pub field_type: FieldType,
    /// How many values there are; nil does not count.
    pub count: u64,
    /// Extremes, mean and percentiles; none for text.
    #[serde(flatten)]
    pub summary: Option<Summary>,
    /// The value at the latest time.
    pub last: Value,
    /// That time, Unix ms.
    pub last_time_ms: i64,
}

/// What can be said of numbers, in the field's unit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The smallest value.
    pub min: Value,
    /// The largest value.
    pub max: Value,
    /// The mean.
    pub avg: f64,
    /// The median; percentiles interpolate linearly between the two values nearest to them.
    pub p50: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
}

/// Columns of a field in the result.
const COLUMNS: usize = 8;

/// The statistics of a field, without its last value.
struct Found {
    count: u64,
    last_time_ms: i64,
    summary: Option<Summary>,
}

/// Reads the statistics; a field without a value is left out.
///
/// Last values come from a second look at the time since the earliest of the last times: comparing times row by row over the
/// whole interval would take as long as all else together.
pub(super) fn read(source: &Source<'_>, fields: Option<&[Name]>) -> Result<Vec<FieldStats>, QueryError> {
    let fields = source.fields(fields)?;
    let found = read_found(source, &fields)?;
    let since = found.iter().flat_map(|(_, row)| row).flatten().map(|found| found.last_time_ms).min();
    let Some(since) = since else { return Ok(Vec::new()) };
    let mut last = read_last(source, &fields, since)?;
    let mut stats = Vec::new();
    for (tags, row) in found {
        let mut values = last.remove(&tags).unwrap_or_default().into_iter();
        for ((field, field_type), found) in fields.iter().zip(row) {
            let (Some(Some(last)), Some(Found { count, last_time_ms, summary })) = (values.next(), found) else {
                continue;
            };
            let (tags, field, field_type) = (tags.clone(), field.clone(), *field_type);
            stats.push(FieldStats { tags, field, field_type, count, summary, last, last_time_ms });
        }
    }
    Ok(stats)
}

type Series = BTreeMap<Name, String>;
/// A series with what was found of each field.
type FoundSeries = (Series, Vec<Option<Found>>);

fn read_found(source: &Source<'_>, fields: &[(Name, FieldType)]) -> Result<Vec<FoundSeries>, LakeError> {
    let (condition, parameters) = source.selection.condition();
    let mut statement = source.connection.prepare(&sql(source, fields, &condition)).context("prepare statistics")?;
    let mut rows = statement.query(params_from_iter(parameters)).context("compute statistics")?;
    let tags: Vec<&Name> = source.table.tags().collect();
    let mut found = Vec::new();
    while let Some(row) = rows.next().context("read statistics")? {
        let fields = fields.iter().enumerate();
        let values = fields.map(|(index, (_, kind))| field_found(row, tags.len() + index * COLUMNS, *kind));
        found.push((series(row, &tags)?, values.collect::<Result<_, _>>()?));
    }
    Ok(found)
}

/// The last value of each field of each series, where that is not before `since_ms`.
fn read_last(
    source: &Source<'_>,
    fields: &[(Name, FieldType)],
    since_ms: i64,
) -> Result<BTreeMap<Series, Vec<Option<Value>>>, LakeError> {
    let (condition, parameters) = Selection { from_ms: since_ms, ..source.selection.clone() }.condition();
    let values: Vec<String> = fields
        .iter()
        .map(|(field, kind)| format!("arg_max({}, ts)", value::expression(&ident(field), *kind)))
        .collect();
    let (tag_list, values, relation) = (tag_list(source), values.join(", "), source.relation());
    let sql = format!("SELECT {tag_list}{values} FROM {relation} WHERE {condition} GROUP BY ALL");
    let mut statement = source.connection.prepare(&sql).context("prepare last values")?;
    let mut rows = statement.query(params_from_iter(parameters)).context("find last values")?;
    let tags: Vec<&Name> = source.table.tags().collect();
    let mut last = BTreeMap::new();
    while let Some(row) = rows.next().context("read last values")? {
        let fields = fields.iter().enumerate();
        let values = fields.map(|(index, (_, kind))| value::get(row, tags.len() + index, *kind));
        last.insert(series(row, &tags)?, values.collect::<Result<_, _>>()?);
    }
    Ok(last)
}

/// The tags of a result's row, which come first.
pub(super) fn series(row: &Row<'_>, tags: &[&Name]) -> Result<BTreeMap<Name, String>, LakeError> {
    let mut series = BTreeMap::new();
    for (index, tag) in tags.iter().enumerate() {
        if let Some(value) = row.get::<_, Option<String>>(index).context("read a tag")? {
            series.insert((*tag).clone(), value);
        }
    }
    Ok(series)
}

/// The quoted names of the tags, each followed by a comma.
pub(super) fn tag_list(source: &Source<'_>) -> String {
    source.table.tags().map(|tag| format!("{}, ", ident(tag))).collect()
}

fn sql(source: &Source<'_>, fields: &[(Name, FieldType)], condition: &str) -> String {
    let tags = tag_list(source);
    let (mut inner, mut outer) = (String::new(), String::new());
    for (index, (field, field_type)) in fields.iter().enumerate() {
        let column = ident(field);
        let value = value::expression(&column, *field_type);
        inner.push_str(&format!(
            "count({column}) AS c{index}, epoch_ms(max(ts) FILTER (WHERE {column} IS NOT NULL)) AS t{index}, "
        ));
        if *field_type == FieldType::Text {
            outer.push_str(&format!("c{index}, t{index}, NULL, NULL, NULL, NULL, NULL, NULL, "));
        } else {
            inner.push_str(&format!(
                "min({value}) AS a{index}, max({value}) AS z{index}, avg({value}) AS m{index}, \
                 quantile_cont({value}::DOUBLE, [0.5, 0.95, 0.99]) AS q{index}, "
            ));
            outer.push_str(&format!(
                "c{index}, t{index}, a{index}, z{index}, m{index}, q{index}[1], q{index}[2], q{index}[3], "
            ));
        }
    }
    let relation = source.relation();
    format!(
        "SELECT {tags}{outer} FROM (SELECT {tags}{inner} FROM {relation} WHERE {condition} GROUP BY ALL) ORDER BY ALL"
    )
}

fn field_found(row: &Row<'_>, first: usize, field_type: FieldType) -> Result<Option<Found>, LakeError> {
    let count = row.get::<_, i64>(first).context("read a count")?.unsigned_abs();
    let last_time_ms = row.get::<_, Option<i64>>(first + 1).context("read a time")?;
    let Some(last_time_ms) = last_time_ms else { return Ok(None) };
    let summary = if field_type == FieldType::Text { None } else { summary(row, first + 2, field_type)? };
    Ok(Some(Found { count, last_time_ms, summary }))
}

fn summary(row: &Row<'_>, first: usize, field_type: FieldType) -> Result<Option<Summary>, LakeError> {
    let number = |offset| row.get::<_, Option<f64>>(first + offset).context("read a statistic");
    let (min, max) = (value::get(row, first, field_type)?, value::get(row, first + 1, field_type)?);
    let (Some(min), Some(max)) = (min, max) else { return Ok(None) };
    let (Some(avg), Some(p50), Some(p95), Some(p99)) = (number(2)?, number(3)?, number(4)?, number(5)?) else {
        return Ok(None);
    };
    Ok(Some(Summary { min, max, avg, p50, p95, p99 }))
}
