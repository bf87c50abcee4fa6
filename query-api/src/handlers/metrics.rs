//! `GET /api/metrics/{host}`: points.

use std::{num::NonZeroUsize, time::Duration};

use axum::{Json, extract::State, http::Uri};
use plimsoll_lake::query::{PointSeries, Points, PointsQuery, Selection};
use plimsoll_nats::{HostId, Name};
use serde::Serialize;

use super::{EXPECTED_FIELDS, EXPECTED_MEASUREMENT, interval::Interval, parse_fields, parse_host, unit};
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

/// The points of a host's measurement.
#[derive(Debug, Serialize)]
pub struct MetricsAnswer {
    host: HostId,
    measurement: Name,
    from_ms: i64,
    to_ms: i64,
    step_ms: Option<u64>,
    complete: bool,
    series: Vec<SeriesAnswer>,
}

#[derive(Debug, Serialize)]
struct SeriesAnswer {
    unit: Option<&'static str>,
    columns: &'static [&'static str],
    #[serde(flatten)]
    series: PointSeries,
}

struct Request {
    measurement: Name,
    interval: Interval,
    query: PointsQuery,
    tags: std::collections::BTreeMap<Name, String>,
}

/// Answers with the points of a host's measurement.
pub async fn read(State(app): State<App>, Segment(host): Segment, uri: Uri) -> Result<Json<MetricsAnswer>, ApiError> {
    let Request { measurement, interval, query, tags } = parse(&uri)?;
    let host = parse_host(&host)?;
    let selection = Selection {
        host: host.clone(),
        measurement: measurement.clone(),
        from_ms: interval.from_ms,
        to_ms: interval.end(),
        tags,
    };
    let (fields, step) = (query.fields.clone(), query.step);
    let current = app.feed.is_current();
    let (complete, found) = match app.timed("metrics", app.reader.points(&app.tail, selection, query)).await {
        Ok(answer) if answer.host_known || app.knows_host(&host) => (answer.complete, answer.rows),
        Ok(_) => return Err(ApiError::unknown_host(&host)),
        Err(error) => app.empty_or(error, &host, fields.as_deref()).map(|()| (true, Vec::new()))?,
    };
    let series = found.into_iter().map(|series| SeriesAnswer {
        unit: unit(&measurement, &series.field),
        columns: columns(&series, step.is_some()),
        series,
    });
    Ok(Json(MetricsAnswer {
        series: series.collect(),
        host,
        measurement,
        from_ms: interval.from_ms,
        to_ms: interval.to_ms,
        step_ms: step.map(|step| u64::try_from(step.as_millis()).unwrap_or(u64::MAX)),
        complete: complete && current,
    }))
}

fn columns(series: &PointSeries, bucketed: bool) -> &'static [&'static str] {
    match (&series.points, bucketed) {
        (Points::Buckets(_), _) => &["time_ms", "avg", "min", "max"],
        (Points::Values(_), true) => &["time_ms", "last"],
        (Points::Values(_), false) => &["time_ms", "value"],
    }
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
    let tags = params.tags();
    if let (Some(step), Some(interval)) = (step, interval) {
        check_buckets(&mut params, step, interval, limit);
    }
    params.finish()?;
    match (measurement, interval) {
        (Some(measurement), Some(interval)) => {
            Ok(Request { measurement, interval, query: PointsQuery { fields, step, limit }, tags })
        }
        _ => Err(ApiError::parameters(Vec::new())),
    }
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
