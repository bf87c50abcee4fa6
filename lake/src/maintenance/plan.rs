//! What is worth merging. No I/O.
//!
//! The sizes of files are divided into classes, each eight times as large as the one before. Where a partition (a day of a table)
//! has eight files of one class, they are merged, into about one of the next. So a row is written once a class, at most five times,
//! and not once a run; and a partition has at most seven files of each class.
//!
//! A partition that got no file for an hour is settled: what small files it has left are merged into as few as possible.

use std::collections::{BTreeMap, BTreeSet};

/// What a merged file should have at best, in bytes. DuckLake stops adding where that would lead away from it, so that files get
/// from two thirds to four thirds of it: some tens of MB.
pub(super) const TARGET_BYTES: u64 = 48 * MIB;
/// The size from which a file is not merged any more, in bytes. Two smaller ones always bring each other closer to the target.
pub(super) const FULL_BYTES: u64 = TARGET_BYTES / 3 * 2;
const MIB: u64 = 1024 * 1024;
/// Where the classes begin and end.
const CLASSES: [(u64, u64); 4] = [
    (0, FULL_BYTES / 512),
    (FULL_BYTES / 512, FULL_BYTES / 64),
    (FULL_BYTES / 64, FULL_BYTES / 8),
    (FULL_BYTES / 8, FULL_BYTES),
];
/// How many files of a class are merged.
const FILES_A_MERGE: usize = 8;

/// A file of the lake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredFile {
    /// Its table.
    pub(super) table: String,
    /// Its folder: a day of the table.
    pub(super) partition: String,
    /// The version of the table's columns; files of different ones are not merged.
    pub(super) schema_version: Option<i64>,
    /// Its size.
    pub(super) bytes: u64,
    /// Whether it has been there for long.
    pub(super) settled: bool,
}

/// Files of a table that are to be merged: those of a size in `[from, below)`, each partition's on their own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Merge {
    pub(super) table: String,
    pub(super) from: u64,
    pub(super) below: u64,
}

impl Merge {
    /// Most files that a step makes of them, so that it takes seconds: two of the largest, 128 MiB, or many small ones.
    pub(super) fn at_once(&self) -> u64 {
        if self.below <= FULL_BYTES / 8 { 16 } else { 2 }
    }
}

/// The merges that are worth their while, in the order of tables and sizes.
pub(super) fn plan(files: &[StoredFile]) -> Vec<Merge> {
    let mut groups = BTreeMap::<_, Vec<&StoredFile>>::new();
    for file in files.iter().filter(|file| file.bytes < FULL_BYTES) {
        groups.entry((&file.table, &file.partition, file.schema_version)).or_default().push(file);
    }
    let merges: BTreeSet<Merge> = groups.iter().flat_map(|((table, ..), files)| merges(table, files)).collect();
    merges.into_iter().collect()
}

fn merges(table: &str, files: &[&StoredFile]) -> Vec<Merge> {
    let merge = |(from, below)| Merge { table: table.to_owned(), from, below };
    if files.len() > 1 && files.iter().all(|file| file.settled) {
        return vec![merge((0, FULL_BYTES))];
    }
    let within = |(from, below)| files.iter().filter(|file| (from..below).contains(&file.bytes)).count();
    CLASSES.into_iter().filter(|class| within(*class) >= FILES_A_MERGE).map(merge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(partition: &str, bytes: u64, settled: bool) -> StoredFile {
        StoredFile { table: "cpu".to_owned(), partition: partition.to_owned(), schema_version: Some(1), bytes, settled }
    }

    fn ranges(files: &[StoredFile]) -> Vec<(u64, u64)> {
        plan(files).iter().map(|merge| (merge.from, merge.below)).collect()
    }

    #[test]
    fn eight_files_of_a_class_and_a_day_are_merged_and_seven_are_not() {
        let small = |count: usize, day: &str| (0..count).map(|_| file(day, 3000, false)).collect::<Vec<_>>();
        assert_eq!(ranges(&small(7, "d1")), []);
        assert_eq!(ranges(&small(8, "d1")), [CLASSES[0]]);
        assert_eq!(ranges(&[small(7, "d1"), small(7, "d2")].concat()), []);
        let other = StoredFile { schema_version: Some(2), ..file("d1", 3000, false) };
        assert_eq!(
            ranges(&[small(7, "d1"), vec![other]].concat()),
            [],
            "files of other columns are not merged with them"
        );
        let large: Vec<_> = (0..20).map(|_| file("d1", FULL_BYTES, true)).collect();
        assert_eq!(ranges(&large), []);
    }

    #[test]
    fn a_settled_day_is_merged_whatever_its_files() {
        assert_eq!(ranges(&[file("d1", 10, true), file("d1", 9 * MIB, true)]), [(0, FULL_BYTES)]);
        assert_eq!(ranges(&[file("d1", 10, true), file("d1", 9 * MIB, false)]), []);
        assert_eq!(ranges(&[file("d1", 10, true), file("d1", FULL_BYTES, true)]), []);
        assert_eq!(ranges(&[file("d1", 10, true), file("d2", 10, true)]), []);
    }

    /// What DuckLake makes of the files of a partition within the range: the sum of as many, in order, as come near the target.
    fn merged(files: &[u64], (from, below): (u64, u64)) -> (Vec<u64>, u64) {
        let (mut done, mut written, mut sum, mut parts) = (Vec::new(), 0, 0_u64, 0);
        let mut close = |sum: &mut u64, parts: &mut u32, done: &mut Vec<u64>| {
            if *parts > 1 {
                written += *sum;
            }
            if *parts > 0 {
                done.push(*sum);
            }
            (*sum, *parts) = (0, 0);
        };
        for bytes in files.iter().copied() {
            if !(from..below).contains(&bytes) {
                done.push(bytes);
                continue;
            }
            if parts > 0 && (sum + bytes).abs_diff(TARGET_BYTES) >= sum.abs_diff(TARGET_BYTES) {
                close(&mut sum, &mut parts, &mut done);
            }
            (sum, parts) = (sum + bytes, parts + 1);
        }
        close(&mut sum, &mut parts, &mut done);
        (done, written)
    }

    #[test]
    fn commits_of_a_day_leave_few_files_and_write_each_row_few_times() {
        for commit in [2_000, 40_000, 700_000, 5 * MIB] {
            let (mut files, mut written, commits) = (Vec::new(), 0, 1440);
            for _ in 0..commits {
                files.push(commit);
                let stored: Vec<_> = files.iter().map(|bytes| file("d1", *bytes, false)).collect();
                for range in ranges(&stored) {
                    let (after, bytes) = merged(&files, range);
                    (files, written) = (after, written + bytes);
                }
                assert!(files.iter().filter(|bytes| **bytes < FULL_BYTES).count() <= 4 * 7, "{files:?}");
            }
            assert_eq!(files.iter().sum::<u64>(), commits * commit);
            assert!(written <= 7 * commits * commit, "written {} times", written / (commits * commit));
            let settled: Vec<_> = files.iter().map(|bytes| file("d1", *bytes, true)).collect();
            for range in ranges(&settled) {
                files = merged(&files, range).0;
            }
            assert!(files.iter().filter(|bytes| **bytes < FULL_BYTES).count() <= 1, "{files:?}");
            assert!(files.iter().all(|bytes| *bytes <= TARGET_BYTES / 3 * 4), "{files:?}");
        }
    }
}
