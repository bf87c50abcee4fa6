//! Where the lake is; the `[lake]` section of every service that touches it.

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::Deserialize;

/// How to reach the lake.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LakeConfig {
    /// The catalog: `sqlite:<file>` or `postgres:<connection string>`; default `sqlite:./data/lake/catalog.sqlite`.
    pub catalog: String,
    /// Password of the PostgreSQL catalog, where the connection string has none.
    pub catalog_password: Option<SecretString>,
    /// File that holds that password.
    pub catalog_password_file: Option<PathBuf>,
    /// Where the Parquet files are: a folder or `s3://bucket/prefix/`; default `./data/lake/data`.
    pub data_path: String,
    /// The S3 store, where `data_path` is in one.
    pub s3: Option<S3Config>,
    /// Folder with the DuckDB extensions; default where `make tools` put them.
    pub extensions_dir: Option<PathBuf>,
    /// Most memory that DuckDB takes, such as `1GB`; default `1GB`.
    pub memory_limit: String,
    /// Threads that DuckDB uses; default all cores.
    pub threads: Option<u32>,
    /// How long a commit or query waits for another writer of a SQLite catalog, in ms; default 5000.
    pub busy_timeout_ms: u32,
}

impl Default for LakeConfig {
    fn default() -> Self {
        Self::embedded(Path::new("./data/lake"))
    }
}

impl LakeConfig {
    /// The embedded lake in a folder: `catalog.sqlite` and the Parquet files under `data/`.
    #[must_use]
    pub fn embedded(folder: &Path) -> Self {
        Self {
            catalog: format!("sqlite:{}", folder.join("catalog.sqlite").display()),
            catalog_password: None,
            catalog_password_file: None,
            data_path: folder.join("data").display().to_string(),
            s3: None,
            extensions_dir: None,
            memory_limit: "1GB".to_owned(),
            threads: None,
            busy_timeout_ms: 5000,
        }
    }

    /// Every problem that the types don't show.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(self.catalog.starts_with("sqlite:") || self.catalog.starts_with("postgres:")) {
            problems.push("`lake.catalog`: expected `sqlite:<file>` or `postgres:<connection string>`".to_owned());
        }
        if self.data_path.starts_with("s3://") && self.s3.is_none() {
            problems.push("`lake.s3`: expected the section of the S3 store that `lake.data_path` names".to_owned());
        }
        if self.data_path.is_empty() {
            problems.push("`lake.data_path`: expected a folder or `s3://bucket/prefix/`".to_owned());
        }
        problems
    }

    /// Whether catalog and files lie in one folder, as [`LakeConfig::embedded`] places them.
    pub(crate) fn is_embedded(&self) -> bool {
        let beside = self.sqlite_file().and_then(Path::parent).map(|folder| folder.join("data"));
        beside.is_some_and(|beside| beside == Path::new(&self.data_path))
    }

    pub(crate) fn sqlite_file(&self) -> Option<&Path> {
        self.catalog.strip_prefix("sqlite:").map(Path::new)
    }
}

/// An S3 store.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// Host and port of the store; default Amazon's.
    pub endpoint: Option<String>,
    /// Key id.
    pub access_key_id: String,
    /// Secret key.
    pub secret_access_key: Option<SecretString>,
    /// File that holds the secret key.
    pub secret_access_key_file: Option<PathBuf>,
    /// Region; default `us-east-1`.
    #[serde(default = "default_region")]
    pub region: String,
    /// Whether the store speaks TLS; default true.
    #[serde(default = "default_true")]
    pub use_ssl: bool,
    /// `vhost` or `path`; default `path`.
    #[serde(default = "default_url_style")]
    pub url_style: String,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

fn default_true() -> bool {
    true
}

fn default_url_style() -> String {
    "path".to_owned()
}
