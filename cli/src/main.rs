//! The `plimsoll` binary: everything in one process.

mod backup;
mod broker;
mod data_dir;
mod display;
mod drain;
mod export;
mod import;
mod lake_config;
mod place;
mod probe;
mod replay;
mod stop;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use plimsoll_service::{EXIT_USAGE, launch, telemetry};

use crate::{
    backup::{BackupArgs, RestoreArgs},
    export::ExportArgs,
    import::ImportArgs,
    replay::ReplayArgs,
    up::UpArgs,
};

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
    /// Rebuild a lake from the stream, or give it what it lacks
    Replay(Box<ReplayArgs>),
    /// Copy the lake as of one moment, while everything runs
    Backup(Box<BackupArgs>),
    /// Load a backup
    Restore(Box<RestoreArgs>),
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
        Command::Replay(args) => {
            telemetry::init(args.common.log_format);
            replay::configure(&args).map_or_else(|error| launch::fail(&error, EXIT_USAGE), replay::run)
        }
        Command::Backup(args) => {
            telemetry::init(args.common.log_format);
            backup::backup(*args).unwrap_or_else(|error| launch::fail(&error, EXIT_USAGE))
        }
        Command::Restore(args) => {
            telemetry::init(args.common.log_format);
            backup::restore(*args).unwrap_or_else(|error| launch::fail(&error, EXIT_USAGE))
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
