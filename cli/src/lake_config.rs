//! Where the lake is, for commands that use nothing else.

use std::path::{Path, PathBuf};

use plimsoll_lake::LakeConfig;
use plimsoll_service::config::{ConfigError, Layers, Validate};
use serde::Deserialize;

/// Flags that tell where the lake is.
#[derive(Debug, clap::Args)]
pub struct LakeArgs {
    /// Folder of `plimsoll up` that holds the lake; `catalog` and `data_path` in [lake] and PLIMSOLL_LAKE__… name another lake
    #[arg(long, default_value = "./data", value_name = "DIR")]
    pub data_dir: PathBuf,
}

/// The section of the lake; others may stand beside it.
#[derive(Debug, Deserialize)]
struct LakeSection {
    lake: LakeConfig,
}

impl Validate for LakeSection {
    fn problems(&self) -> Vec<String> {
        self.lake.problems()
    }
}

impl LakeArgs {
    /// Reads the section [lake]: defaults of `plimsoll up`, then file, then variables.
    pub fn config(&self, file: Option<&Path>) -> Result<LakeConfig, ConfigError> {
        let data_dir = std::path::absolute(&self.data_dir).unwrap_or_else(|_| self.data_dir.clone());
        let embedded = LakeConfig::embedded(&data_dir.join("lake"));
        let defaults = [("lake.catalog", embedded.catalog.as_str()), ("lake.data_path", embedded.data_path.as_str())];
        let section: LakeSection = Layers::read(&defaults, "up", &["lake"], file)?.extract()?;
        Ok(section.lake)
    }
}
