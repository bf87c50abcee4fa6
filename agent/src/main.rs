//! The agent's program.

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand, error::ErrorKind};
use plimsoll_agent::{AgentConfig, AgentError, context::Context, once, update};
use plimsoll_service::{
    EXIT_FAILURE, EXIT_USAGE, config,
    launch::{CommonArgs, fail, launch},
    telemetry,
};
use tokio_util::sync::CancellationToken;

const KEYS: &str = "\
Configuration keys and their defaults:
  host = <host name>        id of this host, of the characters A-Z a-z 0-9 _ -
  interval = \"1s\"           time between two samples, 100ms to 1h
  buffer_bytes = 67108864   memory for what the broker has not taken yet; the oldest goes first

  [collectors.<name>]       cpu, memory, load, filesystem, diskio, network, temperature
  enabled = true            whether it is read
  interval = <interval>     time between two samples of this one

  [nats]
  url = \"nats://127.0.0.1:4222\"   addresses of the broker, separated by commas
  user, password, password_file    where the broker asks for them
  credentials_file                 where the broker uses JWT
  replicas = 1                     of streams that this agent is the first to need
  metrics_max_bytes = 10737418240  size of the stream of samples, likewise

  [update]                  how the agent replaces itself; it does not unless url is set
  url                       where the newest release is described
  public_key                minisign key that releases are signed with
  interval = \"1day\"         time between two looks, 1s to 30d
  report_within = \"1m\"      how long a new release has to report before the old one comes back

Each key is also a variable, which overrides the file:
  PLIMSOLL_AGENT__HOST, PLIMSOLL_AGENT__INTERVAL, PLIMSOLL_AGENT__BUFFER_BYTES,
  PLIMSOLL_AGENT__COLLECTORS__CPU__ENABLED, PLIMSOLL_AGENT__COLLECTORS__CPU__INTERVAL,
  PLIMSOLL_NATS__URL, PLIMSOLL_NATS__USER, PLIMSOLL_NATS__PASSWORD_FILE and so on

Exit codes: 0 after SIGINT or SIGTERM, 64 for a wrong configuration or command line, 70 otherwise";

/// Samples this host each second and pushes the samples to a Plimsoll broker
#[derive(Debug, Parser)]
#[command(name = "plimsoll-agent", version, after_help = KEYS)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print one sample as JSON and end; needs no broker and takes a second
    Once {
        /// Collectors to read; all when none is named
        #[arg(value_name = "COLLECTOR")]
        collectors: Vec<String>,
    },
    /// Look for a newer release, verify it and have it tried at the agent's next start
    Update {
        /// Only tell whether there is one
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Nobody is left to tell when the terminal is gone.
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) };
        }
    };
    match args.command {
        None => run(&args.common),
        Some(Command::Once { collectors }) => {
            telemetry::init(args.common.log_format);
            print_once(&collectors)
        }
        Some(Command::Update { check }) => {
            telemetry::init(args.common.log_format);
            update_by_hand(&args.common, check)
        }
    }
}

/// Runs the agent, or a newer version in its place.
fn run(common: &CommonArgs) -> ExitCode {
    telemetry::init(common.log_format);
    let program = std::env::current_exe();
    if let Some(code) = update::launch::hand_over(common.config.as_deref()) {
        return code;
    }
    let staged = CancellationToken::new();
    let code = launch::<AgentConfig, AgentError, _>("agent", &["nats"], common, |config, shutdown| {
        update::updater::run(config, staged.clone(), shutdown)
    });
    if staged.is_cancelled() { update::launch::restart(program) } else { code }
}

fn update_by_hand(common: &CommonArgs, check: bool) -> ExitCode {
    let config = match config::load::<AgentConfig>("agent", &["nats"], common.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error, EXIT_USAGE),
    };
    match update::command::run(&config, check) {
        Ok(text) => print_line(&text),
        Err(error) => fail(&error, EXIT_FAILURE),
    }
}

fn print_line(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, EXIT_FAILURE),
    }
}

fn print_once(collectors: &[String]) -> ExitCode {
    let kinds = match once::select(collectors) {
        Ok(kinds) => kinds,
        Err(error) => return fail(&error, EXIT_USAGE),
    };
    match writeln!(std::io::stdout(), "{:#}", once::sample(&kinds, &Context::default())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, EXIT_FAILURE),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
