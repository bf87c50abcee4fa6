//! Samples that are not built in: of commands, of Prometheus exporters, and of programs that hand them over.
//!
//! Each source is a task of its own, bounded in time, memory and names. One that fails, hangs, floods or panics is noted and tried again;
//! no other feels it.

pub mod exec;
pub mod influx;
pub mod json;
pub mod listen;
pub mod notes;
pub mod points;
pub mod prometheus;
pub mod schema;
pub mod scrape;
pub mod statsd;
pub mod text;

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    exec::Exec,
    listen::{Address, Listener, Protocol},
    notes::{SourceNotes, Sources},
    points::Gatherer,
    schema::Schema,
    scrape::Scrape,
};
use crate::{
    config::{AgentConfig, ListenConfig},
    outlet::Outlet,
};

/// Pause before a source that has panicked is begun anew.
const RESTART: Duration = Duration::from_secs(10);

/// Starts every custom source of a valid configuration on `tasks`, to run until `stop`. Returns what is noted of them.
pub fn spawn(config: &AgentConfig, outlet: &Arc<Outlet>, tasks: &TaskTracker, stop: &CancellationToken) -> Sources {
    let (schema, sources) = (Schema::default(), Sources::default());
    let spawner = Spawner { outlet, tasks, stop, schema, sources };
    for exec in config.exec.iter().cloned() {
        spawner.spawn(format!("exec `{}`", exec.name), move |outlet, gatherer, stop| {
            Exec::new(exec.clone(), outlet, gatherer).run(stop)
        });
    }
    for scrape in config.scrape.iter().cloned() {
        spawner.spawn(format!("scrape `{}`", scrape.name), move |outlet, gatherer, stop| {
            Scrape::new(scrape.clone(), outlet, gatherer).run(stop)
        });
    }
    for (name, address, protocol) in listeners(&config.listen) {
        spawner.spawn(format!("{name} on `{address}`"), move |outlet, gatherer, stop| {
            Listener::new(address.clone(), protocol, outlet, gatherer).run(stop)
        });
    }
    spawner.sources
}

/// Where to listen and what is spoken there, with its name in logs.
fn listeners(config: &ListenConfig) -> Vec<(&'static str, Address, Protocol)> {
    let statsd = Protocol::StatsD { interval: config.interval };
    let mut listeners = Vec::new();
    for (name, protocol, udp, socket) in [
        ("StatsD", statsd, config.statsd_udp, &config.statsd_socket),
        ("Influx", Protocol::Influx, config.influx_udp, &config.influx_socket),
    ] {
        let addresses = udp.map(Address::Udp).into_iter().chain(socket.clone().map(Address::Unix));
        listeners.extend(addresses.map(|address| (name, address, protocol)));
    }
    listeners
}

struct Spawner<'a> {
    outlet: &'a Arc<Outlet>,
    tasks: &'a TaskTracker,
    stop: &'a CancellationToken,
    schema: Schema,
    sources: Sources,
}

impl Spawner<'_> {
    /// Starts a source that `make` makes, anew each time it has panicked.
    fn spawn<F>(&self, name: String, make: impl Fn(Arc<Outlet>, Gatherer, CancellationToken) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let notes = self.sources.add(name);
        let (outlet, schema, stop) = (Arc::clone(self.outlet), self.schema.clone(), self.stop.clone());
        let source = {
            let notes = Arc::clone(&notes);
            move || make(Arc::clone(&outlet), Gatherer::new(schema.clone(), Arc::clone(&notes)), stop.clone())
        };
        self.tasks.spawn(supervise(notes, self.stop.clone(), source));
    }
}

/// Runs a source until it ends by itself, beginning it anew when it panics.
async fn supervise<F>(notes: Arc<SourceNotes>, stop: CancellationToken, source: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    // A task of its own is what catches a panic.
    while let Err(error) = tokio::spawn(source()).await {
        tracing::error!(source = notes.name(), %error, "custom source broke off and is begun anew");
        notes.failed(error.to_string());
        if stop.run_until_cancelled(sleep(RESTART)).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_source_that_panics_is_begun_anew() {
        let notes = Arc::new(SourceNotes::new("test"));
        let begun = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&begun);
        let source = move || {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            async move { assert!(number == 3, "the source panics") }
        };
        supervise(Arc::clone(&notes), CancellationToken::new(), source).await;
        assert_eq!((begun.load(Ordering::SeqCst), notes.state().failures), (4, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_panics_keeps_nobody_from_stopping() {
        let stop = CancellationToken::new();
        stop.cancel();
        supervise(Arc::new(SourceNotes::new("test")), stop, || async { panic!("the source panics") }).await;
    }

    #[test]
    fn nothing_listens_unless_it_is_named() {
        assert_eq!(listeners(&ListenConfig::default()), []);
        let config = ListenConfig {
            statsd_udp: Some(([127, 0, 0, 1], 8125).into()),
            influx_socket: Some("/run/plimsoll/influx.sock".into()),
            ..ListenConfig::default()
        };
        let named: Vec<String> =
            listeners(&config).iter().map(|(name, address, _)| format!("{name} {address}")).collect();
        assert_eq!(named, ["StatsD udp://127.0.0.1:8125", "Influx unix:/run/plimsoll/influx.sock"]);
    }
}
