//! Makes a lake of a fleet's history, rolls it up, and times what charts of 30 days ask of it.
//!
//! `cargo run --release -p plimsoll-lake --example rollups -- <folder> [days] [hosts] [seconds between samples]`

use std::{env, error::Error, path::Path, time::Instant};

use plimsoll_lake::{
    LakeConfig, LakeWriter, Tier,
    rollup::{RollupLimits, sketch::quantiles_sql},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The start of a day.
const START_MS: i64 = 1_789_948_800_000;
const DAY_MS: i64 = 86_400_000;
const FIELDS: [&str; 3] = ["usage_percent", "used_bytes", "reads_total"];

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |index: usize, default: i64| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let folder = arguments.first().ok_or("expected a folder for the lake")?;
    let (days, hosts, seconds) = (number(1, 30)?, number(2, 100)?, number(3, 1)?);
    let writer = LakeWriter::open(&LakeConfig::embedded(Path::new(folder)))?;
    if writer.lake().connection().execute_batch("SELECT 1 FROM lake.cpu LIMIT 1").is_err() {
        fill(&writer, days, hosts, seconds)?;
    }
    let report = writer.roll_up(&RollupLimits::default(), || true)?;
    println!("{report:?}");
    sizes(&writer)?;
    charts(&writer)
}

/// Fills the lake, one commit a day: a load that swings, memory that wanders, and a counter.
fn fill(writer: &LakeWriter, days: i64, hosts: i64, seconds: i64) -> Result<()> {
    let connection = writer.lake().connection();
    connection.execute_batch(
        "BEGIN; CREATE TABLE lake.cpu (ts TIMESTAMP_MS, host VARCHAR, usage_percent DOUBLE, used_bytes BIGINT, reads_total BIGINT);
         ALTER TABLE lake.cpu SET PARTITIONED BY (year(ts), month(ts), day(ts)); ALTER TABLE lake.cpu SET SORTED BY (host, ts); COMMIT",
    )?;
    let started = Instant::now();
    for day in 0..days {
        let from = START_MS + day * DAY_MS;
        connection.execute_batch(&format!(
            "INSERT INTO lake.cpu SELECT make_timestamp_ms({from} + t * 1000)::TIMESTAMP_MS, 'host-' || lpad(h::VARCHAR, 4, '0'),
                 round(50 + 30 * sin(t / 13751 + h) + 15 * random(), 1),
                 (8e9 + 4e9 * sin(t / 40000 + h) + 1e7 * random())::BIGINT, ({day} * 86400 + t) * (100 + h)
             FROM range({hosts}) hosts(h), range(0, 86400, {seconds}) times(t)"
        ))?;
    }
    let rows = days * hosts * 86_400 / seconds;
    println!("{rows} rows of {} fields stored in {:.1} s", FIELDS.len(), started.elapsed().as_secs_f64());
    Ok(())
}

fn sizes(writer: &LakeWriter) -> Result<()> {
    for tier in Tier::ALL {
        let sql = format!(
            "SELECT sum(record_count)::BIGINT, sum(file_size_bytes)::BIGINT FROM __ducklake_metadata_lake.ducklake_data_file
             JOIN __ducklake_metadata_lake.ducklake_table t USING (table_id) WHERE t.table_name = '{}'",
            tier.table_name("cpu")
        );
        let (rows, bytes): (i64, i64) =
            writer.lake().connection().query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        println!(
            "{}: {rows} rows, {bytes} bytes, {:.1} bytes a field",
            tier.label(),
            bytes as f64 / (rows as f64 * 3.0)
        );
    }
    Ok(())
}

fn charts(writer: &LakeWriter) -> Result<()> {
    let one = "host = 'host-0042'";
    for (what, tier, minutes, condition) in [
        ("one host, by hour", Tier::Hour, 60, one),
        ("one host, by 5 minutes", Tier::Minute, 5, one),
        ("100 hosts, by hour", Tier::Hour, 60, "true"),
        ("100 hosts, by hour, from minutes", Tier::Minute, 60, "true"),
        ("100 hosts, by 5 minutes", Tier::Minute, 5, "true"),
    ] {
        let bucket = format!("time_bucket(INTERVAL '{minutes} minutes', ts)");
        let field = FIELDS[0];
        let plain = format!(
            "SELECT {bucket} AS bucket, sum({field}.sum) / sum({field}.count), max({field}.max) FROM {} WHERE {condition}
             GROUP BY ALL ORDER BY ALL",
            tier.table("cpu")
        );
        let relation = format!("(SELECT {bucket} AS bucket, {field} FROM {} WHERE {condition})", tier.table("cpu"));
        let quantiles = format!("{} ORDER BY ALL", quantiles_sql(&relation, &["bucket"], field, &[0.95]));
        println!("{what}: {} with mean and largest, {} with p95", timed(writer, &plain)?, timed(writer, &quantiles)?);
    }
    Ok(())
}

/// The best of three runs.
fn timed(writer: &LakeWriter, sql: &str) -> Result<String> {
    let mut best = f64::INFINITY;
    let mut points = 0;
    for _ in 0..3 {
        let started = Instant::now();
        let mut statement = writer.lake().connection().prepare(sql)?;
        points = statement.query_arrow([])?.map(|batch| batch.num_rows()).sum();
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(format!("{points} points in {:.0} ms", best * 1000.0))
}
