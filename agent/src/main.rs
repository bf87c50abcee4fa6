//! The agent's program.

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand, error::ErrorKind};
use plimsoll_agent::{AgentConfig, AgentError, once};
use plimsoll_service::{
    EXIT_FAILURE, EXIT_USAGE,
    launch::{CommonArgs, fail, launch},
    telemetry,
};

const KEYS: &str = "\
Configuration keys, with their defaults, and the variables that override them:
  host = <host name>           PLIMSOLL_AGENT__HOST          id of this host, of A-Z a-z 0-9 _ -
  interval = \"1s\"              PLIMSOLL_AGENT__INTERVAL      time between samples, 100ms to 1h
  buffer_bytes = 67108864      PLIMSOLL_AGENT__BUFFER_BYTES  kept in memory while the broker is away
  [collectors.<name>]          name: cpu memory load filesystem diskio network temperature
  enabled = true               PLIMSOLL_AGENT__COLLECTORS__<NAME>__ENABLED
  interval = <interval>        PLIMSOLL_AGENT__COLLECTORS__<NAME>__INTERVAL
  [nats]
  url = \"nats://127.0.0.1:4222\"  PLIMSOLL_NATS__URL          addresses of the broker, separated by commas
  user, password               PLIMSOLL_NATS__USER, PLIMSOLL_NATS__PASSWORD
  password_file                PLIMSOLL_NATS__PASSWORD_FILE
  credentials_file             PLIMSOLL_NATS__CREDENTIALS_FILE
  replicas = 1                 PLIMSOLL_NATS__REPLICAS           of streams that this agent is first to need
  metrics_max_bytes = 10737418240  PLIMSOLL_NATS__METRICS_MAX_BYTES

What is logged, to standard error: PLIMSOLL_LOG, default info.
Exit codes: 0 after SIGINT or SIGTERM, 64 for a wrong configuration or command line, 70 for any other failure.";

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
        None => launch::<AgentConfig, AgentError, _>("agent", &["nats"], &args.common, plimsoll_agent::run),
        Some(Command::Once { collectors }) => {
            telemetry::init(args.common.log_format);
            print_once(&collectors)
        }
    }
}

fn print_once(collectors: &[String]) -> ExitCode {
    let kinds = match once::select(collectors) {
        Ok(kinds) => kinds,
        Err(error) => return fail(&error, EXIT_USAGE),
    };
    match writeln!(std::io::stdout(), "{:#}", once::sample(&kinds)) {
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
