//! Transactions that are tried again while other writers are faster.

use crate::{Lake, LakeError, error::Context};

/// Most tries of a transaction.
const ATTEMPTS: u32 = 10;

/// Runs `work` in a transaction, again from its start while another writer is faster; returns how often that was so, too.
///
/// Fails when that goes on too long, and on every other error; nothing is then written.
pub(super) fn transaction<T>(lake: &Lake, work: impl Fn() -> Result<T, LakeError>) -> Result<(T, u32), LakeError> {
    lake.retried(ATTEMPTS, || once(lake, &work))
}

fn once<T>(lake: &Lake, work: impl Fn() -> Result<T, LakeError>) -> Result<T, LakeError> {
    lake.connection.execute_batch("BEGIN").context("begin a transaction")?;
    let done = work()?;
    lake.commit()?;
    Ok(done)
}
