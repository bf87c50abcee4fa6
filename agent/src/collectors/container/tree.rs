//! The tree of cgroups, searched for containers.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, openat, statat},
    io::{Errno, read},
};

/// Deepest folder that is searched. Nested engines and user services go about ten deep.
const MOST_DEEP: usize = 16;
/// Most folders that are looked at in one search.
const MOST_FOLDERS: usize = 20_000;
const LISTING_BYTES: usize = 16 * 1024;

/// Opens the folder of a cgroup.
pub fn open(parent: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    openat(parent, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens the root of the tree.
pub fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Puts a file of a cgroup in place of what `buffer` holds, cut after 64 KiB; none where there is no such file or no text in it.
pub fn read_file<'a>(folder: BorrowedFd<'_>, name: &str, buffer: &'a mut Vec<u8>) -> Option<&'a str> {
    const MOST_BYTES: usize = 64 * 1024;
    let file = openat(folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    buffer.resize(MOST_BYTES.min(buffer.capacity().max(4096)), 0);
    let mut length = 0;
    loop {
        match read(&file, &mut buffer[length..]).ok()? {
            0 => break,
            count => length += count,
        }
        if length == buffer.len() {
            if length >= MOST_BYTES {
                break;
            }
            buffer.resize(length * 2, 0);
        }
    }
    std::str::from_utf8(&buffer[..length]).ok()
}

/// Searches the tree. Keeps its memory from search to search.
#[derive(Debug, Default)]
pub struct Search {
    /// One listing a depth.
    listings: Vec<Vec<u8>>,
    path: String,
    folders: usize,
}

impl Search {
    /// Shows each cgroup to `visit`, by the path of the folder that it is in, its name and its inode, parents first. Where that
    /// returns true, nothing below is shown.
    ///
    /// A cgroup without children is told by its links and not listed. Fails when the root cannot be listed; folders that go or
    /// cannot be read are left out.
    pub fn run(&mut self, root: BorrowedFd<'_>, visit: &mut impl FnMut(&str, &str, u64) -> bool) -> Result<(), Errno> {
        self.path.clear();
        self.folders = 0;
        self.list(root, 0, visit)
    }

    /// Whether the last search stopped short of the whole tree.
    pub fn is_cut(&self) -> bool {
        self.folders >= MOST_FOLDERS
    }

    fn list(
        &mut self,
        folder: BorrowedFd<'_>,
        depth: usize,
        visit: &mut impl FnMut(&str, &str, u64) -> bool,
    ) -> Result<(), Errno> {
        if self.listings.len() <= depth {
            self.listings.push(Vec::with_capacity(LISTING_BYTES));
        }
        let mut listing = std::mem::take(&mut self.listings[depth]);
        let mut entries = RawDir::new(folder, listing.spare_capacity_mut());
        let mut outcome = Ok(());
        while let Some(entry) = entries.next() {
            match entry {
                Ok(entry) if matches!(entry.file_type(), FileType::Directory | FileType::Unknown) => {
                    if let Ok(name) = entry.file_name().to_str() {
                        self.look_at(folder, name, depth, visit);
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        self.listings[depth] = listing;
        outcome
    }

    fn look_at(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &str,
        depth: usize,
        visit: &mut impl FnMut(&str, &str, u64) -> bool,
    ) {
        if matches!(name, "." | "..") || self.is_cut() {
            return;
        }
        let Ok(stat) = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return;
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return;
        }
        self.folders += 1;
        // Two links are the folder's name and its own `.`: no child has a `..` in it. Some file systems count otherwise, with 1.
        let has_children = stat.st_nlink != 2;
        if visit(&self.path, name, stat.st_ino) || !has_children || depth + 1 >= MOST_DEEP {
            return;
        }
        let Ok(folder) = open(parent, name) else {
            return;
        };
        let length = self.path.len();
        if length > 0 {
            self.path.push('/');
        }
        self.path.push_str(name);
        // One that goes meanwhile has no containers.
        let _ = self.list(folder.as_fd(), depth + 1, visit);
        self.path.truncate(length);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn found(root: &Path, search: &mut Search, stop_at: &str) -> Vec<String> {
        let mut paths = Vec::new();
        let root = open_root(root).unwrap();
        search
            .run(root.as_fd(), &mut |parent, name, _| {
                paths.push(format!("{parent}|{name}"));
                name == stop_at
            })
            .unwrap();
        paths.sort();
        paths
    }

    #[test]
    fn every_folder_is_shown_once_and_nothing_below_those_that_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a/b/c", "a/taken/below", "d"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        fs::write(dir.path().join("a/file"), "").unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("d/loop")).unwrap();
        let mut search = Search::default();
        let expected = ["a/b|c", "a|b", "a|taken", "|a", "|d"];
        assert_eq!(found(dir.path(), &mut search, "taken"), expected);
        assert_eq!(found(dir.path(), &mut search, "taken"), expected);
        assert!(!search.is_cut());
    }

    #[test]
    fn depth_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(["x"; 40].join("/"))).unwrap();
        assert_eq!(found(dir.path(), &mut Search::default(), "").len(), MOST_DEEP);
    }

    #[test]
    fn files_of_any_length_are_read_up_to_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let root = open_root(dir.path()).unwrap();
        let mut buffer = Vec::new();
        assert_eq!(read_file(root.as_fd(), "none", &mut buffer), None);
        for (length, expected) in [(0, 0), (5, 5), (4096, 4096), (20_000, 20_000), (200_000, 65_536)] {
            fs::write(dir.path().join("file"), "x".repeat(length)).unwrap();
            assert_eq!(read_file(root.as_fd(), "file", &mut buffer).unwrap().len(), expected);
        }
        fs::write(dir.path().join("file"), [0xff]).unwrap();
        assert_eq!(read_file(root.as_fd(), "file", &mut buffer), None);
    }
}
