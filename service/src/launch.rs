//! The `main` that all services share.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use crate::{
    EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE,
    config::{self, Validate},
    signals,
    telemetry::{self, LogFormat},
};

/// Longest wait for blocking work, such as a query of a store that does not answer, once the service has ended.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same after a second Ctrl-C.
const HASTE: Duration = Duration::from_secs(1);

/// The threads on which a service's tasks run. Blocking work has others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// One: for a service that has next to nothing to do, since each hand-over from one thread to another costs more than that.
    One,
    /// One for each core.
    PerCore,
}

/// The flags of every service.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CommonArgs {
    /// Configuration file in TOML; variables PLIMSOLL_… override it
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines look; what is logged is set by the variable PLIMSOLL_LOG, default info
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Sets up logging, reads the configuration, runs the service on a thread a core until a signal, and turns the outcome into an exit
/// code.
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
    launch_on(Threads::PerCore, service, sections, args, run)
}

/// [`launch`] on other threads.
pub fn launch_on<C, E, R>(
    threads: Threads,
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
    block_on_threads(threads, |shutdown| run(config, shutdown))
}

/// Runs a service on a runtime with a thread a core until it ends, handing it the token that a signal cancels.
///
/// A second Ctrl-C drops the service where it stands and yields [`EXIT_INTERRUPTED`]. Blocking work that is still under way is
/// left behind after a few seconds.
pub fn block_on<E, R>(run: impl FnOnce(CancellationToken) -> R) -> ExitCode
where
    E: std::error::Error + 'static,
    R: Future<Output = Result<(), E>>,
{
    block_on_threads(Threads::PerCore, run)
}

fn block_on_threads<E, R>(threads: Threads, run: impl FnOnce(CancellationToken) -> R) -> ExitCode
where
    E: std::error::Error + 'static,
    R: Future<Output = Result<(), E>>,
{
    raise_descriptor_limit();
    let runtime = match threads.runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, EXIT_FAILURE),
    };
    let outcome = runtime.block_on(async {
        let signals = signals::listen().map_err(Outcome::Signals)?;
        tokio::select! {
            biased;
            () = signals.at_once.cancelled() => Err(Outcome::Interrupted),
            ended = run(signals.shutdown) => ended.map_err(Outcome::Service),
        }
    });
    end(runtime, if matches!(outcome, Err(Outcome::Interrupted)) { HASTE } else { PATIENCE });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Outcome::Interrupted) => ExitCode::from(EXIT_INTERRUPTED),
        Err(Outcome::Signals(error)) => fail(&error, EXIT_FAILURE),
        Err(Outcome::Service(error)) => fail(&error, EXIT_FAILURE),
    }
}

impl Threads {
    fn runtime(self) -> std::io::Result<Runtime> {
        match self {
            Self::One => Builder::new_current_thread().enable_all().build(),
            Self::PerCore => Builder::new_multi_thread().enable_all().build(),
        }
    }
}

/// Lets the process open as many files and connections as it is allowed to, instead of the few that shells give by default.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(error = %error, "failed to raise the limit of open files, going on with {:?}", limit.current);
    }
}

/// Drops the tasks, and with them the child processes that they own, and waits for blocking work no longer than `patience`.
fn end(runtime: Runtime, patience: Duration) {
    let started = Instant::now();
    runtime.shutdown_timeout(patience);
    if started.elapsed() >= patience {
        tracing::warn!("blocking work did not end within {} s and is cut off", patience.as_secs());
    }
}

enum Outcome<E> {
    Interrupted,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_may_open_as_many_files_as_the_hard_limit_allows() {
        let limit = getrlimit(Resource::Nofile);
        let few = limit.maximum.map(|maximum| maximum / 2);
        setrlimit(Resource::Nofile, Rlimit { current: few, ..limit }).expect("lowered");
        block_on(async |_| {
            assert_eq!(getrlimit(Resource::Nofile).current, limit.maximum);
            Ok::<_, std::io::Error>(())
        });
    }

    #[test]
    fn blocking_work_that_hangs_does_not_keep_the_process() {
        let (started, hang) = (Instant::now(), Duration::from_secs(60));
        for threads in [Threads::One, Threads::PerCore] {
            block_on_threads(threads, async |_| {
                tokio::task::spawn_blocking(move || std::thread::sleep(hang));
                Ok::<_, std::io::Error>(())
            });
        }
        assert!(started.elapsed() < hang / 2, "{:?}", started.elapsed());
    }
}
