//! As much of HTTP as it takes to ask an engine on its socket (RFC 9112): one GET, and its answer whole.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// Longest answer; an engine with ten thousand containers gives some 10 MB.
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// Why an engine could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The socket could not be connected to, written or read.
    #[error("failed to ask the engine")]
    Io(#[source] io::Error),
    /// No whole answer came in time.
    #[error("the engine does not answer in time")]
    Late,
    /// The answer is longer than what is read.
    #[error("the engine's answer is too long")]
    Long,
    /// The answer is no HTTP or ends too early.
    #[error("the engine does not answer in HTTP: expected {expected}")]
    Malformed {
        /// What was expected.
        expected: &'static str,
    },
    /// The engine refuses.
    #[error("the engine answers with status {status}")]
    Status {
        /// The status.
        status: u16,
    },
    /// The body is not what engines send.
    #[error("failed to parse the engine's answer")]
    Json(#[source] serde_json::Error),
}

/// The body of the answer to a GET.
///
/// Fails when it is not there whole after `timeout`, which counts from the connection on, or is not of status 200.
pub fn get(socket: &Path, path: &str, timeout: Duration) -> Result<Vec<u8>, AskError> {
    let mut stream = UnixStream::connect(socket).map_err(AskError::Io)?;
    let deadline = Instant::now() + timeout;
    stream.set_write_timeout(Some(timeout)).map_err(AskError::Io)?;
    let request =
        format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(late_or_broken)?;
    let mut answer = Vec::new();
    let mut part = vec![0; 16 * 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(AskError::Late);
        }
        stream.set_read_timeout(Some(left)).map_err(AskError::Io)?;
        let count = match stream.read(&mut part) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(late_or_broken(error)),
        };
        answer.extend_from_slice(&part[..count]);
        // A server may keep the connection in spite of what it is asked.
        if count == 0 || is_whole(&answer) {
            return body(&answer);
        }
        if answer.len() > MOST_BYTES {
            return Err(AskError::Long);
        }
    }
}

fn late_or_broken(error: io::Error) -> AskError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AskError::Late,
        _ => AskError::Io(error),
    }
}

/// The head and what follows it; none before the head has come.
fn split(answer: &[u8]) -> Option<(&str, &[u8])> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some((std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 4..]))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    headers.find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim_ascii())
}

fn is_chunked(head: &str) -> bool {
    header(head, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
}

fn content_length(head: &str) -> Option<usize> {
    header(head, "content-length")?.parse().ok()
}

/// Whether nothing follows, as far as the answer itself tells.
fn is_whole(answer: &[u8]) -> bool {
    split(answer).is_some_and(|(head, rest)| {
        if is_chunked(head) {
            rest.ends_with(b"0\r\n\r\n") && unchunk(rest).is_some()
        } else {
            content_length(head).is_some_and(|length| rest.len() >= length)
        }
    })
}

/// The body of a whole answer.
fn body(answer: &[u8]) -> Result<Vec<u8>, AskError> {
    let malformed = |expected| AskError::Malformed { expected };
    let (head, rest) = split(answer).ok_or(malformed("a head and an empty line"))?;
    let mut words = head.split_ascii_whitespace();
    let version = words.next().filter(|word| word.starts_with("HTTP/1."));
    let status = version.and_then(|_| words.next()?.parse().ok()).ok_or(malformed("a status line"))?;
    if status != 200 {
        return Err(AskError::Status { status });
    }
    if is_chunked(head) {
        return unchunk(rest).ok_or(malformed("whole chunks"));
    }
    match content_length(head) {
        Some(length) => rest.get(..length).map(<[u8]>::to_vec).ok_or(malformed("as long a body as is told")),
        None => Ok(rest.to_vec()),
    }
}

/// Puts chunks together; none where they are cut off or malformed. What follows the last, empty one is left out.
fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?.trim_ascii();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(answer: &str) -> Result<String, String> {
        body(answer.as_bytes()).map(|body| String::from_utf8(body).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_body_ends_where_its_answer_says() {
        assert_eq!(text("HTTP/1.0 200 OK\r\n\r\n[1]").unwrap(), "[1]");
        assert_eq!(text("HTTP/1.1 200 OK\r\ncontent-LENGTH: 3\r\n\r\n[1]more").unwrap(), "[1]");
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[1\r\nA;x=y\r\n,2,3,4,5,6\r\n1\r\n]\r\n0\r\n\r\n";
        assert_eq!(text(chunked).unwrap(), "[1,2,3,4,5,6]");
        assert!(is_whole(chunked.as_bytes()));
        for end in 0..chunked.len() {
            assert!(!is_whole(&chunked.as_bytes()[..end]), "{end}");
        }
    }

    #[test]
    fn what_is_no_answer_is_told_as_such() {
        for (answer, expected) in [
            ("", "a head"),
            ("garbage", "a head"),
            ("SSH-2.0-OpenSSH\r\n\r\n", "a status line"),
            ("HTTP/1.1 x\r\n\r\n", "a status line"),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", "403"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1]", "as long a body"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n", "whole chunks"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\nx", "whole chunks"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n", "whole chunks"),
        ] {
            let error = text(answer).unwrap_err();
            assert!(error.contains(expected), "{answer}: {error}");
        }
    }

    proptest! {
        #[test]
        fn chunks_are_put_together_however_they_are_cut(parts in proptest::collection::vec("[a-z\r\n]{1,40}", 0..6)) {
            let chunks: String = parts.iter().map(|part| format!("{:x}\r\n{part}\r\n", part.len())).collect();
            let body = unchunk(format!("{chunks}0\r\n\r\n").as_bytes()).unwrap();
            prop_assert_eq!(body, parts.concat().into_bytes());
        }

        #[test]
        fn no_bytes_make_the_parser_panic(head in "(HTTP/1.1 200 OK\r\n)?(Transfer-Encoding: chunked\r\n)?(\r\n)?", rest in ".{0,40}") {
            let _ = (body(format!("{head}{rest}").as_bytes()), is_whole(head.as_bytes()));
        }
    }
}
