//! The `plimsoll` binary: everything in one process, and what administrators ask.

mod backup;
mod broker;
mod data_dir;
mod display;
mod drain;
mod export;
mod import;
mod lake;
mod place;
mod probe;
mod replay;
mod stop;
mod up;

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};
use plimsoll_service::{EXIT_FAILURE, EXIT_USAGE, launch, telemetry};

use crate::{
    backup::{BackupArgs, RestoreArgs},
    export::ExportArgs,
    import::ImportArgs,
    lake::{LakeCommand, StatusArgs, StatusError},
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
    /// Put files into the lake: Parquet, CSV, JSON lines or Influx line protocol
    Import(Box<ImportArgs>),
    /// Write rows of the lake to files: Parquet, CSV or JSON lines
    Export(Box<ExportArgs>),
    /// What the lake holds
    #[command(subcommand)]
    Lake(LakeCommand),
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Up(args) => run_up(*args),
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
        Command::Lake(LakeCommand::Status(args)) => print_status(&args),
    }
}

fn run_up(args: UpArgs) -> ExitCode {
    telemetry::init(args.common.log_format);
    match up::configure(&args) {
        Ok(config) => launch::block_on(|shutdown| up::run(args, config, shutdown)),
        Err(error) => launch::fail(&error, EXIT_USAGE),
    }
}

fn print_status(args: &StatusArgs) -> ExitCode {
    let config = match lake::configure(args) {
        Ok(config) => config,
        Err(error) => return launch::fail(&error, EXIT_USAGE),
    };
    match lake::status(args, &config) {
        Ok(status) => {
            // Fails when the reader of a pipe has seen enough.
            let _ = std::io::stdout().write_all(status.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error @ StatusError::NoLake { .. }) => launch::fail(&error, EXIT_USAGE),
        Err(error) => launch::fail(&error, EXIT_FAILURE),
    }
}
