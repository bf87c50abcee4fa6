//! Space and inodes of mounted file systems: /proc/self/mountinfo tells which, statvfs how full.

use std::time::Duration;

use rustix::fs::StatVfs;

use self::{mounts::Mount, prober::Prober};
use super::{CollectError, Collector, proc_file::ProcFile};
use crate::{
    context::Context,
    rows::{Rows, Tables, percent},
};

pub mod mounts;
pub mod prober;

/// How long a file system may take to answer before it is left out until it does.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// Reads space and inodes of every file system that is no pseudo one.
#[derive(Debug)]
pub struct Filesystem {
    mountinfo: ProcFile,
    prober: Prober,
}

impl Filesystem {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self { mountinfo: ProcFile::new(context.paths.own("mountinfo")), prober: Prober::new(ANSWER_TIMEOUT) }
    }
}

impl Collector for Filesystem {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        let mounts = mounts::parse(self.mountinfo.read()?).map_err(|error| self.mountinfo.unparsed(error))?;
        self.prober.keep(|path| mounts.iter().any(|mount| mount.mountpoint == path));
        for mount in &mounts {
            if let Some(space) = self.prober.probe(&mount.mountpoint)? {
                push(rows, mount, &space);
            }
        }
        Ok(())
    }
}

fn push(rows: &mut Rows, mount: &Mount, space: &StatVfs) {
    if space.f_blocks == 0 && mount.mountpoint != "/" {
        return;
    }
    let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
    let used = space.f_blocks.saturating_sub(space.f_bfree);
    let inodes = |count: u64| (space.f_files > 0).then_some(count);
    let used_inodes = space.f_files.saturating_sub(space.f_ffree);
    rows.push(
        &[("device", &mount.device), ("fstype", &mount.fstype), ("mountpoint", &mount.mountpoint)],
        &[
            ("total_bytes", bytes(space.f_blocks).into()),
            ("used_bytes", bytes(used).into()),
            ("available_bytes", bytes(space.f_bavail).into()),
            ("used_percent", percent(used, used.saturating_add(space.f_bavail)).into()),
            ("total_inodes", inodes(space.f_files).into()),
            ("used_inodes", inodes(used_inodes).into()),
            ("free_inodes", inodes(space.f_ffree).into()),
            ("used_inodes_percent", percent(used_inodes, space.f_files).into()),
            ("read_only", mount.read_only.into()),
        ],
    );
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::catalog;

    use super::*;

    #[test]
    fn the_root_of_this_host_is_told() {
        let mut tables = Tables::new(catalog::measurement("filesystem"));
        Filesystem::new(&Context::default()).collect(&mut tables).unwrap();
        let columns = tables.only().take();
        let root = columns.tags["mountpoint"].iter().position(|path| path == "/").expect("a root");
        let total = columns.fields["total_bytes"].number(root).unwrap();
        let used = columns.fields["used_bytes"].number(root).unwrap();
        assert!(total > 0.0 && used <= total);
    }
}
