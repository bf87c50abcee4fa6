//! Summaries of a rollup as columns: count, sum, extremes and quantiles of each field.

use plimsoll_nats::Name;

use crate::{
    rollup::{part_sql, sketch::quantiles_sql},
    sql::ident,
};

/// A quantile from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantile(f64);

impl Quantile {
    /// Reads a number such as `0.95`; none where it is no number from 0 to 1.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        text.trim().parse().ok().filter(|quantile| (0.0..=1.0).contains(quantile)).map(Self)
    }

    /// What a column of it ends in: `p95` of 0.95, `p99_9` of 0.999.
    fn suffix(self) -> String {
        let percent = format!("{:.9}", self.0 * 100.0);
        format!("p{}", percent.trim_end_matches('0').trim_end_matches('.').replace('.', "_"))
    }
}

/// The rows of a rollup, added up by series and time.
pub(super) struct Summaries<'a> {
    /// The rollup's rows, as SQL.
    pub relation: String,
    /// What names a series, quoted.
    pub series: Vec<String>,
    /// The fields; none is text.
    pub fields: Vec<Name>,
    pub quantiles: &'a [Quantile],
}

impl Summaries<'_> {
    /// What is read of [`Summaries::rows`], as SQL that begins with a comma where there is a field.
    pub fn columns(&self) -> String {
        let columns = self.fields.iter().enumerate().flat_map(|(index, field)| {
            let parts = PARTS.map(|(part, _)| format!(", rows.{}", ident(&format!("{field}_{part}"))));
            let quantiles = self.quantiles.iter().zip(1..).map(move |(quantile, place)| {
                format!(", _q{index}.quantiles[{place}] AS {}", ident(&format!("{field}_{}", quantile.suffix())))
            });
            parts.into_iter().chain(quantiles)
        });
        columns.collect()
    }

    /// The rows, with the columns `ts` and the series' in a relation `rows`, as SQL.
    pub fn rows(&self) -> String {
        let sums = self.fields.iter().flat_map(|field| PARTS.map(|(part, merge)| sum(field, part, merge)));
        let series = self.series.join(", ");
        let quantiles = if self.quantiles.is_empty() { &[][..] } else { &self.fields };
        let joined = quantiles.iter().enumerate().map(|(index, field)| self.joined_quantiles(index, field));
        format!(
            "(SELECT ts, {series}{} FROM {} GROUP BY ts, {series}) AS rows{}",
            sums.collect::<String>(),
            self.relation,
            joined.collect::<String>()
        )
    }

    /// A join with the quantiles of a field, which a time without a value of it lacks.
    fn joined_quantiles(&self, index: usize, field: &Name) -> String {
        let keys: Vec<&str> = ["ts"].into_iter().chain(self.series.iter().map(String::as_str)).collect();
        let quantiles: Vec<f64> = self.quantiles.iter().map(|quantile| quantile.0).collect();
        let read = quantiles_sql(&self.relation, &keys, &ident(field), &quantiles);
        let same: Vec<String> =
            keys.iter().map(|key| format!("_q{index}.{key} IS NOT DISTINCT FROM rows.{key}")).collect();
        format!(" LEFT JOIN ({read}) AS _q{index} ON {}", same.join(" AND "))
    }
}

/// The parts of a summary that are columns as they are, and how those of several rows become one.
const PARTS: [(&str, &str); 4] = [("count", "sum"), ("sum", "sum"), ("min", "min"), ("max", "max")];

fn sum(field: &Name, part: &str, merge: &str) -> String {
    let cast = if part == "count" { "::UBIGINT" } else { "" };
    format!(", {merge}({}){cast} AS {}", part_sql(field, part), ident(&format!("{field}_{part}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_names_its_column() {
        let of = |text: &str| Quantile::parse(text).map(Quantile::suffix);
        for (text, suffix) in
            [("0", "p0"), ("0.5", "p50"), (" 0.07", "p7"), ("0.999", "p99_9"), ("1", "p100"), ("1e-3", "p0_1")]
        {
            assert_eq!(of(text).as_deref(), Some(suffix), "{text}");
        }
        for text in ["", "95", "-0.1", "1.0001", "NaN", "p95"] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
