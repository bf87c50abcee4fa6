//! Which broker and which lake a command works on: those of `plimsoll up` unless it is told others.

use std::path::{Path, PathBuf};

use plimsoll_lake::LakeConfig;
use plimsoll_nats::{NameError, NatsConfig};
use plimsoll_service::config::{ConfigError, Layers, Validate};
use serde::Deserialize;

use crate::data_dir::{DataDir, DataDirError};

/// Flags that say where.
#[derive(Debug, clap::Args)]
pub struct PlaceArgs {
    /// Folder of `plimsoll up`, whose lake is meant unless [lake] or PLIMSOLL_LAKE__… name another
    #[arg(long, default_value = "./data", value_name = "DIR")]
    data_dir: PathBuf,
}

/// The broker and the lake.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Place {
    pub nats: NatsConfig,
    pub lake: LakeConfig,
}

impl Validate for Place {
    fn problems(&self) -> Vec<String> {
        self.nats.problems().into_iter().chain(self.lake.problems()).collect()
    }
}

/// What is wrong with a command line.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Not a lake's address.
    #[error(
        "--into `{into}`: expected a folder, `sqlite:<folder>/catalog.sqlite`, or `postgres:<connection string>` with `data_path` in [lake] \
         or PLIMSOLL_LAKE__DATA_PATH"
    )]
    Into {
        /// The text.
        into: String,
    },
    /// A PostgreSQL catalog has no folder of its own.
    #[error("--into `postgres:…`: say where its files are, by `data_path` in [lake] or PLIMSOLL_LAKE__DATA_PATH")]
    DataPath,
    /// A time is none.
    #[error("--{flag} `{text}`: expected how long ago, such as `6h` or `7d`, or a time such as `2026-11-21T12:00:00Z`")]
    Time {
        /// The flag.
        flag: &'static str,
        /// The text.
        text: String,
    },
    /// Nothing lies between the times.
    #[error("--until must be later than --since, and --since in the past")]
    Interval,
    /// A flag's value is no name.
    #[error("{flag}: expected a name")]
    Name {
        /// The flag.
        flag: &'static str,
        /// What names look like.
        source: NameError,
    },
    /// Hosts or measurements are wrong.
    #[error("--{flag} is wrong")]
    Selection {
        /// The flags.
        flag: &'static str,
        /// Why.
        source: plimsoll_ingest::replay::SelectionError,
    },
}

/// Reads the name that a flag may give. Fails on anything else.
pub fn name<T>(
    flag: &'static str,
    text: Option<&str>,
    parse: impl Fn(&str) -> Result<T, NameError>,
) -> Result<Option<T>, UsageError> {
    text.map(parse).transpose().map_err(|source| UsageError::Name { flag, source })
}

const SECTIONS: [&str; 2] = ["nats", "lake"];

/// Reads the configuration: defaults that follow from the flags, then file and variables, then flags. Sections of services in the
/// file are theirs.
pub fn configure(args: &PlaceArgs, file: Option<&Path>, into: Option<&str>) -> Result<Place, UsageError> {
    let data_dir = std::path::absolute(&args.data_dir).unwrap_or_else(|_| args.data_dir.clone());
    let lake = LakeConfig::embedded(&data_dir.join("lake"));
    let defaults = [("lake.catalog", lake.catalog.as_str()), ("lake.data_path", lake.data_path.as_str())];
    let mut place: Place = Layers::read(&defaults, "cli", &SECTIONS, file)?.extract()?;
    if let Some(into) = into {
        let has_data_path = Layers::read(&[], "cli", &SECTIONS, file)?.contains("lake.data_path");
        place.lake = lake_at(into, place.lake, has_data_path)?;
        let problems = place.problems();
        if !problems.is_empty() {
            return Err(ConfigError::Invalid { problems }.into());
        }
    }
    Ok(place)
}

/// The lake of an address; what the address does not say is as configured.
fn lake_at(into: &str, config: LakeConfig, has_data_path: bool) -> Result<LakeConfig, UsageError> {
    let wrong = || UsageError::Into { into: into.chars().take(80).collect() };
    if into.starts_with("postgres:") {
        return if has_data_path {
            Ok(LakeConfig { catalog: into.to_owned(), ..config })
        } else {
            Err(UsageError::DataPath)
        };
    }
    let folder = match into.strip_prefix("sqlite:") {
        Some(file) => Path::new(file.strip_suffix("/catalog.sqlite").ok_or_else(wrong)?),
        None if into.trim().is_empty() || into.contains("://") || Path::new(into).is_file() => return Err(wrong()),
        None => Path::new(into),
    };
    let folder = std::path::absolute(folder).map_err(|_| wrong())?;
    let LakeConfig { catalog, data_path, .. } = LakeConfig::embedded(&folder);
    Ok(LakeConfig { catalog, data_path, s3: None, catalog_password: None, catalog_password_file: None, ..config })
}

impl Place {
    /// The file of an SQLite catalog.
    pub fn catalog_file(&self) -> Option<&Path> {
        self.lake.catalog.strip_prefix("sqlite:").map(Path::new)
    }

    /// The lake in words.
    pub fn shown(&self) -> String {
        self.catalog_file().map_or_else(
            || format!("the PostgreSQL catalog with `{}`", self.lake.data_path),
            |file| format!("`{}`", file.parent().unwrap_or(file).display()),
        )
    }

    /// Keeps `plimsoll up` away from its lake as long as that is replaced. Fails while it runs.
    pub fn lock(&self) -> Result<Option<DataDir>, DataDirError> {
        let data_dir = self.catalog_file().and_then(Path::parent).and_then(Path::parent);
        data_dir.filter(|folder| folder.join("lock").exists()).map(DataDir::open).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> LakeConfig {
        LakeConfig { memory_limit: "2GB".to_owned(), ..LakeConfig::default() }
    }

    #[test]
    fn an_address_is_a_folder_a_catalog_or_wrong() {
        for into in ["/srv/lake", "/srv/lake/", "sqlite:/srv/lake/catalog.sqlite"] {
            let lake = lake_at(into, config(), false).expect(into);
            assert_eq!(lake.catalog.replace("//", "/"), "sqlite:/srv/lake/catalog.sqlite", "{into}");
            assert_eq!(
                (lake.data_path.replace("//", "/").as_str(), lake.memory_limit.as_str()),
                ("/srv/lake/data", "2GB")
            );
        }
        let relative = lake_at("copy", config(), false).expect("a folder");
        assert!(relative.data_path.starts_with('/') && relative.data_path.ends_with("/copy/data"), "{relative:?}");
        let postgres = lake_at("postgres:dbname=copy", config(), true).expect("a catalog");
        assert_eq!((postgres.catalog.as_str(), postgres.data_path), ("postgres:dbname=copy", config().data_path));
        assert!(matches!(lake_at("postgres:dbname=copy", config(), false), Err(UsageError::DataPath)));
        let file = tempfile::NamedTempFile::new().expect("a file");
        for into in ["", " ", "s3://bucket/prefix", "sqlite:/srv/lake.db", &file.path().display().to_string()] {
            let error = lake_at(into, config(), true).expect_err(into).to_string();
            assert!(error.contains("expected a folder"), "{error}");
        }
    }
}
