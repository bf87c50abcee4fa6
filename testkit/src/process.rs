//! Child processes of tests.

use std::{
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use plimsoll_nats::testing::eventually;
use rustix::process::{Pid, Signal, kill_process};

/// A child process. Dropping it kills it.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts the command without input.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("failed to start {command:?}: {error}")))
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("takes a signal");
    }

    /// SIGKILL: no handler runs, no file is closed in order. Returns when the process is gone.
    ///
    /// # Panics
    /// When the process cannot be killed.
    pub fn kill(mut self) {
        self.0.kill().expect("is killed");
        self.0.wait().expect("is gone");
    }

    /// How the process ended, where it has.
    ///
    /// # Panics
    /// When it is no child.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("a child")
    }

    /// Sends a signal and waits until the process has ended.
    ///
    /// # Panics
    /// When it does not end within `limit`.
    pub async fn end_by(mut self, signal: Signal, limit: Duration) -> ExitStatus {
        self.signal(signal);
        eventually("a process to end", limit, async || self.status()).await
    }

    /// Processor time that the process has taken, in user and system mode.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("a process");
        // The name, in parentheses, may hold spaces.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields[index].parse::<u64>().expect("a number of ticks");
        // proc_pid_stat(5): utime and stime are fields 14 and 15; what follows the name begins with field 3.
        let ticks_a_second = rustix::param::clock_ticks_per_second();
        Duration::from_secs_f64((ticks(11) + ticks(12)) as f64 / ticks_a_second as f64)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
