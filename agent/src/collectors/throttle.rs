//! Throttling of processors, from sysfs.

use super::{CollectError, Collector};
use crate::{context::Context, rows::Tables};

/// Not read yet.
#[derive(Debug)]
pub struct Throttle;

impl Throttle {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(_context: &Context) -> Self {
        Self
    }
}

impl Collector for Throttle {
    fn collect(&mut self, _tables: &mut Tables) -> Result<(), CollectError> {
        Ok(())
    }
}
