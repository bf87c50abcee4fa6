//! The batch format: the golden file, round trips, and hostile payloads.

use std::collections::BTreeMap;

use plimsoll_nats::{
    Batch, Column, HostId, Name,
    async_nats::HeaderMap,
    batch::{DecodeError, ENCODING_HEADER, ENCODING_ZSTD, MAX_DECODED_BYTES, MAX_ROWS},
};
use proptest::prelude::*;
use serde_json::json;

fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

fn host() -> HostId {
    HostId::parse("web-1").expect("valid host")
}

fn decode(payload: &[u8]) -> Result<Batch, DecodeError> {
    Batch::decode(&host(), &name("demo"), None, payload)
}

fn sample() -> Batch {
    Batch {
        host: host(),
        measurement: name("demo"),
        epoch: "01HF7YAT00000000000000000A".parse().expect("a ULID"),
        seq: 42,
        times: vec![1, 2],
        tags: BTreeMap::from([(name("core"), vec!["0".to_owned(), "1".to_owned()])]),
        fields: BTreeMap::from([(name("usage_percent"), Column::Float(vec![Some(0.5), None]))]),
    }
}

/// A valid batch as JSON with some keys replaced, packed; null takes a key away.
fn packed(changes: serde_json::Value) -> Vec<u8> {
    let mut map = json!({
        "v": 1, "host": "web-1", "measurement": "demo", "epoch": "01HF7YAT00000000000000000A", "seq": 1,
        "times": [1, 2], "tags": {"core": ["0", "1"]}, "fields": {"x": [1.5, 2.5]},
    });
    for (key, value) in changes.as_object().expect("an object") {
        match value {
            serde_json::Value::Null => map.as_object_mut().expect("an object").remove(key),
            value => map.as_object_mut().expect("an object").insert(key.clone(), value.clone()),
        };
    }
    rmp_serde::to_vec_named(&map).expect("packs")
}

fn refused(changes: serde_json::Value) -> String {
    let error = decode(&packed(changes)).expect_err("refused");
    plimsoll_nats::dead::chain(&error)
}

/// Written once, by another MessagePack library. Never edited: a reader of version 1 reads it for ever.
#[test]
fn the_golden_file_of_version_1_is_read() {
    let batch = decode(include_bytes!("golden/batch-v1.msgpack")).expect("decodes");
    assert_eq!((batch.seq, batch.epoch.to_string().as_str()), (42, "01HF7YAT00000000000000000A"));
    assert_eq!(batch.times, [1_700_000_000_000, 1_700_000_001_000, 1_700_000_002_000]);
    assert_eq!(batch.tags[&name("core")], ["total", "0", "1"]);
    let expected = BTreeMap::from([
        (name("usage_percent"), Column::Float(vec![Some(12.5), None, Some(99.75)])),
        (name("reads_total"), Column::Integer(vec![Some(0), Some(i64::MAX), Some(-1)])),
        (name("read_only"), Column::Bool(vec![Some(true), Some(false), None])),
        (name("state"), Column::Text(vec![Some("up".to_owned()), None, Some("größe".to_owned())])),
        (name("mixed"), Column::Float(vec![Some(1.0), Some(2.5), None])),
    ]);
    assert_eq!(batch.fields, expected, "a column of nil alone is left out, unknown keys are ignored");
}

#[test]
fn what_is_written_stays_as_it_is() {
    let bytes = sample().encode();
    let value: serde_json::Value = rmp_serde::from_slice(&bytes).expect("a map");
    let expected = json!({
        "v": 1, "host": "web-1", "measurement": "demo", "epoch": "01HF7YAT00000000000000000A", "seq": 42,
        "times": [1, 2], "tags": {"core": ["0", "1"]}, "fields": {"usage_percent": [0.5, null]},
    });
    assert_eq!(value, expected);
    assert_eq!(sample().message_id(), "web-1/demo/01HF7YAT00000000000000000A/42");
}

#[test]
fn a_compressed_batch_is_read_and_a_bomb_is_not() {
    let mut headers = HeaderMap::new();
    headers.insert(ENCODING_HEADER, ENCODING_ZSTD);
    let decode = |payload: &[u8]| Batch::decode(&host(), &name("demo"), Some(&headers), payload);
    let packed = zstd::encode_all(&*sample().encode(), 1).expect("compresses");
    assert_eq!(decode(&packed).expect("decodes"), sample());

    let bomb = zstd::encode_all(&*vec![0_u8; MAX_DECODED_BYTES + 1], 1).expect("compresses");
    assert!(bomb.len() < 10_000 && matches!(decode(&bomb), Err(DecodeError::TooLarge)));
    assert!(matches!(decode(&sample().encode()), Err(DecodeError::Decompress(_))));
    headers.insert(ENCODING_HEADER, "br");
    let other = Batch::decode(&host(), &name("demo"), Some(&headers), &packed);
    assert!(matches!(other, Err(DecodeError::Encoding { encoding }) if encoding == "br"));
}

#[test]
fn every_refusal_says_what_was_expected() {
    for (changes, words) in [
        (json!({"v": 2}), "version 2 is not supported"),
        (json!({"v": 2, "fields": null, "times": "later"}), "version 2 is not supported"),
        (json!({"v": null}), "missing field `v`"),
        (json!({"fields": null}), "missing field `fields`"),
        (json!({"host": "web-2"}), "host `web-2` differs from the subject's `web-1`"),
        (json!({"measurement": "x; DROP TABLE"}), "measurement `x; DROP TABLE` differs from the subject's `demo`"),
        (json!({"times": [1]}), "column `core` has 2 values, `times` has 1"),
        (json!({"times": [1, 2, 3]}), "has 2 values, `times` has 3"),
        (json!({"times": [], "tags": {}, "fields": {"x": []}}), "1 to 65536"),
        (json!({"fields": {}}), "at least one field"),
        (json!({"fields": {"x": [null, null]}}), "at least one field"),
        (json!({"fields": {"x": [1, "two"]}}), "a column of integer has text at row 1"),
        (json!({"fields": {"x": [true, 1]}}), "a column of bool has integer at row 1"),
        (json!({"fields": {"x": [1, 18_446_744_073_709_551_615_u64]}}), "does not fit into 64 bits"),
        (json!({"fields": {"x": [[1], [2]]}}), "expected a float, integer, bool, string or nil"),
        (json!({"fields": {"ts": [1, 2]}}), "`ts` is a column of every table"),
        (json!({"tags": {"host": ["a", "b"]}}), "`host` is a column of every table"),
        (json!({"fields": {"row_id": [1, 2]}}), "`row_id` is reserved by the lake"),
        (json!({"tags": {"core": vec![""; MAX_ROWS + 1]}}), "a tag has more than 65536 values"),
        (json!({"tags": {"x": ["a", "b"]}}), "both a tag and a field"),
        (json!({"fields": {"DROP TABLE": [1, 2]}}), "`DROP TABLE` is not a name"),
        (json!({"tags": {"core": ["a".repeat(1025), "b"]}}), "`core` row 0 is longer than 1024 bytes"),
        (json!({"epoch": "yesterday"}), "failed to decode"),
        (json!({"seq": -1}), "failed to decode"),
    ] {
        let text = refused(changes.clone());
        assert!(text.contains(words), "{changes}: {text}");
    }
    let mut nan = sample();
    nan.fields.insert(name("usage_percent"), Column::Float(vec![Some(1.0), Some(f64::NAN)]));
    let text = decode(&nan.encode()).expect_err("refused").to_string();
    assert!(text.contains("row 1 is not finite"), "{text}");
    let mut long = packed(json!({}));
    long.push(0xc0);
    assert!(matches!(decode(&long), Err(DecodeError::TrailingBytes { count: 1 })));
    let many = json!({"times": vec![0; MAX_ROWS + 1], "tags": {}, "fields": {"x": vec![0; MAX_ROWS + 1]}});
    assert!(refused(many).contains("more than 65536 values"));
}

fn column(rows: usize) -> impl Strategy<Value = Column> {
    let float = prop::option::of(prop::num::f64::NORMAL | prop::num::f64::ZERO);
    prop_oneof![
        prop::collection::vec(float, rows).prop_map(Column::Float),
        prop::collection::vec(prop::option::of(any::<i64>()), rows).prop_map(Column::Integer),
        prop::collection::vec(prop::option::of(any::<bool>()), rows).prop_map(Column::Bool),
        prop::collection::vec(prop::option::of(".{0,8}"), rows).prop_map(Column::Text),
    ]
}

fn batches() -> impl Strategy<Value = Batch> {
    (1_usize..20).prop_flat_map(|rows| {
        let times = prop::collection::vec(any::<i64>(), rows);
        let tags = prop::collection::btree_map("t_[a-z0-9_]{0,4}", prop::collection::vec(".{0,8}", rows), 0..3);
        let fields = prop::collection::btree_map("f[a-z0-9_]{0,4}", column(rows), 1..5);
        (times, tags, fields, any::<u64>()).prop_map(|(times, tags, fields, seq)| Batch {
            times,
            seq,
            tags: tags.into_iter().map(|(key, values)| (name(&key), values)).collect(),
            fields: fields.into_iter().map(|(key, values)| (name(&key), values)).collect(),
            ..sample()
        })
    })
}

fn is_all_nil(column: &Column) -> bool {
    (0..column.len()).all(|row| column.json(row).is_null())
}

proptest! {
    #[test]
    fn a_round_trip_changes_nothing(batch in batches()) {
        let mut expected = batch.clone();
        expected.fields.retain(|_, column| !is_all_nil(column));
        prop_assume!(!expected.fields.is_empty());
        prop_assert_eq!(decode(&batch.encode()).expect("decodes"), expected);
    }

    #[test]
    fn a_truncated_batch_is_refused(batch in batches(), cut in any::<prop::sample::Index>()) {
        let bytes = batch.encode();
        prop_assert!(decode(&bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn random_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn a_flipped_byte_never_panics(batch in batches(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = batch.encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode(&bytes);
    }
}
