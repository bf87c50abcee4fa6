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

impl PendingMessage {
    /// Memory that the message takes, in bytes and roughly.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.batch.weight()
    }
}

/// What a commit wants to contain.
#[derive(Debug, Default)]
pub struct CommitSet {
    /// Messages, per partition in the order of the stream.
    pub messages: Vec<PendingMessage>,
    /// Up to where each partition was read, messages without rows to store included.
    pub reached: BTreeMap<PartitionId, Position>,
    /// The stream's present life, where [`CommitOutcome::Superseded`] has asked for it.
    pub current: Option<Incarnation>,
}

impl CommitSet {
    /// Whether the life of the stream that was reached is over. An incarnation is the stream's creation time, so that a later life
    /// has a larger one, unless the broker's clock was ahead or an older stream was restored: then the stream itself must tell.
    fn is_over(&self, reached: Position, stored: Position) -> bool {
        stored.incarnation > reached.incarnation && self.current != Some(reached.incarnation)
    }

    fn needs_current(&self, stored: &Positions) -> bool {
        let mut positions = self.reached.iter().filter_map(|(partition, to)| Some((*to, stored.stored(*partition)?)));
        self.current.is_none() && positions.any(|(reached, stored)| self.is_over(reached, stored))
    }
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
    /// Nothing was written: the lake knows a later life of the stream than one that was reached. Ask the stream for its present
    /// life, and commit again with [`CommitSet::current`].
    Superseded,
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
    /// Messages of a life of the stream that is over and that the lake knows a later one of; they were dropped.
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
                Ok(undone) => return Ok(undone),
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
        if set.needs_current(&stored) {
            return self.undone(CommitOutcome::Superseded);
        }
        let stored_schema = LakeSchema::read(connection)?;
        let Plan { schema, batches, rejections, mut report } = Plan::new(set, &stored, &stored_schema);
        if !rejections.is_empty() {
            return self.undone(CommitOutcome::Rejected(rejections));
        }
        if let Err(error) = self.migrate(&schema.migration(&stored_schema)) {
            if error.refusal().is_none() {
                return Err(error);
            }
            connection.execute_batch("ROLLBACK").context("end a commit")?;
            let refused = self.refused(set, &stored, stored_schema)?;
            return if refused.is_empty() { Err(error) } else { Ok(CommitOutcome::Rejected(refused)) };
        }
        for (measurement, batches) in &batches {
            let table = schema.table(measurement).expect("admitting a batch makes its table");
            self.insert(measurement, table, batches)?;
            report.messages += batches.len();
            report.rows += batches.iter().map(|batch| batch.rows()).sum::<usize>();
            report.points += batches.iter().map(|batch| points(batch)).sum::<usize>();
        }
        for (partition, reached) in &set.reached {
            let before = stored.stored(*partition);
            if before.is_none_or(|before| advances(set, before, *reached)) {
                positions::advance(connection, *partition, *reached)?;
            }
        }
        connection.execute_batch("COMMIT").context("commit")?;
        Ok(CommitOutcome::Committed(report))
    }

    fn undone(&self, outcome: CommitOutcome) -> Result<CommitOutcome, LakeError> {
        self.lake.connection.execute_batch("ROLLBACK").context("end a commit")?;
        Ok(outcome)
    }

    fn migrate(&self, statements: &[String]) -> Result<(), LakeError> {
        statements
            .iter()
            .try_for_each(|statement| self.lake.connection.execute_batch(statement).context("create a table or column"))
    }

    /// The messages whose tables or columns the lake refuses: what each one adds is tried alone, and taken back.
    fn refused(
        &self,
        set: &CommitSet,
        stored: &Positions,
        stored_schema: LakeSchema,
    ) -> Result<Vec<Rejection>, LakeError> {
        let connection = &self.lake.connection;
        let mut schema = stored_schema.clone();
        let mut rejections = Vec::new();
        for (index, message) in set.messages.iter().enumerate() {
            let measurement = &message.batch.measurement;
            let before = schema.table(measurement).cloned();
            let is_new = matches!(standing(message, set, stored), Standing::New);
            if !is_new || schema.admit(&message.batch) != Ok(true) {
                continue;
            }
            connection.execute_batch("BEGIN").context("begin a trial")?;
            let tried = self.migrate(&schema.migration_of(measurement, &stored_schema));
            connection.execute_batch("ROLLBACK").context("end a trial")?;
            if let Err(error) = tried {
                let detail = error.refusal().ok_or(error)?;
                rejections.push(Rejection { index, reason: AdmitError::Refused { detail } });
                schema.restore(measurement, before);
            }
        }
        Ok(rejections)
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

/// What a commit is about to do.
struct Plan<'a> {
    /// The tables as the batches need them.
    schema: LakeSchema,
    batches: BTreeMap<Name, Vec<&'a Batch>>,
    rejections: Vec<Rejection>,
    /// What is known of it beforehand.
    report: CommitReport,
}

impl<'a> Plan<'a> {
    fn new(set: &'a CommitSet, stored: &Positions, stored_schema: &LakeSchema) -> Self {
        let mut schema = stored_schema.clone();
        let mut batches = BTreeMap::<_, Vec<_>>::new();
        let mut rejections = Vec::new();
        let mut report = CommitReport::default();
        for (index, message) in set.messages.iter().enumerate() {
            let batch = &message.batch;
            match standing(message, set, stored) {
                Standing::Contained => report.contained += 1,
                Standing::Superseded => report.superseded += 1,
                Standing::New => match check_times(batch, message.stored_ms).and_then(|()| schema.admit(batch)) {
                    Ok(_) => batches.entry(batch.measurement.clone()).or_default().push(batch),
                    Err(reason) => rejections.push(Rejection { index, reason }),
                },
            }
        }
        Self { schema, batches, rejections, report }
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
    if set.is_over(*reached, stored) {
        Standing::Superseded
    } else if message.sequence <= stored.within(reached.incarnation).sequence {
        Standing::Contained
    } else {
        Standing::New
    }
}

fn advances(set: &CommitSet, stored: Position, reached: Position) -> bool {
    !set.is_over(reached, stored) && (stored.incarnation != reached.incarnation || reached.sequence > stored.sequence)
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
