//! The query service as a program of its own.

use std::process::ExitCode;

use clap::Parser;
use plimsoll_query_api::QueryApiConfig;
use plimsoll_service::launch::{CommonArgs, launch};

/// Answers queries about samples, hosts and alerts over HTTP and WebSocket.
#[derive(Debug, Parser)]
#[command(name = "plimsoll-query-api", version, after_help = KEYS)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

const KEYS: &str = "\
Keys of the configuration file, their variables and defaults:
  http              PLIMSOLL_QUERY_API__HTTP             127.0.0.1:8080
  allowed_hosts     PLIMSOLL_QUERY_API__ALLOWED_HOSTS    [] (names in the header Host, separated by commas,
                                                         beside IP addresses and localhost)
  tail_max_bytes    PLIMSOLL_QUERY_API__TAIL_MAX_BYTES   268435456 (256 MiB)
  query_timeout     PLIMSOLL_QUERY_API__QUERY_TIMEOUT    30s
  connections       PLIMSOLL_QUERY_API__CONNECTIONS      4
  publish_metrics   PLIMSOLL_QUERY_API__PUBLISH_METRICS  true (whether it publishes the measurement `plimsoll` about itself)
  nats.url          PLIMSOLL_NATS__URL                   nats://127.0.0.1:4222
  lake.catalog      PLIMSOLL_LAKE__CATALOG               sqlite:./data/lake/catalog.sqlite
  lake.data_path    PLIMSOLL_LAKE__DATA_PATH             ./data/lake/data

There is no authentication yet: whoever reaches the HTTP address may read everything and change alert rules.";

fn main() -> ExitCode {
    let args = Args::parse();
    launch::<QueryApiConfig, _, _>("query_api", &["nats", "lake"], &args.common, plimsoll_query_api::run)
}
