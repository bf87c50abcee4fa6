//! Finds out when a first sample can be queried: by querying.

use std::{net::SocketAddr, time::Duration};

use plimsoll_nats::HostId;
use tokio_util::sync::CancellationToken;

const AGAIN: Duration = Duration::from_millis(50);

/// Waits until the query API answers with a sample of `host`, or without a host until it is ready. Returns false when `shutdown`
/// comes first.
pub async fn first_answer(http: SocketAddr, host: Option<&HostId>, shutdown: &CancellationToken) -> bool {
    let url = match host {
        Some(host) => format!("http://{http}/api/stats/{host}?measurement=memory&from=-5m"),
        None => format!("http://{http}/readyz"),
    };
    let Ok(client) = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build() else {
        return false;
    };
    loop {
        if let Ok(response) = client.get(&url).send().await
            && response.status().is_success()
            && (host.is_none() || has_series(response).await)
        {
            return true;
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return false,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn has_series(response: reqwest::Response) -> bool {
    let Ok(answer) = response.json::<serde_json::Value>().await else { return false };
    answer["series"].as_array().is_some_and(|series| !series.is_empty())
}
