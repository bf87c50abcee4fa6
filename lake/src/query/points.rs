//! Points of every series and field: raw, in buckets, as rates, or as few as draw the line.

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroUsize,
    time::Duration,
};

use duckdb::Row;
use plimsoll_nats::{Name, batch::FieldType, now_ms};
use serde::{Serialize, Serializer, ser::SerializeSeq};

use super::{
    Found, QueryError, Value,
    gaps::{self, Gap},
    lttb, rate, raw,
    series::{Series, SeriesReader},
    sketch::{self, Quantiles, bucket_sql},
    source::Source,
    tiers::{self, TierChoice, TierPart, Wish},
    value,
};
use crate::{LakeError, Tier, error::Context, sql::ident};

/// Most values of one answer.
pub(super) const MAX_VALUES: usize = 2_000_000;

/// Which points to give.
#[derive(Debug, Clone, PartialEq)]
pub struct PointsQuery {
    /// The fields; none means all.
    pub fields: Option<Vec<Name>>,
    /// Length of the buckets, which begin at multiples of it since 1970; none gives every point. At least 1 ms.
    pub step: Option<Duration>,
    /// Most points of a series; of more, the newest are given.
    pub limit: NonZeroUsize,
    /// Quantiles of each bucket, from 0 to 1: exact where raw rows answer, within 1 % of the value where summaries do.
    pub quantiles: Vec<f64>,
    /// Whether counters become rates: how much they rise a second.
    pub rate: bool,
    /// How many points of a series to keep, such that they draw nearly the same line; instead of `limit`, and without a step.
    pub line: Option<NonZeroUsize>,
    /// Which tier to read.
    pub tier: TierChoice,
}

impl PointsQuery {
    /// All fields' raw points, the newest `limit` of each series.
    #[must_use]
    pub fn new(limit: NonZeroUsize) -> Self {
        let (fields, step, quantiles, rate, line, tier) = (None, None, Vec::new(), false, None, TierChoice::Auto);
        Self { fields, step, limit, quantiles, rate, line, tier }
    }
}

/// The points of a field of a series.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PointSeries {
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
    /// Whether the points are what the field rises a second.
    pub rate: bool,
    /// Whether there are older points that the limit left out.
    pub truncated: bool,
    /// The points in the order of their times.
    pub points: Points,
    /// Times of neighbouring points between which nothing was measured for longer than usual: no line is drawn there.
    pub gaps: Vec<Gap>,
}

/// Points as their query asked for them. Times are Unix ms; that of a bucket is its start.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Points {
    /// Time and value; for buckets of text time and last value.
    Values(VecDeque<(i64, Value)>),
    /// What buckets hold.
    Buckets(VecDeque<Bucket>),
}

/// The values of a bucket. It is serialized as the list of time, mean, smallest and largest value, count and quantiles.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// Its start, Unix ms.
    pub time_ms: i64,
    /// The mean; of a rate the rise in the bucket by the time in which it was seen.
    pub avg: f64,
    /// The smallest value.
    pub min: Value,
    /// The largest value.
    pub max: Value,
    /// How many values there are.
    pub count: u64,
    /// The quantiles that were asked for.
    pub quantiles: Vec<f64>,
}

impl Serialize for Bucket {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(5 + self.quantiles.len()))?;
        list.serialize_element(&self.time_ms)?;
        list.serialize_element(&self.avg)?;
        list.serialize_element(&self.min)?;
        list.serialize_element(&self.max)?;
        list.serialize_element(&self.count)?;
        self.quantiles.iter().try_for_each(|quantile| list.serialize_element(quantile))?;
        list.end()
    }
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

    fn times(&self) -> Vec<i64> {
        match self {
            Self::Values(points) => points.iter().map(|(time, _)| *time).collect(),
            Self::Buckets(points) => points.iter().map(|bucket| bucket.time_ms).collect(),
        }
    }

    fn drop_oldest(&mut self) {
        match self {
            Self::Values(points) => drop(points.pop_front()),
            Self::Buckets(points) => drop(points.pop_front()),
        }
    }

    /// Times and values, or means; none for text.
    fn line(&self) -> Option<Vec<lttb::Point>> {
        match self {
            Self::Values(points) => points.iter().map(|(time, value)| Some((*time, value.number()?))).collect(),
            Self::Buckets(points) => Some(points.iter().map(|bucket| (bucket.time_ms, bucket.avg)).collect()),
        }
    }
}

/// Reads the points; a field without a value is left out.
pub(super) fn read(source: &Source<'_>, query: &PointsQuery) -> Result<Found<Vec<PointSeries>>, QueryError> {
    let Plan { parts, step_ms } = Plan::new(source, query)?;
    let mut series = Vec::new();
    let rates = |field: &(Name, FieldType)| query.rate && rate::is_counter(&source.selection.measurement, &field.0);
    for index in (0..source.fields.len()).filter(|index| rates(&source.fields[*index])) {
        series.extend(rate::read(source, query, &parts, index, step_ms)?);
    }
    let is_left = |wanted: fn(FieldType) -> bool| {
        let fields = source.fields.iter().enumerate();
        fields.filter(|(_, field)| !rates(field) && wanted(field.1)).map(|(index, _)| index).collect::<Vec<_>>()
    };
    let (numbers, texts) = (is_left(|kind| kind != FieldType::Text), is_left(|kind| kind == FieldType::Text));
    match step_ms {
        None => series.extend(raw(source, &is_left(|_| true), query)?),
        Some(step_ms) => {
            let exact = parts.iter().all(|part| part.tier == Tier::Raw);
            let read = if exact { exact_buckets } else { summed_buckets };
            series.extend(read(source, &parts, &numbers, query, step_ms)?);
            // Text is not rolled up: what there is of it is in the raw rows.
            series.extend(exact_buckets(source, &parts, &texts, query, step_ms)?);
        }
    }
    for series in &mut series {
        series.find_gaps(step_ms);
        if let Some(wanted) = query.line {
            series.thin_out(wanted.get());
        }
    }
    let place = |field: &Name| source.fields.iter().position(|(known, _)| known == field);
    series.sort_by(|a, b| (&a.host, &a.tags, place(&a.field)).cmp(&(&b.host, &b.tags, place(&b.field))));
    Ok(Found { tiers: parts, step_ms, rows: series })
}

/// What is read, and in which buckets.
struct Plan {
    parts: Vec<TierPart>,
    step_ms: Option<i64>,
}

impl Plan {
    fn new(source: &Source<'_>, query: &PointsQuery) -> Result<Self, QueryError> {
        let (extent, selection) = (source.extent(), &source.selection);
        let (from_ms, to_ms) = (selection.from_ms, selection.to_ms);
        let reach_ms = to_ms.unwrap_or_else(now_ms);
        let step_ms = query.step.map(|step| i64::try_from(step.as_millis()).unwrap_or(i64::MAX).max(1));
        // Of a line, means of buckets will do where there are enough of them.
        let length = reach_ms.saturating_sub(from_ms);
        let enough = |wanted: NonZeroUsize| length / i64::try_from(wanted.get()).unwrap_or(i64::MAX).max(1);
        let coarse =
            |interval: i64| Tier::ALL.into_iter().rev().filter_map(Tier::bucket_ms).find(|bucket| *bucket <= interval);
        let wish_step = step_ms.or_else(|| query.line.map(|wanted| coarse(enough(wanted)).unwrap_or(1)));
        let has_text = source.fields.iter().any(|(_, kind)| *kind == FieldType::Text);
        // Percentiles are exact as long as raw rows are there; where a part of them is gone, all are as near as sketches are.
        let exact = query.quantiles.is_empty() || extent.finest(from_ms) != Tier::Raw;
        let summaries_do = !has_text && exact && wish_step.is_some();
        let wish = Wish { from_ms, reach_ms, step_ms: wish_step, summaries_do };
        let tier = tiers::choose(query.tier, &wish, &selection.hosts, &extent);
        let whole = tiers::single(from_ms, to_ms, tier, &extent);
        if let (None, Tier::Raw) = (step_ms, whole.tier) {
            return Ok(Self { parts: vec![whole], step_ms: None });
        }
        // Rates compare neighbours, which must be of the same length.
        let parts = if query.rate { vec![whole] } else { tiers::plan(from_ms, to_ms, tier, &extent) };
        Ok(Self { parts, step_ms: step_ms.or(whole.tier.bucket_ms()) })
    }
}

impl PointSeries {
    fn find_gaps(&mut self, step_ms: Option<i64>) {
        let times = self.points.times();
        self.gaps = match (&self.points, step_ms) {
            (Points::Buckets(buckets), Some(step)) => {
                let counts: Vec<u64> = buckets.iter().map(|bucket| bucket.count).collect();
                gaps::between_buckets(&times, &counts, step)
            }
            _ => gaps::between_points(&times),
        };
    }

    /// Keeps the points that draw the line best; gaps stay between the points that are then neighbours.
    fn thin_out(&mut self, wanted: usize) {
        let Some(line) = self.points.line() else { return };
        let chosen = lttb::choose_within(&line, &self.gaps, wanted.max(2));
        let kept: Vec<lttb::Point> = chosen.iter().map(|index| line[*index]).collect();
        if let Points::Values(points) = &mut self.points {
            *points = chosen.iter().map(|index| points[*index].clone()).collect();
        } else {
            self.points = Points::Values(kept.iter().map(|(time, mean)| (*time, Value::Float(*mean))).collect());
        }
        let holds_gap = |before: i64, after: i64| {
            let first = self.gaps.partition_point(|gap| gap.0 < before);
            self.gaps.get(first).is_some_and(|gap| gap.1 <= after)
        };
        let pairs = kept.windows(2).map(|pair| (pair[0].0, pair[1].0));
        self.gaps = pairs.filter(|(before, after)| holds_gap(*before, *after)).collect();
    }
}

fn raw(source: &Source<'_>, fields: &[usize], query: &PointsQuery) -> Result<Vec<PointSeries>, QueryError> {
    if fields.is_empty() {
        return Ok(Vec::new());
    }
    let limit = query.line.map_or(Some(query.limit), |_| None);
    match (raw::read(source, fields, limit.map(NonZeroUsize::get))?, limit) {
        (Some(found), _) => Ok(found),
        (None, Some(limit)) => newest(source, fields, query, limit),
        (None, None) => Err(QueryError::TooLarge { limit: MAX_VALUES }),
    }
}

/// The newest points of each series, where there are too many of them all.
fn newest(
    source: &Source<'_>,
    fields: &[usize],
    query: &PointsQuery,
    limit: NonZeroUsize,
) -> Result<Vec<PointSeries>, QueryError> {
    let names: Vec<_> = fields.iter().map(|index| &source.fields[*index]).collect();
    let values: Vec<String> = names.iter().map(|(name, kind)| value::expression(&ident(name), *kind)).collect();
    let series = source.series_list();
    let rows = source.rows(source.selection.from_ms, source.selection.to_ms);
    // One point more than wanted tells that there are more.
    let within = names.iter().map(|(name, _)| format!("count({}) OVER _newest <= {limit} + 1", ident(name)));
    let within: Vec<String> = within.collect();
    let sql = format!(
        "SELECT {series}, epoch_ms(ts), {} FROM {rows}
         WINDOW _newest AS (PARTITION BY {series} ORDER BY ts DESC ROWS UNBOUNDED PRECEDING) QUALIFY {} ORDER BY {series}, ts",
        values.join(", "),
        within.join(" OR ")
    );
    let columns = names.iter().map(|(name, kind)| Column { field: name.clone(), kind: *kind, shape: Shape::Value });
    collect(source, &sql, columns.collect(), query, &mut |_, _| None)
}

/// Buckets of raw rows: integers and quantiles are exact.
fn exact_buckets(
    source: &Source<'_>,
    parts: &[TierPart],
    fields: &[usize],
    query: &PointsQuery,
    step_ms: i64,
) -> Result<Vec<PointSeries>, QueryError> {
    if fields.is_empty() {
        return Ok(Vec::new());
    }
    let (mut inner, mut outer, mut columns) = (String::new(), String::new(), Vec::new());
    for (index, (name, kind)) in fields.iter().map(|index| (index, &source.fields[*index])) {
        let column = value::expression(&ident(name), *kind);
        if *kind == FieldType::Text {
            inner.push_str(&format!(", arg_max({column}, ts) AS _t{index}"));
            outer.push_str(&format!(", _t{index}"));
            columns.push(Column { field: name.clone(), kind: *kind, shape: Shape::Value });
            continue;
        }
        inner.push_str(&format!(
            ", avg({column}) AS _m{index}, min({column}) AS _n{index}, max({column}) AS _x{index}, count({column}) AS _c{index}"
        ));
        outer.push_str(&format!(", _m{index}, _n{index}, _x{index}, _c{index}"));
        if !query.quantiles.is_empty() {
            inner.push_str(&format!(", quantile_cont({column}::DOUBLE, {:?}) AS _q{index}", query.quantiles));
            (1..=query.quantiles.len()).for_each(|place| outer.push_str(&format!(", _q{index}[{place}]")));
        }
        columns.push(Column {
            field: name.clone(),
            kind: *kind,
            shape: Shape::Bucket { quantiles: query.quantiles.len() },
        });
    }
    let (from_ms, to_ms) = (parts.first().map_or(0, |part| part.from_ms), parts.last().and_then(|part| part.to_ms));
    let (series, rows, bucket) = (source.series_list(), source.rows(from_ms, to_ms), bucket_sql(Some(step_ms)));
    let sql = format!(
        "SELECT {series}, _b{outer} FROM (SELECT {series}, {bucket} AS _b{inner} FROM {rows} GROUP BY ALL) ORDER BY {series}, _b"
    );
    collect(source, &sql, columns, query, &mut |_, _| None)
}

/// Buckets of summaries and of rows that are not rolled up.
fn summed_buckets(
    source: &Source<'_>,
    parts: &[TierPart],
    fields: &[usize],
    query: &PointsQuery,
    step_ms: i64,
) -> Result<Vec<PointSeries>, QueryError> {
    if fields.is_empty() {
        return Ok(Vec::new());
    }
    let (mut aggregates, mut columns, mut quantiles) = (String::new(), Vec::new(), Vec::new());
    for index in fields {
        aggregates.push_str(&format!(
            ", sum(_s{index}) / sum(_c{index}), min(_n{index}), max(_x{index}), sum(_c{index})::BIGINT"
        ));
        let field = source.fields[*index].0.clone();
        columns.push(Column { field, kind: FieldType::Float, shape: Shape::Bucket { quantiles: 0 } });
        quantiles.push(match &query.quantiles[..] {
            [] => Quantiles::new(),
            wanted => sketch::read(source, parts, *index, Some(step_ms), wanted)?,
        });
    }
    let (series, bucket) = (source.series_list(), bucket_sql(Some(step_ms)));
    let sql = format!(
        "SELECT {series}, {bucket} AS _b{aggregates} FROM {} GROUP BY {series}, _b ORDER BY {series}, _b",
        source.partials(parts)
    );
    let mut found = collect(source, &sql, columns, query, &mut |place, key| quantiles[place].remove(key))?;
    for series in &mut found {
        let kind = source.fields.iter().find(|(field, _)| *field == series.field).map(|(_, kind)| *kind);
        series.field_type = kind.unwrap_or(series.field_type);
    }
    Ok(found)
}

/// A field of a result: after the series and the time come each field's columns.
pub(super) struct Column {
    pub(super) field: Name,
    /// The type in which the values stand in the result.
    pub(super) kind: FieldType,
    pub(super) shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Value,
    /// Mean, smallest and largest value, count, and so many quantiles.
    Bucket {
        quantiles: usize,
    },
}

/// Looks up the quantiles of a column's bucket, where they are not in the result.
type Lookup<'l> = dyn FnMut(usize, &(Series, i64)) -> Option<Vec<f64>> + 'l;

/// Runs SQL whose result is ordered by series and time.
pub(super) fn collect(
    source: &Source<'_>,
    sql: &str,
    columns: Vec<Column>,
    query: &PointsQuery,
    quantiles: &mut Lookup<'_>,
) -> Result<Vec<PointSeries>, QueryError> {
    let mut statement = source.connection.prepare(sql).context("prepare points")?;
    let mut rows = statement.query([]).context("read points")?;
    let limit = query.line.map_or(query.limit.get(), |_| usize::MAX);
    let looked_up = !query.quantiles.is_empty();
    let mut collected = Collected { columns, limit, values: 0, done: Vec::new(), current: Vec::new() };
    let mut reader = SeriesReader::new(&source.tags);
    let first = reader.columns();
    while let Some(row) = rows.next().context("read points")? {
        let (series, changed) = reader.read(row)?;
        if changed {
            collected.begin(series);
        }
        collected.add(row, first, &mut |column, time| {
            if looked_up { quantiles(column, &(series.clone(), time)) } else { None }
        })?;
    }
    Ok(collected.finish())
}

/// Series in the order in which the result names them.
struct Collected {
    columns: Vec<Column>,
    limit: usize,
    values: usize,
    done: Vec<PointSeries>,
    /// The fields of the series that the result's rows belong to now.
    current: Vec<PointSeries>,
}

impl Collected {
    /// Adds a row's time and the columns of each field.
    fn add(
        &mut self,
        row: &Row<'_>,
        first: usize,
        quantiles: &mut dyn FnMut(usize, i64) -> Option<Vec<f64>>,
    ) -> Result<(), QueryError> {
        let time = row.get::<_, i64>(first).context("read a time")?;
        let mut at = first + 1;
        for (place, (series, column)) in self.current.iter_mut().zip(&self.columns).enumerate() {
            let taken = match (&mut series.points, column.shape) {
                (Points::Values(points), _) => {
                    let value = value::get(row, at, column.kind)?;
                    at += 1;
                    value.map(|value| points.push_back((time, value)))
                }
                (Points::Buckets(points), shape) => {
                    let bucket = bucket(row, at, column.kind, time)?;
                    at += 4;
                    let mut bucket = bucket;
                    if let Shape::Bucket { quantiles: count @ 1.. } = shape {
                        if let Some(bucket) = &mut bucket {
                            let read = (0..count).map(|index| row.get::<_, f64>(at + index).context("read a quantile"));
                            bucket.quantiles = read.collect::<Result<_, _>>()?;
                        }
                        at += count;
                    }
                    bucket.map(|mut bucket| {
                        if let Some(found) = quantiles(place, time) {
                            bucket.quantiles = bucket.within(found);
                        }
                        points.push_back(bucket);
                    })
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

    fn begin(&mut self, series: &Series) {
        self.done.append(&mut self.current);
        self.current.extend(self.columns.iter().map(|column| PointSeries {
            host: series.host.clone(),
            tags: series.tags.clone(),
            field: column.field.clone(),
            field_type: column.kind,
            rate: false,
            truncated: false,
            points: match column.shape {
                Shape::Value => Points::Values(VecDeque::new()),
                Shape::Bucket { .. } => Points::Buckets(VecDeque::new()),
            },
            gaps: Vec::new(),
        }));
    }

    fn finish(mut self) -> Vec<PointSeries> {
        self.done.append(&mut self.current);
        self.done.retain(|series| !series.points.is_empty());
        self.done
    }
}

impl Bucket {
    /// Quantiles of a sketch are as near as the sketch is fine; none is outside of the extremes.
    fn within(&self, quantiles: Vec<f64>) -> Vec<f64> {
        let (Some(min), Some(max)) = (self.min.number(), self.max.number()) else { return quantiles };
        quantiles.into_iter().map(|quantile| quantile.max(min).min(max)).collect()
    }
}

fn bucket(row: &Row<'_>, first: usize, kind: FieldType, time_ms: i64) -> Result<Option<Bucket>, LakeError> {
    let avg = row.get::<_, Option<f64>>(first).context("read a mean")?;
    let (min, max) = (value::get(row, first + 1, kind)?, value::get(row, first + 2, kind)?);
    let count = row.get::<_, Option<i64>>(first + 3).context("read a count")?.unwrap_or(0).unsigned_abs();
    let (Some(avg), Some(min), Some(max)) = (avg, min, max) else { return Ok(None) };
    Ok(Some(Bucket { time_ms, avg, min, max, count, quantiles: Vec::new() }))
}
