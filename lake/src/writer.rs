//! Commits rows and positions together, exactly once.

use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, Instant},
};

use plimsoll_nats::{Batch, Incarnation, PartitionId, Position, Sequence};

use crate::{
    Access, Lake, LakeConfig, LakeError, Positions, RowSet,
    connection::table,
    error::Context,
    positions,
    rows::{self, GatheredMessage, RowSource},
    schema::{AdmitError, LakeSchema, check_row_times},
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

/// What a commit wants to contain, as decoded batches; see [`RowSet`] for what is quicker.
#[derive(Debug, Default)]
pub struct CommitSet {
    /// Messages, per partition in the order of the stream.
    pub messages: Vec<PendingMessage>,
    /// Up to where each partition was read, messages without rows to store included.
    pub reached: BTreeMap<PartitionId, Position>,
    /// The stream's present life, where [`CommitOutcome::Superseded`] has asked for it.
    pub current: Option<Incarnation>,
}

impl RowSet {
    /// Whether the life of the stream that was reached is over. An incarnation is the stream's creation time, so that a later life
    /// has a larger one, unless the broker's clock was ahead or an older stream was restored: then the stream itself must tell.
    fn is_over(&self, reached: Position, stored: Position) -> bool {
        stored.incarnation > reached.incarnation && self.current != Some(reached.incarnation)
    }

    fn needs_current(&self, stored: &Positions) -> bool {
        let mut positions = self.reached.iter().filter_map(|(partition, to)| Some((*to, stored.stored(*partition)?)));
        self.current.is_none() && positions.any(|(reached, stored)| self.is_over(reached, stored))
    }

    /// The positions that have to move from where they are stored.
    fn advances(&self, stored: &Positions) -> Vec<(PartitionId, Position)> {
        let advances = |reached: Position, stored: Position| {
            let other_life = stored.incarnation != reached.incarnation;
            !self.is_over(reached, stored) && (other_life || reached.sequence > stored.sequence)
        };
        let moving = self
            .reached
            .iter()
            .filter(|(partition, reached)| stored.stored(**partition).is_none_or(|stored| advances(**reached, stored)));
        moving.map(|(partition, reached)| (*partition, *reached)).collect()
    }
}

/// A message that the lake cannot take.
#[derive(Debug)]
pub struct Rejection {
    /// Its index in [`CommitSet::messages`], or in the order in which a [`RowSet`] was given its messages.
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
        let lake = Lake::open(config, Access::Write)?;
        rows::register(&lake.connection)?;
        Ok(Self { lake })
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
        self.commit_rows(&RowSet::from(set))
    }

    /// Writes gathered rows, as [`LakeWriter::commit`] does.
    pub fn commit_rows(&self, set: &RowSet) -> Result<CommitOutcome, LakeError> {
        const ATTEMPTS: u32 = 10;
        let started = Instant::now();
        let (outcome, conflicts) = self.lake.retried(ATTEMPTS, || self.commit_once(set))?;
        Ok(match outcome {
            CommitOutcome::Committed(report) => {
                CommitOutcome::Committed(CommitReport { conflicts, duration: started.elapsed(), ..report })
            }
            undone => undone,
        })
    }

    fn commit_once(&self, set: &RowSet) -> Result<CommitOutcome, LakeError> {
        let connection = &self.lake.connection;
        connection.execute_batch("BEGIN").context("begin a commit")?;
        let stored = Positions::read(connection)?;
        if set.needs_current(&stored) {
            return self.undone(CommitOutcome::Superseded);
        }
        let stored_schema = LakeSchema::read(connection)?;
        let Plan { schema, rows, rejections, report } = Plan::new(set, &stored, &stored_schema);
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
        for (index, ranges) in rows {
            self.insert(set, index, &schema, ranges)?;
        }
        positions::advance(connection, &set.advances(&stored))?;
        self.lake.commit()?;
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
        set: &RowSet,
        stored: &Positions,
        stored_schema: LakeSchema,
    ) -> Result<Vec<Rejection>, LakeError> {
        let connection = &self.lake.connection;
        let mut schema = stored_schema.clone();
        let mut rejections = Vec::new();
        for (index, message) in set.kept() {
            let table = &set.tables()[message.table];
            let measurement = table.measurement();
            let before = schema.table(measurement).cloned();
            let is_new = matches!(standing(message, set, stored), Standing::New);
            if !is_new || schema.admit_columns(measurement, table.columns(message.layout)) != Ok(true) {
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

    fn insert(
        &self,
        set: &RowSet,
        index: usize,
        schema: &LakeSchema,
        ranges: Vec<Range<usize>>,
    ) -> Result<(), LakeError> {
        let rows = &set.tables()[index];
        let measurement = rows.measurement();
        let columns = schema.table(measurement).expect("admitting a message makes its table");
        let source = RowSource::offer(rows, columns, ranges.into_iter());
        let statement = format!("INSERT INTO {} BY NAME FROM {}", table(measurement), source.relation());
        let inserted = self.lake.connection.execute(&statement, []).context("insert rows")?;
        if inserted == source.rows() {
            return Ok(());
        }
        Err(LakeError::RowsMissing { table: measurement.to_string(), offered: source.rows(), inserted })
    }
}

/// What a commit is about to do.
struct Plan {
    /// The tables as the messages need them.
    schema: LakeSchema,
    /// The rows to insert, by the index of their table.
    rows: BTreeMap<usize, Vec<Range<usize>>>,
    rejections: Vec<Rejection>,
    /// What is known of it beforehand.
    report: CommitReport,
}

impl Plan {
    fn new(set: &RowSet, stored: &Positions, stored_schema: &LakeSchema) -> Self {
        let mut admission = Admission::new(set, stored_schema);
        let mut rows = BTreeMap::<_, Vec<Range<usize>>>::new();
        let mut rejections = Vec::new();
        let mut report = CommitReport::default();
        for (index, message) in set.kept() {
            match standing(message, set, stored) {
                Standing::Contained => report.contained += 1,
                Standing::Superseded => report.superseded += 1,
                Standing::New => match admission.admit(message) {
                    Ok(()) => {
                        report.messages += 1;
                        report.rows += message.rows().len();
                        report.points += message.points as usize;
                        add(rows.entry(message.table).or_default(), message.rows());
                    }
                    Err(reason) => rejections.push(Rejection { index, reason }),
                },
            }
        }
        Self { schema: admission.schema, rows, rejections, report }
    }
}

/// Adds a range of rows behind the others.
fn add(ranges: &mut Vec<Range<usize>>, rows: Range<usize>) {
    match ranges.last_mut() {
        Some(last) if last.end == rows.start => last.end = rows.end,
        _ => ranges.push(rows),
    }
}

/// Admits messages to a schema in their order; those of the same columns in the same measurement fare alike.
struct Admission<'s> {
    set: &'s RowSet,
    schema: LakeSchema,
    /// By table and layout.
    known: Vec<Vec<Option<Result<(), AdmitError>>>>,
}

impl<'s> Admission<'s> {
    fn new(set: &'s RowSet, stored: &LakeSchema) -> Self {
        let known = set.tables().iter().map(|table| vec![None; table.layouts()]).collect();
        Self { set, schema: stored.clone(), known }
    }

    fn admit(&mut self, message: &GatheredMessage) -> Result<(), AdmitError> {
        let table = &self.set.tables()[message.table];
        check_row_times(table.times(message.rows()), message.stored_ms)?;
        let known = &mut self.known[message.table][message.layout];
        let schema = &mut self.schema;
        let admit = || schema.admit_columns(table.measurement(), table.columns(message.layout)).map(|_| ());
        known.get_or_insert_with(admit).clone()
    }
}

enum Standing {
    New,
    Contained,
    Superseded,
}

fn standing(message: &GatheredMessage, set: &RowSet, stored: &Positions) -> Standing {
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
