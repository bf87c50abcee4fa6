//! Fans, from /sys/class/hwmon.

use super::{CollectError, Collector};
use crate::{context::Context, rows::Tables};

/// Not read yet.
#[derive(Debug)]
pub struct Fan;

impl Fan {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(_context: &Context) -> Self {
        Self
    }
}

impl Collector for Fan {
    fn collect(&mut self, _tables: &mut Tables) -> Result<(), CollectError> {
        Ok(())
    }
}
