//! Looks for a newer release now and then, and puts it where it is tried at the next start.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use plimsoll_nats::{dead::chain, now_ms};
use semver::Version;
use tokio::{runtime::Handle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{AgentConfig, UpdateConfig},
    error::AgentError,
    update::{
        error::UpdateError,
        fetch::Fetcher,
        launch::{running_version, trial_mark},
        receipts::Receipts,
        release::{self, Release, ReleaseKey},
        versions::{Fetched, Outcome, Versions, state_dir},
    },
};

/// How long until the next look after one that failed, unless the interval is shorter.
const RETRY: Duration = Duration::from_secs(3600);

/// Runs the agent until `shutdown`, or until a newer release is there to be tried: `staged` is then cancelled, and the agent has
/// ended in an orderly way, for the program to be started anew. Fails where [`crate::run`] does.
pub async fn run(
    config: AgentConfig,
    staged: CancellationToken,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let receipts = Receipts::default();
    let updater = Updater::configured(&config, receipts.clone());
    let stop = shutdown.child_token();
    let mut agent = Box::pin(crate::run_with(config, receipts, stop.clone()));
    if let Some(updater) = updater {
        tokio::select! {
            biased;
            ended = &mut agent => return ended,
            () = updater.run() => {
                staged.cancel();
                stop.cancel();
            }
        }
    }
    agent.await
}

/// What a look for a release found.
#[derive(Debug)]
pub enum Found {
    /// No release is newer than what runs.
    Nothing {
        /// The release there is.
        newest: Version,
    },
    /// There is a newer one, and its trial has failed on this host.
    FailedBefore {
        /// The release.
        version: Version,
        /// Why it failed.
        reason: String,
    },
    /// A newer one is verified and lies ready.
    Ready(Fetched),
}

/// Where releases come from, and where they go.
#[derive(Debug, Clone)]
pub struct Source {
    fetcher: Fetcher,
    key: ReleaseKey,
    versions: Versions,
    running: Version,
    target: String,
}

impl Source {
    /// Fetches from `url` what is signed with `key` and newer than `running`.
    pub fn new(url: &str, key: ReleaseKey, versions: Versions, running: Version) -> Result<Self, UpdateError> {
        Ok(Self { fetcher: Fetcher::new(url)?, key, versions, running, target: release::target() })
    }

    /// The release there is, and whether it is newer than what runs.
    pub async fn look(&self) -> Result<(Release, bool), UpdateError> {
        let (release, _, _) = self.description().await?;
        let newer = self.is_newer(&release);
        Ok((release, newer))
    }

    /// Fetches the release there is if it is newer than what runs. One whose trial failed is left alone unless it is wanted
    /// `again`.
    pub async fn fetch(&self, again: bool) -> Result<Found, UpdateError> {
        let (release, description, signature) = self.description().await?;
        if !self.is_newer(&release) {
            return Ok(Found::Nothing { newest: release.version });
        }
        let program = release.program(&self.target).map_err(UpdateError::refused(self.fetcher.place()))?;
        if let Some(fetched) = self.versions.find(&release.version) {
            if fetched.outcome() == Outcome::Failed && !again {
                let reason = fetched.remark().unwrap_or_default();
                return Ok(Found::FailedBefore { version: release.version, reason });
            }
            if fetched.verify(&self.key, &self.target).is_ok() {
                return Ok(Found::Ready(fetched));
            }
        }
        let incoming = self.versions.begin()?;
        self.fetcher.program(program, &incoming.program()).await?;
        incoming.keep(&release.version, &description, &signature).map(Found::Ready)
    }

    async fn description(&self) -> Result<(Release, Vec<u8>, Vec<u8>), UpdateError> {
        let (description, signature) = self.fetcher.description().await?;
        let release = Release::verified(&description, &signature, &self.key);
        Ok((release.map_err(UpdateError::refused(self.fetcher.place()))?, description, signature))
    }

    fn is_newer(&self, release: &Release) -> bool {
        release.version.cmp_precedence(&self.running).is_gt()
    }
}

/// Looks for releases while the agent runs.
struct Updater {
    source: Source,
    interval: Duration,
    receipts: Receipts,
}

impl Updater {
    /// None where updates are off, and on trial: one thing after the other.
    fn configured(config: &AgentConfig, receipts: Receipts) -> Option<Self> {
        let UpdateConfig { url: Some(url), interval, .. } = &config.update else { return None };
        if trial_mark().is_some() {
            return None;
        }
        let Some(dir) = state_dir(config.state_dir.as_deref()) else {
            tracing::error!("no release is looked for, since there is no folder to keep it in: set `state_dir`");
            return None;
        };
        let running = running_version();
        let versions = Versions::new(&dir);
        versions.clean(&running);
        // A wrong key is told as a problem of the configuration.
        let source = Source::new(url, config.update.key().ok()?, versions, running);
        let told = |error: &UpdateError| tracing::error!(error = %chain(error), "no release is looked for");
        Some(Self { source: source.inspect_err(told).ok()?, interval: *interval, receipts })
    }

    /// Completes once a newer release lies ready and this agent is known to report: one that doesn't could not tell whether the
    /// new one is to blame.
    async fn run(self) {
        let mut wait = first_wait(self.source.versions.last_check_ms(), now_ms(), self.interval, random());
        loop {
            sleep(wait).await;
            let found = self.check().await;
            if let Err(error) = self.source.versions.note_check() {
                tracing::warn!(error = %chain(&error), "failed to note when a release was looked for");
            }
            wait = around(self.interval, random());
            match found {
                Ok(Found::Ready(fetched)) => {
                    tracing::info!(version = %fetched.version, "a newer release is verified, the agent starts anew to try it");
                    return self.receipts.next_heartbeat().await;
                }
                Ok(Found::Nothing { newest }) => tracing::debug!(%newest, "no release is newer"),
                Ok(Found::FailedBefore { version, .. }) => {
                    tracing::debug!(%version, "the newest release has failed here and is not tried again");
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "failed to look for a release");
                    wait = wait.min(around(RETRY, random()));
                }
            }
        }
    }

    /// Fetches on a thread of its own, as it waits for the disk too. It ends when this future is dropped.
    async fn check(&self) -> Result<Found, UpdateError> {
        let (source, runtime, stop) = (self.source.clone(), Handle::current(), CancellationToken::new());
        let _stop_on_drop = stop.clone().drop_guard();
        let fetch = move || runtime.block_on(stop.run_until_cancelled_owned(async move { source.fetch(false).await }));
        let fetched = tokio::task::spawn_blocking(fetch).await;
        // Only a runtime that ends gives neither, and then nobody waits for an answer.
        fetched.ok().flatten().unwrap_or(Err(UpdateError::Busy))
    }
}

/// The wait before the first look, for a `random` from 0 to 1. Hosts that start together look at different times.
fn first_wait(last_ms: Option<i64>, now_ms: i64, interval: Duration, random: f64) -> Duration {
    let passed = last_ms.and_then(|last| u64::try_from(now_ms - last).ok()).map(Duration::from_millis);
    match passed {
        Some(passed) => around(interval, random).saturating_sub(passed).max(interval.mul_f64(0.1 * random)),
        None => interval.mul_f64(random),
    }
}

/// The interval, give or take a tenth.
fn around(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(0.9 + 0.2 * random)
}

/// A number from 0 to 1. It spreads load and protects nothing, which the seed of a hash table is random enough for.
fn random() -> f64 {
    f64::from(RandomState::new().hash_one(()) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const HOUR_MS: i64 = 3_600_000;

    #[test]
    fn the_first_look_is_spread_over_the_interval() {
        let wait = |random| first_wait(None, 5 * HOUR_MS, DAY, random);
        assert_eq!((wait(0.0), wait(0.5), wait(1.0)), (Duration::ZERO, DAY / 2, DAY));
    }

    #[test]
    fn a_restart_does_not_move_the_next_look() {
        let wait = |passed_ms, random| first_wait(Some(10 * HOUR_MS), 10 * HOUR_MS + passed_ms, DAY, random);
        assert_eq!(wait(HOUR_MS, 0.5), DAY - Duration::from_secs(3600));
        assert_eq!(wait(0, 0.0), DAY.mul_f64(0.9));
        // Long overdue, as after a power cut of the whole site: still spread.
        assert_eq!((wait(1000 * HOUR_MS, 0.0), wait(1000 * HOUR_MS, 1.0)), (Duration::ZERO, DAY / 10));
        // Noted by a clock that was ahead.
        assert_eq!(wait(-HOUR_MS, 0.5), DAY / 2);
    }

    #[test]
    fn waits_differ_by_a_tenth() {
        for _ in 0..100 {
            let wait = around(DAY, random());
            assert!((DAY.mul_f64(0.9)..=DAY.mul_f64(1.1)).contains(&wait), "{wait:?}");
        }
        assert!((0..100).any(|_| random() != random()));
    }
}
