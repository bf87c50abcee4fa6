//! The tables of counters in /proc/net: snmp, snmp6, netstat, sockstat and sockstat6 (Documentation/networking/snmp_counter.rst).

use crate::collectors::ParseError;

/// Counters since boot, and open connections; none where the kernel does not tell. Those of UDP add IPv4 and IPv6 together; TCP
/// has common ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snmp {
    pub tcp_connections: Option<u64>,
    pub tcp_active_opens: Option<u64>,
    pub tcp_passive_opens: Option<u64>,
    pub tcp_failed_opens: Option<u64>,
    pub tcp_established_resets: Option<u64>,
    pub tcp_sent_resets: Option<u64>,
    pub tcp_received_segments: Option<u64>,
    pub tcp_sent_segments: Option<u64>,
    pub tcp_retransmitted_segments: Option<u64>,
    pub tcp_receive_errors: Option<u64>,
    pub tcp_listen_overflows: Option<u64>,
    pub tcp_listen_drops: Option<u64>,
    pub udp_received: Option<u64>,
    pub udp_sent: Option<u64>,
    pub udp_no_port: Option<u64>,
    pub udp_receive_errors: Option<u64>,
    pub udp_receive_buffer_errors: Option<u64>,
    pub udp_send_buffer_errors: Option<u64>,
}

impl Snmp {
    /// Takes in /proc/net/snmp. Fails on a counter that is no number.
    pub fn add_snmp(&mut self, text: &str) -> Result<(), ParseError> {
        for_each_column(text, |table, name, value| match table {
            "Tcp" => add(self.tcp(name), value),
            "Udp" => add(self.udp(name), value),
            _ => {}
        })
    }

    /// Takes in /proc/net/snmp6. Fails on a counter that is no number.
    pub fn add_snmp6(&mut self, text: &str) -> Result<(), ParseError> {
        for (index, line) in text.lines().enumerate() {
            let Some(rest) = line.strip_prefix("Udp6") else {
                continue;
            };
            let (name, value) = rest.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((rest, ""));
            if let Some(slot) = self.udp(name) {
                add(Some(slot), number(value, index)?);
            }
        }
        Ok(())
    }

    /// Takes in /proc/net/netstat. Fails on a counter that is no number.
    pub fn add_netstat(&mut self, text: &str) -> Result<(), ParseError> {
        for_each_column(text, |table, name, value| match (table, name) {
            ("TcpExt", "ListenOverflows") => add(Some(&mut self.tcp_listen_overflows), value),
            ("TcpExt", "ListenDrops") => add(Some(&mut self.tcp_listen_drops), value),
            _ => {}
        })
    }

    fn tcp(&mut self, name: &str) -> Option<&mut Option<u64>> {
        Some(match name {
            "CurrEstab" => &mut self.tcp_connections,
            "ActiveOpens" => &mut self.tcp_active_opens,
            "PassiveOpens" => &mut self.tcp_passive_opens,
            "AttemptFails" => &mut self.tcp_failed_opens,
            "EstabResets" => &mut self.tcp_established_resets,
            "OutRsts" => &mut self.tcp_sent_resets,
            "InSegs" => &mut self.tcp_received_segments,
            "OutSegs" => &mut self.tcp_sent_segments,
            "RetransSegs" => &mut self.tcp_retransmitted_segments,
            "InErrs" => &mut self.tcp_receive_errors,
            _ => return None,
        })
    }

    fn udp(&mut self, name: &str) -> Option<&mut Option<u64>> {
        Some(match name {
            "InDatagrams" => &mut self.udp_received,
            "OutDatagrams" => &mut self.udp_sent,
            "NoPorts" => &mut self.udp_no_port,
            "InErrors" => &mut self.udp_receive_errors,
            "RcvbufErrors" => &mut self.udp_receive_buffer_errors,
            "SndbufErrors" => &mut self.udp_send_buffer_errors,
            _ => return None,
        })
    }
}

/// Sockets there are; none where the kernel does not tell. IPv4 and IPv6 are added together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketCounts {
    pub sockets: Option<u64>,
    pub tcp_in_use: Option<u64>,
    pub tcp_orphaned: Option<u64>,
    pub tcp_time_wait: Option<u64>,
    pub udp_in_use: Option<u64>,
}

impl SocketCounts {
    /// Takes in /proc/net/sockstat or sockstat6. Fails on a count that is no number.
    pub fn add(&mut self, text: &str) -> Result<(), ParseError> {
        for (index, line) in text.lines().enumerate() {
            let Some((table, counts)) = line.split_once(':') else {
                continue;
            };
            let mut words = counts.split_ascii_whitespace();
            while let Some(name) = words.next() {
                let value = words.next().unwrap_or_default();
                let slot = match (table, name) {
                    ("sockets", "used") => &mut self.sockets,
                    ("TCP" | "TCP6", "inuse") => &mut self.tcp_in_use,
                    ("TCP", "orphan") => &mut self.tcp_orphaned,
                    ("TCP", "tw") => &mut self.tcp_time_wait,
                    ("UDP" | "UDP6", "inuse") => &mut self.udp_in_use,
                    _ => continue,
                };
                add(Some(slot), number(value, index)?);
            }
        }
        Ok(())
    }
}

fn add(slot: Option<&mut Option<u64>>, value: u64) {
    if let Some(slot) = slot {
        *slot = Some(slot.unwrap_or(0).saturating_add(value));
    }
}

fn number(text: &str, index: usize) -> Result<u64, ParseError> {
    text.trim_ascii().parse().map_err(|_| ParseError { line: index + 1, expected: "a number" })
}

/// Goes through a text of tables, each a line `<table>: <names>` and a line `<table>: <values>`. Fails on a value that is no
/// number; negative ones, of limits that are none, are left out.
fn for_each_column<'a>(text: &'a str, mut take: impl FnMut(&'a str, &'a str, u64)) -> Result<(), ParseError> {
    let mut lines = text.lines().enumerate();
    while let (Some((_, names)), Some((index, values))) = (lines.next(), lines.next()) {
        let (Some((table, names)), Some((_, values))) = (names.split_once(':'), values.split_once(':')) else {
            return Err(ParseError { line: index + 1, expected: "`table: names` and `table: values`" });
        };
        for (name, value) in names.split_ascii_whitespace().zip(values.split_ascii_whitespace()) {
            if !value.starts_with('-') {
                take(table, name, number(value, index)?);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As of 6.18, less some tables and columns.
    const SNMP: &str = "\
Ip: Forwarding DefaultTTL InReceives
Ip: 2 64 3267016
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors
Tcp: 1 200 120000 -1 24863 18487 6119 9182 12 3266504 3249911 1633 4 12332 0
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
Udp: 510 1 2 512 3 4 0 0 0
UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
UdpLite: 9 9 9 9 9 9 9 9 9
";
    const SNMP6: &str = "\
Ip6InReceives                   \t7
Udp6InDatagrams                 \t10
Udp6NoPorts                     \t20
UdpLite6InDatagrams             \t99
";
    const NETSTAT: &str = "\
TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPHPHits
TcpExt: 32 185 186 1553862
IpExt: InNoRoutes
IpExt: 0
";
    const SOCKSTAT: &str = "\
sockets: used 163
TCP: inuse 11 orphan 2 tw 5 alloc 14 mem 1
UDP: inuse 3 mem 0
UDPLITE: inuse 0
FRAG: inuse 0 memory 0
";
    const SOCKSTAT6: &str = "TCP6: inuse 4\nUDP6: inuse 2\nUDPLITE6: inuse 0\n";
    /// As of 2.6.32.
    const OLD_SNMP: &str = "\
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts
Tcp: 1 200 120000 -1 1 2 3 4 5 6 7 8 9 10
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors
Udp: 1 2 3 4 5 6
";

    #[test]
    fn recorded_tables_are_taken_apart() {
        let mut counters = Snmp::default();
        counters.add_snmp(SNMP).unwrap();
        counters.add_snmp6(SNMP6).unwrap();
        counters.add_netstat(NETSTAT).unwrap();
        let expected = Snmp {
            tcp_connections: Some(12),
            tcp_active_opens: Some(24_863),
            tcp_passive_opens: Some(18_487),
            tcp_failed_opens: Some(6_119),
            tcp_established_resets: Some(9_182),
            tcp_sent_resets: Some(12_332),
            tcp_received_segments: Some(3_266_504),
            tcp_sent_segments: Some(3_249_911),
            tcp_retransmitted_segments: Some(1_633),
            tcp_receive_errors: Some(4),
            tcp_listen_overflows: Some(185),
            tcp_listen_drops: Some(186),
            udp_received: Some(520),
            udp_sent: Some(512),
            udp_no_port: Some(21),
            udp_receive_errors: Some(2),
            udp_receive_buffer_errors: Some(3),
            udp_send_buffer_errors: Some(4),
        };
        assert_eq!(counters, expected);
    }

    #[test]
    fn the_table_of_an_old_kernel_is_taken_apart() {
        let mut counters = Snmp::default();
        counters.add_snmp(OLD_SNMP).unwrap();
        assert_eq!((counters.tcp_sent_resets, counters.udp_send_buffer_errors), (Some(10), Some(6)));
        assert_eq!(counters.tcp_listen_drops, None);
    }

    #[test]
    fn sockets_of_both_protocols_are_added_together() {
        let mut counts = SocketCounts::default();
        counts.add(SOCKSTAT).unwrap();
        counts.add(SOCKSTAT6).unwrap();
        let expected = SocketCounts {
            sockets: Some(163),
            tcp_in_use: Some(15),
            tcp_orphaned: Some(2),
            tcp_time_wait: Some(5),
            udp_in_use: Some(5),
        };
        assert_eq!(counts, expected);
    }

    #[test]
    fn hostile_texts_are_refused_with_their_place() {
        let snmp = |text: &str| Snmp::default().add_snmp(text).unwrap_err().line;
        assert_eq!(snmp("Tcp: CurrEstab\nTcp: x\n"), 2);
        assert_eq!(snmp("Tcp\nTcp: 1\n"), 2);
        assert_eq!(Snmp::default().add_snmp6("\nUdp6NoPorts\n").unwrap_err().line, 2);
        assert_eq!(SocketCounts::default().add("TCP: inuse\n").unwrap_err().line, 1);
        let mut counters = Snmp::default();
        counters.add_snmp("Tcp: CurrEstab InSegs\nTcp: 1\nTcp: OutSegs\n").unwrap();
        assert_eq!((counters.tcp_connections, counters.tcp_received_segments), (Some(1), None));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "((Tcp|Udp6?|TcpExt|TCP|sockets)?:?( (CurrEstab|inuse|used|-?[0-9]{0,21})){0,4}\n){0,5}") {
            let _ = (Snmp::default().add_snmp(&text), Snmp::default().add_snmp6(&text), Snmp::default().add_netstat(&text));
            let _ = SocketCounts::default().add(&text);
        }
    }
}
