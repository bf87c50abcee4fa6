//! Which path is answered by what.

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{HeaderValue, Method, Uri, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use plimsoll_service::ops::Ops;

use crate::{
    app::App,
    guard::{AllowedHosts, guard},
    handlers,
    metrics::RequestLabels,
    problem::ApiError,
};

/// Largest document that a request may send.
const MAX_BODY: usize = 64 * 1024;
const INDEX: &str = include_str!("../web/index.html");

/// All routes of the service. Health checks and scrapes may use any name for it, all others one of `hosts` only.
pub fn router(app: App, ops: &Ops, hosts: AllowedHosts) -> Router {
    use handlers::{alerts, clients, events, fleet, live, measurements, metrics, rules, stats};
    let api = Router::new()
        .route("/", get(|| async { Html(INDEX) }))
        .route("/api/clients", get(clients::list))
        .route("/api/metrics/{host}", get(metrics::read))
        .route("/api/stats/{host}", get(stats::read))
        .route("/api/fleet/{measurement}", get(fleet::read))
        .route("/api/measurements", get(measurements::list))
        .route("/api/rules", get(rules::list).post(rules::create))
        .route("/api/rules/{name}", get(rules::read).put(rules::replace).delete(rules::delete))
        .route("/api/alerts", get(alerts::list))
        .route("/api/events", get(events::list))
        .route("/ws/live", get(live::open))
        .fallback(unknown_path)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(hosts, guard));
    api.with_state(app.clone())
        .merge(ops.router())
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(Arc::new(app), observe))
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::unknown_path(uri.path())
}

async fn method_not_allowed(method: Method) -> ApiError {
    ApiError::method_not_allowed(method.as_str())
}

/// Counts the answer and keeps it out of caches.
async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("none", |path| path.as_str()).to_owned();
    let method = known_method(request.method()).to_owned();
    let mut response = next.run(request).await.into_response();
    let status = response.status().as_u16();
    app.metrics.answered(&RequestLabels { route, method, status });
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A method as a label; a peer that makes up methods must not make up series.
fn known_method(method: &Method) -> &str {
    match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "PATCH" | "OPTIONS") => known,
        _ => "other",
    }
}
