//! Bad messages go to `DEAD` with the reason, good ones keep flowing.

mod support;

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt;
use plimsoll_nats::{
    Batch, Client, Column,
    async_nats::{
        HeaderMap,
        jetstream::consumer::{OrderedPullConsumer, pull::OrderedConfig},
    },
    batch::{ENCODING_HEADER, ENCODING_ZSTD},
    dead, streams,
    testing::{TestServer, eventually},
};
use support::{IngestProcess, LIMIT, TestLake, differences, known_batch, name, publish_all};

const SUBJECT: &str = "plimsoll.metrics.h0.known";

struct Bad {
    what: &'static str,
    subject: &'static str,
    headers: HeaderMap,
    payload: Vec<u8>,
    /// What the reason must say.
    reason: &'static str,
}

fn bad(what: &'static str, payload: Vec<u8>, reason: &'static str) -> Bad {
    Bad { what, subject: SUBJECT, headers: HeaderMap::new(), payload, reason }
}

fn changed(change: impl FnOnce(&mut Batch)) -> Vec<u8> {
    let mut batch = known_batch(0, 0, 2);
    change(&mut batch);
    batch.encode()
}

/// A batch whose map has one text exchanged for another of the same length.
fn patched(from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = known_batch(0, 0, 2).encode();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("is there");
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    bytes
}

fn garbage() -> Vec<Bad> {
    let valid = known_batch(0, 0, 2).encode();
    let encoding = |encoding: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(ENCODING_HEADER, encoding);
        headers
    };
    let tags = changed(|batch| {
        batch.tags = BTreeMap::from([(name("large"), vec!["x".repeat(5 * 1024 * 1024); 2])]);
    });
    let quoted = rmp_pack(&serde_json::json!({
        "v": 1, "host": "h0", "measurement": "known", "epoch": ulid::Ulid::nil(), "seq": 1, "times": "a".repeat(4 * 1024 * 1024), "fields": {},
    }));
    let year_2100 = 4_102_444_800_000;
    vec![
        bad("random bytes", vec![0x93, 0xff, 0x00, 0x17, 0x42, 0xc1, 0x99], "failed to decode"),
        bad("nothing", vec![], "failed to decode"),
        bad("a truncated batch", valid[..valid.len() / 2].to_vec(), "failed to decode"),
        bad("columns of different lengths", changed(|batch| batch.times.push(0)), "`times` has 3"),
        bad("another host than the subject's", patched("h0", "h9"), "host `h9` differs from the subject's `h0`"),
        Bad {
            subject: "plimsoll.metrics.h0.x;DROP",
            ..bad("a hostile subject", valid.clone(), "`x;DROP` is not a name")
        },
        bad("a hostile measurement", patched("known", "x; D "), "measurement `x; D ` differs"),
        bad(
            "a measurement that drops tables",
            changed_measurement("x; DROP TABLE"),
            "measurement `x; DROP TABLE` differs from the subject's `known`",
        ),
        bad("a hostile field", patched("value", "a\";--"), "is not a name"),
        Bad {
            headers: encoding(ENCODING_ZSTD),
            ..bad("10 MB of tags", zstd::encode_all(&*tags, 1).expect("compresses"), "larger than 8388608 bytes")
        },
        bad(
            "NaN",
            changed(|batch| {
                batch.fields.insert(name("value"), Column::Float(vec![Some(f64::NAN), None]));
            }),
            "`value` row 0 is not finite",
        ),
        bad("a time in 1970", changed(|batch| batch.times[1] = 0), "row 1 is"),
        bad("a time in 2100", changed(|batch| batch.times[1] = year_2100), "ahead of the time of its arrival"),
        bad(
            "a field of another type",
            changed(|batch| {
                batch.fields.insert(name("n"), Column::Text(vec![Some("one".to_owned()), None]));
            }),
            "field `n` is integer in the lake and text here",
        ),
        bad(
            "too many fields",
            changed(|batch| {
                batch.fields.extend((0..255).map(|n| (name(&format!("f{n}")), Column::Integer(vec![Some(n), None]))));
            }),
            "at most 254",
        ),
        bad(
            "a field of a name that the lake keeps for itself",
            changed(|batch| {
                batch.fields.insert(name("row_id"), Column::Integer(vec![Some(1), None]));
            }),
            "column `row_id` is reserved",
        ),
        bad(
            "a field by whose name the lake tells rows apart",
            changed(|batch| {
                batch.fields.insert(name("snapshot_id"), Column::Integer(vec![Some(1), None]));
            }),
            "a column may not be named `snapshot_id`: the lake tells rows apart by it",
        ),
        bad(
            "a field that PostgreSQL would not take",
            changed(|batch| {
                batch.fields.insert(name("current_date"), Column::Integer(vec![Some(1), None]));
            }),
            "a column may not be named `current_date`",
        ),
        Bad {
            subject: "plimsoll.metrics.h0.known_1m",
            ..bad(
                "a measurement of a rollup's name",
                changed(|batch| batch.measurement = name("known_1m")),
                "the names of measurements may not end in `_1m` or `_1h`",
            )
        },
        bad(
            "a tag that is a byte too long",
            changed(|batch| {
                batch.tags = BTreeMap::from([(name("parity"), vec!["x".repeat(1025); 2])]);
            }),
            "column `parity` row 0 is longer than 1024 bytes",
        ),
        bad(
            "a text that is a byte too long",
            changed(|batch| {
                batch.fields.insert(name("note"), Column::Text(vec![None, Some("x".repeat(16 * 1024 + 1))]));
            }),
            "column `note` row 1 is longer than 16384 bytes",
        ),
        bad("a row that is a little too far ahead", changed(|batch| batch.times[1] += 100_000 + 700_000), "row 1 is"),
        bad(
            "a row that is a little too old",
            changed(|batch| batch.times[0] -= 2 * 366 * 86_400_000),
            "row 0 is 732 days older than its arrival: at most 732 are allowed",
        ),
        Bad {
            headers: encoding(ENCODING_ZSTD),
            ..bad("a text of 4 MB that the reason quotes", zstd::encode_all(&*quoted, 1).expect("compresses"), "aaaa")
        },
        Bad {
            headers: encoding(&"e".repeat(60_000)),
            ..bad("as long a header as the broker takes", valid, "content encoding `eeee")
        },
        bad("as many bytes as the broker takes", vec![0xc1; 1024 * 1024 - 100], "failed to decode"),
    ]
}

fn changed_measurement(measurement: &str) -> Vec<u8> {
    let batch = known_batch(0, 0, 2);
    let map = serde_json::json!({
        "v": 1, "host": "h0", "measurement": measurement, "epoch": batch.epoch, "seq": 1,
        "times": batch.times, "fields": {"n": [1, 2]},
    });
    // JSON is no MessagePack, but its values pack alike.
    rmp_pack(&map)
}

fn rmp_pack(value: &serde_json::Value) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("packs")
}

async fn dead_messages(client: &Client) -> Vec<(String, HeaderMap, Vec<u8>)> {
    let stream = client.jetstream.get_stream(streams::DEAD).await.expect("there");
    let count = stream.cached_info().state.messages;
    let consumer: OrderedPullConsumer = stream.create_consumer(OrderedConfig::default()).await.expect("a consumer");
    let mut messages = consumer.messages().await.expect("messages");
    let mut dead = Vec::new();
    for _ in 0..count {
        let message = messages.next().await.expect("one more").expect("readable");
        let headers = message.headers.clone().expect("headers");
        let reason = headers.get(dead::REASON_HEADER).expect("a reason").to_string();
        dead.push((reason, headers, message.payload.to_vec()));
    }
    dead
}

/// A batch of its own measurement at each limit: a tag and a text as long as may be, and rows as far off as arrival surely allows.
fn at_the_limits() -> Batch {
    let minute = 60_000;
    let mut batch = known_batch(0, 0, 2);
    batch.measurement = name("limits");
    batch.tags = BTreeMap::from([(name("tag"), vec!["x".repeat(1024); 2])]);
    batch.fields.insert(name("note"), Column::Text(vec![Some("x".repeat(16 * 1024)), None]));
    batch.times[0] += 100_000 - 2 * 366 * 24 * 60 * minute + minute;
    batch.times[1] += 100_000 + 9 * minute;
    batch
}

/// A field that is sent as integers, floats and integers again, a batch each.
fn numbers_of_both_kinds() -> impl Iterator<Item = Batch> {
    (0..20).map(|n| {
        let mut batch = known_batch(0, n, 1);
        batch.measurement = name("mixed");
        let value = if n % 3 == 0 { Column::Integer(vec![Some(n)]) } else { Column::Float(vec![Some(n as f64 + 0.5)]) };
        batch.fields = BTreeMap::from([(name("value"), value)]);
        batch
    })
}

#[tokio::test]
async fn what_is_at_a_limit_and_numbers_of_both_kinds_are_stored() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut lake = TestLake::new();
    let ingest = IngestProcess::start(&server.url(), lake.dir.path());
    publish_all(&client, numbers_of_both_kinds().take(1)).await;
    // The column is one of integers before a float comes.
    eventually("the first row", LIMIT, async || {
        (lake.number("SELECT count(*) FROM lake.mixed") == Some(1)).then_some(())
    })
    .await;
    publish_all(&client, numbers_of_both_kinds().skip(1).chain([at_the_limits()])).await;
    let stored = "SELECT (SELECT count(*) FROM lake.mixed) + (SELECT count(*) FROM lake.limits)";
    eventually("all rows", LIMIT, async || (lake.number(stored) == Some(22)).then_some(())).await;
    let expected = "SELECT CASE WHEN n % 3 = 0 THEN n ELSE n + 0.5 END FROM range(20) r(n)";
    let different = format!(
        "SELECT (SELECT count(*) FROM ({expected} EXCEPT ALL SELECT value FROM lake.mixed))
              + (SELECT count(*) FROM (SELECT value FROM lake.mixed EXCEPT ALL {expected}))"
    );
    assert_eq!(lake.number(&different), Some(0));
    assert_eq!(dead_messages(&client).await.len(), 0);
    ingest.stop().await;
}

#[tokio::test]
async fn good_rows_flow_among_garbage_and_each_bad_message_is_dead_with_its_reason() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut lake = TestLake::new();
    let ingest = IngestProcess::start(&server.url(), lake.dir.path());
    publish_all(&client, (0..3).map(|host| known_batch(host, 0, 10))).await;
    // The type of `n` is settled before a batch disputes it.
    let rows = "SELECT count(*) FROM lake.known";
    eventually("the first rows", LIMIT, async || (lake.number(rows) == Some(30)).then_some(())).await;

    let garbage = garbage();
    for (index, bad) in garbage.iter().enumerate() {
        let sent = client
            .jetstream
            .publish_with_headers(bad.subject, bad.headers.clone(), bad.payload.clone().into())
            .await
            .expect("sent");
        sent.await.expect("the broker stores garbage too");
        let first = 10 + 10 * i64::try_from(index).expect("few");
        publish_all(&client, (0..3).map(|host| known_batch(host, first, 10))).await;
    }
    let too_large = client.jetstream.publish(SUBJECT, vec![0; 10 * 1024 * 1024].into()).await;
    assert!(
        too_large.is_err() || too_large.expect("sent").await.is_err(),
        "10 MB at once are refused at the publisher"
    );

    let rows_a_host = 10 + 10 * i64::try_from(garbage.len()).expect("few");
    eventually("all good rows", LIMIT, async || (lake.number(rows) == Some(3 * rows_a_host)).then_some(())).await;
    assert_eq!(lake.number(&differences(3, rows_a_host)), Some(0));

    let dead = eventually("every bad message", Duration::from_secs(10), async || {
        let dead = dead_messages(&client).await;
        (dead.len() >= garbage.len()).then_some(dead)
    })
    .await;
    assert_eq!(dead.len(), garbage.len(), "each once, and nothing else");
    for bad in &garbage {
        let is_whole = |headers: &HeaderMap| headers.get("Plimsoll-Truncated").is_none();
        let found = dead.iter().find(|(reason, headers, payload)| {
            let same = if is_whole(headers) { *payload == bad.payload } else { bad.payload.starts_with(payload) };
            reason.contains(bad.reason) && same
        });
        let (reason, headers, payload) = found.unwrap_or_else(|| panic!("{}: {:?}", bad.what, reasons(&dead)));
        assert!(reason.len() <= dead::MAX_HEADER_BYTES, "{}", bad.what);
        assert!(is_whole(headers) || payload.len() > 1024 * 1024 - 1000, "as much is kept as the broker takes");
        let subject = headers.get(dead::SUBJECT_HEADER).expect("a subject").to_string();
        assert!(subject.starts_with("plimsoll.p."), "{subject}");
        let encoding =
            |headers: &HeaderMap| headers.get(ENCODING_HEADER).map(|value| dead::header_text(value.as_str()));
        assert_eq!(encoding(headers), encoding(&bad.headers), "{}", bad.what);
    }
    ingest.stop().await;
}

fn reasons(dead: &[(String, HeaderMap, Vec<u8>)]) -> Vec<&str> {
    dead.iter().map(|(reason, ..)| &reason[..reason.len().min(100)]).collect()
}
