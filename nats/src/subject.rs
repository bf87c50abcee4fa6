//! Subjects: the public ones that agents publish on, and the partitioned ones that the stream stores.

use crate::{HostId, Name, NameError, PartitionId, event::EventKind};

/// Partitions of the `METRICS` stream. Part of the contract: changing it moves hosts between partitions.
pub const PARTITIONS: u16 = 16;
/// All public metric subjects.
pub const METRICS_WILDCARD: &str = "plimsoll.metrics.*.*";
/// All stored metric subjects.
pub const PARTITIONED_WILDCARD: &str = "plimsoll.p.*.*.*";
/// All host events.
pub const EVENTS_WILDCARD: &str = "plimsoll.events.*.*";
/// All alert transitions.
pub const ALERTS_WILDCARD: &str = "plimsoll.alerts.>";
/// All queued notifications.
pub const NOTIFY_WILDCARD: &str = "plimsoll.notify.*";
/// All dead messages.
pub const DEAD_WILDCARD: &str = "plimsoll.dead.>";

/// The subject that an agent publishes a batch on: `plimsoll.metrics.<host>.<measurement>`.
#[must_use]
pub fn metrics(host: &HostId, measurement: &Name) -> String {
    format!("plimsoll.metrics.{host}.{measurement}")
}

/// The partition that the broker puts a host's messages into: nats-server's `partition` hashes by FNV-1a, 32 bits wide.
#[must_use]
pub fn partition_of(host: &HostId) -> PartitionId {
    let hash = host.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let partition = hash % u32::from(PARTITIONS);
    u16::try_from(partition).ok().and_then(PartitionId::new).expect("a remainder of PARTITIONS is a partition")
}

/// The filter of every message in a partition.
#[must_use]
pub fn partition_filter(partition: PartitionId) -> String {
    format!("plimsoll.p.{partition}.*.*")
}

/// The filter of every stored message of a host and measurement, whatever its partition.
#[must_use]
pub fn stored_filter(host: &HostId, measurement: &Name) -> String {
    format!("plimsoll.p.*.{host}.{measurement}")
}

/// The subject that the stream stores a batch under: `plimsoll.p.<partition>.<host>.<measurement>`.
#[must_use]
pub fn stored(host: &HostId, measurement: &Name) -> String {
    format!("plimsoll.p.{}.{host}.{measurement}", partition_of(host))
}

/// The filter of stored messages: those of one host, of one measurement, or all.
#[must_use]
pub fn stored_of(host: Option<&HostId>, measurement: Option<&Name>) -> String {
    let partition = host.map_or("*".to_owned(), |host| partition_of(host).to_string());
    format!("plimsoll.p.{partition}.{}.{}", host.map_or("*", |host| host), measurement.map_or("*", |name| name))
}

/// The subject of a host event: `plimsoll.events.<host>.<kind>`.
#[must_use]
pub fn event(host: &HostId, kind: EventKind) -> String {
    format!("plimsoll.events.{host}.{kind}")
}

/// The filter of host events: those of one host, of one kind, or all.
#[must_use]
pub fn event_filter(host: Option<&HostId>, kind: Option<EventKind>) -> String {
    format!("plimsoll.events.{}.{}", host.map_or("*", |host| host), kind.map_or("*", EventKind::as_str))
}

/// The subject of an alert transition: `plimsoll.alerts.<rule>.<host>`.
#[must_use]
pub fn alert(rule: &str, host: &HostId) -> String {
    format!("plimsoll.alerts.{rule}.{host}")
}

/// The subject of a queued notification: `plimsoll.notify.<channel>`.
#[must_use]
pub fn notify(channel: &str) -> String {
    format!("plimsoll.notify.{channel}")
}

/// What a stored subject says about its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricSubject {
    /// The partition that the stream put the message into.
    pub partition: PartitionId,
    /// The host that the message speaks of.
    pub host: HostId,
    /// The measurement that the message carries.
    pub measurement: Name,
}

/// A subject that does not follow the contract.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    /// Not of the form `plimsoll.p.<partition>.<host>.<measurement>`.
    #[error("subject is not of the form `plimsoll.p.<partition>.<host>.<measurement>`")]
    Shape,
    /// The host or measurement token breaks the rules for names.
    #[error("subject carries an invalid name")]
    Name(#[from] NameError),
}

/// A [`MetricSubject`] that borrows its names from the subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricTokens<'a> {
    /// The partition that the stream put the message into.
    pub partition: PartitionId,
    /// The host that the message speaks of, a valid [`HostId`].
    pub host: &'a str,
    /// The measurement that the message carries, a valid [`Name`].
    pub measurement: &'a str,
}

impl<'a> MetricTokens<'a> {
    /// Takes a stored subject apart; fails on other subjects and on invalid names.
    pub fn parse(subject: &'a str) -> Result<Self, SubjectError> {
        let rest = subject.strip_prefix("plimsoll.p.").ok_or(SubjectError::Shape)?;
        let mut tokens = rest.split('.');
        let (Some(partition), Some(host), Some(measurement), None) =
            (tokens.next(), tokens.next(), tokens.next(), tokens.next())
        else {
            return Err(SubjectError::Shape);
        };
        let partition = partition.parse().ok().and_then(PartitionId::new).ok_or(SubjectError::Shape)?;
        HostId::check(host)?;
        Name::check(measurement)?;
        Ok(Self { partition, host, measurement })
    }
}

impl MetricSubject {
    /// Takes a stored subject apart; fails on other subjects and on invalid names.
    pub fn parse(subject: &str) -> Result<Self, SubjectError> {
        let MetricTokens { partition, host, measurement } = MetricTokens::parse(subject)?;
        Ok(Self { partition, host: HostId::parse(host)?, measurement: Name::parse(measurement)? })
    }

    /// The public subject that the message was published on.
    #[must_use]
    pub fn public(&self) -> String {
        metrics(&self.host, &self.measurement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_subjects_are_taken_apart() {
        let subject = MetricSubject::parse("plimsoll.p.7.web-1.cpu").expect("valid");
        assert_eq!(subject.partition.get(), 7);
        assert_eq!(subject.public(), "plimsoll.metrics.web-1.cpu");
        for bad in [
            "plimsoll.p.16.h.cpu",
            "plimsoll.p.x.h.cpu",
            "plimsoll.p.1.h",
            "plimsoll.metrics.h.cpu",
            "plimsoll.p.1.h.x;DROP",
        ] {
            assert!(MetricSubject::parse(bad).is_err(), "{bad}");
        }
    }
}
