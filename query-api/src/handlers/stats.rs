//! `GET /api/stats/{host}`: statistics.

use axum::{Json, extract::State, http::Uri};
use plimsoll_lake::query::{FieldStats, Hosts, Selection, TierPart};
use plimsoll_nats::{HostId, Name};
use serde::Serialize;

use super::{
    EXPECTED_FIELDS, EXPECTED_MEASUREMENT, coarsest, interval::Interval, parse_fields, parse_host, take_tier, unit,
};
use crate::{
    app::App,
    params::{Params, Segment},
    problem::ApiError,
    times::rfc3339,
};

/// The statistics of a host's measurement.
#[derive(Debug, Serialize)]
pub struct StatsAnswer {
    host: HostId,
    measurement: Name,
    from_ms: i64,
    to_ms: i64,
    complete: bool,
    tier: &'static str,
    tiers: Vec<TierPart>,
    series: Vec<SeriesAnswer>,
}

#[derive(Debug, Serialize)]
struct SeriesAnswer {
    unit: Option<&'static str>,
    last_time: Option<String>,
    #[serde(flatten)]
    stats: FieldStats,
}

/// Answers with the statistics of a host's measurement.
pub async fn read(State(app): State<App>, Segment(host): Segment, uri: Uri) -> Result<Json<StatsAnswer>, ApiError> {
    let mut params = Params::of(&uri);
    let measurement = params.required("measurement", EXPECTED_MEASUREMENT, |text| Name::parse(text).ok());
    let fields = params.optional("field", EXPECTED_FIELDS, parse_fields);
    let interval = Interval::take(&mut params);
    let tier = take_tier(&mut params);
    let tags = params.tags();
    params.finish()?;
    let (Some(measurement), Some(interval)) = (measurement, interval) else {
        return Err(ApiError::parameters(Vec::new()));
    };
    let host = parse_host(&host)?;
    let (from_ms, to_ms) = (interval.from_ms, interval.end());
    let selection =
        Selection { hosts: Hosts::from(host.clone()), measurement: measurement.clone(), from_ms, to_ms, tags };
    let current = app.feed.is_current();
    let query = app.reader.stats(&app.tail, selection, fields.clone(), tier);
    let (complete, tiers, found) = match app.timed("stats", query).await {
        Ok(answer) if answer.host_known || app.knows_host(&host) => (answer.complete, answer.tiers, answer.rows),
        Ok(_) => return Err(ApiError::unknown_host(&host)),
        Err(error) => app.empty_or(error, &host, fields.as_deref()).map(|()| (true, Vec::new(), Vec::new()))?,
    };
    let series = found.into_iter().map(|stats| SeriesAnswer {
        unit: unit(&measurement, &stats.field),
        last_time: rfc3339(stats.last_time_ms),
        stats,
    });
    Ok(Json(StatsAnswer {
        series: series.collect(),
        host,
        measurement,
        from_ms,
        to_ms: interval.to_ms,
        complete: complete && current,
        tier: coarsest(&tiers),
        tiers,
    }))
}
