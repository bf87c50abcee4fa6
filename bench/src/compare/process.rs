//! Processes that are measured from outside.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    param::clock_ticks_per_second,
    process::{Pid, Signal, kill_process},
};

use super::CompareError;

/// Longest wait for a process that was asked to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lines of a log that an error quotes.
const WORDS_LINES: usize = 3;

/// A child process, killed on drop.
#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a binary; what it says goes to `log`.
    pub(super) fn start<S: AsRef<OsStr>>(
        name: &'static str,
        binary: &Path,
        arguments: impl IntoIterator<Item = S>,
        variables: &[(&str, String)],
        log: &Path,
    ) -> Result<Self, CompareError> {
        let failed = |source| CompareError::File { path: log.to_owned(), source };
        let output = File::create(log).map_err(failed)?;
        let errors = output.try_clone().map_err(failed)?;
        let mut command = Command::new(binary);
        command.args(arguments).envs(variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().map_err(|source| CompareError::Start { name, source })?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    pub(super) fn usage(&self) -> Result<Usage, CompareError> {
        Usage::of(self.child.id()).map_err(|source| self.ended(source))
    }

    /// What the process has said so far.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Fails when the process has ended.
    pub(super) fn check(&mut self) -> Result<(), CompareError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.ended(io::Error::other(status.to_string()))),
            Err(source) => Err(self.ended(source)),
        }
    }

    /// Asks the process to end and waits for it.
    pub(super) async fn stop(mut self) -> Result<(), CompareError> {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let started = tokio::time::Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && started.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        match self.child.try_wait() {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(self.ended(io::Error::other(status.to_string()))),
            Ok(None) => Err(self.ended(io::ErrorKind::TimedOut.into())),
            Err(source) => Err(self.ended(source)),
        }
    }

    fn ended(&self, source: io::Error) -> CompareError {
        let log = self.log();
        // A panic is followed by pages of where it came from.
        let panic =
            log.lines().position(|line| line.contains("panic") || line.contains("fatal") || line.contains("FATAL"));
        let lines: Vec<&str> = log.lines().collect();
        let from = panic.unwrap_or(lines.len().saturating_sub(WORDS_LINES));
        let words = lines.into_iter().skip(from).take(WORDS_LINES).collect::<Vec<_>>().join(" | ");
        CompareError::Ended { name: self.name, words, source }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process has taken so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Processor time, user and system.
    pub(crate) cpu: Duration,
    /// Most memory that was in RAM, in bytes.
    pub(crate) peak_bytes: u64,
}

impl Usage {
    /// As /proc/<pid>/stat and status tell it (proc_pid_stat(5), proc_pid_status(5)).
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let strange = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid} is not as expected"));
        // The name in parentheses may hold anything; of what follows it, utime and stime are the 12th and 13th.
        let fields = stat.rsplit_once(')').ok_or_else(strange)?.1;
        let ticks = fields.split_ascii_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let ticks = ticks.sum::<Result<u64, _>>().map_err(|_| strange())?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or_else(strange)?;
        let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().map_err(|_| strange())?;
        let cpu = Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64);
        Ok(Self { cpu, peak_bytes: peak_kib * 1024 })
    }
}

/// A port of loopback that is free now.
pub(super) fn free_port() -> Result<u16, CompareError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let port = listener.and_then(|listener| listener.local_addr()).map(|address| address.port());
    port.map_err(|source| CompareError::Start { name: "a listener", source })
}

/// Bytes of all files under a folder, their lengths added together; files that vanish meanwhile do not count.
pub(super) fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => folder_bytes(&entry.path()),
            _ => entry.metadata().map_or(0, |data| data.len()),
        })
        .sum()
}
