//! Messages as they came, kept until their rows are stored or they are put aside.
//!
//! They lie one after the other in one piece of memory: held where they were received, each would keep the whole buffer alive that
//! it was received in.

use plimsoll_nats::{Incarnation, PartitionId, Sequence, dead::MAX_HEADER_BYTES};

use crate::decoder::Arrived;

/// A message as it came.
#[derive(Debug, Clone, Copy)]
pub struct Original<'a> {
    /// The partition.
    pub partition: PartitionId,
    /// The life of the stream.
    pub incarnation: Incarnation,
    /// Its place in the stream.
    pub sequence: Sequence,
    /// The stored subject.
    pub subject: &'a str,
    /// How the payload is encoded, where the message says so; its start where that is long.
    pub encoding: Option<&'a str>,
    /// Payload.
    pub payload: &'a [u8],
}

/// Messages in the order that they were added in.
#[derive(Debug, Default)]
pub struct Originals {
    entries: Vec<Entry>,
    bytes: Vec<u8>,
}

/// Where a message lies: its subject ends at `subject_end`, and is followed by its encoding and its payload.
#[derive(Debug, Clone, Copy)]
struct Entry {
    partition: PartitionId,
    incarnation: Incarnation,
    sequence: Sequence,
    start: usize,
    subject_end: usize,
    encoding_end: Option<usize>,
    end: usize,
}

impl Originals {
    /// Keeps a message.
    pub fn push(&mut self, message: &Arrived<'_>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(message.subject.as_bytes());
        let subject_end = self.bytes.len();
        let encoding_end = message.encoding().map(|encoding| {
            let longest = MAX_HEADER_BYTES.min(encoding.len());
            let shown = (0..=longest).rev().find(|end| encoding.is_char_boundary(*end)).unwrap_or(0);
            self.bytes.extend_from_slice(&encoding.as_bytes()[..shown]);
            self.bytes.len()
        });
        self.bytes.extend_from_slice(message.payload);
        let Arrived { partition, incarnation, sequence, .. } = *message;
        let end = self.bytes.len();
        self.entries.push(Entry { partition, incarnation, sequence, start, subject_end, encoding_end, end });
    }

    /// Memory that the messages take, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.bytes.len() + self.entries.len() * size_of::<Entry>()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The message of this index.
    #[must_use]
    pub fn get(&self, index: usize) -> Original<'_> {
        let Entry { partition, incarnation, sequence, start, subject_end, encoding_end, end } = self.entries[index];
        let text = |from: usize, to: usize| {
            std::str::from_utf8(&self.bytes[from..to]).expect("subjects and headers were texts when they came")
        };
        Original {
            partition,
            incarnation,
            sequence,
            subject: text(start, subject_end),
            encoding: encoding_end.map(|encoding_end| text(subject_end, encoding_end)),
            payload: &self.bytes[encoding_end.unwrap_or(subject_end)..end],
        }
    }

    /// Forgets all, and keeps at most about `keep` bytes of memory for the next ones.
    pub fn clear(&mut self, keep: usize) {
        self.entries.clear();
        self.bytes.clear();
        self.entries.shrink_to(keep / size_of::<Entry>());
        self.bytes.shrink_to(keep);
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::{async_nats::HeaderMap, batch::ENCODING_HEADER};

    use super::*;

    #[test]
    fn messages_are_given_back_as_they_came() {
        let mut headers = HeaderMap::new();
        headers.insert(ENCODING_HEADER, "ä".repeat(MAX_HEADER_BYTES).as_str());
        let message = |sequence, headers, payload| Arrived {
            partition: PartitionId::new(3).expect("exists"),
            incarnation: Incarnation(7),
            sequence: Sequence(sequence),
            stored_ms: 0,
            subject: "plimsoll.p.3.h.größe",
            headers,
            payload,
        };
        let mut originals = Originals::default();
        originals.push(&message(1, None, b"one"));
        originals.push(&message(2, Some(&headers), b"\xff"));
        originals.push(&message(3, None, b""));
        assert_eq!(originals.len(), 3);
        let found: Vec<_> = (0..3).map(|index| originals.get(index)).collect();
        assert!(found.iter().all(|original| original.subject == "plimsoll.p.3.h.größe"));
        assert_eq!(found.iter().map(|original| original.sequence.0).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!((found[0].encoding, found[0].payload), (None, &b"one"[..]));
        assert_eq!((found[1].encoding.map(str::len), found[1].payload), (Some(MAX_HEADER_BYTES), &b"\xff"[..]));
        assert_eq!((found[2].encoding, found[2].payload), (None, &b""[..]));
        originals.clear(0);
        assert!(originals.is_empty() && originals.bytes.capacity() == 0);
    }
}
