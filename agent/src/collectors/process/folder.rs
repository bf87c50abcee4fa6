//! The folders /proc/<pid>, read without leaving anything open.

use std::{
    io::Write as _,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, PROC_SUPER_MAGIC, RawDir, SeekFrom, fstatfs, openat, seek, statat},
    io::{Errno, read},
};

use crate::collectors::CollectError;

/// Most bytes that are read of a file; a line of `stat` and the head of `status` are far shorter.
const MOST_BYTES: usize = 4096;
const LISTING_BYTES: usize = 32 * 1024;

/// The host's /proc.
#[derive(Debug)]
pub struct ProcFolder {
    path: PathBuf,
    folder: Option<OwnedFd>,
    /// Whether it is the kernel's and no copy.
    is_procfs: bool,
    listing: Vec<u8>,
    /// The path of the file that is read, below /proc.
    name: Vec<u8>,
    text: Vec<u8>,
}

impl ProcFolder {
    /// Names the folder without opening it.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            folder: None,
            is_procfs: false,
            listing: Vec::with_capacity(LISTING_BYTES),
            name: Vec::new(),
            text: vec![0; MOST_BYTES],
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the ids of all processes in place of what `pids` holds. Fails when /proc cannot be opened or listed; the next call
    /// opens it anew.
    pub fn list(&mut self, pids: &mut Vec<u32>) -> Result<(), CollectError> {
        pids.clear();
        self.try_list(pids).map_err(|error| {
            self.folder = None;
            CollectError::Read { path: self.path.clone(), source: error.into() }
        })
    }

    fn try_list(&mut self, pids: &mut Vec<u32>) -> Result<(), Errno> {
        let folder = match &self.folder {
            Some(folder) => folder,
            None => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let folder = openat(CWD, &self.path, flags, Mode::empty())?;
                self.is_procfs = fstatfs(&folder)?.f_type == PROC_SUPER_MAGIC;
                self.folder.insert(folder)
            }
        };
        seek(folder, SeekFrom::Start(0))?;
        let mut entries = RawDir::new(folder, self.listing.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            pids.extend(entry?.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
        }
        Ok(())
    }

    /// The beginning of a file of a process, at most `MOST_BYTES`. The kernel makes such a file in one piece (`single_open` of
    /// fs/seq_file.c), so that one reading has it.
    ///
    /// Fails with `NOENT` or `SRCH` when the process has ended.
    pub fn read(&mut self, pid: u32, file: &str) -> Result<&[u8], Errno> {
        self.point_to(pid, file);
        let folder = self.folder.as_ref().ok_or(Errno::BADF)?;
        let file = openat(folder, &*self.name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let length = read(file, &mut self.text[..])?;
        Ok(&self.text[..length])
    }

    /// The number of a process's open file descriptors. The kernel tells it as the folder's size since 6.2
    /// (Documentation/filesystems/proc.rst); before, they are listed, which takes `CAP_SYS_PTRACE` for other users' processes.
    pub fn open_files(&mut self, pid: u32) -> Result<u64, Errno> {
        self.point_to(pid, "fd");
        let folder = self.folder.as_ref().ok_or(Errno::BADF)?;
        let told = statat(folder, &*self.name, AtFlags::empty())?.st_size;
        match u64::try_from(told) {
            // The size of a folder on a disk, as of a copy of /proc, tells something else.
            Ok(told) if told > 0 && self.is_procfs => Ok(told),
            _ => self.count_entries(),
        }
    }

    fn count_entries(&mut self) -> Result<u64, Errno> {
        let folder = self.folder.as_ref().ok_or(Errno::BADF)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let files = openat(folder, &*self.name, flags, Mode::empty())?;
        let mut entries = RawDir::new(files, self.listing.spare_capacity_mut());
        let mut count = 0;
        while let Some(entry) = entries.next() {
            count += u64::from(!entry?.file_name().to_bytes().starts_with(b"."));
        }
        Ok(count)
    }

    fn point_to(&mut self, pid: u32, file: &str) {
        self.name.clear();
        // Writing into a vector cannot fail.
        let _ = write!(self.name, "{pid}/{file}");
    }
}

/// Whether the process has ended, as many do between being listed and being read.
pub fn has_ended(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::SRCH)
}

/// Whether the agent lacks the permission.
pub fn is_denied(error: Errno) -> bool {
    matches!(error, Errno::ACCESS | Errno::PERM)
}
