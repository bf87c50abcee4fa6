//! Encoded batches and events on their way to the broker.

use bytes::Bytes;
use plimsoll_nats::{HostId, Name, event::EventKind, streams, subject};
use ulid::Ulid;

/// What stands in a message id where that of a batch has its measurement.
const EVENT: &str = "event";

/// A stream that agents publish to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// `METRICS`, with batches of samples.
    Metrics,
    /// `EVENTS`, with events of hosts.
    Events,
}

impl Stream {
    /// The stream's name at the broker.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Metrics => streams::METRICS,
            Self::Events => streams::EVENTS,
        }
    }
}

/// What a message is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topic {
    /// Samples of a measurement.
    Metrics(Name),
    /// Something that happened.
    Event(EventKind),
}

/// Messages that keep their order: those of one measurement of a host, or the events of a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lane {
    host: HostId,
    /// None for events.
    measurement: Option<Name>,
}

impl Lane {
    /// The samples of a measurement.
    #[must_use]
    pub fn of_measurement(host: HostId, measurement: Name) -> Self {
        Self { host, measurement: Some(measurement) }
    }

    /// The filter of everything that its stream stores of it.
    #[must_use]
    pub fn stored_filter(&self) -> String {
        match &self.measurement {
            Some(measurement) => subject::stored_filter(&self.host, measurement),
            None => subject::event_filter(Some(&self.host), None),
        }
    }
}

impl std::fmt::Display for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.host, self.measurement.as_deref().unwrap_or(EVENT))
    }
}

/// What tells a message from the others of its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number {
    /// The run of the agent that numbered it.
    pub epoch: Ulid,
    /// The number within run and measurement, or within the events of the run.
    pub seq: u64,
}

impl Number {
    /// Takes the number out of a message id; none when it is no id of an agent.
    #[must_use]
    pub fn of_id(id: &str) -> Option<Self> {
        let mut parts = id.rsplit('/');
        let seq = parts.next()?.parse().ok()?;
        let epoch = Ulid::from_string(parts.next()?).ok()?;
        Some(Self { epoch, seq })
    }
}

/// An encoded batch or event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The host that it tells of.
    pub host: HostId,
    /// What it is about.
    pub topic: Topic,
    /// The run of the agent that made it.
    pub epoch: Ulid,
    /// Its number within its run and measurement, or within the events of its run.
    pub seq: u64,
    /// Whether the payload is compressed with zstd.
    pub compressed: bool,
    /// A batch as MessagePack, or an event as JSON.
    pub payload: Bytes,
}

impl Message {
    /// The lane that it keeps its place in.
    #[must_use]
    pub fn lane(&self) -> Lane {
        let measurement = match &self.topic {
            Topic::Metrics(measurement) => Some(measurement.clone()),
            Topic::Event(_) => None,
        };
        Lane { host: self.host.clone(), measurement }
    }

    /// What tells it from the others of its lane.
    #[must_use]
    pub fn number(&self) -> Number {
        Number { epoch: self.epoch, seq: self.seq }
    }

    /// The subject to publish it on.
    #[must_use]
    pub fn subject(&self) -> String {
        match &self.topic {
            Topic::Metrics(measurement) => subject::metrics(&self.host, measurement),
            Topic::Event(kind) => subject::event(&self.host, *kind),
        }
    }

    /// Its `Nats-Msg-Id`: `<host>/<measurement>/<epoch>/<seq>`, or `<host>/event/<epoch>/<seq>`.
    #[must_use]
    pub fn id(&self) -> String {
        let name = match &self.topic {
            Topic::Metrics(measurement) => measurement,
            Topic::Event(_) => EVENT,
        };
        format!("{}/{name}/{}/{}", self.host, self.epoch, self.seq)
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::{
        Batch,
        async_nats::HeaderMap,
        batch::{ENCODING_HEADER, ENCODING_ZSTD},
    };

    use super::*;

    impl Message {
        /// The batch that it carries.
        pub fn batch(&self) -> Batch {
            let Topic::Metrics(measurement) = &self.topic else { panic!("a batch, not {:?}", self.topic) };
            let mut headers = HeaderMap::new();
            if self.compressed {
                headers.insert(ENCODING_HEADER, ENCODING_ZSTD);
            }
            Batch::decode(&self.host, measurement, Some(&headers), &self.payload).unwrap()
        }
    }

    fn message(topic: Topic) -> Message {
        let host = HostId::parse("h").unwrap();
        Message { host, topic, epoch: Ulid::generate(), seq: 7, compressed: false, payload: Bytes::new() }
    }

    #[test]
    fn an_id_tells_run_and_number() {
        let cpu = message(Topic::Metrics(Name::parse("cpu").unwrap()));
        assert_eq!(cpu.id(), format!("h/cpu/{}/7", cpu.epoch));
        assert_eq!(Number::of_id(&cpu.id()), Some(cpu.number()));
        let event = message(Topic::Event(EventKind::Reboot));
        assert_eq!(event.id(), format!("h/event/{}/7", event.epoch));
        assert_eq!(Number::of_id(&event.id()), Some(event.number()));
        for bad in ["", "7", "/", "h/cpu//7", "h/cpu/x", "h/cpu/x/7"] {
            assert_eq!(Number::of_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn events_of_a_host_share_a_lane() {
        let (reboot, step) = (message(Topic::Event(EventKind::Reboot)), message(Topic::Event(EventKind::ClockStep)));
        assert_eq!(reboot.lane(), step.lane());
        assert_eq!(reboot.lane().stored_filter(), "plimsoll.events.h.*");
        assert_eq!(reboot.subject(), "plimsoll.events.h.reboot");
        let cpu = message(Topic::Metrics(Name::parse("cpu").unwrap()));
        assert_eq!(
            (cpu.lane().stored_filter(), cpu.subject()),
            ("plimsoll.p.*.h.cpu".to_owned(), "plimsoll.metrics.h.cpu".to_owned())
        );
    }
}
