//! Loads a backup: first the whole of it is checked, then the files are brought, and the catalog that names them comes last.

use std::{
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use plimsoll_nats::now_ms;

use super::{
    BackupError, CATALOG, DATA, Observer, absolute, catalog, create,
    files::{Progress, check_space, is_same_device},
    lock,
    manifest::{Entry, Manifest},
    store::{DataStore, Way},
};
use crate::{Access, Lake, LakeConfig};

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreReport {
    /// The snapshot of the lake that the backup was made of.
    pub snapshot: u64,
    /// When the backup was finished, Unix ms.
    pub created_ms: i64,
    /// Files brought, besides the catalog.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Files that are hard links to the backup's.
    pub linked: usize,
    /// Where the lake is now that was there before.
    pub aside: Option<PathBuf>,
    /// How long it took.
    pub duration: Duration,
}

/// What stopping leaves behind.
const LEFT: &str = "nothing was restored";
/// The same where the files are brought to their place at once.
const LEFT_APART: &str = "files were brought and no catalog: remove them before the next try";

/// Makes the backup in `folder` the lake of this configuration. Where there is one already, it is moved aside with `replace`, which
/// takes an embedded one.
///
/// Blocks. Fails, and leaves a lake that is there as it was, when a file of the backup is missing or damaged, when there is a lake
/// already, and when the disk is too small.
pub fn restore(
    folder: &Path,
    config: &LakeConfig,
    replace: bool,
    observe: Observer<'_>,
) -> Result<RestoreReport, BackupError> {
    let started = Instant::now();
    let folder = &absolute(folder)?;
    if !Manifest::is_begun(folder) {
        return Err(BackupError::Unfinished { folder: folder.clone() });
    }
    let _lock = match lock(folder) {
        // Nobody can change a backup that is mounted read-only.
        Err(BackupError::File { source, .. }) if source.kind() == io::ErrorKind::ReadOnlyFilesystem => None,
        locked => Some(locked?),
    };
    Manifest::finish(folder)?;
    let manifest = Manifest::load(folder)?;
    verify(folder, &manifest, &mut *observe)?;
    let restoring = Restoring { folder, manifest: &manifest, config };
    let (linked, aside) = match config.sqlite_file() {
        Some(file) if config.is_embedded() => {
            let file = absolute(file)?;
            restoring.restore_embedded(file.parent().unwrap_or(&file), replace, observe)?
        }
        Some(file) => {
            let data_path = DataStore::absolute_root(config)?;
            (restoring.restore_separate(&absolute(file)?, config, &data_path, observe)?, None)
        }
        None => (restoring.restore_postgres(observe)?, None),
    };
    let (files, bytes) = (manifest.files.len(), manifest.files.iter().map(|entry| entry.bytes).sum());
    let Manifest { snapshot, created_ms, .. } = manifest;
    Ok(RestoreReport { snapshot, created_ms, files, bytes, linked, aside, duration: started.elapsed() })
}

/// Reads the whole backup. Fails with every file that is not what the manifest says.
fn verify(folder: &Path, manifest: &Manifest, observe: Observer<'_>) -> Result<(), BackupError> {
    let mut progress = Progress::new("checking", LEFT, observe);
    progress.expect(manifest.files.len() + 1, manifest.entries().map(|entry| entry.bytes).sum())?;
    let mut problems = Vec::new();
    for entry in manifest.entries() {
        let path = folder.join(&entry.path);
        let size = path.metadata().map(|metadata| metadata.len());
        match size {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                problems.push(format!("`{}` is missing", entry.path));
            }
            Err(source) => return Err(BackupError::File { action: "read", path, source }),
            Ok(bytes) if bytes != entry.bytes => {
                problems.push(format!("`{}` has {bytes} bytes, expected {}", entry.path, entry.bytes));
            }
            Ok(_) => {
                let found = Entry::of(&path, &entry.path, |read| progress.bytes(read))?;
                if found != *entry {
                    problems.push(format!("`{}` was changed: its SHA-256 is another", entry.path));
                }
            }
        }
        progress.file()?;
    }
    if problems.is_empty() { Ok(()) } else { Err(BackupError::Damaged { problems }) }
}

struct Restoring<'a> {
    folder: &'a Path,
    manifest: &'a Manifest,
    config: &'a LakeConfig,
}

impl Restoring<'_> {
    /// Returns how many files were linked, and where the lake went that was there before.
    ///
    /// An embedded lake is made beside its place and takes it by a rename: what is there is a whole lake, or none.
    fn restore_embedded(
        &self,
        home: &Path,
        replace: bool,
        observe: Observer<'_>,
    ) -> Result<(usize, Option<PathBuf>), BackupError> {
        let is_there = fs::read_dir(home).is_ok_and(|mut entries| entries.next().is_some());
        if is_there && !replace {
            let advice = "restore into another place with --into, or have that one moved aside with --force";
            return Err(BackupError::Exists { place: home.display().to_string(), advice });
        }
        let work = WorkFolder::beside(home)?;
        let made = LakeConfig { data_path: work.0.join(DATA).display().to_string(), ..self.config.clone() };
        let linked =
            self.restore_separate(&work.0.join(CATALOG), &made, &home.join(DATA).display().to_string(), observe)?;
        let aside = if is_there { Some(move_aside(home)?) } else { None };
        // Fails when there is none.
        let _ = fs::remove_dir(home);
        let failed = |source| BackupError::File { action: "write", path: home.to_owned(), source };
        fs::rename(&work.0, home).map_err(failed)?;
        Ok((linked, aside))
    }

    /// Makes a lake whose catalog is a file, and which will look for its data at `data_path`. Returns how many files were linked.
    fn restore_separate(
        &self,
        file: &Path,
        config: &LakeConfig,
        data_path: &str,
        observe: Observer<'_>,
    ) -> Result<usize, BackupError> {
        let lake = Lake::unattached(config)?;
        let store = DataStore::of(config, &lake);
        if file.exists() || !store.is_empty()? {
            let advice = "restore into another place with --into, or name another catalog and data path";
            return Err(BackupError::Exists { place: file.display().to_string(), advice });
        }
        create(file.parent().unwrap_or(file))?;
        self.check_space(&store)?;
        let linked = self.bring(&store, self.folder, self.paths(), observe)?;
        let waiting = file.with_extension("restoring");
        let failed = |source| BackupError::File { action: "write", path: waiting.clone(), source };
        fs::copy(self.folder.join(&self.manifest.catalog.path), &waiting).map_err(failed)?;
        catalog::adopt(&lake.connection, &waiting, data_path)?;
        let synced = fs::File::open(&waiting).and_then(|file| file.sync_all());
        synced.and_then(|()| fs::rename(&waiting, file)).map_err(failed)?;
        Ok(linked)
    }

    fn check_space(&self, store: &DataStore<'_>) -> Result<(), BackupError> {
        let Some(folder) = store.folder() else { return Ok(()) };
        create(folder)?;
        let is_linked = is_same_device(self.folder, folder);
        let copied = self.manifest.entries().filter(|entry| !is_linked || **entry == self.manifest.catalog);
        check_space(folder, copied.map(|entry| entry.bytes).sum())
    }

    /// Returns how many files were linked.
    fn restore_postgres(&self, observe: Observer<'_>) -> Result<usize, BackupError> {
        let lake = Lake::unattached(self.config)?;
        catalog::load(&lake.connection, self.config, "sqlite_scanner")?;
        lake.attach(self.config, Access::Write)?;
        let store = DataStore::of(self.config, &lake);
        if lake.is_initialized()? || !store.is_empty()? {
            let place = self.config.data_path.clone();
            let advice = "restore into an empty database and an empty data path";
            return Err(BackupError::Exists { place, advice });
        }
        // A copy of the backup, whose catalog may be changed.
        let work = WorkFolder::beside(self.folder)?;
        let data = work.0.join(DATA);
        create(&data)?;
        let local = LakeConfig { data_path: data.display().to_string(), s3: None, ..self.config.clone() };
        let local = DataStore::of(&local, &lake);
        self.check_space(&local)?;
        self.bring(&local, self.folder, self.paths(), &mut |_| ControlFlow::Continue(()))?;
        let copy = work.0.join(CATALOG);
        let failed = |source| BackupError::File { action: "copy", path: copy.clone(), source };
        fs::copy(self.folder.join(&self.manifest.catalog.path), &copy).map_err(failed)?;
        let files = catalog::flush(&lake.connection, &copy, &data)?;
        let paths = files.into_iter().map(|file| (file.path, file.bytes)).collect();
        let linked = self.bring(&store, &work.0, paths, observe)?;
        catalog::copy_in(&lake.connection, &copy, "__ducklake_metadata_lake")?;
        Ok(linked)
    }

    /// The backup's files as paths from its folder of data, with their sizes.
    fn paths(&self) -> Vec<(String, u64)> {
        let prefix = format!("{DATA}/");
        let files = self.manifest.files.iter();
        files.map(|entry| (entry.path.strip_prefix(&prefix).unwrap_or(&entry.path).to_owned(), entry.bytes)).collect()
    }

    fn bring(
        &self,
        store: &DataStore<'_>,
        from: &Path,
        files: Vec<(String, u64)>,
        observe: Observer<'_>,
    ) -> Result<usize, BackupError> {
        let left = if self.config.is_embedded() { LEFT } else { LEFT_APART };
        let mut progress = Progress::new("restoring", left, observe);
        progress.expect(files.len(), files.iter().map(|(_, bytes)| bytes).sum())?;
        let mut linked = 0;
        for (path, bytes) in files {
            linked += usize::from(store.put(&from.join(DATA).join(&path), &path)? == Way::Linked);
            progress.bytes(bytes)?;
            progress.file()?;
        }
        Ok(linked)
    }
}

/// Renames the folder of an embedded lake.
fn move_aside(home: &Path) -> Result<PathBuf, BackupError> {
    let mut name = home.file_name().unwrap_or_default().to_owned();
    name.push(format!(".replaced-{}", now_ms() / 1000));
    let aside = home.with_file_name(name);
    fs::rename(home, &aside).map_err(|source| BackupError::File {
        action: "move aside",
        path: home.to_owned(),
        source,
    })?;
    Ok(aside)
}

/// A folder beside another, on the same file system; removed when dropped, and what a killed process has left of it before.
struct WorkFolder(PathBuf);

impl WorkFolder {
    fn beside(folder: &Path) -> Result<Self, BackupError> {
        let mut name = folder.file_name().unwrap_or_default().to_owned();
        name.push(".restoring");
        let work = folder.with_file_name(name);
        // Fails when there is none.
        let _ = fs::remove_dir_all(&work);
        create(&work)?;
        Ok(Self(work))
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // What is left only takes room.
        let _ = fs::remove_dir_all(&self.0);
    }
}
