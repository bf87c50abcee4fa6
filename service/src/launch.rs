//! The `main` that all services share.

use std::{path::PathBuf, process::ExitCode};

use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{
    EXIT_FAILURE, EXIT_USAGE,
    config::{self, Validate},
    signals,
    telemetry::{self, LogFormat},
};

/// The flags of every service.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CommonArgs {
    /// Configuration file in TOML; variables PLIMSOLL_… override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines look; what is logged is set by the variable PLIMSOLL_LOG, default info
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Sets up logging, reads the configuration, runs the service until a signal, and turns the outcome into an exit code.
///
/// A wrong configuration ends with [`EXIT_USAGE`] before anything is opened, an error of the service with [`EXIT_FAILURE`];
/// either is printed once, with its causes. See [`config::load`] for `service` and `sections`.
pub fn launch<C, E, R>(
    service: &str,
    sections: &[&str],
    args: &CommonArgs,
    run: impl FnOnce(C, CancellationToken) -> R,
) -> ExitCode
where
    C: DeserializeOwned + Validate,
    E: std::error::Error + 'static,
    R: Future<Output = Result<(), E>>,
{
    telemetry::init(args.log_format);
    let config = match config::load::<C>(service, sections, args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error, EXIT_USAGE),
    };
    block_on(|shutdown| run(config, shutdown))
}

/// Runs a service on a runtime of its own until it ends, handing it the token that a signal cancels.
pub fn block_on<E, R>(run: impl FnOnce(CancellationToken) -> R) -> ExitCode
where
    E: std::error::Error + 'static,
    R: Future<Output = Result<(), E>>,
{
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, EXIT_FAILURE),
    };
    let outcome = runtime.block_on(async {
        let shutdown = signals::shutdown_token().map_err(Outcome::Signals)?;
        run(shutdown).await.map_err(Outcome::Service)
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Outcome::Signals(error)) => fail(&error, EXIT_FAILURE),
        Err(Outcome::Service(error)) => fail(&error, EXIT_FAILURE),
    }
}

enum Outcome<E> {
    Signals(std::io::Error),
    Service(E),
}

/// Prints an error with its causes, each on a line, and yields the exit code.
#[expect(clippy::print_stderr, reason = "the last word of a process, for the one who started it")]
pub fn fail(error: &(dyn std::error::Error + 'static), code: u8) -> ExitCode {
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    ExitCode::from(code)
}
