//! One host: what it has, and its samples.

use plimsoll_nats::{Batch, HostId, catalog};
use ulid::Ulid;

use super::{
    FleetConfig,
    hardware::{Gpus, Power, Temperatures},
    load::Load,
    network::{Network, Sockets},
    process::{Containers, Processes, Summary},
    random::Random,
    rows::Rows,
    storage::{DiskIo, Filesystem},
    system::{Averages, Cpu, Memory, Pressure},
};

/// What a host has.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) cores: usize,
    pub(super) memory_kib: i64,
    pub(super) disks: Vec<String>,
    pub(super) mounts: usize,
    pub(super) interfaces: usize,
    pub(super) processes: usize,
    pub(super) containers: usize,
    pub(super) gpus: usize,
    /// Whether it has sensors and tells frequencies.
    pub(super) bare_metal: bool,
}

impl Shape {
    fn new(random: &mut Random) -> Self {
        let bare_metal = random.happens(0.25);
        let cores = if bare_metal { random.pick([8, 16]) } else { random.pick([2, 2, 4, 4, 8]) };
        let disk =
            |index: usize| if bare_metal { format!("nvme{index}n1") } else { format!("vd{}", ["a", "b", "c"][index]) };
        Self {
            cores,
            // What firmware and kernel keep for themselves makes sizes odd.
            memory_kib: cores as i64 * 4 * 1024 * 1024 - random.within(1e5, 4e5) as i64,
            disks: (0..random.pick([1, 1, 2, 3])).map(disk).collect(),
            mounts: random.pick([2, 3, 4, 6]),
            interfaces: random.pick([1, 1, 2, 4, 6]),
            processes: random.pick([14, 18, 22, 26]),
            containers: random.pick([0, 0, 0, 4, 10]),
            gpus: if bare_metal { random.pick([0, 0, 0, 1, 2]) } else { 0 },
            bare_metal,
        }
    }
}

/// A moment of sampling.
#[derive(Debug)]
pub(super) struct Moment {
    pub(super) time_ms: i64,
    /// Since the sample before.
    pub(super) seconds: f64,
    /// How busy the host is, in `[0, 1]`.
    pub(super) load: f64,
}

/// Where a measurement's rows come from.
pub(super) trait Source: Send {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows);

    /// Starts counters anew.
    fn reboot(&mut self) {}
}

/// A measurement of a host, with what is not sent yet.
struct Sampler {
    source: Box<dyn Source>,
    rows: Rows,
    /// Ticks from one sample to the next.
    every: u64,
    last_seq: u64,
}

/// A host.
pub(super) struct Host {
    id: HostId,
    random: Random,
    load: Load,
    samplers: Vec<Sampler>,
    epoch: Ulid,
}

impl Host {
    pub(super) fn new(config: &FleetConfig, index: usize) -> Self {
        let mut random = Random::new(config.seed, index as u64);
        let shape = Shape::new(&mut random);
        let load = Load::new(&mut random);
        let random_source = &mut random;
        let samplers = config.measurements.iter().map(|&measurement| {
            let (source, seconds) = source(measurement, &shape, random_source, config);
            let spec = catalog::measurement(measurement).expect("the fleet checks measurements");
            let every = (seconds / config.interval.as_secs_f64()).ceil().max(1.0) as u64;
            Sampler { source, rows: Rows::new(spec), every, last_seq: 0 }
        });
        let samplers = samplers.collect();
        let id = HostId::parse(&format!("{}{index:05}", config.prefix)).expect("the fleet checks the prefix");
        let epoch = epoch(config.start_ms, &mut random);
        Self { id, random, load, samplers, epoch }
    }

    /// Samples tick `index` of the fleet at a time.
    pub(super) fn tick(&mut self, config: &FleetConfig, index: u64, time_ms: i64, batches: &mut Vec<Batch>) {
        let seconds = config.interval.as_secs_f64();
        if index > 0 && self.random.happens(config.reboots_a_day * seconds / 86_400.0) {
            self.reboot(time_ms, batches);
        }
        let load = self.load.next(&mut self.random, time_ms, seconds);
        for sampler in self.samplers.iter_mut().filter(|sampler| index.is_multiple_of(sampler.every)) {
            let moment = Moment { time_ms, seconds: seconds * sampler.every as f64, load };
            sampler.source.sample(&moment, &mut self.random, &mut sampler.rows);
        }
    }

    /// Appends what was gathered since the last time.
    pub(super) fn flush(&mut self, batches: &mut Vec<Batch>) {
        for sampler in &mut self.samplers {
            if let Some(batch) = sampler.rows.take(&self.id, self.epoch, sampler.last_seq + 1) {
                sampler.last_seq += 1;
                batches.push(batch);
            }
        }
    }

    /// Counters start anew, and so does the agent.
    fn reboot(&mut self, time_ms: i64, batches: &mut Vec<Batch>) {
        self.flush(batches);
        self.epoch = epoch(time_ms, &mut self.random);
        for sampler in &mut self.samplers {
            sampler.source.reboot();
            sampler.last_seq = 0;
        }
    }
}

fn epoch(time_ms: i64, random: &mut Random) -> Ulid {
    Ulid::from_parts(time_ms.unsigned_abs(), u128::from(random.next()))
}

/// The source of a measurement, and the shortest time between its samples in seconds, as the agent has it.
fn source(measurement: &str, shape: &Shape, random: &mut Random, config: &FleetConfig) -> (Box<dyn Source>, f64) {
    match measurement {
        "cpu" => (Box::new(Cpu::new(shape, random, config.only_total_cpu)), 0.0),
        "pressure" => (Box::new(Pressure::new(random)), 0.0),
        "memory" => (Box::new(Memory::new(shape, random)), 0.0),
        "load" => (Box::new(Averages::new(shape, random)), 0.0),
        "filesystem" => (Box::new(Filesystem::new(shape, random)), 0.0),
        "diskio" => (Box::new(DiskIo::new(shape, random)), 0.0),
        "network" => (Box::new(Network::new(shape, random)), 0.0),
        "sockets" => (Box::new(Sockets::new(random)), 0.0),
        "temperature" => (Box::new(Temperatures::new(shape, random)), 0.0),
        "power" => (Box::new(Power::new(shape, random)), 0.0),
        "gpu" => (Box::new(Gpus::new(shape, random)), 0.0),
        "process" => (Box::new(Processes::new(shape, random, config.start_ms)), 5.0),
        "processes" => (Box::new(Summary::new(random)), 5.0),
        "container" => (Box::new(Containers::new(shape, random)), 5.0),
        other => unreachable!("the fleet checks measurements, and `{other}` is none of them"),
    }
}
