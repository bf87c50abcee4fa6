//! The HTTP endpoints of a worker: `/healthz`, `/readyz` and `/metrics`.

mod server;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};

pub use server::{ServeError, ServeLimits, bind, serve, serve_within};

/// What keeps a process from being ready; empty reasons mean ready.
///
/// Clones share the reasons. Services in one process tell theirs apart by a scope each.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    scope: &'static str,
    reasons: Arc<Mutex<BTreeMap<(&'static str, &'static str), String>>>,
}

impl Readiness {
    /// The same reasons, where those told here are a service's own.
    #[must_use]
    pub fn scoped(&self, scope: &'static str) -> Self {
        Self { scope, reasons: Arc::clone(&self.reasons) }
    }

    /// Says that `part` is not ready, and why.
    pub fn fail(&self, part: &'static str, reason: impl Into<String>) {
        self.lock().insert((self.scope, part), reason.into());
    }

    /// Says that `part` is ready.
    pub fn clear(&self, part: &'static str) {
        self.lock().remove(&(self.scope, part));
    }

    /// Whether nothing stands in the way, in any scope.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().is_empty()
    }

    fn reasons(&self) -> String {
        let line = |((scope, part), reason): (&(&str, &str), &String)| {
            let space = if scope.is_empty() { "" } else { " " };
            format!("{scope}{space}{part}: {reason}\n")
        };
        self.lock().iter().map(line).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(&'static str, &'static str), String>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// The same endpoints for one of several services: its readiness is its own part of the whole.
    #[must_use]
    pub fn scoped(&self, service: &'static str) -> Self {
        Self { readiness: self.readiness.scoped(service), registry: Arc::clone(&self.registry) }
    }

    /// Adds metrics under the prefix of the service, such as `plimsoll_ingest`.
    pub fn register<T>(&self, prefix: &'static str, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(self.registry.lock().unwrap_or_else(PoisonError::into_inner).sub_registry_with_prefix(prefix))
    }

    /// The metrics as `/metrics` answers them, OpenMetrics text.
    ///
    /// # Errors
    /// When a metric can't be written as text.
    pub fn metrics_text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
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
    match ops.metrics_text() {
        Ok(text) => {
            let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, format)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_do_not_clear_each_others_reasons() {
        let ops = Ops::default();
        let (ingest, api) = (ops.scoped("ingest"), ops.scoped("query API"));
        ingest.readiness.fail("lake", "opening");
        api.readiness.fail("lake", "not attached yet");
        ingest.readiness.clear("lake");
        assert!(!ops.readiness.is_ready() && !ingest.readiness.is_ready());
        assert_eq!(ops.readiness.reasons(), "query API lake: not attached yet\n");
        api.readiness.clear("lake");
        assert!(ops.readiness.is_ready());
        ops.readiness.fail("broker", "connecting");
        assert_eq!(ops.readiness.reasons(), "broker: connecting\n");
    }
}
