//! Asks the kernel for TCP sockets by state, over a netlink socket (sock_diag(7)).
//!
//! The question is the first version of `inet_diag` (`TCPDIAG_GETSOCK` with `struct inet_diag_req` of
//! include/uapi/linux/inet_diag.h), since that one alone is answered for IPv4 and IPv6 in one walk. All numbers are in the host's
//! own byte order. The answers are messages of `struct nlmsghdr` and `struct inet_diag_msg`, whose second byte is the state.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
    recv, sendto, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use super::states;

const TCPDIAG_GETSOCK: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST` and `NLM_F_DUMP`.
const REQUEST_ALL: u16 = 0x1 | 0x300;
const HEADER_BYTES: usize = 16;
const QUESTION_BYTES: usize = HEADER_BYTES + 60;
/// Where the wanted states are in the question.
const STATES_AT: usize = HEADER_BYTES + 52;
/// As much as the kernel puts into one answer at most.
const ANSWER_BYTES: usize = 32 * 1024;
/// The kernel answers at once; this only keeps a fault of it from holding up the agent.
const PATIENCE: Duration = Duration::from_millis(500);
/// All but established sockets and those in TIME_WAIT, of which there may be very many, and which other counters tell of.
const RARE: [u8; 9] = [
    states::SYN_SENT,
    states::SYN_RECEIVED,
    states::FIN_WAIT1,
    states::FIN_WAIT2,
    states::CLOSE_WAIT,
    states::LAST_ACK,
    states::LISTEN,
    states::CLOSING,
    states::NEW_SYN_RECEIVED,
];

/// A connection to the kernel's socket diagnosis, made at the first question.
#[derive(Debug)]
pub struct Diag {
    socket: Option<OwnedFd>,
    answer: Vec<u8>,
    sequence: u32,
}

impl Default for Diag {
    fn default() -> Self {
        Self { socket: None, answer: vec![0; ANSWER_BYTES], sequence: 0 }
    }
}

impl Diag {
    /// Gives the state of each socket in one of the rarer states to `take`.
    pub fn count(&mut self, take: impl FnMut(u8)) -> io::Result<()> {
        let result = self.try_count(take);
        if result.is_err() {
            // What is left of the answer would come before the next one.
            self.socket = None;
        }
        result
    }

    fn try_count(&mut self, mut take: impl FnMut(u8)) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(open()?),
        };
        self.sequence = self.sequence.wrapping_add(1);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(socket, &question(self.sequence), SendFlags::empty(), &kernel)?;
        loop {
            let (length, _) = recv(socket, &mut self.answer[..], RecvFlags::empty())?;
            let mut rest = &self.answer[..length];
            while let Some((message, after)) = Message::split(rest) {
                rest = after;
                match message.kind {
                    _ if message.sequence != self.sequence => {}
                    NLMSG_DONE | NLMSG_ERROR => return message.status(),
                    _ => message.state().into_iter().for_each(&mut take),
                }
            }
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    Ok(socket)
}

fn question(sequence: u32) -> [u8; QUESTION_BYTES] {
    let mut question = [0; QUESTION_BYTES];
    question[..4].copy_from_slice(&(QUESTION_BYTES as u32).to_ne_bytes());
    question[4..6].copy_from_slice(&TCPDIAG_GETSOCK.to_ne_bytes());
    question[6..8].copy_from_slice(&REQUEST_ALL.to_ne_bytes());
    question[8..12].copy_from_slice(&sequence.to_ne_bytes());
    let wanted = RARE.iter().fold(0_u32, |wanted, state| wanted | 1 << state);
    question[STATES_AT..STATES_AT + 4].copy_from_slice(&wanted.to_ne_bytes());
    question
}

/// One message of an answer.
struct Message<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Takes the first message off; none when no whole one is left.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
        let payload = bytes.get(HEADER_BYTES..length)?;
        // Messages begin at multiples of four.
        let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((Self { kind, sequence, payload }, after))
    }

    fn state(&self) -> Option<u8> {
        self.payload.get(1).copied()
    }

    /// What the last message says: a negative number is an error.
    fn status(&self) -> io::Result<()> {
        let status = self.payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
        if status < 0 { Err(io::Error::from_raw_os_error(status.saturating_neg())) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER_BYTES + payload.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0, 0]);
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_are_told_apart() {
        let bytes =
            [message(20, &[2, states::LISTEN, 0, 0, 1]), message(20, &[]), message(NLMSG_DONE, &[0; 4])].concat();
        let (first, rest) = Message::split(&bytes).unwrap();
        assert_eq!((first.sequence, first.state()), (7, Some(states::LISTEN)));
        let (second, rest) = Message::split(rest).unwrap();
        assert_eq!(second.state(), None);
        let (third, rest) = Message::split(rest).unwrap();
        assert_eq!(third.kind, NLMSG_DONE);
        assert!(third.status().is_ok() && Message::split(rest).is_none());
    }

    #[test]
    fn an_error_is_the_kernels() {
        let bytes = message(NLMSG_ERROR, &(-2_i32).to_ne_bytes());
        let error = Message::split(&bytes).unwrap().0.status().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    proptest! {
        #[test]
        fn any_bytes_come_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut rest = &bytes[..];
            while let Some((message, after)) = Message::split(rest) {
                let _ = (message.state(), message.status());
                prop_assert!(after.len() < rest.len());
                rest = after;
            }
        }
    }
}
