use plimsoll_nats::{Batch, Column, HostId};
use proptest::prelude::*;
use ulid::Ulid;

use super::*;
use crate::{buffer::SharedBuffer, encoder::PayloadLimit};

const TICK: i64 = 1_700_000_000_000;

/// A gatherer, and what it has sent.
struct Bench {
    gatherer: Gatherer,
    outlet: Outlet,
    buffer: Arc<SharedBuffer>,
}

impl Bench {
    fn new(schema: &Schema) -> Self {
        let buffer = Arc::new(SharedBuffer::new(64 * 1024 * 1024));
        let host = HostId::parse("h").unwrap();
        let outlet = Outlet::new(host, Ulid::generate(), PayloadLimit::default(), Arc::clone(&buffer));
        let gatherer = Gatherer::new(schema.clone(), Arc::new(SourceNotes::new("test")));
        Self { gatherer, outlet, buffer }
    }

    fn add(&mut self, line: &str) {
        let point = crate::custom::influx::parse_line(line).unwrap().unwrap();
        self.gatherer.add(point, TICK);
    }

    /// The batches of what was added, in the order in which they were sent.
    fn send(&mut self) -> Vec<Batch> {
        self.gatherer.send(&self.outlet);
        std::iter::from_fn(|| self.buffer.lock().pop_oldest()).map(|entry| entry.message.batch()).collect()
    }

    fn refused(&self) -> Vec<(Refusal, u64)> {
        self.gatherer.notes.state().refused.into_iter().collect()
    }
}

#[test]
fn points_become_rows_of_one_time_and_one_set_of_tags() {
    let mut bench = Bench::new(&Schema::default());
    bench.add("m,b=2,a=1 x=1,y=2i");
    bench.add("m,a=1,b=2 z=\"text\"");
    bench.add("m,a=2,b=2 x=3,flag=true");
    bench.add("m,a=1 x=4");
    bench.add("m,a=1,c= x=5");
    bench.add("m,a=1,b=2 x=6 1700000001000000000");
    let batches = bench.send();
    let both = &batches[0];
    assert_eq!((both.times.as_slice(), batches.len()), ([TICK, TICK].as_slice(), 3));
    assert_eq!((both.tags["a"].clone(), both.tags["b"].clone()), (vec!["1".into(), "2".into()], vec!["2".into(); 2]));
    assert_eq!(both.fields["x"], Column::Float(vec![Some(1.0), Some(3.0)]));
    assert_eq!(both.fields["y"], Column::Integer(vec![Some(2), None]));
    assert_eq!(both.fields["z"], Column::Text(vec![Some("text".into()), None]));
    assert_eq!(both.fields["flag"], Column::Bool(vec![None, Some(true)]));
    // The same field of the same series twice is two rows, and an empty tag is none.
    assert_eq!(batches[1].tags.keys().map(|name| &**name).collect::<Vec<_>>(), ["a"]);
    assert_eq!(batches[1].fields["x"], Column::Float(vec![Some(4.0), Some(5.0)]));
    assert_eq!((batches[2].times.as_slice(), bench.refused()), ([TICK + 1000].as_slice(), vec![]));
    assert_eq!(bench.gatherer.notes.state().values, 8);
}

#[test]
fn a_field_keeps_the_type_of_its_first_batch() {
    let schema = Schema::default();
    let mut bench = Bench::new(&schema);
    bench.add("m,a=1 x=1i");
    bench.add("m,a=2 x=1.5");
    bench.add("m,a=3 n=1i");
    let batches = bench.send();
    assert_eq!(batches[0].fields["x"], Column::Float(vec![Some(1.0), Some(1.5), None]));
    bench.add("m,a=1 x=2i,n=2i");
    bench.add("m,a=2 x=\"two\",n=2.5");
    bench.add("m,a=3 x=true");
    // Another source writes to the same measurement.
    let mut other = Bench::new(&schema);
    other.add("m x=3i");
    other.add("m n=3.0");
    let batches = bench.send();
    assert_eq!(batches.len(), 1);
    assert_eq!(batches[0].tags["a"], ["1", "2"], "rows without a value are left out");
    assert_eq!(batches[0].fields["x"], Column::Float(vec![Some(2.0), None]));
    assert_eq!(
        batches[0].fields["n"],
        Column::Float(vec![Some(2.0), Some(2.5)]),
        "an integer field became one of floats"
    );
    assert_eq!(bench.refused(), [(Refusal::Type, 2)]);
    let batches = other.send();
    assert_eq!(batches[0].fields["x"], Column::Float(vec![Some(3.0)]));
    assert_eq!(batches[0].fields["n"], Column::Float(vec![Some(3.0)]));
    assert_eq!(other.refused(), []);
}

#[test]
fn what_has_no_place_is_refused_and_the_rest_is_sent() {
    let mut bench = Bench::new(&Schema::default());
    bench.add("m,a=1 x=1");
    bench.send();
    for line in [
        "cpu usage_percent=1",
        "Positions x=1",
        "load_1m x=1,y=2",
        "m,x=1 y=1",
        "m a=1,x=2",
        "m,a=1,a=2 x=1",
        "m x=1 1700000700000000000",
        "m x=1 0",
    ] {
        bench.add(line);
    }
    bench.add("m,a=1 x=9");
    let batches = bench.send();
    assert_eq!(
        batches.iter().map(|batch| batch.fields["x"].clone()).collect::<Vec<_>>(),
        [Column::Float(vec![Some(2.0)]), Column::Float(vec![Some(9.0)])]
    );
    let expected = [(Refusal::Malformed, 1), (Refusal::Measurement, 4), (Refusal::Role, 2), (Refusal::Time, 2)];
    assert_eq!(bench.refused(), expected);
}

#[test]
fn names_are_made_valid() {
    let mut bench = Bench::new(&Schema::default());
    bench.add("My-App,host=a,Zone=b Requests.Total=1,ts=2,host=3");
    let batch = bench.send().remove(0);
    assert_eq!(&*batch.measurement, "my_app");
    assert_eq!(batch.tags.keys().map(|name| &**name).collect::<Vec<_>>(), ["exported_host", "zone"]);
    assert_eq!(batch.fields.keys().map(|name| &**name).collect::<Vec<_>>(), ["exported_ts", "requests_total"]);
    assert_eq!(bench.refused(), [(Refusal::Role, 1)]);
}

#[test]
fn a_flood_is_bounded_and_counted() {
    let mut bench = Bench::new(&Schema::default());
    for number in 0..MAX_ROWS + 10 {
        bench.add(&format!("m,a={number} x=1"));
    }
    assert_eq!(bench.send().iter().map(Batch::rows).sum::<usize>(), MAX_ROWS);
    assert_eq!(bench.refused(), [(Refusal::Size, 10)]);

    let mut bench = Bench::new(&Schema::default());
    for number in 0..MAX_BATCHES as i64 + 10 {
        bench.add(&format!("m x=1 {}", (TICK + number) * 1_000_000));
    }
    assert_eq!(bench.send().len(), MAX_BATCHES);
    assert_eq!(bench.refused(), [(Refusal::Size, 10)]);

    let mut bench = Bench::new(&Schema::default());
    for number in 0..MAX_MEASUREMENTS + 10 {
        bench.add(&format!("m{number} x=1"));
    }
    assert_eq!(bench.send().len(), MAX_MEASUREMENTS);
    assert_eq!(bench.refused(), [(Refusal::Measurements, 10)]);
    bench.add("m0 x=1");
    bench.add("another x=1");
    assert_eq!(bench.send().len(), 1);

    let mut bench = Bench::new(&Schema::default());
    for number in 0..MAX_COLUMNS + 10 {
        bench.add(&format!("m,a=1 x{number}=1"));
    }
    let batch = bench.send().remove(0);
    assert_eq!(batch.fields.len() + batch.tags.len(), MAX_COLUMNS);
    assert_eq!(bench.refused(), [(Refusal::Columns, 11)], "one column is a tag");
}

#[test]
fn memory_is_bounded_whatever_the_shape() {
    let mut bench = Bench::new(&Schema::default());
    let text = "x".repeat(60_000);
    for number in 0..1_000 {
        // A column of its own a row makes all cells before it; long texts and tags weigh by themselves.
        bench.add(&format!("m,a={number}{text} f{}=1,t=\"{number}{text}\"", number % 200));
    }
    assert!(bench.gatherer.weight < MAX_WEIGHT + 1024 * 1024, "{}", bench.gatherer.weight);
    assert!(matches!(bench.refused()[..], [(Refusal::Size, count)] if count > 1_000));
    let batches = bench.send();
    assert!(batches.iter().flat_map(|batch| &batch.tags["a"]).all(|tag| tag.len() == 1024));
}

proptest! {
    /// Whatever comes in, what goes out is what a reader accepts, and nothing is lost uncounted.
    #[test]
    fn every_batch_is_valid_and_every_value_accounted_for(
        points in proptest::collection::vec(
            (
                "[mn]|cpu",
                proptest::collection::vec(("[a-cA-C]|ts|host", "[xy]{0,1}"), 0..3),
                proptest::collection::vec(("[a-fA-F]|host", 0..5_u8), 1..4),
                proptest::option::of(-20_000_000_i64..20_000_000),
            ),
            0..40,
        ),
    ) {
        let mut bench = Bench::new(&Schema::default());
        let (mut given, mut received) = (0, 0);
        for chunk in points.chunks(10) {
            for (measurement, tags, fields, lead_ms) in chunk {
                let mut seen = HashSet::new();
                let fields: Vec<_> = fields
                    .iter()
                    .filter(|(name, _)| seen.insert(name))
                    .map(|(name, kind)| {
                        let value = match kind {
                            0 => FieldValue::Float(1.5),
                            1 => FieldValue::Integer(2),
                            2 => FieldValue::Bool(true),
                            3 => FieldValue::Text("t".into()),
                            _ => FieldValue::Float(f64::NAN),
                        };
                        (Cow::Borrowed(name.as_str()), value)
                    })
                    .collect();
                given += fields.iter().filter(|(_, value)| !matches!(value, FieldValue::Float(v) if v.is_nan())).count();
                let tags = tags.iter().map(|(name, value)| (Cow::Borrowed(name.as_str()), value.into()));
                let time_ms = lead_ms.map(|lead| TICK + lead);
                let point = Point { measurement: measurement.into(), tags: tags.collect(), fields, time_ms };
                bench.gatherer.add(point, TICK);
            }
            for batch in bench.send() {
                let filled = |column: &Column| (0..column.len()).filter(|row| !column.json(*row).is_null()).count();
                received += batch.fields.values().map(filled).sum::<usize>();
            }
        }
        let refused = bench.gatherer.notes.refused_total();
        prop_assert_eq!(received as u64 + refused, given as u64);
        prop_assert_eq!(bench.gatherer.notes.state().values, received as u64);
    }
}
