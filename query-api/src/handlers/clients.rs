//! `GET /api/clients`: the hosts.

use std::collections::BTreeMap;

use axum::{Json, extract::State, http::Uri};
use plimsoll_nats::{
    HostId,
    host::{HostRecord, Inventory},
    now_ms,
};
use serde::Serialize;

use crate::{app::App, params::Params, problem::ApiError, times::rfc3339};

/// How often an agent is taken to write its record, where the host has none, in ms.
const DEFAULT_HEARTBEAT_MS: i64 = 30_000;

/// All hosts by id.
#[derive(Debug, Serialize)]
pub struct ClientsAnswer {
    clients: Vec<ClientAnswer>,
}

/// A host.
#[derive(Debug, PartialEq, Serialize)]
struct ClientAnswer {
    host: HostId,
    online: bool,
    last_seen: Option<String>,
    last_seen_ms: i64,
    agent_version: Option<String>,
    inventory: Option<Inventory>,
}

/// Answers with all hosts that have a record or have sent a sample since the service started.
pub async fn list(State(app): State<App>, uri: Uri) -> Result<Json<ClientsAnswer>, ApiError> {
    Params::of(&uri).finish()?;
    let now = now_ms();
    let mut hosts: BTreeMap<HostId, (i64, Option<HostRecord>)> =
        app.feed.last_seen().into_iter().map(|(host, seen)| (host, (seen, None))).collect();
    for record in app.hosts.values() {
        let entry = hosts.entry(record.host.clone()).or_insert((record.last_seen_ms, None));
        entry.0 = entry.0.max(record.last_seen_ms);
        entry.1 = Some(record);
    }
    let clients = hosts.into_iter().map(|(host, (last_seen_ms, record))| client(host, last_seen_ms, record, now));
    Ok(Json(ClientsAnswer { clients: clients.collect() }))
}

fn client(host: HostId, last_seen_ms: i64, record: Option<HostRecord>, now: i64) -> ClientAnswer {
    let heartbeat = record.as_ref().map_or(DEFAULT_HEARTBEAT_MS, |record| record.heartbeat_ms);
    let (agent_version, inventory) = record.map(|record| (record.agent_version, record.inventory)).unzip();
    ClientAnswer {
        host,
        online: now.saturating_sub(last_seen_ms) <= heartbeat.saturating_mul(3),
        last_seen: rfc3339(last_seen_ms),
        last_seen_ms,
        agent_version,
        inventory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_online_for_three_heartbeats() {
        let host = HostId::parse("h").expect("host");
        let online =
            |record: Option<HostRecord>, age: i64| client(host.clone(), 1_000_000, record, 1_000_000 + age).online;
        assert!(online(None, 90_000) && !online(None, 90_001));
        let record = HostRecord {
            host: host.clone(),
            last_seen_ms: 0,
            heartbeat_ms: 1000,
            agent_version: "1".to_owned(),
            inventory: Inventory::default(),
        };
        assert!(online(Some(record.clone()), 3000) && !online(Some(record), 3001));
    }
}
