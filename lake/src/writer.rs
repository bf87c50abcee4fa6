//! Commits rows and positions together, exactly once.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use plimsoll_nats::{Batch, Incarnation, Name, PartitionId, Position, Sequence};

use crate::{
    Access, Lake, LakeConfig, LakeError, Positions, arrow,
    connection::{pause, table},
    error::Context,
    positions,
    schema::{AdmitError, LakeSchema, TableSchema, check_times},
    sql::ident,
};

/// A decoded message that waits to be committed.
#[derive(Debug)]
pub struct PendingMessage {
    /// The partition that it came from.
    pub partition: PartitionId,
    /// Its place in the stream.
    pub sequence: Sequence,
    /// When the broker stored it, Unix ms.
    pub stored_ms: i64,
    /// Its rows.
    pub batch: Batch,
}

/// What a commit wants to contain.
#[derive(Debug, Default)]
pub struct CommitSet {
    /// Messages, per partition in the order of the stream.
    pub messages: Vec<PendingMessage>,
    /// Up to where each partition was read, messages without rows to store included.
    pub reached: BTreeMap<PartitionId, Position>,
}

/// A message that the lake cannot take.
#[derive(Debug)]
pub struct Rejection {
    /// Its index in [`CommitSet::messages`].
    pub index: usize,
    /// Why.
    pub reason: AdmitError,
}

/// What came of a commit.
#[derive(Debug)]
pub enum CommitOutcome {
    /// The lake contains everything up to the reached positions.
    Committed(CommitReport),
    /// Nothing was written: these messages must be put aside first.
    Rejected(Vec<Rejection>),
}

/// What a commit wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommitReport {
    /// Messages whose rows were written.
    pub messages: usize,
    /// Rows written.
    pub rows: usize,
    /// Values written: rows times their tables' fields, nils left out.
    pub points: usize,
    /// Messages that the lake contained already.
    pub contained: usize,
    /// Messages of a life of the stream that the lake knows a later one of; they were dropped.
    pub superseded: usize,
    /// Transactions that had to be tried again because another writer was faster.
    pub conflicts: u32,
    /// Time from the first try to the commit.
    pub duration: Duration,
}

/// The one who writes. Blocks; give it a thread of its own.
#[derive(Debug)]
pub struct LakeWriter {
    lake: Lake,
}

/// Rows of one measurement that are about to be written.
type Planned<'a> = BTreeMap<Name, Vec<&'a Batch>>;

impl LakeWriter {
    /// Opens the lake for writing and creates it where it is missing.
    pub fn open(config: &LakeConfig) -> Result<Self, LakeError> {
        Ok(Self { lake: Lake::open(config, Access::Write)? })
    }

    /// The positions that the lake holds now.
    pub fn positions(&self) -> Result<Positions, LakeError> {
        Positions::read(&self.lake.connection)
    }

    /// The attached lake, for maintenance by the same process.
    #[must_use]
    pub fn lake(&self) -> &Lake {
        &self.lake
    }

    /// Writes the rows that the lake does not contain yet and moves the positions, in one transaction.
    ///
    /// On a conflict the transaction is tried again from a fresh read, with jitter. Fails when that goes on too long or the lake
    /// can't be reached; nothing is then written, and the same set can be committed later.
    pub fn commit(&self, set: &CommitSet) -> Result<CommitOutcome, LakeError> {
        const ATTEMPTS: u32 = 10;
        let started = Instant::now();
        let mut conflicts = 0;
        loop {
            match self.commit_once(set) {
                Ok(CommitOutcome::Committed(mut report)) => {
                    report.conflicts = conflicts;
                    report.duration = started.elapsed();
                    return Ok(CommitOutcome::Committed(report));
                }
                Ok(rejected) => return Ok(rejected),
                Err(error) => {
                    // Fails when the transaction has ended already, which is as good.
                    let _ = self.lake.connection.execute_batch("ROLLBACK");
                    if !error.is_conflict() || conflicts + 1 >= ATTEMPTS {
                        return Err(error);
                    }
                    conflicts += 1;
                    pause(conflicts);
                }
            }
        }
    }

    fn commit_once(&self, set: &CommitSet) -> Result<CommitOutcome, LakeError> {
        let connection = &self.lake.connection;
        connection.execute_batch("BEGIN").context("begin a commit")?;
        let stored = Positions::read(connection)?;
        let stored_schema = LakeSchema::read(connection)?;
        let mut schema = stored_schema.clone();
        let mut report = CommitReport::default();
        let mut rejections = Vec::new();
        let mut planned = Planned::new();
        for (index, message) in set.messages.iter().enumerate() {
            match standing(message, set, &stored) {
                Standing::Contained => report.contained += 1,
                Standing::Superseded => report.superseded += 1,
                Standing::New => {
                    let admitted =
                        check_times(&message.batch, message.stored_ms).and_then(|()| schema.admit(&message.batch));
                    match admitted {
                        Ok(()) => planned.entry(message.batch.measurement.clone()).or_default().push(&message.batch),
                        Err(reason) => rejections.push(Rejection { index, reason }),
                    }
                }
            }
        }
        if !rejections.is_empty() {
            connection.execute_batch("ROLLBACK").context("end a commit")?;
            return Ok(CommitOutcome::Rejected(rejections));
        }
        for statement in schema.migration(&stored_schema) {
            connection.execute_batch(&statement).context("create a table or column")?;
        }
        for (measurement, batches) in &planned {
            let table = schema.table(measurement).expect("admitting a batch makes its table");
            self.insert(measurement, table, batches)?;
            report.messages += batches.len();
            report.rows += batches.iter().map(|batch| batch.rows()).sum::<usize>();
            report.points += batches.iter().map(|batch| points(batch)).sum::<usize>();
        }
        for (partition, reached) in &set.reached {
            let before = stored.stored(*partition);
            if before.is_none_or(|before| advances(before, *reached)) {
                positions::advance(connection, *partition, *reached)?;
            }
        }
        connection.execute_batch("COMMIT").context("commit")?;
        Ok(CommitOutcome::Committed(report))
    }

    fn insert(&self, measurement: &Name, schema: &TableSchema, batches: &[&Batch]) -> Result<(), LakeError> {
        const STAGING: &str = "staging";
        let connection = &self.lake.connection;
        arrow::stage(connection, STAGING, measurement, schema, batches)?;
        let target = table(measurement);
        connection
            .execute_batch(&format!("INSERT INTO {target} BY NAME SELECT * FROM temp.{}", ident(STAGING)))
            .context("insert rows")?;
        arrow::unstage(connection, STAGING)
    }
}

enum Standing {
    New,
    Contained,
    Superseded,
}

fn standing(message: &PendingMessage, set: &CommitSet, stored: &Positions) -> Standing {
    let (Some(reached), Some(stored)) = (set.reached.get(&message.partition), stored.stored(message.partition)) else {
        return Standing::New;
    };
    if is_later(stored.incarnation, reached.incarnation) {
        Standing::Superseded
    } else if message.sequence <= stored.within(reached.incarnation).sequence {
        Standing::Contained
    } else {
        Standing::New
    }
}

/// An incarnation is the stream's creation time, so that a later life has a larger one.
fn is_later(stored: Incarnation, reached: Incarnation) -> bool {
    stored > reached
}

fn advances(stored: Position, reached: Position) -> bool {
    !is_later(stored.incarnation, reached.incarnation)
        && (stored.incarnation != reached.incarnation || reached.sequence > stored.sequence)
}

fn points(batch: &Batch) -> usize {
    use plimsoll_nats::Column;
    let present = |column: &Column| match column {
        Column::Float(values) => values.iter().flatten().count(),
        Column::Integer(values) => values.iter().flatten().count(),
        Column::Bool(values) => values.iter().flatten().count(),
        Column::Text(values) => values.iter().flatten().count(),
    };
    batch.fields.values().map(present).sum()
}
