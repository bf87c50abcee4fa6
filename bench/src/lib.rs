//! Benchmarks: made-up fleets, recordings of real ones, and Plimsoll side by side with others on the same points.

pub mod cli;
pub mod compare;
pub mod fill;
pub mod fleet;
pub mod lines;
pub mod page;
pub mod progress;
pub mod publish;
pub mod record;
pub mod recording;
pub mod remote_write;
pub mod replay;
pub mod wire;

use plimsoll_nats::{Batch, Column};

pub use fleet::{Fleet, FleetConfig, FleetError};

/// The values of a column that are not nil.
#[must_use]
pub fn points_of(column: &Column) -> usize {
    match column {
        Column::Float(values) => values.iter().flatten().count(),
        Column::Integer(values) => values.iter().flatten().count(),
        Column::Bool(values) => values.iter().flatten().count(),
        Column::Text(values) => values.iter().flatten().count(),
    }
}

/// The values of a batch that are not nil.
#[must_use]
pub fn points(batch: &Batch) -> usize {
    batch.fields.values().map(points_of).sum()
}
