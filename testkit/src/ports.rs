//! Ports that nobody else is given.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
    sync::Mutex,
};

/// Below what the kernel hands out by itself, so that neither a listener on port 0 nor an outgoing connection takes one between the
/// look and the use. Above what services are known by.
const LOWEST: u16 = 10_000;

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Free ports of loopback, each given once in the life of this process.
///
/// # Panics
/// When there are none left.
#[must_use]
pub fn free<const N: usize>() -> [u16; N] {
    let mut given = GIVEN.lock().expect("no panic while ports are given");
    let highest = first_ephemeral();
    std::array::from_fn(|_| {
        let mut candidates = (0..10_000).map(|_| rand::random_range(LOWEST..highest));
        let is_free = |port: &u16| !given.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
        let port = candidates.find(is_free).expect("a free port");
        given.insert(port);
        port
    })
}

fn first_ephemeral() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = range.split_whitespace().next().and_then(|first| first.parse().ok());
    first.filter(|first| *first > LOWEST + 1000).unwrap_or(32_768)
}
