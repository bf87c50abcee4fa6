//! Keeps web pages of other origins out, since nobody logs in.
//!
//! A browser sends the name that it believes to ask as `Host`. A page whose own name was made to resolve to this machine (DNS
//! rebinding) sends that name, so only names that cannot be someone else's are answered. `Origin` names the page that asks.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, header, uri::Authority},
    middleware::Next,
    response::Response,
};

use crate::problem::ApiError;

/// Names that requests may ask for, beside IP addresses and `localhost`; without ports.
#[derive(Debug, Clone, Default)]
pub struct AllowedHosts(Arc<[String]>);

impl AllowedHosts {
    /// Allows these names.
    #[must_use]
    pub fn new(names: &[String]) -> Self {
        Self(names.into())
    }

    fn allows(&self, host: &str) -> bool {
        let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        literal.parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || self.0.iter().any(|name| host.eq_ignore_ascii_case(name))
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let host = text(headers, header::HOST).ok_or_else(ApiError::foreign_host)?;
        let authority: Authority = host.parse().map_err(|_| ApiError::foreign_host())?;
        if !self.allows(authority.host()) {
            return Err(ApiError::foreign_host());
        }
        if !headers.contains_key(header::ORIGIN) {
            return Ok(());
        }
        let origin = text(headers, header::ORIGIN)
            .and_then(|origin| origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")));
        match origin {
            Some(origin) if origin.eq_ignore_ascii_case(host) => Ok(()),
            _ => Err(ApiError::foreign_origin()),
        }
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Lets a request pass that asks for this service by a name of its own, from one of its own pages or from none.
pub async fn guard(State(hosts): State<AllowedHosts>, request: Request, next: Next) -> Result<Response, ApiError> {
    hosts.check(request.headers())?;
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(host: Option<&str>, origin: Option<&str>) -> bool {
        let headers = [(header::HOST, host), (header::ORIGIN, origin)];
        let given = headers.into_iter().filter_map(|(name, value)| Some((name, value?.parse().expect("a value"))));
        AllowedHosts::new(&["plimsoll.example.org".to_owned()]).check(&given.collect()).is_ok()
    }

    #[test]
    fn only_own_names_are_answered() {
        for host in ["127.0.0.1:8080", "192.0.2.1", "[::1]:8080", "[::1]", "localhost", "LOCALHOST:8080"] {
            assert!(passes(Some(host), None), "{host}");
        }
        for host in ["plimsoll.example.org", "Plimsoll.Example.org:8443"] {
            assert!(passes(Some(host), None), "{host}");
        }
        for host in ["", "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "a b"]
        {
            assert!(!passes(Some(host), None), "{host}");
        }
        assert!(!passes(None, None), "no name at all");
    }

    #[test]
    fn only_own_pages_are_answered() {
        for origin in ["http://127.0.0.1:8080", "https://127.0.0.1:8080"] {
            assert!(passes(Some("127.0.0.1:8080"), Some(origin)), "{origin}");
        }
        for origin in ["", "null", "127.0.0.1:8080", "ftp://127.0.0.1:8080", "http://127.0.0.1", "http://evil.example"]
        {
            assert!(!passes(Some("127.0.0.1:8080"), Some(origin)), "{origin}");
        }
    }
}
