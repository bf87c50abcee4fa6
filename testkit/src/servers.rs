//! PostgreSQL and an S3 store that tests of one process share.

use std::sync::{Arc, Weak};

use tokio::sync::Mutex;

use crate::{TestPostgres, TestS3};

/// A catalog's server and a store, each for any number of lakes.
#[derive(Debug)]
pub struct Servers {
    /// PostgreSQL.
    pub postgres: TestPostgres,
    /// The S3 store.
    pub s3: TestS3,
}

static SHARED: Mutex<Weak<Servers>> = Mutex::const_new(Weak::new());

impl Servers {
    /// The servers that the tests which run now share. They end with the last of these.
    ///
    /// # Panics
    /// When they do not start.
    pub async fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().await;
        if let Some(servers) = shared.upgrade() {
            return servers;
        }
        let (postgres, s3) = tokio::join!(TestPostgres::start(), TestS3::start());
        let servers = Arc::new(Self { postgres, s3 });
        *shared = Arc::downgrade(&servers);
        servers
    }
}
