//! The agent: samples this host and pushes the samples to the broker.

pub mod boot;
pub mod buffer;
pub mod check;
pub mod clock_watch;
pub mod collectors;
pub mod config;
pub mod context;
pub mod custom;
pub mod delivery;
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
pub mod state;
pub mod update;
pub mod vitals;

use std::{sync::Arc, time::Duration};

use plimsoll_nats::{Client, ConnectError, HostId, event::EventKind};
use plimsoll_service::config::Validate;
use tokio::{task::spawn_blocking, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use ulid::Ulid;

pub use config::AgentConfig;
pub use error::AgentError;

use crate::{
    collectors::KINDS,
    context::Context,
    delivery::Delivery,
    encoder::PayloadLimit,
    events::{Event, EventOutlet, EventSink},
    heartbeat::Heartbeat,
    outlet::Outlet,
    sampler::Sampler,
    state::StateDir,
    update::Receipts,
    vitals::Vitals,
};

/// How long samplers may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Samples this host and publishes until `shutdown`, then sends what is left for at most five seconds.
///
/// Waits for a broker that is away, spooling. Fails on an invalid configuration, an address that is none, a secret that cannot be
/// read, when another agent uses the state folder, or when the system gives no thread.
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
    let state = StateDir::open(config.state_dir.as_deref())?.map(Arc::new);
    let (delivery, told_boots) = {
        let (buffer_bytes, spool, state) = (config.buffer_bytes, config.spool.clone(), state.clone());
        let opened = spawn_blocking(move || Delivery::open(buffer_bytes, &spool, state.as_deref())).await;
        opened.map_err(|_| AgentError::Stopped)?
    };
    let limit = PayloadLimit::default();
    let tasks = TaskTracker::new();
    // Ends the tasks also when this function returns early or is dropped.
    let stop = shutdown.child_token();
    let _stop_on_return = stop.clone().drop_guard();

    tracing::info!(host.id = %host, epoch = %epoch, version = env!("CARGO_PKG_VERSION"), "agent starts");
    let events = EventSink::default();
    let event_outlet = Arc::new(EventOutlet::new(host.clone(), epoch, Arc::clone(delivery.events())));
    let boot = state.as_deref().zip(boot::boot_id(&config.paths()));
    if let Some((state, boot_id)) = &boot {
        boot::tell(state, boot_id, &told_boots, &events);
    }
    events.emit(about_agent(EventKind::AgentStarted, "The agent has started"));
    event_outlet.pump(&events);
    if let Some((state, boot_id)) = &boot {
        boot::note(state, boot_id);
    }
    tasks.spawn({
        let (outlet, events, stop) = (Arc::clone(&event_outlet), events.clone(), stop.clone());
        async move { outlet.run(&events, &stop).await }
    });
    tasks.spawn(clock_watch::run(events.clone(), stop.clone()));
    tasks.spawn(delivery.clone().keep(stop.clone()));

    let outlet = Outlet::new(host.clone(), epoch, limit.clone(), Arc::clone(delivery.metrics()));
    let outlet = Arc::new(outlet.gathering(config.batch_interval()));
    let context =
        Context { paths: config.paths(), config: Arc::new(config.collectors.clone()), events: events.clone() };
    let collectors = KINDS.iter().filter_map(|kind| Some((*kind, config.interval_of(kind)?)));
    let sampler = Sampler::start(collectors, &context, &outlet).map_err(AgentError::Thread)?;
    tasks.spawn(sampler.run(stop.clone()));
    tasks.spawn(Arc::clone(&outlet).keep_flushing(stop.clone()));
    let interval = config.interval.unwrap_or_else(|| config.profile.interval());
    tasks.spawn(Vitals::new(delivery.clone(), events.clone()).run(interval, Arc::clone(&outlet), stop.clone()));

    update::report::tell(&config, &events);
    if let Some(mark) = update::launch::trial_mark() {
        let report = update::report::pass_trial(mark, receipts.clone(), update::report::samples_are_due(&config));
        tasks.spawn(stop.clone().run_until_cancelled_owned(report));
    }
    custom::spawn(&config, &outlet, &tasks, &stop);

    let mut publishers = match Client::connect(&config.nats, "plimsoll-agent", &shutdown).await {
        Ok(client) => {
            let heartbeat = Heartbeat::new(client.clone(), host, config.paths()).telling(receipts.clone());
            tasks.spawn(heartbeat.run(stop.clone()));
            Some(delivery.publishers(client, &config.nats, &limit, &receipts))
        }
        Err(ConnectError::Cancelled) => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(publishers) = &mut publishers {
        publishers.run(&shutdown).await;
    }

    tasks.close();
    if timeout(DRAIN_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "some tasks did not end in time and are left behind");
    }
    outlet.flush();
    events.emit(about_agent(EventKind::AgentStopped, "The agent has stopped"));
    event_outlet.pump(&events);
    if let Some(publishers) = &mut publishers {
        publishers.flush().await;
    }
    delivery.close().await;
    Ok(())
}

fn about_agent(kind: EventKind, message: &str) -> Event {
    Event::new(kind, "", message).with("version", env!("CARGO_PKG_VERSION"))
}

/// The id that a host gets when its agent's configuration names none.
#[must_use]
pub fn default_host_id() -> HostId {
    HostId::from_host_name(&inventory::host_name().unwrap_or_default())
}
