//! Fills what the lake lacks of the stream, without doubling what it has.
//!
//! What decides is, for each message, its partition's position in the same transaction:
//!
//! - At or below it, ingest has had the message, and the lake may have lost some of its rows or have refused them then. Rows that are
//!   there already are left out: a row is there when one equal to it in every column is. Of rows that are equal among themselves
//!   and not there, one is written.
//! - Beyond it, the message is ingest's to store: it would do so again. Only a lake that nobody ingests into takes such messages
//!   too, in the order of the stream, and its positions move along, so that ingest goes on right after them. Nobody ingests into it
//!   as long as its positions stand where no stream has moved them, or where the replay itself has left them.
//!
//! Layout: `plimsoll.replays` has a row for each selection of hosts and measurements that was ever replayed: whether the lake was taken
//! for one that nobody ingests into (`rebuilds`, and the positions' sequence `reached` that the replay left), from when on the
//! replay read (`since_ms`), how far it came (`sequence`, in the life `incarnation` of the stream), and whether that was its end
//! (`finished`). The row whose selection is empty counts the transactions of all replays.
//!
//! Invariant: rows, positions and progress move together, and every transaction updates the row of the empty selection. So two
//! replays that write at the same time conflict, the later one reads anew, and a kill at any point loses nothing and doubles nothing.

use std::collections::BTreeMap;

use duckdb::{Connection, params};
use plimsoll_nats::{Batch, Incarnation, Name, PartitionId, Position, Sequence};

use crate::{
    Lake, LakeConfig, LakeError, LakeWriter, PendingMessage, Positions, arrow,
    connection::{LAKE, has_table, table},
    error::Context,
    schema::{AdmitError, LakeSchema, TableSchema, check_times},
    sql::ident,
    writer::Rejection,
};

/// What a replay is about to read.
#[derive(Debug, Clone)]
pub struct ReplayRequest {
    /// Which hosts and measurements, in words that are the same whenever the selection is; not empty.
    pub selection: String,
    /// Whether that is less than everything.
    pub is_partial: bool,
    /// Unix ms from which on messages are read, by the time at which the broker stored them.
    pub since_ms: i64,
    /// The stream's present life.
    pub incarnation: Incarnation,
    /// Whether the lake was named for this replay, so that a part of the hosts and measurements may be all that it gets.
    pub is_named: bool,
    /// Whether to begin anew though one of the same selection was interrupted.
    pub restarts: bool,
}

/// A replay that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// The last message that an interrupted replay of the same selection has stored; 0 when this one begins at its own start.
    pub after: Sequence,
    /// Whether nobody ingests into the lake, so that the replay moves its positions.
    pub rebuilds: bool,
}

/// Tries of a transaction that other writers get in the way of.
const ATTEMPTS: u32 = 12;

/// Messages to be stored, and how far the replay has come with them.
#[derive(Debug, Default)]
pub struct ReplaySet {
    /// Messages in the order of the stream.
    pub messages: Vec<PendingMessage>,
    /// Up to where the stream was read, messages that are not in the selection included.
    pub reached: Sequence,
    /// Whether that is all.
    pub is_last: bool,
}

/// What came of a set.
#[derive(Debug)]
pub enum ReplayOutcome {
    /// The lake has what the set holds.
    Stored(ReplayReport),
    /// Nothing was written: these messages must be left out first.
    Rejected(Vec<Rejection>),
}

/// What a set has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Rows written.
    pub rows: usize,
    /// Rows left out: the lake has them, or the same row came twice.
    pub present: usize,
    /// Messages left to ingest.
    pub left: usize,
    /// Transactions that had to be tried again because another writer was faster.
    pub conflicts: u32,
}

/// The one who writes what a replay reads. Blocks; give it a thread of its own.
#[derive(Debug)]
pub struct ReplayWriter {
    writer: LakeWriter,
}

impl ReplayWriter {
    /// Opens the lake for writing and creates it where it is missing.
    pub fn open(config: &LakeConfig) -> Result<Self, LakeError> {
        Ok(Self { writer: LakeWriter::open(config)? })
    }

    /// Begins a replay, or goes on with one of the same selection that did not come to its end.
    ///
    /// Fails with [`LakeError::NotIngested`] when a part of the hosts or measurements is to be replayed into a lake that ingest may
    /// be about to fill for the first time.
    pub fn begin(&self, request: &ReplayRequest) -> Result<Begun, LakeError> {
        self.lake().retried(ATTEMPTS, || self.begin_once(request)).map(|(begun, _)| begun)
    }

    /// Writes what the lake lacks of a set, in one transaction.
    ///
    /// On a conflict the transaction is tried again from a fresh read, with jitter. Fails when that goes on too long or the lake
    /// can't be reached; nothing is then written, and the same set can be stored later.
    pub fn store(&self, request: &ReplayRequest, set: &ReplaySet) -> Result<ReplayOutcome, LakeError> {
        let (outcome, conflicts) = self.lake().retried(ATTEMPTS, || self.store_once(request, set))?;
        Ok(match outcome {
            ReplayOutcome::Stored(report) => ReplayOutcome::Stored(ReplayReport { conflicts, ..report }),
            rejected => rejected,
        })
    }

    fn lake(&self) -> &Lake {
        self.writer.lake()
    }

    fn begin_once(&self, request: &ReplayRequest) -> Result<Begun, LakeError> {
        let connection = &self.lake().connection;
        connection.execute_batch("BEGIN").context("begin a replay")?;
        create_table(connection)?;
        let positions = Positions::read(connection)?;
        let record = Record::read(connection, &request.selection)?;
        let rebuilds = match &record {
            Some(record) if record.rebuilds && record.incarnation == request.incarnation => record.left(&positions),
            _ => is_pristine(&positions),
        };
        if rebuilds && request.is_partial && !request.is_named {
            return Err(LakeError::NotIngested);
        }
        let is_new = record.is_none();
        let before = record.unwrap_or_default();
        let resumes = !is_new
            && !request.restarts
            && !before.finished
            && before.incarnation == request.incarnation
            && before.since_ms <= request.since_ms;
        let record = Record {
            rebuilds,
            incarnation: request.incarnation,
            since_ms: if resumes { before.since_ms } else { request.since_ms },
            sequence: if resumes { before.sequence } else { Sequence(0) },
            reached: if rebuilds { before.reached } else { Sequence(0) },
            finished: false,
        };
        record.write(connection, &request.selection, is_new)?;
        self.lake().commit()?;
        Ok(Begun { after: record.sequence, rebuilds })
    }

    fn store_once(&self, request: &ReplayRequest, set: &ReplaySet) -> Result<ReplayOutcome, LakeError> {
        let connection = &self.lake().connection;
        connection.execute_batch("BEGIN").context("begin to store")?;
        let positions = Positions::read(connection)?;
        let mut record = Record::read(connection, &request.selection)?.ok_or(LakeError::ReplayMissing)?;
        record.rebuilds &= record.left(&positions);
        let stored_schema = LakeSchema::read(connection)?;
        let plan = Plan::new(set, &stored_schema, |message| {
            let contained = message.sequence <= positions.of(message.partition, request.incarnation).sequence;
            match (contained, record.rebuilds) {
                (true, _) => Standing::Fills,
                (false, true) => Standing::Follows,
                (false, false) => Standing::Left,
            }
        });
        if !plan.rejections.is_empty() {
            connection.execute_batch("ROLLBACK").context("end a transaction")?;
            return Ok(ReplayOutcome::Rejected(plan.rejections));
        }
        if let Err(error) = self.migrate(&plan.schema.migration(&stored_schema)) {
            if error.refusal().is_none() {
                return Err(error);
            }
            connection.execute_batch("ROLLBACK").context("end a transaction")?;
            let refused = self.refused(set, &stored_schema)?;
            return if refused.is_empty() { Err(error) } else { Ok(ReplayOutcome::Rejected(refused)) };
        }
        let report = self.write(&plan)?;
        record.sequence = record.sequence.max(set.reached);
        if record.rebuilds && set.reached > record.reached {
            move_positions(connection, Position { incarnation: request.incarnation, sequence: set.reached })?;
            record.reached = set.reached;
        }
        record.finished = set.is_last;
        record.write(connection, &request.selection, false)?;
        self.lake().commit()?;
        Ok(ReplayOutcome::Stored(report))
    }

    fn write(&self, plan: &Plan<'_>) -> Result<ReplayReport, LakeError> {
        let mut report = ReplayReport { left: plan.left, ..ReplayReport::default() };
        // What fills a gap goes first: it must not find what follows in the same transaction.
        for (batches, insert) in [(&plan.fills, insert_missing as InsertSql), (&plan.follows, insert_all)] {
            for (measurement, batches) in batches {
                let table = plan.schema.table(measurement).expect("admitting a batch makes its table");
                let written = self.insert(measurement, table, batches, insert)?;
                report.rows += written;
                report.present += batches.iter().map(|batch| batch.rows()).sum::<usize>() - written;
            }
        }
        Ok(report)
    }

    fn insert(
        &self,
        measurement: &Name,
        schema: &TableSchema,
        batches: &[&Batch],
        statement: InsertSql,
    ) -> Result<usize, LakeError> {
        let connection = &self.lake().connection;
        arrow::stage(connection, STAGING, measurement, schema, batches)?;
        let written = connection.execute(&statement(measurement, schema, batches), []).context("insert rows")?;
        let drop = format!("DROP TABLE temp.{}", ident(STAGING));
        connection.execute_batch(&drop).context("drop a staging table")?;
        Ok(written)
    }

    fn migrate(&self, statements: &[String]) -> Result<(), LakeError> {
        let mut statements = statements.iter();
        statements.try_for_each(|sql| self.lake().connection.execute_batch(sql).context("create a table or column"))
    }

    /// The messages whose tables or columns the lake refuses: what each one adds is tried alone, and taken back.
    fn refused(&self, set: &ReplaySet, stored_schema: &LakeSchema) -> Result<Vec<Rejection>, LakeError> {
        let connection = &self.lake().connection;
        let mut rejections = Vec::new();
        for (index, message) in set.messages.iter().enumerate() {
            let mut schema = stored_schema.clone();
            if schema.admit(&message.batch) != Ok(true) {
                continue;
            }
            connection.execute_batch("BEGIN").context("begin a trial")?;
            let tried = self.migrate(&schema.migration_of(&message.batch.measurement, stored_schema));
            connection.execute_batch("ROLLBACK").context("end a trial")?;
            if let Err(error) = tried {
                let detail = error.refusal().ok_or(error)?;
                rejections.push(Rejection { index, reason: AdmitError::Refused { detail } });
            }
        }
        Ok(rejections)
    }
}

const STAGING: &str = "replayed";

type InsertSql = fn(&Name, &TableSchema, &[&Batch]) -> String;

fn insert_all(measurement: &Name, _schema: &TableSchema, _batches: &[&Batch]) -> String {
    format!("INSERT INTO {} BY NAME SELECT * FROM temp.{}", table(measurement), ident(STAGING))
}

/// Leaves out what the table has. First the rows of the same hosts and times are picked from it, which takes no more memory than
/// the staged rows do, however far apart their times are.
fn insert_missing(measurement: &Name, schema: &TableSchema, batches: &[&Batch]) -> String {
    let (target, staging) = (table(measurement), format!("temp.{}", ident(STAGING)));
    let times = || batches.iter().flat_map(|batch| batch.times.iter().copied());
    let (from, to) = (times().min().unwrap_or_default(), times().max().unwrap_or_default());
    let equal = schema.columns().map(|(name, _)| format!(" AND s.{0} IS NOT DISTINCT FROM p.{0}", ident(name)));
    format!(
        "INSERT INTO {target} BY NAME
         SELECT s.* FROM (SELECT DISTINCT * FROM {staging}) s ANTI JOIN
             (SELECT t.* FROM {target} t SEMI JOIN {staging} k ON t.ts = k.ts AND t.host = k.host
              WHERE t.ts BETWEEN epoch_ms({from}::BIGINT)::TIMESTAMP_MS AND epoch_ms({to}::BIGINT)::TIMESTAMP_MS) p
         ON s.ts = p.ts AND s.host = p.host{}",
        equal.collect::<String>()
    )
}

enum Standing {
    /// Ingest has had it.
    Fills,
    /// It comes right after what the lake has.
    Follows,
    /// Ingest will have it.
    Left,
}

/// What a transaction is about to do.
struct Plan<'a> {
    schema: LakeSchema,
    fills: BTreeMap<Name, Vec<&'a Batch>>,
    follows: BTreeMap<Name, Vec<&'a Batch>>,
    left: usize,
    rejections: Vec<Rejection>,
}

impl<'a> Plan<'a> {
    fn new(set: &'a ReplaySet, stored_schema: &LakeSchema, standing: impl Fn(&PendingMessage) -> Standing) -> Self {
        let schema = stored_schema.clone();
        let (fills, follows) = (BTreeMap::new(), BTreeMap::new());
        let mut plan = Self { schema, fills, follows, left: 0, rejections: Vec::new() };
        for (index, message) in set.messages.iter().enumerate() {
            let batch = &message.batch;
            let batches = match standing(message) {
                Standing::Left => {
                    plan.left += 1;
                    continue;
                }
                Standing::Fills => &mut plan.fills,
                Standing::Follows => &mut plan.follows,
            };
            match check_times(batch, message.stored_ms).and_then(|()| plan.schema.admit(batch)) {
                Ok(_) => batches.entry(batch.measurement.clone()).or_default().push(batch),
                Err(reason) => plan.rejections.push(Rejection { index, reason }),
            }
        }
        plan
    }
}

/// A row of `plimsoll.replays`.
#[derive(Debug)]
struct Record {
    rebuilds: bool,
    incarnation: Incarnation,
    since_ms: i64,
    sequence: Sequence,
    reached: Sequence,
    finished: bool,
}

impl Default for Record {
    fn default() -> Self {
        let (sequence, reached) = (Sequence(0), Sequence(0));
        Self { rebuilds: false, incarnation: Incarnation(0), since_ms: i64::MAX, sequence, reached, finished: false }
    }
}

impl Record {
    fn read(connection: &Connection, selection: &str) -> Result<Option<Self>, LakeError> {
        let sql = format!(
            "SELECT rebuilds, incarnation, since_ms, sequence, reached, finished FROM {LAKE}.plimsoll.replays WHERE selection = ?"
        );
        let mut statement = connection.prepare(&sql).context("read the replays")?;
        let mut rows = statement
            .query_map([selection], |row| {
                Ok(Self {
                    rebuilds: row.get(0)?,
                    incarnation: Incarnation(row.get(1)?),
                    since_ms: row.get(2)?,
                    sequence: Sequence(row.get(3)?),
                    reached: Sequence(row.get(4)?),
                    finished: row.get(5)?,
                })
            })
            .context("read the replays")?;
        rows.next().transpose().context("read the replays")
    }

    /// Writes the row of a selection, and counts the transaction.
    fn write(&self, connection: &Connection, selection: &str, is_new: bool) -> Result<(), LakeError> {
        let sql = if is_new {
            format!(
                "INSERT INTO {LAKE}.plimsoll.replays (rebuilds, incarnation, since_ms, sequence, reached, finished, selection)
                 VALUES (?, ?, ?, ?, ?, ?, ?)"
            )
        } else {
            format!(
                "UPDATE {LAKE}.plimsoll.replays SET rebuilds = ?, incarnation = ?, since_ms = ?, sequence = ?, reached = ?,
                 finished = ? WHERE selection = ?"
            )
        };
        let (incarnation, sequence, reached) = (self.incarnation.0, self.sequence.0, self.reached.0);
        let values = params![self.rebuilds, incarnation, self.since_ms, sequence, reached, self.finished, selection];
        connection.execute(&sql, values).context("note the progress of a replay")?;
        let count = format!("UPDATE {LAKE}.plimsoll.replays SET sequence = sequence + 1 WHERE selection = ''");
        connection.execute(&count, []).map(|_| ()).context("note the progress of a replay")
    }

    /// Whether the positions stand where this replay has left them.
    fn left(&self, positions: &Positions) -> bool {
        if self.reached == Sequence(0) {
            return is_pristine(positions);
        }
        let left = Position { incarnation: self.incarnation, sequence: self.reached };
        PartitionId::all().all(|partition| positions.stored(partition) == Some(left))
    }
}

/// Whether no life of any stream has ever moved the positions.
fn is_pristine(positions: &Positions) -> bool {
    PartitionId::all().all(|partition| positions.stored(partition).is_none_or(|stored| stored.incarnation.0 == 0))
}

fn create_table(connection: &Connection) -> Result<(), LakeError> {
    if has_table(connection, "plimsoll", "replays")? {
        return Ok(());
    }
    connection
        .execute_batch(&format!(
            "CREATE TABLE {LAKE}.plimsoll.replays (selection VARCHAR, rebuilds BOOLEAN, incarnation BIGINT, since_ms BIGINT,
                 sequence UBIGINT, reached UBIGINT, finished BOOLEAN);
             COMMENT ON TABLE {LAKE}.plimsoll.replays IS 'How far replays have come; the row without a selection counts their transactions';
             INSERT INTO {LAKE}.plimsoll.replays VALUES ('', false, 0, 0, 0, 0, true)"
        ))
        .context("create the table of replays")
}

fn move_positions(connection: &Connection, to: Position) -> Result<(), LakeError> {
    let sql = format!("UPDATE {LAKE}.plimsoll.positions SET incarnation = ?, sequence = ?");
    connection.execute(&sql, params![to.incarnation.0, to.sequence.0]).map(|_| ()).context("move the positions")
}
