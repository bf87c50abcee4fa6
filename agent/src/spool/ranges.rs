//! Sets of bytes of a file.

use std::collections::BTreeMap;

/// A set of numbers that is kept as ranges `[from, to)`, none of which touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds `[from, to)`.
    pub fn insert(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let (mut start, mut end) = (from, to);
        // Every range that overlaps or touches starts at or before `to`.
        while let Some((&low, &high)) = self.ends.range(..=end).next_back() {
            if high < start {
                break;
            }
            self.ends.remove(&low);
            (start, end) = (start.min(low), end.max(high));
        }
        self.ends.insert(start, end);
    }

    /// Whether all of `[from, to)` is there.
    #[must_use]
    pub fn covers(&self, from: u64, to: u64) -> bool {
        from >= to || self.ends.range(..=from).next_back().is_some_and(|(_, end)| *end >= to)
    }

    /// The first number from `at` on that is not there.
    #[must_use]
    pub fn first_gap(&self, at: u64) -> u64 {
        self.ends.range(..=at).next_back().map_or(at, |(_, end)| at.max(*end))
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ends.iter().map(|(from, to)| (*from, *to))
    }
}

impl FromIterator<(u64, u64)> for Ranges {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(ranges: I) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|(from, to)| set.insert(from, to));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a set of the single numbers.
        #[test]
        fn ranges_hold_what_was_put_in(
            inserts in proptest::collection::vec((0_u64..60, 0_u64..12), 0..40),
            at in 0_u64..80,
            length in 0_u64..10,
        ) {
            let mut model = BTreeSet::new();
            let mut ranges = Ranges::default();
            for (from, length) in inserts {
                ranges.insert(from, from + length);
                model.extend(from..from + length);
            }
            prop_assert_eq!(ranges.covers(at, at + length), (at..at + length).all(|number| model.contains(&number)));
            prop_assert_eq!(Some(ranges.first_gap(at)), (at..).find(|number| !model.contains(number)));
            let all: Vec<(u64, u64)> = ranges.iter().collect();
            prop_assert_eq!(all.iter().flat_map(|(from, to)| *from..*to).collect::<BTreeSet<u64>>(), model);
            prop_assert!(all.windows(2).all(|pair| pair[0].1 < pair[1].0));
            prop_assert_eq!(all.into_iter().collect::<Ranges>(), ranges);
        }
    }
}
