//! What every service's `main` does the same: telemetry, layered configuration, signals, and the workers' HTTP endpoints.

pub mod config;
pub mod launch;
#[cfg(feature = "ops")]
pub mod ops;
pub mod signals;
pub mod telemetry;

/// Exit code of a wrong configuration or command line (`EX_USAGE`).
pub const EXIT_USAGE: u8 = 64;
/// Exit code of a failed service (`EX_SOFTWARE`).
pub const EXIT_FAILURE: u8 = 70;
/// Exit code after a second Ctrl-C: nothing was drained.
pub const EXIT_INTERRUPTED: u8 = 130;
