//! Logs that are cut, begun anew behind a snapshot, and removed: also over restarts, purges and loss of power.

use super::*;

fn configuration(voters: &[u64]) -> crate::core::rows::Configuration {
    crate::core::rows::Configuration { voters: voters.to_vec(), last_id: 3, ..Default::default() }
}

fn compacted(index: u64, term: u64) -> Compacted {
    Compacted { index, term, configuration: configuration(&[1, 2, 3]) }
}

fn cut(group: GroupId, index: u64, term: u64) -> GroupWrite {
    GroupWrite { compact: Some(compacted(index, term)), ..append(group, vec![]) }
}

fn replace(group: GroupId, index: u64, term: u64) -> GroupWrite {
    GroupWrite::installed(group, compacted(index, term), hard_state(term, 1, index))
}

#[test]
fn a_cut_log_begins_behind_the_cut_and_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.write(&[append(GROUP, entries(1..21, 1))], true).unwrap();
    // what is cut and what is appended may be one write, and may be cut again in the same turn
    let both = GroupWrite { entries: entries(21..24, 2), ..cut(GROUP, 10, 1) };
    store.write(&[both, cut(GROUP, 12, 1)], true).unwrap();
    let check = |store: &LogStore| {
        let loaded = store.load(GROUP).unwrap().unwrap();
        assert_eq!((loaded.first, loaded.last, loaded.compacted), (13, 23, Some(compacted(12, 1))));
        assert_eq!(store.entry(GROUP, 12).unwrap(), None);
        assert_eq!(store.entries(GROUP, 13, 24, None).unwrap(), [entries(13..21, 1), entries(21..24, 2)].concat());
        assert!(matches!(store.entries(GROUP, 12, 14, None), Err(Error::Missing { first: 13, .. })));
    };
    check(&store);
    check(&open(crash_image(dir.path()).path()));
    drop(store);
    check(&open(dir.path()));
}

#[test]
fn a_log_that_is_cut_at_its_end_goes_on_there_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.write(&[append(GROUP, entries(1..6, 1))], true).unwrap();
    store.write(&[cut(GROUP, 5, 1)], true).unwrap();
    drop(store);
    let store = open(dir.path());
    let loaded = store.load(GROUP).unwrap().unwrap();
    assert_eq!((loaded.first, loaded.last), (6, 5));
    for bad in [4, 5, 7, 100] {
        let error = store.write(&[append(GROUP, entries(bad..bad + 1, 1))], true).unwrap_err();
        assert!(matches!(error, Error::Misplaced { first: 6, last: 5, .. }), "{error}");
    }
    // a cut beyond the end or before the beginning is not one
    for bad in [6, 4, 0, u64::MAX] {
        let error = store.write(&[append(GroupId(8), entries(1..2, 1)), cut(GROUP, bad, 1)], true).unwrap_err();
        assert!(matches!(error, Error::Misplaced { .. }), "{bad}: {error}");
    }
    assert_eq!(store.load(GroupId(8)).unwrap(), None);
    store.write(&[append(GROUP, entries(6..9, 1))], true).unwrap();
    assert_eq!(open(crash_image(dir.path()).path()).entries(GROUP, 6, 9, None).unwrap(), entries(6..9, 1));
}

#[test]
fn a_snapshot_replaces_a_log_wherever_it_ended() {
    for (old, index) in [(1..6, 40), (1..60, 40), (1..41, 40), (1..1, 40)] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        store.put_meta(GROUP, b"seed").unwrap();
        store.write(&[append(GROUP, entries(old, 1))], true).unwrap();
        let record = GroupWrite { installing: Some(Some(Bytes::from_static(b"record"))), ..append(GROUP, vec![]) };
        store.write(&[record], true).unwrap();
        assert_eq!(store.load(GROUP).unwrap().unwrap().installing.as_deref(), Some(b"record".as_slice()));
        let started = crash_image(dir.path());
        store.write(&[replace(GROUP, index, 3)], true).unwrap();
        let check = |store: &LogStore, last: u64| {
            let loaded = store.load(GROUP).unwrap().unwrap();
            let want = Loaded {
                hard_state: hard_state(3, 1, 40),
                first: 41,
                last,
                compacted: Some(compacted(40, 3)),
                installing: None,
            };
            assert_eq!(loaded, want);
            assert_eq!(store.meta(GROUP).unwrap().as_deref(), Some(b"seed".as_slice()));
            assert_eq!(store.entry(GROUP, 40).unwrap(), None);
            assert_eq!(store.entry(GROUP, 50).unwrap(), None);
        };
        check(&store, 40);
        check(&open(crash_image(dir.path()).path()), 40);
        store.write(&[append(GROUP, entries(41..44, 3))], true).unwrap();
        drop(store);
        let store = open(dir.path());
        check(&store, 43);
        assert_eq!(store.entries(GROUP, 41, 44, None).unwrap(), entries(41..44, 3));
        // a crash before the last step leaves the record, and the step can still be made
        let store = open(started.path());
        assert_eq!(store.load(GROUP).unwrap().unwrap().installing.as_deref(), Some(b"record".as_slice()));
        store.write(&[replace(GROUP, index, 3)], true).unwrap();
        check(&store, 40);
    }
}

#[test]
fn a_replaced_log_takes_the_entries_of_the_same_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.write(&[append(GROUP, entries(1..60, 1))], true).unwrap();
    store.write(&[GroupWrite { entries: entries(41..43, 3), ..replace(GROUP, 40, 3) }], true).unwrap();
    let bad = GroupWrite { entries: entries(53..54, 3), ..replace(GROUP, 50, 3) };
    assert!(matches!(store.write(&[bad], true), Err(Error::Misplaced { index: 53, first: 51, last: 50, .. })));
    drop(store);
    assert_eq!(open(dir.path()).entries(GROUP, 41, 43, None).unwrap(), entries(41..43, 3));
}

#[test]
fn a_removed_replica_is_remembered_through_another_ones_life() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(store.gone(GROUP).unwrap(), 0);
    store.put_meta(GROUP, b"seed").unwrap();
    store.write(&[append(GROUP, entries(1..6, 1)), append(GroupId(9), entries(1..2, 1))], true).unwrap();
    store.remove(GROUP, 4).unwrap();
    let check = |store: &LogStore| {
        assert_eq!((store.gone(GROUP).unwrap(), store.gone(GroupId(9)).unwrap()), (4, 0));
        assert_eq!(store.load(GROUP).unwrap(), None);
        assert_eq!(store.groups().unwrap(), []);
    };
    check(&store);
    check(&open(crash_image(dir.path()).path()));
    drop(store);
    let store = open(dir.path());
    check(&store);
    // the next replica lives, is filled by a snapshot, and goes; an earlier id that is removed late changes nothing
    store.put_meta(GROUP, b"other").unwrap();
    store.write(&[replace(GROUP, 40, 3)], true).unwrap();
    assert_eq!(store.gone(GROUP).unwrap(), 4);
    store.remove(GROUP, 7).unwrap();
    store.remove(GROUP, 2).unwrap();
    drop(store);
    assert_eq!(open(dir.path()).gone(GROUP).unwrap(), 7);
}

#[test]
fn files_are_purged_of_what_was_cut_and_nothing_of_it_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { file_size: 16 << 10, purge_above: 48 << 10 };
    let mut store = LogStore::open(dir.path(), options.clone()).unwrap();
    // one group is cut behind its end, one is replaced now and then, one is quiet and holds old files until it is moved
    let quiet = entries(1..4, 1);
    store.write(&[append(GroupId(3), quiet.clone())], true).unwrap();
    let big = |index: u64| entry(index, 1, vec![u8::try_from(index % 251).unwrap(); 400]);
    let (mut last, mut replaced) = (0, 0);
    for round in 0..120u64 {
        let new: Vec<Entry> = (last + 1..=last + 8).map(big).collect();
        last += 8;
        let other: Vec<Entry> = (replaced + 1..=replaced + 5).map(big).collect();
        store.write(&[append(GroupId(1), new), append(GroupId(2), other)], false).unwrap();
        match round % 3 {
            // sometimes nothing is left
            0 => store.write(&[cut(GroupId(1), last - round % 5, 1)], false).unwrap(),
            1 => {
                replaced += 2;
                store.write(&[replace(GroupId(2), replaced, 1)], false).unwrap();
            }
            _ => replaced += 5,
        }
        store.purge().unwrap();
        if round % 10 == 9 {
            drop(store);
            store = LogStore::open(dir.path(), options.clone()).unwrap();
        }
        for (group, last) in [(1, last), (2, replaced + if round % 3 == 0 { 5 } else { 0 })] {
            let loaded = store.load(GroupId(group)).unwrap().unwrap();
            let compacted = loaded.compacted.as_ref().map_or(0, |compacted| compacted.index);
            assert_eq!((loaded.first, loaded.last), (compacted + 1, last), "group {group}, round {round}");
            let live: Vec<Entry> = (loaded.first..=last).map(big).collect();
            assert_eq!(store.entries(GroupId(group), loaded.first, last + 1, None).unwrap(), live);
            assert_eq!(store.live(GroupId(group)).unwrap(), (live.len() as u64, 400 * live.len() as u64));
        }
        if round % 3 == 0 {
            replaced += 5;
        }
        assert_eq!(store.entries(GroupId(3), 1, 4, None).unwrap(), quiet);
    }
    assert_ne!(files(dir.path())[0].file_name().unwrap(), "0000000000000001.raftlog");
    assert!(store.size_on_disk() < 160 << 10, "{}", store.size_on_disk());
}

#[test]
fn a_cut_that_was_acknowledged_survives_power_loss_and_a_failed_one_does_not_count() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    fs::create_dir(faults::durable(&dir)).unwrap();
    let store = LogStore::open(&dir, Options::default()).unwrap();
    store.write(&[append(GROUP, entries(1..21, 1))], true).unwrap();
    store.write(&[cut(GROUP, 10, 1)], true).unwrap();
    faults::fail_syncs(&dir, true);
    assert!(matches!(store.write(&[replace(GROUP, 40, 2)], true), Err(Error::Write(_))));
    assert!(matches!(store.write(&[cut(GROUP, 12, 1)], true), Err(Error::Stopped)));
    drop(store);
    let loaded = LogStore::open(&faults::durable(&dir), Options::default()).unwrap().load(GROUP).unwrap().unwrap();
    assert_eq!((loaded.first, loaded.last, loaded.compacted), (11, 20, Some(compacted(10, 1))));
}

#[test]
fn a_torn_replacement_leaves_the_log_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.put_meta(GROUP, b"seed").unwrap();
    store.write(&[append(GROUP, entries(1..21, 1))], true).unwrap();
    let before = fs::read(files(dir.path()).pop().unwrap()).unwrap();
    let start = before.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let note = fs::read(dir.path().join(mark::NAME)).unwrap();
    store.write(&[replace(GROUP, 40, 2)], true).unwrap();
    let file = files(dir.path()).pop().unwrap();
    let bytes = fs::read(&file).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for cut in [start + 1, (start + end) / 2, end - 1] {
        let image = crash_image(dir.path());
        fs::write(image.path().join(file.file_name().unwrap()), &bytes[..cut]).unwrap();
        fs::write(image.path().join(mark::NAME), &note).unwrap();
        let store = open(image.path());
        let loaded = store.load(GROUP).unwrap().unwrap();
        assert_eq!((loaded.first, loaded.last, loaded.compacted), (1, 20, None), "cut at {cut}");
        assert_eq!(store.meta(GROUP).unwrap().as_deref(), Some(b"seed".as_slice()));
    }
}

#[test]
fn a_damaged_record_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.commit(true, |_, batch| batch.put(GROUP.0, COMPACTED.to_vec(), b"\xff".to_vec()).map_err(writing)).unwrap();
    let error = store.load(GROUP).unwrap_err();
    assert!(matches!(&error, Error::Damaged { reason, .. } if reason.contains("compaction")), "{error}");
}

#[test]
fn records_are_pinned() {
    let compacted = Compacted { index: 300, term: 5, configuration: configuration(&[1, 2]) };
    assert_eq!(compacted.encode_to_vec(), b"\x08\xac\x02\x10\x05\x1a\x06\x0a\x02\x01\x02\x40\x03");
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.write(&[GroupWrite::installed(GROUP, compacted, hard_state(5, 1, 300))], true).unwrap();
    store.write(&[GroupWrite { installing: Some(Some(b"x"[..].into())), ..append(GROUP, vec![]) }], true).unwrap();
    let engine = store.engine().unwrap();
    assert_eq!(engine.get(GROUP.0, b"i"), Some(b"x".to_vec()));
    assert_eq!(engine.get(GROUP.0, b"c").unwrap()[..5], b"\x08\xac\x02\x10\x05"[..]);
    store.remove(GROUP, 258).unwrap();
    assert_eq!(store.engine().unwrap().get(GROUP.0, b"g"), Some(vec![0, 0, 0, 0, 0, 0, 1, 2]));
}
