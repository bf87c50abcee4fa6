//! Where each partition begins: right after the lake's position.

use std::sync::{Arc, Mutex, PoisonError};

use plimsoll_lake::{Access, Lake, LakeConfig, LakeError, Positions};
use plimsoll_nats::{
    Incarnation, PartitionId,
    reader::{Start, StartError, StartSource},
};

/// Reads positions from the lake over a connection of its own, opened at first use and again after an error.
#[derive(Debug, Clone)]
pub struct LakeStart {
    config: Arc<LakeConfig>,
    lake: Arc<Mutex<Option<Lake>>>,
}

impl LakeStart {
    /// Positions of the lake of this configuration.
    #[must_use]
    pub fn open(config: LakeConfig) -> Self {
        Self { config: Arc::new(config), lake: Arc::default() }
    }

    fn positions(&self) -> Result<Positions, LakeError> {
        let mut guard = self.lake.lock().unwrap_or_else(PoisonError::into_inner);
        let lake = match guard.take() {
            Some(lake) => lake,
            None => Lake::open(&self.config, Access::Read)?,
        };
        let positions = Positions::read(lake.connection())?;
        *guard = Some(lake);
        Ok(positions)
    }
}

impl StartSource for LakeStart {
    async fn start(&self, partition: PartitionId, incarnation: Incarnation) -> Result<Start, StartError> {
        let source = self.clone();
        let positions = tokio::task::spawn_blocking(move || source.positions())
            .await
            .map_err(|error| StartError(error.into()))?
            .map_err(|error| StartError(error.into()))?;
        Ok(Start::After(positions.of(partition, incarnation).sequence))
    }
}
