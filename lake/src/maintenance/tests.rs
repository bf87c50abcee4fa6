//! Steps that another writer gets in the way of, at a moment that only the step itself knows.

use std::cell::Cell;

use tempfile::TempDir;

use super::*;
use crate::LakeConfig;

/// A lake with two writers.
struct World {
    writer: LakeWriter,
    other: LakeWriter,
    _dir: TempDir,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let config = LakeConfig::embedded(dir.path());
        let open = || LakeWriter::open(&config).expect("opens");
        let world = Self { writer: open(), other: open(), _dir: dir };
        run(world.other.lake().connection(), "CREATE TABLE lake.main.cpu (ts TIMESTAMP_MS, host VARCHAR, x BIGINT)");
        (0..10).for_each(|_| world.commit());
        world
    }

    /// A commit of the other writer: a row, in a file.
    fn commit(&self) {
        run(self.other.lake().connection(), "INSERT INTO lake.main.cpu VALUES (epoch_ms(0), 'web-1', 1)");
    }

    fn rows(&self) -> i64 {
        number(self.writer.lake().connection(), "SELECT count(*) FROM lake.main.cpu")
    }

    fn files(&self) -> i64 {
        number(self.writer.lake().connection(), "SELECT count(*) FROM ducklake_list_files('lake', 'cpu')")
    }
}

fn run(connection: &duckdb::Connection, sql: &str) {
    connection.execute_batch(sql).unwrap_or_else(|error| panic!("{error}\n{sql}"));
}

fn number(connection: &duckdb::Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{error}\n{sql}"))
}

#[test]
fn a_merge_that_a_commit_overtakes_is_taken_again_from_its_start() {
    let world = World::new();
    let cancelled = AtomicBool::new(false);
    let mut run = Run { steps: Steps::new(world.writer.lake(), &cancelled), report: MaintenanceReport::default() };
    run.set_options().expect("sets them");
    let attempts = Cell::new(0);
    let merged = run.steps.write(|connection, attempt| {
        attempts.set(attempts.get() + 1);
        assert_eq!(attempt.is_contended(), attempts.get() > 1);
        let merge = "SELECT sum(files_processed)::BIGINT FROM ducklake_merge_adjacent_files('lake', 'cpu')";
        let merged = connection.query_row(merge, [], |row| row.get::<_, i64>(0)).context("merge files")?;
        if attempts.get() == 1 {
            world.commit();
        }
        Ok(merged)
    });
    assert_eq!(merged.expect("comes through"), Some(11), "what the other one has brought is merged, too");
    assert_eq!((attempts.get(), run.steps.postponed()), (2, 0));
    assert_eq!((world.rows(), world.files()), (11, 1));
}

#[test]
fn a_step_that_is_always_overtaken_is_left_to_the_next_run() {
    let world = World::new();
    let cancelled = AtomicBool::new(false);
    let mut steps = Steps::new(world.writer.lake(), &cancelled);
    let delete = |connection: &duckdb::Connection| {
        connection.execute_batch("DELETE FROM lake.main.cpu").context("delete rows")?;
        world.commit();
        Ok(())
    };
    assert!(steps.take(|connection, _| delete(connection)).expect("gives up in order").is_none());
    assert_eq!(steps.postponed(), 1);
    assert!(world.rows() > 10, "nothing of it is done");
}

#[test]
fn ducklake_tries_no_commit_of_a_run_on_sqlite_again_and_those_after_it_as_ever() {
    let world = World::new();
    let connection = world.writer.lake().connection();
    let retries = || number(connection, "SELECT current_setting('ducklake_max_retry_count')::BIGINT");
    let before = retries();
    let cancelled = AtomicBool::new(false);
    let run = Run { steps: Steps::new(world.writer.lake(), &cancelled), report: MaintenanceReport::default() };
    run.set_options().expect("sets them");
    assert_eq!(retries(), 0);
    let keep = Keep { snapshots: Duration::ZERO, unused_files: Duration::ZERO, orphans: None };
    run.run(keep).expect("maintains");
    assert!(before > 0 && retries() == before, "{before}, and {} after the run", retries());
}
