//! `plimsoll-agent update`: looks for a release by hand.

use std::{io, os::unix::fs::MetadataExt as _, path::PathBuf};

use semver::Version;

use crate::{
    config::AgentConfig,
    update::{
        error::UpdateError,
        own_version,
        release::KeyError,
        updater::{Found, Source},
        versions::{Outcome, Versions, state_dir},
    },
};

/// Why no release can be looked for by hand.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Updates are off.
    #[error("no release is configured: set `url` and `public_key` in [update], in the file that --config names")]
    Off,
    /// There is no key to verify with.
    #[error("`update.public_key`: {0}")]
    Key(KeyError),
    /// There is no folder to keep a release in.
    #[error("there is no folder to keep a release in: set `state_dir`")]
    NoStateDir,
    /// The agent could not use what this process would write.
    #[error(
        "`{path}` belongs to user {owner}: run this as that user, such as `sudo -u '#{owner}' plimsoll-agent update …`"
    )]
    OtherUser {
        /// The folder for what outlives the agent.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// The runtime could not be started.
    #[error("failed to start")]
    Runtime(#[source] io::Error),
    /// The release cannot be had.
    #[error(transparent)]
    Update(#[from] UpdateError),
}

/// Looks for a newer release, and unless `check` is set, fetches it so that the agent tries it at its next start. Returns what to
/// tell the one who asked. A version that has failed before is fetched again.
pub fn run(config: &AgentConfig, check: bool) -> Result<String, CommandError> {
    let url = config.update.url.as_deref().ok_or(CommandError::Off)?;
    let key = config.update.key().map_err(CommandError::Key)?;
    let dir = state_dir(config.state_dir.as_deref()).ok_or(CommandError::NoStateDir)?;
    let versions = Versions::new(&dir);
    let running = newest_good(&versions);
    let source = Source::new(url, key, versions, running.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CommandError::Runtime)?;
    if check {
        let (release, newer) = runtime.block_on(source.look())?;
        let version = release.version;
        return Ok(if newer {
            format!("{version} is available, {running} is installed")
        } else {
            format!("{running} is installed, and {version} is what is released")
        });
    }
    check_owner(&dir)?;
    Ok(match runtime.block_on(source.fetch(true))? {
        Found::Ready(fetched) => {
            format!(
                "{} is verified and is tried at the agent's next start: systemctl restart plimsoll-agent",
                fetched.version
            )
        }
        Found::Nothing { newest } | Found::FailedBefore { version: newest, .. } => {
            format!("{running} is installed, and {newest} is what is released")
        }
    })
}

/// The version that the agent runs, or would.
fn newest_good(versions: &Versions) -> Version {
    let good = versions.all().into_iter().find(|fetched| fetched.outcome() == Outcome::Good);
    good.map(|fetched| fetched.version).into_iter().chain([own_version()]).max().unwrap_or_else(own_version)
}

fn check_owner(dir: &std::path::Path) -> Result<(), CommandError> {
    match std::fs::metadata(dir) {
        Ok(metadata) if metadata.uid() != rustix::process::geteuid().as_raw() => {
            Err(CommandError::OtherUser { path: dir.to_owned(), owner: metadata.uid() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    #[test]
    fn a_folder_of_another_user_is_not_written_to() {
        let dir = tempfile::TempDir::new().unwrap();
        assert!(check_owner(dir.path()).is_ok());
        assert!(check_owner(&dir.path().join("absent")).is_ok());
        let (path, owner) = if rustix::process::geteuid().is_root() {
            chown(dir.path(), Some(65534), None).unwrap();
            (dir.path(), 65534)
        } else {
            (std::path::Path::new("/"), 0)
        };
        let error = check_owner(path).unwrap_err().to_string();
        assert!(error.contains(&format!("sudo -u '#{owner}' plimsoll-agent")), "{error}");
    }
}
