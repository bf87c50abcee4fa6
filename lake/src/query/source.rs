//! Lake and tail as one table.

use std::{cell::Cell, sync::Arc};

use duckdb::Connection;
use plimsoll_nats::{Name, batch::FieldType};

use super::{
    Attachment, QueryError, Selection,
    facts::{Facts, FactsCache, SeenFacts, snapshot_of_lake},
    files::{Piece, Tables, Wanted},
    tiers::{Extent, TierPart},
};
use crate::{
    Tail, Tier, arrow,
    error::Context,
    rollup::{SUMMARY_TYPE, key_sql, part_sql},
    schema::{TableSchema, sql_type},
    sql::{ident, literal},
    tail::{self, Run},
};

/// The name of the tail's rows in a query's transaction.
const STAGING: &str = "tail";

/// What a query's transaction sees of the lake.
pub(super) struct Snapshot<'c> {
    pub(super) connection: &'c Connection,
    pub(super) attachment: Attachment,
    pub(super) facts: Arc<Facts>,
    cache: &'c FactsCache,
    /// What the transaction sees; none where no lake is attached.
    seen: Option<SeenFacts>,
    /// Whether DuckLake is known to see the same snapshot.
    agreed: Cell<bool>,
}

impl<'c> Snapshot<'c> {
    /// Reads positions and tables in the connection's transaction, or takes what is known of its snapshot.
    pub(super) fn take(
        connection: &'c Connection,
        attachment: Attachment,
        cache: &'c FactsCache,
    ) -> Result<Self, QueryError> {
        let seen = match attachment {
            Attachment::Attached => Some(cache.of(connection)?),
            Attachment::NotCreated | Attachment::Unreachable => None,
        };
        let facts = seen.as_ref().map(|seen| Arc::clone(&seen.facts)).unwrap_or_default();
        Ok(Self { connection, attachment, facts, cache, seen, agreed: Cell::new(false) })
    }

    /// Makes sure that DuckLake reads the snapshot that the facts are of, before it is asked for rows.
    ///
    /// Fails with what passes where somebody has committed meanwhile.
    pub(super) fn agree(&self) -> Result<(), QueryError> {
        if self.seen.is_some() && !self.agreed.get() {
            if snapshot_of_lake(self.connection)? != self.facts.snapshot() {
                return Err(QueryError::Stale);
            }
            self.agreed.set(true);
        }
        Ok(())
    }

    /// The tables of a measurement that can be read by their files. The others are read by DuckLake.
    fn files(&self, measurement: &Name) -> Result<Arc<Tables>, QueryError> {
        let Some(seen) = &self.seen else { return Ok(Arc::default()) };
        let files = self.cache.files(self.connection, seen, measurement)?;
        let exists = |tier: &Tier| match tier {
            Tier::Raw => self.facts.schema.table(measurement).is_some(),
            tier => self.facts.contained(measurement, *tier).is_some(),
        };
        if Tier::ALL.iter().any(|tier| exists(tier) && !files.contains_key(tier)) {
            self.agree()?;
        }
        Ok(files)
    }

    /// Whether the lake is there, or certain not to be.
    pub(super) fn lake_reached(&self) -> bool {
        self.attachment != Attachment::Unreachable
    }

    /// The rows of a selection's hosts and measurement, the tail's included, with the wanted fields or all.
    ///
    /// Fails on an unknown measurement, tag or field, and when the tail has moved past this snapshot.
    pub(super) fn source(
        &self,
        tail: &Tail,
        selection: &Selection,
        wanted: Option<&[Name]>,
    ) -> Result<Source<'_>, QueryError> {
        let measurement = &selection.measurement;
        let stored = self.facts.schema.table(measurement);
        let mut schema = self.facts.schema.of(measurement);
        let single = selection.hosts.single();
        let mut added = tail.select(&self.facts.positions, single, Some(measurement))?;
        let mut admitted = added.admitted(&mut schema);
        if single.is_some() && (stored.is_none() || schema.table(measurement) != stored) {
            // What another host has sent earlier may have fixed the new columns' types.
            added = tail.select(&self.facts.positions, None, Some(measurement))?;
            schema = self.facts.schema.of(measurement);
            admitted = added.admitted(&mut schema);
        }
        admitted.retain(|run| selection.hosts.contain(run.host()));
        let Some(table) = schema.table(measurement) else {
            return Err(QueryError::UnknownMeasurement { measurement: measurement.clone() });
        };
        if let Some(tag) = selection.tags.keys().find(|tag| !table.tags().any(|known| known == *tag)) {
            let (measurement, tag) = (measurement.clone(), tag.clone());
            return Err(QueryError::UnknownTag { measurement, tag, known: table.tags().cloned().collect() });
        }
        let fields = fields(measurement, table, wanted)?;
        let names: Vec<Name> = fields.iter().map(|(name, _)| name.clone()).collect();
        let rows_of_tail = admitted.iter().map(Run::rows).sum();
        if rows_of_tail > 0 {
            let table = table.with_fields(&names);
            let rows = || tail::record_batch(&table, &admitted);
            arrow::stage_rows(self.connection, STAGING, measurement, &table, rows)?;
        }
        Ok(Source {
            connection: self.connection,
            selection: selection.clone(),
            tags: table.tags().cloned().collect(),
            fields,
            stored: stored.cloned(),
            rows_of_tail,
            complete: added.complete && self.lake_reached(),
            facts: Arc::clone(&self.facts),
            files: self.files(measurement)?,
        })
    }
}

/// The fields asked for with their types, in order; all where `wanted` is none. Fails on one that does not exist.
fn fields(
    measurement: &Name,
    table: &TableSchema,
    wanted: Option<&[Name]>,
) -> Result<Vec<(Name, FieldType)>, QueryError> {
    let all = || table.fields().map(|(name, field_type)| (name.clone(), field_type));
    let Some(wanted) = wanted else { return Ok(all().collect()) };
    let find = |field: &Name| {
        all().find(|(name, _)| name == field).ok_or_else(|| QueryError::UnknownField {
            measurement: measurement.clone(),
            field: field.clone(),
            known: all().map(|(name, _)| name).collect(),
        })
    };
    wanted.iter().map(find).collect()
}

/// The rows of a selection, in a transaction.
pub(super) struct Source<'c> {
    pub(super) connection: &'c Connection,
    pub(super) selection: Selection,
    /// The tags of the measurement, in order.
    pub(super) tags: Vec<Name>,
    /// The fields that the query asks for, with their types.
    pub(super) fields: Vec<(Name, FieldType)>,
    pub(super) complete: bool,
    /// The table in the lake.
    stored: Option<TableSchema>,
    /// How many rows the tail has of the selection's hosts, of whatever time.
    rows_of_tail: usize,
    facts: Arc<Facts>,
    files: Arc<Tables>,
}

impl Source<'_> {
    /// What the tiers hold.
    pub(super) fn extent(&self) -> Extent {
        self.facts.extent(&self.selection.measurement)
    }

    /// The quoted names of what tells series apart.
    pub(super) fn series_keys(&self) -> Vec<String> {
        std::iter::once("host".to_owned()).chain(self.tags.iter().map(|tag| ident(tag))).collect()
    }

    /// The same, joined by commas.
    pub(super) fn series_list(&self) -> String {
        self.series_keys().join(", ")
    }

    /// A subquery of the selection's rows in `[from, to)` as they were sampled, with `ts`, `host`, tags and fields.
    pub(super) fn rows(&self, from_ms: i64, to_ms: Option<i64>) -> String {
        let columns = |_, (field, kind): &(Name, FieldType), known: bool| {
            let column = ident(field);
            if known { format!(", {column}") } else { format!(", NULL::{} AS {column}", sql_type(*kind)) }
        };
        let raw = TierPart { tier: Tier::Raw, from_ms, to_ms };
        self.union(&[raw], &columns, &|_, _, _| String::new())
    }

    /// A subquery of summaries of the numeric fields: `ts`, `host`, tags, and of field `i` the columns `_c{i}` (count), `_s{i}` (sum),
    /// `_n{i}` (smallest) and `_x{i}` (largest value). Rows add up; those that are not rolled up yet stand for themselves.
    pub(super) fn partials(&self, parts: &[TierPart]) -> String {
        let none = |i: usize| {
            format!(", NULL::BIGINT AS _c{i}, NULL::DOUBLE AS _s{i}, NULL::DOUBLE AS _n{i}, NULL::DOUBLE AS _x{i}")
        };
        let of_row = |i: usize, (field, kind): &(Name, FieldType), known: bool| match (number(field, *kind), known) {
            (None, _) => String::new(),
            (Some(v), true) => {
                format!(", ({v} IS NOT NULL)::BIGINT AS _c{i}, {v} AS _s{i}, {v} AS _n{i}, {v} AS _x{i}")
            }
            (Some(_), false) => none(i),
        };
        let of_summary = |i: usize, (field, kind): &(Name, FieldType), known: bool| match known {
            _ if *kind == FieldType::Text => String::new(),
            true => {
                let part = |part| part_sql(field, part);
                format!(
                    ", {}::BIGINT AS _c{i}, {} AS _s{i}, {} AS _n{i}, {} AS _x{i}",
                    part("count"),
                    part("sum"),
                    part("min"),
                    part("max")
                )
            }
            false => none(i),
        };
        self.union(parts, &of_row, &of_summary)
    }

    /// A subquery of the sketches of one numeric field: `ts`, `host`, tags, keys `_k` and their counts `_n`, lists of the same length.
    pub(super) fn sketches(&self, parts: &[TierPart], index: usize) -> String {
        let none = ", NULL::INTEGER[] AS _k, NULL::BIGINT[] AS _n";
        let of_row = |i: usize, (field, kind): &(Name, FieldType), known: bool| match number(field, *kind) {
            Some(v) if i == index && known => format!(", [{}] AS _k, [1::BIGINT] AS _n", key_sql(&v)),
            _ if i == index => none.to_owned(),
            _ => String::new(),
        };
        let of_summary = |i: usize, (field, _): &(Name, FieldType), known: bool| {
            let sketch = part_sql(field, "sketch");
            match (i == index, known) {
                (true, true) => format!(", map_keys({sketch}) AS _k, map_values({sketch})::BIGINT[] AS _n"),
                (true, false) => none.to_owned(),
                (false, _) => String::new(),
            }
        };
        self.union(parts, &of_row, &of_summary)
    }

    /// About how many rows the lake has of these parts, of all hosts, where the catalog says it.
    pub(super) fn rows_within(&self, parts: &[TierPart]) -> i64 {
        let rows = |part: &TierPart| {
            let wanted = Wanted { from_ms: part.from_ms, to_ms: part.to_ms, after: None };
            self.files.get(&part.tier).map_or(0, |files| files.rows(&wanted))
        };
        parts.iter().map(rows).sum()
    }

    /// At most so many rows are read for these parts, those of all hosts together; none where the catalog does not say it.
    pub(super) fn rows_at_most(&self, parts: &[TierPart]) -> Option<i64> {
        let rows = |(part, after): (TierPart, Option<i64>)| {
            let wanted = Wanted { from_ms: part.from_ms, to_ms: part.to_ms, after };
            self.files.get(&part.tier).map(|files| files.rows(&wanted))
        };
        let of_tables: Option<i64> = self.reads(parts).into_iter().map(rows).sum();
        of_tables.map(|rows| rows.saturating_add(i64::try_from(self.rows_of_tail).unwrap_or(i64::MAX)))
    }

    /// A subquery of all rows that tell of these parts, each sample once: the tiers', what they do not contain yet, and the tail's.
    fn union(&self, parts: &[TierPart], of_row: &Columns<'_>, of_summary: &Columns<'_>) -> String {
        let mut branches = Vec::new();
        for (part, after) in self.reads(parts) {
            self.read(&part, after, if part.tier == Tier::Raw { of_row } else { of_summary }, &mut branches);
        }
        let (from_ms, to_ms) = (parts.first().map_or(0, |part| part.from_ms), parts.last().and_then(|part| part.to_ms));
        if self.rows_of_tail > 0 {
            let from = format!("temp.{} WHERE {}", ident(STAGING), self.selection.condition(from_ms, to_ms));
            branches.push(self.branch(&|_| true, of_row, &from));
        }
        if branches.is_empty() {
            // A table of the right columns without a row: only other hosts have some.
            let nothing = "(SELECT NULL::TIMESTAMP_MS AS ts, NULL::VARCHAR AS host) WHERE false";
            branches.push(self.branch(&|_| false, of_row, nothing));
        }
        format!("({})", branches.join(" UNION ALL "))
    }

    /// What is read of the tiers' tables for these parts: of which time, and only rows of later snapshots than which.
    fn reads(&self, parts: &[TierPart]) -> Vec<(TierPart, Option<i64>)> {
        let contained = |tier| self.facts.contained(&self.selection.measurement, tier);
        let mut reads = Vec::new();
        for part in parts.iter().filter(|part| part.tier != Tier::Raw) {
            reads.push((*part, None));
            if let (Tier::Hour, Some(snapshot)) = (part.tier, contained(Tier::Hour)) {
                reads.push((TierPart { tier: Tier::Minute, ..*part }, Some(snapshot)));
            }
        }
        for stretch in stretches(parts) {
            let after = (stretch.tier != Tier::Raw).then(|| contained(Tier::Minute)).flatten();
            reads.push((TierPart { tier: Tier::Raw, ..stretch }, after));
        }
        // A table made before the measurement had a tag knows no series of it.
        let has_tags = |tier| self.selection.tags.keys().all(|tag| self.has(tier, tag));
        reads.retain(|(part, _)| (part.tier != Tier::Raw || self.stored.is_some()) && has_tags(part.tier));
        reads
    }

    /// Adds the rows of a part in the table of its tier, or only those of later snapshots than `after`.
    fn read(&self, part: &TierPart, after: Option<i64>, columns: &Columns<'_>, branches: &mut Vec<String>) {
        let known = |name: &Name| self.has(part.tier, name);
        let wanted = Wanted { from_ms: part.from_ms, to_ms: part.to_ms, after };
        for Piece { table, within_time, later } in self.tables(part.tier, &wanted) {
            let condition = match within_time {
                true => self.selection.condition_of_series(),
                false => self.selection.condition(part.from_ms, part.to_ms),
            };
            branches.push(self.branch(&known, columns, &format!("{table} WHERE {condition}{later}")));
        }
    }

    /// Whether the table of a tier has a column of that name.
    fn has(&self, tier: Tier, name: &Name) -> bool {
        match tier {
            Tier::Raw => self.stored.as_ref().is_some_and(|stored| stored.column(name).is_some()),
            tier => self.facts.has_column(&self.selection.measurement, tier, name),
        }
    }

    /// What stands in a `FROM` for a tier's table.
    fn tables(&self, tier: Tier, wanted: &Wanted) -> Vec<Piece> {
        let Some(files) = self.files.get(&tier) else {
            let later = wanted.after.map(|snapshot| format!(" AND snapshot_id > {snapshot}")).unwrap_or_default();
            return vec![Piece { table: tier.table(&self.selection.measurement), within_time: false, later }];
        };
        let kind = |name: &Name| match tier {
            Tier::Raw => self.stored.as_ref().and_then(|stored| stored.column(name)).map(|c| sql_type(c.column_type)),
            tier => self.has(tier, name).then_some(SUMMARY_TYPE),
        };
        let tags = self.tags.iter().filter(|tag| self.has(tier, tag)).map(|tag| (tag.to_string(), "VARCHAR"));
        let fields = self.fields.iter().filter_map(|(field, _)| Some((field.to_string(), kind(field)?)));
        let first = [("ts".to_owned(), "TIMESTAMP_MS"), ("host".to_owned(), "VARCHAR")];
        files.read(wanted, &first.into_iter().chain(tags).chain(fields).collect::<Vec<_>>())
    }

    fn branch(&self, known: &dyn Fn(&Name) -> bool, columns: &Columns<'_>, from: &str) -> String {
        let Selection { hosts, tags, .. } = &self.selection;
        // What is the same in each row is a constant, which need not be decoded and costs little to group by.
        let host = hosts.single().map_or_else(|| "host".to_owned(), |host| format!("{} AS host", literal(host)));
        let tag = |tag: &Name| match tags.get(tag) {
            Some(value) => format!("{} AS {}", literal(value), ident(tag)),
            None if known(tag) => ident(tag),
            None => format!("NULL::VARCHAR AS {}", ident(tag)),
        };
        let tags: String = self.tags.iter().map(|name| format!(", {}", tag(name))).collect();
        let fields = self.fields.iter().enumerate().map(|(index, field)| columns(index, field, known(&field.0)));
        format!("SELECT ts, {host}{tags}{} FROM {from}", fields.collect::<String>())
    }

    /// Whether lake or tail hold any row of the hosts, whatever its time; where that is asked of one host.
    pub(super) fn host_known(&self) -> Result<bool, QueryError> {
        if self.rows_of_tail > 0 || self.stored.is_none() {
            return Ok(self.rows_of_tail > 0);
        }
        let condition = self.selection.hosts.condition().unwrap_or_else(|| "true".to_owned());
        let measurement = &self.selection.measurement;
        // Coarse tiers know hosts whose rows are gone from the finer ones.
        for tier in [Tier::Raw, Tier::Minute, Tier::Hour] {
            if tier != Tier::Raw && self.facts.contained(measurement, tier).is_none() {
                continue;
            }
            for Piece { table, .. } in self.tables(tier, &Wanted { from_ms: i64::MIN, to_ms: None, after: None }) {
                let sql = format!("SELECT count(*) FROM (FROM {table} WHERE {condition} LIMIT 1)");
                let rows: i64 = self.connection.query_row(&sql, [], |row| row.get(0)).context("look for the host")?;
                if rows > 0 {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// What stands in a `SELECT` for a field: by its index, its name and type, and whether the table has it.
type Columns<'a> = dyn Fn(usize, &(Name, FieldType), bool) -> String + 'a;

/// A field's column as a DOUBLE; none for text.
fn number(field: &Name, kind: FieldType) -> Option<String> {
    match kind {
        FieldType::Float => Some(ident(field)),
        FieldType::Integer => Some(format!("{}::DOUBLE", ident(field))),
        FieldType::Bool => Some(format!("{}::INTEGER::DOUBLE", ident(field))),
        FieldType::Text => None,
    }
}

/// The parts with neighbours that are summaries of any length joined, since raw rows are added to all of them alike.
fn stretches(parts: &[TierPart]) -> Vec<TierPart> {
    let mut stretches: Vec<TierPart> = Vec::new();
    for part in parts {
        match stretches.last_mut() {
            Some(last) if (last.tier == Tier::Raw) == (part.tier == Tier::Raw) && last.to_ms == Some(part.from_ms) => {
                last.to_ms = part.to_ms;
            }
            _ => stretches.push(*part),
        }
    }
    stretches
}
