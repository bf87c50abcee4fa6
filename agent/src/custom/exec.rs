//! `[[exec]]`: commands whose output is sampled.

mod child;

use std::{sync::Arc, time::Duration};

use plimsoll_nats::{catalog, dead::chain, now_ms};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub use self::child::{ChildError, MAX_OUTPUT_BYTES};
use super::{
    influx, json,
    notes::{Refusal, SourceNotes},
    points::Gatherer,
    text::{SyntaxError, lines},
};
use crate::{
    config::{ExecConfig, ExecFormat},
    outlet::Outlet,
    rows::Rows,
    schedule::{Decision, Schedule},
};

/// A command with its schedule.
pub struct Exec {
    config: ExecConfig,
    outlet: Arc<Outlet>,
    gatherer: Gatherer,
    status: Rows,
}

/// Why a run of a command yields nothing.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It did not run well.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// What it prints is not JSON.
    #[error("failed to read what the command prints as JSON")]
    Json(#[source] serde_json::Error),
    /// Not a line of what it prints can be read.
    #[error("failed to read any line that the command prints")]
    Lines(#[source] SyntaxError),
}

impl Exec {
    /// Runs nothing yet.
    ///
    /// # Panics
    /// Never: `exec` is a measurement of the catalog, as a test proves.
    #[must_use]
    pub fn new(config: ExecConfig, outlet: Arc<Outlet>, gatherer: Gatherer) -> Self {
        let spec = catalog::measurement("exec").expect("the catalog has the measurement");
        Self { config, outlet, gatherer, status: Rows::new(spec) }
    }

    /// Runs the command at each tick until `stop`, one run at a time: ticks that come while one goes on are left out.
    pub async fn run(mut self, stop: CancellationToken) {
        // A run that goes on is dropped, and with it the command is killed.
        stop.run_until_cancelled(self.repeat()).await;
    }

    async fn repeat(&mut self) {
        let mut schedule = Schedule::new(self.config.interval);
        loop {
            match schedule.decide(now_ms()) {
                Decision::Sleep(pause) => sleep(pause).await,
                Decision::Take(tick_ms) => self.take(tick_ms).await,
            }
        }
    }

    async fn take(&mut self, tick_ms: i64) {
        let (started, refused) = (Instant::now(), self.notes().refused_total());
        let outcome = match child::run(&self.config.command, self.config.timeout).await {
            Ok(output) => read(&self.config, &output, tick_ms, &mut self.gatherer),
            Err(error) => Err(error.into()),
        };
        let took = started.elapsed();
        let values = self.gatherer.send(&self.outlet);
        match &outcome {
            Ok(()) => self.notes().succeeded(),
            Err(error) => self.notes().failed(chain(error)),
        }
        let refused = self.notes().refused_total() - refused;
        self.tell(tick_ms, outcome.is_ok(), took, (values, refused));
    }

    /// Sends how the run went.
    fn tell(&mut self, tick_ms: i64, up: bool, took: Duration, (values, refused): (u64, u64)) {
        let fields = [
            ("up", up.into()),
            ("duration_seconds", took.as_secs_f64().into()),
            ("values", values.into()),
            ("refused", refused.into()),
        ];
        self.status.push(&[("job", &self.config.name)], &fields);
        self.outlet.push_rows([(tick_ms, &self.status)]);
        self.status.clear();
    }

    fn notes(&self) -> &SourceNotes {
        self.gatherer.notes()
    }
}

/// Gathers the points of what a command has printed. Fails when there is something, and nothing of it can be read.
fn read(config: &ExecConfig, output: &[u8], tick_ms: i64, gatherer: &mut Gatherer) -> Result<(), ExecError> {
    match config.format {
        ExecFormat::Influx => read_lines(output, tick_ms, gatherer),
        ExecFormat::Json => read_json(&config.name, output, tick_ms, gatherer),
    }
}

fn read_lines(output: &[u8], tick_ms: i64, gatherer: &mut Gatherer) -> Result<(), ExecError> {
    let (mut points, mut first_error) = (0_u64, None);
    for (index, line) in lines(output) {
        match line.and_then(|line| influx::parse_line(line).map_err(|error| error.in_line(index, line))) {
            Ok(Some(point)) => {
                points += 1;
                gatherer.add(point, tick_ms);
            }
            Ok(None) => {}
            Err(error) => {
                gatherer.notes().refuse(Refusal::Malformed, 1, || error.to_string());
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.filter(|_| points == 0).map_or(Ok(()), |error| Err(ExecError::Lines(error)))
}

fn read_json(name: &str, output: &[u8], tick_ms: i64, gatherer: &mut Gatherer) -> Result<(), ExecError> {
    if output.trim_ascii().is_empty() {
        return Ok(());
    }
    let document = serde_json::from_slice(output).map_err(ExecError::Json)?;
    for point in json::points(&document, name) {
        match point {
            Ok(point) => gatherer.add(point, tick_ms),
            Err((index, expected)) => {
                let detail = || format!("item {} of the output: expected {expected}", index + 1);
                gatherer.notes().refuse(Refusal::Malformed, 1, detail);
            }
        }
    }
    Ok(())
}
