//! Decides at the start which version runs, and gives a new one its trial.
//!
//! What the launched program is told, for all versions to come:
//!
//! - `PLIMSOLL_AGENT_LAUNCHED`: the version that it was released as. It launches nothing up to this one.
//! - `PLIMSOLL_AGENT_LAUNCHER`: only on trial: the process that tries it, without which it ends.
//! - `PLIMSOLL_AGENT_TRIAL`: only on trial: the file to create once it has reported. It launches nothing at all, leads a process
//!   group, and ends in an orderly way on SIGTERM.

use std::{
    env,
    ffi::OsString,
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use plimsoll_nats::dead::chain;
use plimsoll_service::{
    EXIT_FAILURE,
    config::{Layers, Validate},
    launch::fail,
    signals::{self, Signals},
};
use rustix::process::{Pid, Signal, kill_process_group};
use semver::Version;
use serde::Deserialize;
use tokio::{
    process::Child,
    time::{sleep, timeout},
};

use crate::update::{
    error::UpdateError,
    own_version,
    release::{self, ReleaseKey},
    versions::{Fetched, MAX_TRIALS, Outcome, Versions, state_dir},
};

const LAUNCHED: &str = "PLIMSOLL_AGENT_LAUNCHED";
const TRIAL: &str = "PLIMSOLL_AGENT_TRIAL";
const LAUNCHER: &str = "PLIMSOLL_AGENT_LAUNCHER";

/// How often the report is looked for.
const LOOK: Duration = Duration::from_millis(100);
/// How long a program on trial may take to end in an orderly way, somewhat longer than the agent's own drain.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);

/// The version that runs: this program's own, or the one that it was released as.
#[must_use]
pub fn running_version() -> Version {
    let launched = env::var(LAUNCHED).ok().and_then(|text| Version::parse(&text).ok());
    launched.into_iter().chain([own_version()]).max().unwrap_or_else(own_version)
}

/// The file to create once this program has reported; none unless it is on trial.
#[must_use]
pub fn trial_mark() -> Option<PathBuf> {
    env::var_os(TRIAL).map(PathBuf::from)
}

/// Runs in place of this program, with `args`, what was fetched and is newer. Returns where this program is to run itself, or an
/// exit code where a signal came during a trial.
#[must_use]
pub fn hand_over(config: Option<&Path>) -> Option<ExitCode> {
    if trial_mark().is_some() {
        return follow_launcher();
    }
    Launcher::configured(config)?.run()
}

/// Starts this program anew in its place. `program` is its file as [`env::current_exe`] told at its start: by now that may be
/// replaced. Returns only when it cannot be executed.
pub fn restart(program: io::Result<PathBuf>) -> ExitCode {
    let error = match program {
        Ok(program) => Command::new(program).args(arguments()).exec(),
        Err(error) => error,
    };
    tracing::error!(error = %error, "agent cannot be started anew");
    fail(&error, EXIT_FAILURE)
}

fn arguments() -> impl Iterator<Item = OsString> {
    env::args_os().skip(1)
}

/// Ends this program in an orderly way when the one that tries it is gone. Returns an exit code where it is gone already.
fn follow_launcher() -> Option<ExitCode> {
    #[cfg(target_os = "linux")]
    {
        if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM)) {
            tracing::warn!(error = %error, "this trial would outlive its launcher");
        }
        // One that died before the kernel was told to tell of it.
        let launcher = env::var(LAUNCHER).ok().and_then(|pid| Pid::from_raw(pid.parse().ok()?));
        if launcher.is_some_and(|pid| rustix::process::test_kill_process(pid).is_err()) {
            return Some(ExitCode::from(EXIT_FAILURE));
        }
    }
    None
}

/// The few settings that launching needs. Others may be meant for a version that this one does not know.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    state_dir: Option<PathBuf>,
    update: UpdateSettings,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct UpdateSettings {
    url: Option<String>,
    public_key: Option<String>,
    #[serde(with = "humantime_serde")]
    report_within: Duration,
}

impl Default for UpdateSettings {
    fn default() -> Self {
        Self { url: None, public_key: None, report_within: crate::config::UpdateConfig::default().report_within }
    }
}

impl Validate for Settings {
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Starts fetched versions.
#[derive(Debug)]
struct Launcher {
    versions: Versions,
    key: ReleaseKey,
    target: String,
    running: Version,
    report_within: Duration,
    /// Versions that cannot be run now, whatever their marks say.
    skipped: Vec<Version>,
}

/// How a trial ended.
enum Trial {
    Good,
    Failed(String),
    /// A signal came.
    BrokenOff,
}

impl Launcher {
    /// None where updates are off, or are not configured so that they could work: the agent itself tells what is wrong.
    fn configured(config: Option<&Path>) -> Option<Self> {
        let Settings { state_dir: dir, update } = Layers::read(&[], "agent", &["nats"], config).ok()?.extract().ok()?;
        update.url?;
        Some(Self {
            versions: Versions::new(&state_dir(dir.as_deref())?),
            key: ReleaseKey::configured_or_built_in(update.public_key.as_deref()).ok()?,
            target: release::target(),
            running: running_version(),
            report_within: update.report_within,
            skipped: Vec::new(),
        })
    }

    fn run(mut self) -> Option<ExitCode> {
        while let Some(fetched) = self.next() {
            let version = &fetched.version;
            if fetched.outcome() == Outcome::Good {
                let error = self.command(&fetched).exec();
                tracing::error!(%version, error = %error, "fetched version cannot be executed and is left out");
            } else {
                match self.give_trial(&fetched) {
                    // It is executed in the next round.
                    Ok(Trial::Good) => continue,
                    Ok(Trial::Failed(reason)) => {
                        tracing::error!(%version, reason, "update failed, the agent goes back to {}", self.running);
                    }
                    Ok(Trial::BrokenOff) => return Some(ExitCode::SUCCESS),
                    Err(error) => tracing::error!(%version, error = %chain(&error), "update cannot be tried"),
                }
            }
            self.skipped.push(fetched.version);
        }
        None
    }

    /// The newest version beyond this one that may be run and is what the key's owner released.
    fn next(&self) -> Option<Fetched> {
        let all = self.versions.all().into_iter();
        all.take_while(|fetched| fetched.version.cmp_precedence(&self.running).is_gt())
            .filter(|fetched| fetched.outcome() != Outcome::Failed && !self.skipped.contains(&fetched.version))
            .find(|fetched| match fetched.verify(&self.key, &self.target) {
                Ok(()) => true,
                Err(error) => {
                    tracing::error!(version = %fetched.version, error = %chain(&error), "fetched version is left out");
                    false
                }
            })
    }

    fn command(&self, fetched: &Fetched) -> Command {
        let mut command = Command::new(fetched.program());
        command.args(arguments()).env(LAUNCHED, fetched.version.to_string()).env_remove(TRIAL).env_remove(LAUNCHER);
        command
    }

    /// Runs it as a child until it has reported or won't, and notes which.
    fn give_trial(&self, fetched: &Fetched) -> Result<Trial, UpdateError> {
        let trial = if fetched.begin_trial()? {
            tracing::info!(version = %fetched.version, "update is tried");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(UpdateError::store(fetched.program()))?;
            runtime.block_on(self.watch(fetched)).map_err(UpdateError::store(fetched.program()))?
        } else {
            Trial::Failed(format!("{MAX_TRIALS} trials were begun and broken off"))
        };
        match &trial {
            Trial::Good => fetched.note_good(&self.running)?,
            Trial::Failed(reason) => fetched.note_failed(reason)?,
            Trial::BrokenOff => fetched.break_off_trial()?,
        }
        Ok(trial)
    }

    /// Fails when signals cannot be taken.
    async fn watch(&self, fetched: &Fetched) -> io::Result<Trial> {
        let (signals, reported) = (signals::listen()?, fetched.reported());
        let mut command = self.command(fetched);
        // A group of its own, so that what it has started ends with it.
        command.env(TRIAL, &reported).env(LAUNCHER, std::process::id().to_string()).process_group(0);
        let mut child = match tokio::process::Command::from(command).kill_on_drop(true).spawn() {
            Ok(child) => child,
            Err(error) => return Ok(Trial::Failed(format!("it cannot be executed: {error}"))),
        };
        let group = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let trial = tokio::select! {
            biased;
            () = signals.shutdown.cancelled() => Trial::BrokenOff,
            ended = child.wait() => Trial::Failed(format!("it ended before it had reported: {}", ended?)),
            () = appears(&reported) => Trial::Good,
            () = sleep(self.report_within) => {
                Trial::Failed(format!("it had not reported after {} s", self.report_within.as_secs_f64()))
            }
        };
        end(&mut child, group, &signals).await?;
        let stopped = signals.shutdown.is_cancelled();
        if stopped && matches!(trial, Trial::Good) {
            // The outcome stands, but whoever sent the signal wants nothing to run.
            fetched.note_good(&self.running).map_err(io::Error::other)?;
        }
        Ok(if stopped { Trial::BrokenOff } else { trial })
    }
}

async fn appears(path: &Path) {
    while !path.exists() {
        sleep(LOOK).await;
    }
}

/// Ends a program on trial and what it has started: in an orderly way if it can, at once where a second Ctrl-C asks for it.
async fn end(child: &mut Child, group: Option<Pid>, signals: &Signals) -> io::Result<()> {
    // A group that is gone already is none that fails to end.
    let signal = |signal| group.map(|group| kill_process_group(group, signal));
    let _ = signal(Signal::TERM);
    let orderly = tokio::select! {
        biased;
        () = signals.at_once.cancelled() => false,
        ended = timeout(STOP_TIMEOUT, child.wait()) => ended.is_ok(),
    };
    // Also where it has ended: what it has started may still run.
    let _ = signal(Signal::KILL);
    if !orderly {
        child.wait().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(text: &str) -> Option<Launcher> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Launcher::configured(Some(file.path()))
    }

    #[test]
    fn a_configuration_for_a_later_version_keeps_nothing_from_being_launched() {
        let text = "state_dir = '/nowhere'\nlater = 1\n[nats]\nlater = 1\n[update]\nlater = 1\nurl = 'https://example.org'\n\
                    public_key = 'RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3'\nreport_within = '5s'";
        let launcher = configured(text).unwrap();
        assert_eq!(launcher.versions.dir(), Path::new("/nowhere/versions"));
        assert_eq!(launcher.report_within, Duration::from_secs(5));
        assert!(launcher.next().is_none());
        assert!(configured(&text.replace("url", "ulr")).is_none());
        assert!(configured("state_dir = '/nowhere'").is_none());
        assert!(configured("no TOML").is_none());
    }

    #[test]
    fn this_version_runs_unless_another_was_launched() {
        assert_eq!(running_version(), own_version());
        assert_eq!(trial_mark(), None);
    }
}
