//! Interrupts queries that take too long or that nobody waits for any more.
//!
//! DuckDB forgets an interrupt that arrives between two statements, so that one interrupt may be lost: the watchdog repeats it
//! until the query has ended.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use duckdb::InterruptHandle;

/// Longest time between two looks at the running queries.
const PERIOD: Duration = Duration::from_millis(20);
/// Time until a query that has not ended is interrupted again.
const AGAIN: Duration = Duration::from_millis(1);

/// Set when nobody waits for the query any more.
pub(super) type Cancelled = Arc<AtomicBool>;

struct Running {
    id: u64,
    deadline: Instant,
    cancelled: Cancelled,
    interrupt: Arc<InterruptHandle>,
}

impl Running {
    /// Interrupts the query if it must end; returns when to look again.
    fn look(&self) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || self.cancelled.load(Ordering::Relaxed) {
            self.interrupt.interrupt();
            AGAIN
        } else {
            left.min(PERIOD)
        }
    }
}

#[derive(Default)]
struct Queries {
    running: Vec<Running>,
    next_id: u64,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queries: Mutex<Queries>,
    changed: Condvar,
}

/// Watches the queries of one pool.
pub(super) struct Watchdog(Arc<Shared>);

/// A query under watch; dropping it ends the watch.
pub(super) struct Watched {
    shared: Arc<Shared>,
    id: u64,
}

impl Watchdog {
    pub(super) fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        thread::spawn(move || watched.watch());
        Self(shared)
    }

    /// Watches a query from now on.
    pub(super) fn watch(&self, interrupt: Arc<InterruptHandle>, deadline: Instant, cancelled: Cancelled) -> Watched {
        let mut queries = self.0.queries.lock().unwrap_or_else(PoisonError::into_inner);
        let id = queries.next_id;
        queries.next_id += 1;
        queries.running.push(Running { id, deadline, cancelled, interrupt });
        self.0.changed.notify_one();
        Watched { shared: Arc::clone(&self.0), id }
    }
}

impl Shared {
    fn watch(&self) {
        let mut queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
        while !queries.closed {
            let pause = queries.running.iter().map(Running::look).min().unwrap_or(PERIOD);
            queries = if queries.running.is_empty() {
                self.changed.wait(queries).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.changed.wait_timeout(queries, pause).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Under the lock, so that no interrupt for this query can reach the connection's next one.
        self.shared.queries.lock().unwrap_or_else(PoisonError::into_inner).running.retain(|query| query.id != self.id);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.queries.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.0.changed.notify_one();
    }
}

impl std::fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watchdog")
    }
}
