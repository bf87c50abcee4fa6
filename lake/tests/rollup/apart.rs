//! Several processes at one lake, and one that dies.

use std::{
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
        let folder = lake.config.data_path.trim_end_matches("/data");
        let child = Command::new(std::env::current_exe().expect("is a file"))
            .args(["--ignored", "--exact", &format!("apart::{test}")])
            .env(FOLDER, folder)
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

/// Waits until the process has finished a step after the snapshot that is marked; returns the mark and how long that took.
fn next_step(lake: &TestLake, member: &mut Process, mark: i64) -> (i64, Duration) {
    let started = Instant::now();
    loop {
        let now = lake.mark("disk", Tier::Minute);
        if now != mark {
            return (now, started.elapsed());
        }
        assert!(member.is_running() && started.elapsed() < Duration::from_secs(60));
    }
}

#[test]
fn a_member_that_is_killed_at_any_moment_loses_and_doubles_nothing() {
    const TRIALS: u32 = 8;
    let lake = TestLake::new();
    for trial in 0..TRIALS {
        for part in 0..6 {
            lake.commit(vec![used("disk", "a", &times(i64::from(trial) * 1000 + part * 150, 150))]);
        }
        let mut member = Process::start("rolls_up_until_it_is_killed", &lake);
        let (mark, _) = next_step(&lake, &mut member, lake.mark("disk", Tier::Minute));
        let (_, step) = next_step(&lake, &mut member, mark);
        // In another instant of a step each time.
        let instant = Instant::now() + step * trial / TRIALS;
        while Instant::now() < instant {
            std::thread::yield_now();
        }
        drop(member);
        lake.check("disk", &["used"]);
    }
    lake.roll_up(&small_steps());
    lake.check("disk", &["used"]);
}

#[test]
#[ignore = "is a process of the test below"]
fn commits_thirty_times() {
    let writer = child_writer();
    for part in 0..30_i64 {
        let first = part.unsigned_abs() * 2 + 1;
        commit(
            &writer,
            2,
            first,
            vec![used("disk", "b", &times(part * 40, 40)), used("disk", "c", &times(part * 9, 3))],
        );
    }
}

#[test]
fn rows_that_come_while_others_are_rolled_up_are_contained_once() {
    let lake = TestLake::new();
    lake.commit(vec![used("disk", "a", &times(0, 500))]);
    let mut member = Process::start("commits_thirty_times", &lake);
    let mut rounds = 0;
    while member.is_running() {
        // Others are faster now and then; the next round makes up for it.
        let report = lake.writer.roll_up(&small_steps(), || true);
        assert!(
            report.as_ref().is_ok_and(|report| report.failures.is_empty())
                || report.is_err_and(|error| error.is_conflict())
        );
        rounds += 1;
    }
    member.finish();
    lake.check("disk", &["used"]);
    lake.roll_up(&small_steps());
    lake.check("disk", &["used"]);
    assert_eq!(lake.number("SELECT count(*) FROM lake.disk"), 500 + 30 * 43);
    assert!(rounds > 1);
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
