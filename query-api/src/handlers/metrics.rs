//! `GET /api/metrics/{host}`: points.

use std::{num::NonZeroUsize, time::Duration};

use axum::{Json, extract::State, http::Uri};
use plimsoll_lake::query::{Hosts, PointSeries, Points, PointsQuery, Selection, TierPart};
use plimsoll_nats::{HostId, Name};
use serde::Serialize;

use super::{
    EXPECTED_FIELDS, EXPECTED_MEASUREMENT, coarsest, interval::Interval, parse_fields, parse_host, parse_quantile,
    take_tier, unit_of,
};
use crate::{
    app::App,
    params::{Params, Segment},
    problem::ApiError,
    times::{EXPECTED_DURATION, parse_duration},
};

/// Points of a series unless the request says otherwise.
const DEFAULT_LIMIT: usize = 10_000;
/// Most points of a series that a request may ask for.
const MAX_LIMIT: usize = 1_000_000;
/// Most points of a line.
const MAX_LINE: usize = 100_000;
/// Most quantiles of a bucket.
const MAX_QUANTILES: usize = 8;

/// The points of a host's measurement.
#[derive(Debug, Serialize)]
pub struct MetricsAnswer {
    host: HostId,
    measurement: Name,
    from_ms: i64,
    to_ms: i64,
    step_ms: Option<i64>,
    complete: bool,
    tier: &'static str,
    tiers: Vec<TierPart>,
    series: Vec<SeriesAnswer>,
}

#[derive(Debug, Serialize)]
struct SeriesAnswer {
    unit: Option<String>,
    columns: Vec<String>,
    #[serde(flatten)]
    series: PointSeries,
}

struct Request {
    measurement: Name,
    interval: Interval,
    query: PointsQuery,
    tags: std::collections::BTreeMap<Name, String>,
    /// The names of the quantiles.
    quantiles: Vec<String>,
}

/// Answers with the points of a host's measurement.
pub async fn read(State(app): State<App>, Segment(host): Segment, uri: Uri) -> Result<Json<MetricsAnswer>, ApiError> {
    let Request { measurement, interval, query, tags, quantiles } = parse(&uri)?;
    let host = parse_host(&host)?;
    let selection = Selection {
        hosts: Hosts::from(host.clone()),
        measurement: measurement.clone(),
        from_ms: interval.from_ms,
        to_ms: interval.end(),
        tags,
    };
    let (fields, is_line) = (query.fields.clone(), query.line.is_some());
    let asked_ms = query.step.map(|step| i64::try_from(step.as_millis()).unwrap_or(i64::MAX));
    let current = app.feed.is_current();
    let (complete, tiers, step_ms, found) =
        match app.timed("metrics", app.reader.points(&app.tail, selection, query)).await {
            Ok(answer) if answer.host_known || app.knows_host(&host) => {
                (answer.complete, answer.tiers, answer.step_ms, answer.rows)
            }
            Ok(_) => return Err(ApiError::unknown_host(&host)),
            Err(error) => {
                app.empty_or(error, &host, fields.as_deref()).map(|()| (true, Vec::new(), asked_ms, Vec::new()))?
            }
        };
    let series = found.into_iter().map(|series| SeriesAnswer {
        unit: unit_of(&measurement, &series.field, series.rate),
        columns: columns(&series, step_ms.is_some() && !is_line, &quantiles),
        series,
    });
    Ok(Json(MetricsAnswer {
        series: series.collect(),
        host,
        measurement,
        from_ms: interval.from_ms,
        to_ms: interval.to_ms,
        step_ms,
        complete: complete && current,
        tier: coarsest(&tiers),
        tiers,
    }))
}

fn columns(series: &PointSeries, bucketed: bool, quantiles: &[String]) -> Vec<String> {
    let names: &[&str] = match (&series.points, bucketed) {
        (Points::Buckets(_), _) => &["time_ms", "avg", "min", "max", "count"],
        (Points::Values(_), true) => &["time_ms", "last"],
        (Points::Values(_), false) => &["time_ms", "value"],
    };
    let quantiles = if matches!(series.points, Points::Buckets(_)) && !series.rate { quantiles } else { &[] };
    names.iter().map(|name| (*name).to_owned()).chain(quantiles.iter().cloned()).collect()
}

fn parse(uri: &Uri) -> Result<Request, ApiError> {
    let mut params = Params::of(uri);
    let measurement = params.required("measurement", EXPECTED_MEASUREMENT, |text| Name::parse(text).ok());
    let fields = params.optional("field", EXPECTED_FIELDS, parse_fields);
    let interval = Interval::take(&mut params);
    let step = params.optional("step", EXPECTED_DURATION, parse_duration);
    let limit = params.optional("limit", "a number of points a series from 1 to 1000000", |text| {
        text.parse().ok().filter(|limit: &NonZeroUsize| limit.get() <= MAX_LIMIT)
    });
    let limit = limit.unwrap_or(NonZeroUsize::new(DEFAULT_LIMIT).expect("10000 is not 0"));
    let line = params.optional("points", "a number of points from 3 to 100000", |text| {
        text.parse().ok().filter(|points: &NonZeroUsize| (3..=MAX_LINE).contains(&points.get()))
    });
    let quantiles = params.optional("quantile", "percentiles joined by commas, such as `p50,p95,p99`", parse_quantiles);
    let rate = params.optional("rate", "`true` or `false`", |text| text.parse().ok()).unwrap_or(false);
    let tier = take_tier(&mut params);
    let tags = params.tags();
    if line.is_some() && step.is_some() {
        params.wrong("points", "either `points` or `step`");
    }
    if quantiles.is_some() && (step.is_none() || rate) {
        params.wrong("quantile", "a `step`, and no `rate`: quantiles are those of the values in a bucket");
    }
    if let (Some(step), Some(interval)) = (step, interval) {
        check_buckets(&mut params, step, interval, limit);
    }
    params.finish()?;
    let (quantiles, numbers) = quantiles.unwrap_or_default().into_iter().unzip();
    match (measurement, interval) {
        (Some(measurement), Some(interval)) => {
            let query = PointsQuery { fields, step, limit, quantiles: numbers, rate, line, tier };
            Ok(Request { measurement, interval, query, tags, quantiles })
        }
        _ => Err(ApiError::parameters(Vec::new())),
    }
}

/// Names and numbers of quantiles, each once.
fn parse_quantiles(text: &str) -> Option<Vec<(String, f64)>> {
    let mut quantiles: Vec<(String, f64)> = Vec::new();
    for name in text.split(',').map(str::trim) {
        let quantile = parse_quantile(name)?;
        if !quantiles.iter().any(|(known, _)| known == name) {
            quantiles.push((name.to_owned(), quantile));
        }
    }
    (quantiles.len() <= MAX_QUANTILES).then_some(quantiles)
}

fn check_buckets(params: &mut Params, step: Duration, interval: Interval, limit: NonZeroUsize) {
    let length = Duration::from_millis(interval.to_ms.abs_diff(interval.from_ms));
    let buckets = length.as_millis().div_ceil(step.as_millis().max(1));
    if buckets > limit.get() as u128 {
        let least = length.as_millis().div_ceil(limit.get() as u128);
        params.wrong(
            "step",
            format!("at least {least}ms: this one makes {buckets} buckets of the interval, and the limit is {limit}"),
        );
    }
}
