//! The program `plimsoll-alert-worker`.

use std::process::ExitCode;

use clap::Parser;
use plimsoll_alert_worker::{
    AlertWorkerConfig,
    config::{SECTIONS, SERVICE},
};
use plimsoll_service::launch::{CommonArgs, launch};

/// Evaluates alert rules over samples as they come, and notifies
///
/// Any number of workers share the stream. Rules are the JSON documents of the bucket RULES. Notifications are delivered at
/// least once.
#[derive(Debug, Parser)]
#[command(version, after_long_help = CONFIGURATION)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

const CONFIGURATION: &str = "\
Configuration (key in the file, variable, default):
  http                   PLIMSOLL_ALERT_WORKER__HTTP       127.0.0.1:9302
      Where /healthz, /readyz and /metrics are served.
  publish_metrics        PLIMSOLL_ALERT_WORKER__PUBLISH_METRICS  true
      Whether it publishes the measurement `plimsoll` about itself.
  nats.url               PLIMSOLL_NATS__URL                nats://127.0.0.1:4222
      Addresses of the broker, separated by commas.
  nats.user              PLIMSOLL_NATS__USER               none
  nats.password          PLIMSOLL_NATS__PASSWORD           none
  nats.password_file     PLIMSOLL_NATS__PASSWORD_FILE      none
  nats.credentials_file  PLIMSOLL_NATS__CREDENTIALS_FILE   none
  nats.replicas          PLIMSOLL_NATS__REPLICAS           1
      Replicas of the streams and buckets that this service creates; in a cluster 3.
  nats.metrics_max_bytes PLIMSOLL_NATS__METRICS_MAX_BYTES  10737418240
      Size of the stream METRICS past which the oldest samples go.

Exit codes: 64 wrong configuration, 70 failed.";

fn main() -> ExitCode {
    let args = Args::parse();
    launch(SERVICE, SECTIONS, &args.common, |config: AlertWorkerConfig, shutdown| {
        plimsoll_alert_worker::run(config, shutdown)
    })
}
