//! The agent's program.

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand, error::ErrorKind};
use plimsoll_agent::{AgentConfig, AgentError, context::Context, once};
use plimsoll_service::{
    EXIT_FAILURE, EXIT_USAGE,
    launch::{CommonArgs, fail, launch},
    telemetry,
};

const KEYS: &str = "\
Configuration keys and their defaults:
  host = <host name>        id of this host, of the characters A-Z a-z 0-9 _ -
  interval = \"1s\"           time between two samples, 100ms to 1h
  buffer_bytes = 67108864   memory for what the broker has not taken yet; the oldest goes first

  [collectors.<name>]       cpu, memory, load, filesystem, diskio, network, temperature
  enabled = true            whether it is read
  interval = <interval>     time between two samples of this one

  [[exec]]                  a command whose output is sampled; name and command = [\"/path\", \"argument\"] are needed
  interval = \"1m\", timeout = \"10s\", format = \"influx\" or \"json\"
  [[scrape]]                a Prometheus exporter; name and url are needed
  interval = \"15s\", timeout = \"10s\", words = 2, exclude = []
  [listen]                  sockets for samples of other programs; none unless named
  statsd_udp, statsd_socket, influx_udp, influx_socket
  interval = \"10s\", allow_remote = false

  [nats]
  url = \"nats://127.0.0.1:4222\"   addresses of the broker, separated by commas
  user, password, password_file    where the broker asks for them
  credentials_file                 where the broker uses JWT
  replicas = 1                     of streams that this agent is the first to need
  metrics_max_bytes = 10737418240  size of the stream of samples, likewise

Each key but those of [[exec]] and [[scrape]] is also a variable, which overrides the file:
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
