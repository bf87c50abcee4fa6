//! Many texts in one buffer, so that keeping them costs no allocation each.

/// Texts one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    joined: String,
    /// Where each text ends in `joined`; it begins where the one before ends.
    ends: Vec<usize>,
}

impl Texts {
    /// Number of texts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all texts together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.joined.len()
    }

    /// Adds a text.
    pub fn push(&mut self, text: &str) {
        self.joined.push_str(text);
        self.ends.push(self.joined.len());
    }

    /// Adds the texts of another.
    pub fn append(&mut self, other: &Self) {
        let start = self.joined.len();
        self.joined.push_str(&other.joined);
        self.ends.extend(other.ends.iter().map(|end| start + end));
    }

    /// The text of that number, from 0.
    ///
    /// # Panics
    /// When there are no more than that.
    #[must_use]
    pub fn get(&self, index: usize) -> &str {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.joined[start..self.ends[index]]
    }

    /// Removes all texts and keeps the room.
    pub fn clear(&mut self) {
        self.joined.clear();
        self.ends.clear();
    }
}

impl<'a> FromIterator<&'a str> for Texts {
    fn from_iter<I: IntoIterator<Item = &'a str>>(texts: I) -> Self {
        let mut all = Self::default();
        texts.into_iter().for_each(|text| all.push(text));
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn texts_are_those_that_were_added(
            first in proptest::collection::vec(".{0,6}", 0..6),
            second in proptest::collection::vec(".{0,6}", 0..6),
        ) {
            let mut texts = Texts::default();
            texts.push("left over");
            texts.clear();
            prop_assert!(texts.is_empty());
            first.iter().for_each(|text| texts.push(text));
            texts.append(&second.iter().map(String::as_str).collect());
            let all: Vec<&String> = first.iter().chain(&second).collect();
            prop_assert_eq!(texts.len(), all.len());
            prop_assert_eq!(texts.bytes(), all.iter().map(|text| text.len()).sum::<usize>());
            prop_assert!(all.iter().enumerate().all(|(index, text)| texts.get(index) == text.as_str()));
        }
    }
}
