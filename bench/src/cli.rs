//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;
use plimsoll_nats::NatsConfig;

use crate::{
    FleetConfig, FleetError,
    compare::Settling,
    fleet::{MEASUREMENTS, measurement},
    publish::Rate,
};

/// Makes up fleets of hosts, records and replays real ones, and measures Plimsoll beside others
#[derive(Debug, Parser)]
#[command(name = "plimsoll-bench", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 64 wrong usage, 70 failed";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Publish a made-up fleet's samples to a broker, as its agents would
    Publish(PublishArgs),
    /// Write a made-up fleet's history straight into a lake, at full speed
    Fill(FillArgs),
    /// Record what hosts publish into a file
    Record(RecordArgs),
    /// Publish a recording, its times moved and its hosts multiplied
    Replay(ReplayArgs),
    /// Measure Plimsoll, VictoriaMetrics and Prometheus on the same points
    Compare(CompareArgs),
    /// Bring a lake into the form in which it is kept, in a process of its own
    #[command(hide = true)]
    Settle(SettleArgs),
}

/// What a fleet looks like.
#[derive(Debug, Args)]
pub struct FleetArgs {
    /// Hosts of the fleet
    #[arg(long, default_value_t = 100)]
    pub hosts: usize,
    /// How long they are sampled, in seconds
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    pub seconds: f64,
    /// Time between two samples, in seconds
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    pub interval: f64,
    /// Time of the first sample, such as 2026-01-31T12:00:00Z; by default the last sample is taken now
    #[arg(long, value_name = "TIME")]
    pub start: Option<Timestamp>,
    /// Samples of a measurement that are gathered into one message
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub samples_a_message: usize,
    /// Measurements, separated by commas; by default all that can be made up
    #[arg(long, value_delimiter = ',', value_name = "NAMES", default_values = MEASUREMENTS)]
    pub measurements: Vec<String>,
    /// Leave single cores out of `cpu`
    #[arg(long)]
    pub only_total_cpu: bool,
    /// How often a host reboots, on average
    #[arg(long, default_value_t = 1.0 / 30.0, value_name = "TIMES")]
    pub reboots_a_day: f64,
    /// What the hosts' ids begin with; a number follows
    #[arg(long, default_value = "host-")]
    pub prefix: String,
    /// Another seed makes up other hosts and values; the same one always the same
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl FleetArgs {
    /// The fleet, and how many samples its hosts take. Fails on a measurement that is not made up and on senseless times.
    pub fn fleet(&self, now: Timestamp) -> Result<(FleetConfig, u64), FleetError> {
        let interval = Duration::try_from_secs_f64(self.interval).map_err(|_| FleetError::Interval)?;
        let measurements = self.measurements.iter().map(|name| measurement(name)).collect::<Result<_, _>>()?;
        let ticks = (self.seconds / self.interval).ceil();
        if !(1.0..1e15).contains(&ticks) {
            return Err(FleetError::Time);
        }
        let since = i64::try_from((interval.as_secs_f64() * 1000.0 * ticks) as u64).unwrap_or(i64::MAX);
        let config = FleetConfig {
            hosts: self.hosts,
            prefix: self.prefix.clone(),
            seed: self.seed,
            // Agents sample on the beat.
            start_ms: self.start.map_or((now.as_millisecond() - since) / 1000 * 1000, Timestamp::as_millisecond),
            interval,
            samples_a_batch: self.samples_a_message,
            measurements,
            only_total_cpu: self.only_total_cpu,
            reboots_a_day: self.reboots_a_day,
        };
        Ok((config, ticks as u64))
    }
}

/// A length of time that is none.
#[derive(Debug, thiserror::Error)]
#[error("the time is too short or too long: expected a number of seconds above 0")]
pub struct TimeError;

/// How to reach a broker.
#[derive(Debug, Args)]
pub struct BrokerArgs {
    /// Address of the broker
    #[arg(long, default_value = "nats://127.0.0.1:4222", value_name = "URL")]
    pub nats_url: String,
    /// NATS credentials file, where the broker asks for one
    #[arg(long, value_name = "FILE")]
    pub credentials: Option<PathBuf>,
}

impl BrokerArgs {
    /// The broker's configuration.
    #[must_use]
    pub fn config(&self) -> NatsConfig {
        let credentials_file = self.credentials.clone();
        NatsConfig { url: self.nats_url.clone(), credentials_file, ..NatsConfig::default() }
    }
}

/// See [`Command::Publish`].
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// The fleet.
    #[command(flatten)]
    pub fleet: FleetArgs,
    /// How many times as fast as in reality, or `max`; with a number the samples begin now
    #[arg(long, default_value = "1")]
    pub rate: Rate,
    /// The broker.
    #[command(flatten)]
    pub broker: BrokerArgs,
}

/// See [`Command::Fill`].
#[derive(Debug, Args)]
pub struct FillArgs {
    /// The fleet.
    #[command(flatten)]
    pub fleet: FleetArgs,
    /// Folder of the lake; made where it is missing
    #[arg(long, value_name = "FOLDER")]
    pub lake: PathBuf,
    /// Rows of a commit
    #[arg(long, default_value_t = 200_000, value_name = "ROWS")]
    pub commit_rows: usize,
}

/// See [`Command::Record`].
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// File to be written; it must not be there yet
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How long to record, in seconds
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    pub seconds: f64,
    /// Take what the stream has stored within the last so many seconds, instead of what is published from now on
    #[arg(long)]
    pub stored: bool,
    /// The broker.
    #[command(flatten)]
    pub broker: BrokerArgs,
}

/// See [`Command::Replay`].
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The recording
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How many hosts come of each one; the second is named `<host>-2`, and so on
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub hosts_of_each: usize,
    /// Time that the first message is moved to, such as 2026-01-31T12:00:00Z; by default the present
    #[arg(long, value_name = "TIME")]
    pub start: Option<Timestamp>,
    /// How many times as fast as it was recorded, or `max`
    #[arg(long, default_value = "1")]
    pub rate: Rate,
    /// The broker.
    #[command(flatten)]
    pub broker: BrokerArgs,
}

/// See [`Command::Compare`].
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Hosts by which ingest and storage are measured, with all their measurements at 1 s
    #[arg(long, default_value_t = 10)]
    pub hosts: usize,
    /// How long they are sampled, in minutes
    #[arg(long, default_value_t = 60, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub minutes: u64,
    /// Days of the one host's history at 1 s
    #[arg(long, default_value_t = 7, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=365))]
    pub week_days: u64,
    /// Hosts of the fleet whose day is queried
    #[arg(long, default_value_t = 1000, value_name = "HOSTS")]
    pub fleet_hosts: usize,
    /// Time between two of their samples, in seconds: a divisor of 60
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = divisor_of_60)]
    pub fleet_interval: u64,
    /// Leave Prometheus out
    #[arg(long)]
    pub without_prometheus: bool,
    /// Leave VictoriaMetrics out, too: whether Plimsoll counts and answers all, beside nobody
    #[arg(long)]
    pub alone: bool,
    /// Page to write the tables into, between its two marks
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// Folder for packages that are fetched, and for all else while it is needed
    #[arg(long, default_value = "target/bench", value_name = "FOLDER")]
    pub folder: PathBuf,
}

fn divisor_of_60(text: &str) -> Result<u64, String> {
    let seconds = text.parse().ok().filter(|seconds: &u64| *seconds > 0 && 60_u64.is_multiple_of(*seconds));
    seconds.ok_or_else(|| "expected a divisor of 60, since queries ask by the minute".to_owned())
}

/// See [`Command::Settle`].
#[derive(Debug, Args)]
pub struct SettleArgs {
    /// Folder of the lake
    #[arg(long, value_name = "FOLDER")]
    pub lake: PathBuf,
    /// What to do
    #[arg(long)]
    pub step: Settling,
}
