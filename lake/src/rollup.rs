//! The rollups: what raw rows amount to by the minute and by the hour.
//!
//! Layout: beside the table of measurement `m` stand `m_1m` and `m_1h` in the same schema, with the columns `ts TIMESTAMP_MS` (the
//! start of the minute or hour), `host`, the tags of `m`, and for each field that is a number or a bool (0 and 1) one column of the
//! field's name and of the type [`SUMMARY_TYPE`]. Text is not rolled up.
//!
//! Rows are partial: several rows may stand for one series and bucket, as when late samples came, and a reader adds them up. All
//! parts of a summary add up: counts, sums and the sketch's counts are summed, extremes compared.
//!
//! The table `plimsoll.rollups` says, for each measurement and tier, the snapshot of the lake up to which (inclusive) the rows of its
//! source (of `m` for `m_1m`, of `m_1m` for `m_1h`) are contained; it moves in the transaction that writes the rows. So rollup
//! and the source's rows `WHERE snapshot_id > <that>` together tell everything once. `snapshot_id` is DuckLake's virtual column
//! and survives merges of files and the expiry of snapshots.
//!
//! The table `plimsoll.removed` says before which time rows of a tier may be gone; see [`removed`].
//!
//! The sketch is a DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees",
//! VLDB 2019): a count for each of the intervals `(γ^(k-1), γ^k]` that values fall into, here with γ = 1.02. The value
//! `2 γ^k / (γ + 1)` is within (γ - 1) / (γ + 1), less than 1 %, of all values in it.

mod build;
mod catalog;
pub mod marks;
mod plan;
mod quantile;
pub(crate) mod removed;
pub mod retention;
pub mod sketch;
mod sweep;
mod tables;
mod transaction;

use plimsoll_nats::Name;

use crate::connection::table;

pub use self::{
    build::{RollupFailure, RollupLimits, RollupReport},
    quantile::Sketch,
    retention::{Retention, TierRetention},
    sketch::{key_sql, number_sql, part_sql},
    sweep::{RetentionReport, Swept},
};

/// Type of a rollup's column.
pub const SUMMARY_TYPE: &str =
    "STRUCT(\"count\" UBIGINT, \"sum\" DOUBLE, \"min\" DOUBLE, \"max\" DOUBLE, sketch MAP(INTEGER, UBIGINT))";
/// The sketch's γ.
pub const SKETCH_GAMMA: f64 = 1.02;
/// Added to k, so that the keys of positive values are positive: 0 stands for the value 0, and negative keys for negative values.
/// A double's k is between -37,600 and 35,850.
pub const SKETCH_OFFSET: i32 = 40_000;

/// How finely rows stand in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// As they were sampled.
    Raw,
    /// Summaries of minutes.
    Minute,
    /// Summaries of hours.
    Hour,
}

impl Tier {
    /// All tiers, the finest first.
    pub const ALL: [Self; 3] = [Self::Raw, Self::Minute, Self::Hour];
    /// The tiers that are rolled up, each from the one before it.
    pub const ROLLED: [Self; 2] = [Self::Minute, Self::Hour];

    /// What the tier is called in the table of marks.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Minute => "1m",
            Self::Hour => "1h",
        }
    }

    /// The tier that this one is rolled up from.
    #[must_use]
    pub fn source(self) -> Option<Self> {
        match self {
            Self::Raw => None,
            Self::Minute => Some(Self::Raw),
            Self::Hour => Some(Self::Minute),
        }
    }

    /// The tier that is rolled up from this one.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        Self::ROLLED.into_iter().find(|tier| tier.source() == Some(self))
    }

    /// The name of a measurement's table.
    #[must_use]
    pub fn table_name(self, measurement: &str) -> String {
        format!("{measurement}{}", self.suffix())
    }

    /// What stands after a measurement's name in that of its table.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Raw => "",
            Self::Minute => "_1m",
            Self::Hour => "_1h",
        }
    }

    /// The measurement whose rows a table holds, and how finely they stand in it.
    #[must_use]
    pub fn of_table(table: &str) -> (&str, Self) {
        let rolled = |tier: Self| Some((table.strip_suffix(tier.suffix())?, tier));
        Self::ROLLED.into_iter().find_map(rolled).unwrap_or((table, Self::Raw))
    }

    /// Length of a bucket in ms; none where rows stand as they were sampled.
    #[must_use]
    pub fn bucket_ms(self) -> Option<i64> {
        match self {
            Self::Raw => None,
            Self::Minute => Some(60_000),
            Self::Hour => Some(3_600_000),
        }
    }

    /// The qualified, quoted name of a measurement's table.
    #[must_use]
    pub fn table(self, measurement: &str) -> String {
        table(&self.table_name(measurement))
    }
}

/// Whether a measurement would be taken for the rollup of another one.
#[must_use]
pub fn is_reserved(measurement: &Name) -> bool {
    [Tier::Minute, Tier::Hour].iter().any(|tier| measurement.ends_with(tier.suffix()))
}
