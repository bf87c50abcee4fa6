//! The parameters of a request: each is taken once, and whatever is wrong is told at once.

use std::collections::BTreeMap;

use axum::{
    extract::{FromRequestParts, Path, Query},
    http::{Uri, request::Parts},
};
use plimsoll_nats::Name;

use crate::problem::{ApiError, ParameterError};

/// What the parameter of a tag begins with.
const TAG: &str = "tag.";

/// The one variable part of a path.
#[derive(Debug)]
pub struct Segment(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let unknown = ApiError::unknown_path(parts.uri.path());
        Path::from_request_parts(parts, state).await.map(|Path(text)| Self(text)).map_err(|_| unknown)
    }
}

/// What a request's address says after the question mark.
#[derive(Debug)]
pub struct Params {
    pairs: BTreeMap<String, String>,
    taken: Vec<String>,
    errors: Vec<ParameterError>,
}

impl Params {
    /// The parameters of an address.
    #[must_use]
    pub fn of(uri: &Uri) -> Self {
        let mut params = Self { pairs: BTreeMap::new(), taken: Vec::new(), errors: Vec::new() };
        let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else {
            params.wrong("?", "name=value pairs, joined by `&`");
            return params;
        };
        for (name, value) in pairs {
            if params.pairs.contains_key(&name) {
                params.wrong(&name, "the parameter once");
            }
            params.pairs.insert(name, value);
        }
        params
    }

    /// Notes that a parameter is wrong.
    pub fn wrong(&mut self, parameter: &str, expected: impl Into<String>) {
        self.errors.push(ParameterError::new(parameter, expected));
    }

    fn text(&mut self, name: &str) -> Option<String> {
        self.taken.push(name.to_owned());
        self.pairs.remove(name)
    }

    /// A parameter that may be absent; none as well when it is wrong, which is noted.
    pub fn optional<T>(&mut self, name: &str, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.text(name)?;
        let value = parse(&text);
        if value.is_none() {
            self.wrong(name, expected);
        }
        value
    }

    /// A parameter that must be there.
    pub fn required<T>(&mut self, name: &str, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        if !self.pairs.contains_key(name) {
            self.taken.push(name.to_owned());
            self.wrong(name, format!("{expected}; the parameter is missing"));
            return None;
        }
        self.optional(name, expected, parse)
    }

    /// All parameters `tag.<name>`.
    pub fn tags(&mut self) -> BTreeMap<Name, String> {
        self.taken.push("tag.<name>".to_owned());
        let mut tags = BTreeMap::new();
        let (named, rest): (BTreeMap<_, _>, _) =
            std::mem::take(&mut self.pairs).into_iter().partition(|(name, _)| name.starts_with(TAG));
        self.pairs = rest;
        for (parameter, value) in named {
            match Name::parse(parameter.strip_prefix(TAG).unwrap_or(&parameter)) {
                Ok(name) => drop(tags.insert(name, value)),
                Err(error) => self.errors.push(ParameterError::new(parameter, error.to_string())),
            }
        }
        tags
    }

    /// Fails with all that was wrong, parameters that nobody has asked for included.
    pub fn finish(mut self) -> Result<(), ApiError> {
        let known = if self.taken.is_empty() { "no parameter".to_owned() } else { self.taken.join(", ") };
        for name in std::mem::take(&mut self.pairs).into_keys() {
            self.wrong(&name, format!("only {known}"));
        }
        if self.errors.is_empty() { Ok(()) } else { Err(ApiError::parameters(self.errors)) }
    }
}
