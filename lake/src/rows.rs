//! Rows of many messages as columns, gathered while the rows before them are committed.
//!
//! Each measurement's rows lie in the order of their messages. A column covers the rows of those messages that have it and no
//! others, in runs, so that a message costs what it holds whatever came before it. A name that messages use for tags and fields, or
//! for fields of several types, has a column for each: which of them fits is known when the rows are committed. A set that is
//! cleared keeps its memory for the next rows.

mod column;
mod source;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
    sync::Arc,
};

use plimsoll_nats::{
    Batch, Incarnation, Name, PartitionId, Position, Sequence,
    batch::{BatchView, FieldType},
};

use self::column::{Dictionary, RowColumn, Values};
pub(crate) use self::source::{RowSource, register};
use crate::{schema::Role, writer::CommitSet};

/// What a commit wants to contain, as columns.
#[derive(Debug, Default)]
pub struct RowSet {
    /// Up to where each partition was read, messages without rows to store included.
    pub reached: BTreeMap<PartitionId, Position>,
    /// The stream's present life, where [`CommitOutcome::Superseded`](crate::CommitOutcome::Superseded) has asked for it.
    pub current: Option<Incarnation>,
    messages: Vec<GatheredMessage>,
    tables: Vec<Arc<TableRows>>,
    by_name: HashMap<Name, usize>,
    rows: usize,
    weight: usize,
}

/// A message whose rows are gathered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GatheredMessage {
    pub(crate) partition: PartitionId,
    pub(crate) sequence: Sequence,
    pub(crate) stored_ms: i64,
    /// Index of its measurement's table.
    pub(crate) table: usize,
    /// Index of its columns among those of its table's messages.
    pub(crate) layout: usize,
    first: u32,
    end: u32,
    /// Values that are not nil.
    pub(crate) points: u32,
    removed: bool,
}

impl GatheredMessage {
    pub(crate) fn rows(&self) -> Range<usize> {
        self.first as usize..self.end as usize
    }
}

/// Rows of one measurement.
#[derive(Debug)]
pub(crate) struct TableRows {
    measurement: Name,
    times: Vec<i64>,
    hosts: Dictionary,
    columns: Vec<RowColumn>,
    by_name: HashMap<Name, Vec<usize>>,
    /// The columns that messages have: indices, tags first.
    layouts: Vec<Box<[usize]>>,
    by_columns: HashMap<Box<[usize]>, usize>,
    /// The layout of the latest message, and the columns of the one that is being added.
    latest: usize,
    adding: Vec<usize>,
}

/// Memory of a message besides its values, of a column, and of a measurement, in bytes and roughly.
const MESSAGE: usize = 64;
const COLUMN: usize = 400;
const TABLE: usize = 2000;

impl RowSet {
    /// Gathered messages, removed ones included.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.messages.len()
    }

    /// Gathered rows, without those of removed messages.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Memory that the rows take, in bytes and roughly; those of removed messages included.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Adds a message. Per partition they come in the order of the stream.
    pub fn push(&mut self, partition: PartitionId, sequence: Sequence, stored_ms: i64, batch: &BatchView<'_>) {
        let table = self.table(batch.measurement());
        let rows = self.open(table);
        let (first, mut added) = rows.begin(batch.host(), batch.times());
        for tag in batch.tags() {
            rows.add(tag.name, Role::Tag, FieldType::Text, first, &mut added, |values| values.tag(tag.values()));
        }
        for field in batch.fields() {
            rows.add(field.name, Role::Field, field.field_type, first, &mut added, |values| values.field(&field));
        }
        self.finish(partition, sequence, stored_ms, table, first, added);
    }

    /// Adds a decoded message, as [`RowSet::push`] does.
    pub fn push_batch(&mut self, partition: PartitionId, sequence: Sequence, stored_ms: i64, batch: &Batch) {
        let table = self.table(&batch.measurement);
        let rows = self.open(table);
        let (first, mut added) = rows.begin(&batch.host, &batch.times);
        for (name, texts) in &batch.tags {
            let texts = || texts.iter().map(String::as_str);
            rows.add(name, Role::Tag, FieldType::Text, first, &mut added, |values| values.tag(texts()));
        }
        for (name, column) in &batch.fields {
            rows.add(name, Role::Field, column.field_type(), first, &mut added, |values| values.column(column));
        }
        self.finish(partition, sequence, stored_ms, table, first, added);
    }

    /// Takes messages of these indices out, in the order that they were added in. The indices of the others stay.
    pub fn remove(&mut self, indices: &HashSet<usize>) {
        for index in indices {
            self.remove_one(*index);
        }
    }

    /// Takes the messages of a partition out, and its position.
    pub fn remove_partition(&mut self, partition: PartitionId) {
        self.reached.remove(&partition);
        for index in 0..self.messages.len() {
            if self.messages[index].partition == partition {
                self.remove_one(index);
            }
        }
    }

    fn remove_one(&mut self, index: usize) {
        let message = &mut self.messages[index];
        if !std::mem::replace(&mut message.removed, true) {
            self.rows -= message.rows().len();
        }
    }

    /// Forgets everything, and keeps at most about `keep` bytes of memory for the next rows.
    pub fn clear(&mut self, keep: usize) {
        self.reached.clear();
        self.current = None;
        self.messages.clear();
        (self.rows, self.weight) = (0, 0);
        // What had no rows this time is as good as gone.
        self.tables.retain_mut(|table| Arc::get_mut(table).is_some_and(TableRows::clear));
        if self.tables.iter().map(|table| table.capacity()).sum::<usize>() > keep {
            self.tables.clear();
        }
        self.by_name =
            self.tables.iter().enumerate().map(|(index, table)| (table.measurement.clone(), index)).collect();
    }

    pub(crate) fn kept(&self) -> impl Iterator<Item = (usize, &GatheredMessage)> {
        self.messages.iter().enumerate().filter(|(_, message)| !message.removed)
    }

    pub(crate) fn tables(&self) -> &[Arc<TableRows>] {
        &self.tables
    }

    fn table(&mut self, measurement: &str) -> usize {
        if let Some(index) = self.by_name.get(measurement) {
            return *index;
        }
        let name = Name::parse(measurement).expect("a decoded batch has valid names");
        let index = self.tables.len();
        self.tables.push(Arc::new(TableRows::new(name.clone())));
        self.by_name.insert(name, index);
        self.weight += TABLE;
        index
    }

    fn open(&mut self, table: usize) -> &mut TableRows {
        Arc::get_mut(&mut self.tables[table]).expect("nobody reads rows while some are added")
    }

    fn finish(
        &mut self,
        partition: PartitionId,
        sequence: Sequence,
        stored_ms: i64,
        table: usize,
        first: u32,
        mut added: Added,
    ) {
        let rows = self.open(table);
        let layout = rows.end(&mut added);
        let end = u32::try_from(rows.times.len()).expect("a set has far fewer rows than 4 billion");
        let points = added.points;
        let message =
            GatheredMessage { partition, sequence, stored_ms, table, layout, first, end, points, removed: false };
        self.rows += message.rows().len();
        self.weight += MESSAGE + added.bytes;
        self.messages.push(message);
    }
}

impl From<&CommitSet> for RowSet {
    fn from(set: &CommitSet) -> Self {
        let mut rows = Self { reached: set.reached.clone(), current: set.current, ..Self::default() };
        for message in &set.messages {
            rows.push_batch(message.partition, message.sequence, message.stored_ms, &message.batch);
        }
        rows
    }
}

/// What adding a message has cost so far.
#[derive(Debug, Default, Clone, Copy)]
struct Added {
    points: u32,
    bytes: usize,
}

impl TableRows {
    fn new(measurement: Name) -> Self {
        Self {
            measurement,
            times: Vec::new(),
            hosts: Dictionary::default(),
            columns: Vec::new(),
            by_name: HashMap::new(),
            layouts: Vec::new(),
            by_columns: HashMap::new(),
            latest: 0,
            adding: Vec::new(),
        }
    }

    pub(crate) fn measurement(&self) -> &Name {
        &self.measurement
    }

    /// The times of these rows, Unix ms.
    pub(crate) fn times(&self, rows: Range<usize>) -> &[i64] {
        &self.times[rows]
    }

    /// The columns of a layout: tags and fields with the type of their values.
    pub(crate) fn columns(&self, layout: usize) -> impl Iterator<Item = (&Name, Role, FieldType)> {
        self.layouts[layout].iter().map(|index| {
            let column = &self.columns[*index];
            (&column.name, column.role, column.field_type)
        })
    }

    /// How many layouts the messages have.
    pub(crate) fn layouts(&self) -> usize {
        self.layouts.len()
    }

    fn begin(&mut self, host: &str, times: &[i64]) -> (u32, Added) {
        let first = u32::try_from(self.times.len()).expect("a set has far fewer rows than 4 billion");
        self.times.extend_from_slice(times);
        self.adding.clear();
        let bytes = self.hosts.push(host, times.len()) + size_of_val(times);
        (first, Added { points: 0, bytes })
    }

    fn add(
        &mut self,
        name: &str,
        role: Role,
        field_type: FieldType,
        first: u32,
        added: &mut Added,
        push: impl FnOnce(&mut Values) -> (usize, usize),
    ) {
        let index = self.column(name, role, field_type, added);
        self.adding.push(index);
        let (points, bytes) = self.columns[index].push(first, push);
        added.bytes += bytes;
        if role == Role::Field {
            added.points += u32::try_from(points).expect("a batch has few values");
        }
    }

    /// The index of a column, which is made where it is missing.
    fn column(&mut self, name: &str, role: Role, field_type: FieldType, added: &mut Added) -> usize {
        let columns = &self.columns;
        let is_it = |index: &usize| columns[*index].is(name, role, field_type);
        // Most messages have the columns of the one before.
        let guess = self.layouts.get(self.latest).and_then(|latest| latest.get(self.adding.len())).copied();
        if let Some(index) = guess.filter(is_it) {
            return index;
        }
        if let Some(index) = self.by_name.get(name).and_then(|indices| indices.iter().copied().find(is_it)) {
            return index;
        }
        let name = Name::parse(name).expect("a decoded batch has valid names");
        let index = self.columns.len();
        self.by_name.entry(name.clone()).or_default().push(index);
        self.columns.push(RowColumn::new(name, role, field_type));
        added.bytes += COLUMN;
        index
    }

    /// The layout of the message whose columns were added.
    fn end(&mut self, added: &mut Added) -> usize {
        if self.layouts.get(self.latest).is_none_or(|latest| **latest != *self.adding) {
            self.latest = match self.by_columns.get(&*self.adding) {
                Some(layout) => *layout,
                None => {
                    let columns: Box<[usize]> = self.adding.as_slice().into();
                    added.bytes += COLUMN + 2 * size_of_val(&*columns);
                    self.by_columns.insert(columns.clone(), self.layouts.len());
                    self.layouts.push(columns);
                    self.layouts.len() - 1
                }
            };
        }
        self.latest
    }

    /// Forgets the rows and the columns that had none. Returns whether there were any.
    fn clear(&mut self) -> bool {
        let used = !self.times.is_empty();
        self.times.clear();
        self.hosts.clear();
        self.columns.retain_mut(RowColumn::clear);
        self.layouts.clear();
        self.by_columns.clear();
        self.by_name.clear();
        for (index, column) in self.columns.iter().enumerate() {
            self.by_name.entry(column.name.clone()).or_default().push(index);
        }
        used
    }

    fn capacity(&self) -> usize {
        let columns: usize = self.columns.iter().map(RowColumn::capacity).sum();
        self.times.capacity() * size_of::<i64>() + self.hosts.capacity() + columns
    }
}
