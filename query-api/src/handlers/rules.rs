//! `/api/rules`: the alert rules, one a key of the bucket `RULES`.
//!
//! An ETag is the revision of the rule in its bucket. `If-Match` makes replacing and deleting fail when someone else was faster.

mod document;

use async_nats::jetstream::kv::{CreateErrorKind, DeleteErrorKind, Operation, Store, UpdateErrorKind};
use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use futures_util::TryStreamExt;
use plimsoll_nats::{Name, dead::chain, rule::Rule, streams};
use serde_json::json;

use crate::{
    app::App,
    params::{Params, Segment},
    problem::{ApiError, ParameterError, shortened},
};

/// Rules that are read at the same time.
const CONCURRENCY: usize = 16;

type Body = Result<Bytes, BytesRejection>;

/// Answers with all rules in the order of their names.
pub async fn list(State(app): State<App>, uri: Uri) -> Result<Response, ApiError> {
    Params::of(&uri).finish()?;
    let store = open(&app).await?;
    let keys = store.keys().await.map_err(|error| away(&error))?;
    let store = &store;
    let mut rules: Vec<Rule> = keys
        .map_err(|error| away(&error))
        .map_ok(|key| async move { stored(store, &key).await })
        .try_buffer_unordered(CONCURRENCY)
        .try_filter_map(|found| async { Ok(found.map(|(rule, _)| rule)) })
        .try_collect()
        .await?;
    rules.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(json!({ "rules": rules })).into_response())
}

/// Answers with a rule.
pub async fn read(State(app): State<App>, Segment(name): Segment, uri: Uri) -> Result<Response, ApiError> {
    Params::of(&uri).finish()?;
    let name = parse_name(&name)?;
    match stored(&open(&app).await?, &name).await? {
        Some((rule, revision)) => Ok(([(header::ETAG, etag(revision))], Json(rule)).into_response()),
        None => Err(ApiError::unknown_rule(&name)),
    }
}

/// Creates a rule.
pub async fn create(State(app): State<App>, uri: Uri, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    Params::of(&uri).finish()?;
    let rule = parse_rule(&headers, body)?;
    let store = open(&app).await?;
    match store.create(&rule.name, encode(&rule)).await {
        Ok(revision) => {
            tracing::info!(rule.name = %rule.name, "rule created");
            Ok(created(&rule, revision))
        }
        Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Err(ApiError::rule_exists(&rule.name)),
        Err(error) => Err(away(&error)),
    }
}

/// Creates or replaces a rule.
pub async fn replace(
    State(app): State<App>,
    Segment(name): Segment,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    Params::of(&uri).finish()?;
    let rule = parse_rule(&headers, body)?;
    if *rule.name != *name {
        return Err(ApiError::document(vec![ParameterError::new(
            "name",
            format!("`{}`, as in the path", shortened(&name)),
        )]));
    }
    let store = open(&app).await?;
    let before = stored_revision(&store, &rule.name).await?;
    let revision = match (if_match(&headers)?, before) {
        (Some(_), None) => return Err(ApiError::rule_changed(&rule.name)),
        (Some(wanted), Some(before)) => {
            let wanted = wanted.unwrap_or(before);
            match store.update(&rule.name, encode(&rule), wanted).await {
                Ok(revision) => revision,
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                    return Err(ApiError::rule_changed(&rule.name));
                }
                Err(error) => return Err(away(&error)),
            }
        }
        (None, _) => store.put(&rule.name, encode(&rule)).await.map_err(|error| away(&error))?,
    };
    tracing::info!(rule.name = %rule.name, "rule replaced");
    match before {
        Some(_) => Ok(([(header::ETAG, etag(revision))], Json(rule)).into_response()),
        None => Ok(created(&rule, revision)),
    }
}

/// Deletes a rule.
pub async fn delete(
    State(app): State<App>,
    Segment(name): Segment,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    Params::of(&uri).finish()?;
    let name = parse_name(&name)?;
    let store = open(&app).await?;
    let before = stored_revision(&store, &name).await?.ok_or_else(|| ApiError::unknown_rule(&name))?;
    let wanted = if_match(&headers)?.flatten();
    if wanted.is_some_and(|wanted| wanted != before) {
        return Err(ApiError::rule_changed(&name));
    }
    match store.delete_expect_revision(&name, wanted).await {
        Ok(()) => {}
        Err(error) if error.kind() == DeleteErrorKind::WrongLastRevision => return Err(ApiError::rule_changed(&name)),
        Err(error) => return Err(away(&error)),
    }
    tracing::info!(rule.name = %name, "rule deleted");
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn open(app: &App) -> Result<Store, ApiError> {
    if !app.client.is_connected() {
        return Err(ApiError::broker_away());
    }
    streams::bucket(&app.client, streams::RULES).await.map_err(|error| away(&error))
}

fn away(error: &(dyn std::error::Error + 'static)) -> ApiError {
    tracing::warn!(error = %chain(error), "the broker did not do what a request about rules needs");
    ApiError::broker_away()
}

/// The rule of a key and its revision.
async fn stored(store: &Store, key: &str) -> Result<Option<(Rule, u64)>, ApiError> {
    let entry = store.entry(key).await.map_err(|error| away(&error))?;
    let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else { return Ok(None) };
    match serde_json::from_slice(&entry.value) {
        Ok(rule) => Ok(Some((rule, entry.revision))),
        Err(error) => {
            tracing::warn!(key, error = %error, "a rule of the bucket cannot be read, leaving it out");
            Ok(None)
        }
    }
}

/// The revision of a key that has a value, readable or not.
async fn stored_revision(store: &Store, key: &str) -> Result<Option<u64>, ApiError> {
    let entry = store.entry(key).await.map_err(|error| away(&error))?;
    Ok(entry.filter(|entry| entry.operation == Operation::Put).map(|entry| entry.revision))
}

fn parse_name(text: &str) -> Result<Name, ApiError> {
    Name::parse(text).map_err(|_| ApiError::unknown_rule(text))
}

fn parse_rule(headers: &HeaderMap, body: Body) -> Result<Rule, ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Also keeps pages of other origins from posting: a browser asks first before it sends this type.
    if content_type.split(';').next().map(str::trim) != Some("application/json") {
        return Err(ApiError::not_json());
    }
    let body = body.map_err(|error| ApiError::body(error.status(), error.body_text()))?;
    document::parse(&body)
}

fn encode(rule: &Rule) -> Bytes {
    serde_json::to_vec(rule).expect("a validated rule has a JSON form").into()
}

fn created(rule: &Rule, revision: u64) -> Response {
    let headers = [(header::LOCATION, format!("/api/rules/{}", rule.name)), (header::ETAG, etag(revision))];
    (StatusCode::CREATED, headers, Json(rule)).into_response()
}

fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// What `If-Match` asks for: `Some(None)` is `*`, any rule that exists.
fn if_match(headers: &HeaderMap) -> Result<Option<Option<u64>>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let value = value.to_str().unwrap_or_default().trim();
    if value == "*" {
        return Ok(Some(None));
    }
    let revision = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).and_then(|text| text.parse().ok());
    match revision {
        Some(revision) => Ok(Some(Some(revision))),
        None => Err(ApiError::parameters(vec![ParameterError::new("If-Match", "one ETag of this rule, or `*`")])),
    }
}
