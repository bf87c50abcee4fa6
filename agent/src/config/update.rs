//! The settings of how the agent replaces itself.

use serde::Deserialize;

/// How the agent replaces itself; it does not unless `url` is set.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpdateConfig {
    /// Where releases are described; default none, and no update.
    pub url: Option<String>,
}

impl UpdateConfig {
    /// What is wrong with it.
    pub(super) fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}
