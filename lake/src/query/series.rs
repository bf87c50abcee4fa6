//! Which series the rows of a result belong to.

use std::collections::BTreeMap;

use duckdb::{
    Row,
    arrow::array::{Array, StringArray},
    types::ValueRef,
};
use plimsoll_nats::Name;

use crate::{LakeError, error::Context};

/// What tells a series of a measurement apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Series {
    /// The host.
    pub host: String,
    /// The tags; one that the rows lack is left out.
    pub tags: BTreeMap<Name, String>,
}

/// Reads the series of a result's rows, whose first columns are the host and the tags.
pub(super) struct SeriesReader<'t> {
    tags: &'t [Name],
    current: Option<Series>,
}

impl<'t> SeriesReader<'t> {
    pub(super) fn new(tags: &'t [Name]) -> Self {
        Self { tags, current: None }
    }

    /// Columns that the series takes.
    pub(super) fn columns(&self) -> usize {
        self.tags.len() + 1
    }

    /// The row's series, and whether it is another one than that of the row before.
    pub(super) fn read(&mut self, row: &Row<'_>) -> Result<(&Series, bool), LakeError> {
        // Compared in place: most rows belong to the same series as those before.
        let changed = match &self.current {
            Some(current) => !self.is_same(current, row)?,
            None => true,
        };
        if changed {
            self.current = Some(self.series(row)?);
        }
        Ok((self.current.as_ref().expect("it was just set where it was missing"), changed))
    }

    fn is_same(&self, series: &Series, row: &Row<'_>) -> Result<bool, LakeError> {
        if text(row, 0)? != Some(&*series.host) {
            return Ok(false);
        }
        for (index, tag) in self.tags.iter().enumerate() {
            if text(row, index + 1)? != series.tags.get(tag).map(|value| &**value) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn series(&self, row: &Row<'_>) -> Result<Series, LakeError> {
        let mut series = Series { host: text(row, 0)?.unwrap_or_default().to_owned(), tags: BTreeMap::new() };
        for (index, tag) in self.tags.iter().enumerate() {
            if let Some(value) = text(row, index + 1)? {
                series.tags.insert(tag.clone(), value.to_owned());
            }
        }
        Ok(series)
    }
}

/// A text column; none where it is null.
pub(super) fn text<'r>(row: &'r Row<'_>, index: usize) -> Result<Option<&'r str>, LakeError> {
    match row.get_ref(index).context("read a text")? {
        ValueRef::Null => Ok(None),
        value => value.as_str().map(Some).map_err(duckdb::Error::from).context("read a text"),
    }
}

/// A text of a column; none where it is null.
pub(super) fn text_at(column: &StringArray, row: usize) -> Option<&str> {
    column.is_valid(row).then(|| column.value(row))
}
