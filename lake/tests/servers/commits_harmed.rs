//! Each commit of whatever writes is harmed in turn: the connection to PostgreSQL ends before it, or PostgreSQL commits and its answer
//! is lost. The next try completes the work, and no row is lost, doubled, or in a file that was deleted.

use std::sync::Arc;

use plimsoll_lake::{
    Access, Lake, LakeConfig, LakeWriter, ReplayWriter,
    import::{ImportOptions, Importer},
    replay::{ReplayOutcome, ReplayRequest, ReplaySet},
};
use plimsoll_nats::Sequence;
use plimsoll_testkit::{CommitFault, LakePlace, PostgresProxy, Servers};

use crate::rows::{
    self, ALL, Committer, LIFE, NO_ORPHANS, NOTHING, WAITING, age_snapshots, files_are_named, holds, maintain, message,
    no_file_is_missing, number, rollups_hold, sweep,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A lake whose catalog is also reached by a proxy that does harm.
struct Victim {
    servers: Arc<Servers>,
    proxy: PostgresProxy,
    place: LakePlace,
}

impl Victim {
    async fn new() -> Self {
        let servers = Servers::shared().await;
        let proxy = PostgresProxy::start(servers.postgres.port()).await;
        let place = LakePlace::fleet(&servers);
        Self { servers, proxy, place }
    }

    fn config(&self) -> LakeConfig {
        self.place.config()
    }

    fn lake(&self) -> Lake {
        Lake::open(&self.config(), Access::Read).expect("opens")
    }

    /// Does `work` with one of its commits harmed, and once more in peace; returns whether it made so many commits.
    fn suffers(&self, fault: CommitFault, after: u64, work: &mut dyn FnMut(&LakeConfig) -> Outcome) -> bool {
        self.proxy.harm(fault, after);
        let outcome = work(&self.place.clone().with_catalog_port(self.proxy.port).config());
        let harmed = self.proxy.rest();
        assert_eq!(outcome.is_err(), harmed, "{fault:?} of commit {after}: {outcome:?}");
        if let Err(error) = work(&self.config()) {
            panic!("after {fault:?} of commit {after}: {error:?}");
        }
        harmed
    }

    /// Harms the first commit of `work`, then the second, until it has no more; `prepare` gives it something to do each time, and `check`
    /// looks at what came of it. Returns how many were harmed.
    fn each_commit(
        &self,
        mut prepare: impl FnMut(),
        mut work: impl FnMut(&LakeConfig) -> Outcome,
        mut check: impl FnMut(&Lake),
    ) -> u64 {
        let mut harmed = 0;
        for fault in [CommitFault::LoseAnswer, CommitFault::Cut] {
            for after in 0.. {
                prepare();
                let was_harmed = self.suffers(fault, after, &mut work);
                let lake = self.lake();
                no_file_is_missing(&lake, &self.place);
                check(&lake);
                if !was_harmed {
                    break;
                }
                harmed += 1;
            }
        }
        harmed
    }

    /// Asserts that maintenance rids the store of what the harmed commits have left.
    fn leaves_no_orphans(&self) {
        let writer = LakeWriter::open(&self.config()).expect("opens");
        age_snapshots(writer.lake(), 0);
        maintain(&writer, NO_ORPHANS).expect("maintains");
        files_are_named(writer.lake(), &self.place);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_new_lake() {
    let mut victim = Victim::new().await;
    let mut harmed = 0;
    for fault in [CommitFault::LoseAnswer, CommitFault::Cut] {
        for after in 0.. {
            victim.place = LakePlace::fleet(&victim.servers);
            let was_harmed = victim.suffers(fault, after, &mut |config| Ok(LakeWriter::open(config).map(drop)?));
            no_file_is_missing(&victim.lake(), &victim.place);
            let mut committer = Committer::new(&victim.config(), 3);
            committer.commit(1);
            holds(committer.writer.lake(), &committer.expected(), false);
            crate::creation::is_whole(committer.writer.lake());
            if !was_harmed {
                break;
            }
            harmed += 1;
        }
    }
    // The catalog, the schema with the positions, and their options, by either fault.
    assert!(harmed >= 6, "{harmed} commits were harmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_merges() {
    let victim = Victim::new().await;
    let mut committer = Committer::new(&victim.config(), 3);
    let merges = std::cell::Cell::new(0);
    let harmed = victim.each_commit(
        || committer.commit(12),
        |config| {
            merges.set(merges.get() + maintain(&LakeWriter::open(config)?, ALL)?.merged_files);
            Ok(())
        },
        |_| {},
    );
    assert!(harmed >= 2 && merges.get() > 0, "{harmed} commits were harmed");
    holds(committer.writer.lake(), &committer.expected(), false);
    victim.leaves_no_orphans();
    holds(committer.writer.lake(), &committer.expected(), false);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_rollups() {
    let victim = Victim::new().await;
    let committer = std::cell::RefCell::new(Committer::new(&victim.config(), 3));
    let harmed = victim.each_commit(
        || committer.borrow_mut().commit(2),
        |config| Ok(rows::roll_up(&LakeWriter::open(config)?)?),
        |lake| rollups_hold(lake, &committer.borrow().expected()),
    );
    // The table of marks, and a step a tier.
    assert!(harmed >= 4, "{harmed} commits were harmed");
    holds(&victim.lake(), &committer.borrow().expected(), false);
    victim.leaves_no_orphans();
    rollups_hold(&victim.lake(), &committer.borrow().expected());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_retention() {
    let victim = Victim::new().await;
    let committer = std::cell::RefCell::new(Committer::new(&victim.config(), 3));
    let harmed = victim.each_commit(
        || {
            committer.borrow_mut().commit(4);
            rows::roll_up(&committer.borrow().writer).expect("rolls up");
        },
        |config| Ok(sweep(&LakeWriter::open(config)?)?),
        |lake| holds(lake, &committer.borrow().expected(), true),
    );
    assert!(harmed >= 2, "{harmed} commits were harmed");
    rollups_hold(&victim.lake(), &committer.borrow().expected());
    victim.leaves_no_orphans();
    holds(&victim.lake(), &committer.borrow().expected(), true);
    rollups_hold(&victim.lake(), &committer.borrow().expected());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_expiry_and_deletion() {
    let victim = Victim::new().await;
    let committer = std::cell::RefCell::new(Committer::new(&victim.config(), 3));
    let harmed = victim.each_commit(
        || {
            committer.borrow_mut().commit(9);
            let writer = &committer.borrow().writer;
            age_snapshots(writer.lake(), 0);
            maintain(writer, ALL).expect("merges");
        },
        |config| Ok(maintain(&LakeWriter::open(config)?, NOTHING).map(|_| ())?),
        |lake| {
            holds(lake, &committer.borrow().expected(), false);
            assert_eq!(number(lake, WAITING), 0, "files that wait for their deletion");
            assert_eq!(crate::history::rows(lake), 1, "the position that has moved, and no former ones");
        },
    );
    // Snapshots, former rows of the positions, and files.
    assert!(harmed >= 6, "{harmed} commits were harmed");
    victim.leaves_no_orphans();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_imports() {
    let victim = Victim::new().await;
    drop(LakeWriter::open(&victim.config()).expect("creates the lake"));
    let batches = std::cell::Cell::new(0);
    let options = ImportOptions { now_ms: message(3, 1).stored_ms, allow_old: false, dry_run: false };
    // Twice, for only the first try makes the count of imports.
    let mut harmed = 0;
    for _ in 0..2 {
        harmed += victim.each_commit(
            || batches.set(batches.get() + 1),
            |config| {
                let mut importer = Importer::open(config, options)?;
                importer.store_batches(&[message(3, batches.get()).batch])?;
                Ok(())
            },
            |lake| holds(lake, &rows::expected(3, batches.get()), false),
        );
    }
    // The count of imports, and a chunk by either fault.
    assert!(harmed >= 3, "{harmed} commits were harmed");
    victim.leaves_no_orphans();
    holds(&victim.lake(), &rows::expected(3, batches.get()), false);
}

/// A replay that fills what the lake has lost, or that fills a lake which nobody ingests into.
async fn of_replays(is_ingested: bool) {
    let victim = Victim::new().await;
    let committer = std::cell::RefCell::new(Committer::new(&victim.config(), 3));
    let request = |restarts| ReplayRequest {
        selection: "all".to_owned(),
        is_partial: false,
        since_ms: 0,
        incarnation: LIFE,
        is_named: false,
        restarts,
    };
    let harmed = victim.each_commit(
        || {
            let mut committer = committer.borrow_mut();
            if is_ingested {
                committer.commit(3);
                let delete = "DELETE FROM lake.cpu WHERE n % 3 = 1";
                committer.writer.lake().connection().execute_batch(delete).expect("deletes");
            } else {
                committer.sequence += 3;
            }
        },
        |config| {
            let request = request(is_ingested);
            let replay = ReplayWriter::open(config)?;
            let begun = replay.begin(&request)?;
            let reached = committer.borrow().sequence;
            let messages = (begun.after.0 + 1..=reached).map(|sequence| message(3, sequence)).collect();
            let set = ReplaySet { messages, reached: Sequence(reached), is_last: false };
            match replay.store(&request, &set)? {
                ReplayOutcome::Stored(_) => Ok(()),
                ReplayOutcome::Rejected(rejections) => panic!("{rejections:?}"),
            }
        },
        |lake| holds(lake, &committer.borrow().expected(), false),
    );
    // Its beginning, and what it stores.
    assert!(harmed >= 4, "{harmed} commits were harmed");
    let positions = plimsoll_lake::Positions::read(victim.lake().connection()).expect("reads");
    assert_eq!(positions.of(rows::partition(3), LIFE).sequence.0, committer.borrow().sequence);
    victim.leaves_no_orphans();
    holds(&victim.lake(), &committer.borrow().expected(), false);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_replays_that_fill_gaps() {
    of_replays(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_replays_that_rebuild() {
    of_replays(false).await;
}

/// Ingest's own, besides what `ingest/tests/fleet` does at random.
#[tokio::test(flavor = "multi_thread")]
async fn of_ingest() {
    let victim = Victim::new().await;
    drop(LakeWriter::open(&victim.config()).expect("creates the lake"));
    let sequence = std::cell::Cell::new(0);
    let harmed = victim.each_commit(
        || sequence.set(sequence.get() + 1),
        |config| {
            LakeWriter::open(config)?.commit(&rows::commit_set(3, sequence.get()))?;
            Ok(())
        },
        |lake| holds(lake, &rows::expected(3, sequence.get()), false),
    );
    assert!(harmed >= 2, "{harmed} commits were harmed");
    let lake = victim.lake();
    assert_eq!(number(&lake, "SELECT count(*) FROM lake.cpu"), 10 * sequence.get().cast_signed());
    victim.leaves_no_orphans();
}
