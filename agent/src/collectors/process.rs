//! Processes: the largest, the watched, and all together.
//!
//! A sample reads `stat` of each process, and more of those that are told one by one only. To open, read and close that file was
//! measured at 7.5 µs with 3,100 processes on two cores of a virtual machine with Linux 6.18: such a host spends half a percent of
//! one core on it at a sample each 5 s, one with 300 processes a tenth of that.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

use globset::GlobSet;
use plimsoll_nats::dead::chain;
use rustix::thread::{CapabilitySet, capabilities};

use self::{
    selection::{MAX_WATCHED, Selection},
    stat::State,
    table::{Moment, Process, ProcessTable, Summary},
    teller::Teller,
};
use super::{CollectError, Collector};
use crate::{
    context::Context,
    rows::{Rows, Tables},
};

pub mod details;
mod folder;
mod selection;
pub mod stat;
pub mod table;
mod teller;
mod users;

/// Reads the host's processes.
#[derive(Debug)]
pub struct Processes {
    table: ProcessTable,
    selection: Selection,
    teller: Teller,
    top: usize,
    watched: GlobSet,
}

impl Processes {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        let config = &context.config.process;
        let watched = config.watched().unwrap_or_else(|error| {
            tracing::error!(error = %chain(&error), "no process is watched, as a glob is wrong");
            GlobSet::empty()
        });
        Self {
            table: ProcessTable::new(&context.paths),
            selection: Selection::default(),
            teller: Teller::new(&context.paths, config.command),
            top: config.top,
            watched,
        }
    }

    fn collect_at(&mut self, now: Moment, tables: &mut Tables) -> Result<(), CollectError> {
        self.table.scan(now)?;
        push_summary(tables.of("processes"), &self.table.summary());
        let (table, watched) = (&self.table, &self.watched);
        let is_watched = |process: &Process| watched.is_match(Path::new(OsStr::from_bytes(table.name(process))));
        let chosen = self.selection.choose(table.processes(), self.top, is_watched);
        self.teller.begin();
        for index in chosen {
            self.teller.tell(&mut self.table, *index, tables.of("process"));
        }
        Ok(())
    }
}

impl Collector for Processes {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        self.collect_at(Moment::now(), tables)
    }

    fn notes(&self) -> Vec<String> {
        let hidden = self.table.is_denied() || !self.table.has(1);
        let notes = [
            (
                hidden,
                "Processes of other users are hidden: mount /proc without `hidepid`, or give the agent its `gid`"
                    .to_owned(),
            ),
            (self.table.is_io_denied(), io_note().to_owned()),
            (
                self.teller.is_denied_files(),
                "The open files of other users' processes are missing: Linux 6.2 or CAP_SYS_PTRACE would tell them"
                    .to_owned(),
            ),
            (
                self.selection.leaves_out(),
                format!(
                    "`collectors.process.watch` matches more than {MAX_WATCHED} processes, and the others are left out"
                ),
            ),
        ];
        notes.into_iter().filter(|(applies, _)| *applies).map(|(_, note)| note).collect()
    }
}

/// Why the I/O of some processes is missing: a sandbox or another namespace may keep off whoever has the capability too.
fn io_note() -> &'static str {
    let may = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_PTRACE));
    if may {
        "The I/O of some processes is missing: the kernel refuses it although the agent has the capability CAP_SYS_PTRACE"
    } else {
        "The I/O of other users' processes is missing: give the agent the capability CAP_SYS_PTRACE"
    }
}

fn push_summary(rows: &mut Rows, summary: &Summary) {
    rows.push(
        &[],
        &[
            ("processes", summary.processes().into()),
            ("running", summary.of(State::Running).into()),
            ("sleeping", summary.of(State::Sleeping).into()),
            ("blocked", summary.of(State::Blocked).into()),
            ("idle", summary.of(State::Idle).into()),
            ("stopped", summary.of(State::Stopped).into()),
            ("zombie", summary.of(State::Zombie).into()),
            ("other", summary.of(State::Other).into()),
            ("threads", summary.threads.into()),
        ],
    );
}

#[cfg(test)]
mod tests;
