//! Ends blocking work in the lake when a signal comes.

use std::{
    convert::Infallible,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use plimsoll_lake::import::Interrupt;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

/// How often work that has not ended is interrupted again.
const AGAIN: Duration = Duration::from_millis(20);

/// Shared by the work and the one who stops it.
#[derive(Debug, Default)]
pub struct Stop {
    asked: AtomicBool,
    interrupt: Mutex<Option<Interrupt>>,
}

impl Stop {
    /// Whether the work was told to end.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Tells what ends the work's present statement.
    pub fn by(&self, interrupt: Interrupt) {
        *self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = Some(interrupt);
    }

    /// Waits for the work, which is told to end at `shutdown`.
    pub async fn until_done<T>(&self, mut work: JoinHandle<T>, shutdown: &CancellationToken) -> Result<T, JoinError> {
        tokio::select! {
            biased;
            ended = &mut work => return ended,
            () = shutdown.cancelled() => {}
        }
        tokio::select! {
            biased;
            ended = &mut work => ended,
            never = self.ask() => match never {},
        }
    }

    /// Tells the work to end, again and again: an interrupt between two statements is forgotten.
    async fn ask(&self) -> Infallible {
        self.asked.store(true, Ordering::Relaxed);
        loop {
            if let Some(interrupt) = &*self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) {
                interrupt.interrupt();
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}
