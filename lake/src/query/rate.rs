//! Rates of counters.
//!
//! A counter rises from one value of its series to the next by their difference, or, where it has fallen, by the later value: it has
//! started anew from zero. That rise belongs to the later value's time, over the time since the earlier one. Across a pause longer than
//! 2.5 times the series' usual interval (its median distance) there is no rate.
//!
//! Of summaries, the largest values of buckets stand for the counter's values at the buckets' ends. A restart within a bucket is seen by its
//! lower maximum in the next one: what was counted between the last bucket's maximum and the restart, and in the bucket before it rose past
//! its old value again, is lost to the rate.

use plimsoll_nats::{
    Name,
    batch::FieldType,
    catalog::{self, FieldKind},
};

use super::{
    PointSeries, PointsQuery, QueryError,
    gaps::GAP_FACTOR,
    points::{Column, Shape, collect},
    source::Source,
    tiers::TierPart,
};
use crate::sql::ident;

/// How long before an interval the value may be that its first rate starts from, where rows stand as they were sampled.
const LOOK_BACK_MS: i64 = 5 * 60_000;
/// The same in buckets of summaries.
const LOOK_BACK_BUCKETS: i64 = 3;
/// What the names of counters end in that are not built in.
const COUNTER_SUFFIX: &str = "_total";

/// Whether a field counts up.
#[must_use]
pub fn is_counter(measurement: &Name, field: &Name) -> bool {
    let built_in = catalog::measurement(measurement);
    let spec = built_in.and_then(|spec| spec.fields.iter().find(|spec| spec.name == &**field));
    spec.map_or_else(|| field.ends_with(COUNTER_SUFFIX), |spec| spec.kind == FieldKind::Counter)
}

/// SQL of the rises of a counter, after a `WITH`: the tables `steps` with the series, `_t` (Unix ms), `_dt` (ms since the value before) and `_rise`,
/// each belonging to the selection's interval. One counter by the index of its field.
pub(super) fn steps_sql(source: &Source<'_>, part: &TierPart, index: usize) -> String {
    let (name, kind) = &source.fields[index];
    let series = source.series_list();
    let values = match part.tier.bucket_ms() {
        None => {
            let rows = source.rows(part.from_ms.saturating_sub(LOOK_BACK_MS), part.to_ms);
            let value = if *kind == FieldType::Integer { ident(name) } else { format!("{}::DOUBLE", ident(name)) };
            format!("SELECT {series}, epoch_ms(ts) AS _t, {value} AS _v FROM {rows} WHERE {} IS NOT NULL", ident(name))
        }
        Some(bucket) => {
            let from_ms = part.from_ms.saturating_sub(LOOK_BACK_BUCKETS * bucket);
            let earlier = TierPart { from_ms, ..*part };
            let partials = source.partials(&[earlier]);
            format!(
                "SELECT * FROM (SELECT {series}, epoch_ms(ts) // {bucket} * {bucket} AS _t, max(_x{index}) AS _v FROM {partials} GROUP BY ALL) \
                 WHERE _v IS NOT NULL"
            )
        }
    };
    let from_ms = part.from_ms;
    // Differences of integers are exact, also of those that no double holds.
    let difference =
        if *kind == FieldType::Integer && part.tier.bucket_ms().is_none() { "_v::HUGEINT - _p" } else { "_v - _p" };
    format!(
        "distances AS (
           SELECT *, _t - lag(_t) OVER w AS _dt, lag(_v) OVER w AS _p FROM ({values}) WINDOW w AS (PARTITION BY {series} ORDER BY _t, _v)
         ), usual AS (
           SELECT *, median(_dt) FILTER (WHERE _dt > 0) OVER (PARTITION BY {series}) AS _pause FROM distances
         ), steps AS (
           SELECT {series}, _t, _dt, CASE WHEN _v >= _p THEN ({difference})::DOUBLE ELSE greatest(_v::DOUBLE, 0) END AS _rise
           FROM usual WHERE _dt <= {GAP_FACTOR} * _pause AND _t >= {from_ms}
         )"
    )
}

/// Reads the rates of a counter: of each value, or in buckets.
pub(super) fn read(
    source: &Source<'_>,
    query: &PointsQuery,
    parts: &[TierPart],
    index: usize,
    step_ms: Option<i64>,
) -> Result<Vec<PointSeries>, QueryError> {
    let (Some(part), (field, _)) = (parts.first(), &source.fields[index]) else { return Ok(Vec::new()) };
    let (steps, series) = (steps_sql(source, part, index), source.series_list());
    let (select, shape) = match step_ms {
        None => (
            format!("SELECT {series}, _t, _rise * 1000 / _dt FROM steps WHERE _dt > 0 ORDER BY {series}, _t"),
            Shape::Value,
        ),
        Some(step) => {
            let each = "(_rise * 1000 / _dt) FILTER (WHERE _dt > 0)";
            let buckets = format!(
                "SELECT {series}, _t // {step} * {step} AS _b, sum(_rise) * 1000 / nullif(sum(_dt), 0), min{each}, max{each}, count(*) \
                 FROM steps GROUP BY {series}, _b ORDER BY {series}, _b"
            );
            (buckets, Shape::Bucket { quantiles: 0 })
        }
    };
    let columns = vec![Column { field: field.clone(), kind: FieldType::Float, shape }];
    let query = PointsQuery { quantiles: Vec::new(), ..query.clone() };
    let mut found = collect(source, &format!("WITH {steps} {select}"), columns, &query, &mut |_, _| None)?;
    found.iter_mut().for_each(|series| series.rate = true);
    Ok(found)
}
