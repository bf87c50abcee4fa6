//! Which live samples a connection wants.

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::LiveBatch;

/// What a list of globs must look like, for an error message.
pub const EXPECTED_GLOBS: &str = "names or globs joined by commas, such as `web-*,db-1`";

/// Hosts and measurements by glob.
#[derive(Debug, Clone)]
pub struct LiveFilter {
    hosts: Option<GlobSet>,
    measurements: Option<GlobSet>,
}

impl LiveFilter {
    /// A filter that lets pass what both lists name; none lets pass all.
    #[must_use]
    pub fn new(hosts: Option<GlobSet>, measurements: Option<GlobSet>) -> Self {
        Self { hosts, measurements }
    }

    /// Whether the batch passes.
    #[must_use]
    pub fn passes(&self, batch: &LiveBatch) -> bool {
        let named = |globs: &Option<GlobSet>, name: &str| globs.as_ref().is_none_or(|globs| globs.is_match(name));
        named(&self.hosts, batch.host()) && named(&self.measurements, batch.measurement())
    }
}

/// A comma list of globs; none when one is empty or no glob.
#[must_use]
pub fn parse_globs(text: &str) -> Option<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for glob in text.split(',').map(str::trim) {
        if glob.is_empty() {
            return None;
        }
        set.add(Glob::new(glob).ok()?);
    }
    set.build().ok()
}
