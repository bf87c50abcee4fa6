use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use plimsoll_nats::{Column, catalog};
use proptest::prelude::*;

use super::*;
use crate::{
    config::{CollectorsConfig, NetworkConfig},
    context::HostPaths,
    rows::Columns,
};

const RECORDED: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    3193      29    0    0    0     0          0         0     3193      29    0    0    0     0       0          0
  eth0: 288039186   11812    1    2    0     0          0         0   842720    7567    3    4    0     0       0          0
eth0:1:5 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
";

type Told<'a> = (&'a str, (Counters, Counters));

fn counters_of(text: &str) -> Result<Vec<Told<'_>>, ParseError> {
    lines(text).map(|line| Ok((line.name, line.counters()?))).collect()
}

#[test]
fn a_recorded_text_is_taken_apart() {
    let interfaces = counters_of(RECORDED).unwrap();
    assert_eq!(interfaces.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["lo", "eth0", "eth0:1"]);
    let (receive, transmit) = interfaces[1].1;
    assert_eq!(receive, Counters { bytes: 288_039_186, packets: 11_812, errors: 1, drops: 2 });
    assert_eq!(transmit, Counters { bytes: 842_720, packets: 7_567, errors: 3, drops: 4 });
    assert_eq!(interfaces[2].1.0.bytes, 5);
}

#[test]
fn hostile_texts_are_refused_with_their_place() {
    assert!(counters_of("").unwrap().is_empty());
    assert_eq!(counters_of("a\nb\neth0: 1 2 3\n").unwrap_err().line, 3);
    assert_eq!(counters_of("a\nb\neth0 1 2 3\n").unwrap_err().line, 3);
    assert_eq!(counters_of("a\nb\n\neth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 -16\n").unwrap_err().line, 4);
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "([a-z:]{0,5}[ 0-9]{0,40}\n){0,6}") {
        let _ = counters_of(&text);
    }
}

/// A host made of a folder.
struct Host {
    dir: tempfile::TempDir,
    context: Context,
    network: Network,
}

impl Host {
    fn new(config: NetworkConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("proc/1/net")).unwrap();
        let config = Arc::new(CollectorsConfig { network: config, ..CollectorsConfig::default() });
        let context = Context { paths: HostPaths::new(dir.path()), config, ..Context::default() };
        Self { network: Network::new(&context), dir, context }
    }

    fn set(&self, interface: &str, attributes: &[(&str, &str)]) {
        let folder = self.dir.path().join("sys/class/net").join(interface);
        fs::create_dir_all(&folder).unwrap();
        for (name, value) in attributes {
            fs::write(folder.join(name), format!("{value}\n")).unwrap();
        }
    }

    /// An interface with hardware behind it.
    fn plug(&self, interface: &str, index: &str) {
        self.set(
            interface,
            &[("type", "1"), ("ifindex", index), ("operstate", "up"), ("flags", "0x1003"), ("speed", "1000")],
        );
        let device = self.dir.path().join("sys/class/net").join(interface).join("device");
        if !device.is_symlink() {
            symlink("../../../0000:00:03.0", device).unwrap();
        }
    }

    fn read(&mut self, interfaces: &[&str]) -> Columns {
        let line = |name: &&str| format!("{name}: 1 0 0 0 0 0 0 0 2 0 0 0 0 0 0 0\n");
        let text: String =
            ["a\n".to_owned(), "b\n".to_owned()].into_iter().chain(interfaces.iter().map(line)).collect();
        fs::write(self.dir.path().join("proc/1/net/dev"), text).unwrap();
        let mut tables = Tables::new(catalog::measurement("network"));
        self.network.collect(&mut tables).unwrap();
        tables.only().take()
    }

    /// The messages since the last call.
    fn events(&self) -> Vec<String> {
        self.context.events.take().into_iter().map(|event| event.message).collect()
    }
}

#[test]
fn loopback_and_excluded_interfaces_are_left_out() {
    let all = ["lo", "eth0", "veth12", "docker0"];
    assert_eq!(Host::new(NetworkConfig::default()).read(&all).tags["interface"], ["eth0", "veth12", "docker0"]);
    let config = NetworkConfig { exclude: vec!["veth*".into()], loopback: true, ..NetworkConfig::default() };
    assert_eq!(Host::new(config).read(&all).tags["interface"], ["lo", "eth0", "docker0"]);
}

#[test]
fn an_interface_tells_its_kind_state_and_speed() {
    let mut host = Host::new(NetworkConfig { loopback: true, ..NetworkConfig::default() });
    host.plug("eth0", "2");
    host.plug("wlan0", "3");
    host.plug("ib0", "4");
    host.set("wlan0", &[("phy80211", ""), ("operstate", "dormant")]);
    host.set("ib0", &[("type", "32"), ("speed", "-1")]);
    host.set("docker0", &[("type", "1"), ("operstate", "down"), ("speed", "10000")]);
    host.set("tun0", &[("type", "65534"), ("operstate", "unknown"), ("carrier", "1"), ("speed", "10")]);
    host.set("lo", &[("type", "772"), ("operstate", "unknown")]);
    let columns = host.read(&["eth0", "wlan0", "ib0", "docker0", "tun0", "lo", "ghost"]);
    let kinds = ["ethernet", "wifi", "infiniband", "virtual", "virtual", "loopback"].map(|kind| Some(kind.to_owned()));
    let kinds = Column::Text(kinds.into_iter().chain([None]).collect());
    assert_eq!(columns.fields["kind"], kinds);
    let up = [Some(true), Some(false), Some(true), Some(false), Some(true), Some(false), None];
    assert_eq!(columns.fields["up"], Column::Bool(up.to_vec()));
    let mut speeds = vec![Some(1_000_000_000)];
    speeds.resize(7, None);
    assert_eq!(columns.fields["speed_bits_per_second"], Column::Integer(speeds));
}

#[test]
fn the_speed_is_that_of_the_link_that_is_up() {
    let mut host = Host::new(NetworkConfig::default());
    host.plug("eth0", "2");
    let speed = |columns: Columns| columns.fields["speed_bits_per_second"].number(0);
    assert_eq!(speed(host.read(&["eth0"])), Some(1e9));
    host.set("eth0", &[("operstate", "down"), ("speed", "4294967295")]);
    assert_eq!(speed(host.read(&["eth0"])), None);
    host.set("eth0", &[("operstate", "up"), ("speed", "100")]);
    assert_eq!(speed(host.read(&["eth0"])), Some(1e8));
    host.set("eth0", &[("speed", "10")]);
    assert_eq!(speed(host.read(&["eth0"])), Some(1e8), "it is not asked for each time");
}

#[test]
fn a_lost_link_is_told_once_with_its_reason() {
    let mut host = Host::new(NetworkConfig::default());
    host.plug("eth0", "2");
    host.plug("eth1", "3");
    host.set("eth1", &[("operstate", "down")]);
    let both = ["eth0", "eth1"];
    host.read(&both);
    assert!(host.events().is_empty(), "what is down at the start is no event");
    host.set("eth0", &[("operstate", "down")]);
    host.read(&both);
    host.read(&both);
    assert_eq!(host.events(), ["`eth0` lost its link"]);
    host.plug("eth0", "2");
    host.read(&both);
    host.set("eth0", &[("operstate", "down"), ("flags", "0x1002")]);
    host.read(&both);
    assert_eq!(host.events(), ["`eth0` was switched off"]);
}

#[test]
fn an_interface_that_vanishes_is_told_unless_it_was_renamed_down_or_virtual() {
    let mut host = Host::new(NetworkConfig::default());
    for (interface, index) in [("eth0", "2"), ("eth1", "3"), ("eth2", "4")] {
        host.plug(interface, index);
    }
    host.set("eth2", &[("operstate", "down")]);
    host.set("veth7", &[("type", "1"), ("ifindex", "9"), ("operstate", "up")]);
    host.read(&["eth0", "eth1", "eth2", "veth7"]);
    host.plug("enp3s0", "3");
    host.read(&["enp3s0"]);
    assert_eq!(host.events(), ["the interface `eth0` is gone"]);
    host.read(&["enp3s0"]);
    assert!(host.events().is_empty());
}

/// A container of our own: a process with a network, mounts and process ids of its own, killed when dropped.
struct Container(Child);

impl Container {
    /// None where this process may not make one.
    fn start() -> Option<Self> {
        let script = "mount -t sysfs sysfs /sys && ip link add ve0 type veth peer name ve1 && ip link set ve0 up && \
                      ip link set ve1 up && echo ready && exec sleep 300";
        let child = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut container = Self(child);
        let mut ready = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(container.0.stdout.take()?), &mut ready).ok()?;
        (ready == "ready\n").then_some(container)
    }

    /// The process inside, whose root is that of the container.
    fn inside(&self) -> Option<String> {
        let unshare = self.0.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
        children.split_whitespace().next().map(str::to_owned)
    }

    fn ip(&self, args: &[&str]) {
        let inside = self.inside().expect("it runs");
        let status = Command::new("nsenter").args(["-t", &inside, "-n", "ip"]).args(args).status().unwrap();
        assert!(status.success(), "ip {args:?}");
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_real_network_seen_through_a_folder_is_told_with_its_losses() {
    let Some((container, inside)) = Container::start().and_then(|it| it.inside().map(|pid| (it, pid))) else {
        println!("skipped: this process may not make namespaces, or the kernel has no veth");
        return;
    };
    let paths = HostPaths::new(format!("/proc/{inside}/root"));
    let context = Context { paths, ..Context::default() };
    let mut network = Network::new(&context);
    let mut read = || {
        let mut tables = Tables::new(catalog::measurement("network"));
        network.collect(&mut tables).unwrap();
        let columns = tables.only().take();
        let (Column::Bool(up), Column::Text(kinds)) = (&columns.fields["up"], &columns.fields["kind"]) else {
            panic!("{columns:?}");
        };
        let names = columns.tags["interface"].iter().map(String::as_str);
        let told = names.zip(up).zip(kinds).filter(|((name, _), _)| name.starts_with("ve"));
        told.map(|((name, up), kind)| format!("{name} {kind:?} {up:?}")).collect::<BTreeSet<_>>()
    };
    // The kernel brings the state of a link up to date a moment after the change.
    let mut wait_for = |expected: &[&str]| {
        let expected: BTreeSet<String> = expected.iter().map(|&line| line.to_owned()).collect();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let told = read();
            if told == expected {
                break;
            }
            assert!(Instant::now() < deadline, "{told:?}");
            std::thread::yield_now();
        }
    };
    wait_for(&["ve0 Some(\"virtual\") Some(true)", "ve1 Some(\"virtual\") Some(true)"]);
    container.ip(&["link", "set", "ve0", "down"]);
    // The other end loses its carrier with it.
    wait_for(&["ve0 Some(\"virtual\") Some(false)", "ve1 Some(\"virtual\") Some(false)"]);
    container.ip(&["link", "del", "ve0"]);
    wait_for(&[]);
    assert!(context.events.take().is_empty(), "virtual interfaces come and go without events");
}
