//! `GET /api/events`: what happened to hosts.

use std::num::NonZeroUsize;

use axum::{Json, extract::State, http::Uri};
use plimsoll_nats::{
    HostId,
    dead::chain,
    event::{EventKind, HostEvent},
};
use serde::Serialize;

use super::interval::Interval;
use crate::{
    app::App,
    events::{self, EventsError, EventsQuery},
    params::Params,
    problem::ApiError,
    times::rfc3339,
};

/// Events unless the request says otherwise.
const DEFAULT_LIMIT: usize = 100;
/// Most events that a request may ask for.
const MAX_LIMIT: usize = 10_000;
/// How far back an answer goes when nobody says: events are few.
const DEFAULT_LENGTH_MS: i64 = 24 * 3_600_000;

/// Events, newest first.
#[derive(Debug, Serialize)]
pub struct EventsAnswer {
    from_ms: i64,
    to_ms: i64,
    truncated: bool,
    events: Vec<EventAnswer>,
}

#[derive(Debug, Serialize)]
struct EventAnswer {
    time: Option<String>,
    #[serde(flatten)]
    event: HostEvent,
}

/// Answers with the newest events of all hosts, or of one host or kind.
pub async fn list(State(app): State<App>, uri: Uri) -> Result<Json<EventsAnswer>, ApiError> {
    let (interval, query) = parse(&uri)?;
    if !app.client.is_connected() {
        return Err(ApiError::broker_away());
    }
    let found = events::read(&app.client, &query).await.map_err(|error| away(&error))?;
    let answer = |event: HostEvent| EventAnswer { time: rfc3339(event.time_ms), event };
    Ok(Json(EventsAnswer {
        from_ms: interval.from_ms,
        to_ms: interval.to_ms,
        truncated: found.truncated,
        events: found.events.into_iter().map(answer).collect(),
    }))
}

fn away(error: &EventsError) -> ApiError {
    tracing::warn!(error = %chain(error), "events cannot be read");
    ApiError::broker_away()
}

fn parse(uri: &Uri) -> Result<(Interval, EventsQuery), ApiError> {
    let mut params = Params::of(uri);
    let host = params.optional("host", "a host: see /api/clients", |text| HostId::parse(text).ok());
    let kind = params.optional("kind", &expected_kind(), EventKind::parse);
    let interval = Interval::take_or(&mut params, DEFAULT_LENGTH_MS);
    let limit = params.optional("limit", &format!("a number from 1 to {MAX_LIMIT}"), |text| {
        text.parse().ok().map(NonZeroUsize::get).filter(|limit| *limit <= MAX_LIMIT)
    });
    params.finish()?;
    let Some(interval) = interval else { return Err(ApiError::parameters(Vec::new())) };
    let query = EventsQuery {
        host,
        kind,
        from_ms: interval.from_ms,
        to_ms: interval.end(),
        limit: limit.unwrap_or(DEFAULT_LIMIT),
    };
    Ok((interval, query))
}

fn expected_kind() -> String {
    let names: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
    format!("one of {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_names_every_kind() {
        let reference = include_str!("../../../docs/api.md");
        let missing = EventKind::ALL.iter().filter(|kind| !reference.contains(&format!("`{kind}`")));
        assert_eq!(missing.collect::<Vec<_>>(), [&EventKind::Reboot; 0]);
    }
}
