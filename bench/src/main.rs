//! The `plimsoll-bench` binary.

use std::{error::Error, process::ExitCode, time::Duration};

use clap::Parser;
use jiff::Timestamp;
use plimsoll_bench::{
    cli::{Cli, Command, CompareArgs, FillArgs, PublishArgs, RecordArgs, ReplayArgs, TimeError},
    compare::{self, CompareConfig, CompareError},
    fill, page,
    progress::Progress,
    publish::{self, Published, Rate},
    record,
    replay::{self, ReplayConfig},
};
use plimsoll_lake::LakeConfig;
use plimsoll_service::{
    EXIT_FAILURE, EXIT_USAGE,
    launch::{block_on, fail},
    telemetry::{self, LogFormat},
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // Fails when nobody reads it.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    telemetry::init(LogFormat::Text);
    match cli.command {
        Command::Publish(args) => publish(&args),
        Command::Fill(args) => fill(args),
        Command::Record(args) => record(&args),
        Command::Replay(args) => replay(&args),
        Command::Compare(args) => compare(args),
        Command::Settle(args) => print(compare::settle(&args.lake, args.step)),
    }
}

/// Fails with the code of a wrong command line.
fn misused(error: &(dyn Error + 'static)) -> ExitCode {
    fail(error, EXIT_USAGE)
}

fn publish(args: &PublishArgs) -> ExitCode {
    let (mut fleet, ticks) = match args.fleet.fleet(Timestamp::now()) {
        Ok(fleet) => fleet,
        Err(error) => return misused(&error),
    };
    if args.fleet.start.is_none() && args.rate != Rate::Most {
        fleet.start_ms = Timestamp::now().as_millisecond();
    }
    let (nats, rate) = (args.broker.config(), args.rate);
    block_on(async move |stop| {
        let published = publish::publish(&nats, fleet, ticks, rate, &stop).await?;
        tell(&published);
        Ok::<_, publish::PublishingError>(())
    })
}

fn tell(published: &Published) {
    let Published { messages, rows, points, bytes } = published;
    println!("{messages} messages with {rows} rows, {points} points and {bytes} bytes are stored");
}

fn fill(args: FillArgs) -> ExitCode {
    let (fleet, ticks) = match args.fleet.fleet(Timestamp::now()) {
        Ok(fleet) => fleet,
        Err(error) => return misused(&error),
    };
    let mut progress = Progress::new("samples of each host", Some(ticks));
    let config = LakeConfig::embedded(&args.lake);
    let filled = fill::fill(&config, fleet, ticks, args.commit_rows, |done| progress.show(done, ""));
    drop(progress);
    match filled {
        Ok(filled) => {
            let fill::Filled { rows, points, commits, committing } = filled;
            println!(
                "{rows} rows with {points} points in {commits} commits, which took {:.1} s",
                committing.as_secs_f64()
            );
            ExitCode::SUCCESS
        }
        Err(error @ fill::FillError::Fleet(_)) => misused(&error),
        Err(error) => fail(&error, EXIT_FAILURE),
    }
}

fn record(args: &RecordArgs) -> ExitCode {
    let Some(time) = Duration::try_from_secs_f64(args.seconds).ok().filter(|time| !time.is_zero()) else {
        return misused(&TimeError);
    };
    let (nats, file, stored) = (args.broker.config(), args.file.clone(), args.stored);
    block_on(async move |stop| {
        let recorded = if stored {
            record::stored(&nats, &file, time, &stop).await?
        } else {
            record::live(&nats, &file, time, &stop).await?
        };
        println!("{} messages in {} bytes", recorded.messages, recorded.bytes);
        Ok::<_, record::RecordError>(())
    })
}

fn replay(args: &ReplayArgs) -> ExitCode {
    let config = ReplayConfig {
        hosts_of_each: args.hosts_of_each,
        start_ms: args.start.map(Timestamp::as_millisecond),
        rate: args.rate,
    };
    let (nats, file) = (args.broker.config(), args.file.clone());
    block_on(async move |stop| {
        let published = replay::replay(&nats, &file, &config, &stop).await?;
        tell(&published);
        Ok::<_, replay::ReplayError>(())
    })
}

fn compare(args: CompareArgs) -> ExitCode {
    let config = CompareConfig {
        hosts: args.hosts,
        minutes: args.minutes,
        week_days: args.week_days,
        fleet_hosts: args.fleet_hosts,
        fleet_interval: Duration::from_secs(args.fleet_interval),
        victoria_metrics: !args.alone,
        prometheus: !args.alone && !args.without_prometheus,
        folder: args.folder,
    };
    block_on(async move |stop| {
        let compared = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(CompareError::Stopped),
            compared = compare::compare(&config, |what| tracing::info!("{what}")) => compared?,
        };
        println!("{compared}");
        if let Some(path) = args.write {
            page::write(&path, &compared).map_err(|source| CompareError::File { path, source })?;
        }
        Ok::<_, CompareError>(())
    })
}

fn print(outcome: Result<String, CompareError>) -> ExitCode {
    match outcome {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error, EXIT_FAILURE),
    }
}
