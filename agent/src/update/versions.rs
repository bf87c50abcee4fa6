//! The versions that were fetched, and what became of them. [`crate::update`] shows the layout.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use plimsoll_nats::now_ms;
use semver::Version;

use crate::update::{
    error::UpdateError,
    release::{MAX_DESCRIPTION_BYTES, MAX_SIGNATURE_BYTES, Release, ReleaseError, ReleaseKey, SIGNATURE_SUFFIX},
};

/// How many trials may be begun that have no outcome, as when the power fails during one.
pub const MAX_TRIALS: u32 = 3;

const PROGRAM: &str = "plimsoll-agent";
const DESCRIPTION: &str = "release.json";
const INCOMING: &str = ".incoming";
const TRIAL: &str = "trial";
const REPORTED: &str = "reported";
const GOOD: &str = "good";
const FAILED: &str = "failed";
const TOLD: &str = "told";

/// Longest text of a mark that is read, in bytes.
const MAX_MARK_BYTES: u64 = 4 * 1024;

pub use crate::state::folder as state_dir;

/// The folder of all versions that were fetched.
#[derive(Debug, Clone)]
pub struct Versions {
    dir: PathBuf,
}

impl Versions {
    /// Those in `<state_dir>/versions`, which need not exist.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("versions") }
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The complete versions, the newest first; none where the folder cannot be read.
    #[must_use]
    pub fn all(&self) -> Vec<Fetched> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut all: Vec<Fetched> = entries
            .filter_map(|entry| {
                let version = Version::parse(entry.file_name().to_str()?).ok()?;
                Some(Fetched { version, dir: entry.path() })
            })
            .collect();
        all.sort_by(|a, b| b.version.cmp_precedence(&a.version).then_with(|| b.version.cmp(&a.version)));
        all
    }

    /// A version by its name.
    #[must_use]
    pub fn find(&self, version: &Version) -> Option<Fetched> {
        self.all().into_iter().find(|fetched| fetched.version == *version)
    }

    /// Begins to add a version. Fails while another process does.
    pub fn begin(&self) -> Result<Incoming, UpdateError> {
        fs::create_dir_all(&self.dir).map_err(UpdateError::store(&self.dir))?;
        let path = self.dir.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(UpdateError::store(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(UpdateError::Busy),
            Err(TryLockError::Error(error)) => return Err(UpdateError::store(path)(error)),
        }
        let dir = self.dir.join(INCOMING);
        remove(&dir)?;
        fs::create_dir(&dir).map_err(UpdateError::store(&dir))?;
        Ok(Incoming { versions: self.dir.clone(), dir, _lock: lock })
    }

    /// Removes the versions that are of no more use while `running` runs: those before it, save the last good one.
    pub fn clean(&self, running: &Version) {
        let mut kept = false;
        for fetched in self.all().into_iter().filter(|fetched| fetched.version.cmp_precedence(running).is_lt()) {
            if !kept && fetched.outcome() == Outcome::Good {
                kept = true;
            } else if let Err(error) = remove(&fetched.dir) {
                tracing::warn!(error = %plimsoll_nats::dead::chain(&error), "an old version stays");
            }
        }
    }

    /// Unix time in ms at which a release was last looked for.
    #[must_use]
    pub fn last_check_ms(&self) -> Option<i64> {
        read_mark(&self.dir.join("last_check"))?.parse().ok()
    }

    /// Notes that a release was looked for now.
    pub fn note_check(&self) -> Result<(), UpdateError> {
        fs::create_dir_all(&self.dir).map_err(UpdateError::store(&self.dir))?;
        write_mark(&self.dir, "last_check", &now_ms().to_string())
    }
}

/// A version that is being added; gone with this value unless it is kept.
#[derive(Debug)]
pub struct Incoming {
    versions: PathBuf,
    dir: PathBuf,
    _lock: File,
}

impl Incoming {
    /// Where the program goes.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.dir.join(PROGRAM)
    }

    /// Adds what vouches for it, and keeps it as that version in place of any that was there.
    pub fn keep(self, version: &Version, description: &[u8], signature: &[u8]) -> Result<Fetched, UpdateError> {
        write_synced(&self.dir.join(DESCRIPTION), description)?;
        write_synced(&self.dir.join(signature_name()), signature)?;
        sync_dir(&self.dir)?;
        let dir = self.versions.join(version.to_string());
        remove(&dir)?;
        fs::rename(&self.dir, &dir).map_err(UpdateError::store(&dir))?;
        sync_dir(&self.versions)?;
        Ok(Fetched { version: version.clone(), dir })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // What remains is removed when the next version is begun.
        let _ = remove(&self.dir);
    }
}

/// What is known of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was not tried, or its trials were broken off.
    None,
    /// It has reported in its trial.
    Good,
    /// It must not be run again.
    Failed,
}

/// A version that was fetched and verified at that time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its version.
    pub version: Version,
    dir: PathBuf,
}

impl Fetched {
    /// The program.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.dir.join(PROGRAM)
    }

    /// What the program on trial creates once it has reported.
    #[must_use]
    pub fn reported(&self) -> PathBuf {
        self.dir.join(REPORTED)
    }

    /// What is known of it.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        if self.dir.join(FAILED).exists() {
            Outcome::Failed
        } else if self.dir.join(GOOD).exists() {
            Outcome::Good
        } else {
            Outcome::None
        }
    }

    /// Verifies signature, version and program anew: the disk may hold something else by now.
    pub fn verify(&self, key: &ReleaseKey, target: &str) -> Result<(), UpdateError> {
        let description = read_bounded(&self.dir.join(DESCRIPTION), MAX_DESCRIPTION_BYTES)?;
        let signature = read_bounded(&self.dir.join(signature_name()), MAX_SIGNATURE_BYTES)?;
        let path = self.program();
        let refused = UpdateError::refused(path.display());
        let program = match Release::verified(&description, &signature, key).and_then(|release| self.own(release)) {
            Ok(release) => match release.program(target) {
                Ok(program) => program.clone(),
                Err(error) => return Err(refused(error)),
            },
            Err(error) => return Err(refused(error)),
        };
        let file = File::open(&path).map_err(UpdateError::store(&path))?;
        program.check(file).map_err(UpdateError::store(&path))?.map_err(refused)
    }

    fn own(&self, release: Release) -> Result<Release, ReleaseError> {
        if release.version == self.version {
            Ok(release)
        } else {
            Err(ReleaseError::OtherVersion { found: release.version, expected: self.version.clone() })
        }
    }

    /// Counts a trial that begins. Returns false where too many were begun already.
    pub fn begin_trial(&self) -> Result<bool, UpdateError> {
        remove(&self.reported())?;
        let begun = self.trials();
        if begun >= MAX_TRIALS {
            return Ok(false);
        }
        write_mark(&self.dir, TRIAL, &(begun + 1).to_string())?;
        Ok(true)
    }

    /// Takes back the count of a trial that was broken off through no fault of the version.
    pub fn break_off_trial(&self) -> Result<(), UpdateError> {
        write_mark(&self.dir, TRIAL, &self.trials().saturating_sub(1).to_string())
    }

    fn trials(&self) -> u32 {
        read_mark(&self.dir.join(TRIAL)).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Notes that it has reported, in place of `replaced`.
    pub fn note_good(&self, replaced: &Version) -> Result<(), UpdateError> {
        write_mark(&self.dir, GOOD, &replaced.to_string())
    }

    /// Notes that it must not be run again, and removes its program.
    pub fn note_failed(&self, reason: &str) -> Result<(), UpdateError> {
        write_mark(&self.dir, FAILED, reason)?;
        remove(&self.program())
    }

    /// What the mark of its outcome says: the version replaced, or the reason.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        match self.outcome() {
            Outcome::None => None,
            Outcome::Good => read_mark(&self.dir.join(GOOD)),
            Outcome::Failed => read_mark(&self.dir.join(FAILED)),
        }
    }

    /// Whether its outcome has become an event.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.dir.join(TOLD).exists()
    }

    /// Notes that its outcome has become an event.
    pub fn note_told(&self) -> Result<(), UpdateError> {
        write_mark(&self.dir, TOLD, "")
    }
}

/// Creates a file with this text, whole or not at all.
pub(super) fn write_mark(dir: &Path, name: &str, text: &str) -> Result<(), UpdateError> {
    let (path, new) = (dir.join(name), dir.join(format!(".{name}")));
    fs::write(&new, text).and_then(|()| fs::rename(&new, &path)).map_err(UpdateError::store(path))
}

fn read_mark(path: &Path) -> Option<String> {
    let text = read_bounded(path, MAX_MARK_BYTES).ok()?;
    Some(String::from_utf8_lossy(&text).trim().to_owned())
}

fn read_bounded(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, UpdateError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit_bytes).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(UpdateError::store(path))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), UpdateError> {
    fs::write(path, bytes).and_then(|()| File::open(path)?.sync_all()).map_err(UpdateError::store(path))
}

fn sync_dir(path: &Path) -> Result<(), UpdateError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(UpdateError::store(path))
}

/// Removes a file or folder; that there is none is as good.
fn remove(path: &Path) -> Result<(), UpdateError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(UpdateError::store(path)(error)),
        _ => Ok(()),
    }
}

fn signature_name() -> String {
    format!("{DESCRIPTION}{SIGNATURE_SUFFIX}")
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn versions() -> (TempDir, Versions) {
        let dir = TempDir::new().unwrap();
        let versions = Versions::new(dir.path());
        (dir, versions)
    }

    fn add(versions: &Versions, version: &str) -> Fetched {
        let incoming = versions.begin().unwrap();
        fs::write(incoming.program(), version).unwrap();
        incoming.keep(&Version::parse(version).unwrap(), b"{}", b"").unwrap()
    }

    fn names(versions: &Versions) -> Vec<String> {
        versions.all().iter().map(|fetched| fetched.version.to_string()).collect()
    }

    #[test]
    fn versions_are_sorted_as_versions_and_nothing_else_counts() {
        let (_dir, versions) = versions();
        assert_eq!(names(&versions), [""; 0]);
        for version in ["0.9.0", "0.10.0", "0.10.0-rc.1"] {
            add(&versions, version);
        }
        fs::create_dir(versions.dir().join("newest")).unwrap();
        fs::write(versions.dir().join("last_check"), "x").unwrap();
        assert_eq!(names(&versions), ["0.10.0", "0.10.0-rc.1", "0.9.0"]);
        assert_eq!(versions.last_check_ms(), None);
    }

    #[test]
    fn one_process_adds_at_a_time_and_what_it_leaves_goes() {
        let (_dir, versions) = versions();
        let incoming = versions.begin().unwrap();
        fs::write(incoming.program(), "half").unwrap();
        assert!(matches!(versions.begin(), Err(UpdateError::Busy)));
        drop(incoming);
        assert!(!versions.dir().join(INCOMING).exists());
        fs::create_dir(versions.dir().join(INCOMING)).unwrap();
        add(&versions, "1.0.0");
        assert_eq!(names(&versions), ["1.0.0"]);
    }

    #[test]
    fn trials_without_an_outcome_are_counted() {
        let (_dir, versions) = versions();
        let fetched = add(&versions, "1.0.0");
        for _ in 0..5 {
            assert!(fetched.begin_trial().unwrap());
            fetched.break_off_trial().unwrap();
        }
        for _ in 0..MAX_TRIALS {
            assert!(fetched.begin_trial().unwrap());
        }
        assert!(!fetched.begin_trial().unwrap());
    }

    #[test]
    fn a_trial_begins_without_an_earlier_report() {
        let (_dir, versions) = versions();
        let fetched = add(&versions, "1.0.0");
        fs::write(fetched.reported(), "").unwrap();
        fetched.begin_trial().unwrap();
        assert!(!fetched.reported().exists());
    }

    #[test]
    fn an_outcome_is_remembered_with_its_remark() {
        let (_dir, versions) = versions();
        let fetched = add(&versions, "1.0.0");
        assert_eq!((fetched.outcome(), fetched.remark()), (Outcome::None, None));
        fetched.note_good(&Version::new(0, 9, 0)).unwrap();
        assert_eq!((fetched.outcome(), fetched.remark().as_deref()), (Outcome::Good, Some("0.9.0")));
        fetched.note_failed("it ended").unwrap();
        assert_eq!((fetched.outcome(), fetched.remark().as_deref()), (Outcome::Failed, Some("it ended")));
        assert!(!fetched.program().exists());
        // Fetched by hand once more, it is as new.
        assert_eq!(add(&versions, "1.0.0").outcome(), Outcome::None);
    }

    #[test]
    fn old_versions_go_save_the_last_good_one() {
        let (_dir, versions) = versions();
        for version in ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0"] {
            add(&versions, version);
        }
        for version in ["0.1.0", "0.2.0"] {
            versions.find(&Version::parse(version).unwrap()).unwrap().note_good(&Version::new(0, 0, 1)).unwrap();
        }
        versions.clean(&Version::new(0, 5, 0));
        assert_eq!(names(&versions), ["0.6.0", "0.5.0", "0.2.0"]);
    }
}
