//! How many TCP sockets are in each state.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Seek as _},
    path::PathBuf,
};

use super::diag::Diag;
use crate::context::HostPaths;

// The states of include/net/tcp_states.h.
pub const ESTABLISHED: u8 = 1;
pub const SYN_SENT: u8 = 2;
pub const SYN_RECEIVED: u8 = 3;
pub const FIN_WAIT1: u8 = 4;
pub const FIN_WAIT2: u8 = 5;
pub const CLOSE_WAIT: u8 = 8;
pub const LAST_ACK: u8 = 9;
pub const LISTEN: u8 = 10;
pub const CLOSING: u8 = 11;
pub const NEW_SYN_RECEIVED: u8 = 12;

/// Sockets by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateCounts {
    by_state: [u64; 16],
    /// Whether established sockets were counted.
    complete: bool,
}

impl StateCounts {
    /// Counts a socket; a state that no kernel documents is left out.
    pub fn add(&mut self, state: u8) {
        if let Some(count) = self.by_state.get_mut(usize::from(state)) {
            *count += 1;
        }
    }

    /// Sockets in a state.
    pub fn of(&self, state: u8) -> u64 {
        self.by_state.get(usize::from(state)).copied().unwrap_or(0)
    }

    /// Sockets that are established, of `connections`, which are these and those that wait to be closed.
    pub fn established(&self, connections: Option<u64>) -> Option<u64> {
        if self.complete { Some(self.of(ESTABLISHED)) } else { Some(connections?.saturating_sub(self.of(CLOSE_WAIT))) }
    }
}

/// Counts states: by asking the kernel where the agent is in the host's network, else from /proc/net/tcp and tcp6.
#[derive(Debug)]
pub struct States {
    diag: Option<Diag>,
    files: [Table; 2],
}

impl States {
    /// Looks at the host of `paths`.
    pub fn new(paths: &HostPaths) -> Self {
        let file = |name| Table { path: paths.own("net").join(name), reader: None };
        Self { diag: paths.shares_network().then(Diag::default), files: ["tcp", "tcp6"].map(file) }
    }

    /// Whether only the rarer states have to be gone through.
    pub fn is_cheap(&self) -> bool {
        self.diag.is_some()
    }

    /// Sockets by state; none when the kernel tells in no way. One that does not answer questions is not asked again.
    pub fn count(&mut self) -> Option<StateCounts> {
        if let Some(diag) = &mut self.diag {
            let mut counts = StateCounts::default();
            match diag.count(|state| counts.add(state)) {
                Ok(()) => return Some(counts),
                Err(error) => tracing::debug!(%error, "inet_diag does not answer, TCP sockets are read one by one"),
            }
            self.diag = None;
        }
        let mut counts = StateCounts { complete: true, ..StateCounts::default() };
        let [tcp, tcp6] = &mut self.files;
        let read = (tcp.count(&mut counts), tcp6.count(&mut counts));
        // Without IPv6 there is no second one.
        read.0.or(read.1).is_ok().then_some(counts)
    }
}

/// One of the files, read line by line: it may be as long as there are sockets.
#[derive(Debug)]
struct Table {
    path: PathBuf,
    reader: Option<(BufReader<File>, Vec<u8>)>,
}

impl Table {
    fn count(&mut self, counts: &mut StateCounts) -> io::Result<()> {
        let result = self.try_count(counts);
        if result.is_err() {
            self.reader = None;
        }
        result
    }

    fn try_count(&mut self, counts: &mut StateCounts) -> io::Result<()> {
        let (reader, line) = match &mut self.reader {
            Some(reader) => reader,
            None => self.reader.insert((BufReader::with_capacity(64 * 1024, File::open(&self.path)?), Vec::new())),
        };
        reader.rewind()?;
        loop {
            line.clear();
            if reader.read_until(b'\n', line)? == 0 {
                return Ok(());
            }
            if let Some(state) = parse_state(line) {
                counts.add(state);
            }
        }
    }
}

/// The state of `<slot>: <local> <remote> <state> …` (Documentation/networking/proc_net_tcp.rst); none of the heading.
fn parse_state(line: &[u8]) -> Option<u8> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let slot = words.next()?;
    let state = words.nth(2).filter(|_| slot.ends_with(b":"))?;
    u8::from_str_radix(str::from_utf8(state).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    const TIME_WAIT: u8 = 6;

    #[test]
    fn states_are_found_in_lines() {
        let line = b"   3: 0100007F:8C9E 0100007F:1F90 06 00000000:00000000 03:00000A5B 00000000     0        0 0 3 0000000000000000\n";
        assert_eq!(parse_state(line), Some(TIME_WAIT));
        assert_eq!(parse_state(b"  sl  local_address rem_address   st tx_queue"), None);
        assert_eq!(parse_state(b"1: 0:0 0:0 0A"), Some(LISTEN));
        for bad in [&b""[..], b"1: 0:0", b"1: 0:0 0:0 GG", b"1: 0:0 0:0 1FF", b"1: 0:0 0:0 \xff"] {
            assert_eq!(parse_state(bad), None, "{bad:?}");
        }
    }

    /// Both ways see the same sockets of this host, of which other tests make and close some meanwhile.
    #[test]
    fn asking_and_reading_agree() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let clients: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
        // Their other ends wait to be closed once these are shut, until they are dropped.
        clients.iter().for_each(|client| client.shutdown(std::net::Shutdown::Write).unwrap());
        let mut asking = States::new(&HostPaths::default());
        let mut reading = States { diag: None, ..States::new(&HostPaths::default()) };
        let (asked, read) = (asking.count().unwrap(), reading.count().unwrap());
        if !asking.is_cheap() {
            println!("skipped: this kernel does not answer inet_diag");
            return;
        }
        assert!((100..200).contains(&asked.of(CLOSE_WAIT)), "{asked:?}");
        assert!((100..200).contains(&read.of(CLOSE_WAIT)), "{read:?}");
        assert!(asked.of(LISTEN) >= 1 && read.of(LISTEN) >= 1);
        assert_eq!((asked.of(ESTABLISHED), asked.of(TIME_WAIT)), (0, 0), "the kernel is not asked for these");
        assert_eq!(asked.established(Some(asked.of(CLOSE_WAIT) + 5)), Some(5));
        assert_eq!(asked.established(None), None);
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line in proptest::collection::vec(prop_oneof![Just(b' '), Just(b':'), any::<u8>()], 0..60)) {
            let _ = parse_state(&line);
        }
    }
}
