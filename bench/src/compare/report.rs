//! The tables.

use std::{fmt::Write as _, fs, process::Command, time::Duration};

use super::{
    CompareConfig,
    dataset::Encoded,
    peers::Peer,
    plimsoll::{Ingested, Settled},
    times::{REPEATS, Times},
};

/// How a store took the fleet in.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) points: u64,
    /// What it was given, in bytes.
    pub(super) given_bytes: u64,
    pub(super) cpu: Duration,
    pub(super) settling_cpu: Duration,
    pub(super) wall: Duration,
    pub(super) peak_bytes: u64,
    pub(super) settling_peak_bytes: u64,
    pub(super) stored_bytes: u64,
    /// What Plimsoll takes besides: the broker, and the summaries that are made afterwards.
    pub(super) beside: Option<(Ingested, Settled)>,
}

impl Row {
    /// Points a second of processor time.
    fn rate(&self, cpu: Duration) -> f64 {
        self.points as f64 / cpu.as_secs_f64().max(0.01)
    }

    fn stored(&self) -> f64 {
        self.rate(self.cpu)
    }

    fn settled(&self) -> f64 {
        self.rate(self.cpu + self.settling_cpu)
    }

    fn bytes_a_point(&self) -> f64 {
        self.stored_bytes as f64 / self.points.max(1) as f64
    }
}

/// How a store answered.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) name: &'static str,
    pub(super) times: Vec<Times>,
    pub(super) stored_bytes: u64,
}

/// All that was measured.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) encoded: Encoded,
    pub(super) rows: Vec<Row>,
    /// The questions, and how many values their answers have.
    pub(super) questions: Vec<(&'static str, usize)>,
    pub(super) asked: Vec<Asked>,
    pub(super) history_points: u64,
    /// What the summaries of the histories have taken.
    pub(super) summaries: Settled,
    pub(super) took: Duration,
    /// What waited for the machine's processors before, averaged over a minute.
    pub(super) load: f64,
}

const MEBIBYTE: f64 = 1_048_576.0;

impl Report {
    pub(super) fn markdown(
        &self,
        config: &CompareConfig,
        victoria: Option<&Peer>,
        prometheus: Option<&Peer>,
    ) -> String {
        let mut out = self.introduction(config, victoria, prometheus);
        self.write_ingest(config, &mut out);
        self.write_broker(&mut out);
        self.write_summaries(&mut out);
        self.write_queries(config, &mut out);
        out
    }

    fn introduction(&self, config: &CompareConfig, victoria: Option<&Peer>, prometheus: Option<&Peer>) -> String {
        let named = |name: &str, peer: Option<&Peer>| peer.map(|peer| format!("{name} {}", peer.version));
        let peers = [named("VictoriaMetrics", victoria), named("Prometheus", prometheus)];
        let peers = peers.into_iter().flatten().collect::<Vec<_>>().join(" and ");
        let beside = if peers.is_empty() { "alone".to_owned() } else { format!("beside Debian's {peers}") };
        format!(
            "Measured on {} by `make bench` in {:.0} s: {}. Plimsoll {} {beside}, all with default settings except for \
             retention, each alone and in turn, with the same points, which were encoded beforehand. CPU is a process's user and system \
             time; who sends does not count. The load average was {:.1} before: what others did on these cores slows all down, and \
             only ratios within one run say something.\n\nSizes: {} hosts for {} min, {} days of one host, {} hosts for a day at {} s.\n\n",
            jiff::Zoned::now().date(),
            self.took.as_secs_f64(),
            machine(),
            env!("CARGO_PKG_VERSION"),
            self.load,
            config.hosts,
            config.minutes,
            config.week_days,
            config.fleet_hosts,
            config.fleet_interval.as_secs_f64(),
        )
    }

    /// The best of VictoriaMetrics; no number where that took no part.
    fn best(&self, figure: impl Fn(&Row) -> f64, larger_is_better: bool) -> f64 {
        let figures = self.rows.iter().filter(|row| row.name.starts_with("VictoriaMetrics")).map(figure);
        figures.fold(f64::NAN, if larger_is_better { f64::max } else { f64::min })
    }

    fn write_ingest(&self, config: &CompareConfig, out: &mut String) {
        let points = self.encoded.points as f64;
        let per_host = points / config.hosts as f64 / (config.minutes * 60) as f64;
        let _ = write!(
            out,
            "## Taking in and storing\n\n{:.1} million points: {} hosts with all their measurements at 1 s for {} minutes, {per_host:.0} \
             points a host and second. *Stored* is until the last point can be queried, *settled* includes the merging that follows: all \
             parts into one for VictoriaMetrics, small files for Plimsoll, a snapshot with all in blocks for Prometheus. Bytes are all \
             files after that, with catalog or index. Ratios are to the best of VictoriaMetrics.\n\n\
             | | million points/CPU-s stored | ratio | settled | ratio | seconds | peak MiB | while settling | bytes a point | ratio |\n\
             | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
            points / 1e6,
            config.hosts,
            config.minutes,
        );
        let (stored, settled) = (self.best(Row::stored, true), self.best(Row::settled, true));
        let bytes = self.best(Row::bytes_a_point, false);
        for row in &self.rows {
            let _ = writeln!(
                out,
                "| {} | {:.2} | {:.1} | {:.2} | {:.1} | {:.1} | {:.0} | {:.0} | {:.3} | {:.2} |",
                row.name,
                row.stored() / 1e6,
                row.stored() / stored,
                row.settled() / 1e6,
                row.settled() / settled,
                row.wall.as_secs_f64(),
                row.peak_bytes as f64 / MEBIBYTE,
                row.settling_peak_bytes as f64 / MEBIBYTE,
                row.bytes_a_point(),
                row.bytes_a_point() / bytes,
            );
        }
    }

    fn write_broker(&self, out: &mut String) {
        let stored = self.best(Row::stored, true);
        out.push_str(
            "\nPlimsoll's points come through a broker, nats-server, that also serves live subscribers, alerts and replays. What that \
             takes, and the sum of all:\n\n\
             | | messages' bytes a point | broker CPU s to store | to give | peak MiB | bytes a point on its disk | ingest CPU s | \
             million points/CPU-s, all | ratio |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        );
        for row in &self.rows {
            let Some((broker, _)) = row.beside else { continue };
            let all = row.rate(row.cpu + broker.broker_storing + broker.broker_giving);
            let points = row.points as f64;
            let _ = writeln!(
                out,
                "| {} | {:.2} | {:.2} | {:.2} | {:.0} | {:.2} | {:.2} | {:.2} | {:.1} |",
                row.name,
                row.given_bytes as f64 / points,
                broker.broker_storing.as_secs_f64(),
                broker.broker_giving.as_secs_f64(),
                broker.broker_peak_bytes as f64 / MEBIBYTE,
                broker.broker_bytes as f64 / points,
                row.cpu.as_secs_f64(),
                all / 1e6,
                all / stored,
            );
        }
    }

    fn write_summaries(&self, out: &mut String) {
        out.push_str(
            "\nAfterwards Plimsoll makes summaries of minutes and hours with sketches for quantiles, which the others don't:\n\n\
             | | CPU s | peak MiB | million points/CPU-s, settled with them | bytes a point that they take |\n\
             | --- | ---: | ---: | ---: | ---: |\n",
        );
        for row in &self.rows {
            let Some((_, summaries)) = row.beside else { continue };
            let bytes = summaries.stored_bytes.saturating_sub(row.stored_bytes);
            let _ = writeln!(
                out,
                "| {} | {:.2} | {:.0} | {:.2} | {:.3} |",
                row.name,
                summaries.cpu.as_secs_f64(),
                summaries.peak_bytes as f64 / MEBIBYTE,
                row.rate(row.cpu + row.settling_cpu + summaries.cpu) / 1e6,
                bytes as f64 / row.points.max(1) as f64,
            );
        }
    }

    fn write_queries(&self, config: &CompareConfig, out: &mut String) {
        let _ = write!(
            out,
            "\n## Queries\n\n{:.1} million points: `cpu` of one host at 1 s for {} days, `cpu` of {} hosts at {} s for the 24 h after that, and \
             their `memory` in the last hour. All answer the same, to nine digits. *First* is in a process that has just started; then the \
             median of {} more, without caches of whole answers. All are asked over HTTP on loopback. Plimsoll has made its summaries before, in \
             {:.1} CPU s.\n\n| query, ms | values |",
            self.history_points as f64 / 1e6,
            config.week_days,
            config.fleet_hosts,
            config.fleet_interval.as_secs_f64(),
            REPEATS,
            self.summaries.cpu.as_secs_f64(),
        );
        for asked in &self.asked {
            let _ = write!(out, " {} first | then |", asked.name);
        }
        let _ = writeln!(out, " VictoriaMetrics / Plimsoll, then |");
        let _ = writeln!(out, "| --- | ---: |{} ---: |", " ---: | ---: |".repeat(self.asked.len()));
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        for (index, (name, values)) in self.questions.iter().enumerate() {
            let _ = write!(out, "| {name} | {values} |");
            for asked in &self.asked {
                let _ = write!(out, " {:.1} | {:.1} |", ms(asked.times[index].first), ms(asked.times[index].warm));
            }
            let warm = |name: &str| {
                let asked = self.asked.iter().find(|asked| asked.name == name);
                asked.map_or(f64::NAN, |asked| ms(asked.times[index].warm))
            };
            let _ = writeln!(out, " {:.2} |", warm("VictoriaMetrics") / warm("Plimsoll"));
        }
        out.push_str("\n| | bytes a point of these histories | peak MiB of a query |\n| --- | ---: | ---: |\n");
        for asked in &self.asked {
            let peak = asked.times.iter().map(|times| times.peak_bytes).max().unwrap_or(0);
            let bytes = asked.stored_bytes as f64 / self.history_points.max(1) as f64;
            let _ = writeln!(out, "| {} | {bytes:.3} | {:.0} |", asked.name, peak as f64 / MEBIBYTE);
        }
        let bytes = self.summaries.stored_bytes as f64 / self.history_points.max(1) as f64;
        let _ = writeln!(out, "| Plimsoll, with summaries | {bytes:.3} | |");
    }
}

/// How many tasks ran or could have run, averaged over the last minute.
pub(super) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

/// Cores, processor, memory and kernel.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let first = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let memory = first("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1_048_576.0;
    let kernel = Command::new("uname").arg("-r").output();
    let kernel = kernel.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    format!("{cores} cores of {}, {memory:.0} GiB, Linux {kernel}", first("/proc/cpuinfo", "model name"))
}
