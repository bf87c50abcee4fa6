//! Quantiles from sketches, which add up where quantiles do not.

use std::collections::HashMap;

use super::{
    QueryError,
    series::{Series, SeriesReader},
    source::Source,
    tiers::TierPart,
};
use crate::{error::Context, rollup::number_sql};

/// Quantiles by series and bucket start, in the order in which they were asked for.
pub(super) type Quantiles = HashMap<(Series, i64), Vec<f64>>;

/// SQL that gives, for each combination of `keys` in `counts`, the quantiles of the values that keys `_k` with counts `_n` stand for, as the
/// columns `_q0`, `_q1`, … after the keys.
///
/// A quantile q of n values is the one of rank `floor(q (n - 1))`, counted from 0, in the order of values.
pub(super) fn quantile_sql(keys: &[String], counts: &str, quantiles: &[f64]) -> String {
    let list: String = keys.iter().map(|key| format!("{key}, ")).collect();
    let partition =
        if keys.is_empty() { String::new() } else { format!("PARTITION BY {}", list.trim_end_matches(", ")) };
    let ranks = quantiles.iter().enumerate();
    let ranks: Vec<String> = ranks
        .map(|(index, q)| format!("min(_k) FILTER (WHERE _upto > floor({q:?}::DOUBLE * (_total - 1))) AS _k{index}"))
        .collect();
    let numbers: Vec<String> =
        (0..quantiles.len()).map(|index| format!("{} AS _q{index}", number_sql(&format!("_k{index}")))).collect();
    format!(
        "SELECT {list}{} FROM (
           SELECT {list}{} FROM (
             SELECT *, sum(_n) OVER ({partition} ORDER BY _k) AS _upto, sum(_n) OVER ({partition}) AS _total
             FROM (SELECT {list}_k, sum(_n)::BIGINT AS _n FROM ({counts}) WHERE _k IS NOT NULL GROUP BY ALL)
           ) GROUP BY ALL
         )",
        numbers.join(", "),
        ranks.join(", "),
    )
}

/// Reads the quantiles of a field by series and bucket; one bucket of start 0 where there is no step.
pub(super) fn read(
    source: &Source<'_>,
    parts: &[TierPart],
    index: usize,
    step_ms: Option<i64>,
    quantiles: &[f64],
) -> Result<Quantiles, QueryError> {
    let bucket = bucket_sql(step_ms);
    let list = source.series_list();
    let counts = format!("SELECT {list}, {bucket} AS _b, _k, _n FROM {}", source.sketch_counts(parts, index));
    let sql = quantile_sql(&[list, "_b".to_owned()], &counts, quantiles);
    let mut statement = source.connection.prepare(&sql).context("prepare quantiles")?;
    let mut rows = statement.query([]).context("compute quantiles")?;
    let mut found = Quantiles::new();
    let mut reader = SeriesReader::new(&source.tags);
    let first = reader.columns();
    while let Some(row) = rows.next().context("read quantiles")? {
        let bucket = row.get(first).context("read a time")?;
        let values = (0..quantiles.len()).map(|index| row.get(first + 1 + index).context("read a quantile"));
        let values = values.collect::<Result<_, _>>()?;
        found.insert((reader.read(row)?.0.clone(), bucket), values);
    }
    Ok(found)
}

/// The start of a row's bucket in Unix ms; 0 where the whole interval is one.
pub(super) fn bucket_sql(step_ms: Option<i64>) -> String {
    step_ms.map_or_else(|| "0::BIGINT".to_owned(), |step| format!("epoch_ms(ts) // {step} * {step}"))
}
