//! A reader beside two members that commit, merges, rollups and retention, with a PostgreSQL catalog and S3: by its own lists of files
//! it gets what DuckLake's own scan gives.

use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc, thread, time::Duration};

use plimsoll_lake::{
    Access, Lake, LakeConfig, LakeReader, LakeWriter, Tail, Tier,
    query::{Hosts, Points, PointsQuery, ReaderLimits, Selection, TierChoice, Value},
};
use plimsoll_testkit::{LakePlace, Servers};

use crate::rows::{
    Committer, NEW_DAY_MS, NOTHING, UNDER_WAY, age_snapshots, beside_commits, maintain, name, number, roll_up, sweep,
};

const COMMITS: u64 = 40;
const LATEST: &str = "SELECT id FROM lake.current_snapshot()";

/// Host, core, Unix ms and the row's number, in order.
type Rows = Vec<(String, String, i64, i64)>;

/// Who asks the reader and DuckLake.
struct Questioner {
    lake: Lake,
    reader: LakeReader,
    tail: Arc<Tail>,
}

impl Questioner {
    fn new(config: &LakeConfig) -> Self {
        let limits =
            ReaderLimits { connections: NonZeroUsize::new(2).expect("not 0"), timeout: Duration::from_secs(60) };
        let reader = LakeReader::new(config, limits).expect("opens");
        reader.attach().expect("attaches");
        let lake = Lake::open(config, Access::Read).expect("opens");
        Self { lake, reader, tail: Arc::new(Tail::new(usize::MAX)) }
    }

    fn since(from_ms: i64) -> Selection {
        Selection { hosts: Hosts::All, measurement: name("cpu"), from_ms, to_ms: None, tags: BTreeMap::new() }
    }

    /// The rows of the later day that the reader gives. Those of the earlier one it gives by the minute, once they may be gone.
    async fn read(&self) -> Rows {
        let query = PointsQuery {
            fields: Some(vec![name("n")]),
            step: None,
            limit: NonZeroUsize::MAX,
            quantiles: Vec::new(),
            rate: false,
            line: None,
            tier: TierChoice::Only(Tier::Raw),
        };
        let answer = self.reader.points(&self.tail, Self::since(NEW_DAY_MS), query).await.expect("an answer");
        let mut rows = Rows::new();
        for series in answer.rows {
            let Points::Values(values) = series.points else { panic!("buckets") };
            let row = |(time_ms, value)| match value {
                Value::Integer(n) => (series.host.clone(), series.tags["core"].clone(), time_ms, n),
                other => panic!("{other:?}"),
            };
            rows.extend(values.into_iter().map(row));
        }
        rows.sort();
        rows
    }

    /// How many rows there ever were, by the reader: of those that retention has deleted their minutes or hours tell.
    async fn count(&self) -> u64 {
        let fields = Some(vec![name("n")]);
        let stats = self.reader.stats(&self.tail, Self::since(0), fields, TierChoice::Auto).await.expect("an answer");
        stats.rows.iter().map(|series| series.count).sum()
    }

    /// The same rows as DuckLake's own scan of a snapshot gives them.
    fn scan(&self, snapshot: i64) -> Rows {
        let sql = format!(
            "SELECT host, core, epoch_ms(ts), n FROM lake.main.cpu AT (VERSION => {snapshot})
             WHERE epoch_ms(ts) >= {NEW_DAY_MS} ORDER BY ALL"
        );
        let mut statement = self.lake.connection().prepare(&sql).expect("prepares");
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)));
        rows.and_then(Iterator::collect).expect("is read")
    }

    /// Asserts that the reader gives the rows of a snapshot that was the latest while it was asked; returns how many.
    async fn agree(&self) -> usize {
        let first = number(&self.lake, LATEST);
        let rows = self.read().await;
        let last = number(&self.lake, LATEST);
        let agrees = (first..=last).any(|snapshot| self.scan(snapshot) == rows);
        assert!(agrees, "{} rows are not those of any snapshot from {first} to {last}", rows.len());
        rows.len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gets_what_ducklakes_own_scan_gives_while_the_lake_changes() {
    let servers = Servers::shared().await;
    let config = LakePlace::fleet(&servers).config();
    // Without a table there would be nothing to ask about.
    Committer::new(&config, 3).commit(2);
    let questioner = Questioner::new(&config);
    let working = thread::spawn(move || work(&config));
    let (mut answers, mut before) = (0, 0);
    while !working.is_finished() {
        questioner.agree().await;
        let count = questioner.count().await;
        assert!(count >= before, "{count} rows after {before}");
        (answers, before) = (answers + 1, count);
    }
    let (merged, deleted) = working.join().expect("no panic");
    assert!(answers > 5 && merged > 0 && deleted > 0, "{answers} answers, {merged} files merged, {deleted} deleted");
    let later = 1 + 2 * (COMMITS - COMMITS / 4);
    assert_eq!(questioner.agree().await as u64, 10 * later, "every fourth message is of the earlier day");
    assert_eq!(questioner.count().await, 10 * (2 + 2 * COMMITS));
}

/// Does all of maintenance beside two members that commit, and once more; returns how many files were merged and how many deleted.
fn work(config: &LakeConfig) -> (u64, u64) {
    let writer = LakeWriter::open(config).expect("opens");
    let (mut merged, mut deleted) = (0, 0);
    let mut maintain = || {
        roll_up(&writer).expect("rolls up");
        sweep(&writer).expect("sweeps");
        age_snapshots(writer.lake(), UNDER_WAY);
        let report = maintain(&writer, NOTHING).expect("maintains");
        (merged, deleted) = (merged + report.merged_files, deleted + report.deleted_files);
    };
    beside_commits(config, COMMITS, &mut maintain);
    maintain();
    (merged, deleted)
}
