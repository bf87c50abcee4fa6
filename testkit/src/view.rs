//! A test's look at a lake that others write to.

use plimsoll_lake::{Access, Lake, LakeConfig};

/// Reads numbers from a lake that may not be there yet, or be away.
#[derive(Debug)]
pub struct LakeView {
    config: LakeConfig,
    lake: Option<Lake>,
    /// Why there was no number the last time.
    why_none: String,
}

impl LakeView {
    /// A look at the lake of this configuration, which is attached when a number is asked for.
    #[must_use]
    pub fn new(config: LakeConfig) -> Self {
        Self { config, lake: None, why_none: String::new() }
    }

    /// The one value that `sql` yields; none while the lake or a table can't be read. Why is printed whenever that is another reason, to
    /// be seen where a test waits in vain.
    pub fn number(&mut self, sql: &str) -> Option<i64> {
        let number = self.read(sql);
        if let Err(error) = &number
            && *error != self.why_none
        {
            println!("{sql}: {}", error.lines().next().unwrap_or_default());
            self.why_none.clone_from(error);
        }
        number.ok()
    }

    fn read(&mut self, sql: &str) -> Result<i64, String> {
        let lake = match self.lake.take() {
            Some(lake) => lake,
            None => Lake::open(&self.config, Access::Read).map_err(|error| error.to_string())?,
        };
        let number = lake.connection().query_row(sql, [], |row| row.get(0)).map_err(|error| error.to_string())?;
        // Not kept after an error: the catalog may have been away, and a DuckDB may not come back from that.
        self.lake = Some(lake);
        Ok(number)
    }
}
