//! Cores, disks and interfaces: things that the kernel lists by name, and that come and go.

/// What is known of each thing, in the order in which the kernel lists them.
#[derive(Debug)]
pub struct Roster<T> {
    entries: Vec<Entry<T>>,
}

/// One thing.
#[derive(Debug)]
pub struct Entry<T> {
    /// Its name.
    pub name: String,
    /// What is known of it.
    pub known: T,
}

impl<T> Default for Roster<T> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T> Roster<T> {
    /// Makes the list the one of `names`, where `meet` tells what is known of a newcomer. Returns those that are gone.
    ///
    /// Allocates nothing while the names stay the same.
    pub fn update<'a>(
        &mut self,
        names: impl Iterator<Item = &'a str> + Clone,
        mut meet: impl FnMut(&str) -> T,
    ) -> Vec<Entry<T>> {
        if names.clone().eq(self.entries.iter().map(|entry| entry.name.as_str())) {
            return Vec::new();
        }
        let mut gone = std::mem::take(&mut self.entries);
        for name in names {
            let known = gone.iter().position(|entry| entry.name == name).map(|index| gone.swap_remove(index));
            self.entries.push(known.unwrap_or_else(|| Entry { name: name.to_owned(), known: meet(name) }));
        }
        gone
    }

    /// Each thing, in the order of the names.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry<T>> {
        self.entries.iter_mut()
    }

    /// Each thing, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = &Entry<T>> {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names<T>(entries: &[Entry<T>]) -> Vec<&str> {
        entries.iter().map(|entry| entry.name.as_str()).collect()
    }

    #[test]
    fn what_is_known_stays_with_its_name() {
        let mut met = 0;
        let mut roster = Roster::default();
        let mut update = |roster: &mut Roster<u32>, names: &[&str]| {
            roster.update(names.iter().copied(), |_| {
                met += 1;
                met
            })
        };
        assert!(update(&mut roster, &["a", "b", "c"]).is_empty());
        assert!(update(&mut roster, &["a", "b", "c"]).is_empty());
        let gone = update(&mut roster, &["c", "d", "a"]);
        assert_eq!((names(&gone), gone[0].known), (vec!["b"], 2));
        let known: Vec<(&str, u32)> = roster.iter().map(|entry| (entry.name.as_str(), entry.known)).collect();
        assert_eq!(known, [("c", 3), ("d", 4), ("a", 1)]);
    }

    proptest! {
        #[test]
        fn the_list_is_always_the_names(lists in proptest::collection::vec(proptest::collection::vec("[a-c]", 0..5), 0..5)) {
            let mut roster = Roster::default();
            for list in lists {
                roster.update(list.iter().map(String::as_str), |_| ());
                prop_assert_eq!(names(&roster.entries), list);
            }
        }
    }
}
