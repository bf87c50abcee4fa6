//! The alert worker: evaluates rules over rows as they come, and notifies.
//!
//! [`evaluator`] is pure and runs backtests as well ([`backtest`](backtest::backtest)). Around it a worker follows its share of the stream's
//! partitions, stores each transition in `ALERT_STATE`, publishes it on `ALERTS` and queues it on `NOTIFY`, from which the
//! [`notifier`] delivers it at least once.

mod abandoned;
pub mod backtest;
pub mod config;
pub mod error;
pub mod evaluator;
pub mod message;
pub mod metrics;
pub mod notifier;
mod partition;
mod recorder;
mod report;
mod retry;
mod rules;
mod series;
mod service;
pub mod state;
pub mod window;
mod worker;

pub use config::AlertWorkerConfig;
pub use error::AlertWorkerError;
pub use service::{run, run_with};
