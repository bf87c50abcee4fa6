//! What the stream holds of this run's batches, as the stream itself tells.

use std::collections::BTreeSet;

use plimsoll_nats::{
    Client, HostId, Incarnation, Name, NatsConfig,
    async_nats::{
        HeaderMap,
        header::NATS_MESSAGE_ID,
        jetstream::{
            ErrorCode,
            context::{GetStreamError, GetStreamErrorKind},
            stream::{RawMessageError, RawMessageErrorKind, Stream},
        },
    },
    streams::{self, DeclareError},
    subject,
};
use ulid::Ulid;

use crate::buffer::Doubt;

/// Why the stream could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The stream could not be looked up.
    #[error("failed to look up stream `{}`", streams::METRICS)]
    Lookup(#[from] GetStreamError),
    /// The stream is missing and could not be declared.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// A stored message could not be fetched.
    #[error("failed to fetch what is stored of `{measurement}`")]
    Fetch {
        /// The measurement.
        measurement: Name,
        /// Why.
        source: RawMessageError,
    },
}

/// The `Nats-Msg-Id`s of one run of the agent: `<host>/<measurement>/<epoch>/<seq>`.
#[derive(Debug)]
pub struct MessageIds {
    host: HostId,
    epoch: String,
}

impl MessageIds {
    /// The ids of a host and a run.
    #[must_use]
    pub fn new(host: &HostId, epoch: Ulid) -> Self {
        Self { host: host.clone(), epoch: epoch.to_string() }
    }

    /// The id of a batch.
    #[must_use]
    pub fn of(&self, measurement: &Name, seq: u64) -> String {
        format!("{}/{measurement}/{}/{seq}", self.host, self.epoch)
    }

    /// The number of the batch that a message carries; none when it is not of this run.
    fn seq(&self, headers: &HeaderMap) -> Option<u64> {
        let mut parts = headers.get(NATS_MESSAGE_ID)?.as_str().rsplit('/');
        let seq = parts.next()?.parse().ok()?;
        (parts.next()? == self.epoch).then_some(seq)
    }
}

/// Asks the stream.
#[derive(Debug)]
pub struct Ledger {
    client: Client,
    config: NatsConfig,
    host: HostId,
    stream: Option<Stream>,
    incarnation: Option<Incarnation>,
    reached: u64,
}

impl Ledger {
    /// Asks on this connection about this host.
    #[must_use]
    pub fn new(client: Client, config: NatsConfig, host: HostId) -> Self {
        Self { client, config, host, stream: None, incarnation: None, reached: 0 }
    }

    /// A sequence that the stream is known to have reached.
    #[must_use]
    pub fn reached(&self) -> u64 {
        self.reached
    }

    /// Takes note of a sequence of the stream.
    pub fn reach(&mut self, sequence: u64) {
        self.reached = self.reached.max(sequence);
    }

    /// Looks the stream up, declaring it when it is missing. Returns whether it was made anew since the last time, so that it
    /// counts from 1 again.
    pub async fn open(&mut self) -> Result<bool, LedgerError> {
        // An existing stream is left as it is: a newer service may have declared it otherwise.
        if let Err(error) = self.client.jetstream.get_stream(streams::METRICS).await {
            if !is_missing(&error) {
                return Err(error.into());
            }
            streams::declare(&self.client, &self.config).await?;
        }
        let (stream, incarnation) = streams::metrics(&self.client).await?;
        let anew = self.incarnation.replace(incarnation).is_some_and(|known| known != incarnation);
        if anew {
            self.reached = 0;
        }
        self.reach(stream.cached_info().state.last_sequence);
        self.stream = Some(stream);
        Ok(anew)
    }

    /// Which of the batches in doubt the stream holds.
    ///
    /// Asking for the last one stored would not do: a broker whose leader changes may lose a publish and take the next one.
    /// The leader is asked, as replicas may lag behind.
    pub async fn stored(&self, ids: &MessageIds, doubt: &Doubt) -> Result<BTreeSet<u64>, LedgerError> {
        let mut stored = BTreeSet::new();
        let Some(stream) = &self.stream else {
            return Ok(stored);
        };
        let filter = subject::stored_filter(&self.host, &doubt.measurement);
        let mut from = doubt.after + 1;
        while stored.len() < doubt.seqs.len() {
            match stream.raw_message_builder().sequence(from).next_by_subject(&filter).send().await {
                Ok(message) => {
                    stored.extend(ids.seq(&message.headers).filter(|seq| doubt.seqs.contains(seq)));
                    from = message.sequence + 1;
                }
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => break,
                Err(source) => {
                    return Err(LedgerError::Fetch { measurement: doubt.measurement.clone(), source });
                }
            }
        }
        Ok(stored)
    }
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_told_from_those_of_other_runs() {
        let host = HostId::parse("h").unwrap();
        let cpu = Name::parse("cpu").unwrap();
        let ids = MessageIds::new(&host, Ulid::generate());
        let seq = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(NATS_MESSAGE_ID, id);
            ids.seq(&headers)
        };
        assert_eq!(seq(&ids.of(&cpu, 7)), Some(7));
        assert_eq!(seq(&MessageIds::new(&host, Ulid::generate()).of(&cpu, 7)), None);
        for bad in ["", "7", "/", "h/cpu//7", "h/cpu/x"] {
            assert_eq!(seq(bad), None, "{bad}");
        }
        assert_eq!(ids.seq(&HeaderMap::new()), None);
    }
}
