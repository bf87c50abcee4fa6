//! Processes and containers.

use super::{
    host::{Moment, Shape, Source},
    random::Random,
    rows::{Rows, Value},
    walk::{Counter, Walk},
};

const TICKS: f64 = 100.0;
const PAGE: i64 = 4096;

/// The largest processes, which stay mostly the same.
pub(super) struct Processes {
    processes: Vec<Process>,
}

struct Process {
    tags: [String; 2],
    command: &'static str,
    user: &'static str,
    started_at: i64,
    threads: i64,
    weight: f64,
    ticks: Counter,
    pages: Walk,
    virtual_bytes: i64,
    read: Counter,
    written: Counter,
    files: Walk,
}

/// Name, command, user, threads, share of the load.
const PROGRAMS: [(&str, &str, &str, i64, f64); 16] = [
    ("postgres", "/usr/lib/postgresql/15/bin/postgres", "postgres", 1, 0.2),
    ("java", "/usr/bin/java", "app", 87, 0.25),
    ("nginx", "/usr/sbin/nginx", "www-data", 1, 0.08),
    ("dockerd", "/usr/bin/dockerd", "root", 24, 0.02),
    ("containerd", "/usr/bin/containerd", "root", 19, 0.02),
    ("systemd", "/sbin/init", "root", 1, 0.0),
    ("systemd-journal", "/lib/systemd/systemd-journald", "root", 1, 0.01),
    ("rsyslogd", "/usr/sbin/rsyslogd", "root", 4, 0.01),
    ("sshd", "/usr/sbin/sshd", "root", 1, 0.0),
    ("cron", "/usr/sbin/cron", "root", 1, 0.0),
    ("redis-server", "/usr/bin/redis-server", "redis", 5, 0.05),
    ("python3", "/usr/bin/python3", "app", 3, 0.1),
    ("node", "/usr/bin/node", "app", 11, 0.15),
    ("plimsoll-agent", "/usr/bin/plimsoll-agent", "plimsoll", 4, 0.002),
    ("kworker/u8", "[kworker/u8:2]", "root", 1, 0.01),
    ("snapd", "/usr/lib/snapd/snapd", "root", 16, 0.0),
];

impl Processes {
    pub(super) fn new(shape: &Shape, random: &mut Random, now_ms: i64) -> Self {
        let process = |index: usize| {
            let (name, command, user, threads, weight) = PROGRAMS[index % PROGRAMS.len()];
            Process {
                tags: [(300 + index * 37 + random.below(30)).to_string(), name.to_owned()],
                command,
                user,
                started_at: now_ms / 1000 - random.within(1e3, 2e6) as i64,
                threads,
                weight,
                ticks: Counter::grown(random, weight * 40.0),
                pages: Walk::new(random, 1e3, 3e5, 20.0),
                virtual_bytes: (random.within(1e3, 1e6) as i64) * PAGE,
                read: Counter::grown(random, weight * 3e4),
                written: Counter::grown(random, weight * 2e5),
                files: Walk::new(random, 5.0, 300.0, 1.0),
            }
        };
        Self { processes: (0..shape.processes).map(process).collect() }
    }
}

impl Source for Processes {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows) {
        let seconds = moment.seconds;
        for process in &mut self.processes {
            let used = random.count(moment.load * process.weight * TICKS * seconds);
            process.ticks.add(used);
            // Only who has run has written.
            let amount = |rate: f64, random: &mut Random| {
                if used > 0 { random.count(rate * process.weight * seconds / 4096.0) * 4096 } else { 0 }
            };
            let (read, written) = (amount(2e4, random), amount(3e5, random));
            let a_second = |bytes: u64| Value::Float(bytes as f64 / seconds);
            rows.push(
                moment.time_ms,
                &process.tags,
                &[
                    ("parent_pid", 1_i64.into()),
                    ("command", process.command.into()),
                    ("user", process.user.into()),
                    ("state", if used > 0 && random.happens(0.3) { "running" } else { "sleeping" }.into()),
                    ("threads", process.threads.into()),
                    ("open_files", process.files.whole(random, seconds).into()),
                    ("cpu_percent", (used as f64 / seconds).into()),
                    ("cpu_seconds_total", process.ticks.seconds(TICKS).into()),
                    ("resident_bytes", (process.pages.whole(random, seconds) * PAGE).into()),
                    ("virtual_bytes", process.virtual_bytes.into()),
                    ("read_bytes_total", process.read.add(read).into()),
                    ("written_bytes_total", process.written.add(written).into()),
                    ("read_bytes_per_second", a_second(read)),
                    ("written_bytes_per_second", a_second(written)),
                    ("started_at_seconds", process.started_at.into()),
                ],
            );
        }
    }

    fn reboot(&mut self) {
        for process in &mut self.processes {
            [&mut process.ticks, &mut process.read, &mut process.written].into_iter().for_each(Counter::reset);
        }
    }
}

/// All processes together.
pub(super) struct Summary {
    processes: Walk,
}

impl Summary {
    pub(super) fn new(random: &mut Random) -> Self {
        Self { processes: Walk::new(random, 120.0, 500.0, 1.0) }
    }
}

impl Source for Summary {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows) {
        let processes = self.processes.whole(random, moment.seconds);
        let running = 1 + (moment.load * 3.0) as i64;
        let idle = processes / 3;
        let values = [
            ("processes", processes),
            ("running", running),
            ("sleeping", processes - running - idle),
            ("blocked", i64::from(random.happens(0.02))),
            ("idle", idle),
            ("stopped", 0),
            ("zombie", 0),
            ("other", 0),
            ("threads", processes * 3),
        ];
        rows.push(moment.time_ms, &[""; 0], &values.map(|(name, value)| (name, Value::Integer(value))));
    }
}

/// Containers of a host that has some.
pub(super) struct Containers {
    containers: Vec<Container>,
}

struct Container {
    tags: [String; 4],
    weight: f64,
    limit: Option<i64>,
    usage_us: Counter,
    system_us: Counter,
    pages: Walk,
    file_pages: Walk,
    pids: Walk,
    io: [Counter; 4],
}

impl Containers {
    pub(super) fn new(shape: &Shape, random: &mut Random) -> Self {
        const IMAGES: [&str; 6] = ["api:1.14", "postgres:15", "redis:7", "worker:1.14", "nginx:1.25", "exporter:0.9"];
        let container = |index: usize| {
            let image = IMAGES[index % IMAGES.len()];
            let name = format!("{}-{index}", image.split(':').next().unwrap_or(image));
            let weight = random.within(0.0, 0.3);
            Container {
                tags: [format!("{:012x}", random.next() >> 16), name, image.to_owned(), "docker".to_owned()],
                weight,
                limit: random.pick([None, Some(1 << 30), Some(4 << 30)]),
                usage_us: Counter::grown(random, weight * 4e5),
                system_us: Counter::grown(random, weight * 1e5),
                pages: Walk::new(random, 2e3, 2e5, 50.0),
                file_pages: Walk::new(random, 1e2, 1e5, 5.0),
                pids: Walk::new(random, 1.0, 60.0, 0.2),
                io: [3e4, 2e5, 4.0, 30.0].map(|rate| Counter::grown(random, rate * weight)),
            }
        };
        Self { containers: (0..shape.containers).map(container).collect() }
    }
}

impl Source for Containers {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows) {
        let seconds = moment.seconds;
        for container in &mut self.containers {
            let work = moment.load * container.weight * seconds;
            let used = random.count(work * 1e6);
            container.usage_us.add(used);
            container.system_us.add(used / 4);
            let (anon, file) =
                (container.pages.whole(random, seconds) * PAGE, container.file_pages.whole(random, seconds) * PAGE);
            let [read_bytes, written_bytes, reads, writes] = &mut container.io;
            let (read, written) = (random.count(work * 2.0), random.count(work * 40.0));
            let passed_us = seconds * 1e6 * random.within(0.9995, 1.0005);
            let (total, system) = (container.usage_us.seconds(1e6), container.system_us.seconds(1e6));
            rows.push(
                moment.time_ms,
                &container.tags,
                &[
                    ("cpu_percent", (used as f64 / passed_us * 100.0).into()),
                    ("cpu_usage_seconds_total", total.into()),
                    ("cpu_user_seconds_total", (total - system).into()),
                    ("cpu_system_seconds_total", system.into()),
                    ("cpu_periods_total", 0_i64.into()),
                    ("cpu_throttled_periods_total", 0_i64.into()),
                    ("cpu_throttled_seconds_total", 0.0.into()),
                    ("memory_used_bytes", (anon + file).into()),
                    ("memory_limit_bytes", container.limit.into()),
                    ("memory_working_set_bytes", (anon + file / 2).into()),
                    ("memory_anon_bytes", anon.into()),
                    ("memory_file_bytes", file.into()),
                    ("swap_used_bytes", 0_i64.into()),
                    ("oom_kills_total", 0_i64.into()),
                    ("read_bytes_total", read_bytes.add(read * 4096).into()),
                    ("written_bytes_total", written_bytes.add(written * 8192).into()),
                    ("reads_total", reads.add(read).into()),
                    ("writes_total", writes.add(written).into()),
                    ("pids", container.pids.whole(random, seconds).into()),
                    ("pids_limit", Value::Nil),
                ],
            );
        }
    }

    fn reboot(&mut self) {
        for container in &mut self.containers {
            container.usage_us.reset();
            container.system_us.reset();
            container.io.iter_mut().for_each(Counter::reset);
        }
    }
}
