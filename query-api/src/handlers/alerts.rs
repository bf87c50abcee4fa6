//! `GET /api/alerts`: where every alert stands.

use axum::{Json, extract::State, http::Uri};
use plimsoll_nats::{
    HostId, Name,
    alert::{AlertState, AlertStatus},
};
use serde::Serialize;

use crate::{app::App, params::Params, problem::ApiError, times::rfc3339};

const STATUSES: [AlertStatus; 5] =
    [AlertStatus::Inactive, AlertStatus::Pending, AlertStatus::Firing, AlertStatus::Resolved, AlertStatus::NoData];

/// Alerts by rule, host and series.
#[derive(Debug, Serialize)]
pub struct AlertsAnswer {
    alerts: Vec<AlertAnswer>,
}

#[derive(Debug, Serialize)]
struct AlertAnswer {
    status: AlertStatus,
    at: Option<String>,
    since: Option<String>,
    #[serde(flatten)]
    state: AlertState,
}

/// Answers with the states of all alerts, or of those of one status, host or rule.
pub async fn list(State(app): State<App>, uri: Uri) -> Result<Json<AlertsAnswer>, ApiError> {
    let mut params = Params::of(&uri);
    let status = params.optional("status", "one of inactive, pending, firing, resolved, no_data", |text| {
        STATUSES.into_iter().find(|status| status.as_str() == text)
    });
    let host = params.optional("host", "a host: see /api/clients", |text| HostId::parse(text).ok());
    let rule = params.optional("rule", "a rule: see /api/rules", |text| Name::parse(text).ok());
    params.finish()?;
    let states = app.alerts.values().into_iter().filter(|state| {
        let transition = &state.transition;
        status.is_none_or(|status| transition.to == status)
            && host.as_ref().is_none_or(|host| transition.series.host == *host)
            && rule.as_ref().is_none_or(|rule| transition.rule == *rule)
    });
    Ok(Json(AlertsAnswer { alerts: states.map(answer).collect() }))
}

fn answer(state: AlertState) -> AlertAnswer {
    AlertAnswer {
        status: state.transition.to,
        at: rfc3339(state.transition.at_ms),
        since: state.since_ms.and_then(rfc3339),
        state,
    }
}
