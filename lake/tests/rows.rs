//! Rows gathered as columns: what is stored is what the messages held, whatever columns they had and whichever were taken out.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use plimsoll_lake::{CommitOutcome, CommitReport, LakeConfig, LakeWriter, RowSet};
use plimsoll_nats::{
    Batch, Column, HostId, Incarnation, Name, PartitionId, Position, Sequence, batch::BatchDecoder, subject,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

const LIFE: Incarnation = Incarnation(1_700_000_000_000_000_000);
const NOW_MS: i64 = 1_790_000_000_000;
const MEASUREMENTS: [&str; 3] = ["cpu", "disk", "order"];

fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

fn host(number: usize) -> HostId {
    HostId::parse(&format!("web-{number}")).expect("a host")
}

/// A batch with any part of the columns. `ratio` is of floats or integers, and of nothing but nil now and then.
fn batch(random: &mut StdRng, sequence: u64) -> Batch {
    let rows = random.random_range(1..5_usize);
    let mut some = |share: f64| random.random_bool(share);
    let mut tags = BTreeMap::new();
    for tag in ["core", "state"] {
        if some(0.7) {
            tags.insert(name(tag), (0..rows).map(|row| format!("{tag}-{}", (row as u64 + sequence) % 3)).collect());
        }
    }
    let mut fields = BTreeMap::from([(name("n"), Column::Integer(vec![Some(sequence.cast_signed()); rows]))]);
    if some(0.6) {
        fields.insert(name("usage"), Column::Float((0..rows).map(|_| some(0.8).then_some(0.25)).collect()));
    }
    if some(0.6) {
        let whole = some(0.5);
        let floats = (0..rows).map(|row| some(0.8).then_some(row as f64 + 0.5)).collect();
        let integers = (0..rows).map(|row| some(0.8).then_some(row as i64)).collect();
        fields.insert(name("ratio"), if whole { Column::Integer(integers) } else { Column::Float(floats) });
    }
    if some(0.5) {
        fields.insert(name("up"), Column::Bool((0..rows).map(|row| some(0.8).then_some(row % 2 == 0)).collect()));
    }
    if some(0.5) {
        let text = |row| format!("größe {row}, a text that is longer than twelve bytes");
        fields.insert(name("note"), Column::Text((0..rows).map(|row| some(0.8).then(|| text(row))).collect()));
    }
    Batch {
        host: host(random.random_range(0..20)),
        measurement: name(MEASUREMENTS[random.random_range(0..MEASUREMENTS.len())]),
        epoch: ulid::Ulid::nil(),
        seq: sequence,
        times: (0..rows).map(|row| NOW_MS + row as i64 - random.random_range(0..100_000)).collect(),
        tags,
        fields,
    }
}

/// A row as the lake shows it: time, host, tags and fields.
fn shown(batch: &Batch, row: usize) -> String {
    let tag = |column: &str| batch.tags.get(column).map_or("-".to_owned(), |values| values[row].clone());
    let field = |column: &str| match batch.fields.get(column) {
        Some(Column::Float(values)) => values[row].map(|v| format!("{v:?}")),
        Some(Column::Integer(values)) if column == "ratio" => values[row].map(|v| format!("{:?}", v as f64)),
        Some(Column::Integer(values)) => values[row].map(|v| v.to_string()),
        Some(Column::Bool(values)) => values[row].map(|v| v.to_string()),
        Some(Column::Text(values)) => values[row].clone(),
        None => None,
    };
    let fields = ["n", "note", "ratio", "up", "usage"].map(|column| field(column).unwrap_or_else(|| "-".to_owned()));
    let (time, host) = (batch.times[row], &batch.host);
    format!("{time}|{host}|{}|{}|{}", tag("core"), tag("state"), fields.join("|"))
}

struct TestLake {
    writer: LakeWriter,
    _dir: TempDir,
}

impl TestLake {
    /// A lake where every column has its type already: `ratio` is of floats.
    fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let lake = Self { writer: LakeWriter::open(&LakeConfig::embedded(dir.path())).expect("opens"), _dir: dir };
        let mut set = RowSet::default();
        for (measurement, sequence) in MEASUREMENTS.iter().zip(1..) {
            let fields = [
                ("n", Column::Integer(vec![None])),
                ("note", Column::Text(vec![None])),
                ("ratio", Column::Float(vec![None])),
                ("up", Column::Bool(vec![None])),
                ("usage", Column::Float(vec![None])),
            ];
            let batch = Batch {
                host: host(0),
                measurement: name(measurement),
                epoch: ulid::Ulid::nil(),
                seq: 1,
                times: vec![NOW_MS],
                tags: ["core", "state"].map(|tag| (name(tag), vec![String::new()])).into(),
                fields: fields.map(|(field, column)| (name(field), column)).into(),
            };
            set.push_batch(partition(15), Sequence(sequence), NOW_MS, &batch);
        }
        lake.commit(&set);
        for measurement in MEASUREMENTS {
            lake.writer
                .lake()
                .connection()
                .execute(&format!("DELETE FROM lake.\"{measurement}\""), [])
                .expect("empties");
        }
        lake
    }

    fn commit(&self, set: &RowSet) -> CommitReport {
        match self.writer.commit_rows(set).expect("commits") {
            CommitOutcome::Committed(report) => report,
            other => panic!("not committed: {other:?}"),
        }
    }

    fn rows(&self, measurement: &str) -> Vec<String> {
        let text = |column| format!("coalesce({column}::VARCHAR, '-')");
        let columns = ["core", "state", "n", "note", "ratio", "up", "usage"].map(text).join(", ");
        let sql = format!("SELECT concat_ws('|', epoch_ms(ts), host, {columns}) FROM lake.\"{measurement}\"");
        let connection = self.writer.lake().connection();
        let mut statement = connection.prepare(&sql).expect("prepares");
        let rows = statement.query_map([], |row| row.get(0)).expect("runs");
        let mut rows: Vec<String> = rows.map(|row| row.expect("a row")).collect();
        rows.sort();
        rows
    }
}

fn partition(number: u16) -> PartitionId {
    PartitionId::new(number).expect("exists")
}

/// What should be stored of each measurement.
#[derive(Default)]
struct Expected(BTreeMap<Name, Vec<String>>);

impl Expected {
    fn add(&mut self, batch: &Batch) {
        let rows = self.0.entry(batch.measurement.clone()).or_default();
        rows.extend((0..batch.rows()).map(|row| shown(batch, row)));
    }

    fn prove(&mut self, lake: &TestLake) {
        for measurement in MEASUREMENTS {
            let expected = self.0.entry(name(measurement)).or_default();
            expected.sort();
            assert_eq!(lake.rows(measurement), *expected, "{measurement}");
        }
    }
}

#[test]
fn what_is_stored_is_what_the_messages_held() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (lake, mut expected) = (TestLake::new(), Expected::default());
    let (mut set, mut decoder) = (RowSet::default(), BatchDecoder::default());
    let mut sequences = BTreeMap::<PartitionId, u64>::new();
    // The set is cleared and used again: nothing of the one before may show.
    for round in 0..4 {
        let mut pushed = Vec::new();
        for _ in 0..600 {
            let partition = partition(random.random_range(0..4));
            let sequence = sequences.entry(partition).or_default();
            *sequence += 1;
            let batch = batch(&mut random, *sequence);
            let payload = batch.encode();
            let view = decoder.decode(&batch.host, &batch.measurement, None, &payload).expect("decodes");
            set.push(partition, Sequence(*sequence), NOW_MS, &view);
            set.reached.insert(partition, Position { incarnation: LIFE, sequence: Sequence(*sequence) });
            pushed.push((partition, view.to_batch(&batch.host, &batch.measurement)));
        }
        assert_eq!(set.rows(), pushed.iter().map(|(_, batch)| batch.rows()).sum::<usize>());
        let gone: HashSet<usize> = (0..40).map(|_| random.random_range(0..pushed.len())).collect();
        set.remove(&gone);
        let lost = partition(round);
        set.remove_partition(lost);
        let kept = pushed.iter().enumerate().filter(|(index, (from, _))| *from != lost && !gone.contains(index));
        let kept: Vec<&Batch> = kept.map(|(_, (_, batch))| batch).collect();
        kept.iter().for_each(|batch| expected.add(batch));
        assert_eq!(set.rows(), kept.iter().map(|batch| batch.rows()).sum::<usize>());

        let report = lake.commit(&set);
        let points = |batch: &&Batch| -> usize {
            let present = |column: &Column| (0..column.len()).filter(|row| !column.json(*row).is_null()).count();
            batch.fields.values().map(present).sum()
        };
        assert_eq!((report.messages, report.rows), (kept.len(), set.rows()));
        assert_eq!(report.points, kept.iter().map(points).sum::<usize>());
        expected.prove(&lake);

        let again = lake.commit(&set);
        assert_eq!((again.rows, again.contained), (0, kept.len()), "what is contained is left out");
        expected.prove(&lake);
        set.clear(1 << 20);
        assert_eq!((set.rows(), set.messages(), set.weight()), (0, 0, 0));
    }
}

#[test]
fn a_part_of_a_set_that_another_member_has_stored_is_left_out() {
    let (lake, mut expected) = (TestLake::new(), Expected::default());
    let mut random = StdRng::seed_from_u64(1);
    let batches: Vec<Batch> = (1..=40).map(|sequence| batch(&mut random, sequence)).collect();
    let gathered = |upto: usize| {
        let mut set = RowSet::default();
        for (batch, sequence) in batches[..upto].iter().zip(1..) {
            set.push_batch(partition((sequence % 2) as u16), Sequence(sequence), NOW_MS, batch);
            set.reached
                .insert(partition((sequence % 2) as u16), Position { incarnation: LIFE, sequence: Sequence(sequence) });
        }
        set
    };
    assert_eq!(lake.commit(&gathered(25)).messages, 25);
    let report = lake.commit(&gathered(40));
    assert_eq!((report.messages, report.contained), (15, 25));
    batches.iter().for_each(|batch| expected.add(batch));
    expected.prove(&lake);
}

#[test]
fn a_message_weighs_what_it_holds_though_others_have_other_columns() {
    let mut set = RowSet::default();
    let push = |set: &mut RowSet, sequence: u64, fields: &BTreeSet<String>| {
        let fields = fields.iter().map(|field| (name(field), Column::Integer(vec![Some(1)])));
        let batch = Batch {
            host: host(0),
            measurement: name("m"),
            epoch: ulid::Ulid::nil(),
            seq: sequence,
            times: vec![NOW_MS],
            tags: BTreeMap::new(),
            fields: fields.collect(),
        };
        set.push_batch(subject::partition_of(&batch.host), Sequence(sequence), NOW_MS, &batch);
    };
    let wide: BTreeSet<String> = (0..200).map(|field| format!("f{field}")).collect();
    push(&mut set, 1, &wide);
    (2..10_000).for_each(|sequence| push(&mut set, sequence, &BTreeSet::from(["x".to_owned()])));
    let before = set.weight();
    push(&mut set, 10_000, &wide);
    let added = set.weight() - before;
    assert!(added < 200 * 32, "{added} bytes for 200 values, whatever came since the last message with these columns");
}
