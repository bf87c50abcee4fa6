//! The HTTP endpoints of a worker: `/healthz`, `/readyz` and `/metrics`.

mod server;

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};

pub use server::{ServeError, ServeLimits, bind, serve, serve_within};

/// What keeps a worker from being ready; empty reasons mean ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<std::collections::BTreeMap<&'static str, String>>>);

impl Readiness {
    /// Says that `part` is not ready, and why.
    pub fn fail(&self, part: &'static str, reason: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(part, reason.into());
    }

    /// Says that `part` is ready.
    pub fn clear(&self, part: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(part);
    }

    /// Whether nothing stands in the way.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn reasons(&self) -> String {
        let reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.iter().map(|(part, reason)| format!("{part}: {reason}\n")).collect()
    }
}

/// A worker's state as its endpoints show it.
#[derive(Debug, Clone, Default)]
pub struct Ops {
    /// Whether the worker can do its work.
    pub readiness: Readiness,
    registry: Arc<Mutex<Registry>>,
}

impl Ops {
    /// Adds metrics under the prefix of the service, such as `plimsoll_ingest`.
    pub fn register<T>(&self, prefix: &'static str, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(self.registry.lock().unwrap_or_else(PoisonError::into_inner).sub_registry_with_prefix(prefix))
    }

    /// The endpoints, to be served alone or merged into a larger router.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self.clone())
    }
}

async fn readyz(State(ops): State<Ops>) -> Response {
    if ops.readiness.is_ready() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, ops.readiness.reasons()).into_response()
    }
}

async fn metrics(State(ops): State<Ops>) -> Response {
    let mut text = String::new();
    let encoded = encode(&mut text, &ops.registry.lock().unwrap_or_else(PoisonError::into_inner));
    match encoded {
        Ok(()) => {
            let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, format)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
