//! Points of every series and field, raw or in buckets.

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroUsize,
    time::Duration,
};

use duckdb::{Row, params_from_iter};
use plimsoll_nats::{Name, batch::FieldType};
use serde::Serialize;

use super::{
    QueryError, Value,
    source::Source,
    stats::{series, tag_list},
    value,
};
use crate::{LakeError, error::Context, sql::ident};

/// Most values of one answer.
const MAX_VALUES: usize = 2_000_000;

/// Which points to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointsQuery {
    /// The fields; none means all.
    pub fields: Option<Vec<Name>>,
    /// Length of the buckets, which begin at multiples of it since 1970; none gives every point. At least 1 ms.
    pub step: Option<Duration>,
    /// Most points of a series; of more, the newest are given.
    pub limit: NonZeroUsize,
}

/// The points of a field of a series.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PointSeries {
    /// The series' tags; one that its rows lack is left out.
    pub tags: BTreeMap<Name, String>,
    /// The field.
    pub field: Name,
    /// The type of its values.
    #[serde(rename = "type")]
    pub field_type: FieldType,
    /// Whether there are older points that the limit left out.
    pub truncated: bool,
    /// The points in the order of their times.
    pub points: Points,
}

/// Points as their query asked for them. Times are Unix ms; that of a bucket is its start.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Points {
    /// Time and value; for buckets of text time and last value.
    Values(VecDeque<(i64, Value)>),
    /// Time, mean, smallest and largest value of buckets.
    Buckets(VecDeque<(i64, f64, Value, Value)>),
}

impl Points {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Values(points) => points.len(),
            Self::Buckets(points) => points.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn drop_oldest(&mut self) {
        match self {
            Self::Values(points) => drop(points.pop_front()),
            Self::Buckets(points) => drop(points.pop_front()),
        }
    }
}

/// Reads the points; a field without a value is left out.
pub(super) fn read(source: &Source<'_>, query: &PointsQuery) -> Result<Vec<PointSeries>, QueryError> {
    let fields = source.fields(query.fields.as_deref())?;
    if fields.is_empty() {
        return Ok(Vec::new());
    }
    let (condition, parameters) = source.selection.condition();
    let sql = match query.step {
        None => raw_sql(source, &fields, &condition, query.limit),
        Some(step) => bucket_sql(source, &fields, &condition, step),
    };
    let mut statement = source.connection.prepare(&sql).context("prepare points")?;
    let mut rows = statement.query(params_from_iter(parameters)).context("read points")?;
    let tags: Vec<&Name> = source.table.tags().collect();
    let mut collected = Collected { bucketed: query.step.is_some(), limit: query.limit.get(), ..Collected::default() };
    while let Some(row) = rows.next().context("read points")? {
        collected.add(row, series(row, &tags)?, tags.len(), &fields)?;
    }
    Ok(collected.finish())
}

fn raw_sql(source: &Source<'_>, fields: &[(Name, FieldType)], condition: &str, limit: NonZeroUsize) -> String {
    let tags = tag_list(source);
    let values: Vec<String> = fields.iter().map(|(name, kind)| value::expression(&ident(name), *kind)).collect();
    // One point more than wanted tells that there are more.
    let within: Vec<String> =
        fields.iter().map(|(name, _)| format!("count({}) OVER newest <= {limit} + 1", ident(name))).collect();
    let partition =
        if tags.is_empty() { String::new() } else { format!("PARTITION BY {} ", tags.trim_end_matches(", ")) };
    format!(
        "SELECT {tags}epoch_ms(ts), {} FROM {} WHERE {condition} \
         WINDOW newest AS ({partition}ORDER BY ts DESC ROWS UNBOUNDED PRECEDING) QUALIFY {} ORDER BY {tags}ts",
        values.join(", "),
        source.relation(),
        within.join(" OR "),
    )
}

fn bucket_sql(source: &Source<'_>, fields: &[(Name, FieldType)], condition: &str, step: Duration) -> String {
    let tags = tag_list(source);
    let step = step.as_millis().max(1);
    let aggregates: Vec<String> = fields
        .iter()
        .map(|(name, kind)| {
            let column = value::expression(&ident(name), *kind);
            match kind {
                FieldType::Text => format!("arg_max({column}, ts)"),
                _ => format!("avg({column}), min({column}), max({column})"),
            }
        })
        .collect();
    format!(
        "SELECT {tags}epoch_ms(ts) // {step} * {step} AS bucket_start, {} FROM {} WHERE {condition} \
         GROUP BY {tags}bucket_start ORDER BY {tags}bucket_start",
        aggregates.join(", "),
        source.relation(),
    )
}

/// Series in the order in which the result names them.
#[derive(Default)]
struct Collected {
    bucketed: bool,
    limit: usize,
    values: usize,
    done: Vec<PointSeries>,
    /// The fields of the series that the result's rows belong to now.
    current: Vec<PointSeries>,
}

impl Collected {
    /// Adds a row: tags, time, and then each field's columns.
    fn add(
        &mut self,
        row: &Row<'_>,
        tags: BTreeMap<Name, String>,
        first: usize,
        fields: &[(Name, FieldType)],
    ) -> Result<(), QueryError> {
        if self.current.first().is_none_or(|series| series.tags != tags) {
            self.begin(&tags, fields);
        }
        let time = row.get::<_, i64>(first).context("read a time")?;
        let mut column = first + 1;
        for series in &mut self.current {
            let kind = series.field_type;
            let taken = match &mut series.points {
                Points::Values(points) => {
                    let value = value::get(row, column, kind)?;
                    column += 1;
                    value.map(|value| points.push_back((time, value)))
                }
                Points::Buckets(points) => {
                    let bucket = bucket(row, column, kind)?;
                    column += 3;
                    bucket.map(|(avg, min, max)| points.push_back((time, avg, min, max)))
                }
            };
            self.values += usize::from(taken.is_some());
            if series.points.len() > self.limit {
                series.points.drop_oldest();
                series.truncated = true;
                self.values -= 1;
            }
        }
        if self.values > MAX_VALUES { Err(QueryError::TooLarge { limit: MAX_VALUES }) } else { Ok(()) }
    }

    fn begin(&mut self, tags: &BTreeMap<Name, String>, fields: &[(Name, FieldType)]) {
        self.done.append(&mut self.current);
        self.current.extend(fields.iter().map(|(field, field_type)| PointSeries {
            tags: tags.clone(),
            field: field.clone(),
            field_type: *field_type,
            truncated: false,
            points: if self.bucketed && *field_type != FieldType::Text {
                Points::Buckets(VecDeque::new())
            } else {
                Points::Values(VecDeque::new())
            },
        }));
    }

    fn finish(mut self) -> Vec<PointSeries> {
        self.done.append(&mut self.current);
        self.done.retain(|series| !series.points.is_empty());
        self.done
    }
}

fn bucket(row: &Row<'_>, first: usize, kind: FieldType) -> Result<Option<(f64, Value, Value)>, LakeError> {
    let avg = row.get::<_, Option<f64>>(first).context("read a mean")?;
    let (min, max) = (value::get(row, first + 1, kind)?, value::get(row, first + 2, kind)?);
    Ok(avg.zip(min).zip(max).map(|((avg, min), max)| (avg, min, max)))
}
