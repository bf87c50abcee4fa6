//! Notifications: takes them from the work queue `NOTIFY` and delivers them, at least once.
//!
//! All members share the durable consumer `notifier`. A notification leaves the queue once its receiver has taken it. One that
//! can never succeed is given up at once, others are tried again after growing pauses, up to [`MAX_ATTEMPTS`] times; giving
//! up is logged as an error. Each target (scheme, host and port) has a lane of its own; what finds it full goes back to the
//! queue for a while, which is no attempt, so that a receiver that hangs keeps nobody else waiting. A member that dies between delivery and acknowledgement makes another deliver once more, and a
//! notification that is tried again may be overtaken by a later one: its `at_ms` tells.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use plimsoll_nats::{
    Client,
    alert::Notification,
    async_nats::jetstream::{
        self, AckKind,
        consumer::{AckPolicy, pull},
    },
    dead::chain,
    rule::Channel,
    streams,
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use xxhash_rust::xxh3::xxh3_64;

use crate::{metrics::Metrics, retry::Backoff};

mod attempts;
mod target;
pub mod webhook;

use attempts::{Attempts, Id};
use target::{Failures, Lanes, Place, Target};
use webhook::{Webhook, WebhookError};

/// The durable consumer that all members share.
pub const CONSUMER: &str = "notifier";
/// How often a notification is tried; with the pauses that takes about two hours.
pub const MAX_ATTEMPTS: u64 = 20;
/// The pause after the first attempt, which doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// The pause, on average, of a notification that first finds its target's lane full; it doubles each time.
const FIRST_DETOUR: Duration = Duration::from_millis(250);
/// The longest of these pauses, on average.
const LONGEST_DETOUR: Duration = Duration::from_secs(30);
/// How many notifications a member delivers at the same time.
const AT_ONCE: usize = 64;
/// How long the broker waits for a member to deliver before it asks another; above [`webhook::TIMEOUT`].
const ACK_WAIT: Duration = Duration::from_secs(60);

/// Delivers notifications.
#[derive(Debug)]
pub struct Notifier {
    client: Client,
    delivery: Delivery,
}

#[derive(Debug, Clone)]
struct Delivery {
    webhook: Webhook,
    metrics: Metrics,
    lanes: Lanes,
    attempts: Attempts,
    failures: Failures,
}

/// A notification that may be delivered now.
#[derive(Debug)]
struct Admitted {
    message: jetstream::Message,
    id: Id,
    notification: Notification,
    place: Place,
}

impl Notifier {
    /// A notifier on this connection. Fails when the HTTP client can't be made.
    pub fn new(client: &Client, metrics: &Metrics) -> Result<Self, reqwest::Error> {
        let delivery = Delivery {
            webhook: Webhook::new()?,
            metrics: metrics.clone(),
            lanes: Lanes::default(),
            attempts: Attempts::default(),
            failures: Failures::default(),
        };
        Ok(Self { client: client.clone(), delivery })
    }

    /// Delivers until `shutdown`, then finishes what is under way. A broker that is away is waited for.
    pub async fn run(self, shutdown: CancellationToken) {
        let deliveries = TaskTracker::new();
        let mut backoff = Backoff::default();
        while !shutdown.is_cancelled() {
            if let Some(Err(error)) = shutdown.run_until_cancelled(self.pull(&deliveries, &mut backoff)).await {
                tracing::warn!(error = %chain(&*error), "failed to pull notifications, trying again");
                backoff.pause(&shutdown).await;
            }
        }
        deliveries.close();
        deliveries.wait().await;
    }

    /// Starts deliveries until the pull breaks off. Dropping it loses nothing: the broker delivers again.
    async fn pull(
        &self,
        deliveries: &TaskTracker,
        backoff: &mut Backoff,
    ) -> Result<(), plimsoll_nats::async_nats::Error> {
        let config = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_deliver: -1,
            // What waits for another try counts too, and must not keep the others from being delivered.
            max_ack_pending: -1,
            ..pull::Config::default()
        };
        let stream = self.client.jetstream.get_stream(streams::NOTIFY).await?;
        let consumer = stream.create_consumer(config).await?;
        let mut messages = consumer.stream().max_messages_per_batch(AT_ONCE).messages().await?;
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let Some(message) = messages.next().await else { return Err("the pull ended".into()) };
            let message = message?;
            *backoff = Backoff::default();
            let Some(admitted) = self.delivery.admit(message).await? else { continue };
            let slot = Arc::clone(&slots).acquire_owned().await?;
            let delivery = self.delivery.clone();
            deliveries.spawn(async move {
                delivery.handle(admitted).await;
                drop(slot);
            });
        }
    }
}

/// What becomes of a notification after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Done,
    Again(Duration),
    Never,
}

impl Delivery {
    /// Lets a notification in whose target's lane has room. Tells the broker about any other.
    async fn admit(&self, message: jetstream::Message) -> Result<Option<Admitted>, plimsoll_nats::async_nats::Error> {
        let info = message.info()?;
        let (id, delivered) = ((info.stream_sequence, info.published.unix_timestamp_nanos()), info.delivered);
        let notification: Notification = match serde_json::from_slice(&message.payload) {
            Ok(notification) => notification,
            Err(error) => {
                tracing::error!(error = %chain(&error), "dropped a notification that cannot be read");
                self.metrics.notification("failed");
                tell(message.ack_with(AckKind::Term).await);
                return Ok(None);
            }
        };
        let Channel::Webhook { url } = &notification.channel;
        if let Some(place) = self.lanes.enter(&Target::of(url)) {
            return Ok(Some(Admitted { message, id, notification, place }));
        }
        self.metrics.notification("postponed");
        tell(message.ack_with(AckKind::Nak(Some(detour(id.0, delivered)))).await);
        Ok(None)
    }

    async fn handle(&self, admitted: Admitted) {
        let Admitted { message, id, notification, place } = admitted;
        let verdict = self.attempt(&notification, self.attempts.begin(id), place.target()).await;
        drop(place);
        if !matches!(verdict, Verdict::Again(_)) {
            self.attempts.end(id);
        }
        tell(match verdict {
            Verdict::Done => message.double_ack().await,
            Verdict::Again(pause) => message.ack_with(AckKind::Nak(Some(pause))).await,
            Verdict::Never => message.ack_with(AckKind::Term).await,
        });
    }

    async fn attempt(&self, notification: &Notification, attempt: u64, target: &Target) -> Verdict {
        let outcome = match &notification.channel {
            Channel::Webhook { url } => self.webhook.send(url, notification).await,
        };
        let (verdict, label) = judge(outcome.as_ref().err(), attempt);
        self.metrics.notification(label);
        if let Err(error) = outcome {
            let (transition, error) = (&notification.transition, chain(&error));
            let (rule, host, to) = (&transition.rule, &transition.series.host, transition.to);
            match verdict {
                Verdict::Never => {
                    tracing::error!(rule.name = %rule, host.id = %host, %to, attempt, %error, "gave up a notification: check the rule's webhook");
                }
                Verdict::Again(_) | Verdict::Done => {
                    if let Some(failures) = self.failures.note(target, Instant::now()) {
                        tracing::warn!(rule.name = %rule, host.id = %host, %to, attempt, failures, %error, "failed to notify, trying again");
                    }
                }
            }
        }
        verdict
    }
}

fn tell(answer: Result<(), plimsoll_nats::async_nats::Error>) {
    if let Err(error) = answer {
        tracing::warn!(error = %chain(&*error), "failed to tell the broker about a notification, it may be delivered again");
    }
}

/// How long a notification waits that has found its target's lane full: half to one and a half of a pause that doubles with
/// each delivery, so that those that came together don't come back together.
fn detour(sequence: u64, delivered: i64) -> Duration {
    let pause = doubled(FIRST_DETOUR, u64::try_from(delivered).unwrap_or(1)).min(LONGEST_DETOUR);
    let spread = xxh3_64(&[sequence.to_le_bytes(), delivered.to_le_bytes()].concat()) % 1024;
    pause.mul_f64(0.5 + spread as f64 / 1024.0)
}

/// A pause that doubles with each attempt after the first.
fn doubled(first: Duration, attempt: u64) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
    first.saturating_mul(2_u32.saturating_pow(doublings))
}

fn judge(error: Option<&WebhookError>, attempt: u64) -> (Verdict, &'static str) {
    match error {
        None => (Verdict::Done, "sent"),
        Some(error) if error.is_permanent() || attempt >= MAX_ATTEMPTS => (Verdict::Never, "failed"),
        Some(_) => (Verdict::Again(doubled(FIRST_PAUSE, attempt).min(LONGEST_PAUSE)), "retried"),
    }
}

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;

    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_then_it_gives_up() {
        let error = WebhookError::Status(StatusCode::BAD_GATEWAY);
        let verdict = |attempt| judge(Some(&error), attempt).0;
        assert_eq!(verdict(1), Verdict::Again(Duration::from_secs(1)));
        assert_eq!(verdict(4), Verdict::Again(Duration::from_secs(8)));
        assert_eq!(verdict(MAX_ATTEMPTS - 1), Verdict::Again(LONGEST_PAUSE));
        assert_eq!(verdict(MAX_ATTEMPTS), Verdict::Never);
    }

    #[test]
    fn detours_grow_and_differ() {
        for (delivered, average) in [(1, FIRST_DETOUR), (4, FIRST_DETOUR * 8), (i64::MAX, LONGEST_DETOUR)] {
            let pauses: Vec<Duration> = (0..100).map(|sequence| detour(sequence, delivered)).collect();
            assert!(pauses.iter().all(|pause| (average / 2..=average * 3 / 2).contains(pause)), "{pauses:?}");
            let (first, last) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
            assert!(*last - *first > average / 2, "{pauses:?}");
        }
    }

    #[test]
    fn what_can_never_succeed_is_not_tried_again() {
        let verdict = |status| judge(Some(&WebhookError::Status(status)), 1).0;
        for status in [StatusCode::NOT_FOUND, StatusCode::UNAUTHORIZED, StatusCode::GONE] {
            assert_eq!(verdict(status), Verdict::Never, "{status}");
        }
        for status in [
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::INTERNAL_SERVER_ERROR,
            StatusCode::FOUND,
        ] {
            assert!(matches!(verdict(status), Verdict::Again(_)), "{status}");
        }
    }
}
