//! Where the lake is; the `[lake]` section of every service that touches it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::SecretString;
use serde::Deserialize;

use crate::LakeError;

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
    /// Most disk that DuckDB takes for what its memory does not hold, such as `10GB`; default `10GB`.
    pub temp_limit: String,
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
            temp_limit: "10GB".to_owned(),
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
        for (key, size) in [("memory_limit", &self.memory_limit), ("temp_limit", &self.temp_limit)] {
            if !is_size(size) {
                problems.push(format!("`lake.{key}`: expected a number and a unit, such as `512MB` or `1GiB`"));
            }
        }
        if self.s3.as_ref().is_some_and(|s3| !["path", "vhost"].contains(&s3.url_style.as_str())) {
            problems.push("`lake.s3.url_style`: expected `path` or `vhost`".to_owned());
        }
        if self.s3.as_ref().is_some_and(|s3| s3.timeout < Duration::from_secs(1)) {
            problems.push("`lake.s3.timeout`: expected a duration of at least `1s`".to_owned());
        }
        problems
    }

    /// Whether catalog and files lie in one folder, as [`LakeConfig::embedded`] places them.
    pub(crate) fn is_embedded(&self) -> bool {
        let beside = self.sqlite_file().and_then(Path::parent).map(|folder| folder.join("data"));
        beside.is_some_and(|beside| beside == Path::new(&self.data_path))
    }

    /// The kind of the catalog, to be logged: the connection string may hold a password.
    #[must_use]
    pub fn catalog_kind(&self) -> &str {
        self.catalog.split(':').next().unwrap_or_default()
    }

    pub(crate) fn sqlite_file(&self) -> Option<&Path> {
        self.catalog.strip_prefix("sqlite:").map(Path::new)
    }
}

/// Whether DuckDB takes the text for a size.
fn is_size(text: &str) -> bool {
    const UNITS: [&str; 8] = ["kb", "mb", "gb", "tb", "kib", "mib", "gib", "tib"];
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number = text[..text.len() - unit.len()].parse::<f64>();
    number.is_ok_and(|number| number > 0.0) && UNITS.contains(&unit.trim_start().to_ascii_lowercase().as_str())
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
    /// How long the store may take for an answer, in whole seconds; a request is sent four times before a commit or query fails.
    /// Default `30s`.
    #[serde(default = "default_timeout", with = "humantime_serde")]
    pub timeout: Duration,
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

fn default_timeout() -> Duration {
    Duration::from_secs(30)
}

/// A secret as configured, or from its file.
pub(crate) fn read_secret(
    value: Option<&SecretString>,
    file: Option<&Path>,
) -> Result<Option<SecretString>, LakeError> {
    match (value, file) {
        (Some(value), _) => Ok(Some(value.clone())),
        (None, Some(path)) => std::fs::read_to_string(path)
            .map(|text| Some(SecretString::from(text.trim_end().to_owned())))
            .map_err(|source| LakeError::File { path: path.to_owned(), source }),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_styles_that_duckdb_would_refuse_are_told_at_once() {
        assert_eq!(LakeConfig::default().problems(), [""; 0]);
        for size in ["512MB", "1.5 GiB", "1gb"] {
            assert!(is_size(size), "{size}");
        }
        for size in ["", "GB", "50%", "1000", "0GB", "-1GB", "1PB", "1.2.3GB", "lots"] {
            assert!(!is_size(size), "{size}");
        }
        let s3 = S3Config {
            endpoint: None,
            access_key_id: "id".to_owned(),
            secret_access_key: None,
            secret_access_key_file: None,
            region: default_region(),
            use_ssl: true,
            url_style: "virtual".to_owned(),
            timeout: Duration::from_millis(500),
        };
        let (memory_limit, temp_limit) = ("50%".to_owned(), "much".to_owned());
        let config = LakeConfig { memory_limit, temp_limit, s3: Some(s3), ..LakeConfig::default() };
        let problems = config.problems().join("\n");
        for key in ["lake.memory_limit", "lake.temp_limit", "lake.s3.url_style", "lake.s3.timeout"] {
            assert!(problems.contains(key), "{problems}");
        }
    }
}
