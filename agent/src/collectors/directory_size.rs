//! Size of configured folders.

use super::{CollectError, Collector};
use crate::{context::Context, rows::Tables};

/// Not read yet.
#[derive(Debug)]
pub struct DirectorySize;

impl DirectorySize {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(_context: &Context) -> Self {
        Self
    }
}

impl Collector for DirectorySize {
    fn collect(&mut self, _tables: &mut Tables) -> Result<(), CollectError> {
        Ok(())
    }
}
