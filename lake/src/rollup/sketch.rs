//! The sketch and the summaries as SQL.
//!
//! Raw rows become summaries by [`Grouping::of_raw`], summaries become coarser ones by [`Grouping::of_summaries`], and
//! [`quantiles_sql`] reads quantiles from summaries. Rows that no rollup contains yet are summarized like those that it was made
//! from, and both together are what [`quantiles_sql`] reads:
//!
//! ```
//! # use plimsoll_lake::rollup::{Tier, sketch::{Grouping, quantiles_sql}};
//! # use plimsoll_nats::{Name, batch::FieldType};
//! let field = Name::parse("usage_percent").unwrap();
//! let rest = Grouping { bucket_ms: 60_000, tags: vec![], fields: vec![(field, FieldType::Float)] };
//! let rest = rest.of_raw(&Tier::Raw.table("cpu"), "host = 'web-1' AND snapshot_id > 4711");
//! let rolled = format!("SELECT * FROM {} WHERE host = 'web-1'", Tier::Minute.table("cpu"));
//! let hourly = format!("(SELECT date_trunc('hour', ts) AS hour, usage_percent FROM ({rolled} UNION ALL BY NAME {rest}))");
//! let sql = quantiles_sql(&hourly, &["hour"], "usage_percent", &[0.5, 0.95]);
//! // Its columns: hour, count, sum, min, max, quantiles (a list in the order asked for).
//! ```
//!
//! A quantile q of n values lies at rank q (n - 1), from 0, in their order; between two ranks it is interpolated linearly, as DuckDB's
//! `quantile_cont` does with raw rows. So it means the same whatever answers: here it is within 1 % of that (between two values of
//! different signs, within 1 % of the larger one), and never outside the smallest and the largest value. Where a double has no
//! 1 % left, below 1e-319, it is as near as doubles are. [`super::Sketch`] gives the same of counts that are added up in memory, which is
//! what queries use.

use plimsoll_nats::{Name, batch::FieldType};

use super::{SKETCH_GAMMA, SKETCH_OFFSET};
use crate::{schema::TableSchema, sql::ident};

/// The sketch's key of a number, as SQL; null for null. The number must be finite.
#[must_use]
pub fn key_sql(number: &str) -> String {
    let k = |number: &str| format!("(ceil(ln({number}) / ln({SKETCH_GAMMA}))::INTEGER + {SKETCH_OFFSET})");
    format!(
        "CASE WHEN {number} > 0 THEN {} WHEN {number} < 0 THEN -{} WHEN {number} = 0 THEN 0 END",
        k(number),
        k(&format!("-({number})"))
    )
}

/// The number that a sketch's key stands for, as SQL.
#[must_use]
pub fn number_sql(key: &str) -> String {
    // From the lower end of the interval: the upper one of the largest doubles' is beyond them.
    format!(
        "sign({key}) * CASE {key} WHEN 0 THEN 0 \
         ELSE {SKETCH_GAMMA} ** (abs({key}) - {SKETCH_OFFSET} - 1) * (2 * {SKETCH_GAMMA} / ({SKETCH_GAMMA} + 1)) END"
    )
}

/// A field's part of its summary, as SQL: `count`, `sum`, `min`, `max` or `sketch`.
#[must_use]
pub fn part_sql(field: &str, part: &str) -> String {
    format!("struct_extract({}, '{part}')", ident(field))
}

/// Whether fields of a type are rolled up.
#[must_use]
pub fn is_summarized(field_type: FieldType) -> bool {
    field_type != FieldType::Text
}

/// What one row of summaries stands for: a host's series and a bucket of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grouping {
    /// Length of the buckets, which begin at multiples of it since 1970, in ms.
    pub bucket_ms: i64,
    /// The tags.
    pub tags: Vec<Name>,
    /// The fields with the types that they have in raw rows; none is text.
    pub fields: Vec<(Name, FieldType)>,
}

impl Grouping {
    /// All tags and all fields that are rolled up.
    #[must_use]
    pub fn of_table(table: &TableSchema, bucket_ms: i64) -> Self {
        let fields = table.fields().filter(|(_, field_type)| is_summarized(*field_type));
        let fields = fields.map(|(name, field_type)| (name.clone(), field_type)).collect();
        Self { bucket_ms, tags: table.tags().cloned().collect(), fields }
    }

    /// A query that summarizes the rows of a measurement's table, or of a relation of its columns, which meet a condition.
    ///
    /// Its columns are `ts`, `host`, the tags and the fields; a field without a finite number in a bucket is null there.
    #[must_use]
    pub fn of_raw(&self, relation: &str, condition: &str) -> String {
        let keys = self.keys();
        let numbers: String =
            self.fields.iter().map(|(name, kind)| format!(", {}", number_column(name, *kind))).collect();
        let summaries: String = self.fields.iter().map(|(name, _)| format!(", {}", summary(name))).collect();
        let bucket = self.bucket();
        format!(
            "SELECT {keys}{summaries} FROM (SELECT {bucket} AS ts, {}{numbers} FROM {relation} WHERE {condition}) GROUP BY ALL",
            self.series()
        )
    }

    /// A query that adds up the rows of a rollup's table, or of a relation of its columns, which meet a condition.
    ///
    /// Its columns are those of [`Grouping::of_raw`]. Sketches are taken apart and added up by key: DuckDB has no sum of maps.
    #[must_use]
    pub fn of_summaries(&self, relation: &str, condition: &str) -> String {
        if self.fields.is_empty() {
            return self.of_raw(relation, condition);
        }
        let (keys, series, bucket) = (self.keys(), self.series(), self.bucket());
        let fields: Vec<String> = self.fields.iter().map(|(name, _)| ident(name)).collect();
        let columns = fields.join(", ");
        let fields = || fields.iter().enumerate();
        let entries: Vec<String> = fields().map(|(i, field)| self.entries(i, field)).collect();
        let entries = entries.join(" UNION ALL ");
        let sums: String = fields().map(|(i, field)| format!(", {} AS _whole{i}", sums(field))).collect();
        let pivots: String =
            fields().map(|(i, _)| format!(", any_value(_sketch) FILTER (_field = {i}) AS _sketch{i}")).collect();
        let summaries: String = fields().map(|(i, field)| format!(", {} AS {field}", joined_summary(i))).collect();
        let chosen: Vec<String> = self.key_names().map(|key| format!("_whole.{key}")).collect();
        let chosen = chosen.join(", ");
        let same: Vec<String> =
            self.key_names().map(|key| format!("_whole.{key} IS NOT DISTINCT FROM _pivot.{key}")).collect();
        let same = same.join(" AND ");
        format!(
            "WITH _part AS (SELECT {bucket} AS ts, {series}, {columns} FROM {relation} WHERE {condition}), \
             _entry AS (SELECT _field, {keys}, _k, sum(_n)::UBIGINT AS _n FROM ({entries}) GROUP BY ALL), \
             _merged AS (SELECT _field, {keys}, map(list(_k), list(_n)) AS _sketch FROM _entry GROUP BY ALL), \
             _pivot AS (SELECT {keys}{pivots} FROM _merged GROUP BY ALL), \
             _whole AS (SELECT {keys}{sums} FROM _part GROUP BY ALL) \
             SELECT {chosen}{summaries} FROM _whole LEFT JOIN _pivot ON {same}"
        )
    }

    /// A query of the entries of a field's sketches.
    fn entries(&self, index: usize, field: &str) -> String {
        let keys = self.keys();
        format!(
            "SELECT {index} AS _field, {keys}, unnest(map_keys({field}.sketch)) AS _k, \
             unnest(map_values({field}.sketch)) AS _n FROM _part"
        )
    }

    fn bucket(&self) -> String {
        let bucket = self.bucket_ms;
        // Rounds down before 1970 too, where `//` would round up.
        format!("make_timestamp_ms(epoch_ms(ts) - ((epoch_ms(ts) % {bucket}) + {bucket}) % {bucket})::TIMESTAMP_MS")
    }

    fn key_names(&self) -> impl Iterator<Item = String> {
        ["ts".to_owned(), "host".to_owned()].into_iter().chain(self.tags.iter().map(|tag| ident(tag)))
    }

    fn keys(&self) -> String {
        self.key_names().collect::<Vec<_>>().join(", ")
    }

    /// The keys without the time.
    fn series(&self) -> String {
        self.key_names().skip(1).collect::<Vec<_>>().join(", ")
    }
}

/// A field as a double, null where it is no finite number.
fn number_column(name: &Name, kind: FieldType) -> String {
    let field = ident(name);
    match kind {
        // A lake may hold what others wrote into it.
        FieldType::Float => format!("CASE WHEN isfinite({field}) THEN {field} END AS {field}"),
        FieldType::Bool => format!("{field}::INTEGER::DOUBLE AS {field}"),
        FieldType::Integer | FieldType::Text => format!("{field}::DOUBLE AS {field}"),
    }
}

/// The summary of a group's numbers. The aggregate `histogram` would count into the same map, at thrice the time and memory.
fn summary(name: &Name) -> String {
    let field = ident(name);
    let key = key_sql(&field);
    format!(
        "CASE WHEN count({field}) > 0 THEN {{'count': count({field})::UBIGINT, 'sum': sum({field}), 'min': min({field}), \
         'max': max({field}), 'sketch': list_aggregate(list({key}) FILTER ({field} IS NOT NULL), 'histogram')}} END AS {field}"
    )
}

/// The sums and extremes of a group's summaries, as a struct.
fn sums(field: &str) -> String {
    format!(
        "{{'count': sum({field}.\"count\")::UBIGINT, 'sum': sum({field}.\"sum\"), 'min': min({field}.\"min\"), \
         'max': max({field}.\"max\")}}"
    )
}

/// The summary of the field of that index, from its sums and its sketch; null where it has no value.
fn joined_summary(index: usize) -> String {
    let parts = ["count", "sum", "min", "max"].map(|part| format!("'{part}': _whole{index}.\"{part}\"")).join(", ");
    format!("CASE WHEN _whole{index}.\"count\" > 0 THEN {{{parts}, 'sketch': _sketch{index}}} END")
}

/// A query that adds up a column of summaries, `summary`, and reads quantiles from 0 to 1 of it.
///
/// One row for each value of the columns `groups` (all by their quoted names; none means one row), whose further columns are `count
/// UBIGINT`, `sum`, `min` and `max` of type `DOUBLE`, and `quantiles DOUBLE[]` in the order asked for. Groups without a value are
/// left out. `relation` is a table, or a query in parentheses.
#[must_use]
pub fn quantiles_sql(relation: &str, groups: &[&str], summary: &str, quantiles: &[f64]) -> String {
    // No name of a tag begins with `_`.
    let listed: String = groups.iter().map(|group| format!("{group}, ")).collect();
    let partition = if groups.is_empty() { String::new() } else { format!("PARTITION BY {}", groups.join(", ")) };
    let ranks: Vec<String> = quantiles
        .iter()
        .map(|q| {
            let at = |rank: &str| format!("min(_k) FILTER (_upto > {rank}({q:?}::DOUBLE * (_all - 1)))");
            format!(
                "{{'below': {}, 'above': {}, 'part': any_value({q:?}::DOUBLE * (_all - 1) - floor({q:?}::DOUBLE * (_all - 1)))}}",
                at("floor"),
                at("ceil")
            )
        })
        .collect();
    let ranks = ranks.join(", ");
    let same: Vec<String> =
        groups.iter().map(|group| format!("_whole.{group} IS NOT DISTINCT FROM _ranked.{group}")).collect();
    let same = if same.is_empty() { "true".to_owned() } else { same.join(" AND ") };
    let chosen: String = groups.iter().map(|group| format!("_whole.{group}, ")).collect();
    let (below, above) = (number_sql("k.below"), number_sql("k.above"));
    format!(
        "WITH _part AS (SELECT {listed}{summary} AS _s FROM {relation} WHERE {summary} IS NOT NULL), \
         _whole AS (SELECT {listed}sum(_s.\"count\")::UBIGINT AS _n, sum(_s.\"sum\") AS _sum, min(_s.\"min\") AS _min, \
         max(_s.\"max\") AS _max FROM _part GROUP BY ALL HAVING _n > 0), \
         _entry AS (SELECT {listed}_k, sum(_n)::UBIGINT AS _n FROM (SELECT {listed}unnest(map_keys(_s.sketch)) AS _k, \
         unnest(map_values(_s.sketch)) AS _n FROM _part) GROUP BY ALL), \
         _upto AS (SELECT {listed}_k, sum(_n) OVER ({partition} ORDER BY _k) AS _upto, sum(_n) OVER ({partition}) AS _all \
         FROM _entry), \
         _ranked AS (SELECT {listed}[{ranks}] AS _keys FROM _upto GROUP BY ALL) \
         SELECT {chosen}_n AS \"count\", _sum AS \"sum\", _min AS \"min\", _max AS \"max\", \
         list_transform(_keys, lambda k: greatest(_min, least(_max, {below} * (1 - k.part) + {above} * k.part))) AS quantiles \
         FROM _whole JOIN _ranked ON {same}"
    )
}
