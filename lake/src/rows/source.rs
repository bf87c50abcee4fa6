//! Hands rows to DuckDB: a table function that yields them.
//!
//! The rows are found by a number that stands in the statement, since a statement can't carry them. They are laid out as Arrow
//! arrays a vector at a time, which DuckDB copies while they are in the processor's cache.

use std::{
    collections::BTreeMap,
    error::Error,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use duckdb::{
    Connection,
    arrow::{
        array::{
            ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringBuilder, TimestampMillisecondArray,
        },
        datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
        error::ArrowError,
    },
    core::{DataChunkHandle, LogicalTypeHandle, LogicalTypeId},
    vtab::{BindInfo, InitInfo, TableFunctionInfo, VTab, record_batch_to_duckdb_data_chunk, to_duckdb_logical_type},
};
use plimsoll_nats::batch::FieldType;

use super::{
    TableRows,
    column::{RowColumn, Values},
};
use crate::{
    LakeError,
    error::Context,
    schema::{Role, TableSchema},
};

/// The table function's name.
const FUNCTION: &str = "plimsoll_rows";
/// Rows that DuckDB takes at a time.
const VECTOR_ROWS: usize = 2048;

/// What statements may read now, by number.
static OFFERED: Mutex<BTreeMap<u64, Arc<Offer>>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Makes the table function known to a DuckDB.
pub(crate) fn register(connection: &Connection) -> Result<(), LakeError> {
    connection.register_table_function::<RowsFunction>(FUNCTION).context("register a table function")
}

/// Rows of one measurement that statements can read as long as this lives.
#[derive(Debug)]
pub(crate) struct RowSource {
    number: u64,
    rows: usize,
}

impl RowSource {
    /// Offers the rows of these ranges, with every column of their table.
    pub(crate) fn offer(rows: &Arc<TableRows>, table: &TableSchema, kept: impl Iterator<Item = Range<usize>>) -> Self {
        let offer = Offer::new(rows, table, kept);
        let (number, rows) = (NEXT.fetch_add(1, Ordering::Relaxed), offer.kept.len());
        offered().insert(number, Arc::new(offer));
        Self { number, rows }
    }

    /// How many rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The SQL of the rows, to stand after `FROM`.
    pub(crate) fn relation(&self) -> String {
        format!("{FUNCTION}({}::UBIGINT)", self.number)
    }
}

impl Drop for RowSource {
    fn drop(&mut self) {
        offered().remove(&self.number);
    }
}

fn offered() -> std::sync::MutexGuard<'static, BTreeMap<u64, Arc<Offer>>> {
    OFFERED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Rows of a measurement, as columns of its table.
#[derive(Debug)]
struct Offer {
    rows: Arc<TableRows>,
    kept: Vec<u32>,
    schema: SchemaRef,
    columns: Vec<Selected>,
}

/// A column of the table and those of the rows that fit it.
#[derive(Debug)]
struct Selected {
    role: Role,
    column_type: FieldType,
    from: Vec<usize>,
}

impl Offer {
    fn new(rows: &Arc<TableRows>, table: &TableSchema, kept: impl Iterator<Item = Range<usize>>) -> Self {
        let mut fields = vec![
            Field::new("ts", DataType::Timestamp(TimeUnit::Millisecond, None), false),
            Field::new("host", DataType::Utf8, false),
        ];
        let mut columns = Vec::new();
        for (name, column) in table.columns() {
            let (role, column_type) = (column.role, column.column_type);
            let data_type = match column_type {
                FieldType::Float => DataType::Float64,
                FieldType::Integer => DataType::Int64,
                FieldType::Bool => DataType::Boolean,
                FieldType::Text => DataType::Utf8,
            };
            fields.push(Field::new(&**name, data_type, true));
            let fits = |column: &RowColumn| {
                let widened = column.field_type == FieldType::Integer && column_type == FieldType::Float;
                column.role == role && (column.field_type == column_type || widened)
            };
            let named = rows.by_name.get(name).into_iter().flatten().copied();
            columns.push(Selected {
                role,
                column_type,
                from: named.filter(|index| fits(&rows.columns[*index])).collect(),
            });
        }
        let position = |row| u32::try_from(row).expect("a set has far fewer rows than 4 billion");
        let kept = kept.flatten().map(position).collect();
        Self { rows: Arc::clone(rows), kept, schema: Arc::new(Schema::new(fields)), columns }
    }

    /// Some of the rows.
    fn batch(&self, places: Range<usize>) -> Result<RecordBatch, ArrowError> {
        let (rows, kept) = (&*self.rows, &self.kept[places]);
        let times = kept.iter().map(|row| rows.times[*row as usize]);
        let mut arrays: Vec<ArrayRef> = vec![
            Arc::new(TimestampMillisecondArray::from_iter_values(times)),
            texts(kept, |row| Some(rows.hosts.get(row as usize))),
        ];
        for column in &self.columns {
            let from: Vec<&RowColumn> = column.from.iter().map(|index| &rows.columns[*index]).collect();
            arrays.push(array(column, &from, kept, rows.times.len()));
        }
        RecordBatch::try_new(Arc::clone(&self.schema), arrays)
    }
}

fn array(column: &Selected, from: &[&RowColumn], kept: &[u32], rows: usize) -> ArrayRef {
    match (column.role, column.column_type) {
        (Role::Field, FieldType::Float) => match whole(from, rows) {
            Some(Values::Floats(values, _)) => {
                Arc::new(Float64Array::from_iter_values(kept.iter().map(|row| values[*row as usize])))
            }
            _ => Arc::new(kept.iter().map(|row| find(from, *row, float)).collect::<Float64Array>()),
        },
        (Role::Field, FieldType::Integer) => match whole(from, rows) {
            Some(Values::Integers(values, _)) => {
                Arc::new(Int64Array::from_iter_values(kept.iter().map(|row| values[*row as usize])))
            }
            _ => Arc::new(kept.iter().map(|row| find(from, *row, integer)).collect::<Int64Array>()),
        },
        (Role::Field, FieldType::Bool) => {
            Arc::new(kept.iter().map(|row| find(from, *row, bool)).collect::<BooleanArray>())
        }
        (Role::Tag, _) | (Role::Field, FieldType::Text) => texts(kept, |row| find(from, row, text)),
    }
}

/// The values of a column, where there is one only and each row lies at its own place.
fn whole<'r>(from: &[&'r RowColumn], rows: usize) -> Option<&'r Values> {
    if let [only] = from { only.is_whole(rows).then_some(&only.values) } else { None }
}

fn texts<'r>(kept: &[u32], text: impl Fn(u32) -> Option<&'r str>) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(kept.len(), 16 * kept.len());
    kept.iter().for_each(|row| builder.append_option(text(*row)));
    Arc::new(builder.finish())
}

/// The value of a row in the one of the columns that has it.
fn find<'r, T>(from: &[&'r RowColumn], row: u32, value: fn(&'r Values, usize) -> Option<T>) -> Option<T> {
    from.iter().find_map(|column| value(&column.values, column.at(row)?))
}

fn float(values: &Values, at: usize) -> Option<f64> {
    match values {
        Values::Floats(values, valid) => valid.is(at).then(|| values[at]),
        values => integer(values, at).map(|value| value as f64),
    }
}

fn integer(values: &Values, at: usize) -> Option<i64> {
    if let Values::Integers(values, valid) = values { valid.is(at).then(|| values[at]) } else { None }
}

fn bool(values: &Values, at: usize) -> Option<bool> {
    if let Values::Bools(values, valid) = values { valid.is(at).then(|| values[at]) } else { None }
}

fn text(values: &Values, at: usize) -> Option<&str> {
    match values {
        Values::Tags(tags) => Some(tags.get(at)),
        Values::Texts(texts, valid) => valid.is(at).then(|| texts.get(at)),
        _ => None,
    }
}

struct RowsFunction;

impl VTab for RowsFunction {
    type BindData = Arc<Offer>;
    type InitData = AtomicUsize;

    fn bind(bind: &BindInfo) -> Result<Self::BindData, Box<dyn Error>> {
        let number = bind.get_parameter(0).to_uint64();
        let offer = offered().get(&number).cloned().ok_or("the rows are not offered any more")?;
        for field in offer.schema.fields() {
            bind.add_result_column(field.name(), to_duckdb_logical_type(field.data_type())?);
        }
        bind.set_cardinality(offer.kept.len() as u64, true);
        Ok(offer)
    }

    fn init(_: &InitInfo) -> Result<Self::InitData, Box<dyn Error>> {
        Ok(AtomicUsize::new(0))
    }

    fn func(function: &TableFunctionInfo<Self>, output: &mut DataChunkHandle) -> Result<(), Box<dyn Error>> {
        let offer = function.get_bind_data();
        let from = function.get_init_data().fetch_add(VECTOR_ROWS, Ordering::Relaxed).min(offer.kept.len());
        let to = (from + VECTOR_ROWS).min(offer.kept.len());
        if from == to {
            output.set_len(0);
            return Ok(());
        }
        record_batch_to_duckdb_data_chunk(&offer.batch(from..to)?, output)
    }

    fn parameters() -> Option<Vec<LogicalTypeHandle>> {
        Some(vec![LogicalTypeHandle::from(LogicalTypeId::UBigint)])
    }
}
