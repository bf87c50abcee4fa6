//! Whether the agent can keep what outlives it.

use std::path::{Path, PathBuf};

use rustix::{fs::Access, io::Errno};
use serde::Serialize;

use crate::{AgentConfig, state};

/// What was found of the state folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StateDirReport {
    /// The folder.
    pub path: PathBuf,
    /// Whether it is there; the agent makes one that is missing.
    pub exists: bool,
    /// Whether this user can write there, or can make it.
    pub writable: bool,
    /// Why it cannot be written.
    pub reason: Option<String>,
}

/// The state folder that an agent of this configuration would use.
pub(super) fn folder(config: &AgentConfig) -> PathBuf {
    state::folder(config.state_dir.as_deref()).unwrap_or_else(|| state::SYSTEM_FOLDER.into())
}

/// Looks at a folder without writing there: of one that is missing the nearest folder above counts.
pub(super) fn look(path: &Path) -> StateDirReport {
    let existing = path.ancestors().find(|folder| folder.exists());
    let answer = match existing {
        Some(folder) if !folder.is_dir() => Err(Errno::NOTDIR),
        Some(folder) => rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK),
        None => Err(Errno::NOENT),
    };
    StateDirReport {
        path: path.to_owned(),
        exists: existing == Some(path),
        writable: answer.is_ok(),
        reason: answer.err().map(|error| std::io::Error::from(error).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_folder_can_be_written_where_it_can_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let there = look(dir.path());
        assert!(there.exists && there.writable, "{there:?}");
        let missing = look(&dir.path().join("a/b"));
        assert!(!missing.exists && missing.writable, "{missing:?}");
        assert!(!dir.path().join("a").exists(), "looking makes nothing");
    }

    #[test]
    fn what_cannot_be_written_is_told_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below"), "/proc/1/state".into()] {
            let report = look(&path);
            assert!(!report.writable && report.reason.is_some(), "{report:?}");
        }
    }
}
