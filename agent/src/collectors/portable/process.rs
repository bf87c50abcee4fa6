//! Processes: the largest, the watched, and all together.

use std::{collections::BTreeSet, time::Instant};

use globset::GlobSet;
use plimsoll_nats::dead::chain;
use sysinfo::{Pid, Process, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

use super::push;
use crate::{
    collectors::{CollectError, Collector, portable::refused},
    context::Context,
    rows::{Rows, Tables},
};

/// Most processes that are told because they are watched.
const MAX_WATCHED: usize = 500;

/// Reads the host's processes.
#[derive(Debug)]
pub struct Processes {
    top: usize,
    watched: GlobSet,
    /// With the time of the last reading; none before the first.
    system: Option<(System, Instant)>,
}

impl Processes {
    /// Tells those that the settings of `context` name.
    pub fn new(context: &Context) -> Self {
        let config = &context.config.process;
        let watched = config.watched().unwrap_or_else(|error| {
            tracing::error!(error = %chain(&error), "no process is watched, as a glob is wrong");
            GlobSet::empty()
        });
        Self { top: config.top, watched, system: None }
    }

    /// The largest by processor time, by memory and by I/O, and the watched, each once.
    fn chosen(&self, system: &System) -> BTreeSet<Pid> {
        let mut chosen = BTreeSet::new();
        add_largest(&mut chosen, system, self.top, |process| f64::from(process.cpu_usage()));
        add_largest(&mut chosen, system, self.top, |process| process.memory() as f64);
        add_largest(&mut chosen, system, self.top, |process| {
            let moved = process.disk_usage();
            moved.read_bytes.saturating_add(moved.written_bytes) as f64
        });
        let mut watched: Vec<Pid> = system
            .processes()
            .values()
            .filter(|process| self.watched.is_match(process.name()))
            .map(Process::pid)
            .collect();
        watched.sort_unstable();
        chosen.extend(watched.into_iter().take(MAX_WATCHED));
        chosen
    }
}

impl Collector for Processes {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let now = Instant::now();
        let (mut system, last) = match self.system.take() {
            Some((system, last)) => (system, Some(last)),
            None => (System::new().map_err(refused("the system for its processes"))?, None),
        };
        let kind = ProcessRefreshKind::nothing().with_cpu().with_memory().with_disk_usage();
        system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind);
        push_summary(tables.of("processes"), &system);
        let passed_seconds = last.map(|last| (now - last).as_secs_f64()).filter(|passed| *passed > 0.0);
        for pid in self.chosen(&system) {
            if let Some(process) = system.process(pid) {
                push_process(tables.of("process"), process, passed_seconds);
            }
        }
        self.system = Some((system, now));
        Ok(())
    }
}

fn add_largest(chosen: &mut BTreeSet<Pid>, system: &System, top: usize, size: impl Fn(&Process) -> f64) {
    let mut ranked: Vec<(f64, Pid)> = system
        .processes()
        .values()
        .map(|process| (size(process), process.pid()))
        .filter(|(size, _)| *size > 0.0)
        .collect();
    ranked.sort_unstable_by(|left, right| right.0.total_cmp(&left.0).then(left.1.cmp(&right.1)));
    chosen.extend(ranked.into_iter().take(top).map(|(_, pid)| pid));
}

fn push_process(rows: &mut Rows, process: &Process, passed_seconds: Option<f64>) {
    let name = process.name().to_string_lossy();
    let moved = process.disk_usage();
    let per_second = |bytes: u64| passed_seconds.map(|passed| bytes as f64 / passed);
    push(
        rows,
        &[("pid", &process.pid().to_string()), ("name", &name)],
        &[
            ("parent_pid", process.parent().map(|pid| u64::from(pid.as_u32())).into()),
            ("command", (&*name).into()),
            ("state", state(process.status()).into()),
            ("cpu_percent", passed_seconds.map(|_| f64::from(process.cpu_usage())).into()),
            ("cpu_seconds_total", (process.accumulated_cpu_time() as f64 / 1000.0).into()),
            ("resident_bytes", process.memory().into()),
            ("virtual_bytes", process.virtual_memory().into()),
            ("read_bytes_total", moved.total_read_bytes.into()),
            ("written_bytes_total", moved.total_written_bytes.into()),
            ("read_bytes_per_second", per_second(moved.read_bytes).into()),
            ("written_bytes_per_second", per_second(moved.written_bytes).into()),
            ("started_at_seconds", process.start_time().into()),
        ],
    );
}

fn push_summary(rows: &mut Rows, system: &System) {
    let of = |wanted: &str| {
        let count = system.processes().values().filter(|process| state(process.status()) == wanted).count();
        count as u64
    };
    push(
        rows,
        &[],
        &[
            ("processes", (system.processes().len() as u64).into()),
            ("running", of("running").into()),
            ("sleeping", of("sleeping").into()),
            ("blocked", of("blocked").into()),
            ("idle", of("idle").into()),
            ("stopped", of("stopped").into()),
            ("zombie", of("zombie").into()),
            ("other", of("other").into()),
        ],
    );
}

fn state(status: ProcessStatus) -> &'static str {
    match status {
        ProcessStatus::Run => "running",
        ProcessStatus::Sleep => "sleeping",
        ProcessStatus::UninterruptibleDiskSleep => "blocked",
        ProcessStatus::Idle => "idle",
        ProcessStatus::Stop | ProcessStatus::Tracing => "stopped",
        ProcessStatus::Zombie => "zombie",
        _ => "other",
    }
}
