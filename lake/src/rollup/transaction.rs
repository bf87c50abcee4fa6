//! Transactions that are tried again while other writers are faster.

use crate::{Lake, LakeError, connection::pause, error::Context};

/// Most tries of a transaction.
const ATTEMPTS: u32 = 10;

/// Runs `work` in a transaction, again from its start while another writer is faster; returns how often that was so, too.
///
/// Fails when that goes on too long, and on every other error; nothing is then written.
pub(super) fn transaction<T>(lake: &Lake, work: impl Fn() -> Result<T, LakeError>) -> Result<(T, u32), LakeError> {
    let mut conflicts = 0;
    loop {
        match once(lake, &work) {
            Ok(done) => return Ok((done, conflicts)),
            Err(error) => {
                // Fails when the transaction has ended already, which is as good.
                let _ = lake.connection.execute_batch("ROLLBACK");
                if !error.is_conflict() || conflicts + 1 >= ATTEMPTS {
                    return Err(error);
                }
                conflicts += 1;
                pause(conflicts);
            }
        }
    }
}

fn once<T>(lake: &Lake, work: impl Fn() -> Result<T, LakeError>) -> Result<T, LakeError> {
    lake.connection.execute_batch("BEGIN").context("begin a transaction")?;
    let done = work()?;
    lake.commit()?;
    Ok(done)
}
