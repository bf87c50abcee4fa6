//! Plimsoll as its users ask it: query-api over HTTP, beside a broker whose streams are empty.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use plimsoll_lake::LakeConfig;
use plimsoll_nats::server::{Server, ServerConfig};
use reqwest::{Client, Url};
use serde_json::Value;

use super::{
    CompareError,
    plimsoll::beside,
    process::{Process, free_port},
    queries::{Answer, Api, Query},
    times::{REPEATS, Times, median},
};

const NAME: &str = "plimsoll-query-api";
/// Longest wait until the lake is attached and the streams are read.
const READY: Duration = Duration::from_secs(60);

/// A running query-api.
struct QueryApi {
    process: Process,
    client: Client,
    base: String,
}

/// Asks a query of a lake in a new process, and then again and again.
pub(super) async fn ask(folder: &Path, query: &Query) -> Result<(Answer, Times), CompareError> {
    let server = ServerConfig {
        port: None,
        store_dir: folder.join("asked-broker"),
        run_dir: folder.join("asked-broker-run"),
        sync_always: false,
    };
    let broker = Server::start(&server).await?;
    let api = QueryApi::start(broker.url(), folder).await?;
    let (answer, first) = api.ask(&query.api).await?;
    let mut warm = Vec::new();
    for _ in 0..REPEATS {
        warm.push(api.ask(&query.api).await?.1);
    }
    let peak_bytes = api.process.usage()?.peak_bytes;
    api.process.stop().await?;
    broker.stop().await;
    Ok((answer, Times { first, warm: median(warm), peak_bytes }))
}

impl QueryApi {
    async fn start(broker: &str, folder: &Path) -> Result<Self, CompareError> {
        let (port, lake) = (free_port()?, LakeConfig::embedded(&folder.join("lake")));
        let variables = [
            ("PLIMSOLL_NATS__URL", broker.to_owned()),
            ("PLIMSOLL_QUERY_API__HTTP", format!("127.0.0.1:{port}")),
            ("PLIMSOLL_QUERY_API__QUERY_TIMEOUT", "5m".to_owned()),
            ("PLIMSOLL_QUERY_API__PUBLISH_METRICS", "false".to_owned()),
            ("PLIMSOLL_LAKE__CATALOG", lake.catalog),
            ("PLIMSOLL_LAKE__DATA_PATH", lake.data_path),
        ];
        let process = Process::start(NAME, &beside(NAME)?, [""; 0], &variables, &folder.join("query-api.log"))?;
        let client = Client::builder().no_proxy().build()?;
        let mut api = Self { process, client, base: format!("http://127.0.0.1:{port}") };
        let started = Instant::now();
        while api.text("/readyz", &[]).await.is_err() {
            api.process.check()?;
            if started.elapsed() > READY {
                return Err(CompareError::NotReady { name: NAME });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(api)
    }

    /// Asks; returns the answer and the time until its last byte was there.
    async fn ask(&self, api: &Api) -> Result<(Answer, Duration), CompareError> {
        let started = Instant::now();
        let text = self.text(&api.path, &api.parameters).await?;
        let took = started.elapsed();
        let answer: Value = serde_json::from_str(&text).map_err(CompareError::Answer)?;
        Ok((api.answer(&answer), took))
    }

    async fn text(&self, path: &str, parameters: &[(&str, String)]) -> Result<String, CompareError> {
        let url = Url::parse_with_params(&format!("{}{path}", self.base), parameters).expect("the address is valid");
        let response = self.client.get(url).send().await?;
        let status = response.status();
        let text = response.text().await?;
        if status.is_success() {
            return Ok(text);
        }
        Err(CompareError::Refused { name: NAME, status: status.as_u16(), said: text.chars().take(300).collect() })
    }
}
