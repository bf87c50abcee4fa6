//! Statistics of every series and field.

use std::collections::BTreeMap;

use duckdb::{Row, params_from_iter};
use plimsoll_nats::{Name, batch::FieldType};
use serde::Serialize;

use super::{QueryError, Value, source::Source, value};
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
const COLUMNS: usize = 9;

/// Reads the statistics; a field without a value is left out.
pub(super) fn read(source: &Source<'_>, fields: Option<&[Name]>) -> Result<Vec<FieldStats>, QueryError> {
    let fields = source.fields(fields)?;
    let (condition, parameters) = source.selection.condition();
    let sql = sql(source, &fields, &condition);
    let mut statement = source.connection.prepare(&sql).context("prepare statistics")?;
    let mut rows = statement.query(params_from_iter(parameters)).context("compute statistics")?;
    let tags: Vec<&Name> = source.table.tags().collect();
    let mut stats = Vec::new();
    while let Some(row) = rows.next().context("read statistics")? {
        let series = series(row, &tags)?;
        for (index, (field, field_type)) in fields.iter().enumerate() {
            let first = tags.len() + index * COLUMNS;
            stats.extend(field_stats(row, first, &series, field, *field_type)?);
        }
    }
    Ok(stats)
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
            "count({column}) AS c{index}, arg_max({value}, ts) AS l{index}, \
             epoch_ms(max(ts) FILTER (WHERE {column} IS NOT NULL)) AS t{index}, "
        ));
        if *field_type == FieldType::Text {
            outer.push_str(&format!("c{index}, l{index}, t{index}, NULL, NULL, NULL, NULL, NULL, NULL, "));
        } else {
            inner.push_str(&format!(
                "min({value}) AS a{index}, max({value}) AS z{index}, avg({value}) AS m{index}, \
                 quantile_cont({value}::DOUBLE, [0.5, 0.95, 0.99]) AS q{index}, "
            ));
            outer.push_str(&format!(
                "c{index}, l{index}, t{index}, a{index}, z{index}, m{index}, q{index}[1], q{index}[2], q{index}[3], "
            ));
        }
    }
    let relation = source.relation();
    format!(
        "SELECT {tags}{outer} FROM (SELECT {tags}{inner} FROM {relation} WHERE {condition} GROUP BY ALL) ORDER BY ALL"
    )
}

fn field_stats(
    row: &Row<'_>,
    first: usize,
    series: &BTreeMap<Name, String>,
    field: &Name,
    field_type: FieldType,
) -> Result<Option<FieldStats>, LakeError> {
    let count = row.get::<_, i64>(first).context("read a count")?;
    let last = value::get(row, first + 1, field_type)?;
    let last_time_ms = row.get::<_, Option<i64>>(first + 2).context("read a time")?;
    let (Some(last), Some(last_time_ms)) = (last, last_time_ms) else { return Ok(None) };
    let summary = if field_type == FieldType::Text { None } else { summary(row, first + 3, field_type)? };
    let (tags, field) = (series.clone(), field.clone());
    Ok(Some(FieldStats { tags, field, field_type, count: count.unsigned_abs(), summary, last, last_time_ms }))
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
