//! The `plimsoll` binary: everything in one process.

mod broker;
mod data_dir;
mod drain;
mod export;
mod import;
mod lake_config;
mod probe;
mod stop;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use plimsoll_service::{EXIT_USAGE, launch, telemetry};

use crate::{export::ExportArgs, import::ImportArgs, up::UpArgs};

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
    /// Put files into the lake: Parquet, CSV or Influx line protocol
    Import(Box<ImportArgs>),
    /// Write rows of the lake to files: Parquet, CSV or JSON lines
    Export(Box<ExportArgs>),
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Up(args) => {
            telemetry::init(args.common.log_format);
            match up::configure(&args) {
                Ok(config) => launch::block_on(|shutdown| up::run(*args, config, shutdown)),
                Err(error) => launch::fail(&error, EXIT_USAGE),
            }
        }
        Command::Import(args) => {
            telemetry::init(args.common.log_format);
            match import::configure(&args) {
                Ok(plan) => launch::block_on(|shutdown| import::run(plan, shutdown)),
                Err(error) => launch::fail(&error, EXIT_USAGE),
            }
        }
        Command::Export(args) => {
            telemetry::init(args.common.log_format);
            match export::configure(&args) {
                Ok(plan) => launch::block_on(|shutdown| export::run(plan, shutdown)),
                Err(error) => launch::fail(&error, EXIT_USAGE),
            }
        }
    }
}
