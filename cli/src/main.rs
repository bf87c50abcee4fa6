//! The `plimsoll` binary: everything in one process.

mod broker;
mod data_dir;
mod drain;
mod probe;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use plimsoll_service::{EXIT_USAGE, launch, telemetry};

use crate::up::UpArgs;

/// Watches servers: one-second samples, SQL history, alerts, and live queries over HTTP
#[derive(Debug, Parser)]
#[command(name = "plimsoll", version, arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run broker, agent, ingest, alert worker and query API in one process
    Up(Box<UpArgs>),
}

fn main() -> ExitCode {
    let Command::Up(args) = Args::parse().command;
    telemetry::init(args.common.log_format);
    match up::configure(&args) {
        Ok(config) => launch::block_on(|shutdown| up::run(*args, config, shutdown)),
        Err(error) => launch::fail(&error, EXIT_USAGE),
    }
}
