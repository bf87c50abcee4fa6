//! Which rows a query speaks of.

use std::collections::BTreeMap;

use plimsoll_nats::{HostId, Name};

use crate::sql::{ident, literal};

/// The hosts of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hosts {
    /// Every host.
    All,
    /// These hosts.
    Listed(Vec<HostId>),
    /// Those whose id matches.
    Matching(HostPattern),
}

impl From<HostId> for Hosts {
    fn from(host: HostId) -> Self {
        Self::Listed(vec![host])
    }
}

impl Hosts {
    /// The host, where there is exactly one.
    #[must_use]
    pub fn single(&self) -> Option<&HostId> {
        match self {
            Self::Listed(hosts) => match &hosts[..] {
                [host] => Some(host),
                _ => None,
            },
            Self::All | Self::Matching(_) => None,
        }
    }

    /// Whether the host is one of them.
    #[must_use]
    pub fn contain(&self, host: &HostId) -> bool {
        match self {
            Self::All => true,
            Self::Listed(hosts) => hosts.contains(host),
            Self::Matching(pattern) => pattern.matches(host),
        }
    }

    /// The condition of a `WHERE`; none where every host belongs.
    pub(super) fn condition(&self) -> Option<String> {
        match self {
            Self::All => None,
            Self::Listed(hosts) => match &hosts[..] {
                [] => Some("false".to_owned()),
                [host] => Some(format!("host = {}", literal(host))),
                hosts => {
                    let hosts: Vec<String> = hosts.iter().map(|host| literal(host)).collect();
                    Some(format!("host IN ({})", hosts.join(", ")))
                }
            },
            Self::Matching(pattern) => Some(pattern.condition()),
        }
    }
}

/// A pattern of host ids: `*` stands for any characters, `?` for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern(String);

impl HostPattern {
    /// The pattern that a text says; none where it holds a character that is neither a wildcard nor ever part of a host id.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_*?".contains(&byte);
        ((1..=256).contains(&text.len()) && text.bytes().all(fits)).then(|| Self(text.to_owned()))
    }

    /// Whether the whole text matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let (pattern, text) = (self.0.as_bytes(), text.as_bytes());
        let (mut p, mut t) = (0, 0);
        // Where the last `*` stands, and up to where it has matched.
        let mut star = None;
        while t < text.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, t));
                    p += 1;
                }
                Some(byte) if *byte == b'?' || *byte == text[t] => (p, t) = (p + 1, t + 1),
                _ => {
                    let Some((at, matched)) = star else { return false };
                    star = Some((at, matched + 1));
                    (p, t) = (at + 1, matched + 1);
                }
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }

    fn condition(&self) -> String {
        let glob = format!("host GLOB {}", literal(&self.0));
        // Row groups are left out by a comparison only, not by a pattern.
        let prefix: String = self.0.chars().take_while(|c| !"*?".contains(*c)).collect();
        if prefix.is_empty() {
            return glob;
        }
        // All characters of host ids are below `~`.
        format!("host >= {} AND host < {} AND {glob}", literal(&prefix), literal(&format!("{prefix}~")))
    }
}

/// Rows of one measurement whose time is in `[from, to)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The hosts.
    pub hosts: Hosts,
    /// The measurement.
    pub measurement: Name,
    /// Unix ms from which on, inclusive.
    pub from_ms: i64,
    /// Unix ms up to which, exclusive; `None` takes all up to the newest row.
    pub to_ms: Option<i64>,
    /// Only series whose tags have these values.
    pub tags: BTreeMap<Name, String>,
}

impl Selection {
    /// The condition of a `WHERE` for the part of the selection in `[from, to)`.
    ///
    /// All values stand in the text and are no parameters: only what the planner sees leaves out files by day and row groups by host.
    pub(super) fn condition(&self, from_ms: i64, to_ms: Option<i64>) -> String {
        let to = to_ms.map(|to| format!(" AND ts < {}", time(to))).unwrap_or_default();
        format!("{} AND ts >= {}{to}", self.condition_of_series(), time(from_ms))
    }

    /// The condition of a `WHERE` that a row belongs to the selection's series, whatever its time.
    pub(super) fn condition_of_series(&self) -> String {
        let tags = self.tags.iter().map(|(tag, value)| format!("{} = {}", ident(tag), literal(value)));
        let conditions: Vec<String> = self.hosts.condition().into_iter().chain(tags).collect();
        if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") }
    }
}

/// A time as a constant of the type of `ts`.
fn time(unix_ms: i64) -> String {
    /// Years 1 to 9999: what DuckDB's timestamps hold for certain.
    const RANGE: (i64, i64) = (-62_135_596_800_000, 253_402_300_799_999);
    format!("epoch_ms({}::BIGINT)::TIMESTAMP_MS", unix_ms.clamp(RANGE.0, RANGE.1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a pattern means, by trying every way to use its stars.
    fn naive(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => (0..=text.len()).any(|skipped| naive(rest, &text[skipped..])),
            ([b'?', rest @ ..], [_, text @ ..]) => naive(rest, text),
            ([byte, rest @ ..], [first, text @ ..]) => byte == first && naive(rest, text),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn patterns_match_as_their_definition_says(pattern in "[ab*?]{1,8}", text in "[ab]{0,8}") {
            let parsed = HostPattern::parse(&pattern).expect("valid");
            prop_assert_eq!(parsed.matches(&text), naive(pattern.as_bytes(), text.as_bytes()));
        }
    }

    #[test]
    fn what_no_host_id_holds_is_no_pattern() {
        for text in ["", "web.*", "a'b", "[ab]", "{a,b}", "ä"] {
            assert_eq!(HostPattern::parse(text), None, "{text}");
        }
    }
}
