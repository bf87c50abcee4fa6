//! The positions: up to where the lake contains each partition of the stream.

use std::collections::BTreeMap;

use duckdb::Connection;
use plimsoll_nats::{Incarnation, PartitionId, Position, Sequence};

use crate::{LakeError, connection::LAKE, error::Context};

/// The position of every partition, as one snapshot of the lake holds them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions(BTreeMap<PartitionId, Position>);

impl Positions {
    /// Reads the positions in the connection's transaction.
    pub fn read(connection: &Connection) -> Result<Self, LakeError> {
        let sql = format!("SELECT partition, incarnation, sequence FROM {LAKE}.plimsoll.positions");
        let mut statement = connection.prepare_cached(&sql).context("read the positions")?;
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, u16>(0)?, row.get::<_, i64>(1)?, row.get::<_, u64>(2)?)))
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .context("read the positions")?;
        let positions = rows.into_iter().filter_map(|(partition, incarnation, sequence)| {
            let position = Position { incarnation: Incarnation(incarnation), sequence: Sequence(sequence) };
            Some((PartitionId::new(partition)?, position))
        });
        let positions = Self(positions.collect());
        match PartitionId::all().find(|partition| !positions.0.contains_key(partition)) {
            Some(partition) => Err(LakeError::PositionMissing { partition: partition.get() }),
            None => Ok(positions),
        }
    }

    /// The positions of a lake that does not exist yet: nothing is contained.
    #[must_use]
    pub fn none() -> Self {
        Self(BTreeMap::new())
    }

    #[cfg(test)]
    pub(crate) fn for_test(positions: impl Iterator<Item = (PartitionId, Position)>) -> Self {
        Self(positions.collect())
    }

    /// The position of a partition in this life of the stream; its start when the lake knows another life only.
    #[must_use]
    pub fn of(&self, partition: PartitionId, incarnation: Incarnation) -> Position {
        self.0.get(&partition).map_or(Position::start(incarnation), |position| position.within(incarnation))
    }

    /// The stored position of a partition, whatever life of the stream it counts in.
    #[must_use]
    pub fn stored(&self, partition: PartitionId) -> Option<Position> {
        self.0.get(&partition).copied()
    }
}

/// Moves partitions' positions within the connection's transaction. Fails unless exactly one row moves for each.
///
/// One statement for all: each costs as much as one for a single partition.
pub(crate) fn advance(connection: &Connection, to: &[(PartitionId, Position)]) -> Result<(), LakeError> {
    if to.is_empty() {
        return Ok(());
    }
    let rows = to.iter().map(|(partition, Position { incarnation, sequence })| {
        format!("({partition}::USMALLINT, {}::BIGINT, {sequence}::UBIGINT)", incarnation.0)
    });
    let rows = rows.collect::<Vec<_>>().join(", ");
    let sql = format!(
        "UPDATE {LAKE}.plimsoll.positions SET incarnation = reached.incarnation, sequence = reached.sequence
         FROM (VALUES {rows}) AS reached (partition, incarnation, sequence)
         WHERE positions.partition = reached.partition"
    );
    let moved = connection.execute(&sql, []).context("move the positions")?;
    if moved == to.len() { Ok(()) } else { Err(LakeError::PositionsMissing { moved, expected: to.len() }) }
}
