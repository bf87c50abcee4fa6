//! A few connections to one DuckDB, each for one query at a time, on threads that may block.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use duckdb::Connection;
use tokio::sync::Semaphore;

use super::{
    QueryLoad,
    watchdog::{Cancelled, Watchdog},
};
use crate::{Lake, LakeError, error::Context};

/// Connections that share an attached lake.
#[derive(Debug)]
pub(super) struct Pool {
    permits: Arc<Semaphore>,
    size: usize,
    waiting: AtomicUsize,
    connections: Mutex<Connections>,
    watchdog: Watchdog,
}

#[derive(Debug)]
struct Connections {
    /// Never runs a query itself.
    template: Lake,
    idle: Vec<Lake>,
}

/// Counts a query that waits for a connection for as long as it does.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells the watchdog when the future that waits for a query is dropped.
struct CancelOnDrop(Cancelled);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Pool {
    pub(super) fn new(template: Lake, size: NonZeroUsize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(size.get())),
            size: size.get(),
            waiting: AtomicUsize::new(0),
            connections: Mutex::new(Connections { template, idle: Vec::new() }),
            watchdog: Watchdog::start(),
        }
    }

    /// How many queries run and wait now.
    pub(super) fn load(&self) -> QueryLoad {
        let running = self.size.saturating_sub(self.permits.available_permits());
        QueryLoad { running, waiting: self.waiting.load(Ordering::Relaxed) }
    }

    /// Runs `work` in a transaction of its own and rolls that back.
    ///
    /// Fails with [`LakeError::Interrupted`] when a free connection and the answer together take longer than `timeout`. Dropping
    /// the future interrupts the work.
    pub(super) async fn run<T, E>(
        self: &Arc<Self>,
        timeout: Duration,
        work: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<LakeError> + Send + 'static,
    {
        let deadline = Instant::now() + timeout;
        let waiting = Waiting::begin(&self.waiting);
        let permit = tokio::time::timeout(timeout, Arc::clone(&self.permits).acquire_owned()).await;
        drop(waiting);
        let permit = permit.map_err(|_| LakeError::Interrupted)?.expect("the semaphore is never closed");
        let cancelled = Cancelled::new(AtomicBool::new(false));
        let guard = CancelOnDrop(Arc::clone(&cancelled));
        let pool = Arc::clone(self);
        let outcome = tokio::task::spawn_blocking(move || {
            let outcome = pool.run_blocking(deadline, cancelled, work);
            drop(permit);
            outcome
        })
        .await;
        drop(guard);
        outcome.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    fn run_blocking<T, E: From<LakeError>>(
        &self,
        deadline: Instant,
        cancelled: Cancelled,
        work: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let lake = self.take()?;
        let connection = lake.connection();
        let watched = self.watchdog.watch(connection.interrupt_handle(), deadline, cancelled);
        let outcome =
            connection.execute_batch("BEGIN").context("begin a query").map_err(E::from).and_then(|()| work(connection));
        drop(watched);
        // A connection that cannot end its transaction is of no further use.
        if connection.execute_batch("ROLLBACK").is_ok() {
            self.connections.lock().unwrap_or_else(PoisonError::into_inner).idle.push(lake);
        }
        outcome
    }

    fn take(&self) -> Result<Lake, LakeError> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        match connections.idle.pop() {
            Some(lake) => Ok(lake),
            None => connections.template.try_clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::Pin, sync::mpsc, task::Poll};

    use super::*;
    use crate::LakeConfig;

    const ENDLESS: &str = "SELECT sum(range) FROM range(1000000000000000)";
    const PATIENCE: Duration = Duration::from_secs(60);

    fn pool() -> Arc<Pool> {
        let lake = Lake::detached(&LakeConfig::default()).expect("opens");
        Arc::new(Pool::new(lake, NonZeroUsize::MIN))
    }

    fn endless(started: mpsc::Sender<()>) -> impl FnOnce(&Connection) -> Result<(), LakeError> {
        move |connection| {
            let _ = started.send(());
            connection.execute_batch(ENDLESS).context("wait for ever")
        }
    }

    async fn answers(pool: &Arc<Pool>) {
        let one = |connection: &Connection| connection.execute_batch("SELECT 1").context("select 1");
        pool.run(PATIENCE, one).await.expect("the only connection is free again");
    }

    #[tokio::test]
    async fn queries_that_run_and_wait_are_counted() {
        let pool = pool();
        assert_eq!(pool.load(), QueryLoad::default());
        let (started, begun) = mpsc::channel();
        let running = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.run(PATIENCE * 10, endless(started)).await }
        });
        tokio::task::spawn_blocking(move || begun.recv()).await.expect("no panic").expect("begins");
        let mut waiting = Box::pin(answers(&pool));
        assert!(futures_pending(&mut waiting).await);
        assert_eq!(pool.load(), QueryLoad { running: 1, waiting: 1 });
        running.abort();
        waiting.await;
        let free = async {
            while pool.load() != QueryLoad::default() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, free).await.expect("nothing runs or waits any more");
    }

    /// Whether a future is not done yet once it was asked.
    async fn futures_pending(future: &mut (impl Future + Unpin)) -> bool {
        std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context).is_pending())).await
    }

    #[tokio::test]
    async fn a_query_that_nobody_waits_for_ends() {
        let pool = pool();
        let (started, begun) = mpsc::channel();
        let query = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.run(PATIENCE * 10, endless(started)).await }
        });
        tokio::task::spawn_blocking(move || begun.recv()).await.expect("no panic").expect("begins");
        query.abort();
        answers(&pool).await;
    }

    #[tokio::test]
    async fn a_query_ends_at_its_limit() {
        let pool = pool();
        let outcome = pool.run(Duration::from_millis(50), endless(mpsc::channel().0)).await;
        assert!(matches!(outcome, Err(LakeError::Interrupted)), "{outcome:?}");
        answers(&pool).await;
    }
}
