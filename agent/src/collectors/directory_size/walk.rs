//! How large a folder is, with everything below it.
//!
//! What is held in memory is bounded whatever the tree: a listing a level, and of files with several names those whose other
//! names were not met yet.

use std::{
    collections::{HashMap, hash_map::Entry},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    ffi::CStr,
    fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat, fstat, openat, statat},
    io::Errno,
};

/// Deepest folder that is looked into; one descriptor is open a level.
const MOST_DEEP: usize = 256;
/// Most files with several names that are remembered at once, in some 4 MB.
const MOST_LINKED: usize = 1 << 17;
/// Size of a block as stat(2) counts them, whatever the file system's own.
const BLOCK_BYTES: u64 = 512;
const LISTING_BYTES: usize = 8 * 1024;
/// After how many entries the walk looks whether it should rest or end.
const ENTRIES_A_LOOK: u32 = 32;

/// How large a folder is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Space on disk.
    pub disk_bytes: u64,
    /// Length of all files and symbolic links.
    pub apparent_bytes: u64,
    /// What is no folder.
    pub files: u64,
    /// Folders, the measured one included.
    pub directories: u64,
    /// Folders and files that could not be read.
    pub unreadable: u64,
    /// Whether there were too many files with several names to remember: then each name counts for its share.
    pub estimated: bool,
}

/// Lets the walk rest and end early.
pub trait Pacer {
    /// Is called now and then with the time worked since the last rest; rests, or not. Returns whether to go on.
    fn pace(&mut self, worked: Duration) -> Rested;
}

/// What came of a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rested {
    /// It was not time for one.
    Not,
    /// The walk goes on.
    Refreshed,
    /// The walk is to end.
    Stopped,
}

/// Measures an open folder; none when it was stopped. Stays in its file system, as `du -x` does, and follows no symbolic link.
///
/// What comes and goes meanwhile is counted or not. Fails when the folder itself cannot be read.
pub fn measure(folder: &OwnedFd, pacer: &mut impl Pacer) -> Result<Option<Size>, Errno> {
    let top = fstat(folder)?;
    let mut walk = Walk {
        device: top.st_dev,
        size: Size::default(),
        linked: Linked::default(),
        pacer,
        entries: 0,
        woke: Instant::now(),
    };
    walk.count(&top);
    match walk.list(folder.as_fd(), 0) {
        Ok(()) => Ok(Some(walk.size)),
        Err(Break::Stopped) => Ok(None),
        Err(Break::Unreadable(error)) => Err(error),
    }
}

/// Why a listing ended early.
enum Break {
    Stopped,
    Unreadable(Errno),
}

struct Walk<'a, P> {
    device: u64,
    size: Size,
    linked: Linked,
    pacer: &'a mut P,
    entries: u32,
    woke: Instant,
}

impl<P: Pacer> Walk<'_, P> {
    fn list(&mut self, folder: BorrowedFd<'_>, depth: usize) -> Result<(), Break> {
        let mut listing = Vec::with_capacity(LISTING_BYTES);
        let mut entries = RawDir::new(folder, listing.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(Break::Unreadable)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                self.rest()?;
                self.look_at(folder, entry.file_name(), depth)?;
            }
        }
        Ok(())
    }

    fn look_at(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<(), Break> {
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(_) => {
                self.size.unreadable += 1;
                return Ok(());
            }
        };
        if stat.st_dev != self.device {
            return Ok(());
        }
        self.count(&stat);
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(());
        }
        match self.descend(parent, name, depth + 1) {
            Err(Break::Unreadable(Errno::NOENT)) => Ok(()),
            Err(Break::Unreadable(_)) => {
                self.size.unreadable += 1;
                Ok(())
            }
            other => other,
        }
    }

    fn descend(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<(), Break> {
        if depth >= MOST_DEEP {
            return Err(Break::Unreadable(Errno::NAMETOOLONG));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(parent, name, flags, Mode::empty()).map_err(Break::Unreadable)?;
        // Another file system may have been mounted since.
        if fstat(&folder).map_err(Break::Unreadable)?.st_dev != self.device {
            return Ok(());
        }
        self.list(folder.as_fd(), depth)
    }

    fn count(&mut self, stat: &Stat) {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let share = match kind {
            FileType::Directory => 1,
            _ => match self.linked.meet(stat.st_ino, stat.st_nlink) {
                Met::First => 1,
                Met::Again => return,
                Met::Share(names) => {
                    self.size.estimated = true;
                    names
                }
            },
        };
        let disk_bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES);
        self.size.disk_bytes = self.size.disk_bytes.saturating_add(disk_bytes / share);
        match kind {
            FileType::Directory => self.size.directories += 1,
            _ => self.size.files += 1,
        }
        if matches!(kind, FileType::RegularFile | FileType::Symlink) {
            let length = u64::try_from(stat.st_size).unwrap_or(0);
            self.size.apparent_bytes = self.size.apparent_bytes.saturating_add(length / share);
        }
    }

    fn rest(&mut self) -> Result<(), Break> {
        self.entries += 1;
        if !self.entries.is_multiple_of(ENTRIES_A_LOOK) {
            return Ok(());
        }
        match self.pacer.pace(self.woke.elapsed()) {
            Rested::Not => Ok(()),
            Rested::Refreshed => {
                self.woke = Instant::now();
                Ok(())
            }
            Rested::Stopped => Err(Break::Stopped),
        }
    }
}

/// The files with several names, by inode, with how many of these are still to come: one that has been met under all its names
/// is forgotten.
#[derive(Debug, Default)]
struct Linked(HashMap<u64, u64>);

/// How a name of a file is to be counted.
#[derive(Debug, PartialEq, Eq)]
enum Met {
    /// As the file.
    First,
    /// Not, since the file was counted under another name.
    Again,
    /// By a share of the file, which has so many names.
    Share(u64),
}

impl Linked {
    /// The number of names is of another width on each platform.
    fn meet(&mut self, inode: u64, names: impl Into<u64>) -> Met {
        let names = names.into();
        if names < 2 {
            return Met::First;
        }
        let full = self.0.len() >= MOST_LINKED;
        match self.0.entry(inode) {
            Entry::Occupied(mut left) if *left.get() > 1 => {
                *left.get_mut() -= 1;
                Met::Again
            }
            Entry::Occupied(left) => {
                left.remove();
                Met::Again
            }
            Entry::Vacant(_) if full => Met::Share(names),
            Entry::Vacant(vacant) => {
                vacant.insert(names - 1);
                Met::First
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, symlink},
        path::Path,
        process::Command,
    };

    use rustix::fs::CWD;

    use super::*;

    /// Never rests, and stops at the look of that number.
    pub struct StopsAt(pub u32);

    impl Pacer for StopsAt {
        fn pace(&mut self, _worked: Duration) -> Rested {
            self.0 = self.0.saturating_sub(1);
            if self.0 == 0 { Rested::Stopped } else { Rested::Not }
        }
    }

    pub fn open(path: &Path) -> OwnedFd {
        openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    pub fn size_of(path: &Path) -> Size {
        measure(&open(path), &mut StopsAt(u32::MAX)).unwrap().unwrap()
    }

    fn du(path: &Path, flags: &[&str]) -> u64 {
        let output = Command::new("du").args(["-s", "-x", "--block-size=1"]).args(flags).arg(path).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_ascii_whitespace().next().unwrap().parse().unwrap()
    }

    /// A tree with hard links, a sparse file, symbolic links to a file, to a folder and to nowhere, a pipe and empty folders.
    fn grow(root: &Path) {
        for folder in ["a/b/c", "d", "e"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for (name, length) in [("a/one", 1), ("a/b/page", 4096), ("d/odd", 70_001), ("empty", 0)] {
            fs::write(root.join(name), vec![7; length]).unwrap();
        }
        let sparse = fs::File::create(root.join("d/sparse")).unwrap();
        sparse.set_len(50_000_000).unwrap();
        for link in ["a/b/odd", "a/b/c/odd", "odd"] {
            fs::hard_link(root.join("d/odd"), root.join(link)).unwrap();
        }
        for (target, link) in [("odd", "e/file"), ("..", "e/loop"), ("/nowhere", "e/nowhere"), ("/usr", "e/usr")] {
            symlink(target, root.join(link)).unwrap();
        }
        rustix::fs::mknodat(CWD, root.join("e/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    }

    /// Lengths of all folders, which older `du` adds to the apparent size and newer does not (NEWS of coreutils 9.2).
    fn folder_lengths(path: &Path) -> u64 {
        let below = fs::read_dir(path).unwrap().filter_map(|entry| {
            let entry = entry.unwrap();
            entry.file_type().unwrap().is_dir().then(|| folder_lengths(&entry.path()))
        });
        fs::metadata(path).unwrap().len() + below.sum::<u64>()
    }

    #[test]
    fn a_tree_is_as_large_as_du_says() {
        let dir = tempfile::tempdir().unwrap();
        grow(dir.path());
        let size = size_of(dir.path());
        assert_eq!(size.disk_bytes, du(dir.path(), &[]));
        let apparent = du(dir.path(), &["--apparent-size"]);
        assert!(
            [apparent, apparent - folder_lengths(dir.path())].contains(&size.apparent_bytes),
            "{size:?} {apparent}"
        );
        let links = ["odd", "..", "/nowhere", "/usr"].iter().map(|target| target.len() as u64).sum::<u64>();
        assert_eq!(size.apparent_bytes, 1 + 4096 + 70_001 + 50_000_000 + links);
        assert!(size.disk_bytes < 10_000_000);
        // `one`, `page`, `odd` once, `empty`, `sparse`, four symbolic links and the pipe.
        assert_eq!((size.files, size.directories), (10, 6));
        assert_eq!((size.unreadable, size.estimated), (0, false));
    }

    /// The folders of a device below one, itself included.
    fn folders(path: &Path, device: u64) -> u64 {
        let metadata = fs::symlink_metadata(path).unwrap();
        if !metadata.is_dir() || metadata.dev() != device {
            return 0;
        }
        1 + fs::read_dir(path).unwrap().map(|entry| folders(&entry.unwrap().path(), device)).sum::<u64>()
    }

    #[test]
    fn other_file_systems_are_left_out() {
        // Where cgroups are mounted.
        let path = Path::new("/sys/fs");
        let device = fs::metadata(path).unwrap().dev();
        assert_eq!(size_of(path).directories, folders(path, device));
        // Else this proves nothing.
        assert_ne!(fs::metadata(path.join("cgroup")).unwrap().dev(), device);
    }

    #[test]
    fn a_walk_can_be_stopped() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..ENTRIES_A_LOOK * 4 {
            fs::write(dir.path().join(number.to_string()), "").unwrap();
        }
        assert_eq!(measure(&open(dir.path()), &mut StopsAt(3)).unwrap(), None);
        assert!(measure(&open(dir.path()), &mut StopsAt(5)).unwrap().is_some());
    }

    #[test]
    fn a_tree_that_is_too_deep_is_counted_as_far_as_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = open(dir.path());
        for _ in 0..MOST_DEEP + 20 {
            rustix::fs::mkdirat(&folder, "x", Mode::RWXU).unwrap();
            folder = openat(&folder, "x", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let size = size_of(dir.path());
        assert_eq!((size.directories, size.unreadable), (MOST_DEEP as u64 + 1, 1));
    }

    #[test]
    fn a_file_is_counted_once_and_forgotten_after_its_last_name() {
        let mut linked = Linked::default();
        assert_eq!(linked.meet(1, 1_u64), Met::First);
        assert_eq!((linked.meet(2, 3_u64), linked.meet(3, 2_u64)), (Met::First, Met::First));
        assert_eq!((linked.meet(2, 3_u64), linked.meet(2, 3_u64)), (Met::Again, Met::Again));
        assert_eq!(linked.0.len(), 1);
        for inode in 10.. {
            if linked.0.len() == MOST_LINKED {
                break;
            }
            linked.meet(inode, 2_u64);
        }
        assert_eq!(linked.meet(4, 5_u64), Met::Share(5));
        assert_eq!(linked.meet(3, 2_u64), Met::Again);
        assert_eq!(linked.meet(4, 5_u64), Met::First);
    }
}
