//! Processors, pressure, memory and load averages.

use super::{
    host::{Moment, Shape, Source},
    random::Random,
    rows::{Rows, Value},
    walk::{Counter, Walk},
};

/// Ticks of the kernel's clock a second.
const TICKS: f64 = 100.0;
const KIB: i64 = 1024;

/// Shares of whole ticks, as the kernel counts time: that gives them their resolution.
pub(super) struct Cpu {
    names: Vec<String>,
    /// How much of the host's load each core takes.
    weights: Vec<f64>,
    frequencies: Option<Vec<Walk>>,
    virtual_machine: bool,
    only_total: bool,
}

/// Ticks by what a core did.
#[derive(Default, Clone, Copy)]
struct Ticks {
    user: f64,
    nice: f64,
    system: f64,
    iowait: f64,
    softirq: f64,
    steal: f64,
    idle: f64,
}

impl Cpu {
    pub(super) fn new(shape: &Shape, random: &mut Random, only_total: bool) -> Self {
        let frequencies =
            shape.bare_metal.then(|| (0..shape.cores).map(|_| Walk::new(random, 1.2e6, 3.6e6, 2e5)).collect());
        Self {
            names: (0..shape.cores).map(|core| core.to_string()).collect(),
            weights: (0..shape.cores).map(|_| random.within(0.6, 1.4)).collect(),
            frequencies,
            virtual_machine: !shape.bare_metal,
            only_total,
        }
    }

    fn ticks(&self, core: usize, moment: &Moment, random: &mut Random) -> Ticks {
        let all = (moment.seconds * TICKS + random.within(-1.0, 2.0)).floor().max(1.0);
        let busy = (all * moment.load * self.weights[core]).min(all * 0.995);
        let mut left = all;
        let mut take = |mean: f64, random: &mut Random| {
            let ticks = (mean + random.unit()).floor().min(left);
            left -= ticks;
            ticks
        };
        let user = take(busy * 0.68, random);
        let system = take(busy * 0.24, random);
        let softirq = take(busy * 0.03 - 0.4, random).max(0.0);
        let iowait = take(busy * 0.02 - 0.6, random).max(0.0);
        let nice = if random.happens(0.002) { take(busy * 0.05, random) } else { 0.0 };
        let steal = if self.virtual_machine && random.happens(0.03) { take(0.5, random) } else { 0.0 };
        Ticks { user, nice, system, iowait, softirq, steal, idle: left }
    }
}

impl Source for Cpu {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows) {
        let mut total = Ticks::default();
        let all: Vec<Ticks> = (0..self.names.len()).map(|core| self.ticks(core, moment, random)).collect();
        for ticks in &all {
            total.user += ticks.user;
            total.nice += ticks.nice;
            total.system += ticks.system;
            total.iowait += ticks.iowait;
            total.softirq += ticks.softirq;
            total.steal += ticks.steal;
            total.idle += ticks.idle;
        }
        let hertz: Option<Vec<f64>> = self.frequencies.as_mut().map(|frequencies| {
            frequencies.iter_mut().map(|walk| walk.next(random, moment.seconds).floor() * 1e3).collect()
        });
        let average = hertz.as_ref().map(|hertz| hertz.iter().sum::<f64>() / hertz.len() as f64);
        push_cpu(rows, moment, "total", &total, average);
        if !self.only_total {
            for (core, ticks) in all.iter().enumerate() {
                push_cpu(rows, moment, &self.names[core], ticks, hertz.as_ref().map(|hertz| hertz[core]));
            }
        }
    }
}

fn push_cpu(rows: &mut Rows, moment: &Moment, core: &str, ticks: &Ticks, hertz: Option<f64>) {
    let Ticks { user, nice, system, iowait, softirq, steal, idle } = *ticks;
    let busy = user + nice + system + softirq + steal;
    let all = busy + iowait + idle;
    let share = |ticks: f64| Value::Float((ticks / all * 100.0).clamp(0.0, 100.0));
    rows.push(
        moment.time_ms,
        &[core],
        &[
            ("usage_percent", share(busy)),
            ("user_percent", share(user)),
            ("nice_percent", share(nice)),
            ("system_percent", share(system)),
            ("iowait_percent", share(iowait)),
            ("irq_percent", share(0.0)),
            ("softirq_percent", share(softirq)),
            ("steal_percent", share(steal)),
            ("guest_percent", share(0.0)),
            ("idle_percent", share(idle)),
            ("frequency_hertz", hertz.into()),
        ],
    );
}

/// Averages of two decimals and totals in microseconds, as the kernel writes them.
pub(super) struct Pressure {
    resources: [(&'static str, f64, Stalls); 3],
}

#[derive(Default)]
struct Stalls {
    some: Counter,
    full: Counter,
    some_average: f64,
    full_average: f64,
}

impl Pressure {
    pub(super) fn new(random: &mut Random) -> Self {
        let mut stalls = |rate: f64| Stalls {
            some: Counter::grown(random, rate),
            full: Counter::grown(random, rate / 3.0),
            ..Stalls::default()
        };
        Self { resources: [("cpu", 1.0, stalls(4e4)), ("memory", 0.0, stalls(0.0)), ("io", 0.25, stalls(9e3))] }
    }
}

impl Source for Pressure {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows) {
        for (resource, weight, stalls) in &mut self.resources {
            // Nobody waits until processors become scarce.
            let waiting = (moment.load - 0.25).max(0.0).powi(2) * 0.6 * *weight;
            let some = random.count(waiting * 1e6 * moment.seconds);
            let full = some / 3;
            stalls.some.add(some);
            stalls.full.add(full);
            let fade = (-moment.seconds / 10.0).exp();
            let average = |before: f64, us: u64| before * fade + us as f64 / 1e4 / moment.seconds * (1.0 - fade);
            stalls.some_average = average(stalls.some_average, some);
            stalls.full_average = average(stalls.full_average, full);
            let has_full = *resource != "cpu";
            let rounded = |average: f64| (average * 100.0).round() / 100.0;
            rows.push(
                moment.time_ms,
                &[*resource],
                &[
                    ("some_avg10_percent", rounded(stalls.some_average).into()),
                    ("full_avg10_percent", has_full.then(|| rounded(stalls.full_average)).into()),
                    ("some_seconds_total", stalls.some.seconds(1e6).into()),
                    ("full_seconds_total", has_full.then(|| stalls.full.seconds(1e6)).into()),
                ],
            );
        }
    }

    fn reboot(&mut self) {
        for (_, _, stalls) in &mut self.resources {
            *stalls = Stalls::default();
        }
    }
}

/// Sizes in KiB, as /proc/meminfo tells them.
pub(super) struct Memory {
    total_kib: i64,
    swap_kib: i64,
    used: Walk,
    free: Walk,
    buffers_kib: i64,
    slab: Walk,
    shared: Walk,
    dirty: Walk,
    huge_kib: i64,
    minor_faults: Counter,
    major_faults: Counter,
}

impl Memory {
    pub(super) fn new(shape: &Shape, random: &mut Random) -> Self {
        let total_kib = shape.memory_kib;
        let part = |share: f64| total_kib as f64 * share;
        Self {
            total_kib,
            swap_kib: if random.happens(0.5) { 2_097_148 } else { 0 },
            used: Walk::new(random, part(0.08), part(0.92), part(0.001)),
            free: Walk::new(random, part(0.02), part(0.08), part(0.0005)),
            buffers_kib: random.within(2e4, 4e5) as i64,
            slab: Walk::new(random, part(0.01), part(0.04), 40.0),
            shared: Walk::new(random, 1e3, 4e5, 2.0),
            dirty: Walk::new(random, 0.0, 6e3, 300.0),
            huge_kib: (random.within(0.0, 200.0) as i64) * 2048,
            minor_faults: Counter::grown(random, 3000.0),
            major_faults: Counter::grown(random, 0.05),
        }
    }
}

impl Source for Memory {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows) {
        let seconds = moment.seconds;
        let kib = |walk: &mut Walk, random: &mut Random| walk.whole(random, seconds);
        let (used, free) = (kib(&mut self.used, random), kib(&mut self.free, random));
        let (slab, shared, dirty) =
            (kib(&mut self.slab, random), kib(&mut self.shared, random), kib(&mut self.dirty, random));
        let cached = (self.total_kib - used - free - self.buffers_kib - slab).max(0);
        let percent = used as f64 / self.total_kib as f64 * 100.0;
        let minor = self.minor_faults.add(random.count(moment.load * 8000.0 * seconds));
        let major = self.major_faults.add(u64::from(random.happens(0.002 * seconds)));
        let bytes = |kib: i64| Value::Integer(kib * KIB);
        rows.push(
            moment.time_ms,
            &[""; 0],
            &[
                ("total_bytes", bytes(self.total_kib)),
                ("available_bytes", bytes(self.total_kib - used)),
                ("used_bytes", bytes(used)),
                ("used_percent", percent.into()),
                ("free_bytes", bytes(free)),
                ("buffers_bytes", bytes(self.buffers_kib)),
                ("cached_bytes", bytes(cached)),
                ("swap_total_bytes", bytes(self.swap_kib)),
                ("swap_free_bytes", bytes(self.swap_kib)),
                ("swap_used_bytes", bytes(0)),
                ("swap_used_percent", (self.swap_kib > 0).then_some(0.0).into()),
                ("slab_bytes", bytes(slab)),
                ("slab_reclaimable_bytes", bytes(slab / 4 * 3)),
                ("shared_bytes", bytes(shared)),
                ("dirty_bytes", bytes(dirty)),
                ("writeback_bytes", bytes(0)),
                ("anonymous_huge_bytes", bytes(self.huge_kib)),
                ("huge_page_bytes", bytes(2048)),
                ("huge_pages", 0_i64.into()),
                ("huge_pages_free", 0_i64.into()),
                ("minor_faults_total", minor.into()),
                ("major_faults_total", major.into()),
                ("swap_in_bytes_total", 0_i64.into()),
                ("swap_out_bytes_total", 0_i64.into()),
                ("oom_kills_total", 0_i64.into()),
            ],
        );
    }

    fn reboot(&mut self) {
        self.minor_faults.reset();
        self.major_faults.reset();
    }
}

/// Averages of two decimals.
pub(super) struct Averages {
    cores: f64,
    averages: [f64; 3],
    tasks: Walk,
}

impl Averages {
    pub(super) fn new(shape: &Shape, random: &mut Random) -> Self {
        Self { cores: shape.cores as f64, averages: [0.0; 3], tasks: Walk::new(random, 150.0, 900.0, 1.5) }
    }
}

impl Source for Averages {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows) {
        let demand = moment.load * self.cores * random.within(0.8, 1.3);
        for (average, minutes) in self.averages.iter_mut().zip([1.0, 5.0, 15.0]) {
            // The kernel counts every five seconds.
            let fade = (-moment.seconds / (60.0 * minutes)).exp();
            *average = *average * fade + demand * (1.0 - fade);
        }
        let [one, five, fifteen] = self.averages.map(|average| Value::Float((average * 100.0).round() / 100.0));
        let tasks = self.tasks.whole(random, moment.seconds);
        let values = [
            ("load1", one),
            ("load5", five),
            ("load15", fifteen),
            ("runnable_tasks", Value::Integer(1 + demand as i64)),
            ("tasks", tasks.into()),
        ];
        rows.push(moment.time_ms, &[""; 0], &values);
    }
}
