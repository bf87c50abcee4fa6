//! The settings of how the agent replaces itself.

use std::time::Duration;

use serde::Deserialize;

use crate::update::{
    fetch,
    release::{KeyError, ReleaseKey},
};

const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 86_400);
const TRIALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

/// How the agent replaces itself; it does not unless `url` is set.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpdateConfig {
    /// Where the newest release is described, such as `https://releases.example.org/plimsoll-agent/release.json`; default none,
    /// and no update.
    pub url: Option<String>,
    /// The minisign key that releases are signed with, as one line of base64; default the one built in, if any.
    pub public_key: Option<String>,
    /// Time between two looks, 1 s to 30 days; default one day. Each differs from it by up to a tenth.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// How long a new release has to report before the agent goes back to the one before it, 1 s to 10 min; default 1 min.
    #[serde(with = "humantime_serde")]
    pub report_within: Duration,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            url: None,
            public_key: None,
            interval: Duration::from_secs(86_400),
            report_within: Duration::from_secs(60),
        }
    }
}

impl UpdateConfig {
    /// The key that releases are signed with. Fails where there is none, or where it is not one of minisign.
    pub fn key(&self) -> Result<ReleaseKey, KeyError> {
        ReleaseKey::configured_or_built_in(self.public_key.as_deref())
    }

    /// What is wrong with it.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.url.as_deref().is_some_and(|url| fetch::parse_url(url).is_err()) {
            problems.push("`update.url`: expected an address with https, or with http on loopback".to_owned());
        }
        if (self.url.is_some() || self.public_key.is_some())
            && let Err(error) = self.key()
        {
            problems.push(format!("`update.public_key`: {error}"));
        }
        if !INTERVALS.contains(&self.interval) {
            problems.push("`update.interval`: expected 1s to 30d".to_owned());
        }
        if !TRIALS.contains(&self.report_within) {
            problems.push("`update.report_within`: expected 1s to 10m".to_owned());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

    fn config(url: &str, key: &str) -> UpdateConfig {
        UpdateConfig { url: Some(url.to_owned()), public_key: Some(key.to_owned()), ..UpdateConfig::default() }
    }

    #[test]
    fn nothing_is_wrong_with_no_update() {
        assert_eq!(UpdateConfig::default().problems(), [""; 0]);
    }

    #[test]
    fn releases_come_over_https_or_from_this_host() {
        for url in ["https://example.org/release.json", "http://127.0.0.1:80/r", "http://[::1]/r", "http://localhost/r"]
        {
            assert_eq!(config(url, KEY).problems(), [""; 0], "{url}");
        }
        for url in
            ["http://example.org/release.json", "http://127.0.0.1.example.org/", "ftp://example.org/", "release", ""]
        {
            let problems = config(url, KEY).problems();
            assert!(problems.len() == 1 && problems[0].starts_with("`update.url`"), "{url}: {problems:?}");
        }
    }

    #[test]
    fn a_key_must_be_one() {
        for key in ["", "RWQ", "not base64!", &KEY[..40], "-----BEGIN PUBLIC KEY-----"] {
            let problems = config("https://example.org/release.json", key).problems();
            assert!(problems.len() == 1 && problems[0].starts_with("`update.public_key`"), "{key}: {problems:?}");
        }
    }

    #[test]
    fn times_are_bounded() {
        let long = Duration::from_secs(31 * 86_400);
        let config = UpdateConfig { interval: Duration::ZERO, report_within: long, ..UpdateConfig::default() };
        assert_eq!(
            config.problems(),
            ["`update.interval`: expected 1s to 30d", "`update.report_within`: expected 1s to 10m"]
        );
    }
}
