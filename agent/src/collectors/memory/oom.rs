//! Tells of each process that the kernel kills for want of memory: the counter says how many, the kernel's log who. Where that
//! cannot be read, control groups say where.

use plimsoll_nats::event::EventKind;

use super::{group_kills::GroupKills, kernel_log::KernelLog};
use crate::{
    context::Context,
    events::{Event, EventSink},
};

/// A process that was killed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Victim {
    pid: u32,
    name: String,
    cgroup: Option<String>,
}

/// Watches the counter of kills.
#[derive(Debug)]
pub struct OomWatch {
    log: KernelLog,
    /// Only looked at without a log.
    groups: GroupKills,
    previous: Option<u64>,
    /// Kills that were counted and not told yet.
    owed: u64,
    /// Whether they were looked for before: log and control groups come a moment after the count.
    looked: bool,
    events: EventSink,
}

impl OomWatch {
    /// Watches the host of `context`.
    pub fn new(context: &Context) -> Self {
        let log = KernelLog::new(context.paths.at("/dev/kmsg"));
        let groups = GroupKills::new(&context.paths);
        Self { log, groups, previous: None, owed: 0, looked: false, events: context.events.clone() }
    }

    /// Takes in the counter of this moment. What it shows at first is the past.
    pub fn see(&mut self, kills: Option<u64>) {
        let Some(kills) = kills else {
            return;
        };
        match self.previous.replace(kills) {
            None => self.start(),
            Some(previous) => {
                let more = kills.saturating_sub(previous);
                self.looked &= more == 0;
                self.owed += more;
            }
        }
        if self.owed > 0 {
            self.settle();
        }
    }

    /// Why victims have no name, where that is so.
    pub fn note(&self) -> Option<String> {
        let problem = self.log.problem()?;
        Some(format!(
            "Victims of OOM kills are not named, only their control groups: `/dev/kmsg` cannot be read ({problem}); the capability \
             CAP_SYSLOG may allow it."
        ))
    }

    fn start(&mut self) {
        self.log.skip();
        if self.log.problem().is_some() {
            self.groups.look();
        }
    }

    /// Tells of the victims that are known, and of the others once they could have become so.
    fn settle(&mut self) {
        let events: Vec<(u64, Event)> = if self.log.problem().is_some() {
            self.groups.look().into_iter().map(|(group, count)| (count, of_group(&group, count))).collect()
        } else {
            self.victims().into_iter().map(|victim| (1, victim.event())).collect()
        };
        for (count, event) in events {
            self.owed = self.owed.saturating_sub(count);
            self.events.emit(event);
        }
        if self.owed > 0 && self.looked {
            self.events.emit(unnamed(self.owed));
            self.owed = 0;
        }
        self.looked = self.owed > 0;
    }

    fn victims(&mut self) -> Vec<Victim> {
        let mut victims = Vec::new();
        let mut cgroups = Vec::new();
        self.log.read(|text| {
            cgroups.extend(parse_cgroup(text));
            if let Some((pid, name)) = parse_victim(text) {
                let cgroup = cgroups.iter().rposition(|(of, _)| *of == pid).map(|index| cgroups.swap_remove(index).1);
                victims.push(Victim { pid, name: name.to_owned(), cgroup });
            }
        });
        victims
    }
}

impl Victim {
    fn event(self) -> Event {
        let Self { pid, name, cgroup } = self;
        let place = cgroup.as_ref().map(|cgroup| format!(" of `{cgroup}`")).unwrap_or_default();
        let message = format!("the kernel killed `{name}` (process {pid}){place} for want of memory");
        let event = Event::new(EventKind::OomKill, name.clone(), message).with("pid", pid).with("process", name);
        match cgroup {
            Some(cgroup) => event.with("cgroup", cgroup),
            None => event,
        }
    }
}

fn of_group(group: &str, count: u64) -> Event {
    let message = format!("the kernel killed {} of `{group}` for want of memory", processes(count));
    Event::new(EventKind::OomKill, group, message).with("cgroup", group).with("count", count)
}

fn unnamed(count: u64) -> Event {
    let message = format!("the kernel killed {} for want of memory; which is not known", processes(count));
    Event::new(EventKind::OomKill, "", message).with("count", count)
}

fn processes(count: u64) -> String {
    if count == 1 { "a process".to_owned() } else { format!("{count} processes") }
}

/// Who was killed: `… Killed process <pid> (<name>) total-vm:…`, with `, UID <uid>,` after the name on older kernels
/// (`__oom_kill_process` in mm/oom_kill.c). A name may hold parentheses.
fn parse_victim(text: &str) -> Option<(u32, &str)> {
    let (_, victim) = text.split_once("Killed process ")?;
    let (pid, rest) = victim.split_once(" (")?;
    let end = [") total-vm:", "), UID "].iter().find_map(|end| rest.rfind(end)).or_else(|| rest.find(')'))?;
    Some((pid.parse().ok()?, &rest[..end]))
}

/// The control group that a victim was in: `oom-kill:…,task_memcg=<path>,task=<name>,pid=<pid>,uid=<uid>`, on kernels since 5.0
/// (`dump_oom_summary` in mm/oom_kill.c).
fn parse_cgroup(text: &str) -> Option<(u32, String)> {
    let (_, facts) = text.strip_prefix("oom-kill:")?.split_once(",task_memcg=")?;
    let (cgroup, _) = facts.split_once(",task=")?;
    let (_, pid) = facts.rsplit_once(",pid=")?;
    Some((pid.split(',').next()?.parse().ok()?, cgroup.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, OpenOptions},
        io::Write as _,
        path::{Path, PathBuf},
        process::Command,
        time::{Duration, Instant},
    };

    use plimsoll_nats::catalog;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        collectors::{Collector, memory::Memory},
        context::HostPaths,
        rows::Tables,
    };

    const SUMMARY: &str = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/web,\
                           task_memcg=/web/api,task=java,pid=812,uid=1000";
    const KILLED: &str = "Memory cgroup out of memory: Killed process 812 (java) total-vm:2105376kB, anon-rss:1001472kB, \
                          file-rss:0kB, shmem-rss:0kB, UID:1000 pgtables:2028kB oom_score_adj:0";
    const KILLED_4_20: &str = "Killed process 4195 (ntp (d)), UID 87, total-vm:4312kB, anon-rss:256kB, file-rss:0kB";
    const KILLED_3_10: &str = "Killed process 31 (tail) total-vm:1kB, anon-rss:1kB, file-rss:0kB";

    #[test]
    fn victims_are_found_in_the_words_of_several_kernels() {
        assert_eq!(parse_victim(KILLED), Some((812, "java")));
        assert_eq!(parse_victim(KILLED_4_20), Some((4195, "ntp (d)")));
        assert_eq!(parse_victim(KILLED_3_10), Some((31, "tail")));
        assert_eq!(parse_cgroup(SUMMARY), Some((812, "/web/api".to_owned())));
        for other in
            ["Out of memory: Kill process 4195 (ntpd) score 900 or sacrifice child", "Killed process x (y)", SUMMARY]
        {
            assert_eq!(parse_victim(other), None, "{other}");
        }
    }

    /// A watch whose log is a file.
    fn watch(log: &Path) -> OomWatch {
        OomWatch { log: KernelLog::new(log), ..OomWatch::new(&Context::default()) }
    }

    fn say(log: &Path, texts: &[&str]) {
        let mut file = OpenOptions::new().append(true).open(log).unwrap();
        texts.iter().for_each(|text| writeln!(file, "3,1,1,-;{text}").unwrap());
    }

    fn subjects(watch: &OomWatch) -> Vec<String> {
        watch.events.take().into_iter().map(|event| event.subject).collect()
    }

    #[test]
    fn each_victim_is_told_once_with_its_control_group() {
        let log = tempfile::NamedTempFile::new().unwrap();
        say(log.path(), &[KILLED_3_10]);
        let mut watch = watch(log.path());
        watch.see(Some(7));
        watch.see(Some(7));
        assert!(subjects(&watch).is_empty(), "kills before the start are the past");
        say(log.path(), &[SUMMARY, KILLED, KILLED_4_20]);
        watch.see(Some(9));
        let events = watch.events.take();
        assert_eq!(events[0].message, "the kernel killed `java` (process 812) of `/web/api` for want of memory");
        assert_eq!((&events[0].attributes["pid"], &events[0].attributes["cgroup"]), (&812.into(), &"/web/api".into()));
        assert_eq!(events[1].subject, "ntp (d)");
        watch.see(Some(9));
        assert!(subjects(&watch).is_empty());
    }

    #[test]
    fn a_log_that_comes_late_is_waited_for_and_then_kills_are_counted() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut watch = watch(log.path());
        watch.see(Some(0));
        watch.see(Some(1));
        assert!(subjects(&watch).is_empty());
        say(log.path(), &[KILLED]);
        watch.see(Some(1));
        assert_eq!(subjects(&watch), ["java"]);
        watch.see(Some(3));
        watch.see(Some(3));
        let events = watch.events.take();
        assert_eq!((events.len(), &events[0].attributes["count"]), (1, &2.into()));
        watch.see(Some(3));
        assert!(subjects(&watch).is_empty());
    }

    #[test]
    fn without_the_log_control_groups_are_told_then_numbers_and_a_note_says_why() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("sys/fs/cgroup/web.service");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("memory.events"), "oom_kill 4\n").unwrap();
        let mut watch = OomWatch::new(&Context { paths: HostPaths::new(root.path()), ..Context::default() });
        watch.see(Some(5));
        fs::write(group.join("memory.events"), "oom_kill 6\n").unwrap();
        watch.see(Some(8));
        let events = watch.events.take();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].message, "the kernel killed 2 processes of `/web.service` for want of memory");
        watch.see(Some(8));
        watch.see(Some(8));
        let events = watch.events.take();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].message, "the kernel killed a process for want of memory; which is not known");
        assert!(watch.note().unwrap().contains("CAP_SYSLOG"));
    }

    #[test]
    fn a_counter_that_starts_anew_is_no_kill() {
        let mut watch = watch(Path::new("/nonexistent/kmsg"));
        watch.see(Some(5));
        watch.see(None);
        watch.see(Some(0));
        assert!(subjects(&watch).is_empty());
    }

    /// A control group that may use little memory; removed when dropped.
    struct SmallGroup(PathBuf);

    impl SmallGroup {
        /// None where this process may not make one.
        fn new() -> Option<Self> {
            let name = format!("plimsoll-test-{}", std::process::id());
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")].iter().find_map(
                |(root, limit)| {
                    let folder = Path::new(root).join(&name);
                    fs::create_dir(&folder).ok()?;
                    let group = Self(folder);
                    // Elsewhere than in a file system of control groups, writing would make a file of that name.
                    let limit = Some(group.0.join(limit)).filter(|limit| limit.exists())?;
                    fs::write(limit, "16777216").ok()?;
                    let no_swap = group.0.join("memory.swap.max");
                    (!no_swap.exists() || fs::write(no_swap, "0").is_ok()).then_some(group)
                },
            )
        }
    }

    impl Drop for SmallGroup {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }

    #[test]
    fn a_real_kill_is_told_by_the_log_and_without_it_by_its_control_group() {
        let Some(group) = SmallGroup::new() else {
            println!("skipped: this process may not make a control group with a limit on memory");
            return;
        };
        let context = Context { paths: HostPaths::default(), ..Context::default() };
        let mut memory = Memory::new(&context);
        let mut without_log =
            OomWatch { log: KernelLog::new("/nonexistent/kmsg"), ..OomWatch::new(&Context::default()) };
        without_log.see(Some(0));
        let mut tables = Tables::new(catalog::measurement("memory"));
        memory.collect(&mut tables).unwrap();
        // Should the limit not hold, the second one ends the process in another way.
        let script = format!("ulimit -v 1000000; echo $$ > {}/cgroup.procs && exec tail /dev/zero", group.0.display());
        let status = Command::new("sh").args(["-c", &script]).status().unwrap();
        assert!(!status.success(), "the process was to be killed");
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut events = Vec::new();
        while events.is_empty() {
            assert!(Instant::now() < deadline, "no event");
            memory.collect(&mut tables).unwrap();
            events = context.events.take();
        }
        assert_eq!((events[0].kind, events.len()), (EventKind::OomKill, 1));
        if memory.oom.log.problem().is_none() {
            assert_eq!(events[0].subject, "tail", "{events:?}");
        }
        without_log.see(Some(1));
        let name = group.0.file_name().unwrap().to_str().unwrap();
        assert_eq!(subjects(&without_log), [format!("/{name}")]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "(oom-kill:|,task_memcg=|,task=|,pid=|Killed process |[0-9a-z ()]{0,6}){0,8}") {
            let _ = (parse_victim(&text), parse_cgroup(&text));
        }
    }
}
