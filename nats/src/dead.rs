//! The dead: messages that could not be decoded or stored, kept on `DEAD` as they came, with the reason in headers.

use async_nats::HeaderMap;

use crate::Sequence;

/// Header with the reason, the whole chain of causes on one line.
pub const REASON_HEADER: &str = "Plimsoll-Reason";
/// Header with the subject that the message was stored under.
pub const SUBJECT_HEADER: &str = "Plimsoll-Subject";
/// Header with the message's sequence in its stream.
pub const SEQUENCE_HEADER: &str = "Plimsoll-Sequence";

/// Longest header of a dead message in bytes.
pub const MAX_HEADER_BYTES: usize = 4096;

/// The subject of a dead message of a worker group: `plimsoll.dead.<group>`.
#[must_use]
pub fn subject(group: &str) -> String {
    format!("plimsoll.dead.{group}")
}

/// The headers of a dead message, whose own `Content-Encoding` is `encoding`; a `Nats-Msg-Id` makes publishing it again harmless.
#[must_use]
pub fn headers(
    group: &str,
    incarnation: crate::Incarnation,
    sequence: Sequence,
    stored_subject: &str,
    encoding: Option<&str>,
    reason: &(dyn std::error::Error + 'static),
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(encoding) = encoding {
        headers.insert(crate::batch::ENCODING_HEADER, header_text(encoding).as_str());
    }
    headers.insert(REASON_HEADER, header_text(&chain(reason)).as_str());
    headers.insert(SUBJECT_HEADER, header_text(stored_subject).as_str());
    headers.insert(SEQUENCE_HEADER, sequence.to_string().as_str());
    headers.insert(async_nats::header::NATS_MESSAGE_ID, format!("{group}/{}/{sequence}", incarnation.0).as_str());
    headers
}

/// An error and its causes on one line, joined by `: `. A cause that its error has told already is not told again.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.ends_with(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        cause = error.source();
    }
    text
}

/// The text on one line and at most [`MAX_HEADER_BYTES`] long: an error may quote a hostile message at any length.
#[must_use]
pub fn header_text(text: &str) -> String {
    let end = (0..=MAX_HEADER_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: io::Error,
    }

    #[test]
    fn each_cause_is_told_once() {
        let layer = |text| Layer { text, source: io::Error::other("refused") };
        assert_eq!(chain(&layer("failed to connect")), "failed to connect: refused");
        assert_eq!(chain(&layer("I/O error: refused")), "I/O error: refused");
    }
}
