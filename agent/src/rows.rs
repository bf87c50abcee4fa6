//! Rows of one measurement, column by column, as the catalog lays them out.

use std::collections::BTreeMap;

use plimsoll_nats::{Column, Name, batch::MAX_TAG_BYTES, catalog::MeasurementSpec};

use self::frame::Values;
pub use self::{frame::Frame, texts::Texts};

mod frame;
mod texts;

/// A value of a field; none is nil.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// 64-bit floating point; what is not finite becomes nil.
    Float(Option<f64>),
    /// 64-bit signed integer.
    Integer(Option<i64>),
    /// True or false.
    Bool(Option<bool>),
    /// Text; what is longer than a tag may be is cut.
    Text(Option<&'a str>),
}

impl From<f64> for Value<'_> {
    fn from(value: f64) -> Self {
        Self::Float(Some(value))
    }
}

impl From<Option<f64>> for Value<'_> {
    fn from(value: Option<f64>) -> Self {
        Self::Float(value)
    }
}

impl From<u64> for Value<'_> {
    fn from(value: u64) -> Self {
        Self::Integer(Some(clamp(value)))
    }
}

impl From<Option<u64>> for Value<'_> {
    fn from(value: Option<u64>) -> Self {
        Self::Integer(value.map(clamp))
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(Some(value))
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(Some(value))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(value: Option<&'a str>) -> Self {
        Self::Text(value)
    }
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// `part` in percent of `whole`, between 0 and 100; none of nothing.
#[must_use]
pub fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| (part as f64 / whole as f64 * 100.0).min(100.0))
}

/// Rows of a measurement that share one time. Their room stays when they are removed, so that the next ones need none.
#[derive(Debug, Clone)]
pub struct Rows {
    spec: &'static MeasurementSpec,
    measurement: Name,
    frame: Frame,
}

impl Rows {
    /// No rows of a built-in measurement.
    #[must_use]
    pub fn new(spec: &'static MeasurementSpec) -> Self {
        let tags = spec.tags.iter().map(|tag| (name(tag.name), Texts::default())).collect();
        let fields = spec.fields.iter().map(|field| (name(field.name), Values::none_of(field.field_type))).collect();
        Self { spec, measurement: name(spec.name), frame: Frame { tags, fields, rows: 0 } }
    }

    /// What the rows are of.
    #[must_use]
    pub fn measurement(&self) -> &Name {
        &self.measurement
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frame.rows()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frame.rows() == 0
    }

    /// The rows, column by column.
    #[must_use]
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Adds a row. Tag values longer than the contract allows are cut.
    ///
    /// # Panics
    /// When the tags or fields are not those of the catalog, in its order and of its types.
    pub fn push(&mut self, tags: &[(&str, &str)], fields: &[(&str, Value<'_>)]) {
        let expected = (self.spec.tags.len(), self.spec.fields.len());
        assert_eq!((tags.len(), fields.len()), expected, "tags and fields of `{}`", self.spec.name);
        for ((name, texts), (given, value)) in self.frame.tags.iter_mut().zip(tags) {
            assert_eq!(&**name, *given, "a tag of `{}`", self.spec.name);
            texts.push(cut(value));
        }
        for ((name, values), (given, value)) in self.frame.fields.iter_mut().zip(fields) {
            assert_eq!(&**name, *given, "a field of `{}`", self.spec.name);
            match (values, *value) {
                (Values::Float(values), Value::Float(value)) => values.push(value.filter(|v| v.is_finite())),
                (Values::Integer(values), Value::Integer(value)) => values.push(value),
                (Values::Bool(values), Value::Bool(value)) => values.push(value),
                (Values::Text { texts, there }, Value::Text(value)) => {
                    texts.push(value.map_or("", cut));
                    there.push(value.is_some());
                }
                (_, value) => panic!("`{name}` of `{}` is of another type than {value:?}", self.spec.name),
            }
        }
        self.frame.rows += 1;
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.frame.clear();
    }

    /// Takes the rows out as the columns of a batch, leaving none.
    pub fn take(&mut self) -> Columns {
        let columns = self.frame.to_columns();
        self.clear();
        columns
    }
}

/// The rows that one reading of a collector yields: one table for each of its measurements.
#[derive(Debug, Clone)]
pub struct Tables(Vec<Rows>);

impl Tables {
    /// No rows of the measurements.
    #[must_use]
    pub fn new(specs: impl IntoIterator<Item = &'static MeasurementSpec>) -> Self {
        Self(specs.into_iter().map(Rows::new).collect())
    }

    /// The rows of a collector's only measurement.
    ///
    /// # Panics
    /// When the collector has none or several.
    pub fn only(&mut self) -> &mut Rows {
        assert_eq!(self.0.len(), 1, "measurements of the collector");
        &mut self.0[0]
    }

    /// The rows of one of a collector's measurements.
    ///
    /// # Panics
    /// When it is not one of the collector's.
    pub fn of(&mut self, measurement: &str) -> &mut Rows {
        self.0.iter_mut().find(|rows| rows.spec.name == measurement).expect("one of the collector's measurements")
    }

    /// The rows of each measurement.
    pub fn iter(&self) -> impl Iterator<Item = &Rows> {
        self.0.iter()
    }

    /// Removes the rows of every measurement.
    pub fn clear(&mut self) {
        self.0.iter_mut().for_each(Rows::clear);
    }

    /// The rows of each measurement.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Rows> {
        self.0.iter_mut()
    }
}

/// The columns of a batch, all of one length.
#[derive(Debug, Clone, PartialEq)]
pub struct Columns {
    /// A value a row for each tag.
    pub tags: BTreeMap<Name, Vec<String>>,
    /// A value or nil a row for each field.
    pub fields: BTreeMap<Name, Column>,
}

fn name(text: &'static str) -> Name {
    Name::parse(text).expect("the catalog's names are valid, as its own test proves")
}

/// The start of a text, no longer than a tag may be.
pub(crate) fn cut(text: &str) -> &str {
    let longest = text.len().min(MAX_TAG_BYTES);
    let end = (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::catalog;

    use super::*;

    fn temperature() -> Rows {
        Rows::new(catalog::measurement("temperature").unwrap())
    }

    #[test]
    fn rows_become_columns_and_leave_nothing_behind() {
        let mut rows = temperature();
        let fields = |celsius: f64| [("temperature_celsius", celsius.into()), ("critical_celsius", None::<f64>.into())];
        rows.push(&[("sensor", "a")], &fields(40.5));
        rows.push(&[("sensor", "b")], &fields(f64::NAN));
        assert_eq!(rows.len(), 2);
        let columns = rows.take();
        assert!(rows.is_empty());
        assert_eq!(columns.tags["sensor"], ["a", "b"]);
        assert_eq!(columns.fields["temperature_celsius"], Column::Float(vec![Some(40.5), None]));
        assert_eq!(rows.take().fields["critical_celsius"].len(), 0);
    }

    #[test]
    #[should_panic(expected = "a field of `temperature`")]
    fn a_field_unknown_to_the_catalog_is_a_fault_of_the_collector() {
        temperature().push(&[("sensor", "a")], &[("celsius", 1.0.into()), ("critical_celsius", 1.0.into())]);
    }

    #[test]
    fn long_tag_values_are_cut_at_a_character() {
        let long = "ä".repeat(MAX_TAG_BYTES);
        assert_eq!(cut(&long).len(), MAX_TAG_BYTES);
        let odd = format!("x{long}");
        assert_eq!(cut(&odd).len(), MAX_TAG_BYTES - 1);
    }

    #[test]
    fn percent_of_nothing_is_none() {
        assert_eq!(percent(1, 0), None);
        assert_eq!(percent(1, 4), Some(25.0));
        assert_eq!(percent(5, 4), Some(100.0));
    }
}
