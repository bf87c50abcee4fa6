//! The thread that measures folders, so that nobody waits for a disk.
//!
//! It takes the lowest priority and rests four times as long as it works, so that a walk takes a disk for a fifth of the time at
//! most. Linux gives a thread with the highest niceness the lowest priority in I/O of its class (Documentation/block/ioprio.rst);
//! the class for idle disks takes a system call that no library offers without unsafe code.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};

use super::walk::{self, Pacer, Rested, Size};
use crate::context::HostPaths;

/// How long a walk works before it rests.
const WORK: Duration = Duration::from_millis(5);
/// How many times as long as it has worked it rests, and for how long at most.
const REST_FACTOR: u32 = 4;
const LONGEST_REST: Duration = Duration::from_secs(1);

/// A completed measurement of a folder.
#[derive(Debug, Clone)]
pub struct Survey {
    /// How large it is, or why that cannot be told.
    pub size: Result<Size, Errno>,
    /// How long that took.
    pub duration: Duration,
}

/// Measures a folder of a host; none when it was stopped.
type Measure = fn(&Shared, &HostPaths, &Path) -> Result<Option<Size>, Errno>;

/// Measures folders on a thread that ends with it.
#[derive(Debug)]
pub struct Surveyor {
    measure: Measure,
    paths: HostPaths,
    folders: Vec<PathBuf>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whether a round through all folders is asked for or under way.
    busy: bool,
    stopped: bool,
    /// The newest survey of each folder that nobody has taken yet.
    surveys: Vec<Option<Survey>>,
}

impl Surveyor {
    /// Measures folders of a host; none of them is looked at yet.
    #[must_use]
    pub fn new(paths: HostPaths, folders: Vec<PathBuf>) -> Self {
        Self::measuring(measure, paths, folders)
    }

    fn measuring(measure: Measure, paths: HostPaths, folders: Vec<PathBuf>) -> Self {
        let surveys = vec![None; folders.len()];
        let shared = Shared { state: Mutex::new(State { surveys, ..State::default() }), changed: Condvar::new() };
        Self { measure, paths, folders, shared: Arc::new(shared), thread: None }
    }

    /// The folders in the order of their surveys.
    #[must_use]
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Whether a round is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.shared.lock().busy
    }

    /// Begins a round, unless one is under way, and waits for its end for at most `patience`. Takes the surveys that are done
    /// by then, each once: of a round that takes longer, a later call does.
    ///
    /// Fails when the thread cannot be started.
    pub fn survey(&mut self, patience: Duration) -> io::Result<Vec<Option<Survey>>> {
        self.ensure_thread()?;
        let mut state = self.shared.lock();
        state.busy = true;
        self.shared.changed.notify_all();
        let waited = self.shared.changed.wait_timeout_while(state, patience, |state| state.busy);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        Ok(state.surveys.iter_mut().map(Option::take).collect())
    }

    fn ensure_thread(&mut self) -> io::Result<()> {
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        self.shared.lock().busy = false;
        let (shared, paths, folders) = (Arc::clone(&self.shared), self.paths.clone(), self.folders.clone());
        let measure = self.measure;
        let work = move || work(&shared, &folders, |folder| measure(&shared, &paths, folder));
        self.thread = Some(thread::Builder::new().name("directory-size".to_owned()).spawn(work)?);
        Ok(())
    }
}

impl Drop for Surveyor {
    fn drop(&mut self) {
        // Not joined: a disk may hold the thread, which ends at its next look.
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a round is asked for; returns whether there is one to do.
    fn wait_for_round(&self) -> bool {
        let state = self.changed.wait_while(self.lock(), |state| !state.busy && !state.stopped);
        !state.unwrap_or_else(PoisonError::into_inner).stopped
    }
}

fn work(shared: &Shared, folders: &[PathBuf], measure: impl Fn(&Path) -> Result<Option<Size>, Errno>) {
    if let Err(error) = rustix::process::nice(19) {
        tracing::debug!(%error, "folders are measured at the usual priority");
    }
    while shared.wait_for_round() {
        for (index, folder) in folders.iter().enumerate() {
            let began = Instant::now();
            let size = match measure(folder) {
                Ok(Some(size)) => Ok(size),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            shared.lock().surveys[index] = Some(Survey { size, duration: began.elapsed() });
        }
        shared.lock().busy = false;
        shared.changed.notify_all();
    }
}

fn measure(shared: &Shared, paths: &HostPaths, folder: &Path) -> Result<Option<Size>, Errno> {
    walk::measure(&open(paths, folder)?, &mut Rests { shared })
}

/// Opens a folder of the host, and follows symbolic links to it as the host does.
fn open(paths: &HostPaths, folder: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if !paths.is_elsewhere() {
        return openat(CWD, folder, flags, Mode::empty());
    }
    let root = openat(CWD, paths.at("/"), flags, Mode::empty())?;
    let below = folder.strip_prefix("/").unwrap_or(folder);
    match openat2(&root, below, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        // Linux before 5.6, and sandboxes that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => openat(&root, below, flags | OFlags::NOFOLLOW, Mode::empty()),
        opened => opened,
    }
}

struct Rests<'a> {
    shared: &'a Shared,
}

impl Pacer for Rests<'_> {
    fn pace(&mut self, worked: Duration) -> Rested {
        if worked < WORK {
            return Rested::Not;
        }
        let rest = worked.saturating_mul(REST_FACTOR).min(LONGEST_REST);
        let state = self.shared.changed.wait_timeout_while(self.shared.lock(), rest, |state| !state.stopped);
        if state.unwrap_or_else(PoisonError::into_inner).0.stopped { Rested::Stopped } else { Rested::Refreshed }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::symlink,
        sync::atomic::{AtomicU64, Ordering},
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn surveyor(folders: &[&Path]) -> Surveyor {
        Surveyor::new(HostPaths::default(), folders.iter().map(|folder| folder.to_path_buf()).collect())
    }

    #[test]
    fn every_folder_is_measured_each_round_and_told_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "12345").unwrap();
        let mut surveyor = surveyor(&[dir.path(), Path::new("/nowhere/at/all"), Path::new("/etc/passwd")]);
        for files in 1..3 {
            let surveys = surveyor.survey(PATIENCE).unwrap();
            let sizes: Vec<_> = surveys.into_iter().map(|survey| survey.unwrap().size).collect();
            assert_eq!(sizes[0].unwrap().files, files);
            assert_eq!((sizes[1], sizes[2]), (Err(Errno::NOENT), Err(Errno::NOTDIR)));
            fs::write(dir.path().join("another"), "").unwrap();
        }
        assert!(!surveyor.is_busy());
    }

    static HELD: Mutex<bool> = Mutex::new(true);
    static RELEASED: Condvar = Condvar::new();
    static WALKS: AtomicU64 = AtomicU64::new(0);

    /// Takes as long as it is held.
    fn held(_: &Shared, _: &HostPaths, _: &Path) -> Result<Option<Size>, Errno> {
        drop(RELEASED.wait_while(HELD.lock().unwrap(), |held| *held).unwrap());
        Ok(Some(Size { files: WALKS.fetch_add(1, Ordering::SeqCst), ..Size::default() }))
    }

    #[test]
    fn a_round_that_takes_longer_is_told_later_and_no_other_piles_up() {
        let mut surveyor = Surveyor::measuring(held, HostPaths::default(), vec!["/slow".into()]);
        for _ in 0..10 {
            assert!(surveyor.survey(Duration::ZERO).unwrap()[0].is_none());
            assert!(surveyor.is_busy());
        }
        *HELD.lock().unwrap() = false;
        RELEASED.notify_all();
        let deadline = Instant::now() + PATIENCE;
        while surveyor.is_busy() {
            assert!(Instant::now() < deadline, "it never ends");
            thread::yield_now();
        }
        // Of the round that was asked for ten times and the one that this asks for, the newer is told.
        let survey = surveyor.survey(PATIENCE).unwrap().remove(0).unwrap();
        assert_eq!(survey.size.unwrap().files, 1);
        assert_eq!(WALKS.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn the_thread_ends_with_its_owner() {
        let mut surveyor = surveyor(&[Path::new("/nowhere")]);
        surveyor.survey(PATIENCE).unwrap();
        let thread = surveyor.thread.take().unwrap();
        drop(surveyor);
        thread.join().unwrap();
    }

    #[test]
    fn a_walk_rests_and_ends_where_it_stands() {
        let shared = Shared { state: Mutex::default(), changed: Condvar::new() };
        let mut rests = Rests { shared: &shared };
        assert_eq!(rests.pace(WORK - Duration::from_micros(1)), Rested::Not);
        assert_eq!(rests.pace(WORK), Rested::Refreshed);
        shared.lock().stopped = true;
        assert_eq!(rests.pace(Duration::from_secs(9)), Rested::Stopped);
    }

    #[test]
    fn a_folder_behind_a_link_is_the_hosts_where_that_is_seen_through_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("data/docker")).unwrap();
        fs::create_dir_all(dir.path().join("var/lib")).unwrap();
        fs::write(dir.path().join("data/docker/file"), "").unwrap();
        symlink("/data/docker", dir.path().join("var/lib/docker")).unwrap();
        let mut surveyor = Surveyor::new(HostPaths::new(dir.path()), vec!["/var/lib/docker".into()]);
        let survey = surveyor.survey(PATIENCE).unwrap().remove(0).unwrap();
        assert_eq!(survey.size.unwrap().files, 1);
    }
}
