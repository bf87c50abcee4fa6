//! Space of mounted file systems.

use globset::GlobSet;
use sysinfo::{DiskRefreshKind, Disks};

use super::push;
use crate::{
    collectors::{CollectError, Collector, portable::refused},
    config,
    context::Context,
    rows::{Tables, percent},
};

/// Reads the space of every disk that the system lists and that is not excluded.
#[derive(Debug)]
pub struct Filesystem {
    exclude: GlobSet,
}

impl Filesystem {
    /// Leaves out what the settings of `context` exclude.
    pub fn new(context: &Context) -> Self {
        Self { exclude: config::path_globs(&context.config.filesystem.exclude) }
    }
}

impl Collector for Filesystem {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        let disks = Disks::new_with_refreshed_list_specifics(DiskRefreshKind::nothing().with_storage());
        for disk in &disks.map_err(refused("the system for its disks"))? {
            let (total, available) = (disk.total_space(), disk.available_space());
            if total == 0 || self.exclude.is_match(disk.mount_point()) {
                continue;
            }
            // What is reserved for the system is not told apart from what is used.
            let used = total.saturating_sub(available);
            push(
                rows,
                &[
                    ("device", &disk.name().to_string_lossy()),
                    ("fstype", &disk.file_system().to_string_lossy()),
                    ("mountpoint", &disk.mount_point().to_string_lossy()),
                ],
                &[
                    ("total_bytes", total.into()),
                    ("used_bytes", used.into()),
                    ("available_bytes", available.into()),
                    ("used_percent", percent(used, total).into()),
                    ("read_only", disk.is_read_only().into()),
                    ("responding", true.into()),
                ],
            );
        }
        Ok(())
    }
}
