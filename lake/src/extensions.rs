//! Where the signed DuckDB extensions are.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::LakeError;

/// Names the folder of the extensions, unless the configuration does.
pub const VARIABLE: &str = "PLIMSOLL_DUCKDB_EXTENSIONS";

/// The file of an extension: in the configured folder, in the one that the environment names, near this executable, or where
/// the build found them. Fails when none has it.
pub fn find(configured: Option<&Path>, name: &'static str) -> Result<PathBuf, LakeError> {
    let near = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
    configured
        .map(Path::to_owned)
        .into_iter()
        .chain(env::var_os(VARIABLE).map(PathBuf::from))
        .chain(near.iter().map(|folder| folder.join("duckdb-extensions")))
        .chain(near.iter().map(|folder| folder.join("../lib/plimsoll/duckdb-extensions")))
        .chain(option_env!("PLIMSOLL_DUCKDB_EXTENSIONS").map(PathBuf::from))
        .map(|folder| folder.join(format!("{name}.duckdb_extension")))
        .find(|path| path.is_file())
        .ok_or(LakeError::ExtensionMissing { name })
}
