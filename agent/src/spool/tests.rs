use std::{collections::BTreeMap, io::Write as _};

use plimsoll_nats::Sequence;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::buffer::tests::message;

const LIFE: Incarnation = Incarnation(1);

fn position(sequence: u64) -> Position {
    Position { incarnation: LIFE, sequence: Sequence(sequence) }
}

fn open(folder: &TempDir, max_bytes: u64) -> Spool {
    Spool::open(folder.path(), max_bytes, &mut |_| {}).unwrap()
}

fn load_all(spool: &mut Spool, reached: Position) -> Vec<Loaded> {
    let mut loaded = Vec::new();
    while let Some(load) = spool.next_load() {
        let read = load.read();
        loaded.extend(spool.take(load, read, reached).unwrap());
    }
    loaded
}

fn seqs(loaded: &[Loaded]) -> Vec<u64> {
    loaded.iter().map(|loaded| loaded.message.seq).collect()
}

fn save(spool: &mut Spool) {
    let snapshot = spool.snapshot();
    cursor::write(spool.folder(), &snapshot).unwrap();
}

fn segment_files(folder: &TempDir) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    files.sort();
    files
}

/// Appends so many messages of 100 bytes, numbered on from `first`.
fn fill(spool: &mut Spool, first: u64, count: u64) -> Vec<Place> {
    (first..first + count).map(|seq| spool.append(&message("cpu", seq, 100), None).unwrap()).collect()
}

#[test]
fn nothing_is_written_until_something_is_spooled_and_nothing_is_left_after() {
    let folder = TempDir::new().unwrap();
    let mut spool = open(&folder, 64 * 1024);
    assert_eq!(segment_files(&folder), [""; 0].map(PathBuf::from));
    let places = fill(&mut spool, 1, 100);
    assert!(segment_files(&folder).len() > 2);
    let on_disk: u64 = segment_files(&folder).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert_eq!(spool.stats().bytes, on_disk);
    places.into_iter().for_each(|place| spool.finish(place));
    assert_eq!(segment_files(&folder).len(), 0);
    assert_eq!(spool.stats(), SpoolStats::default());
}

#[test]
fn a_full_spool_loses_its_oldest_and_counts_them() {
    let folder = TempDir::new().unwrap();
    let max_bytes = 32 * 1024;
    let mut spool = open(&folder, max_bytes);
    let mut dropped = 0;
    for first in 1..=1000 {
        fill(&mut spool, first, 1);
        dropped += spool.take_dropped();
        let on_disk: u64 = segment_files(&folder).iter().map(|path| path.metadata().unwrap().len()).sum();
        assert!(on_disk == spool.stats().bytes && on_disk <= max_bytes);
    }
    assert!(spool.stats().bytes > max_bytes / 4 * 3);
    assert!(seqs(&load_all(&mut spool, position(0))).into_iter().eq(dropped + 1..=1000));
}

#[test]
fn a_spool_smaller_than_a_message_refuses_it() {
    let folder = TempDir::new().unwrap();
    let mut spool = open(&folder, 1024);
    assert!(matches!(spool.append(&message("cpu", 1, 2000), None), Err(SpoolError::TooLarge { .. })));
    spool.append(&message("cpu", 2, 800), None).unwrap();
    spool.append(&message("cpu", 3, 800), None).unwrap();
    assert_eq!((seqs(&load_all(&mut spool, position(0))), spool.take_dropped()), (vec![3], 1));
}

#[test]
fn what_was_never_sent_is_not_in_doubt_and_what_may_have_been_is() {
    let folder = TempDir::new().unwrap();
    let mut spool = open(&folder, 64 * 1024);
    spool.append(&message("cpu", 1, 100), Some(position(7))).unwrap();
    fill(&mut spool, 2, 3);
    let doubts = |spool: &mut Spool, reached| -> Vec<_> {
        load_all(spool, reached).into_iter().map(|loaded| loaded.doubt.map(|doubt| doubt.sequence.0)).collect()
    };
    assert_eq!(doubts(&mut spool, position(50)), [Some(7), None, None, None]);
    // Loaded, but killed before the disk was told: nothing was sent.
    spool = open(&folder, 64 * 1024);
    assert_eq!(doubts(&mut spool, position(50)), [Some(7), None, None, None]);
    save(&mut spool);
    fill(&mut spool, 5, 1);
    spool = open(&folder, 64 * 1024);
    assert_eq!(doubts(&mut spool, position(90)), [Some(7), Some(50), Some(50), Some(50), None]);
    // What was sent twice may be stored from the first attempt on.
    save(&mut spool);
    spool = open(&folder, 64 * 1024);
    assert_eq!(doubts(&mut spool, position(99)), [Some(7), Some(50), Some(50), Some(50), Some(90)]);
}

#[test]
fn without_a_cursor_everything_is_in_doubt_from_its_own_mark() {
    let folder = TempDir::new().unwrap();
    let mut spool = open(&folder, 64 * 1024);
    spool.reach(position(30));
    fill(&mut spool, 1, 2);
    save(&mut spool);
    let cursor = folder.path().join("cursor");
    let damaged = fs::read_to_string(&cursor).unwrap().replacen("30", "31", 1);
    for damage in [Some(damaged), None] {
        match damage {
            Some(text) => fs::write(&cursor, text).unwrap(),
            None => fs::remove_file(&cursor).unwrap(),
        }
        let loaded = load_all(&mut open(&folder, 64 * 1024), position(40));
        assert!(loaded.iter().all(|loaded| loaded.doubt == Some(position(30))), "{loaded:?}");
        assert_eq!(seqs(&loaded), [1, 2]);
    }
}

#[test]
fn a_deleted_segment_that_comes_back_is_deleted_again() {
    let folder = TempDir::new().unwrap();
    let mut spool = open(&folder, 64 * 1024);
    fill(&mut spool, 1, 3);
    let file = segment_files(&folder).remove(0);
    let bytes = fs::read(&file).unwrap();
    for loaded in load_all(&mut spool, position(0)) {
        spool.finish(loaded.place);
    }
    save(&mut spool);
    drop(spool);
    fs::write(&file, bytes).unwrap();
    let mut spool = open(&folder, 64 * 1024);
    assert_eq!((segment_files(&folder).len(), spool.stats()), (0, SpoolStats::default()));
    // Its number is not used again either.
    fill(&mut spool, 4, 1);
    assert!(segment_files(&folder)[0] > file);
}

#[test]
fn what_is_released_is_loaded_again() {
    let folder = TempDir::new().unwrap();
    let mut spool = open(&folder, 64 * 1024);
    let places = fill(&mut spool, 1, 4);
    spool.hold(places[1]);
    assert_eq!(spool.backlog(), 3);
    assert_eq!(seqs(&load_all(&mut spool, position(0))), [1, 3, 4]);
    assert_eq!(spool.backlog(), 0);
    assert!(spool.release(places[1]) && spool.release(places[3]));
    assert_eq!(seqs(&load_all(&mut spool, position(0))), [2, 4]);
    spool.finish(places[2]);
    assert!(!spool.release(places[2]));
    assert_eq!(seqs(&load_all(&mut spool, position(0))), [0; 0]);
}

#[test]
fn what_is_released_while_something_is_read_is_loaded_next() {
    let folder = TempDir::new().unwrap();
    let mut spool = open(&folder, 64 * 1024);
    let places = fill(&mut spool, 1, 4);
    spool.hold(places[0]);
    spool.hold(places[1]);
    let load = spool.next_load().unwrap();
    let read = load.read();
    spool.release(places[0]);
    let loaded = spool.take(load, read, position(0)).unwrap();
    assert_eq!(seqs(&loaded), [1, 3, 4]);
    spool.release(places[1]);
    assert_eq!(seqs(&load_all(&mut spool, position(0))), [2]);
}

/// Files that an agent may find in its spool, and how many damaged places they count as.
#[test]
fn strange_files_cost_nothing_but_themselves() {
    let folder = TempDir::new().unwrap();
    let mut spool = open(&folder, 64 * 1024);
    fill(&mut spool, 1, 3);
    drop(spool);
    let good = fs::read(segment_files(&folder).remove(0)).unwrap();
    let header_lost = [b"something else..".as_slice(), &good[HEADER_BYTES..]].concat();
    let strange: [(&[u8], u64, bool); 5] = [
        (b"", 0, false),
        (b"PLIM", 0, false),
        (&good[..16], 0, false),
        (&[0; 5000], 2, false),
        (&header_lost, 1, true),
    ];
    for (number, (bytes, damage, has_records)) in strange.into_iter().enumerate() {
        let path = segment::path(folder.path(), 10 + number as u64);
        fs::write(&path, bytes).unwrap();
        fs::write(folder.path().join("notes.txt"), "not a segment").unwrap();
        let mut spool = open(&folder, 64 * 1024);
        assert_eq!(spool.stats().corrupt, damage, "{number}");
        let expected: &[u64] = if has_records { &[1, 2, 3, 1, 2, 3] } else { &[1, 2, 3] };
        assert_eq!(seqs(&load_all(&mut spool, position(0))), expected, "{number}");
        assert_eq!(path.exists(), has_records, "{number}");
        fill(&mut spool, 50, 1);
        assert!(segment_files(&folder).iter().any(|file| *file > path), "a number is not used twice");
        drop(spool);
        let _ = fs::remove_file(&path);
        fs::remove_file(segment_files(&folder).pop().unwrap()).unwrap();
    }
    assert!(folder.path().join("notes.txt").exists());
}

#[test]
fn a_segment_of_a_later_version_is_kept_for_it() {
    let folder = TempDir::new().unwrap();
    drop(open(&folder, 64 * 1024));
    let path = segment::path(folder.path(), 1);
    let mut header = b"PLIMSPOL\x02\0\0\0".to_vec();
    header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
    header.extend_from_slice(b"whatever that version writes");
    fs::write(&path, &header).unwrap();
    for _ in 0..2 {
        let mut spool = open(&folder, 64 * 1024);
        fill(&mut spool, 1, 3);
        let loaded = load_all(&mut spool, position(0));
        assert_eq!(seqs(&loaded), [1, 2, 3]);
        loaded.into_iter().for_each(|loaded| spool.finish(loaded.place));
        assert_eq!((spool.stats().corrupt, spool.stats().batches), (0, 0));
        assert_eq!(fs::read(&path).unwrap(), header);
    }
    // Only the bound makes it go, as the oldest that it is.
    let mut spool = open(&folder, 1024);
    fill(&mut spool, 1, 20);
    assert!(!path.exists());
}

#[test]
fn damage_that_comes_while_the_agent_runs_is_noticed() {
    let folder = TempDir::new().unwrap();
    let mut spool = open(&folder, 64 * 1024);
    let places = fill(&mut spool, 1, 5);
    let path = segment_files(&folder).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    for place in &places[1..3] {
        bytes[usize::try_from(place.from).unwrap() + 60] ^= 1;
    }
    fs::write(&path, bytes).unwrap();
    let loaded = load_all(&mut spool, position(0));
    assert_eq!(seqs(&loaded), [1, 4, 5]);
    assert_eq!((spool.stats().batches, spool.stats().corrupt), (3, 1));
    loaded.into_iter().for_each(|loaded| spool.finish(loaded.place));
    assert_eq!((spool.stats().batches, segment_files(&folder).len()), (0, 0));
}

#[test]
fn a_segment_that_somebody_deletes_does_not_stop_the_rest() {
    let folder = TempDir::new().unwrap();
    let mut spool = open(&folder, 16 * 1024);
    fill(&mut spool, 1, 20);
    let files = segment_files(&folder);
    assert!(files.len() > 2);
    fs::remove_file(&files[1]).unwrap();
    let loaded = load_all(&mut spool, position(0));
    assert_eq!(loaded.len() as u64 + spool.take_dropped(), 20);
    assert!(loaded.len() < 20 && spool.stats().corrupt == 1);
    loaded.into_iter().for_each(|loaded| spool.finish(loaded.place));
    assert_eq!(spool.backlog(), 0);
}

#[derive(Debug, Clone)]
enum Step {
    /// A message of that many bytes, sent at once or not.
    Append(usize, bool),
    /// The cursor is written.
    Save,
    /// What is on disk alone is loaded, and the disk told.
    Load,
    /// Of what was sent, the message at this index is acknowledged.
    Acknowledge(prop::sample::Index),
    /// Of what is held, the message at this index leaves memory.
    Release(prop::sample::Index),
    /// The agent is killed and comes back; that many bytes are cut off the last file, within its last record.
    Reopen(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (8_usize..300, any::<bool>()).prop_map(|(bytes, sent)| Step::Append(bytes, sent)),
        1 => Just(Step::Save),
        2 => Just(Step::Load),
        6 => any::<prop::sample::Index>().prop_map(Step::Acknowledge),
        1 => any::<prop::sample::Index>().prop_map(Step::Release),
        2 => prop_oneof![Just(0), 1_usize..60].prop_map(Step::Reopen),
    ]
}

/// What a naive spool would know of one message.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    place: Option<Place>,
    is_sent: bool,
    is_held: bool,
    is_acknowledged: bool,
    /// Whether the disk has been told that it is acknowledged.
    is_forgotten: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Against a map of what was appended: whatever happens, each message that is not acknowledged is loaded, in order, and what
    /// was sent is known to be in doubt; what is acknowledged may come back only if it is in doubt.
    #[test]
    fn nothing_is_lost_and_nothing_is_sent_unasked(steps in proptest::collection::vec(any_step(), 1..120)) {
        let folder = TempDir::new().unwrap();
        let max_bytes = 128 * 1024;
        let mut spool = open(&folder, max_bytes);
        let mut model: BTreeMap<u64, Known> = BTreeMap::new();
        let mut last_seq = 0;
        for step in steps {
            match step {
                Step::Append(bytes, is_sent) => {
                    last_seq += 1;
                    let sent_after = is_sent.then_some(position(last_seq));
                    let place = spool.append(&message("cpu", last_seq, bytes), sent_after).unwrap();
                    if is_sent {
                        spool.hold(place);
                    }
                    model.insert(last_seq, Known { place: Some(place), is_sent, is_held: is_sent, ..Known::default() });
                }
                Step::Save => {
                    save(&mut spool);
                    model.values_mut().for_each(|known| known.is_forgotten |= known.is_acknowledged);
                }
                Step::Load => {
                    let loaded = load_all(&mut spool, position(last_seq));
                    save(&mut spool);
                    let waiting = |known: &Known| known.place.is_some() && !known.is_held && !known.is_acknowledged;
                    let expected: Vec<u64> = model.iter().filter(|(_, known)| waiting(known)).map(|(seq, _)| *seq).collect();
                    prop_assert_eq!(seqs(&loaded), expected);
                    for loaded in loaded {
                        let known = model.get_mut(&loaded.message.seq).unwrap();
                        // A window may take in what was in memory when it was loaded, which is sent as well.
                        prop_assert!(loaded.doubt.is_some() || !known.is_sent);
                        (known.is_sent, known.is_held) = (true, true);
                    }
                    model.values_mut().for_each(|known| known.is_forgotten |= known.is_acknowledged);
                }
                Step::Acknowledge(index) => {
                    let sent: Vec<u64> = model
                        .iter()
                        .filter(|(_, known)| known.is_held && !known.is_acknowledged)
                        .map(|(seq, _)| *seq)
                        .collect();
                    if !sent.is_empty() {
                        let known = model.get_mut(index.get(&sent)).unwrap();
                        spool.finish(known.place.unwrap());
                        (known.is_acknowledged, known.is_held) = (true, false);
                    }
                }
                Step::Release(index) => {
                    let held: Vec<u64> = model.iter().filter(|(_, known)| known.is_held).map(|(seq, _)| *seq).collect();
                    if !held.is_empty() {
                        let known = model.get_mut(index.get(&held)).unwrap();
                        prop_assert!(spool.release(known.place.unwrap()));
                        known.is_held = false;
                    }
                }
                Step::Reopen(cut) => {
                    drop(spool);
                    // Only what is appended last may be torn, and only before the agent has gone on to send it.
                    let last = model.values().filter_map(|known| known.place).max();
                    let is_last = |known: &Known| known.place == last && !known.is_sent;
                    let torn = model.iter().find(|(_, known)| cut > 0 && is_last(known)).map(|(seq, _)| *seq);
                    if let Some(seq) = torn {
                        let place = model.remove(&seq).unwrap().place.unwrap();
                        let file = File::options().write(true).open(segment::path(folder.path(), place.segment)).unwrap();
                        file.set_len(place.to - cut as u64).unwrap();
                    }
                    spool = open(&folder, max_bytes);
                    prop_assert_eq!(spool.stats().corrupt, 0);
                    let mut found = BTreeMap::new();
                    for loaded in load_all(&mut spool, position(last_seq)) {
                        let known = model.get(&loaded.message.seq).unwrap();
                        prop_assert!(loaded.doubt.is_some() || !known.is_sent, "sent and not in doubt: {loaded:?}");
                        prop_assert!(!known.is_forgotten, "acknowledged on disk: {loaded:?}");
                        prop_assert!(found.insert(loaded.message.seq, loaded.place).is_none());
                    }
                    for (seq, known) in &mut model {
                        prop_assert!(known.is_acknowledged || found.contains_key(seq), "{seq} is lost");
                        known.is_held = false;
                        if known.is_acknowledged && let Some(place) = found.get(seq) {
                            // The stream says that it has it.
                            spool.finish(*place);
                        }
                    }
                    for place in found.values() {
                        spool.release(*place);
                    }
                }
            }
            let left = model.values().filter(|known| !known.is_acknowledged).count() as u64;
            let held = model.values().filter(|known| known.is_held).count() as u64;
            prop_assert_eq!((spool.stats().batches, spool.backlog()), (left, left - held));
        }
    }
}

#[test]
fn a_record_cut_short_is_cut_off_for_good() {
    let folder = TempDir::new().unwrap();
    let mut spool = open(&folder, 64 * 1024);
    fill(&mut spool, 1, 2);
    drop(spool);
    let path = segment_files(&folder).remove(0);
    let whole = fs::read(&path).unwrap();
    let mut file = File::options().append(true).open(&path).unwrap();
    file.write_all(&whole[HEADER_BYTES..HEADER_BYTES + 90]).unwrap();
    for _ in 0..2 {
        let mut spool = open(&folder, 64 * 1024);
        assert_eq!((seqs(&load_all(&mut spool, position(0))), spool.stats().corrupt), (vec![1, 2], 0));
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
}
