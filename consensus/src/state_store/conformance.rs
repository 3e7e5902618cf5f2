//! The suite that every store passes: what [`StateStore`] promises, checked alike for each backend and for the rows in
//! memory.
//!
//! The crash tests run a writer in a process of its own (this test binary, asked for [`killed_writer`]), kill it
//! with SIGKILL, and compare the reopened state with the model of a whole number of batches.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};

use super::*;

const CACHE: u64 = 8 << 20;

type Rows = BTreeMap<Bytes, Bytes>;
type Store = Arc<dyn StateStore>;

fn batch(changes: &[(&[u8], Option<&[u8]>)]) -> WriteBatch {
    let bytes = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
    WriteBatch { ops: changes.iter().map(|(key, value)| (bytes(key), value.map(bytes))).collect() }
}

fn all(store: &dyn StateStore) -> Rows {
    store.scan(b"", b"", usize::MAX, false).unwrap().into_iter().collect()
}

/// What a scan should return.
fn expected(rows: &Rows, start: &[u8], end: &[u8], limit: usize, reverse: bool) -> Vec<(Bytes, Bytes)> {
    let inside = rows.iter().filter(|(key, _)| start <= &key[..] && (end.is_empty() || &key[..] < end));
    let mut inside: Vec<_> = inside.map(|(key, value)| (key.clone(), value.clone())).collect();
    if reverse {
        inside.reverse();
    }
    inside.truncate(limit);
    inside
}

fn apply(rows: &mut Rows, batch: &WriteBatch) {
    for (key, value) in &batch.ops {
        match value {
            Some(value) => rows.insert(key.clone(), value.clone()),
            None => rows.remove(key),
        };
    }
}

fn rows_come_in_the_order_of_their_bytes(store: &dyn StateStore) {
    let keys: [&[u8]; 9] = [b"b", b"a\xff", b"\x00", b"ab", b"\xff\xff", b"a", b"\x00\x00", b"a\x00", b"\xff"];
    for key in keys {
        store.write(&batch(&[(key, Some(b"1"))])).unwrap();
    }
    let got: Vec<_> = store.scan(b"", b"", 100, false).unwrap().into_iter().map(|(key, _)| key).collect();
    let sorted: [&[u8]; 9] = [b"\x00", b"\x00\x00", b"a", b"a\x00", b"ab", b"a\xff", b"b", b"\xff", b"\xff\xff"];
    assert_eq!(got, sorted);
}

fn scans_keep_their_bounds_and_limits(store: &dyn StateStore) {
    let keys: [&[u8]; 6] = [b"\x00", b"a", b"a\x00", b"ab", b"b", b"\xff\xff"];
    let changes: Vec<_> = keys.iter().map(|key| (*key, Some(*key))).collect();
    store.write(&batch(&changes)).unwrap();
    let rows = all(store);
    let bounds: [&[u8]; 11] =
        [b"", b"\x00", b"\x00\x00", b"A", b"a", b"a\x00", b"aa", b"ab", b"b", b"\xff\xff", b"\xff\xff\xff"];
    for (start, end) in bounds.iter().flat_map(|start| bounds.iter().map(move |end| (*start, *end))) {
        for (limit, reverse) in [0, 1, 2, 5, 6, 7, usize::MAX].into_iter().flat_map(|n| [(n, false), (n, true)]) {
            let got = store.scan(start, end, limit, reverse).unwrap();
            assert_eq!(got, expected(&rows, start, end, limit, reverse), "{start:?}..{end:?} {limit} {reverse}");
        }
    }
}

fn a_batch_sets_replaces_and_deletes(store: &dyn StateStore) {
    assert_eq!(store.get(b"a").unwrap(), None);
    store.write(&WriteBatch::default()).unwrap();
    store.write(&batch(&[(b"a", Some(b"1")), (b"b", Some(b"2")), (b"c", Some(b""))])).unwrap();
    assert_eq!(store.get(b"c").unwrap().as_deref(), Some(b"".as_slice()), "an empty value is a value");
    store.write(&batch(&[(b"a", Some(b"3")), (b"b", None), (b"d", None), (b"e", Some(b"5"))])).unwrap();
    let wanted = batch(&[(b"a", Some(b"3")), (b"c", Some(b"")), (b"e", Some(b"5"))]);
    let mut rows = Rows::new();
    apply(&mut rows, &wanted);
    assert_eq!(all(store), rows);
    assert_eq!(store.get(b"b").unwrap(), None);
    store.write(&batch(&[(b"b", Some(b"back"))])).unwrap();
    assert_eq!(store.get(b"b").unwrap().as_deref(), Some(b"back".as_slice()));
}

fn a_batch_with_a_key_out_of_bounds_is_refused_as_a_whole(store: &dyn StateStore) {
    let (longest, longer) = (vec![7; MAX_KEY], vec![7; MAX_KEY + 1]);
    for bad in [b"".as_slice(), &longer] {
        let error = store.write(&batch(&[(b"a", Some(b"1")), (bad, Some(b"1"))])).unwrap_err();
        assert!(error.to_string().contains("make it 1 to 4096"), "{error}");
        assert_eq!(all(store), Rows::new());
        assert_eq!(store.get(bad).unwrap(), None);
    }
    store.write(&batch(&[(&longest, Some(b"1"))])).unwrap();
    assert_eq!(store.get(&longest).unwrap().as_deref(), Some(b"1".as_slice()));
}

fn large_values_are_kept(store: &dyn StateStore) {
    let value = |n: u8, len| (0..len).map(|at: usize| n ^ (at / 251) as u8).collect::<Vec<u8>>();
    for round in 0..3 {
        for n in 0..20 {
            store.write(&batch(&[(&[n], Some(&value(n + round, 256 << 10)))])).unwrap();
        }
    }
    store.write(&batch(&[(b"largest", Some(&value(9, 3 << 20)))])).unwrap();
    for n in 0..20 {
        assert!(store.get(&[n]).unwrap().unwrap() == value(n + 2, 256 << 10));
    }
    assert!(store.scan(b"l", b"", 1, false).unwrap()[0].1 == value(9, 3 << 20));
}

fn frozen_rows_stay_as_they_were(store: &dyn StateStore) {
    store.write(&batch(&[(b"a", Some(b"1")), (b"g", Some(b"2")), (b"g\x00", Some(b"3")), (b"h", Some(b"4"))])).unwrap();
    let frozen = store.freeze(b"g").unwrap();
    let everything = store.freeze(b"").unwrap();
    let before = all(store);
    let under: Rows =
        before.iter().filter(|(key, _)| key.starts_with(b"g")).map(|(k, v)| (k.clone(), v.clone())).collect();
    // Far more than a memtable, so that tables are written and merged below the frozen rows.
    for round in 0..40_u8 {
        let large = vec![round; 256 << 10];
        let key = [b'g', round];
        store.write(&batch(&[(b"g", Some(&[round])), (b"g\x00", None), (&key, Some(&large)), (b"a", None)])).unwrap();
    }
    store.flush().unwrap();
    for (frozen, rows) in [(&frozen, &under), (&everything, &before)] {
        let bounds: [&[u8]; 7] = [b"", b"a", b"b", b"g", b"g\x00", b"g\xff", b"i"];
        for (start, end) in bounds.iter().flat_map(|start| bounds.iter().map(move |end| (*start, *end))) {
            for (limit, reverse) in [(1, false), (1, true), (9, false), (9, true)] {
                let got = frozen.scan(start, end, limit, reverse).unwrap();
                assert_eq!(got, expected(rows, start, end, limit, reverse), "{start:?}..{end:?} {limit} {reverse}");
            }
        }
        for key in [b"a".as_slice(), b"g", b"g\x00", b"g\x01", b"h"] {
            assert_eq!(frozen.get(key).unwrap(), rows.get(key).cloned(), "{key:?}");
        }
    }
    assert_eq!(store.get(b"g").unwrap().as_deref(), Some([39].as_slice()));
}

/// Rows that are frozen while batches are written are those of whole batches.
fn frozen_rows_are_whole_batches(store: &dyn StateStore) {
    const KEYS: u8 = 40;
    let numbered = |n: u64| {
        let row = |key: u8| (Bytes::from(vec![b'k', key]), Some(Bytes::copy_from_slice(&n.to_be_bytes())));
        WriteBatch { ops: (0..KEYS).map(row).collect() }
    };
    store.write(&numbered(0)).unwrap();
    let (done, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 1_u64.. {
                store.write(&numbered(n)).unwrap();
                written.store(n, Ordering::SeqCst);
                if done.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        while written.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        // few, because the versions that are written meanwhile make each slower than the one before
        let seen: Vec<_> = (0..12)
            .map(|_| {
                let rows = store.freeze(b"k")?.scan(b"k", b"l", 1000, false)?;
                Ok::<_, KvError>(rows.into_iter().map(|(_, value)| value).collect::<Vec<_>>())
            })
            .collect();
        done.store(true, Ordering::SeqCst);
        writer.join().unwrap();
        let seen: Vec<_> = seen.into_iter().map(Result::unwrap).collect();
        for values in &seen {
            assert_eq!(*values, vec![values[0].clone(); usize::from(KEYS)]);
        }
        assert!(seen.is_sorted(), "the rows went back in time");
    });
}

/// Readers see the rows of a batch all at once, in a scan as in gets one after the other.
fn readers_see_whole_batches(store: &dyn StateStore) {
    const KEYS: u8 = 40;
    let numbered = |n: u64| {
        let row = |key: u8| (Bytes::from(vec![b'k', key]), Some(Bytes::copy_from_slice(&n.to_be_bytes())));
        WriteBatch { ops: (0..KEYS).map(row).collect() }
    };
    let number = |value: &[u8]| u64::from_be_bytes(value.try_into().unwrap());
    store.write(&numbered(0)).unwrap();
    let (done, scans) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for reverse in [false, true] {
            let (done, scans) = (&done, &scans);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let rows = store.scan(b"k", b"l", 1000, reverse).unwrap();
                    let numbers: Vec<_> = rows.iter().map(|(_, value)| number(value)).collect();
                    assert_eq!(numbers, vec![numbers[0]; usize::from(KEYS)]);
                    scans.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                // The first row is the first that a half applied batch has; the last must not be older.
                let first = number(&store.get(&[b'k', 0]).unwrap().unwrap());
                assert!(number(&store.get(&[b'k', KEYS - 1]).unwrap().unwrap()) >= first);
            }
        });
        let mut n = 0;
        while n < 500 || scans.load(Ordering::SeqCst) < 20 {
            n += 1;
            store.write(&numbered(n)).unwrap();
            assert_eq!(number(&store.get(&[b'k', KEYS - 1]).unwrap().unwrap()), n, "a writer reads its write");
        }
        done.store(true, Ordering::SeqCst);
    });
}

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<(Vec<u8>, Option<u16>)>),
    Scan(Vec<u8>, Vec<u8>, usize, bool),
    Flush,
    Reopen,
}

/// A model and a store stay the same through any steps.
fn behaves_as_a_map(open: &dyn Fn(&Path) -> Store, keeps: bool) {
    let key = || proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(0xff), any::<u8>()], 1..4);
    let write = proptest::collection::vec((key(), any::<Option<u16>>()), 0..20).prop_map(Step::Write);
    let scan = (key(), key(), 0_usize..30, any::<bool>()).prop_map(|(a, b, n, back)| Step::Scan(a, b, n, back));
    let step = prop_oneof![6 => write, 4 => scan, 1 => Just(Step::Flush), 1 => Just(Step::Reopen)];
    let steps = proptest::collection::vec(step, 1..40);
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&steps, |steps| {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let mut rows = Rows::new();
        for step in steps {
            match step {
                Step::Write(changes) => {
                    let value = |n: u16| Bytes::from(n.to_string().repeat(usize::from(n % 50)));
                    let ops = changes.into_iter().map(|(key, n)| (key.into(), n.map(value))).collect();
                    let batch = WriteBatch { ops };
                    store.write(&batch).unwrap();
                    apply(&mut rows, &batch);
                }
                Step::Scan(start, end, limit, back) => {
                    let wanted = expected(&rows, &start, &end, limit, back);
                    assert_eq!(store.scan(&start, &end, limit, back).unwrap(), wanted);
                }
                Step::Flush => store.flush().unwrap(),
                Step::Reopen if keeps => {
                    store.flush().unwrap();
                    drop(store);
                    store = open(dir.path());
                }
                Step::Reopen => {}
            }
        }
        assert_eq!(all(&*store), rows);
        Ok(())
    });
    ran.unwrap();
}

fn what_was_flushed_is_there_again(open: &dyn Fn(&Path) -> Store) {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = Rows::new();
    for round in 0..4 {
        let store = open(dir.path());
        assert_eq!(all(&*store), rows);
        for n in 0..200 {
            let n = n + round * 100;
            let batch = model_batch(n);
            store.write(&batch).unwrap();
            apply(&mut rows, &batch);
        }
        store.flush().unwrap();
        assert!(store.size_on_disk() > 0);
    }
    assert_eq!(all(&*open(dir.path())), rows);
}

/// Keys that the batches of the crash tests go round in.
const SLOTS: u64 = 50;

/// Batch `n` of the crash tests: replaces a slot of rows, adds a row and deletes an older one, counts itself, and at
/// times is large.
fn model_batch(n: u64) -> WriteBatch {
    let mut ops = BTreeMap::new();
    for row in 0..16 {
        let key = format!("slot/{:02}/{row:02}", n % SLOTS);
        ops.insert(key.into(), Some(format!("{n}-").repeat(20).into()));
    }
    ops.insert(format!("new/{n:012}").into(), Some("".into()));
    if let Some(old) = n.checked_sub(3) {
        ops.insert(format!("new/{old:012}").into(), None);
    }
    if n.is_multiple_of(97) {
        ops.insert("large".into(), Some(format!("{n:08}").repeat(32 << 10).into()));
    }
    ops.insert("count".into(), Some(n.to_string().into()));
    WriteBatch { ops }
}

fn count(store: &dyn StateStore) -> Option<u64> {
    store.get(b"count").unwrap().map(|n| std::str::from_utf8(&n).unwrap().parse().unwrap())
}

/// The last batch, if the state is that of all batches up to it.
fn whole_batches(store: &dyn StateStore) -> Option<u64> {
    let last = count(store);
    let mut rows = Rows::new();
    // No older batch leaves a trace: each slot and the large row were written since.
    let from = last.map_or(0, |last| last.saturating_sub(200));
    (from..last.map_or(0, |last| last + 1)).for_each(|n| apply(&mut rows, &model_batch(n)));
    let found = all(store);
    let differs = found.iter().chain(&rows).find(|(key, _)| found.get(*key) != rows.get(*key));
    assert_eq!(differs.map(|(key, _)| key), None, "batch {last:?} is the last, but the state is not its");
    last
}

const CHILD: &str = "CANAL_STATE_STORE_CRASH";

/// Not a test: the process that the crash tests kill.
#[test]
#[ignore = "the crash tests start it"]
fn killed_writer() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let (backend, dir) = task.split_once(':').unwrap();
    let store = open(Path::new(dir), backend.parse().unwrap(), CACHE).unwrap();
    let first = count(&*store).map_or(0, |last| last + 1);
    for n in first.. {
        store.write(&model_batch(n)).unwrap();
        if n.is_multiple_of(32) {
            println!("\nwrote {n}");
        }
        if n.is_multiple_of(150) {
            store.flush().unwrap();
            println!("\nflushed {n}");
        }
    }
}

fn a_killed_writer_leaves_whole_batches_and_all_flushed_ones(backend: Backend, loses_unflushed: bool) {
    let dir = tempfile::tempdir().unwrap();
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut last = None;
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([&format!("{module}::killed_writer"), "--exact", "--ignored", "--nocapture"])
            .env(CHILD, format!("{}:{}", backend.name(), dir.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut wrote, mut flushed) = (None, last);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Not at the same place each time, and not right after a flush.
        let until = last.unwrap_or(0) + 250 + round * 90;
        for line in lines.by_ref().map(Result::unwrap) {
            match line.split_once(' ') {
                Some(("wrote", n)) => wrote = Some(n.parse::<u64>().unwrap()),
                Some(("flushed", n)) => flushed = Some(n.parse::<u64>().unwrap()),
                _ => {}
            }
            if wrote > Some(until) {
                break;
            }
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success() && status.code().is_none(), "the writer ended by itself: {status}");
        assert!(wrote > Some(until));
        let store = open(dir.path(), backend, CACHE).unwrap();
        let found = whole_batches(&*store);
        assert!(found >= flushed, "batch {flushed:?} was flushed, but {found:?} is the last");
        assert!(loses_unflushed || found >= wrote, "batch {wrote:?} was written, but {found:?} is the last");
        last = found;
    }
    assert!(last > Some(1000));
}

fn a_directory_belongs_to_one_backend(backend: Backend) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("state");
    let store = open(&dir, backend, CACHE).unwrap();
    assert_eq!(store.name(), backend.name());
    assert_eq!(fs::read_to_string(dir.join("BACKEND")).unwrap(), format!("{}\n", backend.name()));
    let error = open(&dir, backend, CACHE).err().unwrap();
    assert!(matches!(error, Error::Open { .. }), "a second opening while it is open: {error}");
    drop(store);
    for other in Backend::ALL.into_iter().filter(|other| *other != backend) {
        let error = open(&dir, other, CACHE).err().unwrap();
        let text = format!("was written by \"{}\", not by {}; configure that backend", backend.name(), other.name());
        assert!(error.to_string().contains(&text), "{error}");
    }
    // a name that nobody has written is damage, and what lies beside it says what it was
    for damaged in ["", "fjalm\n", "\u{0}"] {
        fs::write(dir.join("BACKEND"), damaged).unwrap();
        drop(open(&dir, backend, CACHE).unwrap());
        assert_eq!(fs::read_to_string(dir.join("BACKEND")).unwrap(), format!("{}\n", backend.name()));
    }
    fs::write(dir.join("BACKEND"), "fjalm\n").unwrap();
    let other = Backend::ALL.into_iter().find(|other| *other != backend).unwrap();
    assert!(matches!(open(&dir, other, CACHE).err().unwrap(), Error::OtherBackend { .. }));
    fs::remove_file(dir.join("BACKEND")).unwrap();
    assert!(matches!(open(&dir, backend, CACHE).err().unwrap(), Error::Foreign { .. }));

    // A crash while the directory was claimed.
    let dir = root.path().join("claimed");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("BACKEND.new"), "sl").unwrap();
    open(&dir, backend, CACHE).unwrap();
}

/// One test a promise and store.
macro_rules! suite {
    ($store:ident, $open:expr, keeps: $keeps:expr, $($check:ident),*) => {
        mod $store {
            use super::*;

            $(#[test]
            fn $check() {
                let dir = tempfile::tempdir().unwrap();
                let open: &dyn Fn(&Path) -> Store = &$open;
                super::$check(&*open(dir.path()));
            })*

            #[test]
            fn behaves_as_a_map() {
                super::behaves_as_a_map(&$open, $keeps);
            }
        }
    };
    ($store:ident, $open:expr, keeps: $keeps:expr) => {
        suite!(
            $store,
            $open,
            keeps: $keeps,
            rows_come_in_the_order_of_their_bytes,
            scans_keep_their_bounds_and_limits,
            a_batch_sets_replaces_and_deletes,
            a_batch_with_a_key_out_of_bounds_is_refused_as_a_whole,
            large_values_are_kept,
            readers_see_whole_batches,
            frozen_rows_stay_as_they_were,
            frozen_rows_are_whole_batches
        );
    };
    ($store:ident, $durable:ident, $backend:expr, loses_unflushed: $loses:expr) => {
        suite!($store, |dir: &Path| open(dir, $backend, CACHE).unwrap(), keeps: true);

        mod $durable {
            use super::*;

            #[test]
            fn what_was_flushed_is_there_again() {
                super::what_was_flushed_is_there_again(&|dir: &Path| open(dir, $backend, CACHE).unwrap());
            }

            #[test]
            fn a_killed_writer_leaves_whole_batches_and_all_flushed_ones() {
                super::a_killed_writer_leaves_whole_batches_and_all_flushed_ones($backend, $loses);
            }

            #[test]
            fn a_directory_belongs_to_one_backend() {
                super::a_directory_belongs_to_one_backend($backend);
            }
        }
    };
}

suite!(memory, |_: &Path| Arc::new(MemoryKv::default()), keeps: false);
suite!(sled, sled_on_disk, Backend::Sled, loses_unflushed: true);
suite!(fjall, fjall_on_disk, Backend::Fjall, loses_unflushed: false);

#[test]
fn backends_have_names() {
    for backend in Backend::ALL {
        assert_eq!(backend.name().parse(), Ok(backend));
    }
    assert!("rocksdb".parse::<Backend>().unwrap_err().contains("use sled or fjall"));
}
