//! Which tier answers for which part of a query's time.

use serde::Serialize;

use super::Hosts;
use crate::Tier;

/// The tier of that name.
#[must_use]
pub fn parse_tier(name: &str) -> Option<Tier> {
    Tier::ALL.into_iter().find(|tier| tier.label() == name)
}

impl Serialize for Tier {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.label())
    }
}

/// From this length on, one host's series are read from summaries where these will do.
const LONG_MS: i64 = 24 * 3_600_000;
/// The same for several hosts.
const LONG_FLEET_MS: i64 = 3_600_000;

/// Who says which tier answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TierChoice {
    /// The one that answers exactly and soonest.
    #[default]
    Auto,
    /// The caller: this one where it has rows, and coarser ones where its rows are gone.
    Only(Tier),
}

/// A part of a query's time and the tier that answers for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TierPart {
    /// The tier. Rows that it does not contain yet are added from the finer ones.
    pub tier: Tier,
    /// Unix ms from which on, inclusive.
    pub from_ms: i64,
    /// Unix ms up to which, exclusive; none where the query has no end.
    pub to_ms: Option<i64>,
}

/// What a lake has of one measurement, by tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// The coarsest tier that exists.
    pub(super) coarsest: Tier,
    /// Unix ms from which on no raw row was removed; a start of an hour.
    pub(super) raw_from_ms: i64,
    /// The same of minutes.
    pub(super) minute_from_ms: i64,
}

impl Extent {
    /// Where nothing was ever rolled up.
    pub(super) const RAW: Self = Self { coarsest: Tier::Raw, raw_from_ms: i64::MIN, minute_from_ms: i64::MIN };

    /// From when on the tier holds everything.
    fn holds_from(&self, tier: Tier) -> i64 {
        match tier {
            _ if tier >= self.coarsest => i64::MIN,
            Tier::Raw => self.raw_from_ms,
            Tier::Minute => self.minute_from_ms,
            Tier::Hour => i64::MIN,
        }
    }

    /// The finest tier that holds everything from a time on.
    pub(super) fn finest(&self, from_ms: i64) -> Tier {
        let holds = |tier: &Tier| self.holds_from(*tier) <= from_ms;
        Tier::ALL.into_iter().find(holds).unwrap_or(self.coarsest)
    }
}

/// What a query wants of its time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub(super) from_ms: i64,
    /// The present or the end: how far the interval reaches, for its length.
    pub(super) reach_ms: i64,
    /// Length of the buckets; none for the whole interval as one, or single points.
    pub(super) step_ms: Option<i64>,
    /// Whether summaries answer it exactly.
    pub(super) summaries_do: bool,
}

/// The tier that a query is best answered from, where its rows are not gone.
pub(super) fn choose(choice: TierChoice, wish: &Wish, hosts: &Hosts, extent: &Extent) -> Tier {
    let wanted = match choice {
        TierChoice::Only(tier) => tier,
        TierChoice::Auto => {
            let long = if hosts.single().is_some() { LONG_MS } else { LONG_FLEET_MS };
            let length = wish.reach_ms.saturating_sub(wish.from_ms);
            let fits = |tier: &Tier| {
                let Some(bucket) = tier.bucket_ms() else { return true };
                let whole = wish.step_ms.is_none_or(|step| step % bucket == 0);
                wish.summaries_do && length > long && whole
            };
            Tier::ALL.into_iter().rev().find(fits).unwrap_or(Tier::Raw)
        }
    };
    wanted.min(extent.coarsest)
}

/// Splits `[from, to)` into parts: `tier` for whole buckets of it, finer tiers for what the interval's ends cut off, and coarser ones
/// where rows are gone. A bucket belongs to a part when its start does.
pub(super) fn plan(from_ms: i64, to_ms: Option<i64>, tier: Tier, extent: &Extent) -> Vec<TierPart> {
    let mut parts = Vec::new();
    aligned(from_ms, to_ms, tier, &mut |part| kept(part, extent, &mut parts));
    let mut merged: Vec<TierPart> = Vec::new();
    for part in parts {
        match merged.last_mut() {
            Some(last) if last.tier == part.tier && last.to_ms == Some(part.from_ms) => last.to_ms = part.to_ms,
            _ => merged.push(part),
        }
    }
    merged
}

/// All of `[from, to)` by one tier, or by the coarser one that it needs where rows of it are gone.
pub(super) fn single(from_ms: i64, to_ms: Option<i64>, tier: Tier, extent: &Extent) -> TierPart {
    TierPart { tier: tier.max(extent.finest(from_ms)), from_ms, to_ms }
}

fn aligned(from_ms: i64, to_ms: Option<i64>, tier: Tier, emit: &mut impl FnMut(TierPart)) {
    if to_ms.is_some_and(|to| to <= from_ms) {
        return;
    }
    let Some(bucket) = tier.bucket_ms() else { return emit(TierPart { tier, from_ms, to_ms }) };
    let finer = if tier == Tier::Hour { Tier::Minute } else { Tier::Raw };
    let start =
        from_ms.div_euclid(bucket).saturating_add(i64::from(from_ms.rem_euclid(bucket) != 0)).saturating_mul(bucket);
    let end = to_ms.map(|to| to.div_euclid(bucket) * bucket);
    if end.is_some_and(|end| end <= start) {
        return aligned(from_ms, to_ms, finer, emit);
    }
    aligned(from_ms, Some(start), finer, emit);
    emit(TierPart { tier, from_ms: start, to_ms: end });
    if let Some(end) = end {
        aligned(end, to_ms, finer, emit);
    }
}

/// Splits a part where rows of its tier are gone.
fn kept(part: TierPart, extent: &Extent, parts: &mut Vec<TierPart>) {
    let TierPart { tier, from_ms, to_ms } = part;
    let since = extent.holds_from(tier);
    if since <= from_ms {
        return parts.push(part);
    }
    let coarser = if tier == Tier::Raw { Tier::Minute } else { Tier::Hour };
    match to_ms {
        Some(to) if to <= since => kept(TierPart { tier: coarser, ..part }, extent, parts),
        _ => {
            kept(TierPart { tier: coarser, from_ms, to_ms: Some(since) }, extent, parts);
            parts.push(TierPart { tier, from_ms: since, to_ms });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3_600_000;

    fn extent() -> impl Strategy<Value = Extent> {
        let coarsest = prop::sample::select(Tier::ALL.to_vec());
        (coarsest, 0..20_i64, 0..20_i64).prop_map(|(coarsest, raw, minute)| Extent {
            coarsest,
            raw_from_ms: raw.max(minute) * HOUR,
            minute_from_ms: minute * HOUR,
        })
    }

    fn wide(coarsest: Tier) -> Extent {
        Extent { coarsest, ..Extent::RAW }
    }

    proptest! {
        #[test]
        fn parts_cover_the_interval_once_and_never_ask_for_rows_that_are_gone(
            from in 0..20 * HOUR, length in 1..20 * HOUR, open in any::<bool>(), wanted in prop::sample::select(Tier::ALL.to_vec()), extent in extent()
        ) {
            let to = (!open).then_some(from + length);
            let tier = wanted.min(extent.coarsest);
            let parts = plan(from, to, tier, &extent);
            prop_assert_eq!((parts[0].from_ms, parts[parts.len() - 1].to_ms), (from, to));
            for pair in parts.windows(2) {
                prop_assert_eq!(pair[0].to_ms, Some(pair[1].from_ms));
                prop_assert!(pair[0].tier != pair[1].tier);
            }
            for part in &parts {
                prop_assert!(part.to_ms.is_none_or(|to| to > part.from_ms));
                prop_assert!(part.tier <= extent.coarsest && extent.holds_from(part.tier) <= part.from_ms);
                // No coarser than wished where the rows are there.
                let finest = extent.finest(part.from_ms);
                prop_assert!(part.tier <= tier.max(finest));
                // Whole buckets only, save where nothing finer is left.
                if let Some(bucket) = part.tier.bucket_ms() {
                    let finer = if part.tier == Tier::Hour { Tier::Minute } else { Tier::Raw };
                    let gone = |time: i64| extent.holds_from(finer) > time;
                    prop_assert!(part.from_ms % bucket == 0 || gone(part.from_ms));
                    prop_assert!(part.to_ms.is_none_or(|to| to % bucket == 0 || gone(to)));
                }
            }
        }
    }

    #[test]
    fn the_ends_of_an_interval_are_read_more_finely() {
        let parts = plan(HOUR - 90_500, Some(3 * HOUR + 61_000), Tier::Hour, &wide(Tier::Hour));
        let told: Vec<_> = parts.iter().map(|part| (part.tier, part.from_ms, part.to_ms.expect("an end"))).collect();
        assert_eq!(
            told,
            [
                (Tier::Raw, HOUR - 90_500, HOUR - 60_000),
                (Tier::Minute, HOUR - 60_000, HOUR),
                (Tier::Hour, HOUR, 3 * HOUR),
                (Tier::Minute, 3 * HOUR, 3 * HOUR + 60_000),
                (Tier::Raw, 3 * HOUR + 60_000, 3 * HOUR + 61_000),
            ]
        );
    }

    #[test]
    fn summaries_answer_long_intervals_in_whole_buckets() {
        let (day, all) = (24 * HOUR, wide(Tier::Hour));
        let one = Hosts::from(plimsoll_nats::HostId::parse("h").expect("host"));
        let wish = |length: i64, step: i64, summaries_do| Wish {
            from_ms: 0,
            reach_ms: length,
            step_ms: Some(step),
            summaries_do,
        };
        let auto = |wish: Wish, hosts: &Hosts, extent| choose(TierChoice::Auto, &wish, hosts, &extent);
        assert_eq!(auto(wish(day, HOUR, true), &one, all), Tier::Raw, "short enough");
        assert_eq!(auto(wish(day + 1, HOUR, true), &one, all), Tier::Hour);
        assert_eq!(auto(wish(day + 1, 60_000, true), &one, all), Tier::Minute);
        assert_eq!(auto(wish(day + 1, 90_000, true), &one, all), Tier::Raw, "no whole minutes");
        assert_eq!(auto(wish(day + 1, HOUR, false), &one, all), Tier::Raw, "they would not do");
        assert_eq!(auto(wish(2 * HOUR, 60_000, true), &one, all), Tier::Raw);
        assert_eq!(auto(wish(2 * HOUR, 60_000, true), &Hosts::All, all), Tier::Minute);
        assert_eq!(auto(wish(9 * day, HOUR, true), &one, wide(Tier::Minute)), Tier::Minute, "there are no hours");
        assert_eq!(auto(wish(9 * day, HOUR, true), &one, Extent::RAW), Tier::Raw);
        let only = |tier| choose(TierChoice::Only(tier), &wish(HOUR, 1000, false), &one, &all);
        assert_eq!((only(Tier::Raw), only(Tier::Hour)), (Tier::Raw, Tier::Hour));
    }
}
