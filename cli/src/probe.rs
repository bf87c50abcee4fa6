//! Finds out when a first sample can be queried: by querying.

use std::{net::SocketAddr, time::Duration};

use plimsoll_nats::HostId;
use reqwest::Client;
use tokio_util::sync::CancellationToken;

const AGAIN: Duration = Duration::from_millis(50);

/// A first sample that is waited for.
#[derive(Debug)]
pub struct Awaited {
    /// The host that sends it.
    pub host: HostId,
    /// Unix time in ms from which on it was taken: what an earlier start has stored does not count.
    pub since_ms: i64,
    /// The measurements that it may be of.
    pub measurements: Vec<&'static str>,
}

/// Waits until the query API answers with an awaited sample, or without one until it is ready. Returns false when `shutdown`
/// comes first.
pub async fn first_answer(http: SocketAddr, awaited: Option<&Awaited>, shutdown: &CancellationToken) -> bool {
    let Ok(client) = Client::builder().no_proxy().timeout(Duration::from_secs(5)).build() else { return false };
    let answers = async || match awaited {
        Some(awaited) => has_sample(&client, http, awaited).await,
        None => get(&client, &format!("http://{http}/readyz")).await.is_some(),
    };
    let answered = async {
        while !answers().await {
            tokio::time::sleep(AGAIN).await;
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => false,
        () = answered => true,
    }
}

async fn has_sample(client: &Client, http: SocketAddr, awaited: &Awaited) -> bool {
    for measurement in &awaited.measurements {
        let url =
            format!("http://{http}/api/stats/{}?measurement={measurement}&from={}", awaited.host, awaited.since_ms);
        let Some(response) = get(client, &url).await else { continue };
        let Ok(answer) = response.json::<serde_json::Value>().await else { continue };
        if answer["series"].as_array().is_some_and(|series| !series.is_empty()) {
            return true;
        }
    }
    false
}

async fn get(client: &Client, url: &str) -> Option<reqwest::Response> {
    client.get(url).send().await.ok().filter(|response| response.status().is_success())
}
