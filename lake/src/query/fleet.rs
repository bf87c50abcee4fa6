//! One field over many hosts: aggregated by groups, ranked, or counted against a threshold.

use std::{collections::BTreeMap, num::NonZeroUsize, time::Duration};

use plimsoll_nats::{Name, batch::FieldType, now_ms};
use serde::Serialize;

use super::{
    Found, QueryError,
    cells::{self, Buckets, Combine, Keys},
    gaps::{self, Gap},
    points::MAX_VALUES,
    rate,
    series::text,
    sketch::{self, bucket_sql},
    source::Source,
    tiers::{self, TierChoice, TierPart, Wish},
};
use crate::{
    Tier,
    error::Context,
    sql::{ident, literal},
};

/// What becomes of the values of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aggregate {
    /// The mean of all values; of rates the mean of the series' rates.
    Avg,
    /// The smallest value.
    Min,
    /// The largest value.
    Max,
    /// The sum of the series' means, such as the throughput of all interfaces.
    Sum,
    /// How many values there are; of rates how many series have one.
    Count,
    /// The latest value.
    Last,
    /// The quantile, from 0 to 1.
    Quantile(f64),
}

/// What tells groups apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupKey {
    /// The host.
    Host,
    /// The value of a tag.
    Tag(Name),
}

impl GroupKey {
    /// The quoted name of its column.
    pub(super) fn column(&self) -> String {
        match self {
            Self::Host => "host".to_owned(),
            Self::Tag(tag) => ident(tag),
        }
    }
}

/// Which groups to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranking {
    /// How many.
    pub count: NonZeroUsize,
    /// Whether those with the lowest aggregates over the whole interval, and not those with the highest.
    pub lowest: bool,
}

/// What an aggregate is compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// More than this.
    Above(f64),
    /// Less than this.
    Below(f64),
}

impl Threshold {
    fn is_passed_by(self, value: f64) -> bool {
        match self {
            Self::Above(limit) => value > limit,
            Self::Below(limit) => value < limit,
        }
    }
}

/// A question about a field of many hosts.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetQuery {
    /// The field.
    pub field: Name,
    /// What becomes of the values of a group.
    pub aggregate: Aggregate,
    /// What tells groups apart; nothing makes one group of all.
    pub by: Vec<GroupKey>,
    /// Length of the buckets, which begin at multiples of it since 1970; none takes the whole interval as one.
    pub step: Option<Duration>,
    /// Only these groups; by their keys where there is none, and else by their aggregates over the whole interval.
    pub ranking: Option<Ranking>,
    /// Counts the groups whose aggregate is beyond this, in place of giving them.
    pub threshold: Option<Threshold>,
    /// Whether to aggregate how much the series of a counter rise a second.
    pub rate: bool,
    /// Which tier to read.
    pub tier: TierChoice,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum FleetRows {
    /// The groups, in the order of their keys or ranks.
    Groups(Vec<FleetGroup>),
    /// Start of a bucket in Unix ms, how many groups are beyond the threshold, and how many there are. Without a step the start is that of
    /// the interval.
    Counts(Vec<(i64, u64, u64)>),
}

/// A group and its aggregates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FleetGroup {
    /// The host, where groups are by host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The tags by which the groups are; one that the rows lack is left out.
    pub tags: BTreeMap<Name, String>,
    /// Start of each bucket in Unix ms, and its aggregate. Without a step there is one, with the interval's start.
    pub points: Vec<(i64, f64)>,
    /// Times of neighbouring points between which nothing was measured for longer than usual.
    pub gaps: Vec<Gap>,
}

/// The column of the start of a bucket.
const BUCKET: &str = "_b";

/// Reads what the query asks for.
pub(super) fn read(source: &Source<'_>, query: &FleetQuery) -> Result<Found<FleetRows>, QueryError> {
    if let Some((field, _)) = source.fields.iter().find(|(_, kind)| *kind == FieldType::Text) {
        return Err(QueryError::NotNumeric { field: field.clone() });
    }
    let mut question = Question::new(source, query)?;
    let rows = match query.threshold {
        Some(threshold) => FleetRows::Counts(question.counts(threshold)?),
        None => {
            let groups = match (query.ranking, question.step_ms) {
                (Some(ranking), None) => question.groups(&question.ranked(ranking)?)?,
                (Some(ranking), Some(_)) => question.ranked_groups(ranking)?,
                (None, _) => question.all_groups()?,
            };
            FleetRows::Groups(groups)
        }
    };
    Ok(Found { tiers: std::mem::take(&mut question.parts), step_ms: question.step_ms, rows })
}

/// A query together with what it is asked of.
struct Question<'s, 'c> {
    source: &'s Source<'c>,
    query: &'s FleetQuery,
    parts: Vec<TierPart>,
    /// The quoted names of the columns that tell groups apart.
    keys: Vec<String>,
    step_ms: Option<i64>,
}

impl<'s, 'c> Question<'s, 'c> {
    fn new(source: &'s Source<'c>, query: &'s FleetQuery) -> Result<Self, QueryError> {
        let selection = &source.selection;
        for key in &query.by {
            if let GroupKey::Tag(tag) = key
                && !source.tags.contains(tag)
            {
                let (measurement, tag) = (selection.measurement.clone(), tag.clone());
                return Err(QueryError::UnknownTag { measurement, tag, known: source.tags.clone() });
            }
        }
        let keys = query.by.iter().map(GroupKey::column).collect();
        let extent = source.extent();
        let step_ms = query.step.map(|step| i64::try_from(step.as_millis()).unwrap_or(i64::MAX).max(1));
        let (from_ms, to_ms) = (selection.from_ms, selection.to_ms);
        let reach_ms = to_ms.unwrap_or_else(now_ms);
        let wish = Wish { from_ms, reach_ms, step_ms, summaries_do: query.aggregate != Aggregate::Last };
        let tier = tiers::choose(query.tier, &wish, &selection.hosts, &extent);
        let parts = if query.aggregate == Aggregate::Last && !query.rate {
            // The latest value is in no summary.
            vec![TierPart { tier: Tier::Raw, from_ms, to_ms }]
        } else if query.rate {
            // Rates compare neighbours, which must be of the same length.
            vec![tiers::single(from_ms, to_ms, tier, &extent)]
        } else {
            tiers::plan(from_ms, to_ms, tier, &extent)
        };
        Ok(Self { source, query, parts, keys, step_ms })
    }

    /// SQL of the aggregates: the keys, the bucket's start and the column `_value`, which is never null.
    fn aggregates(&self, step_ms: Option<i64>) -> Result<String, QueryError> {
        let list: String = self.keys.iter().map(|key| format!("{key}, ")).collect();
        let (aggregated, with) = if self.query.rate {
            self.of_rates(&list, step_ms)
        } else {
            (self.of_values(&list, step_ms)?, String::new())
        };
        Ok(format!("{with}SELECT * FROM ({aggregated}) WHERE _value IS NOT NULL"))
    }

    fn of_values(&self, list: &str, step_ms: Option<i64>) -> Result<String, QueryError> {
        let (source, bucket) = (self.source, bucket_sql(step_ms));
        let summed = |value: &str| {
            let partials = source.partials(&self.parts);
            format!("SELECT {list}{bucket} AS {BUCKET}, {value} AS _value FROM {partials} GROUP BY {list}{BUCKET}")
        };
        Ok(match self.query.aggregate {
            Aggregate::Avg => summed("sum(_s0) / sum(_c0)"),
            Aggregate::Min => summed("min(_n0)"),
            Aggregate::Max => summed("max(_x0)"),
            Aggregate::Count => summed("nullif(sum(_c0), 0)::DOUBLE"),
            Aggregate::Sum => {
                let (series, partials) = (source.series_list(), source.partials(&self.parts));
                format!(
                    "SELECT {list}{BUCKET}, sum(_mean) AS _value FROM (
                       SELECT {series}, {bucket} AS {BUCKET}, sum(_s0) / sum(_c0) AS _mean FROM {partials} GROUP BY {series}, {BUCKET}
                     ) GROUP BY {list}{BUCKET}"
                )
            }
            Aggregate::Last => self.of_rows(list, &bucket, &|value| format!("arg_max({value}, ts)")),
            Aggregate::Quantile(quantile) if self.parts.iter().all(|part| part.tier == Tier::Raw) => {
                self.of_rows(list, &bucket, &|value| format!("quantile_cont({value}, {quantile:?})"))
            }
            Aggregate::Quantile(quantile) => {
                // One of the whole interval, and one of steps.
                let table = if step_ms.is_some() { "quantiles_of_steps" } else { "quantiles" };
                sketch::stage(source, &self.parts, &self.keys, (BUCKET, step_ms), quantile, table)?;
                format!("SELECT {list}{BUCKET}, _value FROM temp.{table}")
            }
        })
    }

    fn of_rows(&self, list: &str, bucket: &str, aggregate: &dyn Fn(&str) -> String) -> String {
        let (name, kind) = &self.source.fields[0];
        let value = match kind {
            FieldType::Bool => format!("{}::INTEGER::DOUBLE", ident(name)),
            _ => format!("{}::DOUBLE", ident(name)),
        };
        let (from_ms, to_ms) = (self.source.selection.from_ms, self.source.selection.to_ms);
        let rows = self.source.rows(from_ms, to_ms);
        format!(
            "SELECT {list}{bucket} AS {BUCKET}, {} AS _value FROM {rows} GROUP BY {list}{BUCKET}",
            aggregate(&value)
        )
    }

    /// SQL of aggregates of the series' rates, and of the tables that must stand before it.
    fn of_rates(&self, list: &str, step_ms: Option<i64>) -> (String, String) {
        let bucket = step_ms.map_or_else(|| "0::BIGINT".to_owned(), |step| format!("_t // {step} * {step}"));
        let series = self.source.series_list();
        let with = format!("WITH {} ", rate::steps_sql(self.source, &self.parts[0], 0));
        if self.query.aggregate == Aggregate::Last {
            let last = "arg_max(_rise * 1000 / _dt, _t) FILTER (WHERE _dt > 0)";
            let sql = format!("SELECT {list}{bucket} AS {BUCKET}, {last} AS _value FROM steps GROUP BY {list}{BUCKET}");
            return (sql, with);
        }
        let value = match self.query.aggregate {
            Aggregate::Avg => "avg(_rate)".to_owned(),
            Aggregate::Min => "min(_rate)".to_owned(),
            Aggregate::Max | Aggregate::Last => "max(_rate)".to_owned(),
            Aggregate::Sum => "sum(_rate)".to_owned(),
            Aggregate::Count => "nullif(count(_rate), 0)::DOUBLE".to_owned(),
            Aggregate::Quantile(quantile) => format!("quantile_cont(_rate, {quantile:?})"),
        };
        let sql = format!(
            "SELECT {list}{BUCKET}, {value} AS _value FROM (
               SELECT {series}, {bucket} AS {BUCKET}, sum(_rise) * 1000 / nullif(sum(_dt), 0) AS _rate FROM steps GROUP BY {series}, {BUCKET}
             ) GROUP BY {list}{BUCKET}"
        );
        (sql, with)
    }

    fn ordered(&self, condition: &str) -> Result<String, QueryError> {
        let list: String = self.keys.iter().map(|key| format!("{key}, ")).collect();
        Ok(format!("FROM ({}) {condition} ORDER BY {list}{BUCKET}", self.aggregates(self.step_ms)?))
    }

    fn ranked(&self, ranking: Ranking) -> Result<String, QueryError> {
        let order = if ranking.lowest { "ASC" } else { "DESC" };
        // The keys decide among equals, so that the same answer comes each time.
        let keys: String = self.keys.iter().map(|key| format!(", {key}")).collect();
        Ok(format!("FROM ({}) ORDER BY _value {order}{keys} LIMIT {}", self.aggregates(None)?, ranking.count))
    }

    /// The groups that rank highest over the whole interval, in the order of their ranks, with their buckets.
    fn ranked_groups(&self, ranking: Ranking) -> Result<Vec<FleetGroup>, QueryError> {
        let best = self.groups(&self.ranked(ranking)?)?;
        if best.is_empty() {
            return Ok(best);
        }
        let conditions: Vec<String> = best.iter().map(|group| self.is_group(group)).collect();
        let mut groups = self.groups(&self.ordered(&format!("WHERE {}", conditions.join(" OR ")))?)?;
        let rank = |group: &FleetGroup| best.iter().position(|b| b.host == group.host && b.tags == group.tags);
        groups.sort_by_key(rank);
        Ok(groups)
    }

    /// The condition that a row belongs to a group.
    fn is_group(&self, group: &FleetGroup) -> String {
        let value = |key: &GroupKey| match key {
            GroupKey::Host => group.host.as_ref(),
            GroupKey::Tag(tag) => group.tags.get(tag),
        };
        let keys = self.query.by.iter().map(|key| match value(key) {
            Some(value) => format!("{} = {}", key.column(), literal(value)),
            None => format!("{} IS NULL", key.column()),
        });
        let keys: Vec<String> = keys.collect();
        if keys.is_empty() { "true".to_owned() } else { format!("({})", keys.join(" AND ")) }
    }

    fn all_groups(&self) -> Result<Vec<FleetGroup>, QueryError> {
        let (mut found, mut values) = (Vec::new(), 0);
        let in_memory = self.each_group(&mut |keys, points| {
            values += points.len();
            found.push((keys, points));
            if values > MAX_VALUES { Err(QueryError::TooLarge { limit: MAX_VALUES }) } else { Ok(()) }
        })?;
        if !in_memory {
            return self.groups(&self.ordered("")?);
        }
        found.sort_by(|(a, _), (b, _)| cells::in_order(a, b));
        let group = |(keys, points): (Keys, _)| FleetGroup { points, ..self.group(keys.into_iter()) };
        Ok(self.with_gaps(found.into_iter().map(group).collect()))
    }

    /// Gives the aggregates of each group, where adding them up here is possible and sooner than in DuckDB; else returns false.
    fn each_group(
        &self,
        take: &mut dyn FnMut(Keys, cells::Points) -> Result<(), QueryError>,
    ) -> Result<bool, QueryError> {
        let (Some(step_ms), false) = (self.step_ms, self.query.rate) else { return Ok(false) };
        let combine = match self.query.aggregate {
            Aggregate::Avg => Combine::Mean,
            Aggregate::Min => Combine::Min,
            Aggregate::Max => Combine::Max,
            Aggregate::Count => Combine::Count,
            Aggregate::Sum => return cells::each_sum(self.source, &self.parts, &self.keys, step_ms, take),
            Aggregate::Last | Aggregate::Quantile(_) => return Ok(false),
        };
        cells::each(self.source, &self.parts, &self.keys, step_ms, combine, take)
    }

    /// Reads aggregates, those of a group in one go, in the order of the groups.
    fn groups(&self, sql: &str) -> Result<Vec<FleetGroup>, QueryError> {
        let connection = self.source.connection;
        let mut statement = connection.prepare(sql).context("prepare aggregates")?;
        let mut rows = statement.query([]).context("compute aggregates")?;
        let (mut groups, mut values) = (Vec::<FleetGroup>::new(), 0);
        while let Some(row) = rows.next().context("read aggregates")? {
            let at = self.keys.len();
            let keys = (0..at).map(|index| Ok(text(row, index)?.map(str::to_owned)));
            let group = self.group(keys.collect::<Result<Vec<_>, QueryError>>()?.into_iter());
            let time = row.get::<_, i64>(at).context("read a time")?;
            let point = (self.time(time), row.get::<_, f64>(at + 1).context("read an aggregate")?);
            match groups.last_mut() {
                Some(last) if last.host == group.host && last.tags == group.tags => last.points.push(point),
                _ => groups.push(FleetGroup { points: vec![point], ..group }),
            }
            values += 1;
            if values > MAX_VALUES {
                return Err(QueryError::TooLarge { limit: MAX_VALUES });
            }
        }
        Ok(self.with_gaps(groups))
    }

    fn with_gaps(&self, mut groups: Vec<FleetGroup>) -> Vec<FleetGroup> {
        let Some(step_ms) = self.step_ms else { return groups };
        for group in &mut groups {
            let times: Vec<i64> = group.points.iter().map(|(time, _)| *time).collect();
            group.gaps = gaps::between_steps(&times, step_ms);
        }
        groups
    }

    /// A group without points by the values of its keys.
    fn group(&self, values: impl Iterator<Item = Option<String>>) -> FleetGroup {
        let mut group = FleetGroup { host: None, tags: BTreeMap::new(), points: Vec::new(), gaps: Vec::new() };
        for (key, value) in self.query.by.iter().zip(values) {
            match (key, value) {
                (GroupKey::Host, host) => group.host = host,
                (GroupKey::Tag(tag), Some(value)) => drop(group.tags.insert(tag.clone(), value)),
                (GroupKey::Tag(_), None) => {}
            }
        }
        group
    }

    /// For each bucket how many groups are beyond the threshold, and how many there are.
    fn counts(&self, threshold: Threshold) -> Result<Vec<(i64, u64, u64)>, QueryError> {
        let mut counts = Buckets::<(u64, u64)>::default();
        let in_memory = self.each_group(&mut |_, points| {
            for (start_ms, value) in points {
                let (beyond, all) = counts.at(start_ms);
                *beyond += u64::from(threshold.is_passed_by(value));
                *all += 1;
            }
            if counts.len() > MAX_VALUES { Err(QueryError::TooLarge { limit: MAX_VALUES }) } else { Ok(()) }
        })?;
        if !in_memory {
            return self.counts_by_duckdb(threshold);
        }
        Ok(counts.into_sorted().into_iter().map(|(start_ms, (beyond, all))| (start_ms, beyond, all)).collect())
    }

    fn counts_by_duckdb(&self, threshold: Threshold) -> Result<Vec<(i64, u64, u64)>, QueryError> {
        let beyond = match threshold {
            Threshold::Above(limit) => format!("_value > {limit:?}"),
            Threshold::Below(limit) => format!("_value < {limit:?}"),
        };
        let aggregates = self.aggregates(self.step_ms)?;
        let sql = format!(
            "SELECT {BUCKET}, count(*) FILTER (WHERE {beyond}), count(*) FROM ({aggregates}) GROUP BY {BUCKET} ORDER BY {BUCKET}"
        );
        let mut statement = self.source.connection.prepare(&sql).context("prepare counts")?;
        let mut rows = statement.query([]).context("count groups")?;
        let mut counts = Vec::new();
        while let Some(row) = rows.next().context("read counts")? {
            let count = |index| row.get::<_, i64>(index).context("read a count");
            counts.push((self.time(count(0)?), count(1)?.unsigned_abs(), count(2)?.unsigned_abs()));
            if counts.len() > MAX_VALUES {
                return Err(QueryError::TooLarge { limit: MAX_VALUES });
            }
        }
        Ok(counts)
    }

    /// The time that a bucket's start stands for.
    fn time(&self, start_ms: i64) -> i64 {
        if self.step_ms.is_some() { start_ms } else { self.source.selection.from_ms }
    }
}
