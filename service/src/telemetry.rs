//! Logging to standard error.

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Sends logs of `info` and above to standard error, or of what `PLIMSOLL_LOG` says (`debug`, `plimsoll_ingest=trace,warn`, …).
///
/// Does nothing when logging is already set up.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::builder()
        .with_env_var("PLIMSOLL_LOG")
        .with_default_directive(LevelFilter::INFO.into())
        .from_env_lossy()
        // The client logs each reconnect attempt as an event of its own.
        .add_directive("async_nats=warn".parse().expect("a valid directive"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
