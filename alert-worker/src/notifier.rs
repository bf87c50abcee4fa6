//! Notifications: takes them from the work queue `NOTIFY` and delivers them, at least once.
//!
//! All members share the durable consumer `notifier`. A notification leaves the queue once its receiver has taken it. One that
//! can never succeed is given up at once, others are tried again after growing pauses, up to [`MAX_ATTEMPTS`] times; giving
//! up is logged as an error. A member that dies between delivery and acknowledgement makes another deliver once more, and a
//! notification that is tried again may be overtaken by a later one: its `at_ms` tells.

use std::{sync::Arc, time::Duration};

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

use crate::{metrics::Metrics, retry::Backoff};

pub mod webhook;

use webhook::{Webhook, WebhookError};

/// The durable consumer that all members share.
pub const CONSUMER: &str = "notifier";
/// How often a notification is tried; with the pauses that takes about two hours.
pub const MAX_ATTEMPTS: u64 = 20;
/// The pause after the first attempt, which doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
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
}

impl Notifier {
    /// A notifier on this connection. Fails when the HTTP client can't be made.
    pub fn new(client: &Client, metrics: &Metrics) -> Result<Self, reqwest::Error> {
        let delivery = Delivery { webhook: Webhook::new()?, metrics: metrics.clone() };
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
            ..pull::Config::default()
        };
        let stream = self.client.jetstream.get_stream(streams::NOTIFY).await?;
        let consumer = stream.get_or_create_consumer(CONSUMER, config).await?;
        let mut messages = consumer.stream().max_messages_per_batch(AT_ONCE).messages().await?;
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await?;
            let Some(message) = messages.next().await else { return Err("the pull ended".into()) };
            let message = message?;
            *backoff = Backoff::default();
            let delivery = self.delivery.clone();
            deliveries.spawn(async move {
                delivery.handle(&message).await;
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
    async fn handle(&self, message: &jetstream::Message) {
        let (attempt, waiting) =
            message.info().map_or((1, 0), |info| (u64::try_from(info.delivered).unwrap_or(1), info.pending));
        self.metrics.notifications_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        let answer = match self.attempt(message, attempt).await {
            Verdict::Done => message.double_ack().await,
            Verdict::Again(pause) => message.ack_with(AckKind::Nak(Some(pause))).await,
            Verdict::Never => message.ack_with(AckKind::Term).await,
        };
        if let Err(error) = answer {
            tracing::warn!(error = %chain(&*error), "failed to tell the broker about a notification, it may be delivered again");
        }
    }

    async fn attempt(&self, message: &jetstream::Message, attempt: u64) -> Verdict {
        let notification: Notification = match serde_json::from_slice(&message.payload) {
            Ok(notification) => notification,
            Err(error) => {
                tracing::error!(error = %chain(&error), "dropped a notification that cannot be read");
                self.metrics.notification("failed");
                return Verdict::Never;
            }
        };
        let outcome = match &notification.channel {
            Channel::Webhook { url } => self.webhook.send(url, &notification).await,
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
                    tracing::warn!(rule.name = %rule, host.id = %host, %to, attempt, %error, "failed to notify, trying again");
                }
            }
        }
        verdict
    }
}

fn judge(error: Option<&WebhookError>, attempt: u64) -> (Verdict, &'static str) {
    match error {
        None => (Verdict::Done, "sent"),
        Some(error) if error.is_permanent() || attempt >= MAX_ATTEMPTS => (Verdict::Never, "failed"),
        Some(_) => {
            let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
            let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST_PAUSE);
            (Verdict::Again(pause), "retried")
        }
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
