//! Lake and tail as one table.

use std::{cell::OnceCell, sync::Arc};

use duckdb::{Connection, params_from_iter};
use plimsoll_nats::{Batch, Name, batch::FieldType};

use super::{Attachment, QueryError, Selection};
use crate::{
    Positions, Tail, arrow,
    connection::table,
    error::Context,
    schema::{LakeSchema, TableSchema},
    sql::ident,
};

/// The name of the tail's rows in a query's transaction.
const STAGING: &str = "tail";

/// What a query's transaction sees of the lake.
pub(super) struct Snapshot<'c> {
    pub(super) connection: &'c Connection,
    pub(super) attachment: Attachment,
    pub(super) positions: Positions,
    pub(super) schema: LakeSchema,
}

impl<'c> Snapshot<'c> {
    /// Reads positions and tables in the connection's transaction.
    pub(super) fn take(connection: &'c Connection, attachment: Attachment) -> Result<Self, QueryError> {
        let (positions, schema) = match attachment {
            Attachment::Attached => (Positions::read(connection)?, LakeSchema::read(connection)?),
            Attachment::NotCreated | Attachment::Unreachable => (Positions::none(), LakeSchema::default()),
        };
        Ok(Self { connection, attachment, positions, schema })
    }

    /// Whether the lake is there, or certain not to be.
    pub(super) fn lake_reached(&self) -> bool {
        self.attachment != Attachment::Unreachable
    }

    /// The rows of a selection's host and measurement, the tail's included.
    ///
    /// Fails on an unknown measurement or tag, and when the tail has moved past this snapshot.
    pub(super) fn source(&self, tail: &Tail, selection: &Selection) -> Result<Source<'_>, QueryError> {
        let measurement = &selection.measurement;
        let mut added = tail.select(&self.positions, Some(&selection.host), Some(measurement))?;
        let mut schema = self.schema.clone();
        let mut admitted = admit(&mut schema, &added.batches);
        let stored = self.schema.table(measurement);
        if stored.is_none() || schema.table(measurement) != stored {
            // What another host has sent earlier may have fixed the new columns' types.
            added = tail.select(&self.positions, None, Some(measurement))?;
            schema = self.schema.clone();
            admitted = admit(&mut schema, &added.batches);
            admitted.retain(|batch| batch.host == selection.host);
        }
        let Some(table) = schema.table(measurement).cloned() else {
            return Err(QueryError::UnknownMeasurement { measurement: measurement.clone() });
        };
        if let Some(tag) = selection.tags.keys().find(|tag| !table.tags().any(|known| known == *tag)) {
            let (measurement, tag) = (measurement.clone(), tag.clone());
            return Err(QueryError::UnknownTag { measurement, tag, known: table.tags().cloned().collect() });
        }
        if !admitted.is_empty() {
            arrow::stage(self.connection, STAGING, measurement, &table, &admitted)?;
        }
        Ok(Source {
            connection: self.connection,
            selection: selection.clone(),
            stored: stored.is_some(),
            staged: !admitted.is_empty(),
            complete: added.complete && self.lake_reached(),
            table,
            relation: OnceCell::new(),
        })
    }
}

/// Takes the batches that fit into the schema, in order, as a commit would; the others will never be in the lake.
pub(super) fn admit<'b>(schema: &mut LakeSchema, batches: &'b [Arc<Batch>]) -> Vec<&'b Batch> {
    batches.iter().map(|batch| &**batch).filter(|batch| schema.admit(batch).is_ok()).collect()
}

/// One host's rows of one measurement, in a transaction.
pub(super) struct Source<'c> {
    pub(super) connection: &'c Connection,
    pub(super) selection: Selection,
    pub(super) table: TableSchema,
    pub(super) complete: bool,
    stored: bool,
    staged: bool,
    relation: OnceCell<String>,
}

impl Source<'_> {
    /// The SQL of lake and tail together, to stand after `FROM`.
    pub(super) fn relation(&self) -> &str {
        self.relation.get_or_init(|| {
            let lake = table(&self.selection.measurement);
            let tail = format!("temp.{}", ident(STAGING));
            match (self.stored, self.staged) {
                (true, true) => format!("(FROM {lake} UNION ALL BY NAME FROM {tail})"),
                (true, false) => lake,
                (false, true) => tail,
                (false, false) => self.nothing(),
            }
        })
    }

    /// A table of the right columns without a row: only other hosts have some.
    fn nothing(&self) -> String {
        let columns = self.table.columns().map(|(name, column)| {
            format!(", NULL::{} AS {}", crate::schema::sql_type(column.column_type), ident(name))
        });
        let columns: String = columns.collect();
        format!("(SELECT NULL::TIMESTAMP_MS AS ts, NULL::VARCHAR AS host{columns} WHERE false)")
    }

    /// The fields asked for with their types, in order; all where `wanted` is none. Fails on one that does not exist.
    pub(super) fn fields(&self, wanted: Option<&[Name]>) -> Result<Vec<(Name, FieldType)>, QueryError> {
        let all = || self.table.fields().map(|(name, field_type)| (name.clone(), field_type));
        let Some(wanted) = wanted else { return Ok(all().collect()) };
        let find = |field: &Name| {
            all().find(|(name, _)| name == field).ok_or_else(|| QueryError::UnknownField {
                measurement: self.selection.measurement.clone(),
                field: field.clone(),
                known: all().map(|(name, _)| name).collect(),
            })
        };
        wanted.iter().map(find).collect()
    }

    /// Whether lake or tail hold any row of the host.
    pub(super) fn host_known(&self) -> Result<bool, QueryError> {
        if self.staged || !self.stored {
            return Ok(self.staged);
        }
        let sql = format!("SELECT count(*) FROM (FROM {} WHERE host = ? LIMIT 1)", self.relation());
        let rows: i64 = self
            .connection
            .query_row(&sql, params_from_iter([&*self.selection.host]), |row| row.get(0))
            .context("look for the host")?;
        Ok(rows > 0)
    }
}
