//! `GET /api/fleet/{measurement}`: one field of many hosts.

use std::num::NonZeroUsize;

use axum::{Json, extract::State, http::Uri};
use plimsoll_lake::query::{
    Aggregate, FleetQuery, FleetRows, GroupKey, HostPattern, Hosts, QueryError, Ranking, Selection, Threshold,
    TierPart, is_counter,
};
use plimsoll_nats::{HostId, Name, catalog};
use serde::Serialize;

use super::{coarsest, interval::Interval, parse_quantile, take_tier, unit_of};
use crate::{
    app::App,
    params::{Params, Segment},
    problem::ApiError,
    times::{EXPECTED_DURATION, parse_duration},
};

/// Most groups that a ranking may ask for.
const MAX_TOP: usize = 1000;
/// Most buckets of a group.
const MAX_BUCKETS: u128 = 100_000;
const EXPECTED_HOSTS: &str = "host ids joined by commas, or one pattern with `*` and `?` such as `web-*`";
const EXPECTED_AGGREGATE: &str = "`avg`, `min`, `max`, `sum`, `count`, `last`, or a percentile such as `p95`";
const EXPECTED_KEYS: &str = "`host` and tags, joined by commas, such as `host,core`";
const EXPECTED_TOP: &str = "a number of groups from 1 to 1000";
const EXPECTED_THRESHOLD: &str = "a number";

/// A field of many hosts.
#[derive(Debug, Serialize)]
pub struct FleetAnswer {
    measurement: Name,
    field: Name,
    unit: Option<String>,
    from_ms: i64,
    to_ms: i64,
    step_ms: Option<i64>,
    complete: bool,
    tier: &'static str,
    tiers: Vec<TierPart>,
    columns: &'static [&'static str],
    #[serde(flatten)]
    rows: Rows,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Rows {
    Groups(FleetRows),
    Points(FleetRows),
}

struct Request {
    selection: Selection,
    interval: Interval,
    query: FleetQuery,
}

/// Answers with the groups' aggregates, or with how many groups are beyond a threshold.
pub async fn read(
    State(app): State<App>,
    Segment(measurement): Segment,
    uri: Uri,
) -> Result<Json<FleetAnswer>, ApiError> {
    let unknown = ApiError::unknown_path(uri.path());
    let measurement = Name::parse(&measurement).map_err(|_| unknown)?;
    let Request { selection, interval, query } = parse(measurement.clone(), &uri)?;
    let (field, rate, counts) = (query.field.clone(), query.rate, query.threshold.is_some());
    let is_count = query.aggregate == Aggregate::Count;
    let current = app.feed.is_current();
    let found = app.timed("fleet", app.reader.fleet(&app.tail, selection, query)).await;
    let (complete, tiers, step_ms, rows) = match found {
        Ok(answer) => (answer.complete, answer.tiers, answer.step_ms, answer.rows),
        Err(error) => (true, Vec::new(), None, nothing(error, &field, counts)?),
    };
    Ok(Json(FleetAnswer {
        unit: if is_count { Some("count".to_owned()) } else { unit_of(&measurement, &field, rate) },
        measurement,
        field,
        from_ms: interval.from_ms,
        to_ms: interval.to_ms,
        step_ms,
        complete: complete && current,
        tier: coarsest(&tiers),
        tiers,
        columns: if counts { &["time_ms", "groups", "of"] } else { &["time_ms", "value"] },
        rows: if counts { Rows::Points(rows) } else { Rows::Groups(rows) },
    }))
}

/// A built-in measurement that nobody has sent yet is empty, not unknown.
fn nothing(error: QueryError, field: &Name, counts: bool) -> Result<FleetRows, ApiError> {
    let QueryError::UnknownMeasurement { measurement } = &error else { return Err(error.into()) };
    let Some(spec) = catalog::measurement(measurement) else { return Err(error.into()) };
    if !spec.fields.iter().any(|known| known.name == &**field) {
        let known = spec.fields.iter().filter_map(|field| Name::parse(field.name).ok()).collect();
        return Err(QueryError::UnknownField { measurement: measurement.clone(), field: field.clone(), known }.into());
    }
    Ok(if counts { FleetRows::Counts(Vec::new()) } else { FleetRows::Groups(Vec::new()) })
}

fn parse(measurement: Name, uri: &Uri) -> Result<Request, ApiError> {
    let mut params = Params::of(uri);
    let field = params
        .required("field", "a field such as `usage_percent`: see /api/measurements", |text| Name::parse(text).ok());
    let aggregate = params.optional("agg", EXPECTED_AGGREGATE, parse_aggregate).unwrap_or(Aggregate::Avg);
    let by = params.optional("by", EXPECTED_KEYS, parse_keys).unwrap_or_default();
    let hosts = params.optional("hosts", EXPECTED_HOSTS, parse_hosts).unwrap_or(Hosts::All);
    let interval = Interval::take(&mut params);
    let step = params.optional("step", EXPECTED_DURATION, parse_duration);
    let parse_top = |text: &str| text.parse().ok().filter(|count: &NonZeroUsize| count.get() <= MAX_TOP);
    let top = params.optional("top", EXPECTED_TOP, parse_top);
    let bottom = params.optional("bottom", EXPECTED_TOP, parse_top);
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
    let above = params.optional("above", EXPECTED_THRESHOLD, number);
    let below = params.optional("below", EXPECTED_THRESHOLD, number);
    let rate = params.optional("rate", "`true` or `false`", |text| text.parse().ok()).unwrap_or(false);
    let tier = take_tier(&mut params);
    let tags = params.tags();
    if [top.is_some(), bottom.is_some(), above.is_some(), below.is_some()].iter().filter(|given| **given).count() > 1 {
        params.wrong("top", "only one of `top`, `bottom`, `above` and `below`");
    }
    if (above.is_some() || below.is_some()) && by.is_empty() {
        params.wrong("by", "what tells the groups apart that are counted, such as `host`");
    }
    if let Some(field) = field.as_ref().filter(|field| rate && !is_counter(&measurement, field)) {
        params.wrong("rate", format!("a counter, whose name ends in `_total`: `{field}` is none"));
    }
    if let (Some(step), Some(interval)) = (step, interval) {
        let length = u128::from(interval.to_ms.abs_diff(interval.from_ms));
        if length.div_ceil(step.as_millis().max(1)) > MAX_BUCKETS {
            params.wrong(
                "step",
                format!("at least {}ms: an interval may have {MAX_BUCKETS} buckets", length.div_ceil(MAX_BUCKETS)),
            );
        }
    }
    params.finish()?;
    let (Some(field), Some(interval)) = (field, interval) else { return Err(ApiError::parameters(Vec::new())) };
    let ranking = match (top, bottom) {
        (Some(count), _) => Some(Ranking { count, lowest: false }),
        (None, Some(count)) => Some(Ranking { count, lowest: true }),
        (None, None) => None,
    };
    let threshold = above.map(Threshold::Above).or(below.map(Threshold::Below));
    let selection = Selection { hosts, measurement, from_ms: interval.from_ms, to_ms: interval.end(), tags };
    Ok(Request {
        selection,
        interval,
        query: FleetQuery { field, aggregate, by, step, ranking, threshold, rate, tier },
    })
}

fn parse_aggregate(text: &str) -> Option<Aggregate> {
    Some(match text {
        "avg" => Aggregate::Avg,
        "min" => Aggregate::Min,
        "max" => Aggregate::Max,
        "sum" => Aggregate::Sum,
        "count" => Aggregate::Count,
        "last" => Aggregate::Last,
        text => Aggregate::Quantile(parse_quantile(text)?),
    })
}

fn parse_keys(text: &str) -> Option<Vec<GroupKey>> {
    let mut keys = Vec::new();
    for key in text.split(',').map(str::trim) {
        let key = if key == "host" { GroupKey::Host } else { GroupKey::Tag(Name::parse(key).ok()?) };
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Some(keys)
}

fn parse_hosts(text: &str) -> Option<Hosts> {
    if text.contains(['*', '?']) {
        return HostPattern::parse(text).map(Hosts::Matching);
    }
    text.split(',').map(|host| HostId::parse(host.trim()).ok()).collect::<Option<Vec<_>>>().map(Hosts::Listed)
}
