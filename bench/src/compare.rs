//! Plimsoll, VictoriaMetrics and Prometheus side by side: the same points, on the same cores, each alone and in turn.
//!
//! Points are encoded before anything is measured, and whoever sends them is a process of its own whose time does not count. Of a
//! store counts the processor time of its process, as /proc tells it; Plimsoll's are ingest and, told separately, the broker.

mod dataset;
mod peers;
mod plimsoll;
mod process;
mod queries;
mod query_api;
mod report;
mod store;
mod times;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use plimsoll_lake::LakeError;
use plimsoll_nats::server::ServerError;

use self::{
    dataset::{Dataset, Encoded, Layout},
    peers::Peer,
    process::Usage,
    queries::{Answer, Query, queries},
    report::{Asked, Report, Row},
    store::{Kind, Store},
    times::{REPEATS, Times, median},
};
use crate::{FleetConfig, FleetError, publish::PublishingError, recording::RecordingError};

pub use self::plimsoll::Settling;

/// The start of the id of the host whose week is asked for.
const WEEK_PREFIX: &str = "week-";
const FLEET_PREFIX: &str = "fleet-";
const HOUR_MS: i64 = 3_600_000;
/// Samples that are gathered into a message, beside those of an agent with default settings, which gathers none.
const GATHERED: usize = 10;

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// There is no such fleet.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// A file can't be used.
    #[error("failed to use `{path}`")]
    File {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A recording of messages can't be used.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// A process can't be started.
    #[error("failed to start {name}")]
    Start {
        /// Which one.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A binary of this project is missing.
    #[error("`{name}` is not beside `plimsoll-bench`: run `make bench`, which builds both")]
    NotBuilt {
        /// Which one.
        name: &'static str,
    },
    /// A process ended by itself or badly.
    #[error("{name} failed; it said last: {words}")]
    Ended {
        /// Which one.
        name: &'static str,
        /// The end of its log.
        words: String,
        /// How it ended.
        source: io::Error,
    },
    /// A store does not serve.
    #[error("{name} does not serve")]
    NotReady {
        /// Which one.
        name: &'static str,
    },
    /// A store does not come to rest.
    #[error("{name} does not finish merging")]
    NotSettled {
        /// Which one.
        name: &'static str,
    },
    /// A package can't be had.
    #[error(
        "`{package}` is not on PATH and can't be fetched: install Debian's package of that name, or try again after `apt-get update`"
    )]
    Peer {
        /// Which one.
        package: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The broker does not run.
    #[error("failed to run the broker")]
    Server(#[from] ServerError),
    /// The broker does not take the messages.
    #[error(transparent)]
    Publish(#[from] PublishingError),
    /// Ingest commits nothing any more.
    #[error("ingest stands still at {committed} of {messages} messages")]
    Stalled {
        /// What is committed.
        committed: u64,
        /// What there is.
        messages: u64,
    },
    /// A store holds another number of points than it was given.
    #[error("{name} was given {expected} points and has taken {found}")]
    Count {
        /// Which one.
        name: &'static str,
        /// What it was given.
        expected: u64,
        /// What it says.
        found: u64,
    },
    /// A store answers with an error.
    #[error("{name} answered with {status}: {said}")]
    Refused {
        /// Which one.
        name: &'static str,
        /// The HTTP status.
        status: u16,
        /// What it says.
        said: String,
    },
    /// A store does not answer.
    #[error("failed to ask over HTTP")]
    Http(#[from] reqwest::Error),
    /// An answer is no JSON.
    #[error("failed to read an answer")]
    Answer(#[source] serde_json::Error),
    /// The lake can't be opened.
    #[error("failed to open the lake")]
    Lake(#[from] LakeError),
    /// The lake does not answer.
    #[error("failed to query the lake")]
    Sql(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Somebody wants it to end.
    #[error("stopped before anything was compared")]
    Stopped,
    /// Two stores do not say the same.
    #[error("{name} and Plimsoll differ in `{query}`: {difference}")]
    Differ {
        /// The other one.
        name: &'static str,
        /// The question.
        query: &'static str,
        /// In what.
        difference: String,
    },
    /// An answer has not as many values as it must.
    #[error("`{query}` yields {found} values instead of {expected}")]
    Values {
        /// The question.
        query: &'static str,
        /// How many there must be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
}

/// What is compared.
#[derive(Debug, Clone)]
pub struct CompareConfig {
    /// Hosts of the fleet by which ingest and storage are measured, with all their measurements at 1 s.
    pub hosts: usize,
    /// How long they are sampled, in minutes.
    pub minutes: u64,
    /// Days of the one host's history at 1 s.
    pub week_days: u64,
    /// Hosts of the fleet whose day is queried.
    pub fleet_hosts: usize,
    /// Time between two of their samples.
    pub fleet_interval: Duration,
    /// Whether VictoriaMetrics takes part.
    pub victoria_metrics: bool,
    /// Whether Prometheus takes part.
    pub prometheus: bool,
    /// Where packages are kept, and all else while it is needed.
    pub folder: PathBuf,
}

impl CompareConfig {
    fn mixed(&self, samples_a_batch: usize, end_ms: i64) -> Dataset {
        let ticks = self.minutes * 60;
        let start_ms = end_ms - i64::try_from(ticks).unwrap_or(0) * 1000;
        let fleet = FleetConfig { hosts: self.hosts, start_ms, samples_a_batch, ..FleetConfig::default() };
        Dataset { fleet, ticks }
    }

    /// One host's history, a day of a fleet after it, and what that fleet's memory was in the day's last hour.
    fn histories(&self, end_ms: i64) -> [Dataset; 3] {
        let day_start = end_ms - 24 * HOUR_MS;
        let seconds = self.week_days * 86_400;
        let week = FleetConfig {
            hosts: 1,
            prefix: WEEK_PREFIX.to_owned(),
            start_ms: day_start - i64::try_from(seconds).unwrap_or(0) * 1000,
            samples_a_batch: 60,
            measurements: vec!["cpu"],
            only_total_cpu: true,
            ..FleetConfig::default()
        };
        let every = u64::try_from(self.fleet_interval.as_millis()).unwrap_or(1).max(1);
        let day = FleetConfig {
            hosts: self.fleet_hosts,
            prefix: FLEET_PREFIX.to_owned(),
            start_ms: day_start,
            interval: self.fleet_interval,
            samples_a_batch: 10,
            // An average over hosts is one of averages over their samples only where all have the same number of them.
            ..week.clone()
        };
        let memory = FleetConfig { start_ms: end_ms - HOUR_MS, measurements: vec!["memory"], ..day.clone() };
        [
            Dataset { fleet: week, ticks: seconds },
            Dataset { fleet: day, ticks: 86_400_000 / every },
            Dataset { fleet: memory, ticks: 3_600_000 / every },
        ]
    }
}

/// Compares, and returns the tables as Markdown. `say` is told what is being done.
///
/// Fails when another store can't be had, when one of them has lost or made up a point, and when they answer differently.
pub async fn compare(config: &CompareConfig, mut say: impl FnMut(&str)) -> Result<String, CompareError> {
    // Fails where it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = Folder::make(&config.folder.join("run"))?;
    say("Fetching the others, where they are missing");
    let packages = config.folder.join("packages");
    let find = |wanted: bool, package| wanted.then(|| peers::find(package, &packages)).transpose();
    let victoria = find(config.victoria_metrics, "victoria-metrics")?;
    let prometheus = find(config.prometheus, "prometheus")?;
    let end_ms = plimsoll_nats::now_ms() / HOUR_MS * HOUR_MS;
    let started = Instant::now();
    let report = Report { load: report::load(), ..Report::default() };
    let mut run = Comparison { config, folder, end_ms, victoria, prometheus, report, say: &mut say };
    run.ingest().await?;
    run.query().await?;
    run.report.took = started.elapsed();
    Ok(run.report.markdown(config, run.victoria.as_ref(), run.prometheus.as_ref()))
}

/// A folder that is emptied at first and removed at last.
struct Folder(PathBuf);

impl Folder {
    fn make(path: &Path) -> Result<Self, CompareError> {
        let _ = fs::remove_dir_all(path);
        fs::create_dir_all(path).map_err(|source| CompareError::File { path: path.to_owned(), source })?;
        Ok(Self(path.to_owned()))
    }

    fn sub(&self, name: &str) -> Result<Self, CompareError> {
        Self::make(&self.0.join(name))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Comparison<'a> {
    config: &'a CompareConfig,
    folder: Folder,
    end_ms: i64,
    victoria: Option<Peer>,
    prometheus: Option<Peer>,
    report: Report,
    say: &'a mut dyn FnMut(&str),
}

impl Comparison<'_> {
    fn stores(&self) -> Vec<(Kind, Peer, Layout)> {
        let of = |peer: &Option<Peer>, kind, layout| peer.clone().map(|peer| (kind, peer, layout));
        let victoria =
            [Layout::Lines, Layout::RemoteWrite].map(|layout| of(&self.victoria, Kind::VictoriaMetrics, layout));
        let prometheus = of(&self.prometheus, Kind::Prometheus, Layout::RemoteWrite);
        victoria.into_iter().chain([prometheus]).flatten().collect()
    }

    /// Throughput, memory and storage.
    async fn ingest(&mut self) -> Result<(), CompareError> {
        for samples in [1, GATHERED] {
            let dataset = self.config.mixed(samples, self.end_ms);
            (self.say)(&format!("Plimsoll takes the fleet in, {samples} samples a message"));
            let folder = self.folder.sub("plimsoll")?;
            let recording = folder.0.join("messages");
            let encoded = dataset.encode(Layout::Messages, &recording)?;
            let ingested = plimsoll::ingest(&recording, encoded.messages, encoded.points, &folder.0).await?;
            plimsoll::same_points(encoded.points, plimsoll::points(&folder.0)?)?;
            let name = match samples {
                1 => "Plimsoll, each sample a message".to_owned(),
                samples => format!("Plimsoll, {samples} s a message"),
            };
            (self.say)(&format!("{name}: {} messages with {} points are stored", encoded.messages, encoded.points));
            let settled = plimsoll::settle(&folder.0, Settling::Merge).await?;
            let summaries = plimsoll::settle(&folder.0, Settling::RollUp).await?;
            self.report.encoded = encoded;
            self.report.rows.push(Row {
                name,
                points: encoded.points,
                given_bytes: encoded.bytes,
                cpu: ingested.usage.cpu,
                settling_cpu: settled.cpu,
                wall: ingested.wall,
                peak_bytes: ingested.usage.peak_bytes,
                settling_peak_bytes: settled.peak_bytes,
                stored_bytes: settled.stored_bytes,
                beside: Some((ingested, summaries)),
            });
        }
        let dataset = self.config.mixed(GATHERED, self.end_ms);
        for (kind, peer, layout) in self.stores() {
            let by = if layout == Layout::Lines { "Influx lines" } else { "remote write" };
            (self.say)(&format!("{} takes the fleet in by {by}", kind.name()));
            let folder = self.folder.sub("store")?;
            let requests = folder.0.join("requests");
            let encoded = dataset.encode(layout, &requests)?;
            self.check_points(kind.name(), encoded.points)?;
            let store = Store::start(kind, &peer, &folder.0.join("data")).await?;
            let (before, started) = (store.usage()?, Instant::now());
            store.feed(layout, &requests).await?;
            let (after, wall) = (store.usage()?, started.elapsed());
            store.check_points(encoded.points).await?;
            let (_, stored_bytes) = store.settle().await?;
            let settled = store.usage()?;
            store.stop().await?;
            self.report.rows.push(Row {
                name: format!("{}, {by}", kind.name()),
                points: encoded.points,
                given_bytes: encoded.bytes,
                cpu: after.cpu.saturating_sub(before.cpu),
                settling_cpu: settled.cpu.saturating_sub(after.cpu),
                wall,
                peak_bytes: after.peak_bytes,
                settling_peak_bytes: settled.peak_bytes,
                stored_bytes,
                beside: None,
            });
        }
        Ok(())
    }

    /// All were given the same number of points.
    fn check_points(&self, name: &'static str, points: u64) -> Result<(), CompareError> {
        let Encoded { points: expected, .. } = self.report.encoded;
        if points == expected { Ok(()) } else { Err(CompareError::Count { name, expected, found: points }) }
    }

    /// Times of queries, on histories that are loaded for them.
    async fn query(&mut self) -> Result<(), CompareError> {
        let histories = self.config.histories(self.end_ms);
        let questions = queries(&histories[0], &histories[1]);
        (self.say)("Plimsoll is given the histories and asked");
        let folder = self.folder.sub("plimsoll")?;
        for dataset in &histories {
            plimsoll::fill(dataset, &folder.0).await?;
        }
        self.report.history_points = plimsoll::points(&folder.0)?;
        let merged = plimsoll::settle(&folder.0, Settling::Merge).await?;
        self.report.summaries = plimsoll::settle(&folder.0, Settling::RollUp).await?;
        let mut answers = Vec::new();
        let mut asked = Vec::new();
        for query in &questions {
            let (answer, times) = query_api::ask(&folder.0, query).await?;
            if let Some(expected) = query.values.filter(|expected| *expected != answer.0.len()) {
                return Err(CompareError::Values { query: query.name, expected, found: answer.0.len() });
            }
            answers.push(answer);
            asked.push(times);
        }
        drop(folder);
        self.report.asked.push(Asked { name: "Plimsoll", times: asked, stored_bytes: merged.stored_bytes });
        self.report.questions =
            questions.iter().zip(&answers).map(|(query, answer)| (query.name, answer.0.len())).collect();
        let stores: Vec<_> =
            self.stores().into_iter().filter(|(_, _, layout)| *layout == Layout::RemoteWrite).collect();
        for (kind, peer, layout) in stores {
            (self.say)(&format!("{} is given the histories and asked", kind.name()));
            let folder = self.folder.sub("store")?;
            let data = folder.0.join("data");
            let store = Store::start(kind, &peer, &data).await?;
            let mut points = 0;
            for (dataset, name) in histories.iter().zip(["week", "day", "memory"]) {
                let requests = folder.0.join(name);
                points += dataset.encode(layout, &requests)?.points;
                store.feed(layout, &requests).await?;
            }
            store.check_points(points).await?;
            plimsoll::same_points(points, self.report.history_points)?;
            let (data, stored_bytes) = store.settle().await?;
            store.stop().await?;
            let mut asked = Vec::new();
            for (query, expected) in questions.iter().zip(&answers) {
                asked.push(ask_store(kind, &peer, &data, query, expected).await?);
            }
            self.report.asked.push(Asked { name: kind.name(), times: asked, stored_bytes });
        }
        Ok(())
    }
}

/// Asks a store that has just started, and then again and again.
async fn ask_store(
    kind: Kind,
    peer: &Peer,
    data: &Path,
    query: &Query,
    expected: &Answer,
) -> Result<Times, CompareError> {
    let store = Store::start(kind, peer, data).await?;
    let (answer, first) = store.ask(&query.promql).await?;
    if let Some(difference) = expected.difference(&answer) {
        return Err(CompareError::Differ { name: kind.name(), query: query.name, difference });
    }
    let mut warm = Vec::new();
    for _ in 0..REPEATS {
        warm.push(store.ask(&query.promql).await?.1);
    }
    let Usage { peak_bytes, .. } = store.usage()?;
    store.stop().await?;
    Ok(Times { first, warm: median(warm), peak_bytes })
}

/// Takes a step of settling a lake in this process; returns what that has taken, as JSON.
pub fn settle(lake: &Path, step: Settling) -> Result<String, CompareError> {
    serde_json::to_string(&plimsoll::settle_here(lake, step)?).map_err(CompareError::Answer)
}
