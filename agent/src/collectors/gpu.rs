//! NVIDIA graphics processors and what runs on them.

use super::{CollectError, Collector};
use crate::{context::Context, rows::Tables};

/// Not read yet.
#[derive(Debug)]
pub struct Gpu;

impl Gpu {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(_context: &Context) -> Self {
        Self
    }
}

impl Collector for Gpu {
    fn collect(&mut self, _tables: &mut Tables) -> Result<(), CollectError> {
        Ok(())
    }
}
