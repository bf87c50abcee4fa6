//! Gathers rows of a built-in measurement into batches.

use std::collections::BTreeMap;

use plimsoll_nats::{Batch, Column, HostId, Name, batch::FieldType, catalog::MeasurementSpec};
use ulid::Ulid;

/// A value of a field.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    Nil,
    Float(f64),
    Integer(i64),
    Bool(bool),
    Text(&'static str),
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&'static str> for Value {
    fn from(value: &'static str) -> Self {
        Self::Text(value)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Nil, Into::into)
    }
}

/// Rows of one host and measurement that are not sent yet.
#[derive(Debug)]
pub(super) struct Rows {
    spec: &'static MeasurementSpec,
    measurement: Name,
    tag_names: Vec<Name>,
    field_names: Vec<Name>,
    times: Vec<i64>,
    tags: Vec<Vec<String>>,
    fields: Vec<Column>,
}

impl Rows {
    pub(super) fn new(spec: &'static MeasurementSpec) -> Self {
        let name = |text| Name::parse(text).expect("the catalog's names are tested");
        Self {
            spec,
            measurement: name(spec.name),
            tag_names: spec.tags.iter().map(|tag| name(tag.name)).collect(),
            field_names: spec.fields.iter().map(|field| name(field.name)).collect(),
            times: Vec::new(),
            tags: spec.tags.iter().map(|_| Vec::new()).collect(),
            fields: spec.fields.iter().map(|field| empty(field.field_type)).collect(),
        }
    }

    /// Adds a row: the values of all tags and of all fields, in the catalog's order.
    ///
    /// # Panics
    /// When a field is not the catalog's at this place, or of another type.
    pub(super) fn push(&mut self, time_ms: i64, tags: &[impl AsRef<str>], values: &[(&'static str, Value)]) {
        assert_eq!((tags.len(), values.len()), (self.tags.len(), self.fields.len()), "columns of {}", self.spec.name);
        self.times.push(time_ms);
        for (column, tag) in self.tags.iter_mut().zip(tags) {
            column.push(tag.as_ref().to_owned());
        }
        for ((column, spec), (name, value)) in self.fields.iter_mut().zip(self.spec.fields).zip(values) {
            debug_assert_eq!(spec.name, *name, "fields of {}", self.spec.name);
            match (column, *value) {
                (Column::Float(values), Value::Float(value)) => values.push(Some(value)),
                (Column::Integer(values), Value::Integer(value)) => values.push(Some(value)),
                (Column::Bool(values), Value::Bool(value)) => values.push(Some(value)),
                (Column::Text(values), Value::Text(value)) => values.push(Some(value.to_owned())),
                (Column::Float(values), Value::Nil) => values.push(None),
                (Column::Integer(values), Value::Nil) => values.push(None),
                (Column::Bool(values), Value::Nil) => values.push(None),
                (Column::Text(values), Value::Nil) => values.push(None),
                (column, value) => panic!("{}.{name} is {}, not {value:?}", self.spec.name, column.field_type()),
            }
        }
    }

    /// The gathered rows as a batch; none where there are none. Columns of nothing but nil are left out, as readers do.
    pub(super) fn take(&mut self, host: &HostId, epoch: Ulid, seq: u64) -> Option<Batch> {
        if self.times.is_empty() {
            return None;
        }
        let rows = self.times.len();
        let tags = self.tag_names.iter().zip(&mut self.tags);
        let tags = tags.map(|(name, column)| (name.clone(), replace(column, Vec::with_capacity(rows))));
        let fields = self.field_names.iter().zip(self.spec.fields).zip(&mut self.fields);
        let fields = fields.filter_map(|((name, spec), column)| {
            let taken = std::mem::replace(column, empty(spec.field_type));
            (!is_nil(&taken)).then(|| (name.clone(), taken))
        });
        let (tags, fields): (_, BTreeMap<_, _>) = (tags.collect(), fields.collect());
        let times = replace(&mut self.times, Vec::with_capacity(rows));
        Some(Batch { host: host.clone(), measurement: self.measurement.clone(), epoch, seq, times, tags, fields })
    }
}

fn replace<T>(place: &mut Vec<T>, with: Vec<T>) -> Vec<T> {
    std::mem::replace(place, with)
}

fn empty(field_type: FieldType) -> Column {
    match field_type {
        FieldType::Float => Column::Float(Vec::new()),
        FieldType::Integer => Column::Integer(Vec::new()),
        FieldType::Bool => Column::Bool(Vec::new()),
        FieldType::Text => Column::Text(Vec::new()),
    }
}

fn is_nil(column: &Column) -> bool {
    crate::points_of(column) == 0
}
