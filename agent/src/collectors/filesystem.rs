//! Space and inodes of mounted file systems: /proc/self/mountinfo tells which, statvfs how full.

use std::time::Duration;

use globset::GlobSet;
use plimsoll_nats::event::EventKind;
use rustix::{fs::makedev, io::Errno};

use self::{
    mounts::Mount,
    prober::{Prober, Reply, Space},
};
use super::{CollectError, Collector, proc_file::ProcFile};
use crate::{
    config,
    context::{Context, HostPaths},
    events::{Event, EventSink},
    rows::{Rows, Tables, percent},
};

pub mod mounts;
pub mod prober;

/// How long a file system may take to answer before it counts as hanging until it does.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// Reads space and inodes of every file system that is no pseudo one and not excluded.
#[derive(Debug)]
pub struct Filesystem {
    mountinfo: ProcFile,
    /// The text that `mounts` were taken from: mounts change seldom.
    text: String,
    mounts: Vec<Mounted>,
    prober: Prober,
    exclude: GlobSet,
    paths: HostPaths,
    events: EventSink,
    /// The mount points that may not be asked.
    forbidden: Vec<String>,
    /// The mount points below which something else is seen.
    hidden: Vec<String>,
}

/// A mount and where this process sees it.
#[derive(Debug)]
struct Mounted {
    mount: Mount,
    path: String,
}

impl Filesystem {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self {
            mountinfo: ProcFile::new(context.paths.own("mountinfo")),
            text: String::new(),
            mounts: Vec::new(),
            prober: Prober::new(ANSWER_TIMEOUT),
            exclude: config::path_globs(&context.config.filesystem.exclude),
            paths: context.paths.clone(),
            events: context.events.clone(),
            forbidden: Vec::new(),
            hidden: Vec::new(),
        }
    }

    /// Takes in a new table of mounts, and tells of those that became read-only since the previous one.
    fn learn(&mut self) -> Result<(), CollectError> {
        let mut mounts = mounts::parse(self.mountinfo.text()).map_err(|error| self.mountinfo.unparsed(error))?;
        mounts.retain(|mount| !self.exclude.is_match(&mount.mountpoint));
        for mount in mounts.iter().filter(|mount| mount.read_only) {
            if self.mounts.iter().any(|before| before.mount.is_same(mount) && !before.mount.read_only) {
                self.events.emit(read_only(mount));
            }
        }
        let path = |mount: &Mount| self.paths.at(&mount.mountpoint).to_string_lossy().into_owned();
        self.mounts = mounts.into_iter().map(|mount| Mounted { path: path(&mount), mount }).collect();
        self.prober.keep(|path| self.mounts.iter().any(|mounted| mounted.path == path));
        self.text.clear();
        self.text.push_str(self.mountinfo.text());
        Ok(())
    }
}

impl Collector for Filesystem {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        if self.mountinfo.read()? != self.text {
            self.learn()?;
        }
        self.forbidden.clear();
        self.hidden.clear();
        let rows = tables.only();
        for Mounted { mount, path } in &self.mounts {
            match self.prober.probe(path)? {
                Reply::Space(space) if self.paths.is_elsewhere() && !mount.is_seen_by(&space) => {
                    self.hidden.push(mount.mountpoint.clone());
                }
                // A file system without blocks is a pseudo one that the list of their types does not know.
                Reply::Space(space) if space.blocks == 0 && mount.mountpoint != "/" => {}
                Reply::Space(space) => push(rows, mount, Some(&space)),
                Reply::Refuses(Errno::ACCESS | Errno::PERM) => self.forbidden.push(mount.mountpoint.clone()),
                Reply::Refuses(Errno::NOENT) if self.paths.is_elsewhere() => self.hidden.push(mount.mountpoint.clone()),
                Reply::Refuses(_) | Reply::Hangs => push(rows, mount, None),
            }
        }
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        let forbidden = self.forbidden.iter().map(|mountpoint| {
            format!("`{mountpoint}` is left out: permission denied; the capability CAP_DAC_READ_SEARCH may allow it.")
        });
        let hidden = self.hidden.iter().map(|mountpoint| {
            format!("`{mountpoint}` is left out: the agent does not see it; the host's root has to be mounted with `rslave`.")
        });
        forbidden.chain(hidden).collect()
    }
}

impl Mount {
    /// Whether both are one file system at one place.
    fn is_same(&self, other: &Self) -> bool {
        self.id == other.id && self.mountpoint == other.mountpoint
    }

    /// Whether the path that was asked belongs to this file system. Each part of a btrfs has another number than the whole.
    fn is_seen_by(&self, space: &Space) -> bool {
        let number = |(major, minor): (&str, &str)| Some(makedev(major.parse().ok()?, minor.parse().ok()?));
        self.fstype == "btrfs" || self.id.split_once(':').and_then(number) == Some(space.device)
    }
}

fn read_only(mount: &Mount) -> Event {
    let Mount { device, fstype, mountpoint, .. } = mount;
    let message = format!("`{mountpoint}` ({fstype} on `{device}`) was writable and is read-only now");
    Event::new(EventKind::FilesystemReadOnly, mountpoint.clone(), message)
        .with("device", device.clone())
        .with("fstype", fstype.clone())
}

/// Adds the row of a mount; sizes are nil when it did not say how full it is.
fn push(rows: &mut Rows, mount: &Mount, space: Option<&Space>) {
    let bytes = |blocks: u64| space.map(|space| blocks.saturating_mul(space.block_bytes));
    let (blocks, available) = space.map_or((0, 0), |space| (space.blocks, space.available_blocks));
    let used = blocks.saturating_sub(space.map_or(0, |space| space.free_blocks));
    let (all_inodes, free_inodes) = space.map_or((0, 0), |space| (space.inodes, space.free_inodes));
    let used_inodes = all_inodes.saturating_sub(free_inodes);
    let inodes = |count: u64| (all_inodes > 0).then_some(count);
    rows.push(
        &[("device", &mount.device), ("fstype", &mount.fstype), ("mountpoint", &mount.mountpoint)],
        &[
            ("total_bytes", bytes(blocks).into()),
            ("used_bytes", bytes(used).into()),
            ("available_bytes", bytes(available).into()),
            ("used_percent", percent(used, used.saturating_add(available)).into()),
            ("total_inodes", inodes(all_inodes).into()),
            ("used_inodes", inodes(used_inodes).into()),
            ("free_inodes", inodes(free_inodes).into()),
            ("used_inodes_percent", percent(used_inodes, all_inodes).into()),
            ("read_only", mount.read_only.into()),
            ("responding", space.is_some().into()),
        ],
    );
}

#[cfg(test)]
mod tests;
