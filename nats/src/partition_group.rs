//! Partition groups: the workers of a group share the partitions of `METRICS`.
//!
//! Every member computes the same assignment from the same set of members, by rendezvous hashing with a bound: a partition
//! goes to the member that ranks highest for it and holds less than its share. Members that see different sets for a moment
//! may both read for a partition; the broker's pin lets only one of them have messages, and the lake lets only one commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    Client, NatsConfig, PartitionId,
    client::MemberId,
    members::Membership,
    reader::{PartitionReader, ReaderEvent, Room, StartSource},
    subject::PARTITIONS,
};

/// How often a group looks whether its readers are all running.
const SUPERVISION: Duration = Duration::from_secs(5);

/// Which member reads each partition: at most one partition more for one member than for another.
///
/// Returns an empty map when there is no member.
#[must_use]
pub fn assign(members: &BTreeSet<MemberId>) -> BTreeMap<PartitionId, MemberId> {
    let mut shares: BTreeMap<&MemberId, usize> = members.iter().map(|member| (member, 0)).collect();
    let Some(share) = usize::from(PARTITIONS).checked_div(members.len()) else { return BTreeMap::new() };
    let mut spare = usize::from(PARTITIONS) - share * members.len();
    let mut assignment = BTreeMap::new();
    for partition in PartitionId::all() {
        let best = shares
            .iter()
            .filter(|(_, held)| **held < share || (**held == share && spare > 0))
            .map(|(member, _)| *member)
            .max_by_key(|member| weight(member, partition));
        let Some(member) = best else { continue };
        let held = shares.entry(member).or_default();
        if *held == share {
            spare -= 1;
        }
        *held += 1;
        assignment.insert(partition, member.clone());
    }
    assignment
}

fn weight(member: &MemberId, partition: PartitionId) -> u64 {
    xxh3_64(format!("{member}/{partition}").as_bytes())
}

/// A worker's share of the stream: runs a reader for each partition that is assigned to it.
#[derive(Debug)]
pub struct PartitionGroup<S> {
    client: Client,
    config: NatsConfig,
    group: &'static str,
    member: MemberId,
    start: S,
    room: Room,
}

impl<S: StartSource> PartitionGroup<S> {
    /// A member of `group`; `start` says where a partition's reader begins.
    pub fn new(client: &Client, config: &NatsConfig, group: &'static str, member: MemberId, start: S) -> Self {
        Self { client: client.clone(), config: config.clone(), group, member, start, room: Room::default() }
    }

    /// Joins the group and sends what the assigned partitions' readers yield into `events`, until `shutdown`.
    ///
    /// A partition that is taken away ends with [`ReaderEvent::Stopped`]; what is still uncommitted of it may be committed or
    /// dropped, since the next owner starts from the lake's position. A broker that is away is waited for.
    pub async fn run(self, events: mpsc::Sender<ReaderEvent>, shutdown: CancellationToken) {
        let membership = Membership::new(&self.client, &self.config, self.group, self.member.clone());
        let mut members = membership.members();
        let tracker = TaskTracker::new();
        let leave = CancellationToken::new();
        tracker.spawn(membership.run(leave.clone()));
        let mut readers: BTreeMap<PartitionId, RunningReader> = BTreeMap::new();
        // Readers of partitions that were taken away. One that comes back waits for its former reader: the two must not
        // yield the partition's messages side by side.
        let mut ending: BTreeMap<PartitionId, JoinHandle<()>> = BTreeMap::new();
        let mut told = (0, 0);
        loop {
            let assigned: BTreeSet<PartitionId> = assign(&members.borrow_and_update())
                .into_iter()
                .filter(|(_, member)| *member == self.member)
                .map(|(partition, _)| partition)
                .collect();
            ending.retain(|_, task| !task.is_finished());
            let (kept, taken) = std::mem::take(&mut readers)
                .into_iter()
                .partition(|(partition, reader)| assigned.contains(partition) && !reader.task.is_finished());
            readers = kept;
            for (partition, reader) in taken {
                reader.stop.cancel();
                ending.insert(partition, reader.task);
            }
            for partition in assigned {
                readers
                    .entry(partition)
                    .or_insert_with(|| self.start_reader(partition, ending.remove(&partition), &events, &tracker));
            }
            let now = (members.borrow().len(), readers.len());
            if std::mem::replace(&mut told, now) != now {
                tracing::info!(group = self.group, member.id = %self.member, members = now.0, partitions = now.1, "partitions assigned");
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                changed = members.changed() => if changed.is_err() { break },
                // A reader that broke off is started again.
                () = tokio::time::sleep(SUPERVISION) => {}
            }
        }
        // The readers release their partitions before the heartbeat goes, so that the next owner finds them free.
        readers.values().for_each(|reader| reader.stop.cancel());
        for reader in readers.into_values() {
            let _ = reader.task.await;
        }
        leave.cancel();
        tracker.close();
        tracker.wait().await;
    }

    fn start_reader(
        &self,
        partition: PartitionId,
        former: Option<JoinHandle<()>>,
        events: &mpsc::Sender<ReaderEvent>,
        tracker: &TaskTracker,
    ) -> RunningReader {
        let (start, room) = (self.start.clone(), self.room.clone());
        let reader = PartitionReader::new(&self.client, &self.config, self.group, partition, start, room);
        let stop = CancellationToken::new();
        let (events, stopped) = (events.clone(), stop.clone());
        let task = tracker.spawn(async move {
            if let Some(former) = former
                && former.await.is_err()
            {
                tracing::error!(partition.id = %partition, "the partition's reader broke off and is started again");
            }
            reader.run(events, stopped).await;
        });
        RunningReader { stop, task }
    }
}

/// The reader of an assigned partition.
#[derive(Debug)]
struct RunningReader {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(count: usize) -> BTreeSet<MemberId> {
        (0..count).map(|n| MemberId::from(format!("member-{n}").as_str())).collect()
    }

    #[test]
    fn nobody_is_assigned_nothing() {
        assert!(assign(&BTreeSet::new()).is_empty());
    }

    proptest! {
        #[test]
        fn every_partition_has_one_owner_and_shares_are_even(names in proptest::collection::btree_set("[a-z]{1,8}", 1..20)) {
            let members: BTreeSet<MemberId> = names.iter().map(|name| MemberId::from(name.as_str())).collect();
            let assignment = assign(&members);
            prop_assert_eq!(assignment.len(), usize::from(PARTITIONS));
            let held = |member: &MemberId| assignment.values().filter(|owner| *owner == member).count();
            let most = members.iter().map(held).max().unwrap_or(0);
            let least = members.iter().map(held).min().unwrap_or(0);
            prop_assert!(most - least <= 1, "{most} and {least}");
        }
    }

    #[test]
    fn a_fifth_member_moves_few_partitions() {
        let before = assign(&members(4));
        let after = assign(&members(5));
        let moved = before.iter().filter(|(partition, member)| after[partition] != **member).count();
        assert!(moved <= 8, "{moved} of {PARTITIONS} moved");
    }
}
