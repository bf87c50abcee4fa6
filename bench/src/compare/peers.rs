//! Where the others come from: Debian's packages, unpacked without being installed, so that no service starts.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use super::CompareError;

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
        return Ok(Peer { version: version(package, &binary), binary });
    }
    let root = folder.join(package);
    let binary = root.join("usr/bin").join(package);
    if !binary.is_file() {
        unpack(package, &root).map_err(|source| CompareError::Peer { package, source })?;
    }
    Ok(Peer { version: version(package, &binary), binary })
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

/// As the package tells it where there is one, since Debian's binaries do not all know their own.
fn version(package: &str, binary: &Path) -> String {
    let installed = Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]).output();
    let available = || Command::new("apt-cache").args(["show", "--no-all-versions", package]).output();
    let known = |output: io::Result<std::process::Output>| {
        output
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let of_package = known(installed).filter(|version| !version.is_empty()).or_else(|| {
        let text = known(available())?;
        text.lines().find_map(|line| line.strip_prefix("Version: ")).map(str::to_owned)
    });
    of_package.or_else(|| known(Command::new(binary).arg("--version").output())).unwrap_or_default().trim().to_owned()
}
