//! The values of one tag or field.

use std::{collections::HashMap, sync::Arc};

use plimsoll_nats::{
    Column, Name,
    batch::{FieldType, FieldView},
};

use crate::schema::Role;

/// A tag or field of one type, and its values in the rows of the messages that have it.
#[derive(Debug)]
pub(super) struct RowColumn {
    pub(super) name: Name,
    pub(super) role: Role,
    pub(super) field_type: FieldType,
    runs: Vec<Run>,
    pub(super) values: Values,
}

/// Successive rows that have the column, up to where the next run's values begin.
#[derive(Debug, Clone, Copy)]
struct Run {
    row: u32,
    at: u32,
}

/// Values in the order of their rows.
#[derive(Debug)]
pub(super) enum Values {
    Tags(Dictionary),
    Floats(Vec<f64>, Validity),
    Integers(Vec<i64>, Validity),
    Bools(Vec<bool>, Validity),
    Texts(Texts, Validity),
}

impl RowColumn {
    pub(super) fn new(name: Name, role: Role, field_type: FieldType) -> Self {
        let valid = Validity::default();
        let values = match (role, field_type) {
            (Role::Tag, _) => Values::Tags(Dictionary::default()),
            (Role::Field, FieldType::Float) => Values::Floats(Vec::new(), valid),
            (Role::Field, FieldType::Integer) => Values::Integers(Vec::new(), valid),
            (Role::Field, FieldType::Bool) => Values::Bools(Vec::new(), valid),
            (Role::Field, FieldType::Text) => Values::Texts(Texts::default(), valid),
        };
        Self { name, role, field_type, runs: Vec::new(), values }
    }

    pub(super) fn is(&self, name: &str, role: Role, field_type: FieldType) -> bool {
        self.field_type == field_type && self.role == role && *self.name == *name
    }

    /// Adds values for the rows from `row` on; returns how many are not nil, and their bytes.
    pub(super) fn push(&mut self, row: u32, push: impl FnOnce(&mut Values) -> (usize, usize)) -> (usize, usize) {
        let at = u32::try_from(self.values.len()).expect("a set has far fewer rows than 4 billion");
        let mut bytes = 0;
        if self.runs.last().is_none_or(|run| run.row + (at - run.at) != row) {
            self.runs.push(Run { row, at });
            bytes = size_of::<Run>();
        }
        let (points, added) = push(&mut self.values);
        (points, bytes + added)
    }

    /// Where the value of a row lies; none where the row does not have the column.
    pub(super) fn at(&self, row: u32) -> Option<usize> {
        let next = if let [only] = self.runs[..] {
            usize::from(only.row <= row)
        } else {
            self.runs.partition_point(|run| run.row <= row)
        };
        let run = self.runs.get(next.checked_sub(1)?)?;
        let end = self.runs.get(next).map_or(self.values.len(), |next| next.at as usize);
        let at = (run.at + (row - run.row)) as usize;
        (at < end).then_some(at)
    }

    /// Whether every one of so many rows has a value that is not nil, so that it lies where the row does.
    pub(super) fn is_whole(&self, rows: usize) -> bool {
        let valid = match &self.values {
            Values::Tags(_) => true,
            Values::Floats(_, valid)
            | Values::Integers(_, valid)
            | Values::Bools(_, valid)
            | Values::Texts(_, valid) => valid.is_all(),
        };
        valid && self.values.len() == rows && matches!(self.runs[..], [Run { row: 0, .. }])
    }

    /// Forgets the values; returns whether there were any.
    pub(super) fn clear(&mut self) -> bool {
        let used = self.values.len() > 0;
        self.runs.clear();
        self.values.clear();
        used
    }

    pub(super) fn capacity(&self) -> usize {
        self.runs.capacity() * size_of::<Run>() + self.values.capacity()
    }
}

impl Values {
    /// Adds the values of a tag; returns how many, and their bytes.
    pub(super) fn tag<'a>(&mut self, texts: impl ExactSizeIterator<Item = &'a str>) -> (usize, usize) {
        let Self::Tags(tags) = self else { unreachable!("tags have a column of their own") };
        let count = texts.len();
        (count, texts.map(|text| tags.push(text, 1)).sum())
    }

    /// Adds the values of a field; returns how many are not nil, and their bytes.
    pub(super) fn field(&mut self, field: &FieldView<'_>) -> (usize, usize) {
        match self {
            Self::Floats(values, valid) => extend(values, valid, field.floats()),
            Self::Integers(values, valid) => extend(values, valid, field.integers()),
            Self::Bools(values, valid) => extend(values, valid, field.bools()),
            Self::Texts(values, valid) => values.extend(valid, field.texts()),
            Self::Tags(_) => unreachable!("fields have a column of their own"),
        }
    }

    /// Adds the values of a decoded field, as [`Values::field`] does.
    pub(super) fn column(&mut self, column: &Column) -> (usize, usize) {
        match (self, column) {
            (Self::Floats(values, valid), Column::Float(added)) => extend(values, valid, added.iter().copied()),
            (Self::Integers(values, valid), Column::Integer(added)) => extend(values, valid, added.iter().copied()),
            (Self::Bools(values, valid), Column::Bool(added)) => extend(values, valid, added.iter().copied()),
            (Self::Texts(values, valid), Column::Text(added)) => {
                values.extend(valid, added.iter().map(Option::as_deref))
            }
            _ => unreachable!("each type has a column of its own"),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Tags(tags) => tags.ids.len(),
            Self::Floats(values, _) => values.len(),
            Self::Integers(values, _) => values.len(),
            Self::Bools(values, _) => values.len(),
            Self::Texts(texts, _) => texts.ends.len(),
        }
    }

    fn clear(&mut self) {
        match self {
            Self::Tags(tags) => return tags.clear(),
            Self::Floats(values, _) => values.clear(),
            Self::Integers(values, _) => values.clear(),
            Self::Bools(values, _) => values.clear(),
            Self::Texts(texts, _) => texts.clear(),
        }
        let (Self::Floats(_, valid) | Self::Integers(_, valid) | Self::Bools(_, valid) | Self::Texts(_, valid)) = self
        else {
            return;
        };
        *valid = Validity::default();
    }

    fn capacity(&self) -> usize {
        match self {
            Self::Tags(tags) => tags.capacity(),
            Self::Floats(values, _) => values.capacity() * size_of::<f64>(),
            Self::Integers(values, _) => values.capacity() * size_of::<i64>(),
            Self::Bools(values, _) => values.capacity(),
            Self::Texts(texts, _) => texts.text.capacity() + texts.ends.capacity() * size_of::<u32>(),
        }
    }
}

fn extend<T: Copy + Default>(
    values: &mut Vec<T>,
    valid: &mut Validity,
    added: impl Iterator<Item = Option<T>>,
) -> (usize, usize) {
    let (before, mut points) = (values.len(), 0);
    for value in added {
        valid.push(values.len(), value.is_some());
        points += usize::from(value.is_some());
        values.push(value.unwrap_or_default());
    }
    (points, (values.len() - before) * size_of::<T>())
}

/// Which values are not nil.
#[derive(Debug, Default)]
pub(super) struct Validity {
    /// Empty as long as none is nil.
    flags: Vec<bool>,
}

impl Validity {
    /// Says of the next value, which is the one after `before` others, whether it is not nil.
    fn push(&mut self, before: usize, valid: bool) {
        if self.flags.is_empty() && !valid {
            self.flags.resize(before, true);
        }
        if !valid || !self.flags.is_empty() {
            self.flags.push(valid);
        }
    }

    pub(super) fn is(&self, at: usize) -> bool {
        self.flags.get(at).copied().unwrap_or(true)
    }

    fn is_all(&self) -> bool {
        self.flags.is_empty()
    }
}

/// Texts one after the other.
#[derive(Debug, Default)]
pub(super) struct Texts {
    text: String,
    ends: Vec<u32>,
}

impl Texts {
    pub(super) fn get(&self, at: usize) -> &str {
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.text[start..self.ends[at] as usize]
    }

    fn extend<'a>(&mut self, valid: &mut Validity, added: impl Iterator<Item = Option<&'a str>>) -> (usize, usize) {
        let (before, mut count, mut points) = (self.text.len(), 0, 0);
        for value in added {
            valid.push(self.ends.len(), value.is_some());
            points += usize::from(value.is_some());
            count += 1;
            self.text.push_str(value.unwrap_or_default());
            self.ends.push(u32::try_from(self.text.len()).expect("texts are bounded by the weight of a set"));
        }
        (points, self.text.len() - before + count * size_of::<u32>())
    }

    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }
}

/// Texts that repeat.
#[derive(Debug, Default)]
pub(super) struct Dictionary {
    pub(super) ids: Vec<u32>,
    pub(super) texts: Vec<Arc<str>>,
    by_text: HashMap<Arc<str>, u32>,
}

impl Dictionary {
    /// Adds a text so many times; returns the bytes that this takes.
    pub(super) fn push(&mut self, text: &str, times: usize) -> usize {
        const ENTRY: usize = 80;
        let (id, bytes) = match self.find(text) {
            Some(id) => (id, 0),
            None => {
                let id = u32::try_from(self.texts.len()).expect("a set has far fewer rows than 4 billion");
                let text: Arc<str> = text.into();
                self.texts.push(Arc::clone(&text));
                self.by_text.insert(text, id);
                (id, ENTRY + self.texts[id as usize].len())
            }
        };
        self.ids.extend(std::iter::repeat_n(id, times));
        bytes + times * size_of::<u32>()
    }

    fn find(&self, text: &str) -> Option<u32> {
        let latest = self.ids.last().copied().filter(|id| *self.texts[*id as usize] == *text);
        latest.or_else(|| self.by_text.get(text).copied())
    }

    pub(super) fn get(&self, at: usize) -> &str {
        &self.texts[self.ids[at] as usize]
    }

    /// The place of each text in their order.
    pub(super) fn ranks(&self) -> Vec<u64> {
        let mut order: Vec<usize> = (0..self.texts.len()).collect();
        order.sort_unstable_by_key(|id| &self.texts[*id]);
        let mut ranks = vec![0; order.len()];
        order.into_iter().zip(0..).for_each(|(id, rank)| ranks[id] = rank);
        ranks
    }

    pub(super) fn clear(&mut self) {
        self.ids.clear();
        self.texts.clear();
        self.by_text.clear();
    }

    pub(super) fn capacity(&self) -> usize {
        self.ids.capacity() * size_of::<u32>()
    }
}
