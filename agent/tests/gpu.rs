//! The `gpu` collector against a stand-in for NVIDIA's library, which is compiled here, and against a real one where there is one.
#![cfg(target_os = "linux")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use plimsoll_agent::{
    collectors::{Collector as _, CollectorKind, KINDS, gpu::Gpu},
    config::{CollectorsConfig, GpuConfig},
    context::{Context, HostPaths},
    events::{Event, EventSink},
    rows::{Columns, Tables},
};
use plimsoll_nats::event::EventKind;
use serde_json::{Value, json};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:41:00.0";

/// A made-up host with two processors and the stand-in for NVML.
struct Host {
    dir: TempDir,
    events: EventSink,
}

/// One sample: the rows of both measurements.
struct Sample {
    gpu: Columns,
    gpu_process: Columns,
}

impl Host {
    fn new() -> Self {
        let host = Self { dir: tempfile::tempdir().expect("a temporary folder"), events: EventSink::default() };
        host.control("busy 0 35\nbusy 1 1\n");
        host.compile();
        for address in [FIRST, SECOND] {
            host.plug(address);
        }
        for (pid, name) in [(100, "train\n"), (300, "Xorg\n")] {
            host.write(&format!("root/proc/{pid}/comm"), name);
        }
        host
    }

    /// Compiles the stand-in into the host's folder, beside the files by which it is told what to do.
    fn compile(&self) {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nvml_stub/nvml_stub.c");
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([self.library(), source])
            .arg("-ldl")
            .output()
            .expect("this test needs a C compiler named `cc`, as of the package gcc");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("libnvidia-ml.so.1")
    }

    fn plug(&self, address: &str) {
        self.device(address, "vendor", "0x10de\n");
        self.device(address, "class", "0x030200\n");
        self.device(address, "power/control", "on\n");
        self.device(address, "power/runtime_status", "active\n");
        let driver = self.dir.path().join("root/sys/bus/pci/devices").join(address).join("driver");
        symlink("../../../bus/pci/drivers/nvidia", driver).expect("a link is made");
    }

    fn device(&self, address: &str, attribute: &str, text: &str) {
        self.write(&format!("root/sys/bus/pci/devices/{address}/{attribute}"), text);
    }

    /// Tells the stand-in what to do from now on.
    fn control(&self, commands: &str) {
        // In one step, as it may be reading.
        self.write("control.new", commands);
        fs::rename(self.dir.path().join("control.new"), self.dir.path().join("control")).expect("a file is renamed");
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a file in a folder")).expect("a folder is made");
        fs::write(path, text).expect("a file is written");
    }

    /// What the stand-in was asked for, of starts, ends and opened processors.
    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    fn collector(&self) -> Gpu {
        let gpu = GpuConfig { library: self.library(), ..GpuConfig::default() };
        Gpu::new(&Context {
            paths: HostPaths::new(self.dir.path().join("root")),
            config: Arc::new(CollectorsConfig { gpu, ..CollectorsConfig::default() }),
            events: self.events.clone(),
        })
    }

    /// Waits for this many events.
    fn events(&self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        eventually("the events", || {
            events.extend(self.events.take());
            events.len() >= count
        });
        assert_eq!(events.len(), count, "{events:?}");
        events
    }
}

impl Sample {
    fn take(collector: &mut Gpu) -> Self {
        let mut tables = tables();
        collector.collect(&mut tables).expect("the bus can be read");
        Self { gpu: tables.of("gpu").take(), gpu_process: tables.of("gpu_process").take() }
    }

    /// The fields of a processor's row.
    fn row(&self, uuid: &str, instance: &str) -> Value {
        let tags = self.gpu.tags["uuid"].iter().zip(&self.gpu.tags["instance"]);
        let rows: Vec<usize> = tags
            .enumerate()
            .filter(|(_, tags)| *tags == (&uuid.to_owned(), &instance.to_owned()))
            .map(|(row, _)| row)
            .collect();
        assert_eq!(rows.len(), 1, "rows of {uuid} {instance}: {:?}", self.gpu.tags);
        self.gpu
            .fields
            .iter()
            .map(|(name, column)| (name.to_string(), column.json(rows[0])))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

fn tables() -> Tables {
    KINDS.iter().find(|kind| kind.name == "gpu").map(CollectorKind::tables).expect("a collector of that name")
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn two_processors_are_told_each_with_what_it_supports() {
    let host = Host::new();
    let mut collector = host.collector();
    let sample = Sample::take(&mut collector);
    assert_eq!(sample.gpu.tags["uuid"], ["GPU-0", "GPU-1"]);
    assert_eq!(sample.gpu.tags["name"], ["NVIDIA Stub", "NVIDIA Stub Mini"]);
    assert_eq!(
        sample.row("GPU-0", "gpu"),
        json!({
            "index": 0, "pci_address": FIRST, "available": true, "suspended": false, "mig_enabled": false,
            "usage_percent": 35.0, "memory_busy_percent": 17.0, "encoder_percent": 0.0, "decoder_percent": 0.0,
            "memory_total_bytes": 16_000, "memory_used_bytes": 4_000, "memory_free_bytes": 12_000, "memory_used_percent": 25.0,
            "temperature_celsius": 61.0, "power_watts": 71.5, "power_limit_watts": 300.0, "energy_joules_total": 1234.5,
            "graphics_clock_hertz": 1000e6, "sm_clock_hertz": 1001e6, "memory_clock_hertz": 1002e6, "video_clock_hertz": 1003e6,
            "fan_percent": 31.0, "fan_speed_rpm": 1501.0,
            "pcie_received_bytes_per_second": 9000.0, "pcie_sent_bytes_per_second": 7000.0,
            "pcie_link_generation": 4, "pcie_link_width": 16,
            "throttle_reasons": "none", "thermal_throttling": false, "power_throttling": false,
            "ecc_corrected_volatile_total": 0, "ecc_uncorrected_volatile_total": 1,
            "ecc_corrected_aggregate_total": 10, "ecc_uncorrected_aggregate_total": 11,
            "xid_errors_total": 0,
        })
    );
    let second = sample.row("GPU-1", "gpu");
    for field in [
        "fan_percent",
        "fan_speed_rpm",
        "ecc_corrected_volatile_total",
        "mig_enabled",
        "encoder_percent",
        "energy_joules_total",
    ] {
        assert_eq!(second[field], Value::Null, "{field}");
    }
    assert_eq!((&second["temperature_celsius"], &second["pcie_link_width"]), (&json!(61.0), &json!(16)));
    assert!(collector.notes().is_empty(), "{:?}", collector.notes());
    assert!(host.events.take().is_empty());

    // The library stays open from sample to sample, and is closed in the end.
    Sample::take(&mut collector);
    drop(collector);
    eventually("the end", || host.calls().last().is_some_and(|call| call == "shutdown"));
    assert_eq!(host.calls(), ["init", &format!("open {FIRST}"), &format!("open {SECOND}"), "shutdown"]);
}

#[test]
fn processes_are_told_once_with_memory_and_utilisation() {
    let host = Host::new();
    let sample = Sample::take(&mut host.collector());
    let columns = &sample.gpu_process;
    assert_eq!(columns.tags["uuid"], ["GPU-0", "GPU-0", "GPU-0"]);
    assert_eq!(columns.tags["pid"], ["100", "200", "300"]);
    assert_eq!(columns.tags["name"], ["train", "", "Xorg"]);
    assert_eq!(columns.tags["type"], ["compute,graphics", "compute", "graphics"]);
    let field = |name: &str| (0..3).map(|row| columns.fields[name].number(row)).collect::<Vec<_>>();
    assert_eq!(field("memory_used_bytes"), [Some(3000.0), None, Some(50.0)]);
    assert_eq!(field("usage_percent"), [Some(80.0), Some(0.0), Some(0.0)]);
    assert_eq!(field("memory_busy_percent"), [Some(20.0), Some(0.0), Some(0.0)]);

    host.control("quiet 0\n");
    let sample = Sample::take(&mut host.collector());
    assert_eq!(sample.gpu_process.fields["usage_percent"].number(0), Some(0.0));
}

#[test]
fn a_processor_that_is_lost_spoils_nothing_and_is_told_once() {
    let host = Host::new();
    let mut collector = host.collector();
    Sample::take(&mut collector);
    host.control("lost 0\nbusy 1 7\n");
    for _ in 0..3 {
        let sample = Sample::take(&mut collector);
        let lost = sample.row("GPU-0", "gpu");
        assert_eq!((&lost["available"], &lost["usage_percent"]), (&json!(false), &Value::Null));
        let other = sample.row("GPU-1", "gpu");
        assert_eq!((&other["available"], &other["usage_percent"]), (&json!(true), &json!(7.0)));
        assert!(sample.gpu_process.tags["pid"].is_empty());
    }
    let events = host.events.take();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((events[0].kind, events[0].subject.as_str()), (EventKind::GpuLost, "GPU-0"));
    assert_eq!(events[0].attributes["pci_address"], FIRST);
    assert!(events[0].message.starts_with("NVIDIA Stub at 0000:01:00.0 is lost"), "{}", events[0].message);
    assert!(collector.notes()[0].contains(FIRST), "{:?}", collector.notes());
    // Each question to a lost processor can take long, so that it is one a sample.
    let calls = host.calls();
    let count = |call: &str| calls.iter().filter(|made| *made == call).count();
    assert_eq!((count("init"), count(&format!("asked {FIRST}"))), (1, 3), "{calls:?}");
}

#[test]
fn a_processor_that_was_lost_or_refused_at_the_start_is_a_note_and_no_event() {
    let host = Host::new();
    host.control("lost 0\nrefuse 1\n");
    let mut collector = host.collector();
    let sample = Sample::take(&mut collector);
    assert!(sample.gpu.tags["uuid"].is_empty());
    let notes = collector.notes().join("\n");
    assert!(notes.contains("0000:01:00.0 is lost") && notes.contains("0000:41:00.0 can't be asked"), "{notes}");
    assert!(notes.contains("/dev/nvidia"), "{notes}");
    assert!(host.events.take().is_empty());
}

#[test]
fn xid_errors_are_told_once_and_counted() {
    let host = Host::new();
    let mut collector = host.collector();
    Sample::take(&mut collector);
    host.control("xid 1 79\nxid 0 31\nxid 0 4711\n");
    let mut events = host.events(3);
    events.sort_by_key(|event| event.attributes["xid"].as_u64());
    assert!(events.iter().all(|event| event.kind == EventKind::GpuXid));
    let told: Vec<_> =
        events.iter().map(|event| (event.subject.as_str(), event.attributes["xid"].as_u64().unwrap())).collect();
    assert_eq!(told, [("GPU-0", 31), ("GPU-1", 79), ("GPU-0", 4711)]);
    assert_eq!(events[1].attributes["meaning"], "the GPU has fallen off the bus");

    let sample = Sample::take(&mut collector);
    assert_eq!(sample.row("GPU-0", "gpu")["xid_errors_total"], 2);
    assert_eq!(sample.row("GPU-1", "gpu")["xid_errors_total"], 1);
    let sample = Sample::take(&mut collector);
    assert_eq!(sample.row("GPU-0", "gpu")["xid_errors_total"], 2);
    assert!(host.events.take().is_empty());
}

#[test]
fn a_slowdown_is_an_event_and_a_power_limit_is_not() {
    let host = Host::new();
    let mut collector = host.collector();
    // Software power cap, as of any processor that works hard.
    host.control("throttle 0 4\nthrottle 1 64\n");
    let sample = Sample::take(&mut collector);
    let row = sample.row("GPU-0", "gpu");
    assert_eq!((&row["throttle_reasons"], &row["power_throttling"]), (&json!("sw_power_cap"), &json!(true)));
    assert_eq!(row["thermal_throttling"], false);
    // That of the second was there at the start.
    assert!(host.events.take().is_empty());

    // Hardware slowdown and hardware thermal slowdown.
    host.control("throttle 0 72\nthrottle 1 64\n");
    let sample = Sample::take(&mut collector);
    assert_eq!(sample.row("GPU-0", "gpu")["thermal_throttling"], true);
    host.control("throttle 0 0\n");
    Sample::take(&mut collector);
    host.control("throttle 0 64\n");
    Sample::take(&mut collector);
    let events = host.events.take();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((events[0].kind, events[0].subject.as_str()), (EventKind::ThrottlingBegan, "GPU-0"));
    assert_eq!(events[0].attributes["reasons"], "hw_slowdown,hw_thermal_slowdown");
}

#[test]
fn instances_of_mig_have_rows_of_their_own() {
    let host = Host::new();
    host.control("mig 0\n");
    let sample = Sample::take(&mut host.collector());
    assert_eq!(sample.gpu.tags["instance"], ["gpu", "MIG-0-0", "MIG-0-2", "gpu"]);
    assert_eq!(sample.row("GPU-0", "gpu")["mig_enabled"], true);
    let instance = sample.row("GPU-0", "MIG-0-2");
    assert_eq!((&instance["memory_total_bytes"], &instance["memory_used_percent"]), (&json!(4000), &json!(2.5)));
    assert_eq!((&instance["temperature_celsius"], &instance["index"]), (&Value::Null, &Value::Null));
    assert_eq!(sample.gpu_process.tags["instance"], ["MIG-0-0", "MIG-0-2"]);
    assert_eq!(sample.gpu_process.tags["pid"], ["100", "100"]);
    assert_eq!(sample.gpu_process.fields["usage_percent"].number(0), None);
}

#[test]
fn a_suspended_processor_is_not_touched() {
    let host = Host::new();
    host.device(FIRST, "power/runtime_status", "suspended\n");
    host.device(SECOND, "power/runtime_status", "suspended\n");
    let mut collector = host.collector();
    let sample = Sample::take(&mut collector);
    assert!(sample.gpu.tags["uuid"].is_empty());
    assert!(host.calls().is_empty(), "{:?}", host.calls());
    assert_eq!(collector.notes().len(), 2);

    // One wakes up, and the other is still left alone.
    host.device(SECOND, "power/runtime_status", "active\n");
    assert_eq!(Sample::take(&mut collector).gpu.tags["uuid"], ["GPU-1"]);
    assert_eq!(host.calls(), ["init", &format!("open {SECOND}")]);
    host.device(FIRST, "power/runtime_status", "active\n");
    assert_eq!(Sample::take(&mut collector).gpu.tags["uuid"], ["GPU-0", "GPU-1"]);

    // One that has told who it is keeps its row; with the last one asleep the library is closed.
    host.device(FIRST, "power/runtime_status", "suspending\n");
    let sample = Sample::take(&mut collector);
    let row = sample.row("GPU-0", "gpu");
    assert_eq!(
        (&row["suspended"], &row["available"], &row["usage_percent"]),
        (&json!(true), &json!(true), &Value::Null)
    );
    assert_eq!(sample.row("GPU-1", "gpu")["suspended"], false);
    host.device(SECOND, "power/runtime_status", "suspended\n");
    Sample::take(&mut collector);
    eventually("the library is closed", || host.calls().iter().filter(|call| *call == "shutdown").count() == 2);
    assert!(host.events.take().is_empty());
}

#[test]
fn a_library_that_is_absent_or_fails_is_a_note_and_is_not_tried_each_time() {
    let host = Host::new();
    host.control("init 9\n");
    let mut collector = host.collector();
    for _ in 0..3 {
        assert!(Sample::take(&mut collector).gpu.tags["uuid"].is_empty());
        assert_eq!(collector.notes(), ["NVIDIA's driver is not loaded"]);
    }
    assert_eq!(host.calls(), ["init failed"]);

    fs::remove_file(host.library()).unwrap();
    let mut collector = host.collector();
    Sample::take(&mut collector);
    let note = &collector.notes()[0];
    assert!(note.contains("libnvidia-ml.so.1` is not installed"), "{note}");
}

#[test]
fn without_a_processor_or_with_another_driver_nothing_is_loaded() {
    let host = Host::new();
    let driver = |address: &str| host.dir.path().join("root/sys/bus/pci/devices").join(address).join("driver");
    fs::remove_file(driver(FIRST)).unwrap();
    fs::remove_file(driver(SECOND)).unwrap();
    symlink("../../../bus/pci/drivers/nouveau", driver(SECOND)).unwrap();
    let mut collector = host.collector();
    Sample::take(&mut collector);
    let notes = collector.notes();
    assert!(notes[0].contains("0000:01:00.0 has no driver") && notes[1].contains("`nouveau`"), "{notes:?}");

    fs::remove_dir_all(host.dir.path().join("root/sys")).unwrap();
    let mut collector = host.collector();
    Sample::take(&mut collector);
    assert_eq!(collector.notes(), ["There is no NVIDIA graphics processor on the PCI bus"]);
    assert!(host.calls().is_empty());
}

#[test]
fn a_library_that_hangs_is_waited_for_but_not_for_ever() {
    let host = Host::new();
    let mut collector = host.collector();
    Sample::take(&mut collector);
    host.control("hang\n");
    assert!(Sample::take(&mut collector).gpu.tags["uuid"].is_empty());
    assert!(collector.notes()[0].contains("does not answer"), "{:?}", collector.notes());
    host.control("busy 0 9\n");
    eventually("it answers again", || !Sample::take(&mut collector).gpu.tags["uuid"].is_empty());
    assert!(collector.notes().is_empty());
}

/// Against NVIDIA's own library, where this host has it and a processor; says what it found.
#[test]
fn a_real_processor_is_told_where_there_is_one() {
    let context = Context::default();
    let mut collector = Gpu::new(&context);
    let mut tables = tables();
    collector.collect(&mut tables).unwrap();
    let rows = tables.of("gpu").len();
    let columns = tables.of("gpu").take();
    println!("real graphics processors: {rows}; notes: {:?}", collector.notes());
    if rows == 0 {
        assert!(!collector.notes().is_empty(), "nothing is told, and not why");
        return;
    }
    for row in 0..rows {
        assert!(columns.tags["uuid"][row].starts_with("GPU-"));
        for (name, column) in &columns.fields {
            println!("{name}: {}", column.json(row));
        }
        let number = |field: &str| columns.fields[field].number(row);
        let suspended = number("suspended") == Some(1.0);
        assert!(suspended || number("memory_total_bytes").is_some_and(|bytes| bytes > 1e8));
        assert!(number("usage_percent").is_none_or(|percent| (0.0..=100.0).contains(&percent)));
    }
}
