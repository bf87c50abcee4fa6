//! Tells the processes that were chosen, one by one.

use std::fmt::Write as _;

use super::{
    details::{self, push_printable},
    folder::{has_ended, is_denied},
    table::ProcessTable,
    users::Users,
};
use crate::{config::CommandDetail, context::HostPaths, rows::Rows};

/// Reads what a row tells beyond the line of `stat`. Keeps the memory of its texts from row to row.
#[derive(Debug)]
pub struct Teller {
    users: Users,
    detail: CommandDetail,
    files_denied: bool,
    pid: String,
    /// The name in full, and the part of it that stays.
    name: String,
    lasting_name: String,
    command: String,
    user: String,
}

impl Teller {
    /// Names users as a host does, and tells that much of command lines.
    #[must_use]
    pub fn new(paths: &HostPaths, detail: CommandDetail) -> Self {
        Self {
            users: Users::new(paths.at("/etc/passwd")),
            detail,
            files_denied: false,
            pid: String::new(),
            name: String::new(),
            lasting_name: String::new(),
            command: String::new(),
            user: String::new(),
        }
    }

    /// Begins a sample.
    pub fn begin(&mut self) {
        self.users.refresh();
        self.files_denied = false;
    }

    /// Whether the open files of some process of this sample could not be counted.
    #[must_use]
    pub fn is_denied_files(&self) -> bool {
        self.files_denied
    }

    /// Adds the row of a process, unless it has ended meanwhile.
    pub fn tell(&mut self, table: &mut ProcessTable, index: usize, rows: &mut Rows) {
        table.look_at_io(index);
        let pid = table.processes()[index].pid;
        self.name_it(table, index);
        let Ok(has_user) = self.read_user(table, pid) else {
            return;
        };
        let has_command = self.read_command(table, pid);
        let open_files = self.open_files(table, pid);
        let process = &table.processes()[index];
        let io = process.io;
        rows.push(
            &[("pid", &self.pid), ("name", &self.lasting_name)],
            &[
                ("parent_pid", u64::from(process.parent).into()),
                ("command", has_command.then_some(&*self.command).into()),
                ("user", has_user.then_some(&*self.user).into()),
                ("state", process.state.as_str().into()),
                ("threads", process.threads.into()),
                ("open_files", open_files.into()),
                ("cpu_percent", process.cpu_percent.into()),
                ("cpu_seconds_total", table.cpu_seconds(process).into()),
                ("resident_bytes", process.resident_bytes.into()),
                ("virtual_bytes", process.virtual_bytes.into()),
                ("read_bytes_total", io.map(|io| io.totals.read_bytes).into()),
                ("written_bytes_total", io.map(|io| io.totals.written_bytes).into()),
                ("read_bytes_per_second", io.and_then(|io| io.read_bytes_per_second).into()),
                ("written_bytes_per_second", io.and_then(|io| io.written_bytes_per_second).into()),
                ("started_at_seconds", table.started_at_seconds(process).into()),
            ],
        );
    }

    fn name_it(&mut self, table: &ProcessTable, index: usize) {
        let process = &table.processes()[index];
        self.pid.clear();
        // Writing into a string cannot fail.
        let _ = write!(self.pid, "{}", process.pid);
        self.name.clear();
        push_printable(&mut self.name, table.name(process));
        self.lasting_name.clear();
        push_printable(&mut self.lasting_name, table.lasting_name(process));
    }

    /// Reads who the process runs as; returns whether that is known. Fails when it has ended.
    fn read_user(&mut self, table: &mut ProcessTable, pid: u32) -> Result<bool, Ended> {
        let uid = match table.folder.read(pid, "status") {
            Ok(status) => details::uid(status),
            Err(error) if has_ended(error) => return Err(Ended),
            Err(_) => None,
        };
        let Some(uid) = uid else {
            return Ok(false);
        };
        self.user.clear();
        match self.users.name(uid) {
            Some(name) => self.user.push_str(name),
            // Writing into a string cannot fail.
            None => drop(write!(self.user, "{uid}")),
        }
        Ok(true)
    }

    /// Reads the command line; returns whether it is known.
    fn read_command(&mut self, table: &mut ProcessTable, pid: u32) -> bool {
        let cmdline = table.folder.read(pid, "cmdline");
        cmdline.is_ok_and(|cmdline| {
            let head = &cmdline[..cmdline.len().min(COMMAND_BYTES)];
            details::command(head, &self.name, self.detail, &mut self.command);
            true
        })
    }

    fn open_files(&mut self, table: &mut ProcessTable, pid: u32) -> Option<u64> {
        let files = table.folder.open_files(pid);
        self.files_denied |= files.is_err_and(is_denied);
        files.ok()
    }
}

/// Most bytes of a command line that are told.
const COMMAND_BYTES: usize = 1024;

/// The process has ended.
struct Ended;
