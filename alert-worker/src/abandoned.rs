//! Alerts whose partition no member reads, because the broker has nothing left to deliver from it.
//!
//! A reader gets its partition with the first message. When all hosts of a partition vanish while no worker runs, nobody gets
//! it, and their alerts would stay as they are for ever. So every member looks for such alerts now and then, and finds them
//! no data. A member that does read the partition comes to the same by itself, and sooner.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_nats::{
    PartitionId,
    alert::{AlertState, AlertStatus},
    subject,
};

use crate::{
    evaluator::{Evaluator, millis},
    partition::Partition,
    recorder::{Recorder, Stopped},
    rules::Rules,
};

/// How often to look.
pub(crate) const EVERY: Duration = Duration::from_secs(30);
/// How much longer than `no_data_after` a series must have been silent, so that whoever reads its partition is first.
const MARGIN: Duration = Duration::from_secs(60);

/// Which alerts of partitions that are not in `held` have fallen silent.
pub(crate) async fn silent(
    recorder: &Recorder,
    rules: &Rules,
    held: &BTreeMap<PartitionId, Partition>,
    now_ms: i64,
) -> Result<Vec<(PartitionId, AlertState)>, Stopped> {
    let mut evaluator = Evaluator::new(rules.values().cloned());
    for stored in recorder.load().await? {
        let transition = &stored.state.transition;
        let partition = subject::partition_of(&transition.series.host);
        if held.contains_key(&partition) || !matches!(transition.to, AlertStatus::Pending | AlertStatus::Firing) {
            continue;
        }
        let last_ms = recorder.last_message_ms(&transition.series.host, &transition.measurement).await?;
        let heard_ms = last_ms.map_or(transition.at_ms, |last| last.max(transition.at_ms));
        evaluator.restore(&stored.state, heard_ms);
    }
    let mut states = Vec::new();
    evaluator.advance(now_ms.saturating_sub(millis(MARGIN)), &mut states);
    Ok(states.into_iter().map(|state| (subject::partition_of(&state.transition.series.host), state)).collect())
}
