//! Transactions that are tried again while other writers are faster.

use crate::{Lake, LakeError, connection::pause};

/// An error that may be the lake's.
pub(crate) trait AsLakeError {
    fn as_lake_error(&self) -> Option<&LakeError>;
}

impl AsLakeError for LakeError {
    fn as_lake_error(&self) -> Option<&LakeError> {
        Some(self)
    }
}

impl Lake {
    /// Runs a transaction, again from its start while another writer is faster, at most `attempts` times in all, and ends it when it
    /// fails; returns how often another writer was faster, too.
    ///
    /// Fails when that goes on too long, and on every other error; nothing is then written.
    pub(crate) fn retried<T, E: AsLakeError>(
        &self,
        attempts: u32,
        transaction: impl Fn() -> Result<T, E>,
    ) -> Result<(T, u32), E> {
        let mut conflicts = 0;
        loop {
            match transaction() {
                Ok(done) => return Ok((done, conflicts)),
                Err(error) => {
                    // Fails when the transaction has ended already, which is as good.
                    let _ = self.connection.execute_batch("ROLLBACK");
                    if conflicts + 1 >= attempts || !error.as_lake_error().is_some_and(LakeError::is_conflict) {
                        return Err(error);
                    }
                    conflicts += 1;
                    pause(conflicts);
                }
            }
        }
    }
}
