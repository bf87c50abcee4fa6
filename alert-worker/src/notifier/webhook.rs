//! The webhook: an HTTP POST of the transition as JSON.
//!
//! The body is the transition as `ALERTS` holds it, with `event` (`alert`) and `message` (the transition in words) beside
//! its keys. Any status of the 200s says that the receiver has taken it; redirects are not followed.

use std::time::Duration;

use plimsoll_nats::alert::{Notification, Transition};
use reqwest::{StatusCode, redirect::Policy};
use serde::Serialize;

/// How long a receiver has to answer.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends notifications to webhooks.
#[derive(Debug, Clone)]
pub struct Webhook {
    http: reqwest::Client,
}

/// Why a receiver has not taken a notification. Texts don't hold the address: it is often a secret.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The receiver answered something else than success.
    #[error("the webhook answered {0}")]
    Status(StatusCode),
    /// The receiver could not be reached or did not answer in time.
    #[error("failed to reach the webhook")]
    Send(#[source] reqwest::Error),
}

impl WebhookError {
    /// Whether trying again can't help: the receiver refuses the request as such, or the address is none.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Status(status) => {
                let passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
                status.is_client_error() && !passing.contains(status)
            }
            Self::Send(error) => error.is_builder(),
        }
    }
}

/// What is posted.
#[derive(Debug, Serialize)]
pub struct Body<'a> {
    event: &'static str,
    message: &'a str,
    #[serde(flatten)]
    transition: &'a Transition,
}

impl<'a> Body<'a> {
    /// The body for a transition and its text.
    #[must_use]
    pub fn new(transition: &'a Transition, message: &'a str) -> Self {
        Self { event: "alert", message, transition }
    }
}

impl Webhook {
    /// A sender with a connection pool of its own. Fails when TLS can't be set up.
    pub fn new() -> Result<Self, reqwest::Error> {
        // Fails when the process has a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .redirect(Policy::none())
            .user_agent(concat!("plimsoll/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { http })
    }

    /// Posts a notification; returns once the receiver has taken it.
    pub async fn send(&self, url: &str, notification: &Notification) -> Result<(), WebhookError> {
        let body = Body::new(&notification.transition, &notification.message);
        let sent = self.http.post(url).json(&body).send().await;
        let answer = sent.map_err(|error| WebhookError::Send(error.without_url()))?;
        if answer.status().is_success() { Ok(()) } else { Err(WebhookError::Status(answer.status())) }
    }
}
