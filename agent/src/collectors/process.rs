//! Processes: the largest, the watched, and all together.

use super::{CollectError, Collector};
use crate::{context::Context, rows::Tables};

/// Not read yet.
#[derive(Debug)]
pub struct Processes;

impl Processes {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(_context: &Context) -> Self {
        Self
    }
}

impl Collector for Processes {
    fn collect(&mut self, _tables: &mut Tables) -> Result<(), CollectError> {
        Ok(())
    }
}
