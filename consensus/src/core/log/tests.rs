//! What raft-rs sees of a log that is cut and begun anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use raft::eraftpb::SnapshotMetadata;

use super::*;

/// Entries on disk, of which the term is a tenth of the index.
struct Disk;

fn entry(index: u64) -> Entry {
    Entry { index, term: 1 + index / 10, data: vec![0; 52].into(), ..Entry::default() }
}

impl LogReader for Disk {
    fn entries(&self, _: GroupId, low: u64, high: u64, _: Option<u64>) -> Result<Vec<Entry>, KvError> {
        Ok((low..high).map(entry).collect())
    }

    fn term(&self, _: GroupId, index: u64) -> Result<Option<u64>, KvError> {
        Ok(Some(entry(index).term))
    }
}

fn log(last: u64, bytes: u64) -> GroupLog<Disk> {
    let persisted = Persisted { last, bytes, ..Persisted::default() };
    GroupLog::new(Disk, GroupId(1), persisted, ConfState::default())
}

fn read(log: &GroupLog<Disk>, low: u64, high: u64) -> raft::Result<Vec<u64>> {
    let entries = log.entries(low, high, None, GetEntriesContext::empty(false))?;
    Ok(entries.into_iter().map(|entry| entry.index).collect())
}

fn is(error: raft::Error, kind: StorageError) -> bool {
    error == raft::Error::Store(kind)
}

#[test]
fn a_cut_log_knows_the_term_before_its_first_entry_and_none_further_back() {
    let mut log = log(40, 4000);
    log.append(&(41..=50).map(entry).collect::<Vec<_>>());
    assert_eq!((log.term(0).unwrap(), log.first_index().unwrap()), (0, 1));
    log.compact(45, 5);
    assert_eq!((log.first_index().unwrap(), log.last_index().unwrap()), (46, 50));
    assert_eq!((log.term(45).unwrap(), log.term(46).unwrap(), log.term(50).unwrap()), (5, 5, 6));
    assert!(is(log.term(44).unwrap_err(), StorageError::Compacted));
    assert!(is(log.term(51).unwrap_err(), StorageError::Unavailable));
    assert!(is(read(&log, 45, 48).unwrap_err(), StorageError::Compacted));
    assert_eq!(read(&log, 46, 51).unwrap(), [46, 47, 48, 49, 50]);
    // cut at its end, it goes on there
    log.compact(50, 6);
    assert_eq!((log.first(), log.last(), log.term(50).unwrap()), (51, 50, 6));
    log.append(&[entry(51)]);
    assert_eq!(read(&log, 51, 52).unwrap(), [51]);
}

#[test]
fn a_log_begins_anew_behind_a_snapshot() {
    let mut log = log(40, 4000);
    log.append(&(41..=50).map(entry).collect::<Vec<_>>());
    log.install(45, 9, ConfState { voters: vec![7], ..ConfState::default() });
    assert_eq!((log.first(), log.last(), log.term(45).unwrap(), log.live_bytes()), (46, 45, 9, 0));
    assert!(is(log.term(46).unwrap_err(), StorageError::Unavailable));
    let state = log.initial_state().unwrap();
    assert_eq!((state.hard_state.commit, state.conf_state.voters), (45, vec![7]));
}

#[test]
fn bytes_are_counted_as_the_log_grows_and_shrinks() {
    let mut log = log(1000, 100_000);
    for from in (1001..=3000).step_by(100) {
        log.append(&(from..from + 100).map(entry).collect::<Vec<_>>());
    }
    assert_eq!(log.live_bytes(), 300_000);
    log.compact(500, 51);
    assert_eq!(log.live_bytes(), 250_000);
    log.compact(2500, 251);
    assert_eq!(log.live_bytes(), 50_000);
    // a new leader's entries take the place of those behind
    log.append(&[Entry { index: 2601, term: 999, data: vec![0; 152].into(), ..Entry::default() }]);
    assert_eq!(log.live_bytes(), 10_200);
    log.compact(2601, 999);
    assert_eq!((log.live_bytes(), log.last()), (0, 2601));
}

#[test]
fn a_snapshot_is_given_to_whom_it_names_when_it_reaches_far_enough() {
    let wanting = StorageError::SnapshotTemporarilyUnavailable;
    let mut log = log(100, 0);
    log.compact(50, 6);
    assert!(!log.take_asked());
    assert!(is(log.snapshot(0, 2).unwrap_err(), wanting));
    assert_eq!((log.wanted(), log.take_asked(), log.take_asked()), (Some(50), true, false));
    let mut metadata = SnapshotMetadata { index: 70, term: 8, ..SnapshotMetadata::default() };
    metadata.set_conf_state(ConfState { voters: vec![1, 2], learners: vec![3], ..ConfState::default() });
    let mut snapshot = Snapshot::default();
    snapshot.set_metadata(metadata);
    log.set_prepared(Some(snapshot.clone()));
    log.clear_wanted();
    assert_eq!(log.snapshot(0, 2).unwrap(), snapshot);
    assert_eq!(log.snapshot(70, 3).unwrap(), snapshot);
    assert_eq!(log.wanted(), None);
    for (request, to, wanted) in [(71, 2, 71), (0, 4, 71), (90, 4, 90)] {
        assert!(log.snapshot(request, to).is_err());
        assert_eq!(log.wanted(), Some(wanted));
        log.clear_wanted();
    }
    // the lowest of what several need is enough to begin with
    assert!(log.snapshot(95, 2).is_err() && log.snapshot(80, 2).is_err());
    assert_eq!(log.wanted(), Some(80));
    log.compact(75, 8);
    log.clear_wanted();
    assert!(log.snapshot(0, 2).is_err(), "the log does not go on behind it");
}
