//! Influx line protocol, chunk by chunk.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use plimsoll_agent::custom::{
    influx::{Precision, parse_line_in},
    points::{FieldValue, Point},
};
use plimsoll_lake::{
    import::{ImportError, ImportOptions, Importer, Stored},
    schema::{LakeSchema, MAX_AGE, MAX_AHEAD, Role},
};
use plimsoll_nats::{
    Batch, Column, HostId, Name,
    batch::{FieldType, MAX_TAG_BYTES, MAX_TEXT_BYTES},
    spelling,
};
use ulid::Ulid;

use super::{RunError, progress::Progress};
use crate::stop::Stop;

/// Longest line.
const MAX_LINE_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes of lines that are stored at a time at most.
const MAX_CHUNK_BYTES: usize = 64 * 1024 * 1024;
/// Bad lines that are told one by one.
const BAD_LINES_TOLD: u64 = 100;
/// The tag that names the host.
const HOST_TAG: &str = "host";

/// A file of lines, and how to read it.
#[derive(Debug)]
pub struct LineSource {
    /// The file; `-` is the standard input.
    pub path: PathBuf,
    /// The unit of the times.
    pub precision: Precision,
    /// Where the rows go.
    pub names: Names,
    /// What times are taken.
    pub options: ImportOptions,
}

/// Where rows go whatever their lines say, and where those go that say nothing.
#[derive(Debug, Clone)]
pub struct Names {
    /// The measurement of all rows.
    pub measurement: Option<Name>,
    /// New names of measurements.
    pub rename: HashMap<String, Name>,
    /// The host of rows that name none.
    pub host: Option<HostId>,
}

/// Imports a file, or until `stop`. What is stored is added to `total`.
pub fn import(
    importer: &mut Importer,
    source: LineSource,
    skip_bad: bool,
    chunk_rows: u64,
    total: &mut Stored,
    stop: &Stop,
) -> Result<(), RunError> {
    let progress = Progress::begin(&source.path, &"the lake");
    let unreadable = |error| RunError::Read { file: source.path.clone(), source: error };
    let mut input = open(&source.path, &progress).map_err(unreadable)?;
    let schema = importer.schema()?;
    let mut rows = Rows::new(source.names.clone(), source.options, &schema);
    let (mut line, mut number, mut bytes, mut bad) = (Vec::new(), 0, 0, 0);
    loop {
        line.clear();
        let read = (&mut input).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).map_err(unreadable)?;
        number += 1;
        bytes += read;
        let problem = if read as u64 == MAX_LINE_BYTES {
            Some(format!("expected a line of less than {MAX_LINE_BYTES} bytes"))
        } else {
            rows.add(&line, source.precision).err()
        };
        if let Some(problem) = problem {
            let error = ImportError::BadLine { file: source.path.clone(), line: number, problem };
            if !skip_bad {
                return Err(error.into());
            }
            bad += 1;
            if bad <= BAD_LINES_TOLD
                && let ImportError::BadLine { line, problem, .. } = &error
            {
                progress.left_out(&source.path, &format!("line {line}: {problem}"));
            }
        }
        if read == 0 || rows.points >= chunk_rows || bytes >= MAX_CHUNK_BYTES {
            total.add(&Stored { read: bad, bad, ..Stored::default() });
            (bytes, bad) = (0, 0);
            let batches = rows.take();
            if !batches.is_empty() {
                total.add(&importer.store_batches(&batches)?);
            }
        }
        if stop.is_asked() {
            return Err(RunError::Interrupted);
        }
        if read == 0 {
            return Ok(());
        }
    }
}

fn open(path: &Path, progress: &Progress) -> io::Result<Box<dyn BufRead>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(path)?;
    progress.bytes(file.metadata()?.len());
    let file = progress.reading(file);
    Ok(match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(file))),
        Some("zst") => Box::new(BufReader::new(zstd::Decoder::new(file)?)),
        _ => Box::new(BufReader::new(file)),
    })
}

/// The rows of a chunk, and the names and types of all so far.
struct Rows {
    names: Names,
    options: ImportOptions,
    /// The measurement of each spelling.
    measurements: HashMap<String, Name>,
    tables: HashMap<Name, Table>,
    groups: HashMap<(Name, HostId, Vec<Name>), Group>,
    points: u64,
}

/// The columns of a measurement so far.
#[derive(Default)]
struct Table {
    columns: HashMap<Name, (Role, FieldType)>,
    /// The name of each spelling, and the spelling of each name.
    names: HashMap<String, Name>,
    spelled: HashMap<Name, String>,
}

/// Rows that make a batch: of one host and the same tags.
#[derive(Default)]
struct Group {
    times: Vec<i64>,
    tags: Vec<Vec<String>>,
    fields: BTreeMap<Name, Vec<Option<FieldValue<'static>>>>,
}

impl Rows {
    fn new(names: Names, options: ImportOptions, schema: &LakeSchema) -> Self {
        let tables = schema.tables().map(|(name, table)| {
            let columns = table.columns().map(|(name, column)| (name.clone(), (column.role, column.column_type)));
            (name.clone(), Table { columns: columns.collect(), ..Table::default() })
        });
        let tables = tables.collect();
        Self { names, options, measurements: HashMap::new(), tables, groups: HashMap::new(), points: 0 }
    }

    /// Adds a line. Fails with what was expected where.
    fn add(&mut self, line: &[u8], precision: Precision) -> Result<(), String> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line));
        let line = line.map_err(|_| "expected text in UTF-8".to_owned())?;
        let parsed = parse_line_in(precision, line).map_err(|unexpected| {
            let place = unexpected.in_line(0, line);
            format!("column {}: expected {}", place.column, place.expected)
        })?;
        let Some(mut point) = parsed else { return Ok(()) };
        let time = self.time(point.time_ms)?;
        let host = self.host(&mut point)?;
        let measurement = self.measurement(&point.measurement)?;
        point.tags.retain(|(_, value)| !value.is_empty());
        let table = self.tables.entry(measurement.clone()).or_default();
        let (tags, fields) = table.settle(point)?;
        let (tag_names, tag_values): (Vec<Name>, Vec<String>) = tags.into_iter().unzip();
        self.groups.entry((measurement, host, tag_names)).or_default().add(time, tag_values, fields);
        self.points += 1;
        Ok(())
    }

    fn time(&self, time_ms: Option<i64>) -> Result<i64, String> {
        let time_ms = time_ms.ok_or("expected a time at the end of the line")?;
        let millis = |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        if time_ms > self.options.now_ms.saturating_add(millis(MAX_AHEAD)) {
            return Err("expected a time of at most ten minutes ahead: see --precision".to_owned());
        }
        if !self.options.allow_old && time_ms < self.options.now_ms.saturating_sub(millis(MAX_AGE)) {
            return Err("expected a time of the last two years, or --allow-old: see --precision".to_owned());
        }
        Ok(time_ms)
    }

    fn host(&self, point: &mut Point<'_>) -> Result<HostId, String> {
        let tag = point.tags.iter().position(|(name, value)| name == HOST_TAG && !value.is_empty());
        match (tag, &self.names.host) {
            (Some(index), _) => Ok(HostId::from_host_name(&point.tags.remove(index).1)),
            (None, Some(host)) => Ok(host.clone()),
            (None, None) => Err("expected a tag `host`, or --host for lines without one".to_owned()),
        }
    }

    fn measurement(&mut self, spelled: &str) -> Result<Name, String> {
        if let Some(measurement) = self.names.measurement.as_ref().or_else(|| self.names.rename.get(spelled)) {
            return Ok(measurement.clone());
        }
        if let Some(name) = self.measurements.get(spelled) {
            return Ok(name.clone());
        }
        let mut name = spelling::normalise(spelled);
        if plimsoll_nats::catalog::measurement(&name).is_some() {
            name = spelling::normalise(&format!("{}{name}", spelling::EXPORTED));
        }
        if let Some(why) = spelling::measurement_problem(&name) {
            return Err(format!("`{name}` is {why}: give it another with --rename '{spelled}=NAME'"));
        }
        self.measurements.insert(spelled.to_owned(), name.clone());
        Ok(name)
    }

    /// What was gathered, as batches.
    fn take(&mut self) -> Vec<Batch> {
        self.points = 0;
        let groups = std::mem::take(&mut self.groups);
        groups.into_iter().map(|((measurement, host, tags), group)| group.batch(measurement, host, tags)).collect()
    }
}

type Settled = (Vec<(Name, String)>, Vec<(Name, FieldValue<'static>)>);

impl Table {
    /// Gives a point's tags and fields their names, the tags in the order of these. Changes nothing where the point does not fit.
    fn settle(&mut self, point: Point<'_>) -> Result<Settled, String> {
        let mut tags = Vec::new();
        for (spelled, value) in point.tags {
            if value.len() > MAX_TAG_BYTES {
                return Err(format!("expected a tag `{spelled}` of at most {MAX_TAG_BYTES} bytes"));
            }
            let name = self.name(&spelled);
            self.check(&name, Role::Tag, FieldType::Text)?;
            if tags.iter().any(|(known, _)| *known == name) {
                return Err(format!("expected the tag `{spelled}` once"));
            }
            tags.push((name, value.into_owned()));
        }
        tags.sort();
        let mut fields = Vec::new();
        for (spelled, value) in point.fields {
            let (value, field_type) = match value {
                FieldValue::Float(value) if !value.is_finite() => {
                    return Err(format!("expected a finite number of the field `{spelled}`"));
                }
                FieldValue::Text(text) if text.len() > MAX_TEXT_BYTES => {
                    return Err(format!("expected a text `{spelled}` of at most {MAX_TEXT_BYTES} bytes"));
                }
                FieldValue::Text(text) => (FieldValue::Text(Cow::Owned(text.into_owned())), FieldType::Text),
                FieldValue::Float(value) => (FieldValue::Float(value), FieldType::Float),
                FieldValue::Integer(value) => (FieldValue::Integer(value), FieldType::Integer),
                FieldValue::Bool(value) => (FieldValue::Bool(value), FieldType::Bool),
            };
            let name = self.name(&spelled);
            self.check(&name, Role::Field, field_type)?;
            fields.push((name, value, field_type));
        }
        for (tag, _) in &tags {
            self.columns.entry(tag.clone()).or_insert((Role::Tag, FieldType::Text));
        }
        for (name, _, field_type) in &fields {
            let column = self.columns.entry(name.clone()).or_insert((Role::Field, *field_type));
            if *field_type == FieldType::Float {
                column.1 = FieldType::Float;
            }
        }
        Ok((tags, fields.into_iter().map(|(name, value, _)| (name, value)).collect()))
    }

    fn check(&self, name: &Name, role: Role, found: FieldType) -> Result<(), String> {
        const NUMBERS: [FieldType; 2] = [FieldType::Integer, FieldType::Float];
        match self.columns.get(name) {
            Some((Role::Field, _)) if role == Role::Tag => Err(format!("expected `{name}` as a field, as before")),
            Some((Role::Tag, _)) if role == Role::Field => Err(format!("expected `{name}` as a tag, as before")),
            Some((Role::Field, stored))
                if *stored != found && !(NUMBERS.contains(stored) && NUMBERS.contains(&found)) =>
            {
                Err(format!("expected a value of type {stored} for the field `{name}`, as before, found {found}"))
            }
            _ => Ok(()),
        }
    }

    /// The name of a spelling: another one's name gets a checksum.
    fn name(&mut self, spelled: &str) -> Name {
        if let Some(name) = self.names.get(spelled) {
            return name.clone();
        }
        let usual = spelling::column(spelled);
        let name = match self.spelled.entry(usual.clone()) {
            Entry::Occupied(_) => spelling::distinct(spelled),
            Entry::Vacant(vacant) => {
                vacant.insert(spelled.to_owned());
                usual
            }
        };
        self.names.insert(spelled.to_owned(), name.clone());
        name
    }
}

impl Group {
    fn add(&mut self, time: i64, tags: Vec<String>, fields: Vec<(Name, FieldValue<'static>)>) {
        let row = self.times.len();
        self.times.push(time);
        self.tags.resize_with(tags.len(), Vec::new);
        self.tags.iter_mut().zip(tags).for_each(|(values, value)| values.push(value));
        for (name, value) in fields {
            let values = self.fields.entry(name).or_default();
            values.resize(row, None);
            values.push(Some(value));
        }
    }

    fn batch(self, measurement: Name, host: HostId, tags: Vec<Name>) -> Batch {
        let rows = self.times.len();
        let fields = self.fields.into_iter().map(|(name, mut values)| {
            values.resize(rows, None);
            (name, column(values))
        });
        Batch {
            host,
            measurement,
            epoch: Ulid::nil(),
            seq: 1,
            times: self.times,
            tags: tags.into_iter().zip(self.tags).collect(),
            fields: fields.collect(),
        }
    }
}

/// The values of a field as a column: integers among floats are floats, and nothing else is mixed.
fn column(values: Vec<Option<FieldValue<'static>>>) -> Column {
    let has_float = values.iter().flatten().any(|value| matches!(value, FieldValue::Float(_)));
    let first = values.iter().flatten().next();
    match first {
        Some(FieldValue::Integer(_)) if !has_float => Column::Integer(each(values, |value| match value {
            FieldValue::Integer(value) => Some(value),
            _ => None,
        })),
        Some(FieldValue::Bool(_)) => Column::Bool(each(values, |value| match value {
            FieldValue::Bool(value) => Some(value),
            _ => None,
        })),
        Some(FieldValue::Text(_)) => Column::Text(each(values, |value| match value {
            FieldValue::Text(text) => Some(text.into_owned()),
            _ => None,
        })),
        _ => Column::Float(each(values, |value| match value {
            FieldValue::Float(value) => Some(value),
            FieldValue::Integer(value) => Some(value as f64),
            _ => None,
        })),
    }
}

fn each<T>(values: Vec<Option<FieldValue<'static>>>, of: impl Fn(FieldValue<'static>) -> Option<T>) -> Vec<Option<T>> {
    values.into_iter().map(|value| value.and_then(&of)).collect()
}
