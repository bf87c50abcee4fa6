//! The rules as the bucket `RULES` holds them, followed live.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use plimsoll_nats::{
    Client, Name,
    async_nats::jetstream::kv,
    dead::chain,
    rule::{Rule, RuleError},
    streams,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::retry::Backoff;

/// All valid rules by name, disabled ones included.
pub(crate) type Rules = Arc<BTreeMap<Name, Arc<Rule>>>;

/// The shortest lookback, whatever the rules say.
const MIN_LOOKBACK: Duration = Duration::from_secs(60);

/// How far back rows must be replayed so that each rule has its window, its `for` and a silence before now.
pub(crate) fn lookback(rules: &Rules) -> Duration {
    let enabled = rules.values().filter(|rule| rule.enabled);
    let longest = enabled.map(|rule| rule.window + rule.hold + rule.no_data_after).max();
    longest.unwrap_or_default().max(MIN_LOOKBACK)
}

/// Follows the bucket and tells of each change. The rules are none until all have been read once.
#[derive(Debug)]
pub(crate) struct RuleWatcher {
    client: Client,
    rules: watch::Sender<Option<Rules>>,
}

/// Why the rules cannot be read now.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Open(#[from] streams::DeclareError),
    #[error("failed to read the rules")]
    Read(#[source] plimsoll_nats::async_nats::Error),
    #[error("the watch of the rules ended")]
    Ended,
}

/// Why a document is no rule.
#[derive(Debug, thiserror::Error)]
enum DocumentError {
    #[error("the document is not a rule")]
    Json(#[from] serde_json::Error),
    #[error("the rule says that its name is `{0}`")]
    Name(Name),
    #[error("the rule is not valid: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<RuleError>),
}

impl RuleWatcher {
    pub fn new(client: &Client) -> Self {
        Self { client: client.clone(), rules: watch::Sender::new(None) }
    }

    pub fn subscribe(&self) -> watch::Receiver<Option<Rules>> {
        self.rules.subscribe()
    }

    /// Follows the bucket until `shutdown`, waiting for a broker that is away.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut backoff = Backoff::default();
        while !shutdown.is_cancelled() {
            let ended = shutdown.run_until_cancelled(self.follow(&mut backoff)).await;
            if let Some(Err(error)) = ended {
                tracing::warn!(error = %chain(&error), "lost sight of the rules, trying again");
                backoff.pause(&shutdown).await;
            }
        }
    }

    async fn follow(&self, backoff: &mut Backoff) -> Result<(), WatchError> {
        let bucket = streams::bucket(&self.client, streams::RULES).await?;
        let is_empty = bucket.status().await.map_err(|error| WatchError::Read(error.into()))?.values() == 0;
        let mut entries = bucket.watch_with_history(">").await.map_err(|error| WatchError::Read(error.into()))?;
        let mut rules = BTreeMap::new();
        let mut complete = is_empty;
        if complete {
            self.publish(&rules);
        }
        while let Some(entry) = entries.next().await {
            let entry = entry.map_err(|error| WatchError::Read(error.into()))?;
            *backoff = Backoff::default();
            self.note(&entry, &mut rules);
            // Until the first reading is complete a rule that is still to come must not look deleted.
            complete |= entry.delta == 0;
            if complete {
                self.publish(&rules);
            }
        }
        Err(WatchError::Ended)
    }

    fn note(&self, entry: &kv::Entry, rules: &mut BTreeMap<Name, Arc<Rule>>) {
        if entry.operation != kv::Operation::Put {
            rules.remove(entry.key.as_str());
            return;
        }
        match parse(&entry.key, &entry.value) {
            Ok(rule) => {
                rules.insert(rule.name.clone(), Arc::new(rule));
            }
            Err(error) => {
                tracing::warn!(rule.name = %entry.key, error = %chain(&error), "ignored a document in RULES");
                let known = self.rules.borrow().as_ref().and_then(|known| known.get(entry.key.as_str()).cloned());
                if let Some(known) = known {
                    rules.entry(known.name.clone()).or_insert(known);
                }
            }
        }
    }

    fn publish(&self, rules: &BTreeMap<Name, Arc<Rule>>) {
        self.rules.send_if_modified(|known| {
            let changed = known.as_deref() != Some(rules);
            if changed {
                tracing::info!(rules = rules.len(), "rules read");
                *known = Some(Arc::new(rules.clone()));
            }
            changed
        });
    }
}

fn parse(key: &str, document: &[u8]) -> Result<Rule, DocumentError> {
    let rule: Rule = serde_json::from_slice(document)?;
    if &*rule.name != key {
        return Err(DocumentError::Name(rule.name));
    }
    rule.validate().map_err(DocumentError::Invalid)?;
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = r#"{"name":"hot","measurement":"cpu","field":"usage_percent","compare":">","threshold":90}"#;

    #[test]
    fn a_document_must_be_a_valid_rule_of_its_key() {
        assert!(parse("hot", RULE.as_bytes()).is_ok());
        for (key, document) in [
            ("cold", RULE.to_owned()),
            ("hot", RULE.replace("90", "\"90\"")),
            ("hot", RULE.replace("}", r#","window":"0s"}"#)),
            ("hot", RULE.replace("}", r#","extra":1}"#)),
        ] {
            assert!(parse(key, document.as_bytes()).is_err(), "{key} {document}");
        }
    }

    #[test]
    fn the_lookback_covers_window_hold_and_silence() {
        let rule = |window: u64, enabled: bool| {
            let rule = parse("hot", RULE.as_bytes()).expect("valid");
            Arc::new(Rule { window: Duration::from_secs(window), enabled, ..rule })
        };
        let rules = |rules: &[Arc<Rule>]| -> Rules {
            let name = |n: usize| Name::parse(&format!("rule_{n}")).expect("a name");
            Arc::new(rules.iter().enumerate().map(|(n, rule)| (name(n), Arc::clone(rule))).collect())
        };
        assert_eq!(lookback(&rules(&[])), MIN_LOOKBACK);
        assert_eq!(lookback(&rules(&[rule(300, true), rule(10, true), rule(900, false)])), Duration::from_secs(360));
    }
}
