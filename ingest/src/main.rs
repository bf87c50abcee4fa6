//! The `plimsoll-ingest` binary.

use std::process::ExitCode;

use clap::Parser;
use plimsoll_ingest::IngestConfig;
use plimsoll_service::launch::{CommonArgs, launch};

/// Moves samples from the stream into the lake, each exactly once
///
/// Run as many as you like: members share the stream's partitions, and one that dies is replaced within 10 seconds.
#[derive(Debug, Parser)]
#[command(name = "plimsoll-ingest", version, after_help = CONFIGURATION)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

const CONFIGURATION: &str = "\
Configuration (a TOML key, and the variable that overrides it):
  http             PLIMSOLL_INGEST__HTTP             Address of /healthz, /readyz, /metrics  [127.0.0.1:9301]
  commit_interval  PLIMSOLL_INGEST__COMMIT_INTERVAL  Longest time until a sample is committed  [60s]
  commit_rows      PLIMSOLL_INGEST__COMMIT_ROWS      Rows at which a commit is due earlier  [1000000]
  commit_bytes     PLIMSOLL_INGEST__COMMIT_BYTES     Bytes of memory for gathered messages at which a commit is due earlier; twice that is held at most  [268435456]
  publish_metrics  PLIMSOLL_INGEST__PUBLISH_METRICS  Whether it publishes the measurement `plimsoll` about itself  [true]
  [maintenance]: one member at a time makes rollups, deletes what is old, and merges small files
  enabled          PLIMSOLL_INGEST__MAINTENANCE__ENABLED   Whether this member takes part  [true]
  interval         PLIMSOLL_INGEST__MAINTENANCE__INTERVAL  Pause between two runs  [60s]
  keep_snapshots   …__KEEP_SNAPSHOTS                 How long former states of the lake can be read; at least 10m  [1h]
  keep_unused_files  …__KEEP_UNUSED_FILES            How long files stay that are not part of it any more, for those who read them  [1h]
  keep_orphans     …__KEEP_ORPHANS                   Age at which files that nobody knows are deleted  [1day]
  memory_limit     …__MEMORY_LIMIT                   Most memory that DuckDB takes for it besides  [512MB]
  [maintenance.retention]
  raw, minute, hour   …__RETENTION__RAW, …            How long samples, minutes and hours are kept; or forever  [7d, 90d, 730d]
  measurements.NAME   …                              The same for one measurement: { raw = '2d' }
  [nats]
  url              PLIMSOLL_NATS__URL                Addresses of the broker  [nats://127.0.0.1:4222]
  user, password, password_file, credentials_file    PLIMSOLL_NATS__USER, …
  replicas         PLIMSOLL_NATS__REPLICAS           Replicas of streams created by this service  [1]
  pull_bytes       PLIMSOLL_NATS__PULL_BYTES         Bytes of messages asked for at a time for each of the 16 partitions  [2097152]
  [lake]
  catalog          PLIMSOLL_LAKE__CATALOG            sqlite:<file> or postgres:<connection string>  [sqlite:./data/lake/catalog.sqlite]
  catalog_password, catalog_password_file            PLIMSOLL_LAKE__CATALOG_PASSWORD, …
  data_path        PLIMSOLL_LAKE__DATA_PATH          Folder or s3://bucket/prefix/  [./data/lake/data]
  memory_limit     PLIMSOLL_LAKE__MEMORY_LIMIT       Most memory that DuckDB takes  [1GB]
  temp_limit       PLIMSOLL_LAKE__TEMP_LIMIT         Most disk that DuckDB takes besides  [10GB]
  threads          PLIMSOLL_LAKE__THREADS            Threads that DuckDB uses; more of them take more processor time a value  [1]
  extensions_dir   PLIMSOLL_LAKE__EXTENSIONS_DIR     Folder of the DuckDB extensions
  [lake.s3]
  endpoint, access_key_id, secret_access_key, region, use_ssl, url_style    PLIMSOLL_LAKE__S3__ENDPOINT, …
  timeout          PLIMSOLL_LAKE__S3__TIMEOUT        Longest wait for an answer of the store, of four  [30s]";

fn main() -> ExitCode {
    let args = Args::parse();
    launch::<IngestConfig, _, _>("ingest", &["nats", "lake"], &args.common, plimsoll_ingest::run)
}
