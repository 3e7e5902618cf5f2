//! What the log store promises, on real files: also after a crash, a damaged file and a failed sync.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use protobuf::Message;
use tempfile::TempDir;

use super::*;

mod compaction;
mod crash;

const GROUP: GroupId = GroupId(7);

fn entry(index: u64, term: u64, data: impl AsRef<[u8]>) -> Entry {
    Entry { index, term, data: data.as_ref().to_vec().into(), ..Entry::default() }
}

fn entries(range: std::ops::Range<u64>, term: u64) -> Vec<Entry> {
    range.map(|index| entry(index, term, format!("event {index} of term {term}"))).collect()
}

fn append(group: GroupId, entries: Vec<Entry>) -> GroupWrite {
    GroupWrite { group, entries, ..GroupWrite::default() }
}

fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit, ..HardState::default() }
}

fn open(dir: &Path) -> LogStore {
    LogStore::open(dir, Options::default()).unwrap()
}

/// A directory in memory, if there is room for such: the tests that lay out thousands of them wait for no disk.
fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// The directory as a SIGKILL at this moment would leave it. Nothing may be writing.
fn crash_image(dir: &Path) -> TempDir {
    let image = tempfile::tempdir().unwrap();
    for file in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), image.path().join(file.file_name())).unwrap();
    }
    image
}

/// The files of the log, oldest first.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "raftlog"));
    files.sort();
    files
}

fn position(bytes: &[u8], of: &[u8]) -> usize {
    bytes.windows(of.len()).position(|window| window == of).unwrap()
}

#[test]
fn what_is_appended_is_read_and_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(store.load(GROUP).unwrap(), None);
    let write = GroupWrite {
        group: GROUP,
        entries: entries(1..11, 1),
        hard_state: Some(hard_state(1, 2, 3)),
        ..append(GROUP, vec![])
    };
    store.write(&[write], true).unwrap();
    store.write(&[append(GROUP, entries(11..21, 2))], false).unwrap();
    let check = |store: &LogStore| {
        let loaded = Loaded { hard_state: hard_state(1, 2, 3), first: 1, last: 20, ..Loaded::default() };
        assert_eq!(store.load(GROUP).unwrap(), Some(loaded));
        assert_eq!(store.entries(GROUP, 1, 21, None).unwrap(), [entries(1..11, 1), entries(11..21, 2)].concat());
        assert_eq!(store.entries(GROUP, 10, 12, None).unwrap(), [entries(10..11, 1), entries(11..12, 2)].concat());
        assert_eq!(store.entry(GROUP, 11).unwrap(), Some(entry(11, 2, "event 11 of term 2")));
        assert_eq!(store.entry(GROUP, 21).unwrap(), None);
        assert_eq!((store.term(GROUP, 10).unwrap(), store.term(GROUP, 11).unwrap()), (Some(1), Some(2)));
        assert_eq!(store.term(GroupId(8), 1).unwrap(), None);
    };
    check(&store);
    drop(store);
    check(&open(dir.path()));
}

#[test]
fn a_read_is_bounded_and_returns_at_least_one_entry() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let written: Vec<_> = (1..9).map(|index| entry(index, 1, vec![index as u8; 1000])).collect();
    store.write(&[append(GROUP, written.clone())], false).unwrap();
    assert_eq!(store.entries(GROUP, 3, 9, Some(0)).unwrap(), written[2..3]);
    assert_eq!(store.entries(GROUP, 3, 9, Some(2500)).unwrap(), written[2..4]);
    assert_eq!(store.entries(GROUP, 3, 9, Some(u64::MAX)).unwrap(), written[2..]);
    assert_eq!(store.entries(GROUP, 3, 3, None).unwrap(), []);
    assert_eq!(store.entries(GROUP, 4, 3, None).unwrap(), []);
    for (low, high) in [(0, 3), (1, 10), (9, 10), (9, u64::MAX)] {
        let error = store.entries(GROUP, low, high, None).unwrap_err();
        assert!(matches!(error, Error::Missing { first: 1, last: 8, .. }), "{error}");
    }
}

#[test]
fn a_new_leaders_entries_replace_the_tail() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.write(&[append(GROUP, entries(1..21, 1))], true).unwrap();
    // Twice in one turn, the second on top of the first.
    store.write(&[append(GROUP, entries(15..19, 2)), append(GROUP, entries(16..18, 3))], true).unwrap();
    let wanted = [entries(1..15, 1), entries(15..16, 2), entries(16..18, 3)].concat();
    let check = |store: &LogStore| {
        assert_eq!(store.entries(GROUP, 1, 18, None).unwrap(), wanted);
        assert_eq!(store.entry(GROUP, 18).unwrap(), None);
        assert_eq!(store.load(GROUP).unwrap().unwrap().last, 17);
    };
    check(&store);
    drop(store);
    let store = open(dir.path());
    check(&store);
    store.write(&[append(GROUP, entries(1..2, 9))], true).unwrap();
    assert_eq!(store.load(GROUP).unwrap().unwrap().last, 1);
}

#[test]
fn a_misplaced_append_is_refused_and_writes_nothing_of_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let other = GroupId(8);
    store.write(&[append(GROUP, entries(5..10, 1))], true).unwrap();
    for (bad, index) in [
        (entries(11..12, 1), 11),
        (entries(4..12, 1), 4),
        (entries(0..1, 1), 0),
        (vec![entry(10, 1, ""), entry(12, 1, "")], 12),
        (vec![entry(10, 1, ""), entry(10, 1, "")], 10),
    ] {
        let error = store.write(&[append(other, entries(1..2, 1)), append(GROUP, bad)], true).unwrap_err();
        match error {
            Error::Misplaced { index: at, first: 5, last: 9, .. } => assert_eq!(at, index),
            error => panic!("{error}"),
        }
    }
    let error = store.write(&[append(other, entries(0..3, 1))], true).unwrap_err();
    assert!(matches!(error, Error::Misplaced { index: 0, .. }), "{error}");
    assert_eq!(store.load(other).unwrap(), None);
    store.write(&[append(GROUP, entries(10..11, 1))], true).unwrap();
    drop(store);
    assert_eq!(open(dir.path()).entries(GROUP, 5, 11, None).unwrap(), entries(5..11, 1));
}

#[test]
fn one_turn_of_many_groups_survives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let turn = |from: u64, to: u64| -> Vec<_> {
        let write = |group| GroupWrite {
            group: GroupId(group),
            entries: entries(from..to, group),
            hard_state: Some(hard_state(group, 1, from)),
            ..GroupWrite::default()
        };
        (1..=500).map(write).collect()
    };
    store.write(&turn(1, 3), true).unwrap();
    store.write(&turn(3, 4), true).unwrap();
    let image = crash_image(dir.path());
    store.write(&turn(4, 5), true).unwrap();
    let store = open(image.path());
    for group in 1..=500 {
        let loaded = Loaded { hard_state: hard_state(group, 1, 3), first: 1, last: 3, ..Loaded::default() };
        assert_eq!(store.load(GroupId(group)).unwrap(), Some(loaded));
        assert_eq!(store.entries(GroupId(group), 1, 4, None).unwrap(), entries(1..4, group));
    }
}

#[test]
fn a_torn_turn_is_absent_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let turn = |from: u64, to: u64| [1, 2, 3].map(|group| append(GroupId(group), entries(from..to, 1)));
    store.write(&turn(1, 3), true).unwrap();
    let whole = crash_image(dir.path());
    store.write(&turn(3, 6), true).unwrap();
    let file = files(dir.path()).pop().unwrap();
    let bytes = fs::read(&file).unwrap();
    // The file is allocated ahead: its end is where the zeros begin.
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let start = position(&bytes, b"event 3 of term 1");
    for cut in [start, start + 40, end - 1] {
        let image = crash_image(dir.path());
        let mut torn = bytes.clone();
        torn[cut..].fill(0);
        fs::write(image.path().join(file.file_name().unwrap()), torn).unwrap();
        // the sync did not return, so it was not noted
        fs::copy(whole.path().join(mark::NAME), image.path().join(mark::NAME)).unwrap();
        let (store, whole) = (open(image.path()), open(whole.path()));
        for group in [1, 2, 3].map(GroupId) {
            assert_eq!(store.load(group).unwrap(), whole.load(group).unwrap(), "cut at {cut}");
            assert_eq!(store.entries(group, 1, 3, None).unwrap(), entries(1..3, 1));
        }
        // And the log goes on from there.
        store.write(&turn(3, 4), true).unwrap();
        drop(store);
        assert_eq!(open(image.path()).entries(GroupId(2), 1, 4, None).unwrap(), entries(1..4, 1));
    }
}

#[test]
fn damage_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path(), Options { file_size: 4 << 10, purge_above: 1 << 20 }).unwrap();
    for index in 1..100 {
        store.write(&[append(GROUP, vec![entry(index, 1, [index as u8; 512])])], false).unwrap();
    }
    drop(store);
    let oldest = files(dir.path()).remove(0);
    let bytes = fs::read(&oldest).unwrap();

    // In an entry: seen when it is read, and by that read alone.
    let mut damaged = bytes.clone();
    let at = position(&bytes, &[2; 512]);
    damaged[at + 100] ^= 1;
    fs::write(&oldest, &damaged).unwrap();
    let store = open(dir.path());
    let error = store.entry(GROUP, 2).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(matches!(store.entries(GROUP, 1, 5, None).unwrap_err(), Error::Damaged { .. }));
    assert_eq!(store.entry(GROUP, 3).unwrap(), Some(entry(3, 1, [3; 512])));
    // A file that is cut short under it.
    fs::File::options().write(true).open(&oldest).unwrap().set_len(100).unwrap();
    let error = store.entry(GROUP, 1).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    drop(store);

    // In what frames the entries: seen when the log is opened. The frame of an entry is right behind it.
    let mut damaged = bytes.clone();
    damaged[at + 512 + 8] ^= 1;
    fs::write(&oldest, &damaged).unwrap();
    let error = LogStore::open(dir.path(), Options::default()).err().unwrap();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("restore the peer's data directory, or discard") && text.contains("Checksum"), "{text}");
}

#[test]
fn a_failed_sync_is_an_error_and_stops_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.write(&[append(GROUP, entries(1..3, 1))], true).unwrap();
    store.put_meta(GROUP, b"seed").unwrap();
    faults::fail_syncs(dir.path(), true);
    let error = store.write(&[append(GROUP, entries(3..5, 1))], true).unwrap_err();
    faults::fail_syncs(dir.path(), false);
    assert!(matches!(&error, Error::Write(reason) if reason.contains("Input/output error")), "{error}");
    // The disk works again, but nobody knows what it holds.
    assert!(matches!(store.write(&[append(GROUP, entries(3..5, 1))], true), Err(Error::Stopped)));
    assert!(matches!(store.write(&[], false), Err(Error::Stopped)));
    assert!(matches!(store.put_meta(GROUP, b"other"), Err(Error::Stopped)));
    assert!(matches!(store.remove(GROUP, 1), Err(Error::Stopped)));
    assert!(matches!(store.purge(), Err(Error::Stopped)));
    // Reads go on, of what is known to be there.
    assert_eq!(store.load(GROUP).unwrap().unwrap().last, 2);
    assert_eq!(store.entries(GROUP, 1, 3, None).unwrap(), entries(1..3, 1));
    let image = crash_image(dir.path());
    assert_eq!(open(image.path()).entries(GROUP, 1, 3, None).unwrap(), entries(1..3, 1));
}

#[test]
fn what_was_acknowledged_survives_power_loss_and_a_failed_sync() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    fs::create_dir(faults::durable(&dir)).unwrap();
    let options = Options { file_size: 16 << 10, purge_above: 1 << 20 };
    let store = LogStore::open(&dir, options.clone()).unwrap();
    let acknowledged: Vec<u64> = std::thread::scope(|scope| {
        let write = |group: u64| {
            let (store, dir) = (store.clone(), &dir);
            scope.spawn(move || {
                (1..)
                    .find(|index| {
                        if group == 1 && *index == 40 {
                            faults::fail_syncs(dir, true);
                        }
                        store.write(&[append(GroupId(group), entries(*index..index + 1, 1))], true).is_err()
                    })
                    .unwrap()
                    - 1
            })
        };
        [1, 2, 3, 4].map(write).map(|writer| writer.join().unwrap()).to_vec()
    });
    assert_eq!(acknowledged[0], 39);
    drop(store);
    let store = LogStore::open(&faults::durable(&dir), options).unwrap();
    for (group, last) in (1..).map(GroupId).zip(acknowledged) {
        assert_eq!(store.entries(group, 1, last + 1, None).unwrap(), entries(1..last + 1, 1));
    }
}

#[test]
fn a_directory_is_opened_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = LogStore::open(dir.path(), Options::default()).err().unwrap();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    drop(store);
    open(dir.path());
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = LogStore::open(&file, Options::default()).err().unwrap();
    assert!(matches!(error, Error::Open { .. }), "{error}");
}

#[test]
fn records_name_the_groups_and_removal_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for group in [9, u64::MAX, 0] {
        store.put_meta(GroupId(group), format!("seed of {group}").as_bytes()).unwrap();
    }
    let write = GroupWrite { hard_state: Some(hard_state(1, 1, 1)), ..append(GroupId(9), entries(1..5, 1)) };
    store.write(&[write, append(GROUP, entries(1..2, 1))], true).unwrap();
    assert_eq!(store.groups().unwrap(), [0, 9, u64::MAX].map(GroupId));
    assert_eq!(store.meta(GroupId(9)).unwrap().as_deref(), Some(b"seed of 9".as_slice()));
    assert_eq!(store.meta(GROUP).unwrap(), None);
    store.remove(GroupId(9), 4).unwrap();
    let check = |store: &LogStore| {
        assert_eq!(store.groups().unwrap(), [0, u64::MAX].map(GroupId));
        assert_eq!(store.load(GroupId(9)).unwrap(), None);
        assert_eq!(store.meta(GroupId(9)).unwrap(), None);
        assert_eq!(store.entry(GroupId(9), 1).unwrap(), None);
        assert_eq!(store.load(GROUP).unwrap().unwrap().last, 1);
    };
    check(&store);
    let image = crash_image(dir.path());
    check(&open(image.path()));
    drop(store);
    let store = open(dir.path());
    check(&store);
    // A replica that comes back begins anew, wherever its log begins.
    store.write(&[append(GroupId(9), entries(100..102, 4))], true).unwrap();
    drop(store);
    assert_eq!(open(dir.path()).entries(GroupId(9), 100, 102, None).unwrap(), entries(100..102, 4));
}

#[test]
fn indices_terms_and_groups_may_be_as_wide_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (group, start) = (GroupId(u64::MAX), u64::MAX - 10);
    let written = entries(start..start + 5, u64::MAX);
    let state = hard_state(u64::MAX, u64::MAX, start);
    let write = GroupWrite { hard_state: Some(state.clone()), ..append(group, written.clone()) };
    store.write(&[write], true).unwrap();
    drop(store);
    let store = open(dir.path());
    let loaded = Loaded { hard_state: state, first: start, last: start + 4, ..Loaded::default() };
    assert_eq!(store.load(group).unwrap(), Some(loaded));
    assert_eq!(store.entries(group, start, start + 5, None).unwrap(), written);
    let last = vec![entry(u64::MAX, 1, "")];
    store.write(&[append(group, entries(start + 5..u64::MAX, 1))], true).unwrap();
    assert!(matches!(store.write(&[append(group, last)], true), Err(Error::Misplaced { .. })));
}

#[test]
fn stored_bytes_are_pinned() {
    let golden_entry = b"\x10\x05\x18\xac\x02\x22\x06\x00canal\x32\x01\xff";
    let golden_state = b"\x08\x05\x10\x03\x18\xac\x02";
    let mut stored = entry(300, 5, b"\x00canal");
    stored.context = vec![0xff].into();
    assert_eq!(stored.write_to_bytes().unwrap(), golden_entry);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let state = hard_state(5, 3, 300);
    let write = GroupWrite { hard_state: Some(state), ..append(GROUP, vec![stored.clone()]) };
    store.write(&[write], true).unwrap();
    drop(store);
    let bytes = fs::read(&files(dir.path())[0]).unwrap();
    assert!(bytes.starts_with(b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5"), "{:?}", &bytes[..64]);
    let at = position(&bytes, golden_entry);
    assert!(position(&bytes, golden_state) > at);
    assert_eq!(open(dir.path()).entry(GROUP, 300).unwrap(), Some(stored));
}

#[test]
fn readers_go_on_beside_writes_overwrites_and_purges() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path(), Options { file_size: 32 << 10, purge_above: 64 << 10 }).unwrap();
    let fixed = entries(1..40, 1);
    store.write(&[append(GROUP, fixed.clone())], false).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for _ in 0..3 {
            readers.push(scope.spawn(|| {
                let mut reads = 0;
                while !done.load(Ordering::SeqCst) || reads == 0 {
                    let last = store.load(GROUP).unwrap().unwrap().last;
                    assert_eq!(store.entries(GROUP, 1, 40, None).unwrap(), fixed);
                    assert!(last >= 40 - 1);
                    if let Some(entry) = store.entry(GROUP, 45).unwrap() {
                        assert_eq!(entry.index, 45);
                    }
                    reads += 1;
                }
                reads
            }));
        }
        scope.spawn(|| {
            for term in 2..300 {
                let other = GroupWrite { hard_state: Some(hard_state(term, 1, 1)), ..append(GroupId(1), vec![]) };
                let replaced = (40..50).map(|index| entry(index, term, [term as u8; 200])).collect();
                store.write(&[append(GROUP, replaced), other], false).unwrap();
                store.purge().unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        assert!(readers.into_iter().all(|reader| reader.join().unwrap() > 0));
    });
    // 600 kB were written; the oldest files are gone, what was live in them is not.
    assert_ne!(files(dir.path())[0].file_name().unwrap(), "0000000000000001.raftlog");
    assert!(store.size_on_disk() < 200 << 10, "{}", store.size_on_disk());
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.entries(GROUP, 1, 40, None).unwrap(), fixed);
    assert_eq!(store.term(GROUP, 49).unwrap(), Some(299));
    assert_eq!(store.load(GroupId(1)).unwrap().unwrap().hard_state, hard_state(299, 1, 1));
}
