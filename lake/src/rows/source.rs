//! Hands rows to DuckDB: a table function that yields them in the order of host, tags and time.
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
static OFFERED: Mutex<BTreeMap<u64, Arc<Ordered>>> = Mutex::new(BTreeMap::new());
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
        let ordered = Ordered::new(rows, table, kept);
        let (number, rows) = (NEXT.fetch_add(1, Ordering::Relaxed), ordered.order.len());
        offered().insert(number, Arc::new(ordered));
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

fn offered() -> std::sync::MutexGuard<'static, BTreeMap<u64, Arc<Ordered>>> {
    OFFERED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Rows in an order, as columns of a table.
#[derive(Debug)]
struct Ordered {
    rows: Arc<TableRows>,
    order: Vec<u32>,
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

impl Ordered {
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
        let order = order(rows, table, kept);
        Self { rows: Arc::clone(rows), order, schema: Arc::new(Schema::new(fields)), columns }
    }

    /// The rows of these places in the order.
    fn batch(&self, places: Range<usize>) -> Result<RecordBatch, ArrowError> {
        let (rows, order) = (&*self.rows, &self.order[places]);
        let times = order.iter().map(|row| rows.times[*row as usize]);
        let mut arrays: Vec<ArrayRef> = vec![
            Arc::new(TimestampMillisecondArray::from_iter_values(times)),
            texts(order, |row| Some(rows.hosts.get(row as usize))),
        ];
        for column in &self.columns {
            let from: Vec<&RowColumn> = column.from.iter().map(|index| &rows.columns[*index]).collect();
            arrays.push(array(column, &from, order, rows.times.len()));
        }
        RecordBatch::try_new(Arc::clone(&self.schema), arrays)
    }
}

fn array(column: &Selected, from: &[&RowColumn], order: &[u32], rows: usize) -> ArrayRef {
    match (column.role, column.column_type) {
        (Role::Field, FieldType::Float) => match whole(from, rows) {
            Some(Values::Floats(values, _)) => {
                Arc::new(Float64Array::from_iter_values(order.iter().map(|row| values[*row as usize])))
            }
            _ => Arc::new(order.iter().map(|row| find(from, *row, float)).collect::<Float64Array>()),
        },
        (Role::Field, FieldType::Integer) => match whole(from, rows) {
            Some(Values::Integers(values, _)) => {
                Arc::new(Int64Array::from_iter_values(order.iter().map(|row| values[*row as usize])))
            }
            _ => Arc::new(order.iter().map(|row| find(from, *row, integer)).collect::<Int64Array>()),
        },
        (Role::Field, FieldType::Bool) => {
            Arc::new(order.iter().map(|row| find(from, *row, bool)).collect::<BooleanArray>())
        }
        (Role::Tag, _) | (Role::Field, FieldType::Text) => texts(order, |row| find(from, row, text)),
    }
}

/// The values of a column, where there is one only and each row lies at its own place.
fn whole<'r>(from: &[&'r RowColumn], rows: usize) -> Option<&'r Values> {
    if let [only] = from { only.is_whole(rows).then_some(&only.values) } else { None }
}

fn texts<'r>(order: &[u32], text: impl Fn(u32) -> Option<&'r str>) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(order.len(), 16 * order.len());
    order.iter().for_each(|row| builder.append_option(text(*row)));
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

/// The rows of these ranges by host, tags and time. Tags that don't fit into the key do without an order: it makes files smaller and
/// quicker to read, and nothing relies on it.
fn order(rows: &TableRows, table: &TableSchema, kept: impl Iterator<Item = Range<usize>>) -> Vec<u32> {
    struct Part<'r> {
        column: Option<&'r RowColumn>,
        ids: &'r [u32],
        ranks: Vec<u64>,
        bits: u32,
    }
    let part = |column, ids, ranks: Vec<u64>| {
        // The rank after the last one is that of rows without the tag.
        let bits = u64::BITS - (ranks.len() as u64).leading_zeros();
        Part { column, ids, ranks, bits }
    };
    let mut parts = vec![part(None, &rows.hosts.ids, rows.hosts.ranks())];
    for tag in table.tags() {
        let column = rows.by_name.get(tag).into_iter().flatten().map(|index| &rows.columns[*index]);
        if let Some((column, Values::Tags(tags))) =
            column.map(|column| (column, &column.values)).find(|(column, _)| column.role == Role::Tag)
        {
            parts.push(part(Some(column), &tags.ids, tags.ranks()));
        }
    }
    let mut left = u64::BITS;
    let fits = parts.iter().take_while(|part| {
        let fits = part.bits <= left;
        left = left.saturating_sub(part.bits);
        fits
    });
    let fitting = fits.count();
    parts.truncate(fitting);
    let key = |row: u32| {
        parts.iter().fold(0_u64, |key, part| {
            let at = part.column.map_or(Some(row as usize), |column| column.at(row));
            let rank = at.map_or(part.ranks.len() as u64, |at| part.ranks[part.ids[at] as usize]);
            (key << part.bits) | rank
        })
    };
    let position = |row: usize| u32::try_from(row).expect("a set has far fewer rows than 4 billion");
    let mut keyed: Vec<(u64, i64, u32)> =
        kept.flatten().map(|row| (key(position(row)), rows.times[row], position(row))).collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, _, row)| row).collect()
}

struct RowsFunction;

impl VTab for RowsFunction {
    type BindData = Arc<Ordered>;
    type InitData = AtomicUsize;

    fn bind(bind: &BindInfo) -> Result<Self::BindData, Box<dyn Error>> {
        let number = bind.get_parameter(0).to_uint64();
        let ordered = offered().get(&number).cloned().ok_or("the rows are not offered any more")?;
        for field in ordered.schema.fields() {
            bind.add_result_column(field.name(), to_duckdb_logical_type(field.data_type())?);
        }
        bind.set_cardinality(ordered.order.len() as u64, true);
        Ok(ordered)
    }

    fn init(_: &InitInfo) -> Result<Self::InitData, Box<dyn Error>> {
        Ok(AtomicUsize::new(0))
    }

    fn func(function: &TableFunctionInfo<Self>, output: &mut DataChunkHandle) -> Result<(), Box<dyn Error>> {
        let ordered = function.get_bind_data();
        let from = function.get_init_data().fetch_add(VECTOR_ROWS, Ordering::Relaxed).min(ordered.order.len());
        let to = (from + VECTOR_ROWS).min(ordered.order.len());
        if from == to {
            output.set_len(0);
            return Ok(());
        }
        record_batch_to_duckdb_data_chunk(&ordered.batch(from..to)?, output)
    }

    fn parameters() -> Option<Vec<LogicalTypeHandle>> {
        Some(vec![LogicalTypeHandle::from(LogicalTypeId::UBigint)])
    }
}
