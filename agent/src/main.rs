//! The agent's program.

use std::{io::Write as _, path::Path, process::ExitCode};

use clap::{Parser, Subcommand, error::ErrorKind};
use plimsoll_agent::{AgentConfig, AgentError, check, context::Context, once, update};
use plimsoll_service::{
    EXIT_FAILURE, EXIT_USAGE, config,
    launch::{CommonArgs, Threads, fail, launch_on},
    telemetry,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const KEYS: &str = concat!(
    "The configuration file (--config), with every key:\n\n",
    include_str!("../../docs/agent.example.toml"),
    "
Exit codes: 0 after SIGINT or SIGTERM, 64 for a wrong configuration or command line, 70 otherwise;
of `check` 0 where every collector works or has nothing to tell, 1 where one fails"
);

/// Of `check`, when a collector fails.
const EXIT_FAILING: u8 = 1;

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
        /// Collectors to read; all that are switched on when none is named
        #[arg(value_name = "COLLECTOR")]
        collectors: Vec<String>,
    },
    /// Tell which collectors work on this host and why others do not, and whether the broker can be reached
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
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
        Some(command) => {
            telemetry::init(args.common.log_format);
            match config::load("agent", &["nats"], args.common.config.as_deref()) {
                Ok(config) => command.run(&config, args.common.config.as_deref()),
                Err(error) => fail(&error, EXIT_USAGE),
            }
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
    let code = launch_on::<AgentConfig, AgentError, _>(Threads::One, "agent", &["nats"], common, |config, shutdown| {
        update::updater::run(config, staged.clone(), shutdown)
    });
    if staged.is_cancelled() { update::launch::restart(program) } else { code }
}

impl Command {
    fn run(self, config: &AgentConfig, file: Option<&Path>) -> ExitCode {
        match self {
            Self::Once { collectors } => match once::select(&collectors, config) {
                Ok(kinds) => print(format_args!("{:#}\n", once::sample(&kinds, &Context::of(config))), 0),
                Err(error) => fail(&error, EXIT_USAGE),
            },
            Self::Update { check } => match update::command::run(config, check) {
                Ok(text) => print(format_args!("{text}\n"), 0),
                Err(error) => fail(&error, EXIT_FAILURE),
            },
            Self::Check { json } => {
                let report = check::run(config, file);
                let code = if report.is_good() { 0 } else { EXIT_FAILING };
                if json {
                    print(format_args!("{:#}\n", json!(report)), code)
                } else {
                    print(format_args!("{report}"), code)
                }
            }
        }
    }
}

/// Prints what was asked for. Returns `code` unless nobody takes it.
fn print(text: std::fmt::Arguments<'_>, code: u8) -> ExitCode {
    match write!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::from(code),
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
