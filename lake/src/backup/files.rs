//! Brings the files of a catalog into a backup, and reads each once for its sum.

use std::{collections::HashMap, ops::ControlFlow, path::Path};

use super::{
    BackupError, DATA, Observer, Step,
    catalog::DataFile,
    manifest::{Entry, Manifest},
    store::{DataStore, Way},
};

/// What came of it.
pub(super) enum Placed {
    /// The backup has every file.
    All { entries: Vec<Entry>, kept: usize, linked: usize },
    /// The lake has deleted this one since its catalog was copied.
    Vanished { path: String },
}

/// Files on their way into a backup.
pub(super) struct Placing<'a, 'b> {
    source: &'a DataStore<'a>,
    folder: &'a Path,
    /// What an earlier backup has, by path.
    before: HashMap<&'a str, &'a Entry>,
    progress: Progress<'b>,
}

impl<'a, 'b> Placing<'a, 'b> {
    pub(super) fn new(
        source: &'a DataStore<'a>,
        folder: &'a Path,
        before: Option<&'a Manifest>,
        observe: Observer<'b>,
    ) -> Self {
        let before = before.iter().flat_map(|manifest| &manifest.files).map(|entry| (entry.path.as_str(), entry));
        let left = "the backup is not finished, and goes on when it is made again";
        Self { source, folder, before: before.collect(), progress: Progress::new("copying", left, observe) }
    }

    /// Brings all of them, or as many as there are until one has vanished.
    pub(super) fn all(&mut self, files: &[DataFile]) -> Result<Placed, BackupError> {
        self.progress.expect(files.len(), files.iter().map(|file| file.bytes).sum())?;
        self.check_space(files)?;
        let (mut entries, mut kept, mut linked) = (Vec::new(), 0, 0);
        for file in files {
            let path = format!("{DATA}/{}", file.path);
            let place = self.folder.join(&path);
            let is_there = place.metadata().is_ok_and(|found| found.len() == file.bytes);
            if is_there {
                kept += 1;
            } else {
                match self.source.fetch(&file.path, &place)? {
                    None => return Ok(Placed::Vanished { path: file.path.clone() }),
                    Some(way) => linked += usize::from(way == Way::Linked),
                }
            }
            let entry = match self.before.get(path.as_str()).filter(|_| is_there) {
                Some(entry) => self.progress.bytes(file.bytes).map(|()| (*entry).clone())?,
                None => Entry::of(&place, &path, |read| self.progress.bytes(read))?,
            };
            if entry.bytes != file.bytes {
                return Err(BackupError::Size { path, found: entry.bytes, expected: file.bytes });
            }
            entries.push(entry);
            self.progress.file()?;
        }
        Ok(Placed::All { entries, kept, linked })
    }

    fn check_space(&self, files: &[DataFile]) -> Result<(), BackupError> {
        if self.source.folder().is_some_and(|source| is_same_device(source, self.folder)) {
            return Ok(());
        }
        let is_there = |file: &&DataFile| {
            let place = self.folder.join(DATA).join(&file.path);
            place.metadata().is_ok_and(|found| found.len() == file.bytes)
        };
        let needed = files.iter().filter(|file| !is_there(file)).map(|file| file.bytes).sum();
        check_space(self.folder, needed)
    }
}

/// Whether links are possible between two folders.
pub(super) fn is_same_device(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    matches!((one.metadata(), other.metadata()), (Ok(one), Ok(other)) if one.dev() == other.dev())
}

/// Fails when the disk of a folder has fewer bytes free than needed.
pub(super) fn check_space(folder: &Path, needed: u64) -> Result<(), BackupError> {
    let failed = |source: rustix::io::Errno| BackupError::File {
        action: "ask for the free space of",
        path: folder.to_owned(),
        source: source.into(),
    };
    let disk = rustix::fs::statvfs(folder).map_err(failed)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < needed { Err(BackupError::NoSpace { path: folder.to_owned(), free, needed }) } else { Ok(()) }
}

/// Counts, and tells the observer.
pub(super) struct Progress<'a> {
    step: Step,
    /// What stopping leaves behind.
    left: &'static str,
    observe: Observer<'a>,
}

impl<'a> Progress<'a> {
    pub(super) fn new(doing: &'static str, left: &'static str, observe: Observer<'a>) -> Self {
        Self { step: Step { doing, ..Step::default() }, left, observe }
    }

    pub(super) fn expect(&mut self, files: usize, bytes: u64) -> Result<(), BackupError> {
        self.step = Step { doing: self.step.doing, total_files: files, total_bytes: bytes, ..Step::default() };
        self.tell()
    }

    pub(super) fn bytes(&mut self, bytes: u64) -> Result<(), BackupError> {
        self.step.bytes += bytes;
        self.tell()
    }

    pub(super) fn file(&mut self) -> Result<(), BackupError> {
        self.step.files += 1;
        self.tell()
    }

    fn tell(&mut self) -> Result<(), BackupError> {
        match (self.observe)(&self.step) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(BackupError::Interrupted { left: self.left }),
        }
    }
}
