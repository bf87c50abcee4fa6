//! Which hosts and measurements a replay reads.

use std::{collections::BTreeSet, fmt};

use globset::{Glob, GlobMatcher};
use plimsoll_nats::{HostId, Name, NameError, subject};

/// Most subjects that a consumer is told; what is more is sorted out here.
const MAX_SUBJECTS: usize = 64;

/// Hosts and measurements by name or pattern.
#[derive(Debug, Clone)]
pub struct Selection {
    hosts: Patterns<HostId>,
    measurements: Patterns<Name>,
}

/// What is neither a name nor a pattern.
#[derive(Debug, thiserror::Error)]
pub enum SelectionError {
    /// Not a pattern.
    #[error("`{text}` is not a pattern: expected a name, or one with `*` or `?` such as `web-*`")]
    Pattern {
        /// The text.
        text: String,
    },
    /// Not a name.
    #[error("nothing can have that name")]
    Name(#[from] NameError),
}

/// Names and patterns, of which one must fit; none stands for everything.
#[derive(Debug, Clone)]
struct Patterns<N> {
    names: BTreeSet<N>,
    globs: Vec<GlobMatcher>,
}

impl<N: Ord + AsRef<str> + fmt::Display> Patterns<N> {
    fn parse(texts: &[String], name: impl Fn(&str) -> Result<N, NameError>) -> Result<Self, SelectionError> {
        let (mut names, mut globs) = (BTreeSet::new(), Vec::new());
        for text in texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
            if text.contains(['*', '?', '[', '{']) {
                let glob = Glob::new(text).map_err(|_| SelectionError::Pattern { text: text.to_owned() })?;
                globs.push(glob.compile_matcher());
            } else {
                names.insert(name(text)?);
            }
        }
        globs.sort_by(|one, other| one.glob().glob().cmp(other.glob().glob()));
        Ok(Self { names, globs })
    }

    fn is_everything(&self) -> bool {
        self.names.is_empty() && self.globs.is_empty() || self.globs.iter().any(|glob| glob.glob().glob() == "*")
    }

    fn matches(&self, name: &N) -> bool {
        self.is_everything() || self.names.contains(name) || self.globs.iter().any(|glob| glob.is_match(name.as_ref()))
    }

    /// Each name where there are only names, else one that stands for all.
    fn tokens(&self) -> Vec<Option<&N>> {
        if self.globs.is_empty() && !self.names.is_empty() { self.names.iter().map(Some).collect() } else { vec![None] }
    }

    fn shown(&self) -> String {
        if self.is_everything() {
            return "*".to_owned();
        }
        let names = self.names.iter().map(ToString::to_string);
        names.chain(self.globs.iter().map(|glob| glob.glob().glob().to_owned())).collect::<Vec<_>>().join(",")
    }
}

impl Selection {
    /// Reads names and patterns; none stand for everything. Fails on what can't be either.
    pub fn parse(hosts: &[String], measurements: &[String]) -> Result<Self, SelectionError> {
        Ok(Self {
            hosts: Patterns::parse(hosts, HostId::parse)?,
            measurements: Patterns::parse(measurements, Name::parse)?,
        })
    }

    /// Whether nothing is left out.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.hosts.is_everything() && self.measurements.is_everything()
    }

    /// Whether a message belongs to it.
    #[must_use]
    pub fn matches(&self, host: &HostId, measurement: &Name) -> bool {
        self.hosts.matches(host) && self.measurements.matches(measurement)
    }

    /// The subjects of a consumer that yields at least all of it. No two overlap.
    #[must_use]
    pub fn subjects(&self) -> Vec<String> {
        let (hosts, measurements) = (self.hosts.tokens(), self.measurements.tokens());
        let (hosts, measurements) = match (hosts.len(), measurements.len()) {
            (hosts_len, len) if hosts_len * len <= MAX_SUBJECTS => (hosts, measurements),
            (_, len) if len <= MAX_SUBJECTS => (vec![None], measurements),
            _ => (vec![None], vec![None]),
        };
        let of_host = |host: Option<&HostId>| {
            measurements.iter().map(move |measurement| subject::stored_of(host, *measurement)).collect::<Vec<_>>()
        };
        hosts.into_iter().flat_map(of_host).collect()
    }
}

/// The same for the same selection, however it was written.
impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hosts {} and measurements {}", self.hosts.shown(), self.measurements.shown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(hosts: &[&str], measurements: &[&str]) -> Selection {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Selection::parse(&texts(hosts), &texts(measurements)).expect("valid")
    }

    #[test]
    fn names_become_subjects_and_patterns_are_sorted_out() {
        let host = |text: &str| HostId::parse(text).expect("host");
        let name = |text: &str| Name::parse(text).expect("name");
        assert_eq!(selection(&[], &[]).subjects(), ["plimsoll.p.*.*.*"]);
        assert_eq!(selection(&[], &["mem", "cpu", "cpu"]).subjects(), ["plimsoll.p.*.*.cpu", "plimsoll.p.*.*.mem"]);
        let partition = subject::partition_of(&host("a"));
        assert_eq!(selection(&["a"], &["cpu*"]).subjects(), [format!("plimsoll.p.{partition}.a.*")]);
        assert_eq!(selection(&["a"], &["cpu"]).subjects(), [format!("plimsoll.p.{partition}.a.cpu")]);
        assert_eq!(selection(&["a", "web-*"], &["cpu"]).subjects(), ["plimsoll.p.*.*.cpu"]);
        let hosts: Vec<String> = (0..65).map(|n| format!("h{n}")).collect();
        let many = Selection::parse(&hosts, &["cpu".to_owned()]).expect("valid");
        assert_eq!(many.subjects(), ["plimsoll.p.*.*.cpu"]);
        assert!(many.matches(&host("h64"), &name("cpu")) && !many.matches(&host("h65"), &name("cpu")));
        let globs = selection(&["web-*", "db"], &["cp?"]);
        assert!(globs.matches(&host("web-1"), &name("cpu")) && globs.matches(&host("db"), &name("cpu")));
        assert!(!globs.matches(&host("db1"), &name("cpu")) && !globs.matches(&host("db"), &name("cpus")));
    }

    #[test]
    fn the_same_selection_has_the_same_words() {
        let one = selection(&["web-*", "b", "a"], &["cpu"]);
        assert_eq!(one.to_string(), "hosts a,b,web-* and measurements cpu");
        assert_eq!(selection(&["b", "a", " a", "web-*", ""], &["cpu", "cpu"]).to_string(), one.to_string());
        for all in [selection(&[], &[]), selection(&["*"], &["*", "cpu"])] {
            assert!(all.is_everything());
            assert_eq!(all.to_string(), "hosts * and measurements *");
        }
        assert!(!one.is_everything());
    }

    #[test]
    fn what_nothing_can_be_called_is_refused() {
        for (hosts, measurements) in [("a.b", "cpu"), ("a", "Cpu"), ("a[", "cpu")] {
            assert!(Selection::parse(&[hosts.to_owned()], &[measurements.to_owned()]).is_err());
        }
    }
}
