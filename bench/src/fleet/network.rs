//! Interfaces and sockets.

use super::{
    host::{Moment, Shape, Source},
    random::Random,
    rows::{Rows, Value},
    walk::{Counter, Walk},
};

/// The first interface carries the traffic, virtual ones some of it, and others none.
pub(super) struct Network {
    interfaces: Vec<Interface>,
}

#[derive(Default)]
struct Interface {
    name: String,
    kind: &'static str,
    weight: f64,
    speed: Option<i64>,
    received: [Counter; 2],
    sent: [Counter; 2],
    drops: Counter,
}

impl Network {
    pub(super) fn new(shape: &Shape, random: &mut Random) -> Self {
        let interface = |index: usize| {
            let (name, kind, weight) = match index {
                0 => ("eth0".to_owned(), "ethernet", random.within(0.2, 4.0)),
                1 => ("eth1".to_owned(), "ethernet", 0.0),
                other => (format!("veth{:07x}", random.next() >> 36), "virtual", 0.1 / other as f64),
            };
            let mut grown = |rate: f64| Counter::grown(random, rate * weight);
            Interface {
                name,
                kind,
                weight,
                speed: (kind == "ethernet").then_some(10_000_000_000),
                received: [grown(4e5), grown(600.0)],
                sent: [grown(6e5), grown(700.0)],
                drops: grown(0.001),
            }
        };
        Self { interfaces: (0..shape.interfaces).map(interface).collect() }
    }
}

impl Source for Network {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows) {
        for interface in &mut self.interfaces {
            let work = moment.load * interface.weight * moment.seconds;
            let mut traffic = |counters: &mut [Counter; 2], packets: f64| {
                let packets = random.count(work * packets);
                let bytes = packets * 66 + random.count(packets as f64 * 500.0);
                (Value::Integer(counters[0].add(bytes)), Value::Integer(counters[1].add(packets)))
            };
            let (received_bytes, received_packets) = traffic(&mut interface.received, 900.0);
            let (sent_bytes, sent_packets) = traffic(&mut interface.sent, 1000.0);
            let drops = interface.drops.add(u64::from(random.happens(0.0005 * work)));
            rows.push(
                moment.time_ms,
                &[&interface.name],
                &[
                    ("receive_bytes_total", received_bytes),
                    ("transmit_bytes_total", sent_bytes),
                    ("receive_packets_total", received_packets),
                    ("transmit_packets_total", sent_packets),
                    ("receive_errors_total", 0_i64.into()),
                    ("transmit_errors_total", 0_i64.into()),
                    ("receive_drops_total", drops.into()),
                    ("transmit_drops_total", 0_i64.into()),
                    ("kind", interface.kind.into()),
                    ("up", (interface.name != "eth1").into()),
                    ("speed_bits_per_second", interface.speed.into()),
                ],
            );
        }
    }

    fn reboot(&mut self) {
        for interface in &mut self.interfaces {
            let Interface { name, kind, weight, speed, .. } = std::mem::take(interface);
            *interface = Interface { name, kind, weight, speed, ..Interface::default() };
        }
    }
}

/// Seconds between two counts of sockets by state.
const STATES_SECONDS: f64 = 5.0;

/// Counters of TCP and UDP, and every five seconds the states of TCP sockets.
pub(super) struct Sockets {
    sockets: Walk,
    connections: Walk,
    time_wait: Walk,
    listening: i64,
    udp: i64,
    since_states: f64,
    opens: [Counter; 5],
    segments: [Counter; 3],
    datagrams: [Counter; 2],
}

impl Sockets {
    pub(super) fn new(random: &mut Random) -> Self {
        Self {
            sockets: Walk::new(random, 150.0, 1200.0, 4.0),
            connections: Walk::new(random, 20.0, 600.0, 3.0),
            time_wait: Walk::new(random, 0.0, 300.0, 6.0),
            listening: 10 + random.below(30) as i64,
            udp: 2 + random.below(8) as i64,
            since_states: 0.0,
            opens: [3.0, 6.0, 0.1, 0.02, 0.3].map(|rate| Counter::grown(random, rate)),
            segments: [900.0, 1000.0, 0.8].map(|rate| Counter::grown(random, rate)),
            datagrams: [4.0, 4.0].map(|rate| Counter::grown(random, rate)),
        }
    }
}

impl Source for Sockets {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows) {
        let seconds = moment.seconds;
        let work = moment.load * seconds;
        self.since_states += seconds;
        let counted = self.since_states >= STATES_SECONDS;
        if counted {
            self.since_states = 0.0;
        }
        let connections = self.connections.whole(random, seconds);
        let state = |count: i64| Value::from(counted.then_some(count));
        let mut total = |counter: &mut Counter, rate: f64| Value::Integer(counter.add(random.count(work * rate)));
        let [active, passive, failed, reset, resets_sent] = &mut self.opens;
        let [received, sent, again] = &mut self.segments;
        let [datagrams_received, datagrams_sent] = &mut self.datagrams;
        let counters = [
            ("tcp_active_opens_total", total(active, 8.0)),
            ("tcp_passive_opens_total", total(passive, 15.0)),
            ("tcp_failed_opens_total", total(failed, 0.05)),
            ("tcp_established_resets_total", total(reset, 0.02)),
            ("tcp_sent_resets_total", total(resets_sent, 0.1)),
            ("tcp_received_segments_total", total(received, 2000.0)),
            ("tcp_sent_segments_total", total(sent, 2200.0)),
            ("tcp_retransmitted_segments_total", total(again, 0.5)),
            ("tcp_receive_errors_total", 0_i64.into()),
            ("tcp_listen_overflows_total", 0_i64.into()),
            ("tcp_listen_drops_total", 0_i64.into()),
            ("udp_sockets", self.udp.into()),
            ("udp_received_datagrams_total", total(datagrams_received, 10.0)),
            ("udp_sent_datagrams_total", total(datagrams_sent, 10.0)),
            ("udp_no_port_total", 0_i64.into()),
            ("udp_receive_errors_total", 0_i64.into()),
            ("udp_receive_buffer_errors_total", 0_i64.into()),
            ("udp_send_buffer_errors_total", 0_i64.into()),
        ];
        let mut values = vec![
            ("sockets", self.sockets.whole(random, seconds).into()),
            ("tcp_connections", connections.into()),
            ("tcp_time_wait", self.time_wait.whole(random, seconds).into()),
            ("tcp_orphaned", 0_i64.into()),
            ("tcp_established", state(connections)),
            ("tcp_syn_sent", state(0)),
            ("tcp_syn_received", state(0)),
            ("tcp_fin_wait1", state(0)),
            ("tcp_fin_wait2", state(0)),
            ("tcp_close_wait", state(connections / 50)),
            ("tcp_last_ack", state(0)),
            ("tcp_closing", state(0)),
            ("tcp_listen", state(self.listening)),
        ];
        values.extend(counters);
        rows.push(moment.time_ms, &[""; 0], &values);
    }

    fn reboot(&mut self) {
        let counters = self.opens.iter_mut().chain(&mut self.segments).chain(&mut self.datagrams);
        counters.for_each(Counter::reset);
    }
}
