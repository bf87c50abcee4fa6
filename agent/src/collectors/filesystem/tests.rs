use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use plimsoll_nats::{Column, catalog};
use rustix::{
    fs::{major, minor},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use super::*;
use crate::{
    config::{CollectorsConfig, FilesystemConfig},
    rows::Columns,
};

fn tables() -> Tables {
    Tables::new(catalog::measurement("filesystem"))
}

fn read(filesystem: &mut Filesystem) -> Columns {
    let mut tables = tables();
    filesystem.collect(&mut tables).unwrap();
    tables.only().take()
}

fn row_of(columns: &Columns, mountpoint: &str) -> Option<usize> {
    columns.tags["mountpoint"].iter().position(|path| path == mountpoint)
}

fn bool_of(columns: &Columns, field: &str, row: usize) -> Option<bool> {
    match &columns.fields[field] {
        Column::Bool(values) => values[row],
        other => panic!("{other:?}"),
    }
}

/// A host seen through a folder, all of whose mounts are parts of the folder's own file system.
struct Host {
    root: tempfile::TempDir,
    context: Context,
}

impl Host {
    fn new(exclude: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/1")).unwrap();
        let exclude = exclude.iter().map(|&glob| glob.to_owned()).collect();
        let filesystem = FilesystemConfig { exclude, ..FilesystemConfig::default() };
        let config = Arc::new(CollectorsConfig { filesystem, ..CollectorsConfig::default() });
        let context = Context { paths: HostPaths::new(root.path()), config, ..Context::default() };
        Self { root, context }
    }

    /// Lists mounts as (mount point, options). Each is one of its own to the kernel: they differ in type.
    fn mount(&self, mounts: &[(&str, &str)]) {
        let device = self.root.path().metadata().unwrap().dev();
        let id = format!("{}:{}", major(device), minor(device));
        // Only one mount of a number is told, so that each list holds one of this file system and others of none.
        let line = |(index, (point, options)): (usize, &(&str, &str))| {
            let id = if index == 0 { id.clone() } else { format!("999:{index}") };
            format!("{index} 0 {id} / {point} {options} - ext4 /dev/sd{index} rw\n")
        };
        let text: String = mounts.iter().enumerate().map(line).collect();
        fs::write(self.root.path().join("proc/1/mountinfo"), text).unwrap();
        for (point, _) in mounts {
            fs::create_dir_all(self.context.paths.at(point)).unwrap();
        }
    }
}

#[test]
fn the_root_of_this_host_is_told() {
    let columns = read(&mut Filesystem::new(&Context::default()));
    let root = row_of(&columns, "/").expect("a root");
    let total = columns.fields["total_bytes"].number(root).unwrap();
    let used = columns.fields["used_bytes"].number(root).unwrap();
    assert!(total > 0.0 && used <= total);
    assert_eq!(bool_of(&columns, "responding", root), Some(true));
}

#[test]
fn a_host_seen_through_a_folder_is_asked_below_it() {
    let host = Host::new(&[]);
    host.mount(&[("/srv", "rw"), ("/mnt/unseen", "rw")]);
    let mut filesystem = Filesystem::new(&host.context);
    let columns = read(&mut filesystem);
    assert_eq!(columns.tags["mountpoint"], ["/srv"]);
    assert!(columns.fields["total_bytes"].number(0).unwrap() > 0.0);
    // The folder is there, and belongs to another file system than the one that the host has mounted there.
    let notes = filesystem.notes();
    assert!(notes.len() == 1 && notes[0].contains("`/mnt/unseen`") && notes[0].contains("rslave"), "{notes:?}");
}

#[test]
fn excluded_mount_points_are_left_out() {
    let mount = [("/srv/a", "rw")];
    for (exclude, kept) in [("/srv/*", false), ("/**", false), ("/srv", true), ("/*", true), ("/srv/[b-z]", true)] {
        let host = Host::new(&[exclude]);
        host.mount(&mount);
        let columns = read(&mut Filesystem::new(&host.context));
        assert_eq!(!columns.tags["mountpoint"].is_empty(), kept, "{exclude}");
    }
}

#[test]
fn a_mount_that_turns_read_only_is_told_once() {
    let host = Host::new(&[]);
    let mut filesystem = Filesystem::new(&host.context);
    let mut see = |mounts: &[(&str, &str)]| {
        host.mount(mounts);
        read(&mut filesystem);
        host.context.events.take()
    };
    assert!(see(&[("/srv", "rw"), ("/cd", "ro")]).is_empty(), "what is so at the start is no event");
    let events = see(&[("/srv", "ro"), ("/cd", "ro"), ("/new", "ro")]);
    assert_eq!((events.len(), events[0].kind), (1, EventKind::FilesystemReadOnly));
    assert_eq!(events[0].message, "`/srv` (ext4 on `/dev/sd0`) was writable and is read-only now");
    assert_eq!(events[0].attributes["device"], "/dev/sd0");
    assert!(see(&[("/srv", "ro"), ("/cd", "ro")]).is_empty());
    assert!(see(&[("/srv", "rw"), ("/cd", "ro")]).is_empty());
    assert_eq!(see(&[("/srv", "ro"), ("/cd", "ro")])[0].subject, "/srv");
    assert!(see(&[]).is_empty(), "an unmounted one is none");
}

/// Undoes a real mount when dropped.
struct Undo(PathBuf);

impl Drop for Undo {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Mounts a file system whose server never says a word: its end of the connection is held and not read.
fn mount_silent(at: &Path) -> Option<(Undo, File)> {
    let server = File::options().read(true).write(true).open("/dev/fuse").ok()?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0\0", server.as_raw_fd());
    let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
    mount("silent", at, "fuse", MountFlags::empty(), options).ok()?;
    Some((Undo(at.to_path_buf()), server))
}

#[test]
fn a_mount_that_really_hangs_is_told_and_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some((undo, server)) = mount_silent(dir.path()) else {
        println!("skipped: this process may not mount a FUSE file system");
        return;
    };
    let mountpoint = dir.path().to_str().unwrap();
    let mut filesystem = Filesystem::new(&Context::default());
    for _ in 0..3 {
        let columns = read(&mut filesystem);
        let hangs = row_of(&columns, mountpoint).expect("a row of the one that hangs");
        assert_eq!(bool_of(&columns, "responding", hangs), Some(false));
        assert_eq!(columns.fields["total_bytes"].number(hangs), None);
        assert_eq!(columns.fields["used_percent"].number(hangs), None);
        let root = row_of(&columns, "/").expect("a root");
        assert_eq!(bool_of(&columns, "responding", root), Some(true));
    }
    // A dead server makes the kernel answer with an error, which is no answer either.
    drop(server);
    let columns = read(&mut filesystem);
    let dead = row_of(&columns, mountpoint).expect("a row of the one that is dead");
    assert_eq!(bool_of(&columns, "responding", dead), Some(false));
    drop(undo);
    assert_eq!(row_of(&read(&mut filesystem), mountpoint), None);
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_real_file_system_that_an_error_makes_read_only_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (image, point) = (dir.path().join("image"), dir.path().join("mnt"));
    fs::create_dir(&point).unwrap();
    File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let (image, mountpoint) = (image.to_str().unwrap(), point.to_str().unwrap());
    let mounted = succeeds("mkfs.ext4", &["-q", "-F", image])
        && succeeds("mount", &["-o", "loop,errors=remount-ro", image, mountpoint]);
    if !mounted {
        println!("skipped: this process may not mount an ext4 file system from a file");
        return;
    }
    let _undo = Undo(point.clone());
    let context = Context::default();
    let mut filesystem = Filesystem::new(&context);
    let columns = read(&mut filesystem);
    let row = row_of(&columns, mountpoint).expect("a row of the mount");
    assert_eq!(bool_of(&columns, "read_only", row), Some(false));
    let device = columns.tags["device"][row].trim_start_matches("/dev/").to_owned();
    fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "1").unwrap();
    let columns = read(&mut filesystem);
    let row = row_of(&columns, mountpoint).expect("a row of the mount");
    assert_eq!(bool_of(&columns, "read_only", row), Some(true));
    let told = |event: &Event| event.kind == EventKind::FilesystemReadOnly && event.subject == mountpoint;
    assert_eq!(context.events.take().iter().filter(|event| told(event)).count(), 1);
    read(&mut filesystem);
    assert!(!context.events.take().iter().any(told));
}
