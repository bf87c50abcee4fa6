//! Several processes at one lake, and one that dies.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use plimsoll_lake::{LakeConfig, LakeWriter, Tier};

use crate::fixture::{DAY_START_MS, TestLake, commit, small_steps, used};

/// Names the lake's folder to a child.
const FOLDER: &str = "PLIMSOLL_TEST_ROLLUP_LAKE";

fn times(second: i64, rows: i64) -> Vec<i64> {
    (0..rows).map(|row| DAY_START_MS + (second + row) * 1000).collect()
}

/// A process that runs one of the tests below which are left out otherwise.
struct Process(Child);

impl Process {
    fn start(test: &str, lake: &TestLake) -> Self {
        let child = Command::new(std::env::current_exe().expect("is a file"))
            .args(["--ignored", "--exact", &format!("apart::{test}")])
            .env(FOLDER, folder(lake))
            .stdout(Stdio::null())
            .spawn();
        Self(child.expect("starts"))
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("is known").is_none()
    }

    fn finish(mut self) {
        assert!(self.0.wait().expect("ends").success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn folder(lake: &TestLake) -> &str {
    lake.config.data_path.trim_end_matches("/data")
}

fn child_writer() -> LakeWriter {
    let folder = std::env::var(FOLDER).expect("is run by another test");
    LakeWriter::open(&LakeConfig::embedded(folder.as_ref())).expect("opens")
}

#[test]
#[ignore = "is a process of the test below"]
fn rolls_up_until_it_is_killed() {
    let writer = child_writer();
    loop {
        let _ = writer.roll_up(&small_steps(), || true);
    }
}

/// Waits until the process has moved the mark, and returns how long that took; none where nothing is left to be rolled up.
fn next_step(lake: &TestLake, member: &mut Process) -> Option<Duration> {
    let started = Instant::now();
    let mark = lake.mark("disk", Tier::Minute);
    while lake.mark("disk", Tier::Minute) == mark {
        if left(lake) == 0 {
            return None;
        }
        assert!(member.is_running() && started.elapsed() < Duration::from_secs(60));
    }
    Some(started.elapsed())
}

/// Samples that are in no rollup.
fn left(lake: &TestLake) -> i64 {
    let mark = lake.mark("disk", Tier::Minute);
    lake.number(&format!("SELECT count(*) FROM lake.disk WHERE snapshot_id > {mark}"))
}

#[test]
fn a_member_that_is_killed_at_any_moment_loses_and_doubles_nothing() {
    const TRIALS: u32 = 8;
    let lake = TestLake::new();
    let mut killed_at_work = 0;
    for trial in 0..TRIALS {
        for part in 0..6 {
            lake.commit(vec![used("disk", "a", &times(i64::from(trial) * 1000 + part * 150, 150))]);
        }
        let mut member = Process::start("rolls_up_until_it_is_killed", &lake);
        next_step(&lake, &mut member);
        if let Some(step) = next_step(&lake, &mut member) {
            // In another instant of a step each time.
            let instant = Instant::now() + step * trial / TRIALS;
            while Instant::now() < instant {
                std::thread::yield_now();
            }
        }
        drop(member);
        killed_at_work += u32::from(left(&lake) > 0);
        lake.check("disk", &["used"]);
    }
    assert!(killed_at_work > 0);
    lake.roll_up(&small_steps());
    lake.check("disk", &["used"]);
}

/// The file that ends the committing process.
fn stop_file(folder: &str) -> PathBuf {
    Path::new(folder).join("stop")
}

#[test]
#[ignore = "is a process of the test below"]
fn commits_until_it_is_told_to_stop() {
    let writer = child_writer();
    let stop = stop_file(&std::env::var(FOLDER).expect("is run by another test"));
    let mut part = 0;
    while !stop.exists() {
        let batches = vec![used("disk", "b", &times(part * 40, 40)), used("disk", "c", &times(part * 9, 3))];
        commit(&writer, 2, part.unsigned_abs() * 2 + 1, batches);
        part += 1;
        // As a member does, it gathers before it commits again.
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn rows_that_come_while_others_are_rolled_up_are_contained_once() {
    let lake = TestLake::new();
    lake.commit(vec![used("disk", "a", &times(0, 500))]);
    let mut member = Process::start("commits_until_it_is_told_to_stop", &lake);
    let mut rounds = 0;
    while rounds < 8 {
        assert!(member.is_running());
        // Others are faster now and then; the next round makes up for it.
        match lake.writer.roll_up(&small_steps(), || true) {
            Ok(report) => rounds += u32::from(report.steps > 0 && report.failures.is_empty()),
            Err(error) => assert!(error.is_conflict(), "{error}"),
        }
    }
    std::fs::write(stop_file(folder(&lake)), "").expect("writes");
    member.finish();
    lake.check("disk", &["used"]);
    lake.roll_up(&small_steps());
    lake.check("disk", &["used"]);
    let messages = lake.number("SELECT sequence::BIGINT FROM lake.plimsoll.positions WHERE partition = 2");
    assert_eq!(lake.number("SELECT count(*) FROM lake.disk"), 500 + messages / 2 * 43);
}

#[test]
fn two_members_that_roll_up_at_the_same_time_contain_each_row_once() {
    let lake = TestLake::new();
    for part in 0..10 {
        lake.commit(vec![used("disk", "a", &times(part * 150, 150))]);
    }
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let config = lake.config.clone();
            scope.spawn(move || {
                let writer = LakeWriter::open(&config).expect("opens");
                while !writer
                    .roll_up(&small_steps(), || true)
                    .is_ok_and(|report| report.finished && report.overtaken == 0)
                {}
            });
        }
    });
    lake.check("disk", &["used"]);
    lake.roll_up(&small_steps());
    lake.check("disk", &["used"]);
}
