//! `[[scrape]]`: Prometheus exporters that are sampled.
//!
//! The fields are the metrics, by their names. A metric is in the measurement that the first words of its name make, see
//! [`spelling::group`]; its labels are the tags, with the tag `job` beside them. Metrics of one measurement that share their labels make
//! one row. The time is the tick's; times that the exporter tells are passed over.

use std::{sync::Arc, time::Duration};

use globset::{Error as GlobError, Glob, GlobSet, GlobSetBuilder};
use plimsoll_nats::{Name, catalog, dead::chain, now_ms, spelling};
use reqwest::{Certificate, Client, StatusCode, header::ACCEPT, redirect::Policy};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    notes::{Refusal, SourceNotes},
    points::{FieldValue, Gatherer, Point},
    prometheus::{self, Sample},
    text::SyntaxError,
};
use crate::{
    config::ScrapeConfig,
    outlet::Outlet,
    rows::Rows,
    schedule::{Decision, Schedule},
};

/// Most bytes that an exporter may answer with.
pub const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
/// What is asked for. The older format comes first, as every exporter has it.
const FORMATS: &str = "text/plain;version=0.0.4;q=1, application/openmetrics-text;version=1.0.0;q=0.8, */*;q=0.1";
/// The tag that tells exporters apart.
const JOB: &str = "job";

/// An exporter with its schedule.
pub struct Scrape {
    config: ScrapeConfig,
    exclude: GlobSet,
    /// None until the first scrape.
    http: Option<Client>,
    outlet: Arc<Outlet>,
    /// None after reading has panicked, which leaves the scrape to be made anew.
    gatherer: Option<Gatherer>,
    notes: Arc<SourceNotes>,
    status: Rows,
}

/// Why a scrape yields nothing.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// The system's certificates, needed for `https`, could not be read.
    #[error("failed to set up HTTP: `https` needs the system's certificates, such as the package ca-certificates")]
    Open(#[source] reqwest::Error),
    /// The exporter could not be reached or did not answer in time. The address is left out: it may hold a secret.
    #[error("failed to reach the exporter")]
    Send(#[source] reqwest::Error),
    /// The exporter answered something else than success.
    #[error("the exporter answered {0}")]
    Status(StatusCode),
    /// The answer is too large.
    #[error("the exporter answered with more than {MAX_BODY_BYTES} bytes")]
    TooLarge,
    /// Not a line of the answer can be read.
    #[error("failed to read any line of the exporter's answer")]
    Lines(#[source] SyntaxError),
}

/// The patterns of names that are left out. Fails on what is no pattern.
pub fn exclusions(patterns: &[String]) -> Result<GlobSet, GlobError> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern)?);
    }
    set.build()
}

impl Scrape {
    /// Scrapes nothing yet.
    ///
    /// # Panics
    /// When `exclude` is not valid. Never else: `scrape` is a measurement of the catalog, as a test proves.
    #[must_use]
    pub fn new(config: ScrapeConfig, outlet: Arc<Outlet>, gatherer: Gatherer) -> Self {
        let exclude = exclusions(&config.exclude).expect("the configuration has been checked");
        let spec = catalog::measurement("scrape").expect("the catalog has the measurement");
        let notes = Arc::clone(gatherer.notes());
        Self { config, exclude, http: None, outlet, gatherer: Some(gatherer), notes, status: Rows::new(spec) }
    }

    /// Scrapes at each tick until `stop`, one scrape at a time: ticks that come while one goes on are left out.
    ///
    /// # Panics
    /// When reading an answer does.
    pub async fn run(mut self, stop: CancellationToken) {
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
        let (started, refused) = (Instant::now(), self.notes.refused_total());
        let outcome = self.fetch().await;
        let took = started.elapsed();
        let (outcome, values) = match outcome {
            Ok(body) => self.read(body, tick_ms).await,
            Err(error) => (Err(error), 0),
        };
        match &outcome {
            Ok(()) => self.notes.succeeded(),
            Err(error) => self.notes.failed(chain(error)),
        }
        self.tell(tick_ms, outcome.is_ok(), took, (values, self.notes.refused_total() - refused));
    }

    async fn fetch(&mut self) -> Result<Vec<u8>, ScrapeError> {
        let failed = |error: reqwest::Error| ScrapeError::Send(error.without_url());
        let http = match self.http.take() {
            Some(http) => http,
            None => client(&self.config).map_err(ScrapeError::Open)?,
        };
        let http = self.http.insert(http);
        let request = http.get(&self.config.url).header(ACCEPT, FORMATS).timeout(self.config.timeout);
        let mut answer = request.send().await.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(ScrapeError::Status(answer.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(ScrapeError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Reads and sends an answer, away from the runtime's threads: a large one takes a while.
    async fn read(&mut self, body: Vec<u8>, tick_ms: i64) -> (Result<(), ScrapeError>, u64) {
        let mut gatherer = self.gatherer.take().expect("it is put back below, and whoever panics does not come again");
        let (outlet, exclude) = (Arc::clone(&self.outlet), self.exclude.clone());
        let (job, words) = (self.config.name.clone(), usize::from(self.config.words));
        let reading = tokio::task::spawn_blocking(move || {
            let outcome = gather(&body, &exclude, (&job, words), tick_ms, &mut gatherer);
            let values = gatherer.send(&outlet);
            (outcome, values, gatherer)
        });
        let (outcome, values, gatherer) = reading.await.expect("reading an answer does not panic");
        self.gatherer = Some(gatherer);
        (outcome, values)
    }

    /// Sends how the scrape went.
    fn tell(&mut self, tick_ms: i64, up: bool, took: Duration, (values, refused): (u64, u64)) {
        let fields = [
            ("up", up.into()),
            ("duration_seconds", took.as_secs_f64().into()),
            ("values", values.into()),
            ("refused", refused.into()),
        ];
        self.status.push(&[(JOB, &self.config.name)], &fields);
        self.outlet.push_rows([(tick_ms, &self.status)]);
        self.status.clear();
    }
}

fn client(config: &ScrapeConfig) -> Result<Client, reqwest::Error> {
    // Fails when the process has a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder()
        .redirect(Policy::none())
        .no_proxy()
        .user_agent(concat!("plimsoll-agent/", env!("CARGO_PKG_VERSION")));
    if config.url.starts_with("https:") {
        builder.build()
    } else {
        // Reading the system's certificates takes memory, and fails where there are none.
        builder.tls_certs_only(std::iter::empty::<Certificate>()).build()
    }
}

/// Gathers the samples of an answer. Fails when there is something, and nothing of it can be read.
fn gather(
    body: &[u8],
    exclude: &GlobSet,
    (job, words): (&str, usize),
    tick_ms: i64,
    gatherer: &mut Gatherer,
) -> Result<(), ScrapeError> {
    let (mut samples, mut first_error, mut others) = (0_u64, None, Vec::new());
    for sample in prometheus::parse(body) {
        match sample {
            Ok(sample) => {
                samples += 1;
                if exclude.is_match(&*sample.name) {
                    continue;
                }
                // Names that are kept come first, so that none of them is taken by one that is changed.
                if Name::parse(&sample.name).is_ok() {
                    gatherer.add(point(sample, job, words), tick_ms);
                } else {
                    others.push(sample);
                }
            }
            Err(error) => {
                gatherer.notes().refuse(Refusal::Malformed, 1, || error.to_string());
                first_error.get_or_insert(error);
            }
        }
    }
    others.sort_by(|a, b| a.name.cmp(&b.name));
    others.into_iter().for_each(|sample| gatherer.add(point(sample, job, words), tick_ms));
    first_error.filter(|_| samples == 0).map_or(Ok(()), |error| Err(ScrapeError::Lines(error)))
}

fn point<'a>(sample: Sample<'a>, job: &'a str, words: usize) -> Point<'a> {
    let measurement = spelling::group(&sample.name, words).to_string();
    let mut tags = sample.labels;
    // As Prometheus does with a label of an exporter that it sets itself.
    for (name, _) in tags.iter_mut().filter(|(name, _)| name == JOB) {
        *name = format!("{}{JOB}", spelling::EXPORTED).into();
    }
    tags.push((JOB.into(), job.into()));
    Point {
        measurement: measurement.into(),
        tags,
        fields: vec![(sample.name, FieldValue::Float(sample.value))],
        time_ms: None,
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::{Batch, Column, HostId};
    use ulid::Ulid;

    use super::*;
    use crate::{buffer::SharedBuffer, custom::schema::Schema, encoder::PayloadLimit};

    /// What a scrape of `text` sends, and what it refuses.
    fn scraped(text: &str, words: usize, exclude: &[&str]) -> (Vec<Batch>, u64) {
        let buffer = Arc::new(SharedBuffer::new(64 * 1024 * 1024));
        let host = HostId::parse("h").unwrap();
        let outlet = Outlet::new(host, Ulid::generate(), PayloadLimit::default(), Arc::clone(&buffer));
        let mut gatherer = Gatherer::new(Schema::default(), Arc::new(SourceNotes::new("test")));
        let exclude = exclusions(&exclude.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<_>>()).unwrap();
        gather(text.as_bytes(), &exclude, ("j", words), 1_700_000_000_000, &mut gatherer).unwrap();
        gatherer.send(&outlet);
        let batches = std::iter::from_fn(|| buffer.lock().pop_oldest()).map(|entry| entry.message.batch()).collect();
        (batches, gatherer.notes().refused_total())
    }

    fn of<'a>(batches: &'a [Batch], measurement: &str, tags: &[&str]) -> &'a Batch {
        let mut found = batches.iter().filter(|batch| {
            &*batch.measurement == measurement && batch.tags.keys().map(|name| &**name).eq(tags.iter().copied())
        });
        let batch = found.next().unwrap_or_else(|| panic!("no {measurement} by {tags:?}"));
        assert!(found.next().is_none(), "several batches of {measurement} by {tags:?}");
        batch
    }

    const TEXT: &str = r#"# TYPE node_cpu_seconds_total counter
node_cpu_seconds_total{cpu="0",mode="idle"} 100.5
node_cpu_seconds_total{cpu="1",mode="idle"} 99
node_cpu_guest_seconds_total{cpu="0",mode="idle"} 0
node_memory_MemFree_bytes 4096
node_memory_memfree_bytes 1
node_load1 0.5
node_uname_info{host="x",job="y"} 1
app_latency_seconds_bucket{le="0.1"} 3
app_latency_seconds_bucket{le="+Inf"} 4
app_latency_seconds_sum 0.25
app_latency_seconds_count 4
app_nothing_here NaN
process_threads 7
"#;

    #[test]
    fn metrics_become_fields_and_labels_tags() {
        let (batches, refused) = scraped(TEXT, 2, &[]);
        let cpu = of(&batches, "node_cpu", &["cpu", "job", "mode"]);
        assert_eq!((&cpu.tags["cpu"], &cpu.tags["job"]), (&vec!["0".into(), "1".into()], &vec!["j".into(); 2]));
        assert_eq!(cpu.fields["node_cpu_seconds_total"], Column::Float(vec![Some(100.5), Some(99.0)]));
        assert_eq!(cpu.fields["node_cpu_guest_seconds_total"], Column::Float(vec![Some(0.0), None]));

        let memory = of(&batches, "node_memory", &["job"]);
        assert_eq!(memory.fields["node_memory_memfree_bytes"], Column::Float(vec![Some(1.0)]), "the one kept as it is");
        let (changed, value) = memory.fields.iter().find(|(name, _)| name.len() > 30).unwrap();
        assert!(changed.starts_with("node_memory_memfree_bytes_"), "{changed}");
        assert_eq!(*value, Column::Float(vec![Some(4096.0)]));

        let buckets = of(&batches, "app_latency", &["job", "le"]);
        assert_eq!(buckets.tags["le"], ["0.1", "+Inf"]);
        let whole = of(&batches, "app_latency", &["job"]);
        assert_eq!(whole.fields["app_latency_seconds_sum"], Column::Float(vec![Some(0.25)]));
        assert_eq!(whole.fields["app_latency_seconds_count"], Column::Float(vec![Some(4.0)]));

        let uname = of(&batches, "node_uname", &["exported_host", "exported_job", "job"]);
        assert_eq!(uname.fields["node_uname_info"], Column::Float(vec![Some(1.0)]));
        assert_eq!(of(&batches, "node", &["job"]).fields["node_load1"], Column::Float(vec![Some(0.5)]));
        assert_eq!(of(&batches, "exported_process", &["job"]).fields.len(), 1);
        assert_eq!(refused, 0, "what is not a number is no value, and nothing was refused");
        assert!(!batches.iter().any(|batch| batch.fields.contains_key("app_nothing_here")));
    }

    #[test]
    fn fewer_words_make_fewer_measurements_and_names_can_be_left_out() {
        let (batches, _) = scraped(TEXT, 1, &["app_*", "node_*_info"]);
        let mut measurements: Vec<&str> = batches.iter().map(|batch| &*batch.measurement).collect();
        measurements.dedup();
        assert_eq!(measurements, ["node", "exported_process"]);
        let fields: Vec<&str> = of(&batches, "node", &["job"]).fields.keys().map(|name| &**name).collect();
        assert_eq!(fields.len(), 3, "{fields:?}");
    }

    #[test]
    fn a_text_of_another_kind_is_a_failure_and_an_empty_one_is_not() {
        let mut gatherer = Gatherer::new(Schema::default(), Arc::new(SourceNotes::new("test")));
        let none = GlobSet::empty();
        let error = gather(b"<html>\n<body>hello</body>", &none, ("j", 2), 0, &mut gatherer).unwrap_err();
        let text = "failed to read any line of the exporter's answer: line 1, column 1: expected a metric's name";
        assert_eq!(chain(&error), text);
        gather(b"", &none, ("j", 2), 0, &mut gatherer).unwrap();
        gather(b"oops\na 1", &none, ("j", 2), 0, &mut gatherer).unwrap();
        assert_eq!(gatherer.notes().refused_total(), 3);
    }
}
