//! Maintains the lake: one member at a time, from time to time, beside its commits.
//!
//! All members try for a lease; the one that holds it runs maintenance on a thread and a lake of its own, so that commits wait for it
//! no longer than for another member. Two at once, as when a holder was stopped for long, do no harm: each step is a transaction.
//! What fails is logged, counted and tried again in the next run; ingest goes on.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use plimsoll_lake::{
    Keep, LakeError, LakeWriter, MaintenanceReport, Tier,
    rollup::{Retention, RollupLimits},
    status::TierSize,
};
use plimsoll_nats::{
    Client,
    client::MemberId,
    dead::{chain, header_text},
    lease::{Lease, PROLONG},
};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    GROUP, IngestConfig,
    config::MaintenanceConfig,
    lake_thread::{LakeThread, ThreadEnded},
    metrics::MaintenanceMetrics,
};

/// How often left-over files are looked for, which lists all files.
const ORPHANS: Duration = Duration::from_secs(24 * 3600);

/// How often is looked for rows that are too old. They go by whole days, and the look reads what the catalog knows of every file.
const RETENTION: Duration = Duration::from_secs(3600);

/// Pause before each step of rollups and retention, for commits to get through.
const PAUSE: Duration = Duration::from_millis(100);

/// What came of a run: what the lake takes afterwards.
type Outcome = Result<Result<BTreeMap<Tier, TierSize>, LakeError>, ThreadEnded>;

/// Runs maintenance whenever it is due and this member's turn.
pub struct Maintenance {
    config: MaintenanceConfig,
    lake: LakeThread<LakeWriter>,
    lease: Lease,
    metrics: MaintenanceMetrics,
    due: Instant,
    orphans_due: Instant,
    retention_due: Instant,
    /// Whether the last run failed, which is logged once.
    failing: bool,
}

/// A run under way.
struct Run {
    cancelled: Arc<AtomicBool>,
    started: Instant,
    ended: Pin<Box<dyn Future<Output = Outcome> + Send>>,
}

impl Run {
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Maintenance {
    /// Maintenance of the configured lake, by a member of the group.
    #[must_use]
    pub fn new(
        config: &IngestConfig,
        client: &Client,
        member: &MemberId,
        metrics: MaintenanceMetrics,
        tasks: &TaskTracker,
    ) -> Self {
        let lake = config.maintenance_lake();
        let now = Instant::now();
        Self {
            lake: LakeThread::start(move || LakeWriter::open(&lake), tasks),
            lease: Lease::new(client, &format!("{GROUP}-maintenance"), member),
            metrics,
            due: now + config.maintenance.interval,
            orphans_due: now + ORPHANS.min(config.maintenance.keep_orphans),
            retention_due: now,
            failing: false,
            config: config.maintenance.clone(),
        }
    }

    /// Runs until `stop`, which also ends a run under way, and gives the lease back.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut run: Option<Run> = None;
        let mut look = tokio::time::interval(PROLONG.min(self.config.interval));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                outcome = ended(&mut run) => {
                    let duration = run.take().map_or(Duration::ZERO, |run| run.started.elapsed());
                    self.due = Instant::now() + self.config.interval;
                    if !self.note(outcome, duration) {
                        break;
                    }
                }
                _ = look.tick() => {
                    let held = tokio::select! {
                        biased;
                        () = stop.cancelled() => break,
                        held = self.hold() => held,
                    };
                    match &run {
                        Some(run) if !held => run.cancel(),
                        None if held && self.due <= Instant::now() => run = Some(self.start()),
                        _ => {}
                    }
                }
            }
        }
        if let Some(run) = &mut run {
            run.cancel();
            let _ = (&mut run.ended).await;
        }
        if let Err(error) = self.lease.give_back().await {
            tracing::debug!(error = %chain(&error), "failed to give the lease of maintenance back, it expires instead");
        }
    }

    async fn hold(&mut self) -> bool {
        if let Err(error) = self.lease.hold().await {
            // The broker is away, which others say loudly.
            tracing::debug!(error = %chain(&error), "it is not known who maintains the lake");
        }
        let held = self.lease.is_held();
        self.metrics.holds_lease(held);
        held
    }

    fn start(&mut self) -> Run {
        let now = Instant::now();
        let looks_for_orphans = is_time(&mut self.orphans_due, ORPHANS, now);
        let keep = Keep {
            snapshots: self.config.keep_snapshots,
            unused_files: self.config.keep_unused_files,
            orphans: looks_for_orphans.then_some(self.config.keep_orphans),
        };
        let deletes_old_rows = is_time(&mut self.retention_due, RETENTION, now);
        let cancelled = Arc::new(AtomicBool::new(false));
        let work = Work {
            keep,
            retention: deletes_old_rows.then(|| self.config.retention.clone()),
            metrics: self.metrics.clone(),
            cancelled: Arc::clone(&cancelled),
        };
        let lake = self.lake.clone();
        let ended = async move { lake.run(move |lake| lake.with(|writer| work.run(writer))).await };
        Run { cancelled, started: now, ended: Box::pin(ended) }
    }

    /// Tells and counts what came of a run. Returns false when there can be no further one.
    fn note(&mut self, outcome: Outcome, duration: Duration) -> bool {
        match outcome {
            Ok(Ok(tiers)) => {
                self.metrics.done(duration, &tiers);
                self.failing = false;
            }
            Ok(Err(error)) => {
                self.metrics.failed();
                self.retention_due = Instant::now();
                if !std::mem::replace(&mut self.failing, true) {
                    let error = header_text(&chain(&error));
                    tracing::warn!(
                        error,
                        "maintenance of the lake failed and is tried again with each run, commits go on"
                    );
                }
            }
            Err(ended) => {
                self.metrics.failed();
                tracing::error!(error = %ended, "this member maintains the lake no more: start ingest again");
                return false;
            }
        }
        true
    }
}

/// Whether something is due that is done so often; then it is due again after that time.
fn is_time(due: &mut Instant, every: Duration, now: Instant) -> bool {
    let is_time = *due <= now;
    if is_time {
        *due = now + every;
    }
    is_time
}

/// The work of a run.
struct Work {
    keep: Keep,
    /// None does not look for old rows.
    retention: Option<Retention>,
    metrics: MaintenanceMetrics,
    cancelled: Arc<AtomicBool>,
}

impl Work {
    /// Works in an order in which each part finds what the one before has left: rows are rolled up before they go, and what went need
    /// not be merged. A part that fails keeps none of the others from being done.
    fn run(&self, writer: &LakeWriter) -> Result<BTreeMap<Tier, TierSize>, LakeError> {
        let rolled_up = self.roll_up(writer);
        let swept = self.retention.as_ref().map_or(Ok(()), |retention| self.sweep(writer, retention));
        let maintained = writer.maintain(self.keep, &self.cancelled).map(|report| {
            self.metrics.maintained(&report);
            tell(&report);
        });
        rolled_up.and(swept).and(maintained)?;
        writer.tiers()
    }

    fn roll_up(&self, writer: &LakeWriter) -> Result<(), LakeError> {
        let report = writer.roll_up(&RollupLimits::default(), || self.goes_on())?;
        self.metrics.rolled_up(&report);
        // One stands for all: they are tried again with the next run.
        match report.failures.into_iter().next() {
            Some(failure) => Err(failure.error),
            None => Ok(()),
        }
    }

    fn sweep(&self, writer: &LakeWriter, retention: &Retention) -> Result<(), LakeError> {
        let report = writer.apply_retention(retention, SystemTime::now(), || self.goes_on())?;
        self.metrics.swept(&report);
        Ok(())
    }

    fn goes_on(&self) -> bool {
        if self.cancelled.load(Ordering::Relaxed) {
            return false;
        }
        std::thread::sleep(PAUSE);
        !self.cancelled.load(Ordering::Relaxed)
    }
}

fn tell(report: &MaintenanceReport) {
    if report.merged_files + report.deleted_files + report.expired_snapshots + report.forgotten_rows + report.postponed
        == 0
    {
        return;
    }
    tracing::info!(
        merged_files = report.merged_files,
        created_files = report.created_files,
        deleted_files = report.deleted_files,
        expired_snapshots = report.expired_snapshots,
        forgotten_rows = report.forgotten_rows,
        postponed_steps = report.postponed,
        duration_ms = report.duration.as_millis(),
        "maintained the lake"
    );
}

/// Waits for the end of a run; for ever where there is none.
async fn ended(run: &mut Option<Run>) -> Outcome {
    match run {
        Some(run) => (&mut run.ended).await,
        None => std::future::pending().await,
    }
}
