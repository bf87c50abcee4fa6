//! Fetches descriptions and programs.

use std::{
    fs::OpenOptions, io::Write as _, net::IpAddr, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration,
};

use reqwest::{Client, Response, StatusCode, Url, redirect::Policy};

use crate::update::{
    error::UpdateError,
    release::{MAX_DESCRIPTION_BYTES, MAX_SIGNATURE_BYTES, Program, ProgramDigest, SIGNATURE_SUFFIX},
};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest pause within an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a description or signature.
const DESCRIPTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a program.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Most redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// Reads an address that a release may come from: with https, or with http on loopback.
pub fn parse_url(text: &str) -> Result<Url, UpdateError> {
    let refused = || UpdateError::Url { url: text.to_owned() };
    Url::parse(text).ok().filter(is_permitted).ok_or_else(refused)
}

/// Whether nobody on the way can read or change what is fetched.
fn is_permitted(url: &Url) -> bool {
    let is_loopback = |host: &str| {
        let address = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    match url.scheme() {
        "https" => url.has_host(),
        "http" => url.host_str().is_some_and(is_loopback),
        _ => false,
    }
}

/// Fetches from the place where releases are described.
#[derive(Debug, Clone)]
pub struct Fetcher {
    http: Client,
    url: Url,
}

impl Fetcher {
    /// Fetches the description at `url`, and what it names.
    pub fn new(url: &str) -> Result<Self, UpdateError> {
        // Installed once a process; fails when it was installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let policy = Policy::custom(|attempt| {
            if attempt.previous().len() > MAX_REDIRECTS {
                attempt.error("too many redirects")
            } else if is_permitted(attempt.url()) {
                attempt.follow()
            } else {
                attempt.error("a redirect leaves https")
            }
        });
        let http = Client::builder()
            .user_agent(concat!("plimsoll-agent/", env!("CARGO_PKG_VERSION")))
            .redirect(policy)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build()
            .map_err(UpdateError::Client)?;
        Ok(Self { http, url: parse_url(url)? })
    }

    /// Where releases are described, as it may be logged.
    #[must_use]
    pub fn place(&self) -> String {
        shown(&self.url)
    }

    /// The description and its signature.
    pub async fn description(&self) -> Result<(Vec<u8>, Vec<u8>), UpdateError> {
        let mut signature = self.url.clone();
        signature.set_path(&format!("{}{SIGNATURE_SUFFIX}", self.url.path()));
        let description = self.small(&self.url, MAX_DESCRIPTION_BYTES).await?;
        Ok((description, self.small(&signature, MAX_SIGNATURE_BYTES).await?))
    }

    /// Fetches a program into a new file, which is on disk afterwards. Fails unless it is the one described; the file then
    /// holds something else.
    pub async fn program(&self, program: &Program, path: &Path) -> Result<(), UpdateError> {
        let refused = || UpdateError::Url { url: program.url.clone() };
        let url = self.url.join(&program.url).ok().filter(is_permitted).ok_or_else(refused)?;
        let mut response = self.get(&url, PROGRAM_TIMEOUT).await?;
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o755).open(path).map_err(UpdateError::store(path))?;
        let mut digest = ProgramDigest::default();
        while let Some(part) = next_part(&mut response, &url).await? {
            digest.update(&part);
            within(&url, digest.size_bytes(), program.size_bytes)?;
            file.write_all(&part).map_err(UpdateError::store(path))?;
        }
        file.sync_all().map_err(UpdateError::store(path))?;
        digest.check(program).map_err(UpdateError::refused(shown(&url)))
    }

    async fn small(&self, url: &Url, limit_bytes: u64) -> Result<Vec<u8>, UpdateError> {
        let mut response = self.get(url, DESCRIPTION_TIMEOUT).await?;
        let mut body = Vec::new();
        while let Some(part) = next_part(&mut response, url).await? {
            within(url, (body.len() + part.len()) as u64, limit_bytes)?;
            body.extend_from_slice(&part);
        }
        Ok(body)
    }

    async fn get(&self, url: &Url, timeout: Duration) -> Result<Response, UpdateError> {
        let response = self.http.get(url.clone()).timeout(timeout).send().await.map_err(failed(url))?;
        match response.status() {
            StatusCode::OK => Ok(response),
            status => Err(UpdateError::Status { url: shown(url), status: status.as_u16() }),
        }
    }
}

async fn next_part(response: &mut Response, url: &Url) -> Result<Option<bytes::Bytes>, UpdateError> {
    response.chunk().await.map_err(failed(url))
}

/// The failure of an exchange, which itself speaks of the address no more.
fn failed(url: &Url) -> impl FnOnce(reqwest::Error) -> UpdateError {
    let url = shown(url);
    |error| UpdateError::Fetch { url, source: error.without_url() }
}

fn within(url: &Url, size_bytes: u64, limit_bytes: u64) -> Result<(), UpdateError> {
    if size_bytes > limit_bytes { Err(UpdateError::TooLarge { url: shown(url), limit_bytes }) } else { Ok(()) }
}

/// An address as it may be logged: without the password and query that may be secrets.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Only addresses without a host refuse this, and they have neither.
    let _ = url.set_password(None);
    url.set_query(None);
    url.to_string()
}
