//! Points of custom sources, and how they become the rows and columns of batches.
//!
//! A batch holds points of one measurement, one time and one set of tag names: a series has the same tags in each batch, whichever
//! others it is sent with, and no row has columns that only others fill.

mod group;

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    fmt::Write as _,
    sync::Arc,
    time::Duration,
};

use plimsoll_nats::{Name, batch::MAX_COLUMNS, spelling};

use self::group::Group;
use super::{
    notes::{Refusal, SourceNotes},
    schema::{Role, Schema},
};
use crate::{outlet::Outlet, rows::Columns};

/// Most measurements of one source in a run of the agent.
pub const MAX_MEASUREMENTS: usize = 64;
/// Most rows that a source hands over at once.
pub const MAX_ROWS: usize = 10_000;
/// Most batches that a source hands over at once: times, measurements and sets of tag names.
pub const MAX_BATCHES: usize = 1_000;
/// Most memory that what a source hands over at once takes, in bytes and roughly.
pub const MAX_WEIGHT: usize = 16 * 1024 * 1024;
/// How far a point's own time may be ahead, as in the lake.
pub const MAX_AHEAD: Duration = Duration::from_secs(10 * 60);
/// How old a point's own time may be: what the lake takes, less a day that it may be on its way.
pub const MAX_AGE: Duration = Duration::from_secs((2 * 366 - 1) * 24 * 3600);

/// Name and value of a tag.
pub type Tag<'a> = (Cow<'a, str>, Cow<'a, str>);
/// Name and value of a field.
pub type Field<'a> = (Cow<'a, str>, FieldValue<'a>);

/// A value of a field.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldValue<'a> {
    /// 64-bit floating point; what is not finite is no value.
    Float(f64),
    /// 64-bit signed integer.
    Integer(i64),
    /// True or false.
    Bool(bool),
    /// Text; what is longer than a tag may be is cut.
    Text(Cow<'a, str>),
}

/// Values of one series at one time, in its source's own names.
#[derive(Debug, Clone, PartialEq)]
pub struct Point<'a> {
    /// What was measured.
    pub measurement: Cow<'a, str>,
    /// Names and values of the tags. An empty value is the same as no such tag.
    pub tags: Vec<Tag<'a>>,
    /// Names and values of the fields.
    pub fields: Vec<Field<'a>>,
    /// Unix time in ms; none where the source tells none.
    pub time_ms: Option<i64>,
}

/// Gathers the points of one source until they are sent, within the limits of a source.
#[derive(Debug)]
pub struct Gatherer {
    schema: Schema,
    notes: Arc<SourceNotes>,
    measurements: HashSet<Name>,
    groups: Vec<Group>,
    by_key: HashMap<String, usize>,
    key: String,
    rows: usize,
    weight: usize,
}

impl Gatherer {
    /// Gathers nothing yet. What is refused is told to `notes`.
    #[must_use]
    pub fn new(schema: Schema, notes: Arc<SourceNotes>) -> Self {
        Self {
            schema,
            notes,
            measurements: HashSet::new(),
            groups: Vec::new(),
            by_key: HashMap::new(),
            key: String::new(),
            rows: 0,
            weight: 0,
        }
    }

    /// Who is told what is refused.
    #[must_use]
    pub fn notes(&self) -> &Arc<SourceNotes> {
        &self.notes
    }

    /// Adds a point, at `tick_ms` where it tells no time of its own. A point that can't be sent is counted and left out.
    ///
    /// Points of one series and time become one row, unless both tell the same field.
    pub fn add(&mut self, mut point: Point<'_>, tick_ms: i64) {
        point.fields.retain(|(_, value)| !matches!(value, FieldValue::Float(value) if !value.is_finite()));
        point.tags.retain(|(_, value)| !value.is_empty());
        point.tags.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let values = point.fields.len() as u64;
        if values == 0 {
            return;
        }
        match self.place(&point, tick_ms) {
            Ok(group) => {
                let added = self.groups[group].add(&point, &mut self.key);
                self.rows += added.rows;
                self.weight += added.weight;
                if added.refused > 0 {
                    let detail = || format!("{}: at most {MAX_COLUMNS} are allowed", describe(&point.measurement));
                    self.notes.refuse(Refusal::Columns, added.refused, detail);
                }
            }
            Err((refusal, detail)) => self.notes.refuse(refusal, values, || detail),
        }
    }

    /// The group that a point belongs to, made where it is missing; else why the point is refused.
    fn place(&mut self, point: &Point<'_>, tick_ms: i64) -> Result<usize, (Refusal, String)> {
        let time_ms = point.time_ms.unwrap_or(tick_ms);
        let lead_ms = time_ms.saturating_sub(tick_ms);
        if lead_ms > millis(MAX_AHEAD) || lead_ms < -millis(MAX_AGE) {
            let detail = format!("{}: its time is off by {} s", describe(&point.measurement), lead_ms / 1000);
            return Err((Refusal::Time, detail));
        }
        if let Some(pair) = point.tags.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let (measurement, tag) = (describe(&point.measurement), describe(&pair[0].0));
            return Err((Refusal::Malformed, format!("{measurement}: the tag {tag} is there twice")));
        }
        if self.rows >= MAX_ROWS || self.weight >= MAX_WEIGHT {
            let detail = format!("at most {MAX_ROWS} rows and {MAX_WEIGHT} bytes are taken at a time");
            return Err((Refusal::Size, detail));
        }
        self.key.clear();
        let names = point.tags.iter().map(|(name, _)| name);
        for part in std::iter::once(&point.measurement).chain(names) {
            write_part(&mut self.key, part);
        }
        let _ = write!(self.key, "{time_ms}");
        if let Some(group) = self.by_key.get(&self.key) {
            return Ok(*group);
        }
        if self.groups.len() >= MAX_BATCHES {
            let detail = format!("at most {MAX_BATCHES} times and sets of tags are taken at a time");
            return Err((Refusal::Size, detail));
        }
        self.by_key.insert(self.key.clone(), self.groups.len());
        self.weight += self.key.len();
        self.groups.push(Group::new(point, time_ms));
        Ok(self.groups.len() - 1)
    }

    /// Sends what was gathered, and begins anew. Returns how many values were sent.
    pub fn send(&mut self, outlet: &Outlet) -> u64 {
        self.by_key.clear();
        (self.rows, self.weight) = (0, 0);
        let mut sent = 0;
        for group in std::mem::take(&mut self.groups) {
            let time_ms = group.time_ms();
            if let Some(shaped) = self.shape(group) {
                sent += shaped.values;
                outlet.push(&shaped.measurement, time_ms, shaped.rows, shaped.columns);
            }
        }
        self.notes.sent(sent);
        sent
    }

    /// Gives a group its names and types; none when nothing of it can be sent.
    fn shape(&mut self, group: Group) -> Option<Shaped> {
        let measurement = match self.admit(group.measurement()) {
            Ok(measurement) => measurement,
            Err((refusal, detail)) => {
                self.notes.refuse(refusal, group.values(), || detail);
                return None;
            }
        };
        let column = |spelled: &str, role: Role| self.schema.column(&measurement, spelled, role);
        let refuse = |refusal: Refusal, count: u64, spelled: &str| {
            let detail = || format!("{} of {measurement}", describe(spelled));
            self.notes.refuse(refusal, count, detail);
        };
        let (columns, rows, values) = group.into_columns(column, refuse)?;
        Some(Shaped { measurement, columns, rows, values })
    }

    /// The measurement's name, where this source may send it.
    fn admit(&mut self, spelled: &str) -> Result<Name, (Refusal, String)> {
        let name = spelling::normalise(spelled);
        if let Some(why) = spelling::measurement_problem(&name) {
            return Err((Refusal::Measurement, format!("`{name}` is {why}")));
        }
        if !self.measurements.contains(&name) {
            if self.measurements.len() >= MAX_MEASUREMENTS {
                return Err((Refusal::Measurements, format!("`{name}` would be one more than {MAX_MEASUREMENTS}")));
            }
            self.measurements.insert(name.clone());
        }
        Ok(name)
    }
}

struct Shaped {
    measurement: Name,
    columns: Columns,
    rows: usize,
    values: u64,
}

/// The start of a name that may be anything, fit for a log.
fn describe(spelled: &str) -> String {
    const SHOWN: usize = 80;
    let shown: String = spelled.chars().take(SHOWN).flat_map(char::escape_default).collect();
    let more = if spelled.chars().nth(SHOWN).is_some() { "…" } else { "" };
    format!("`{shown}{more}`")
}

/// Adds a text to a key so that no two lists of texts make the same key.
fn write_part(key: &mut String, part: &str) {
    let _ = write!(key, "{}:{part}", part.len());
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).expect("the limits are a few years at most")
}

#[cfg(test)]
mod tests;
