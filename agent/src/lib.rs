//! The agent: samples this host and pushes the samples to the broker.

pub mod buffer;
pub mod check;
pub mod collectors;
pub mod config;
pub mod context;
pub mod custom;
pub mod encoder;
pub mod error;
pub mod events;
pub mod heartbeat;
pub mod inventory;
pub mod message;
pub mod once;
pub mod outlet;
pub mod publisher;
pub mod reading;
pub mod rows;
pub mod sampler;
pub mod schedule;
pub mod spool;
pub mod update;

use std::{sync::Arc, time::Duration};

use plimsoll_nats::{Client, ConnectError, HostId};
use plimsoll_service::config::Validate;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use ulid::Ulid;

pub use config::AgentConfig;
pub use error::AgentError;

use crate::{
    buffer::SharedBuffer, collectors::KINDS, context::Context, encoder::PayloadLimit, events::EventSink,
    heartbeat::Heartbeat, outlet::Outlet, publisher::Publisher, sampler::Sampler, update::Receipts,
};

/// How long samplers may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Samples this host and publishes until `shutdown`, then sends what is left for at most five seconds.
///
/// Waits for a broker that is away, buffering. Fails on an invalid configuration, an address that is none, a secret that cannot
/// be read, or when the system gives no thread.
pub async fn run(config: AgentConfig, shutdown: CancellationToken) -> Result<(), AgentError> {
    run_with(config, Receipts::default(), shutdown).await
}

/// Does what [`run`] does, and tells `receipts` what the broker acknowledges.
pub async fn run_with(config: AgentConfig, receipts: Receipts, shutdown: CancellationToken) -> Result<(), AgentError> {
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(AgentError::Config { problems });
    }
    let host = config.host_id().map_err(|error| AgentError::Config { problems: vec![error.to_string()] })?;
    let epoch = Ulid::generate();
    let buffer = Arc::new(SharedBuffer::new(config.buffer_bytes));
    let limit = PayloadLimit::default();
    let tasks = TaskTracker::new();
    // Ends the tasks also when this function returns early or is dropped.
    let stop = shutdown.child_token();
    let _stop_on_return = stop.clone().drop_guard();

    tracing::info!(host.id = %host, epoch = %epoch, version = env!("CARGO_PKG_VERSION"), "agent starts");
    let outlet = Outlet::new(host.clone(), epoch, limit.clone(), Arc::clone(&buffer));
    let outlet = Arc::new(outlet.gathering(config.batch_interval()));
    let context =
        Context { paths: config.paths(), config: Arc::new(config.collectors.clone()), events: EventSink::default() };
    let collectors = KINDS.iter().filter_map(|kind| Some((*kind, config.interval_of(kind)?)));
    let sampler = Sampler::start(collectors, &context, &outlet).map_err(AgentError::Thread)?;
    tasks.spawn(sampler.run(stop.clone()));
    tasks.spawn(Arc::clone(&outlet).keep_flushing(stop.clone()));

    update::report::tell(&config, &context.events);
    if let Some(mark) = update::launch::trial_mark() {
        let report = update::report::pass_trial(mark, receipts.clone(), update::report::samples_are_due(&config));
        tasks.spawn(stop.clone().run_until_cancelled_owned(report));
    }
    custom::spawn(&config, &outlet, &tasks, &stop);

    tasks.spawn(report_drops(Arc::clone(&buffer), stop.clone()));
    let client = match Client::connect(&config.nats, "plimsoll-agent", &shutdown).await {
        Ok(client) => client,
        Err(ConnectError::Cancelled) => {
            outlet.flush();
            report_lost(buffer.lock().len(), &buffer);
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let heartbeat = Heartbeat::new(client.clone(), host.clone(), config.paths()).telling(receipts.clone());
    tasks.spawn(heartbeat.run(stop.clone()));
    let publisher = Publisher::new(client, &config.nats, (host, epoch), Arc::clone(&buffer), limit);
    let mut publisher = publisher.telling(receipts);
    publisher.run(&shutdown).await;

    tasks.close();
    if timeout(DRAIN_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "some tasks did not end in time and are left behind");
    }
    outlet.flush();
    report_lost(publisher.flush().await, &buffer);
    Ok(())
}

/// Tells now and then how many batches the full buffer has dropped, also while the broker was never there.
async fn report_drops(buffer: Arc<SharedBuffer>, stop: CancellationToken) {
    const EVERY: Duration = Duration::from_secs(10);
    while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        let batches = buffer.take_dropped();
        if batches > 0 {
            tracing::warn!(batches, "buffer is full, the oldest batches are lost");
        }
    }
}

/// Tells how many batches are lost for good: those left, and those dropped since that was last told.
fn report_lost(left: usize, buffer: &SharedBuffer) {
    let batches = left as u64 + buffer.take_dropped();
    if batches > 0 {
        tracing::warn!(batches, "agent ends, batches that the broker did not take are lost");
    }
}

/// The id that a host gets when its agent's configuration names none.
#[must_use]
pub fn default_host_id() -> HostId {
    HostId::from_host_name(&inventory::host_name().unwrap_or_default())
}
