//! Statistics of every series and field.

use std::collections::BTreeMap;

use duckdb::Row;
use plimsoll_nats::{Name, batch::FieldType, now_ms};
use serde::Serialize;

use super::{
    Found, QueryError, Value,
    points::MAX_VALUES,
    series::{Series, SeriesReader},
    sketch,
    source::Source,
    tiers::{self, TierChoice, TierPart},
    value,
};
use crate::{LakeError, Tier, error::Context, sql::ident};

/// A field of a series over the selected time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FieldStats {
    /// The host; the answer to a question about one host says it elsewhere.
    #[serde(skip)]
    pub host: String,
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
    /// The value at the latest time; none where only summaries of it are left.
    pub last: Option<Value>,
    /// That time, Unix ms; of summaries the start of the last one.
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
    /// The median; percentiles interpolate linearly between the two values nearest to them, exactly where raw rows answer and within 1 %
    /// where summaries do.
    pub p50: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
}

/// The percentiles of a [`Summary`].
const QUANTILES: [f64; 3] = [0.5, 0.95, 0.99];
/// How long before an interval's end its last values are looked for first.
const RECENT_MS: i64 = 3_600_000;
/// Columns of a field in the result.
const COLUMNS: usize = 8;

/// The statistics of a field, without its last value.
struct FoundField {
    count: u64,
    last_time_ms: i64,
    summary: Option<Summary>,
}

/// A series with what was found of each field.
type FoundSeries = (Series, Vec<Option<FoundField>>);
/// The last value of each field of a series, and its time.
type Last = BTreeMap<Series, Vec<Option<(Value, i64)>>>;

/// Reads the statistics; a field without a value is left out. Raw rows answer while they are there, and else summaries.
pub(super) fn read(source: &Source<'_>, choice: TierChoice) -> Result<Found<Vec<FieldStats>>, QueryError> {
    let (extent, selection) = (source.extent(), &source.selection);
    let tier = match (choice, extent.finest(selection.from_ms)) {
        (TierChoice::Only(tier), _) => tier.min(extent.coarsest),
        (TierChoice::Auto, Tier::Raw) => Tier::Raw,
        (TierChoice::Auto, _) => extent.coarsest,
    };
    let parts = tiers::plan(selection.from_ms, selection.to_ms, tier, &extent);
    if parts.iter().all(|part| part.tier == Tier::Raw) {
        let all: Vec<usize> = (0..source.fields.len()).collect();
        return Ok(Found { rows: exact(source, &all)?, tiers: parts, step_ms: None });
    }
    let is_text = |index: &usize| source.fields[*index].1 == FieldType::Text;
    let (texts, numbers): (Vec<usize>, Vec<usize>) = (0..source.fields.len()).partition(is_text);
    // Text is not rolled up: what there is of it is in the raw rows.
    let mut rows = exact(source, &texts)?;
    rows.extend(summed(source, &numbers, &parts, extent.raw_from_ms)?);
    let place = |field: &Name| source.fields.iter().position(|(known, _)| known == field);
    rows.sort_by(|a, b| (&a.host, &a.tags, place(&a.field)).cmp(&(&b.host, &b.tags, place(&b.field))));
    Ok(Found { rows, tiers: parts, step_ms: None })
}

/// From raw rows.
///
/// Last values come from a look of its own at the end of the interval: to read all times for them, and to compare these row by row,
/// would take as long as all else together.
fn exact(source: &Source<'_>, fields: &[usize]) -> Result<Vec<FieldStats>, QueryError> {
    if fields.is_empty() {
        return Ok(Vec::new());
    }
    let selection = &source.selection;
    let rows = source.rows(selection.from_ms, selection.to_ms);
    let found = read_found(source, &exact_sql(source, fields, &rows), fields, true)?;
    let last = last_of(source, fields, &found, &rows)?;
    Ok(combine(source, fields, found, last))
}

/// The last values of what was found: most are of the interval's last hour.
fn last_of(source: &Source<'_>, fields: &[usize], found: &[FoundSeries], rows: &str) -> Result<Last, QueryError> {
    if found.is_empty() {
        return Ok(Last::new());
    }
    let until_ms = source.selection.to_ms.unwrap_or_else(now_ms);
    let last = read_last(source, fields, until_ms.saturating_sub(RECENT_MS))?;
    let lacks = |(series, row): &FoundSeries| {
        let values = last.get(series);
        row.iter().enumerate().any(|(place, found)| {
            found.is_some() && values.and_then(|values| values.get(place)).is_none_or(Option::is_none)
        })
    };
    if !found.iter().any(lacks) {
        return Ok(last);
    }
    let times = fields
        .iter()
        .map(|index| format!("epoch_ms(max(ts) FILTER (WHERE {} IS NOT NULL))", ident(&source.fields[*index].0)));
    let (series, times) = (source.series_list(), times.collect::<Vec<_>>().join(", "));
    let sql = format!("SELECT min(t) FROM (SELECT unnest([{times}]) AS t FROM {rows} GROUP BY {series})");
    let since: Option<i64> = source.connection.query_row(&sql, [], |row| row.get(0)).context("look for last values")?;
    Ok(read_last(source, fields, since.unwrap_or(source.selection.from_ms))?)
}

/// From summaries, and rows that are not rolled up. Those among raw rows give the last values.
fn summed(
    source: &Source<'_>,
    fields: &[usize],
    parts: &[TierPart],
    raw_from_ms: i64,
) -> Result<Vec<FieldStats>, QueryError> {
    let (series, mut columns) = (source.series_list(), String::new());
    for index in fields {
        columns.push_str(&format!(
            ", sum(_c{index})::BIGINT, max(epoch_ms(ts)) FILTER (WHERE _c{index} > 0), min(_n{index}), max(_x{index}), \
             sum(_s{index}) / sum(_c{index}), 0.0::DOUBLE, 0.0::DOUBLE, 0.0::DOUBLE"
        ));
    }
    let sql = format!("SELECT {series}{columns} FROM {} GROUP BY {series} ORDER BY {series}", source.partials(parts));
    let mut found = read_found(source, &sql, fields, false)?;
    for (place, index) in fields.iter().enumerate() {
        let mut quantiles = sketch::read(source, parts, *index, None, &QUANTILES)?;
        for (series, row) in &mut found {
            let Some(summary) = row[place].as_mut().and_then(|field| field.summary.as_mut()) else { continue };
            let Some(values) = quantiles.remove(&(series.clone(), 0)) else { continue };
            summary.set_percentiles(&values);
        }
    }
    let Some(since) = earliest_last(&found) else { return Ok(Vec::new()) };
    let last = read_last(source, fields, since.max(raw_from_ms))?;
    Ok(combine(source, fields, found, last))
}

impl Summary {
    /// Sets percentiles of a sketch; none is outside of the extremes.
    fn set_percentiles(&mut self, values: &[f64]) {
        let (Some(min), Some(max)) = (self.min.number(), self.max.number()) else { return };
        let within = |index: usize| values.get(index).map_or(f64::NAN, |value| value.max(min).min(max));
        (self.p50, self.p95, self.p99) = (within(0), within(1), within(2));
    }
}

fn earliest_last(found: &[FoundSeries]) -> Option<i64> {
    found.iter().flat_map(|(_, row)| row).flatten().map(|found| found.last_time_ms).min()
}

fn combine(source: &Source<'_>, fields: &[usize], found: Vec<FoundSeries>, mut last: Last) -> Vec<FieldStats> {
    let mut stats = Vec::new();
    for (series, row) in found {
        let mut values = last.remove(&series).unwrap_or_default().into_iter();
        for (index, found) in fields.iter().zip(row) {
            let value = values.next().flatten();
            let Some(FoundField { count, last_time_ms, summary }) = found else { continue };
            let (field, field_type) = source.fields[*index].clone();
            let last_time_ms = value.as_ref().map_or(last_time_ms, |(_, time)| *time);
            let (host, tags, last) = (series.host.clone(), series.tags.clone(), value.map(|(value, _)| value));
            stats.push(FieldStats { host, tags, field, field_type, count, summary, last, last_time_ms });
        }
    }
    stats
}

/// Runs SQL that gives the columns of each field after those of the series.
fn read_found(source: &Source<'_>, sql: &str, fields: &[usize], exact: bool) -> Result<Vec<FoundSeries>, QueryError> {
    let mut statement = source.connection.prepare(sql).context("prepare statistics")?;
    let mut rows = statement.query([]).context("compute statistics")?;
    let mut reader = SeriesReader::new(&source.tags);
    let first = reader.columns();
    let mut found = Vec::new();
    while let Some(row) = rows.next().context("read statistics")? {
        let columns = fields.iter().enumerate().map(|(place, index)| {
            let kind = source.fields[*index].1;
            field_found(row, first + place * COLUMNS, if exact { kind } else { FieldType::Float })
        });
        let columns = columns.collect::<Result<_, _>>()?;
        found.push((reader.read(row)?.0.clone(), columns));
        if found.len() * fields.len() > MAX_VALUES / COLUMNS {
            return Err(QueryError::TooLarge { limit: MAX_VALUES });
        }
    }
    Ok(found)
}

/// The last value of each field of each series, where that is not before `since_ms`.
fn read_last(source: &Source<'_>, fields: &[usize], since_ms: i64) -> Result<Last, LakeError> {
    let fields = fields.iter().map(|index| &source.fields[*index]);
    let values: Vec<String> = fields
        .clone()
        .map(|(field, kind)| {
            let column = ident(field);
            let value = value::expression(&column, *kind);
            format!("arg_max({value}, ts), epoch_ms(max(ts) FILTER (WHERE {column} IS NOT NULL))")
        })
        .collect();
    let (series, values) = (source.series_list(), values.join(", "));
    let rows = source.rows(source.selection.from_ms.max(since_ms), source.selection.to_ms);
    let sql = format!("SELECT {series}, {values} FROM {rows} GROUP BY {series}");
    let mut statement = source.connection.prepare(&sql).context("prepare last values")?;
    let mut rows = statement.query([]).context("find last values")?;
    let mut reader = SeriesReader::new(&source.tags);
    let first = reader.columns();
    let mut last = Last::new();
    while let Some(row) = rows.next().context("read last values")? {
        let read = |(place, (_, kind)): (usize, &(Name, FieldType))| {
            let value = value::get(row, first + 2 * place, *kind)?;
            let time = row.get::<_, Option<i64>>(first + 2 * place + 1).context("read a time")?;
            Ok::<_, LakeError>(value.zip(time))
        };
        let values = fields.clone().enumerate().map(read).collect::<Result<_, _>>()?;
        last.insert(reader.read(row)?.0.clone(), values);
    }
    Ok(last)
}

fn exact_sql(source: &Source<'_>, fields: &[usize], rows: &str) -> String {
    let series = source.series_list();
    let (mut inner, mut outer) = (String::new(), String::new());
    for (index, (field, field_type)) in fields.iter().map(|index| (index, &source.fields[*index])) {
        let column = ident(field);
        let value = value::expression(&column, *field_type);
        inner.push_str(&format!(", count({column}) AS _c{index}"));
        if *field_type == FieldType::Text {
            outer.push_str(&format!(", _c{index}, NULL::BIGINT, NULL, NULL, NULL, NULL, NULL, NULL"));
        } else {
            inner.push_str(&format!(
                ", min({value}) AS _a{index}, max({value}) AS _z{index}, avg({value}) AS _m{index}, \
                 quantile_cont({value}::DOUBLE, {QUANTILES:?}) AS _q{index}"
            ));
            outer.push_str(&format!(
                ", _c{index}, NULL::BIGINT, _a{index}, _z{index}, _m{index}, _q{index}[1], _q{index}[2], _q{index}[3]"
            ));
        }
    }
    format!("SELECT {series}{outer} FROM (SELECT {series}{inner} FROM {rows} GROUP BY {series}) ORDER BY {series}")
}

fn field_found(row: &Row<'_>, first: usize, field_type: FieldType) -> Result<Option<FoundField>, LakeError> {
    let count = row.get::<_, Option<i64>>(first).context("read a count")?.unwrap_or(0).unsigned_abs();
    if count == 0 {
        return Ok(None);
    }
    // Of raw rows the last value tells it.
    let last_time_ms = row.get::<_, Option<i64>>(first + 1).context("read a time")?.unwrap_or(i64::MIN);
    let summary = if field_type == FieldType::Text { None } else { summary(row, first + 2, field_type)? };
    Ok(Some(FoundField { count, last_time_ms, summary }))
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
