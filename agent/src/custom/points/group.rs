//! The points that make one batch.

use std::collections::{BTreeMap, HashMap};

use plimsoll_nats::{
    Column, Name,
    batch::{FieldType, MAX_COLUMNS},
};

use super::{FieldValue, Point, write_part};
use crate::{
    custom::{notes::Refusal, schema::Role},
    rows::{Columns, cut},
};

/// What a value takes beside its text, roughly.
const CELL_BYTES: usize = size_of::<Cell>();
/// What a row takes beside its values and tags, roughly.
const ROW_BYTES: usize = 64;
/// What a column takes beside its name and values, roughly.
const COLUMN_BYTES: usize = 128;

/// Points of one measurement, one time and one set of tag names, in their source's names.
#[derive(Debug)]
pub struct Group {
    measurement: String,
    time_ms: i64,
    tags: Vec<(String, Vec<String>)>,
    fields: Vec<(String, Vec<Cell>)>,
    by_name: HashMap<String, usize>,
    /// The newest row of each series.
    newest: HashMap<String, usize>,
    rows: usize,
}

/// What a point has added to its group.
#[derive(Debug, Default)]
pub struct Added {
    pub rows: usize,
    pub weight: usize,
    /// Values for which there is no column any more.
    pub refused: u64,
}

#[derive(Debug, Clone, PartialEq)]
enum Cell {
    Nil,
    Float(f64),
    Integer(i64),
    Bool(bool),
    Text(Box<str>),
}

impl Group {
    /// No points yet of what `point` is of.
    pub fn new(point: &Point<'_>, time_ms: i64) -> Self {
        Self {
            measurement: point.measurement.as_ref().to_owned(),
            time_ms,
            tags: point.tags.iter().map(|(name, _)| (name.as_ref().to_owned(), Vec::new())).collect(),
            fields: Vec::new(),
            by_name: HashMap::new(),
            newest: HashMap::new(),
            rows: 0,
        }
    }

    /// Unix time of all points in ms.
    pub fn time_ms(&self) -> i64 {
        self.time_ms
    }

    /// What was measured.
    pub fn measurement(&self) -> &str {
        &self.measurement
    }

    /// How many values there are.
    pub fn values(&self) -> u64 {
        self.fields.iter().map(|(_, cells)| filled(cells)).sum()
    }

    /// Adds a point whose tags are this group's, in the order of their names. `key` is room to work in.
    pub fn add(&mut self, point: &Point<'_>, key: &mut String) -> Added {
        let mut added = Added::default();
        key.clear();
        point.tags.iter().for_each(|(_, value)| write_part(key, value));
        let free = |row: &usize| point.fields.iter().all(|(name, _)| self.is_free(name, *row));
        let row = match self.newest.get(key).copied().filter(free) {
            Some(row) => row,
            None => {
                added.rows = 1;
                added.weight += ROW_BYTES + 2 * key.len();
                self.add_row(point, key)
            }
        };
        for (name, value) in &point.fields {
            match self.column(name, &mut added) {
                Some(index) => set(&mut self.fields[index].1, row, value.into(), &mut added),
                None => added.refused += 1,
            }
        }
        added
    }

    fn is_free(&self, field: &str, row: usize) -> bool {
        let cell = self.by_name.get(field).and_then(|index| self.fields[*index].1.get(row));
        cell.is_none_or(|cell| *cell == Cell::Nil)
    }

    fn add_row(&mut self, point: &Point<'_>, key: &str) -> usize {
        for ((_, values), (_, value)) in self.tags.iter_mut().zip(&point.tags) {
            values.push(cut(value).to_owned());
        }
        self.newest.insert(key.to_owned(), self.rows);
        self.rows += 1;
        self.rows - 1
    }

    /// The column of a field; none when there are too many.
    fn column(&mut self, name: &str, added: &mut Added) -> Option<usize> {
        if let Some(index) = self.by_name.get(name) {
            return Some(*index);
        }
        if self.tags.len() + self.fields.len() >= MAX_COLUMNS {
            return None;
        }
        added.weight += COLUMN_BYTES + 2 * name.len();
        self.by_name.insert(name.to_owned(), self.fields.len());
        self.fields.push((name.to_owned(), Vec::new()));
        Some(self.fields.len() - 1)
    }

    /// The columns of a batch, with how many rows and values they have; none when no value is left.
    ///
    /// `column` gives each column its name and role, and `refuse` is told how many values of which column are left out. A tag that has no
    /// place loses the whole group: without it, series would be mixed up.
    pub fn into_columns(
        self,
        column: impl Fn(&str, Role) -> Result<(Name, Role), Refusal>,
        refuse: impl Fn(Refusal, u64, &str),
    ) -> Option<(Columns, usize, u64)> {
        let mut columns = Columns { tags: BTreeMap::new(), fields: BTreeMap::new() };
        let all = self.values();
        for (spelled, values) in self.tags {
            match column(&spelled, Role::Tag) {
                Ok((name, _)) => drop(columns.tags.insert(name, values)),
                Err(refusal) => {
                    refuse(refusal, all, &spelled);
                    return None;
                }
            }
        }
        let mut held = vec![false; self.rows];
        let mut sent = 0;
        for (spelled, cells) in self.fields {
            let count = filled(&cells);
            match column(&spelled, Role::Field(field_type(&cells))) {
                Ok((name, Role::Field(field_type))) => {
                    let (values, kept) = typed(cells, field_type, &mut held);
                    if kept < count {
                        refuse(Refusal::Type, count - kept, &spelled);
                    }
                    if kept > 0 {
                        sent += kept;
                        columns.fields.insert(name, values);
                    }
                }
                Ok((_, Role::Tag)) => refuse(Refusal::Role, count, &spelled),
                Err(refusal) => refuse(refusal, count, &spelled),
            }
        }
        let rows = held.iter().filter(|held| **held).count();
        if rows < held.len() {
            keep_rows(&mut columns, &held);
        }
        (rows > 0).then_some((columns, rows, sent))
    }
}

fn filled(cells: &[Cell]) -> u64 {
    cells.iter().filter(|cell| **cell != Cell::Nil).count() as u64
}

fn set(cells: &mut Vec<Cell>, row: usize, value: Cell, added: &mut Added) {
    if let Cell::Text(text) = &value {
        added.weight += text.len();
    }
    if cells.len() <= row {
        added.weight += (row + 1 - cells.len()) * CELL_BYTES;
        cells.resize(row + 1, Cell::Nil);
    }
    cells[row] = value;
}

/// The type that a field's first batch gives it: that of the first value, where integers among floats are floats.
fn field_type(cells: &[Cell]) -> FieldType {
    let mut numbers = cells.iter().skip_while(|cell| **cell == Cell::Nil);
    match numbers.next() {
        Some(Cell::Integer(_)) if numbers.any(|cell| matches!(cell, Cell::Float(_))) => FieldType::Float,
        Some(Cell::Integer(_)) => FieldType::Integer,
        Some(Cell::Bool(_)) => FieldType::Bool,
        Some(Cell::Text(_)) => FieldType::Text,
        Some(Cell::Float(_) | Cell::Nil) | None => FieldType::Float,
    }
}

/// The values of a type and how many they are, marking the rows that have one.
fn typed(cells: Vec<Cell>, field_type: FieldType, held: &mut [bool]) -> (Column, u64) {
    let mut kept = 0;
    let column = match field_type {
        FieldType::Float => Column::Float(values(cells, held, &mut kept, |cell| match cell {
            Cell::Float(value) => Some(value),
            Cell::Integer(value) => Some(value as f64),
            _ => None,
        })),
        FieldType::Integer => Column::Integer(values(cells, held, &mut kept, |cell| match cell {
            Cell::Integer(value) => Some(value),
            _ => None,
        })),
        FieldType::Bool => Column::Bool(values(cells, held, &mut kept, |cell| match cell {
            Cell::Bool(value) => Some(value),
            _ => None,
        })),
        FieldType::Text => Column::Text(values(cells, held, &mut kept, |cell| match cell {
            Cell::Text(value) => Some(value.into()),
            _ => None,
        })),
    };
    (column, kept)
}

fn values<T>(cells: Vec<Cell>, held: &mut [bool], kept: &mut u64, value: impl Fn(Cell) -> Option<T>) -> Vec<Option<T>> {
    let all = cells.into_iter().chain(std::iter::repeat(Cell::Nil));
    let mut take = |(held, cell): (&mut bool, Cell)| {
        let value = value(cell);
        *held |= value.is_some();
        *kept += u64::from(value.is_some());
        value
    };
    held.iter_mut().zip(all).map(&mut take).collect()
}

fn keep_rows(columns: &mut Columns, held: &[bool]) {
    fn keep<T>(values: &mut Vec<T>, held: &[bool]) {
        let mut rows = held.iter();
        values.retain(|_| rows.next().copied().unwrap_or_default());
    }
    columns.tags.values_mut().for_each(|values| keep(values, held));
    for column in columns.fields.values_mut() {
        match column {
            Column::Float(values) => keep(values, held),
            Column::Integer(values) => keep(values, held),
            Column::Bool(values) => keep(values, held),
            Column::Text(values) => keep(values, held),
        }
    }
}

impl From<&FieldValue<'_>> for Cell {
    fn from(value: &FieldValue<'_>) -> Self {
        match value {
            FieldValue::Float(value) => Self::Float(*value),
            FieldValue::Integer(value) => Self::Integer(*value),
            FieldValue::Bool(value) => Self::Bool(*value),
            FieldValue::Text(text) => Self::Text(cut(text).into()),
        }
    }
}
