//! Where the others come from: Debian's packages, unpacked without being installed, so that no service starts.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use super::CompareError;

/// The file that tells the version of an unpacked package.
const VERSION: &str = "version";

/// A store that Plimsoll is compared with.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) binary: PathBuf,
    pub(super) version: String,
}

/// The binary on `PATH`, else the one of Debian's package, which is unpacked under `folder` at first use.
pub(super) fn find(package: &'static str, folder: &Path) -> Result<Peer, CompareError> {
    let path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    if let Some(binary) = path.iter().map(|folder| folder.join(package)).find(|binary| binary.is_file()) {
        let version = said(Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]))
            .or_else(|| said(Command::new(&binary).arg("--version")))
            .unwrap_or_default();
        return Ok(Peer { version, binary });
    }
    let root = folder.join(package);
    let binary = root.join("usr/bin").join(package);
    if !binary.is_file() {
        unpack(package, &root).map_err(|source| CompareError::Peer { package, source })?;
    }
    let version = fs::read_to_string(root.join(VERSION)).unwrap_or_default();
    Ok(Peer { version, binary })
}

fn unpack(package: &str, root: &Path) -> io::Result<()> {
    // Unpacked beside it first: a folder is there whole or not at all.
    let scratch = root.with_extension("part");
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch)?;
    run(Command::new("apt-get").args(["-q", "download", package]).current_dir(&scratch))?;
    let archives = fs::read_dir(&scratch)?.filter_map(|entry| Some(entry.ok()?.path()));
    let archive = archives.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let archive = archive.ok_or_else(|| io::Error::other("apt-get fetched no package"))?;
    run(Command::new("dpkg").arg("-x").arg(&archive).arg(scratch.join("root")))?;
    // Binaries of Debian do not all know their version.
    let version = said(Command::new("dpkg-deb").arg("--field").arg(&archive).arg("Version"));
    fs::write(scratch.join("root").join(VERSION), version.unwrap_or_default())?;
    let _ = fs::remove_dir_all(root);
    fs::rename(scratch.join("root"), root)?;
    fs::remove_dir_all(&scratch)
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(said.lines().rfind(|line| !line.is_empty()).unwrap_or("it failed").to_owned()))
}

/// What a command prints; none where it fails or prints nothing.
fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!text.is_empty()).then_some(text)
}
