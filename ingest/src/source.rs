//! Where each partition begins: right after the lake's position.

use std::time::Duration;

use plimsoll_lake::{Access, Lake, LakeConfig, LakeError, Positions};
use plimsoll_nats::{
    Incarnation, PartitionId,
    dead::{chain, header_text},
    reader::{Start, StartError, StartSource},
};
use plimsoll_service::ops::Readiness;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::lake_thread::{LakeThread, ThreadEnded};

/// How often the lake is looked at though nobody asks where a partition begins.
const CHECK: Duration = Duration::from_secs(5);
/// How long the lake may take to answer before it counts as away.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads positions from the lake over a connection of its own, and tells the readiness whether that works.
#[derive(Debug, Clone)]
pub struct LakeStart {
    lake: LakeThread<Lake>,
    readiness: Readiness,
}

impl LakeStart {
    /// Positions of the lake of this configuration.
    #[must_use]
    pub fn new(config: LakeConfig, readiness: Readiness, tasks: &TaskTracker) -> Self {
        Self { lake: LakeThread::start(move || Lake::open(&config, Access::Read), tasks), readiness }
    }

    async fn positions(&self) -> Result<Result<Positions, LakeError>, ThreadEnded> {
        let read = self.lake.run(|lake| lake.with(|lake| Positions::read(lake.connection()))).await?;
        match &read {
            Ok(_) => self.readiness.clear("lake"),
            Err(error) => self.readiness.fail("lake", header_text(&chain(error))),
        }
        Ok(read)
    }

    /// Looks at the lake from time to time until `stop`, so that the readiness follows it. Fails, and cancels `stop`, when the
    /// thread that reads has ended.
    pub async fn watch(self, stop: CancellationToken) -> Result<(), ThreadEnded> {
        loop {
            let read = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                read = tokio::time::timeout(PATIENCE, self.positions()) => read,
            };
            match read {
                Ok(Ok(_)) => {}
                Ok(Err(ended)) => {
                    stop.cancel();
                    return Err(ended);
                }
                Err(_) => self.readiness.fail("lake", format!("no answer within {} s", PATIENCE.as_secs())),
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(CHECK) => {}
            }
        }
    }
}

impl StartSource for LakeStart {
    async fn start(&self, partition: PartitionId, incarnation: Incarnation) -> Result<Start, StartError> {
        let positions = self.positions().await.map_err(|error| StartError(error.into()))?;
        let positions = positions.map_err(|error| StartError(error.into()))?;
        Ok(Start::After(positions.of(partition, incarnation).sequence))
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_lake::LakeWriter;
    use plimsoll_nats::testing::eventually;
    use tempfile::TempDir;

    use super::*;

    #[tokio::test]
    async fn readiness_follows_the_lake_though_no_partition_starts() {
        let dir = TempDir::new().expect("a folder");
        let config = LakeConfig::embedded(dir.path());
        let (readiness, tasks, stop) = (Readiness::default(), TaskTracker::new(), CancellationToken::new());
        let start = LakeStart::new(config.clone(), readiness.clone(), &tasks);
        let watched = tokio::spawn(start.watch(stop.clone()));
        let limit = 4 * CHECK;
        eventually("the missing lake to be noticed", limit, async || (!readiness.is_ready()).then_some(())).await;
        LakeWriter::open(&config).expect("creates the lake");
        eventually("the lake to be noticed", limit, async || readiness.is_ready().then_some(())).await;
        stop.cancel();
        watched.await.expect("no panic").expect("the thread lives");
        tasks.close();
        tasks.wait().await;
    }
}
