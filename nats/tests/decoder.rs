//! The decoder against the one that it has replaced: same verdict, same content, for whatever comes.

mod reference;

use std::collections::BTreeMap;

use plimsoll_nats::{
    Batch, Column, HostId, Name,
    async_nats::HeaderMap,
    batch::{BatchDecoder, DecodeError, ENCODING_HEADER, ENCODING_ZSTD, FieldType},
};
use proptest::prelude::*;

fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

fn host() -> HostId {
    HostId::parse("web-1").expect("valid host")
}

/// Both decoders agree on the payload, and the new one does however often it was used before.
fn agree(decoder: &mut BatchDecoder, headers: Option<&HeaderMap>, payload: &[u8]) -> Result<(), TestCaseError> {
    let (host, measurement) = (host(), name("demo"));
    let expected = reference::decode(&host, &measurement, headers, payload);
    let found = decoder.decode(&host, &measurement, headers, payload).map(|view| view.to_batch(&host, &measurement));
    match (&expected, &found) {
        // Both may hold values that don't equal themselves; no valid batch does.
        (Ok(expected), Ok(found)) => prop_assert_eq!(expected, found),
        (Err(expected), Err(found)) => {
            // The parser tells alike too, save where it names what it was asked for.
            let parses = |error: &DecodeError| matches!(error, DecodeError::MessagePack(_));
            prop_assert!(
                expected.to_string() == found.to_string() && parses(expected) == parses(found),
                "{} {}",
                expected,
                found
            );
        }
        _ => prop_assert!(false, "{expected:?} {found:?}"),
    }
    Ok(())
}

fn column(rows: usize) -> impl Strategy<Value = Column> {
    prop_oneof![
        prop::collection::vec(prop::option::of(any::<f64>()), rows).prop_map(Column::Float),
        prop::collection::vec(prop::option::of(any::<i64>()), rows).prop_map(Column::Integer),
        prop::collection::vec(prop::option::of(any::<bool>()), rows).prop_map(Column::Bool),
        prop::collection::vec(prop::option::of(".{0,40}"), rows).prop_map(Column::Text),
    ]
}

fn batches() -> impl Strategy<Value = Batch> {
    (1_usize..20).prop_flat_map(|rows| {
        let times = prop::collection::vec(any::<i64>(), rows);
        let tags = prop::collection::btree_map("t_[a-z0-9_]{0,4}", prop::collection::vec(".{0,40}", rows), 0..3);
        let fields = prop::collection::btree_map("f[a-z0-9_]{0,4}", column(rows), 1..5);
        (times, tags, fields, any::<u64>()).prop_map(|(times, tags, fields, seq)| Batch {
            host: host(),
            measurement: name("demo"),
            epoch: "01HF7YAT00000000000000000A".parse().expect("a ULID"),
            times,
            seq,
            tags: tags.into_iter().map(|(key, values)| (name(&key), values)).collect(),
            fields: fields.into_iter().map(|(key, values)| (name(&key), values)).collect(),
        })
    })
}

/// Bytes of one MessagePack value: any kind, where a batch has another one or the same.
fn value() -> BoxedStrategy<Vec<u8>> {
    let scalar = prop_oneof![
        Just(vec![0xc0]),
        Just(vec![0xc2]),
        Just(vec![0xc3]),
        any::<u8>().prop_filter_map("a number in a byte", |byte| (byte < 0x80 || byte >= 0xe0).then(|| vec![byte])),
        any::<f32>().prop_map(|v| [&[0xca][..], &v.to_be_bytes()].concat()),
        any::<f64>().prop_map(|v| [&[0xcb][..], &v.to_be_bytes()].concat()),
        any::<u64>().prop_map(|v| [&[0xcf][..], &v.to_be_bytes()].concat()),
        any::<i64>().prop_map(|v| [&[0xd3][..], &v.to_be_bytes()].concat()),
        any::<i16>().prop_map(|v| [&[0xd1][..], &v.to_be_bytes()].concat()),
        "[a-z]{0,5}".prop_map(|text| text_of(&text)),
        prop::collection::vec(any::<u8>(), 0..4).prop_map(|bytes| [&[0xa0 | bytes.len() as u8][..], &bytes].concat()),
        prop::collection::vec(any::<u8>(), 0..4).prop_map(|bytes| [&[0xc4, bytes.len() as u8][..], &bytes].concat()),
        any::<[u8; 2]>().prop_map(|bytes| [&[0xd4][..], &bytes].concat()),
    ];
    scalar
        .prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(|items| [
                    &[0x90 | items.len() as u8][..],
                    &items.concat()
                ]
                .concat()),
                prop::collection::vec(("[a-z]{1,3}", inner), 0..3).prop_map(|entries| map_of(
                    entries.into_iter().map(|(key, value)| (text_of(&key), value)).collect()
                )),
            ]
        })
        .boxed()
}

fn text_of(text: &str) -> Vec<u8> {
    rmp_serde::to_vec(text).expect("packs")
}

fn map_of(entries: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<u8> {
    let count = u16::try_from(entries.len()).expect("few").to_be_bytes();
    let entries = entries.into_iter().flat_map(|(key, value)| [key, value]);
    [&[0xde][..], &count, &entries.collect::<Vec<_>>().concat()].concat()
}

fn packed(value: impl serde::Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(&value).expect("packs")
}

/// Nearly a batch: its keys in any order, spelled in any way, some missing or there twice, some with a value of another kind.
fn near_batches() -> impl Strategy<Value = Vec<u8>> {
    let two_texts = prop::collection::vec("[a-z]{0,3}", 2..3);
    let columns = |values: BoxedStrategy<Vec<u8>>| {
        prop::collection::vec(("[a-e]|ts|row_id|X", prop_oneof![4 => values, 1 => value()]), 0..4)
            .prop_map(|columns| map_of(columns.into_iter().map(|(name, values)| (text_of(&name), values)).collect()))
    };
    let tags = columns(two_texts.prop_map(packed).boxed());
    let fields = columns(
        prop_oneof![
            prop::collection::vec(prop::option::of(-1000..1000_i64), 2..3).prop_map(packed),
            prop::collection::vec(value(), 2..3).prop_map(|values| [&[0x92][..], &values.concat()].concat()),
            prop::collection::vec(prop::option::of(0.0..1.0), 2..3).prop_map(packed),
        ]
        .boxed(),
    );
    let parts = (
        prop_oneof![9 => Just(packed(1)), 1 => value()],
        prop_oneof![9 => Just(packed("web-1")), 1 => Just(vec![0xc4, 5, b'w', b'e', b'b', b'-', b'1']), 1 => value()],
        prop_oneof![9 => Just(packed("demo")), 1 => value()],
        prop_oneof![9 => Just(packed("01HF7YAT00000000000000000A")), 1 => value()],
        prop_oneof![9 => Just(packed(7)), 1 => value()],
        prop_oneof![9 => Just(packed([1, 2])), 1 => Just(vec![0xc4, 2, 1, 2]), 1 => value()],
        tags,
        fields,
    );
    let order = prop_oneof![
        6 => Just((0..8).collect::<Vec<usize>>()).prop_shuffle(),
        1 => prop::collection::vec(0_usize..8, 0..10),
    ];
    let spelling = prop::collection::vec(prop_oneof![8 => Just(0_u8), 1 => Just(1), 1 => Just(2)], 10);
    let extra = prop::option::of(("[a-z]{1,5}", value()));
    (parts, order, spelling, extra, 0..12_u8).prop_map(|(parts, order, spelling, extra, shape)| {
        const KEYS: [&str; 8] = ["v", "host", "measurement", "epoch", "seq", "times", "tags", "fields"];
        let (v, host, measurement, epoch, seq, times, tags, fields) = parts;
        let parts = [v, host, measurement, epoch, seq, times, tags, fields];
        if shape == 0 {
            let count = order.len().min(parts.len());
            return [&[0x90 | count as u8][..], &parts[..count].concat()].concat();
        }
        let key = |part: usize, spelling: u8| match spelling {
            0 => text_of(KEYS[part]),
            1 => vec![part as u8],
            _ => [&[0xc4, KEYS[part].len() as u8][..], KEYS[part].as_bytes()].concat(),
        };
        let entries = order.iter().zip(spelling).map(|(part, spelling)| (key(*part, spelling), parts[*part].clone()));
        map_of(entries.chain(extra.map(|(key, value)| (text_of(&key), value))).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn batches_are_decoded_alike(batch in batches(), compressed in any::<bool>()) {
        let mut headers = HeaderMap::new();
        headers.insert(ENCODING_HEADER, ENCODING_ZSTD);
        let payload = batch.encode();
        let mut decoder = BatchDecoder::default();
        for _ in 0..2 {
            if compressed {
                agree(&mut decoder, Some(&headers), &zstd::encode_all(&*payload, 1).expect("compresses"))?;
            }
            agree(&mut decoder, None, &payload)?;
        }
    }

    #[test]
    fn damaged_batches_are_judged_alike(
        batch in batches(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut payload = batch.encode();
        for (at, byte) in damage {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len()) + 1);
        }
        agree(&mut BatchDecoder::default(), None, &payload)?;
    }

    #[test]
    fn what_nearly_is_a_batch_is_judged_alike(payloads in prop::collection::vec(near_batches(), 1..4)) {
        let mut decoder = BatchDecoder::default();
        for payload in payloads {
            agree(&mut decoder, None, &payload)?;
        }
    }

    #[test]
    fn any_value_is_judged_alike(payload in value()) {
        agree(&mut BatchDecoder::default(), None, &payload)?;
    }
}

#[test]
fn a_view_shows_columns_by_name_and_their_types() {
    let payload = include_bytes!("golden/batch-v1.msgpack");
    let mut decoder = BatchDecoder::default();
    let view = decoder.decode("web-1", "demo", None, payload).expect("decodes");
    assert_eq!((view.rows(), view.seq(), view.host(), view.measurement()), (3, 42, "web-1", "demo"));
    let tags: BTreeMap<_, Vec<_>> = view.tags().map(|tag| (tag.name, tag.values().collect())).collect();
    assert_eq!(tags, BTreeMap::from([("core", vec!["total", "0", "1"])]));
    let types: Vec<_> = view.fields().map(|field| (field.name, field.field_type)).collect();
    let expected = [
        ("mixed", FieldType::Float),
        ("read_only", FieldType::Bool),
        ("reads_total", FieldType::Integer),
        ("state", FieldType::Text),
        ("usage_percent", FieldType::Float),
    ];
    assert_eq!(types, expected);
    let mixed = view.fields().next().expect("there").floats().collect::<Vec<_>>();
    assert_eq!(mixed, [Some(1.0), Some(2.5), None], "integers among floats are floats");
}
