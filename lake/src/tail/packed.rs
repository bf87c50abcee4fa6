//! Rows as the tail holds them: what the messages of a series have in common once, and values without the room that a [`Batch`] keeps.
//!
//! A message of one row a second is mostly names, nodes of maps and vectors of one element. Of a series these stay the same from one
//! message to the next, and so do the tags unless the rows do not.

use std::{collections::HashSet, sync::Arc};

use plimsoll_nats::{Batch, Column, HostId, Name, batch::FieldType};
use ulid::Ulid;

use crate::schema::Role;

/// Memory of a message beside its values, in bytes and roughly: its own, and what the allocator adds.
const MESSAGE_BYTES: usize = 200;
/// The same of a column, and of a text beside its own bytes.
const COLUMN_BYTES: usize = 40;
const TEXT_BYTES: usize = 40;
/// Most names that are kept once for all: more than honest agents send.
const MAX_NAMES: usize = 100_000;

/// The columns of a message, and the values of its tags.
#[derive(Debug, PartialEq)]
pub(super) struct Shape {
    epoch: Ulid,
    tags: Vec<(Name, Vec<String>)>,
    fields: Vec<(Name, FieldType)>,
}

/// Where the values of a column are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'s> {
    /// A tag's values: the same ones in each message.
    Tag(&'s [String]),
    /// So many columns of numbers or bools come before it.
    Number(usize, FieldType),
    /// So many columns of text come before it.
    Text(usize),
}

/// The rows of a message.
#[derive(Debug)]
pub(super) struct Packed {
    shape: Arc<Shape>,
    seq: u64,
    rows: usize,
    /// One where all rows have the same.
    times: Box<[i64]>,
    /// The bits of all values that are no text, field by field; whatever for nil.
    values: Box<[u64]>,
    /// A bit for each of the values that is set for nil; none where none is nil.
    nils: Option<Box<[u64]>>,
    /// The texts, field by field.
    texts: Box<[Option<Box<str>>]>,
}

/// Names that are held once.
#[derive(Debug, Default)]
pub(super) struct Names(HashSet<Name>);

impl Names {
    pub(super) fn shared(&mut self, name: &Name) -> Name {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        if self.0.len() >= MAX_NAMES {
            self.0.clear();
        }
        self.0.insert(name.clone());
        name.clone()
    }
}

impl Shape {
    /// Whether a batch has the same columns and tags.
    fn is_of(&self, batch: &Batch) -> bool {
        self.epoch == batch.epoch
            && self.tags.len() == batch.tags.len()
            && self.fields.len() == batch.fields.len()
            && self.tags.iter().zip(&batch.tags).all(|(own, other)| own.0 == *other.0 && own.1 == *other.1)
            && self
                .fields
                .iter()
                .zip(&batch.fields)
                .all(|(own, (name, column))| own.0 == *name && own.1 == column.field_type())
    }

    /// The tags and fields with their types, as a batch has them.
    pub(super) fn columns(&self) -> impl Iterator<Item = (&Name, Role, FieldType)> {
        let tags = self.tags.iter().map(|(name, _)| (name, Role::Tag, FieldType::Text));
        tags.chain(self.fields.iter().map(|(name, field_type)| (name, Role::Field, *field_type)))
    }

    /// Where the column of that name is; none where there is none.
    pub(super) fn place(&self, name: &Name) -> Option<Place<'_>> {
        if let Some((_, values)) = self.tags.iter().find(|(tag, _)| tag == name) {
            return Some(Place::Tag(values));
        }
        let (before, field_type) = {
            let place = self.fields.iter().position(|(field, _)| field == name)?;
            (&self.fields[..place], self.fields[place].1)
        };
        let texts = before.iter().filter(|(_, field_type)| *field_type == FieldType::Text).count();
        Some(match field_type {
            FieldType::Text => Place::Text(texts),
            field_type => Place::Number(before.len() - texts, field_type),
        })
    }

    fn of(batch: &Batch, names: &mut Names) -> Self {
        Self {
            epoch: batch.epoch,
            tags: batch.tags.iter().map(|(name, values)| (names.shared(name), values.clone())).collect(),
            fields: batch.fields.iter().map(|(name, column)| (names.shared(name), column.field_type())).collect(),
        }
    }

    /// Memory that it takes, in bytes and roughly.
    fn weight(&self) -> usize {
        let texts = self.tags.iter().flat_map(|(_, values)| values).map(|value| value.len() + TEXT_BYTES);
        MESSAGE_BYTES + (self.tags.len() + self.fields.len()) * COLUMN_BYTES + texts.sum::<usize>()
    }
}

impl Packed {
    /// Packs a batch; what it has in common with the message before it is held once.
    pub(super) fn new(batch: &Batch, before: Option<&Self>, names: &mut Names) -> Self {
        let shape = before.map(|before| &before.shape).filter(|shape| shape.is_of(batch));
        let shape = shape.map_or_else(|| Arc::new(Shape::of(batch, names)), Arc::clone);
        let is_one_time = batch.times.windows(2).all(|pair| pair[0] == pair[1]);
        let times = if is_one_time { batch.times.iter().take(1).copied().collect() } else { (&*batch.times).into() };
        let mut cells = Cells::with_capacity(batch.rows() * batch.fields.len());
        batch.fields.values().for_each(|column| cells.push(column));
        let nils = cells.nils.iter().any(|word| *word != 0).then(|| cells.nils.into_boxed_slice());
        Self {
            shape,
            seq: batch.seq,
            rows: batch.rows(),
            times,
            values: cells.values.into_boxed_slice(),
            nils,
            texts: cells.texts.into_boxed_slice(),
        }
    }

    /// Whether what it has in common with another message is held once.
    pub(super) fn shares_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shape, &other.shape)
    }

    /// Memory of its own, in bytes and roughly.
    pub(super) fn weight(&self) -> usize {
        let texts = self.texts.iter().map(|text| text.as_ref().map_or(0, |text| text.len() + TEXT_BYTES) + 16);
        let words = self.times.len() + self.values.len() + self.nils.as_ref().map_or(0, |nils| nils.len());
        MESSAGE_BYTES + words * 8 + texts.sum::<usize>()
    }

    /// Memory of what it may have in common with others, in bytes and roughly.
    pub(super) fn shape_weight(&self) -> usize {
        self.shape.weight()
    }

    /// What it may have in common with others.
    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// How many rows there are.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The time of each row.
    pub(super) fn times(&self) -> impl Iterator<Item = i64> {
        (0..self.rows).map(|row| self.times[row.min(self.times.len() - 1)])
    }

    /// The bits of a column's values, of the one before which stand so many columns that are no text.
    pub(super) fn numbers(&self, place: usize) -> impl Iterator<Item = Option<u64>> {
        let first = place * self.rows;
        (first..first + self.rows).map(|place| (!self.is_nil(place)).then(|| self.values[place]))
    }

    /// The texts of a column, of the one before which stand so many columns of text.
    pub(super) fn texts(&self, place: usize) -> impl Iterator<Item = Option<&str>> {
        self.texts[place * self.rows..][..self.rows].iter().map(Option::as_deref)
    }

    /// The batch that was packed.
    pub(super) fn unpack(&self, host: &HostId, measurement: &Name) -> Batch {
        let (mut numbers, mut texts) = (0, 0);
        let fields = self.shape.fields.iter().map(|(name, field_type)| {
            let is_text = *field_type == FieldType::Text;
            let place = if is_text { &mut texts } else { &mut numbers };
            *place += 1;
            (name.clone(), self.column(*field_type, *place - 1))
        });
        Batch {
            host: host.clone(),
            measurement: measurement.clone(),
            epoch: self.shape.epoch,
            seq: self.seq,
            times: self.times().collect(),
            fields: fields.collect(),
            tags: self.shape.tags.iter().cloned().collect(),
        }
    }

    /// The column before which stand so many of its kind.
    fn column(&self, field_type: FieldType, place: usize) -> Column {
        let cells = || self.numbers(place);
        match field_type {
            FieldType::Float => Column::Float(cells().map(|cell| cell.map(f64::from_bits)).collect()),
            FieldType::Integer => Column::Integer(cells().map(|cell| cell.map(u64::cast_signed)).collect()),
            FieldType::Bool => Column::Bool(cells().map(|cell| cell.map(|bit| bit != 0)).collect()),
            FieldType::Text => Column::Text(self.texts(place).map(|text| text.map(str::to_owned)).collect()),
        }
    }

    fn is_nil(&self, place: usize) -> bool {
        self.nils.as_ref().is_some_and(|nils| nils[place / 64] >> (place % 64) & 1 == 1)
    }
}

/// The values of a message on their way into memory that is no larger than it must be.
struct Cells {
    values: Vec<u64>,
    nils: Vec<u64>,
    texts: Vec<Option<Box<str>>>,
}

impl Cells {
    fn with_capacity(values: usize) -> Self {
        Self { values: Vec::with_capacity(values), nils: vec![0; values.div_ceil(64)], texts: Vec::new() }
    }

    fn push(&mut self, column: &Column) {
        match column {
            Column::Float(values) => values.iter().for_each(|value| self.cell(value.map(f64::to_bits))),
            Column::Integer(values) => values.iter().for_each(|value| self.cell(value.map(i64::cast_unsigned))),
            Column::Bool(values) => values.iter().for_each(|value| self.cell(value.map(u64::from))),
            Column::Text(values) => self.texts.extend(values.iter().map(|text| text.as_deref().map(Box::from))),
        }
    }

    fn cell(&mut self, value: Option<u64>) {
        let place = self.values.len();
        if value.is_none() {
            self.nils[place / 64] |= 1 << (place % 64);
        }
        self.values.push(value.unwrap_or_default());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).expect("name")
    }

    pub(in crate::tail) fn batches() -> impl Strategy<Value = Batch> {
        (1_usize..70).prop_flat_map(|rows| {
            let column = prop_oneof![
                vec(option::of(any::<f64>().prop_filter("finite", |value| value.is_finite())), rows)
                    .prop_map(Column::Float),
                vec(option::of(any::<i64>()), rows).prop_map(Column::Integer),
                vec(option::of(any::<bool>()), rows).prop_map(Column::Bool),
                vec(option::of("[a-z\u{e4} ]{0,5}"), rows).prop_map(Column::Text),
            ];
            let times = prop_oneof![any::<i64>().prop_map(move |time| vec![time; rows]), vec(any::<i64>(), rows)];
            (times, vec(column, 1..6), vec(vec("[a-c]{0,2}", rows), 0..3), any::<u64>()).prop_map(
                |(times, columns, tags, seq)| Batch {
                    host: HostId::parse("h").expect("host"),
                    measurement: name("m"),
                    epoch: Ulid::nil(),
                    seq,
                    times,
                    tags: tags
                        .into_iter()
                        .zip(0..)
                        .map(|(values, n): (_, u8)| (name(&format!("t{n}")), values))
                        .collect(),
                    fields: columns.into_iter().zip(0..).map(|(c, n): (_, u8)| (name(&format!("f{n}")), c)).collect(),
                },
            )
        })
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(first in batches(), second in batches()) {
            let mut names = Names::default();
            let packed = Packed::new(&first, None, &mut names);
            prop_assert_eq!(&packed.unpack(&first.host, &first.measurement), &first);
            let next = Packed::new(&second, Some(&packed), &mut names);
            prop_assert_eq!(&next.unpack(&second.host, &second.measurement), &second);
            let again = Packed::new(&first, Some(&packed), &mut names);
            prop_assert!(again.shares_with(&packed), "a message of the same columns and tags shares them");
            prop_assert_eq!(&again.unpack(&first.host, &first.measurement), &first);
        }
    }
}
