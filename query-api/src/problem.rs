//! The one error of the HTTP API, sent as `application/problem+json` (RFC 9457).

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use plimsoll_lake::{LakeError, query::QueryError};
use plimsoll_nats::{Name, dead::chain};
use serde::Serialize;

use crate::live::MAX_SUBSCRIBERS;

/// Most errors of one answer; the others are counted.
const MAX_ERRORS: usize = 16;
/// Most characters of what an answer repeats of its request.
const MAX_ECHO: usize = 80;

/// A parameter that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ParameterError {
    /// The parameter, or the key of the JSON document.
    pub parameter: String,
    /// What was expected instead.
    pub expected: String,
}

impl ParameterError {
    /// Says what was expected of a parameter.
    pub fn new(parameter: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { parameter: shortened(&parameter.into()), expected: expected.into() }
    }
}

/// A text of the request as an answer may repeat it.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_ECHO) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    kind: &'static str,
    status: StatusCode,
    title: &'static str,
    detail: String,
    errors: Vec<ParameterError>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [ParameterError],
}

impl ApiError {
    fn new(kind: &'static str, status: StatusCode, title: &'static str, detail: impl Into<String>) -> Self {
        Self { kind, status, title, detail: detail.into(), errors: Vec::new() }
    }

    /// 400: these parameters are wrong.
    #[must_use]
    pub fn parameters(mut errors: Vec<ParameterError>) -> Self {
        let more = errors.len().saturating_sub(MAX_ERRORS);
        errors.truncate(MAX_ERRORS);
        let wrong: Vec<String> = errors.iter().map(|error| format!("`{}`", error.parameter)).collect();
        let mut detail = format!("wrong: {}", wrong.join(", "));
        if more > 0 {
            detail.push_str(&format!(" and {more} more"));
        }
        Self { errors, ..Self::new("parameters", StatusCode::BAD_REQUEST, "A parameter is wrong", detail) }
    }

    /// 400: the document in the body is wrong in these places.
    #[must_use]
    pub fn document(errors: Vec<ParameterError>) -> Self {
        Self { kind: "document", title: "The document is wrong", ..Self::parameters(errors) }
    }

    /// What is wrong with single parameters or keys.
    #[must_use]
    pub fn errors(&self) -> &[ParameterError] {
        &self.errors
    }

    /// 404: nobody has heard of the host.
    #[must_use]
    pub fn unknown_host(host: &str) -> Self {
        let host = shortened(host);
        let detail = format!("host `{host}` has no record and no sample of this measurement: see /api/clients");
        Self::new("unknown-host", StatusCode::NOT_FOUND, "Unknown host", detail)
    }

    /// 404: nobody has heard of the measurement.
    #[must_use]
    pub fn unknown_measurement(measurement: &Name) -> Self {
        let detail =
            format!("measurement `{measurement}` is neither built in nor was it ever sent: see /api/measurements");
        Self::new("unknown-measurement", StatusCode::NOT_FOUND, "Unknown measurement", detail)
    }

    /// 404: there is no such rule.
    #[must_use]
    pub fn unknown_rule(name: &str) -> Self {
        let detail = format!("there is no rule `{}`", shortened(name));
        Self::new("unknown-rule", StatusCode::NOT_FOUND, "Unknown rule", detail)
    }

    /// 404: there is nothing at this path.
    #[must_use]
    pub fn unknown_path(path: &str) -> Self {
        let path = shortened(path);
        let detail = format!("there is nothing at `{path}`: see / for what there is");
        Self::new("unknown-path", StatusCode::NOT_FOUND, "Unknown path", detail)
    }

    /// 405: the path does not know the method.
    #[must_use]
    pub fn method_not_allowed(method: &str) -> Self {
        let method = shortened(method);
        let detail = format!("this path does not answer `{method}`: the header Allow names what it answers");
        Self::new("method", StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", detail)
    }

    /// 403: the request asks for a name that may be someone else's.
    #[must_use]
    pub fn foreign_host() -> Self {
        let detail = "expected an IP address, `localhost` or a name of the setting `allowed_hosts` in the header Host";
        Self::new("host", StatusCode::FORBIDDEN, "Foreign host", detail)
    }

    /// 403: a page of another origin asks.
    #[must_use]
    pub fn foreign_origin() -> Self {
        let detail = "the header Origin names another host than the header Host";
        Self::new("origin", StatusCode::FORBIDDEN, "Foreign origin", detail)
    }

    /// 409: a rule of that name exists.
    #[must_use]
    pub fn rule_exists(name: &Name) -> Self {
        let detail = format!("a rule `{name}` exists: PUT /api/rules/{name} replaces it");
        Self::new("rule-exists", StatusCode::CONFLICT, "The rule exists", detail)
    }

    /// 412: the rule was changed by someone else.
    #[must_use]
    pub fn rule_changed(name: &Name) -> Self {
        let detail = format!("rule `{name}` is not the one that If-Match names: read it again");
        Self::new("rule-changed", StatusCode::PRECONDITION_FAILED, "The rule was changed", detail)
    }

    /// 413: the body is too large, or broke off.
    #[must_use]
    pub fn body(status: StatusCode, reason: String) -> Self {
        Self::new("body", status, "The body cannot be used", reason)
    }

    /// 415: the body is not said to be JSON.
    #[must_use]
    pub fn not_json() -> Self {
        let detail = "expected the header `Content-Type: application/json`";
        Self::new("content-type", StatusCode::UNSUPPORTED_MEDIA_TYPE, "Not JSON", detail)
    }

    /// 426: the path speaks WebSocket only.
    #[must_use]
    pub fn not_websocket() -> Self {
        let detail = "expected a WebSocket handshake (RFC 6455)";
        Self::new("websocket", StatusCode::UPGRADE_REQUIRED, "Not a WebSocket request", detail)
    }

    /// 503: the broker is away.
    #[must_use]
    pub fn broker_away() -> Self {
        let detail = "the broker does not answer: try again";
        Self::new("broker", StatusCode::SERVICE_UNAVAILABLE, "The broker is away", detail)
    }

    /// 503: there are as many live connections as there may be.
    #[must_use]
    pub fn too_many_subscribers() -> Self {
        let detail = format!("{MAX_SUBSCRIBERS} live connections are open, which is the most: try again");
        Self::new("subscribers", StatusCode::SERVICE_UNAVAILABLE, "Too many live connections", detail)
    }

    /// 503: the lake is away.
    fn lake_away(error: &LakeError) -> Self {
        tracing::warn!(error = %chain(error), "a query failed");
        let detail = "the lake cannot be read now: try again; the service's log says why";
        Self::new("lake", StatusCode::SERVICE_UNAVAILABLE, "The lake is away", detail)
    }

    /// 504: the query took too long.
    #[must_use]
    pub fn interrupted() -> Self {
        let detail =
            "the query took longer than `query_timeout` allows: ask for less time, fewer fields or a larger step";
        Self::new("timeout", StatusCode::GATEWAY_TIMEOUT, "The query took too long", detail)
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        let known = |what: &str, names: &[Name]| {
            let names: Vec<&str> = names.iter().map(|name| &**name).collect();
            format!("one of the {what} {}", names.join(", "))
        };
        match error {
            QueryError::UnknownMeasurement { measurement } => Self::unknown_measurement(&measurement),
            QueryError::UnknownField { known: names, .. } => {
                Self::parameters(vec![ParameterError::new("field", known("fields", &names))])
            }
            QueryError::UnknownTag { tag, known: names, .. } => {
                Self::parameters(vec![ParameterError::new(format!("tag.{tag}"), known("tags", &names))])
            }
            QueryError::TooLarge { limit } => Self::parameters(vec![ParameterError::new(
                "limit",
                format!(
                    "an answer of at most {limit} values: ask for a step, less time, fewer fields or a lower limit"
                ),
            )]),
            QueryError::NotNumeric { field } => Self::parameters(vec![ParameterError::new(
                "field",
                format!("a number or bool: `{field}` is text, which has no aggregates"),
            )]),
            QueryError::OutOfMemory(_) => Self::new(
                "memory",
                StatusCode::SERVICE_UNAVAILABLE,
                "The query needs too much memory",
                "the query needs more memory than `lake.memory_limit` allows: ask for less time, fewer fields or hosts, or a larger step, or \
                 raise the limit",
            ),
            QueryError::Stale => Self::new(
                "lake",
                StatusCode::SERVICE_UNAVAILABLE,
                "The lake is away",
                "the lake moved on faster than it could be read: try again",
            ),
            QueryError::Lake(LakeError::Interrupted) => Self::interrupted(),
            QueryError::Lake(error) => Self::lake_away(&error),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let document = Document {
            r#type: format!("urn:plimsoll:problem:{}", self.kind),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            errors: &self.errors,
        };
        let mut response = (self.status, Json(document)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_repeats_little_of_its_request() {
        let long = "ä".repeat(10_000);
        let error = ApiError::parameters((0..1000).map(|_| ParameterError::new(&*long, "less")).collect());
        assert_eq!(error.errors.len(), MAX_ERRORS);
        assert_eq!(error.errors[0].parameter.chars().count(), MAX_ECHO + 1);
        assert!(error.detail.ends_with("…` and 984 more"), "{}", error.detail);
        for error in [
            ApiError::unknown_host(&long),
            ApiError::unknown_rule(&long),
            ApiError::unknown_path(&long),
            ApiError::method_not_allowed(&long),
            error,
        ] {
            assert!(error.detail.chars().count() < 2000, "{}", error.detail);
        }
    }
}
