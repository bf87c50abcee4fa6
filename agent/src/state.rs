//! The agent's state folder: what outlives the agent. It holds
//!
//! - `lock`, locked for as long as an agent uses the folder,
//! - `boot_id`, the boot of the host that an agent last ran in,
//! - `spool/metrics` and `spool/events`, see [`crate::spool`].

use std::{
    env,
    ffi::OsString,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

/// Where the folder is when nobody says otherwise, and the agent may write there.
pub const SYSTEM_FOLDER: &str = "/var/lib/plimsoll-agent";
const BOOT_ID: &str = "boot_id";

/// Why the agent must not run.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another agent uses the folder.
    #[error(
        "the state folder `{path}` is in use by another agent: stop that one, or set `state_dir` (PLIMSOLL_AGENT__STATE_DIR) to a folder of this one's own"
    )]
    InUse {
        /// The folder.
        path: PathBuf,
    },
}

/// The state folder, locked until dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Creates the folder where it is missing and locks it; the lock goes with the process, however it ends. None when no folder
    /// can be written, which is logged: the agent can do without.
    ///
    /// Fails when another agent uses the folder.
    pub fn open(configured: Option<&Path>) -> Result<Option<Self>, StateError> {
        let candidates = candidates(configured, |name| env::var_os(name));
        for path in &candidates {
            match lock(path) {
                Ok(lock) => return Ok(Some(Self { path: path.clone(), _lock: lock })),
                Err(TryLockError::WouldBlock) => return Err(StateError::InUse { path: path.clone() }),
                Err(TryLockError::Error(error)) if Some(path) == candidates.last() => {
                    tracing::warn!(
                        path = %path.display(), %error,
                        "the state folder cannot be written: nothing is spooled to disk, and reboots are not noticed; set `state_dir`"
                    );
                }
                Err(TryLockError::Error(_)) => {}
            }
        }
        Ok(None)
    }

    /// Where a stream's spool is.
    #[must_use]
    pub fn spool(&self, stream: &str) -> PathBuf {
        self.path.join("spool").join(stream)
    }

    /// The boot that an agent last ran in; none when there is no valid note of it.
    #[must_use]
    pub fn boot_id(&self) -> Option<String> {
        let text = fs::read_to_string(self.path.join(BOOT_ID)).ok()?;
        let id = text.trim();
        (!id.is_empty()).then(|| id.to_owned())
    }

    /// Notes the boot that this agent runs in.
    pub fn set_boot_id(&self, boot_id: &str) -> io::Result<()> {
        let temporary = self.path.join("boot_id.new");
        fs::write(&temporary, format!("{boot_id}\n"))?;
        fs::rename(temporary, self.path.join(BOOT_ID))
    }
}

/// Where the state folder is, or will be once an agent runs; none where nobody says, the system's cannot be written, and there is
/// no home either.
#[must_use]
pub fn folder(configured: Option<&Path>) -> Option<PathBuf> {
    let candidates = candidates(configured, |name| env::var_os(name));
    let last = candidates.last().filter(|path| *path != Path::new(SYSTEM_FOLDER)).cloned();
    candidates.into_iter().find(|path| can_be_written(path)).or(last)
}

/// Whether it can be written, or created where it is missing.
fn can_be_written(path: &Path) -> bool {
    let existing = path.ancestors().find(|path| path.exists());
    existing.is_some_and(|path| path.is_dir() && access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok())
}

fn lock(path: &Path) -> Result<File, TryLockError> {
    fs::create_dir_all(path).map_err(TryLockError::Error)?;
    let lock = File::create(path.join("lock")).map_err(TryLockError::Error)?;
    lock.try_lock()?;
    Ok(lock)
}

/// The folders to try, in order: the configured one or systemd's alone where there is one.
fn candidates(configured: Option<&Path>, variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    // systemd.exec(5): several folders are separated by colons.
    let of_systemd = || set("STATE_DIRECTORY").and_then(|folders| env::split_paths(&folders).next());
    if let Some(only) = configured.map(Path::to_owned).or_else(of_systemd) {
        return vec![only];
    }
    // XDG Base Directory Specification: the variable must be absolute, and defaults to ~/.local/state.
    let of_user = set("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".local/state")));
    [Some(SYSTEM_FOLDER.into()), of_user.map(|path| path.join("plimsoll-agent"))].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(configured: Option<&str>, variables: &[(&str, &str)]) -> Vec<PathBuf> {
        candidates(configured.map(Path::new), |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_folder_is_the_configured_one_then_systemds_then_the_systems_then_the_users() {
        let all = [("STATE_DIRECTORY", "/s/a:/s/b"), ("XDG_STATE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(chosen(Some("/c"), &all), [Path::new("/c")]);
        assert_eq!(chosen(None, &all), [Path::new("/s/a")]);
        let system = Path::new(SYSTEM_FOLDER);
        assert_eq!(chosen(None, &all[1..]), [system, Path::new("/x/plimsoll-agent")]);
        assert_eq!(chosen(None, &all[2..]), [system, Path::new("/h/.local/state/plimsoll-agent")]);
        assert_eq!(chosen(None, &[("XDG_STATE_HOME", "here"), ("STATE_DIRECTORY", "")]), [system]);
    }

    #[test]
    fn one_agent_at_a_time() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("new/state");
        let first = StateDir::open(Some(&path)).unwrap().unwrap();
        let text = StateDir::open(Some(&path)).unwrap_err().to_string();
        assert!(text.contains("in use") && text.contains("PLIMSOLL_AGENT__STATE_DIR"), "{text}");
        assert_eq!(first.boot_id(), None);
        first.set_boot_id("a-b-c").unwrap();
        drop(first);
        assert_eq!(StateDir::open(Some(&path)).unwrap().unwrap().boot_id().as_deref(), Some("a-b-c"));
    }

    #[test]
    fn an_agent_can_do_without() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(StateDir::open(Some(&file.path().join("state"))).unwrap().is_none());
    }
}
