//! Reads: the lake and the tail together, each sample once.
//!
//! Every query is one DuckDB transaction, and so sees one snapshot of the lake: it reads the positions and the tables, asks the tail for what these positions do not
//! contain, stages that in a temporary table, and queries both. The transaction is always rolled back. Before there is a lake to
//! read, queries are answered from the tail alone.

mod catalog;
mod cells;
mod error;
mod facts;
mod files;
mod fleet;
mod gaps;
mod lttb;
mod points;
mod pool;
mod rate;
mod raw;
mod selection;
mod series;
mod sketch;
mod source;
mod stats;
#[cfg(test)]
mod tests;
mod tiers;
mod value;
mod watchdog;

use std::{
    num::NonZeroUsize,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use plimsoll_nats::Name;

pub use self::{
    catalog::StoredMeasurement,
    error::QueryError,
    fleet::{Aggregate, FleetGroup, FleetQuery, FleetRows, GroupKey, Ranking, Threshold},
    gaps::Gap,
    points::{Bucket, PointSeries, Points, PointsQuery},
    rate::is_counter,
    selection::{HostPattern, Hosts, Selection},
    stats::{FieldStats, Summary},
    tiers::{TierChoice, TierPart, parse_tier},
    value::Value,
};
use self::{facts::FactsCache, pool::Pool, source::Source};
use crate::{Access, Lake, LakeConfig, LakeError, Positions, Tail};

/// Most times that a query is begun anew because lake and tail moved past its snapshot.
const ATTEMPTS: u32 = 20;
/// Longest time that reading the positions may take.
const POSITIONS_TIMEOUT: Duration = Duration::from_secs(30);

/// What a reader may use.
#[derive(Debug, Clone, Copy)]
pub struct ReaderLimits {
    /// Queries that run at the same time; the others wait.
    pub connections: NonZeroUsize,
    /// Longest time that a query may take, waiting included.
    pub timeout: Duration,
}

/// The queries of a reader at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueryLoad {
    /// Queries that run.
    pub running: usize,
    /// Queries that wait for a connection.
    pub waiting: usize,
}

/// What a query found.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer<T> {
    /// Whether nothing that was stored is missing, as far as lake and tail know.
    pub complete: bool,
    /// Whether lake or tail hold a row of the host in this measurement, whatever its time.
    pub host_known: bool,
    /// Which tier answered for which part of the time.
    pub tiers: Vec<TierPart>,
    /// Length of the buckets in ms; none where every point is given, or the whole interval is one.
    pub step_ms: Option<i64>,
    /// The rows.
    pub rows: T,
}

/// What reading a source gave.
struct Found<T> {
    tiers: Vec<TierPart>,
    step_ms: Option<i64>,
    rows: T,
}

/// Whether the lake can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// There is no lake yet: the stream holds all there is.
    NotCreated,
    /// There may be a lake, but it could not be attached so far.
    Unreachable,
    /// The lake is attached.
    Attached,
}

/// The one who reads. Shared by all requests.
#[derive(Debug)]
pub struct LakeReader {
    limits: ReaderLimits,
    config: LakeConfig,
    state: RwLock<State>,
}

#[derive(Debug, Clone)]
struct State {
    attachment: Attachment,
    /// Answers queries.
    queries: Arc<Pool>,
    /// Reads positions; of its own, so that slow queries never hold it up.
    positions: Arc<Pool>,
    /// What is known of the last snapshot.
    facts: Arc<FactsCache>,
}

impl LakeReader {
    /// A reader that has not attached the lake yet and answers from the tail alone; see [`LakeReader::attach`].
    ///
    /// Fails when DuckDB cannot be opened.
    pub fn new(config: &LakeConfig, limits: ReaderLimits) -> Result<Self, LakeError> {
        let state = State::of(Lake::detached(config)?, Attachment::NotCreated, config, limits)?;
        Ok(Self { limits, config: config.clone(), state: RwLock::new(state) })
    }

    /// Attaches the lake read-only; from then on queries read it too. Blocks, and does nothing once attached.
    ///
    /// Fails as long as no writer has created the lake, and when catalog or data can't be reached; it can be tried again.
    pub fn attach(&self) -> Result<(), LakeError> {
        if self.attachment() == Attachment::Attached {
            return Ok(());
        }
        let opened = Lake::open(&self.config, Access::Read)
            // A lake under construction has no positions yet.
            .and_then(|lake| Positions::read(lake.connection()).map(|_| lake))
            .and_then(|lake| State::of(lake, Attachment::Attached, &self.config, self.limits));
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        match opened {
            Ok(opened) => {
                *state = opened;
                Ok(())
            }
            Err(error) => {
                let missing = matches!(error, LakeError::NotCreated);
                state.attachment = if missing { Attachment::NotCreated } else { Attachment::Unreachable };
                Err(error)
            }
        }
    }

    /// Whether the lake is attached.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        self.state.read().unwrap_or_else(PoisonError::into_inner).attachment
    }

    /// How many queries run and wait now.
    #[must_use]
    pub fn load(&self) -> QueryLoad {
        self.state().queries.load()
    }

    /// The positions that the lake holds now; those of an empty lake before it is attached.
    ///
    /// Fails when the catalog can't be reached or does not answer in time.
    pub async fn positions(&self) -> Result<Positions, LakeError> {
        let state = self.state();
        let attached = state.attachment == Attachment::Attached;
        let facts = Arc::clone(&state.facts);
        let read = move |connection: &duckdb::Connection| {
            if attached { Ok(facts.of(connection)?.facts.positions.clone()) } else { Ok(Positions::none()) }
        };
        state.positions.run(POSITIONS_TIMEOUT, read).await
    }

    /// For every series of the selection and every field (`None`: all fields) how often it was measured, its extremes, mean,
    /// percentiles and last value, in the order of hosts, tags and fields. Percentiles are exact where raw rows answer.
    ///
    /// Fails on an unknown measurement, field or tag, when the lake can't be reached, when the answer would be too large, and when the query
    /// takes too long or too much memory. Dropping the future ends the query.
    pub async fn stats(
        &self,
        tail: &Arc<Tail>,
        selection: Selection,
        fields: Option<Vec<Name>>,
        tier: TierChoice,
    ) -> Result<Answer<Vec<FieldStats>>, QueryError> {
        self.answer(tail, selection, fields, move |source| {
            let found = stats::read(source, tier)?;
            let known = !found.rows.is_empty() || source.host_known()?;
            Ok((known, found))
        })
        .await
    }

    /// The points of every series of the selection, or their buckets, in the order of hosts, tags, fields and time.
    ///
    /// Fails as [`LakeReader::stats`] does.
    pub async fn points(
        &self,
        tail: &Arc<Tail>,
        selection: Selection,
        query: PointsQuery,
    ) -> Result<Answer<Vec<PointSeries>>, QueryError> {
        self.answer(tail, selection, query.fields.clone(), move |source| {
            let found = points::read(source, &query)?;
            let known = !found.rows.is_empty() || source.host_known()?;
            Ok((known, found))
        })
        .await
    }

    /// A field over the hosts of the selection, by groups of them.
    ///
    /// Fails as [`LakeReader::stats`] does, and where the field is text.
    pub async fn fleet(
        &self,
        tail: &Arc<Tail>,
        selection: Selection,
        query: FleetQuery,
    ) -> Result<Answer<FleetRows>, QueryError> {
        self.answer(tail, selection, Some(vec![query.field.clone()]), move |source| {
            Ok((true, fleet::read(source, &query)?))
        })
        .await
    }

    /// All measurements that lake or tail hold, by name, and whether that is complete.
    ///
    /// Fails when the lake can't be reached and when the query takes too long.
    pub async fn measurements(&self, tail: &Arc<Tail>) -> Result<(bool, Vec<StoredMeasurement>), QueryError> {
        let read = |snapshot: &source::Snapshot<'_>, tail: &Tail| catalog::read(snapshot, tail);
        self.transaction(tail, read).await
    }

    /// Reads the rows of a selection with the wanted fields; `read` also says whether the host is known.
    async fn answer<T: Send + 'static>(
        &self,
        tail: &Arc<Tail>,
        selection: Selection,
        fields: Option<Vec<Name>>,
        read: impl Fn(&Source<'_>) -> Result<(bool, Found<T>), QueryError> + Clone + Send + 'static,
    ) -> Result<Answer<T>, QueryError> {
        self.transaction(tail, move |snapshot, tail| {
            let source = snapshot.source(tail, &selection, fields.as_deref())?;
            let (host_known, Found { tiers, step_ms, rows }) = read(&source)?;
            Ok(Answer { complete: source.complete, host_known, tiers, step_ms, rows })
        })
        .await
    }

    /// Runs `read` in a transaction on a snapshot, anew while the tail has moved past the snapshot.
    async fn transaction<T: Send + 'static>(
        &self,
        tail: &Arc<Tail>,
        read: impl Fn(&source::Snapshot<'_>, &Tail) -> Result<T, QueryError> + Clone + Send + 'static,
    ) -> Result<T, QueryError> {
        let mut attempt = 1;
        loop {
            // Taken anew each time: the lake may have been attached meanwhile.
            let state = self.state();
            let (tail, read) = (Arc::clone(tail), read.clone());
            let work = move |connection: &duckdb::Connection| {
                let snapshot = source::Snapshot::take(connection, state.attachment, &state.facts)?;
                read(&snapshot, &tail)
            };
            match state.queries.run(self.limits.timeout, work).await {
                Err(error) if error.passes() && attempt < ATTEMPTS => attempt += 1,
                other => return other,
            }
        }
    }

    fn state(&self) -> State {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl State {
    fn of(lake: Lake, attachment: Attachment, config: &LakeConfig, limits: ReaderLimits) -> Result<Self, LakeError> {
        let positions = Pool::new(lake.try_clone()?, NonZeroUsize::MIN);
        let queries = Arc::new(Pool::new(lake, limits.connections));
        Ok(Self { attachment, queries, positions: Arc::new(positions), facts: Arc::new(FactsCache::new(config)) })
    }
}
