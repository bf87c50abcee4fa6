//! The S3 store: how DuckDB gets at it, and how it is kept from it during a commit.
//!
//! When a commit fails, DuckLake deletes the files that the transaction has written. It can't know whether PostgreSQL did commit and only
//! its answer was lost; then the catalog names files that are gone, and their rows with them. So a commit runs while this DuckDB has no
//! key of the store: all files are written before, and what a failed commit leaves there is an orphan that no query sees.
//!
//! The key is in DuckDB's settings and not in a secret. A secret is changed by a transaction, and DuckLake looks for it outside of
//! the one that is being committed: it found the former one where that transaction had looked into DuckDB's own catalog before the lake.

use duckdb::Connection;
use secrecy::{ExposeSecret, SecretString};

use crate::{LakeError, S3Config, config::read_secret, error::Context, sql::literal};

/// A key id that no store knows.
const NOBODY: &str = "nobody-during-a-commit";

/// The statements that set the store up, give the key and take it away.
#[derive(Debug)]
pub(crate) struct Store {
    set_up: SecretString,
    give: String,
    take: String,
}

impl Store {
    /// Reads the secret's file, where it is in one. Nothing is given yet.
    pub fn new(config: &S3Config) -> Result<Self, LakeError> {
        let secret = read_secret(config.secret_access_key.as_ref(), config.secret_access_key_file.as_deref())?;
        let secret = secret.as_ref().map_or("", |secret| secret.expose_secret());
        Ok(Self {
            set_up: SecretString::from(set_up(config, secret)),
            give: key(&config.access_key_id),
            take: key(NOBODY),
        })
    }

    /// Tells the connection's DuckDB, which has httpfs, where the store is, and gives it the key.
    pub fn set_up(&self, connection: &Connection) -> Result<(), LakeError> {
        connection.execute_batch(self.set_up.expose_secret()).context("set up the S3 store")?;
        self.give(connection)
    }

    /// Lets the connection's DuckDB read, write and delete.
    pub fn give(&self, connection: &Connection) -> Result<(), LakeError> {
        // A watchdog may interrupt this too, and without the key nothing would ever be read or written again.
        const ATTEMPTS: u32 = 1000;
        let give = || connection.execute_batch(&self.give).context("set the credentials of the S3 store");
        let mut attempt = 1;
        loop {
            match give() {
                Err(LakeError::Interrupted) if attempt < ATTEMPTS => attempt += 1,
                given => return given,
            }
        }
    }

    /// Keeps the connection's DuckDB from the store until it is given again.
    pub fn take(&self, connection: &Connection) -> Result<(), LakeError> {
        connection.execute_batch(&self.take).context("withhold the credentials of the S3 store")
    }
}

fn key(id: &str) -> String {
    format!("SET GLOBAL s3_access_key_id = {}", literal(id))
}

fn set_up(config: &S3Config, secret: &str) -> String {
    let endpoint = config.endpoint.as_ref();
    let endpoint = endpoint.map(|host| format!("; SET GLOBAL s3_endpoint = {}", literal(host))).unwrap_or_default();
    format!(
        "SET GLOBAL http_timeout = {}; SET GLOBAL s3_secret_access_key = {}; SET GLOBAL s3_region = {};
         SET GLOBAL s3_use_ssl = {}; SET GLOBAL s3_url_style = {}{endpoint}",
        config.timeout.as_secs(),
        literal(secret),
        literal(&config.region),
        config.use_ssl,
        literal(&config.url_style),
    )
}
