//! Threads that may block on DuckDB, each with a lake of its own.
//!
//! They are the runtime's, which waits for them at its end, however that comes about, but no longer than for other blocking work: a
//! catalog or store that never answers keeps no process from ending. One that still worked when the process ends would meet OpenSSL
//! being torn down under it, which DuckDB's extensions have in them, and end it by SIGSEGV or SIGABRT.

use std::fmt;

use plimsoll_lake::LakeError;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

/// Jobs that wait for the thread: a partition's reader waits for one at a time, and so does the committer.
const JOBS_CAPACITY: usize = 16;

type Job<L> = Box<dyn FnOnce(&mut Reopening<L>) + Send>;

/// The thread has panicked, which no job does unless there is a bug.
#[derive(Debug, thiserror::Error)]
#[error("a thread that works on the lake has panicked")]
pub struct ThreadEnded;

/// Opens a lake at first use and again after an error, since a fatal one leaves a DuckDB that refuses everything.
pub struct Reopening<L> {
    open: Box<dyn Fn() -> Result<L, LakeError> + Send>,
    lake: Option<L>,
}

impl<L> Reopening<L> {
    /// Works on the lake. Fails when it can't be opened, and as `work` does.
    pub fn with<T>(&mut self, work: impl FnOnce(&L) -> Result<T, LakeError>) -> Result<T, LakeError> {
        let lake = match self.lake.take() {
            Some(lake) => lake,
            None => (self.open)()?,
        };
        let outcome = work(&lake);
        if outcome.is_ok() {
            self.lake = Some(lake);
        }
        outcome
    }
}

/// A thread and its lake. It ends when the last clone is dropped.
pub struct LakeThread<L> {
    jobs: mpsc::Sender<Job<L>>,
}

impl<L> Clone for LakeThread<L> {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone() }
    }
}

impl<L> fmt::Debug for LakeThread<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LakeThread").finish_non_exhaustive()
    }
}

impl<L: 'static> LakeThread<L> {
    /// Starts the thread; nothing is opened yet. It is one of the tasks until it has ended.
    pub fn start(open: impl Fn() -> Result<L, LakeError> + Send + 'static, tasks: &TaskTracker) -> Self {
        let (jobs, mut receiver) = mpsc::channel::<Job<L>>(JOBS_CAPACITY);
        tasks.spawn_blocking(move || {
            let mut lake = Reopening { open: Box::new(open), lake: None };
            while let Some(job) = receiver.blocking_recv() {
                job(&mut lake);
            }
        });
        Self { jobs }
    }

    /// Runs a job on the thread and returns what it returns. Fails when the thread has ended.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Reopening<L>) -> T + Send + 'static,
    ) -> Result<T, ThreadEnded> {
        let (reply, outcome) = oneshot::channel();
        let job: Job<L> = Box::new(move |lake| {
            // Fails when nobody waits any more.
            let _ = reply.send(job(lake));
        });
        self.jobs.send(job).await.map_err(|_| ThreadEnded)?;
        outcome.await.map_err(|_| ThreadEnded)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc, Mutex,
            atomic::{AtomicBool, Ordering},
        },
        time::Duration,
    };

    use plimsoll_lake::{LakeConfig, LakeWriter};
    use tempfile::TempDir;

    use super::*;

    #[tokio::test]
    async fn the_lake_is_opened_again_after_an_error() {
        let dir = TempDir::new().expect("a folder");
        let config = LakeConfig::embedded(dir.path());
        let thread = LakeThread::start(move || LakeWriter::open(&config), &TaskTracker::new());
        let marked = |writer: &LakeWriter| {
            // Lives as long as this DuckDB does.
            Ok(writer.lake().connection().execute_batch("CREATE TEMP TABLE mark (x INTEGER)").is_err())
        };
        let mark = async || thread.run(move |lake| lake.with(marked)).await.expect("runs").expect("opens");
        assert!(!mark().await);
        assert!(mark().await, "the lake stays open");
        let failed = thread.run(|lake| lake.with(|_| Err::<(), _>(LakeError::NotCreated))).await.expect("runs");
        assert!(failed.is_err());
        assert!(!mark().await, "opened anew");
    }

    #[test]
    fn the_end_of_the_process_waits_for_a_thread_at_work() {
        let runtime = tokio::runtime::Runtime::new().expect("starts");
        let ((begin, begun), is_done) = (oneshot::channel(), Arc::new(AtomicBool::new(false)));
        let (begin, done) = (Mutex::new(Some(begin)), Arc::clone(&is_done));
        let slow = move || {
            begin.lock().expect("no panic").take().expect("opened once").send(()).expect("is waited for");
            std::thread::sleep(Duration::from_millis(300));
            done.store(true, Ordering::Relaxed);
            Err(LakeError::NotCreated)
        };
        runtime.block_on(async {
            let thread = LakeThread::<LakeWriter>::start(slow, &TaskTracker::new());
            let open = thread.run(|lake| lake.with(|_| Ok(())));
            // As a service that is told to stop while it opens the lake.
            tokio::select! {
                _ = open => panic!("it is still under way"),
                begun = begun => begun.expect("begins"),
            }
        });
        runtime.shutdown_timeout(Duration::from_secs(60));
        assert!(is_done.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn a_thread_that_has_panicked_says_so() {
        let tasks = TaskTracker::new();
        let thread = LakeThread::<LakeWriter>::start(|| Err(LakeError::NotCreated), &tasks);
        assert!(thread.run(|_| panic!("a bug")).await.is_err());
        assert!(thread.run(|_| ()).await.is_err());
        tasks.close();
        tasks.wait().await;
    }
}
