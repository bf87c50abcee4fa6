//! Sockets and TCP, from the tables of counters in /proc/net, and how many TCP sockets are in each state.
//!
//! The counters cost some 40 µs a sample. To count states the kernel has to be walked through its table of connections: asked by
//! `inet_diag` for the rarer states alone, that took 0.2 ms with an empty table of 262,144 buckets and 0.7 ms with 20,400
//! connections, against 1 ms and 17 ms for reading /proc/net/tcp (kernel 6.18, one x86-64 core). States are therefore counted in
//! some samples only, and are nil in the others; see [`Pacing`].

use std::time::{Duration, Instant};

use self::{
    states::{StateCounts, States},
    tables::{Snmp, SocketCounts},
};
use super::{CollectError, Collector, proc_file::ProcFile};
use crate::{context::Context, rows::Tables};

mod diag;
mod states;
mod tables;

/// Reads the counters of sockets, and now and then their states.
#[derive(Debug)]
pub struct Sockets {
    snmp: ProcFile,
    snmp6: ProcFile,
    netstat: ProcFile,
    sockstat: ProcFile,
    sockstat6: ProcFile,
    states: States,
    pacing: Pacing,
    incomplete: bool,
}

impl Sockets {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        let file = |name: &str| ProcFile::new(context.paths.own("net").join(name));
        Self {
            snmp: file("snmp"),
            snmp6: file("snmp6"),
            netstat: file("netstat"),
            sockstat: file("sockstat"),
            sockstat6: file("sockstat6"),
            states: States::new(&context.paths),
            pacing: Pacing::default(),
            incomplete: false,
        }
    }

    /// What /proc/net/snmp tells, with what other files add to it. Fails only on the first: kernels without IPv6 lack others.
    fn read_counters(&mut self) -> Result<Snmp, CollectError> {
        let mut counters = Snmp::default();
        counters.add_snmp(self.snmp.read()?).map_err(|error| self.snmp.unparsed(error))?;
        if let Some(text) = self.snmp6.read_if_present()? {
            counters.add_snmp6(text).map_err(|error| self.snmp6.unparsed(error))?;
        }
        if let Some(text) = self.netstat.read_if_present()? {
            counters.add_netstat(text).map_err(|error| self.netstat.unparsed(error))?;
        }
        Ok(counters)
    }

    fn read_counts(&mut self) -> Result<SocketCounts, CollectError> {
        let mut counts = SocketCounts::default();
        for file in [&mut self.sockstat, &mut self.sockstat6] {
            if let Some(text) = file.read_if_present()? {
                counts.add(text).map_err(|error| file.unparsed(error))?;
            }
        }
        Ok(counts)
    }

    /// The states, where it is time to count them.
    fn read_states(&mut self, sockets: u64) -> Option<StateCounts> {
        let now = Instant::now();
        if !self.pacing.is_due(now) {
            return None;
        }
        let counts = self.states.count();
        self.incomplete = counts.is_none();
        self.pacing.counted(now, sockets, self.states.is_cheap());
        counts
    }
}

impl Collector for Sockets {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let counters = self.read_counters()?;
        let counts = self.read_counts()?;
        let states = self.read_states(counts.tcp_in_use.unwrap_or(0).saturating_add(counts.tcp_time_wait.unwrap_or(0)));
        let state = |state: u8| states.map(|counts| counts.of(state));
        let established = states.and_then(|states| states.established(counters.tcp_connections));
        tables.only().push(
            &[],
            &[
                ("sockets", counts.sockets.into()),
                ("tcp_connections", counters.tcp_connections.into()),
                ("tcp_time_wait", counts.tcp_time_wait.into()),
                ("tcp_orphaned", counts.tcp_orphaned.into()),
                ("tcp_established", established.into()),
                ("tcp_syn_sent", state(states::SYN_SENT).into()),
                ("tcp_syn_received", state(states::SYN_RECEIVED).into()),
                ("tcp_fin_wait1", state(states::FIN_WAIT1).into()),
                ("tcp_fin_wait2", state(states::FIN_WAIT2).into()),
                ("tcp_close_wait", state(states::CLOSE_WAIT).into()),
                ("tcp_last_ack", state(states::LAST_ACK).into()),
                ("tcp_closing", state(states::CLOSING).into()),
                ("tcp_listen", state(states::LISTEN).into()),
                ("tcp_active_opens_total", counters.tcp_active_opens.into()),
                ("tcp_passive_opens_total", counters.tcp_passive_opens.into()),
                ("tcp_failed_opens_total", counters.tcp_failed_opens.into()),
                ("tcp_established_resets_total", counters.tcp_established_resets.into()),
                ("tcp_sent_resets_total", counters.tcp_sent_resets.into()),
                ("tcp_received_segments_total", counters.tcp_received_segments.into()),
                ("tcp_sent_segments_total", counters.tcp_sent_segments.into()),
                ("tcp_retransmitted_segments_total", counters.tcp_retransmitted_segments.into()),
                ("tcp_receive_errors_total", counters.tcp_receive_errors.into()),
                ("tcp_listen_overflows_total", counters.tcp_listen_overflows.into()),
                ("tcp_listen_drops_total", counters.tcp_listen_drops.into()),
                ("udp_sockets", counts.udp_in_use.into()),
                ("udp_received_datagrams_total", counters.udp_received.into()),
                ("udp_sent_datagrams_total", counters.udp_sent.into()),
                ("udp_no_port_total", counters.udp_no_port.into()),
                ("udp_receive_errors_total", counters.udp_receive_errors.into()),
                ("udp_receive_buffer_errors_total", counters.udp_receive_buffer_errors.into()),
                ("udp_send_buffer_errors_total", counters.udp_send_buffer_errors.into()),
            ],
        );
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        let note =
            "TCP sockets by state are unknown: the kernel answers neither `inet_diag` nor has it `/proc/net/tcp`.";
        self.incomplete.then(|| note.to_owned()).into_iter().collect()
    }
}

/// How often states are counted: every five seconds, and a second less often for each 5,000 sockets, where the kernel can be asked
/// for the rarer states; every ten seconds, and a second less often for each 500 sockets, where all of them have to be read. At
/// most a minute passes.
#[derive(Debug, Default)]
struct Pacing {
    next: Option<Instant>,
}

impl Pacing {
    const LONGEST: Duration = Duration::from_secs(60);
    /// A sample may be taken a little early.
    const EARLY: Duration = Duration::from_millis(500);

    /// Whether it is time. At the very first asking it is not: that sample only gives rates their start, and is not kept.
    fn is_due(&mut self, now: Instant) -> bool {
        let next = *self.next.get_or_insert(now);
        now > next
    }

    /// Takes in that it was done.
    fn counted(&mut self, now: Instant, sockets: u64, cheap: bool) {
        let (least, sockets_a_second) = if cheap { (5, 5_000) } else { (10, 500) };
        let pause = Duration::from_secs(sockets / sockets_a_second + least).min(Self::LONGEST);
        self.next = Some(now + pause - Self::EARLY);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, net::TcpListener};

    use plimsoll_nats::{Column, catalog};

    use super::*;
    use crate::{context::HostPaths, rows::Columns};

    fn read(sockets: &mut Sockets) -> Columns {
        let mut tables = Tables::new(catalog::measurement("sockets"));
        sockets.collect(&mut tables).unwrap();
        tables.only().take()
    }

    #[test]
    fn the_listeners_of_this_host_are_counted() {
        let _listener = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::1]:0"));
        let mut sockets = Sockets::new(&Context::default());
        read(&mut sockets);
        let columns = read(&mut sockets);
        assert!(columns.fields["tcp_listen"].number(0).unwrap() >= 1.0);
        assert!(columns.fields["sockets"].number(0).unwrap() >= 1.0);
        assert!(columns.fields["tcp_established"].number(0).is_some());
        assert_eq!(read(&mut sockets).fields["tcp_listen"], Column::Integer(vec![None]), "not each time");
    }

    #[test]
    fn a_host_seen_through_a_folder_has_its_files_read() {
        let dir = tempfile::tempdir().unwrap();
        let net = dir.path().join("proc/1/net");
        fs::create_dir_all(&net).unwrap();
        let write = |name: &str, text: &str| fs::write(net.join(name), text).unwrap();
        write("snmp", "Tcp: CurrEstab RetransSegs\nTcp: 3 7\nUdp: InDatagrams\nUdp: 5\n");
        write("snmp6", "Udp6InDatagrams                 \t6\n");
        write("sockstat", "sockets: used 9\nTCP: inuse 4 orphan 0 tw 2 alloc 5 mem 0\nUDP: inuse 1 mem 0\n");
        write("sockstat6", "TCP6: inuse 1\nUDP6: inuse 2\n");
        write("tcp", "  sl  local_address rem_address   st\n   0: 0100007F:0016 00000000:0000 0A\n   1: 0:1 0:2 01\n");
        write("tcp6", "  sl\n   0: 0:1 0:2 01 0\n   1: 0:1 0:2 08 0\n");
        let mut sockets = Sockets::new(&Context { paths: HostPaths::new(dir.path()), ..Context::default() });
        read(&mut sockets);
        let columns = read(&mut sockets);
        let count = |field: &str| columns.fields[field].number(0);
        assert_eq!(
            (count("tcp_listen"), count("tcp_established"), count("tcp_close_wait")),
            (Some(1.0), Some(2.0), Some(1.0))
        );
        assert_eq!(
            (count("tcp_connections"), count("tcp_time_wait"), count("sockets")),
            (Some(3.0), Some(2.0), Some(9.0))
        );
        assert_eq!((count("udp_received_datagrams_total"), count("udp_sockets")), (Some(11.0), Some(3.0)));
        assert_eq!((count("tcp_retransmitted_segments_total"), count("tcp_listen_drops_total")), (Some(7.0), None));
        assert!(sockets.notes().is_empty());
    }

    #[test]
    fn without_a_way_to_count_states_the_notes_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let net = dir.path().join("proc/1/net");
        fs::create_dir_all(&net).unwrap();
        fs::write(net.join("snmp"), "Tcp: CurrEstab\nTcp: 3\n").unwrap();
        let mut sockets = Sockets::new(&Context { paths: HostPaths::new(dir.path()), ..Context::default() });
        read(&mut sockets);
        assert_eq!(read(&mut sockets).fields["tcp_listen"], Column::Integer(vec![None]));
        assert!(sockets.notes()[0].contains("inet_diag"));
    }

    #[test]
    fn many_sockets_are_counted_less_often() {
        let start = Instant::now();
        let pause = |sockets, cheap| {
            let mut pacing = Pacing::default();
            pacing.counted(start, sockets, cheap);
            (1..100).find(|seconds| pacing.is_due(start + Duration::from_secs(*seconds)))
        };
        assert_eq!((pause(0, true), pause(0, false)), (Some(5), Some(10)));
        assert_eq!((pause(20_000, true), pause(20_000, false)), (Some(9), Some(50)));
        assert_eq!((pause(10_000_000, true), pause(u64::MAX, false)), (Some(60), Some(60)));
    }
}
