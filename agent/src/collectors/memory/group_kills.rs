//! Which control groups lost processes to OOM kills, for an agent that may not read the kernel's log.
//!
//! Version 2 counts in each group's `memory.events`, the groups below included (Documentation/admin-guide/cgroup-v2.rst); version 1
//! in `memory.oom_control`, each group for itself (Documentation/admin-guide/cgroup-v1/memory.rst).

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use crate::context::HostPaths;

/// Most groups that are looked at.
const MOST_GROUPS: usize = 10_000;

/// The counts of each group as of the last look.
#[derive(Debug)]
pub struct GroupKills {
    /// Where the groups may be, the file that counts, and whether it counts the groups below as well.
    trees: [(PathBuf, &'static str, bool); 2],
    counts: HashMap<String, u64>,
}

impl GroupKills {
    /// Looks at the host of `paths`.
    pub fn new(paths: &HostPaths) -> Self {
        let trees = [
            (paths.sys("fs/cgroup/memory"), "memory.oom_control", false),
            (paths.sys("fs/cgroup"), "memory.events", true),
        ];
        Self { trees, counts: HashMap::new() }
    }

    /// The groups in which processes were killed since the previous look, by path, and how many. At the first look all is new.
    pub fn look(&mut self) -> Vec<(String, u64)> {
        let Some((root, file, includes_lower)) = self.trees.iter().find(|(root, file, _)| has_counts(root, file))
        else {
            return Vec::new();
        };
        let counts = read_counts(root, file);
        let more = |(group, count): (&String, &u64)| {
            let before = self.counts.get(group).copied().unwrap_or(0);
            // A count that fell is that of a new group by an old name.
            (group.clone(), count.checked_sub(before).unwrap_or(*count))
        };
        let mut kills: HashMap<String, u64> = counts.iter().map(more).filter(|(_, more)| *more > 0).collect();
        if *includes_lower {
            leave_to_the_lowest(&mut kills);
        }
        self.counts = counts;
        let mut kills: Vec<(String, u64)> = kills.into_iter().filter(|(_, more)| *more > 0).collect();
        kills.sort_unstable();
        kills
    }
}

/// Whether the groups right below the root count; the root itself does not in version 2.
fn has_counts(root: &Path, file: &str) -> bool {
    root.join(file).exists() || groups_in(root).any(|group| group.join(file).exists())
}

fn groups_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

fn read_counts(root: &Path, file: &str) -> HashMap<String, u64> {
    let mut counts = HashMap::new();
    let mut waiting = vec![root.to_path_buf()];
    let mut seen = 0;
    while let Some(folder) = waiting.pop().filter(|_| seen < MOST_GROUPS) {
        seen += 1;
        if let Some(count) = fs::read_to_string(folder.join(file)).ok().as_deref().and_then(parse) {
            let group = folder.strip_prefix(root).unwrap_or(&folder);
            counts.insert(format!("/{}", group.display()), count);
        }
        waiting.extend(groups_in(&folder));
    }
    counts
}

/// The line `oom_kill <count>`; none on kernels before 4.13.
fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim_ascii().parse().ok()
}

/// Takes from each group what the groups right below it have counted as well.
fn leave_to_the_lowest(kills: &mut HashMap<String, u64>) {
    let counted = kills.clone();
    for (group, count) in &counted {
        if let Some(upper) = group.rsplit_once('/').and_then(|(upper, _)| kills.get_mut(upper)) {
            *upper = upper.saturating_sub(*count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        root: tempfile::TempDir,
        kills: GroupKills,
    }

    impl Host {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let kills = GroupKills::new(&HostPaths::new(root.path()));
            Self { root, kills }
        }

        fn set(&self, file: &str, text: &str) {
            let path = self.root.path().join("sys/fs/cgroup").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    fn told(kills: &[(&str, u64)]) -> Vec<(String, u64)> {
        kills.iter().map(|(group, count)| ((*group).to_owned(), *count)).collect()
    }

    #[test]
    fn a_kill_belongs_to_the_lowest_group_that_counts_it() {
        let mut host = Host::new();
        let events = |count: u64| format!("low 0\nhigh 0\nmax 9\noom 9\noom_kill {count}\noom_group_kill 0\n");
        host.set("system.slice/memory.events", &events(3));
        host.set("system.slice/web.service/memory.events", &events(3));
        assert_eq!(host.kills.look(), told(&[("/system.slice/web.service", 3)]));
        assert!(host.kills.look().is_empty());
        host.set("system.slice/memory.events", &events(7));
        host.set("system.slice/web.service/memory.events", &events(5));
        host.set("system.slice/new.service/memory.events", &events(1));
        // One was in a group that is gone again.
        let expected = [("/system.slice", 1), ("/system.slice/new.service", 1), ("/system.slice/web.service", 2)];
        assert_eq!(host.kills.look(), told(&expected));
        host.set("system.slice/new.service/memory.events", &events(0));
        assert!(host.kills.look().is_empty());
    }

    #[test]
    fn version_1_counts_each_group_for_itself() {
        let mut host = Host::new();
        let control = |count: u64| format!("oom_kill_disable 0\nunder_oom 0\noom_kill {count}\n");
        host.set("memory/memory.oom_control", &control(0));
        host.set("memory/a/memory.oom_control", &control(0));
        host.set("memory/a/b/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n");
        host.kills.look();
        host.set("memory/memory.oom_control", &control(1));
        host.set("memory/a/memory.oom_control", &control(2));
        assert_eq!(host.kills.look(), told(&[("/", 1), ("/a", 2)]));
    }

    #[test]
    fn without_groups_nothing_is_known() {
        assert!(Host::new().kills.look().is_empty());
        for hostile in ["", "oom_kill", "oom_kill -1", "oom_kill x\noom_kill 1", "xoom_kill 1"] {
            assert_eq!(parse(hostile), None, "{hostile}");
        }
    }
}
