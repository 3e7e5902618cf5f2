#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use canal_proto::TopicId;
use canal_proto::event::{Event, Stored};
use canal_proto::log::Segment;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use prost::Message as _;
use tempfile::TempDir;

use super::*;
use crate::log_store::faults;

const TOPIC: TopicId = TopicId(7);

fn files() -> (TempDir, Files) {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::open(&dir.path().join("files")).unwrap();
    (dir, files)
}

fn names(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path().join("files")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn hash_of(piece: &Piece) -> ContentHash {
    ContentHash::from_slice(&piece.hash).unwrap()
}

#[test]
fn what_is_put_is_there_by_its_hash_until_it_is_removed() {
    let (dir, files) = files();
    let piece = files.put(b"content").unwrap();
    let hash = ContentHash::of(b"content");
    assert_eq!((hash_of(&piece), piece.size), (hash, 7));
    assert_eq!(files.put(b"content").unwrap(), piece);
    assert_eq!(names(&dir), [hash.to_string()]);
    for files in [files.clone(), Files::open(&dir.path().join("files")).unwrap()] {
        assert!(files.contains(&hash));
        assert_eq!((files.list(), files.count_and_bytes()), (vec![(hash, 7)], (1, 7)));
        assert_eq!(files.whole(&hash).unwrap().unwrap(), "content");
        assert_eq!(files.read(&hash, 3, 2).unwrap().unwrap(), "te");
        assert_eq!(files.read(&hash, 3, 100).unwrap().unwrap(), "tent");
        assert_eq!(files.read(&hash, 7, 1).unwrap().unwrap(), "");
        assert_eq!(files.read(&hash, u64::MAX, usize::MAX).unwrap().unwrap(), "");
        files.check(&hash).unwrap();
    }
    files.remove(&hash).unwrap();
    files.remove(&hash).unwrap();
    assert!(!files.contains(&hash) && files.size(&hash).is_none() && names(&dir).is_empty());
    assert_eq!((files.read(&hash, 0, 1).unwrap(), files.whole(&hash).unwrap()), (None, None));
    assert!(matches!(files.check(&hash), Err(Error::Missing(missing)) if missing == hash));
}

#[test]
fn an_opening_removes_what_was_half_written_and_keeps_what_was_received() {
    let (dir, files) = files();
    let kept = hash_of(&files.put(b"kept").unwrap());
    let part = files.put(b"received").unwrap();
    files.remove(&hash_of(&part)).unwrap();
    let mut partial = files.receive(&part).unwrap();
    partial.write(b"rece").unwrap();
    drop(partial);
    fs::write(dir.path().join("files/0.new"), "half").unwrap();
    fs::write(dir.path().join("files/17.new"), "half").unwrap();
    drop(files);
    let files = Files::open(&dir.path().join("files")).unwrap();
    let mut left = [kept.to_string(), format!("{}.part", hash_of(&part))];
    left.sort();
    assert_eq!(names(&dir), left);
    assert_eq!(files.list(), [(kept, 4)]);
    assert_eq!(files.partials().unwrap(), [hash_of(&part)]);

    let mut partial = files.receive(&part).unwrap();
    assert_eq!(partial.next(), 4);
    partial.write(b"ived").unwrap();
    partial.finish().unwrap();
    assert_eq!(files.whole(&hash_of(&part)).unwrap().unwrap(), "received");
    assert_eq!(files.partials().unwrap(), []);
}

#[test]
fn a_file_is_received_by_one_at_a_time_and_counts_when_it_is_whole() {
    let (dir, files) = files();
    let piece = Piece { hash: ContentHash::of(b"received").to_vec().into(), size: 8 };
    let hash = hash_of(&piece);
    let mut partial = files.receive(&piece).unwrap();
    assert!(matches!(files.receive(&piece), Err(Error::Busy(busy)) if busy == hash));
    partial.write(b"rec").unwrap();
    files.remove(&hash).unwrap();
    assert!(matches!(partial.write(b"eived!"), Err(Error::Unfit(_))), "more than the file has");
    assert_eq!(partial.next(), 3);
    assert!(!files.contains(&hash));
    assert!(matches!(partial.finish(), Err(Error::Unfit(_))), "less than the file has");

    let mut partial = files.receive(&piece).unwrap();
    assert_eq!(partial.next(), 3);
    partial.write(b"eived").unwrap();
    partial.finish().unwrap();
    let again = files.receive(&piece).unwrap();
    assert_eq!(again.next(), 8);
    again.finish().unwrap();
    files.receive(&piece).unwrap().finish().unwrap();
    assert_eq!(names(&dir), [hash.to_string()]);
    let short = Piece { hash: vec![1; 31].into(), size: 8 };
    assert!(matches!(files.receive(&short), Err(Error::Unfit(_))));
}

#[test]
fn wrong_bytes_are_removed_and_received_anew() {
    let (dir, files) = files();
    let piece = Piece { hash: ContentHash::of(b"received").to_vec().into(), size: 8 };
    let part = dir.path().join(format!("files/{}.part", hash_of(&piece)));
    // What a crash may leave: unsynced pages as zeros, or more than was ever written.
    for (left, from) in [(b"\0\0\0\0".as_slice(), 4), (b"received and more", 0)] {
        fs::write(&part, left).unwrap();
        let mut partial = files.receive(&piece).unwrap();
        assert_eq!(partial.next(), from);
        partial.write(&b"received"[usize::try_from(from).unwrap()..]).unwrap();
        if from == 0 {
            partial.finish().unwrap();
            assert!(files.contains(&hash_of(&piece)));
        } else {
            assert!(matches!(partial.finish(), Err(Error::Mismatch(_))));
            assert!(names(&dir).is_empty() && !files.contains(&hash_of(&piece)));
            assert_eq!(files.receive(&piece).unwrap().next(), 0);
        }
    }
}

#[test]
fn damage_is_found_and_told() {
    let (dir, files) = files();
    let hash = hash_of(&files.put(b"content").unwrap());
    fs::write(dir.path().join("files").join(hash.to_string()), "CONTENT").unwrap();
    assert!(matches!(files.whole(&hash), Err(Error::Damaged { .. })));
    assert_eq!(files.take_damaged(), [hash]);
    assert_eq!(files.take_damaged(), []);
    assert!(matches!(files.check(&hash), Err(Error::Damaged { .. })));
    files.remove(&hash).unwrap();
    assert_eq!(files.take_damaged(), []);
    files.put(b"content").unwrap();
    assert_eq!(files.whole(&hash).unwrap().unwrap(), "content");
}

#[test]
fn a_file_that_somebody_takes_away_is_damage_too() {
    let (dir, files) = files();
    let path = |hash: &ContentHash| dir.path().join("files").join(hash.to_string());
    let hash = hash_of(&files.put(b"content").unwrap());
    fs::remove_file(path(&hash)).unwrap();
    assert!(files.contains(&hash), "nobody has looked yet");
    assert_eq!(files.read(&hash, 0, 7).unwrap(), None);
    assert!(!files.contains(&hash));
    assert_eq!(files.take_damaged(), [hash]);
    files.put(b"content").unwrap();
    assert_eq!(files.whole(&hash).unwrap().unwrap(), "content");
    assert_eq!(files.found_and_repaired(), (1, 1));

    let removed = hash_of(&files.put(b"removed").unwrap());
    files.remove(&removed).unwrap();
    assert!(matches!(files.check(&removed), Err(Error::Missing(_))));
    assert_eq!(files.take_damaged(), [], "it was not wanted any more");
}

#[test]
fn a_sync_that_fails_is_the_last_one() {
    let (dir, files) = files();
    let kept = hash_of(&files.put(b"kept").unwrap());
    let piece = Piece { hash: ContentHash::of(b"received").to_vec().into(), size: 8 };
    let mut partial = files.receive(&piece).unwrap();
    partial.write(b"received").unwrap();
    let path = dir.path().join("files");
    faults::fail_syncs(&path, true);
    let failed = partial.finish().unwrap_err();
    assert!(matches!(failed, Error::Unsynced(_)) && failed.to_string().contains("restart the peer"), "{failed}");
    faults::forget(&path);
    // the disk works again: what it took to be written is not asked for a second time, and nothing else is believed
    assert_eq!(names(&dir), [kept.to_string()]);
    assert!(!files.contains(&hash_of(&piece)));
    assert!(matches!(files.receive(&piece), Err(Error::Unsynced(_))));
    assert!(matches!(files.put(b"new"), Err(Error::Unsynced(_))));
    assert!(matches!(files.trusted(), Err(Error::Unsynced(_))));
    assert_eq!(files.whole(&kept).unwrap().unwrap(), "kept");
    drop(files);
    let files = Files::open(&path).unwrap();
    let mut partial = files.receive(&piece).unwrap();
    assert_eq!(partial.next(), 0, "it is received from the beginning");
    partial.write(b"received").unwrap();
    partial.finish().unwrap();
}

fn stored(offset: u64, payload: impl Into<Bytes>) -> Stored {
    let event = Event { time_ms: 1000 + offset % 3, ..Event::new(payload) };
    Stored { offset, event, producer: Bytes::from_static(&[0xaa; 16]), sequence: offset + 1 }
}

fn write(files: &Files, events: &[Stored]) -> Segment {
    let mut writer = files.segment(TOPIC, events[0].offset).unwrap();
    events.iter().for_each(|stored| writer.push(stored).unwrap());
    assert_eq!(writer.next(), events[events.len() - 1].offset + 1);
    writer.finish().unwrap()
}

#[test]
fn a_segment_is_pinned_to_the_byte() {
    let (_dir, files) = files();
    let emitted = Stored { offset: 6, event: Event::new("y").with_key("k"), ..Stored::default() };
    let segment = write(&files, &[Stored { event: Event { time_ms: 9, ..Event::new("x") }, ..stored(5, "") }, emitted]);
    let hash = ContentHash::from_slice(&segment.hash).unwrap();
    let mut want = b"canalseg\x01\0\0\0\x07\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0".to_vec();
    // the block: offset, events, bytes, sum
    want.extend_from_slice(b"\x05\0\0\0\0\0\0\0\x02\0\0\0\x25\0\0\0");
    want.extend_from_slice(b"\x8a\x76\x82\xe3\x85\x8e\xff\x11");
    want.extend_from_slice(b"\x1b\x12\x05\x1a\x01x\x20\x09\x1a\x10");
    want.extend_from_slice(&[0xaa; 16]);
    want.extend_from_slice(b"\x20\x06");
    want.extend_from_slice(b"\x08\x12\x06\x0a\x01k\x1a\x01y");
    // the index
    want.extend_from_slice(b"\x05\0\0\0\0\0\0\0\x1c\0\0\0\0\0\0\0");
    // the trailer: place of the index, blocks, events, bytes of payload, latest time, sum
    want.extend_from_slice(b"\x59\0\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0");
    want.extend_from_slice(b"\x31\x8d\xe2\x0d\x57\x6b\x28\xf3");
    assert_eq!(files.whole(&hash).unwrap().unwrap(), want);
    let size = want.len() as u64;
    let hashed = hash.to_vec().into();
    let row = Segment { topic: 7, first: 5, count: 2, hash: hashed, size, ..Segment::default() };
    let wanted = Segment { payload: 2, last_ms: 9, ..row };
    assert_eq!(segment, wanted);
    assert_eq!(hash.to_string(), "40ef78aba5594380284675e92c0451e3e0b4c431835aad54fab6815b59ca3703");
}

fn events() -> impl Strategy<Value = Vec<Stored>> {
    let size = prop_oneof![20 => 0_usize..200, 3 => 0_usize..20_000, 1 => 30_000_usize..90_000, 1 => Just(0)];
    let event = (size, any::<u8>(), proptest::option::of("[a-z]{0,9}"), any::<bool>(), any::<u32>());
    let events = proptest::collection::vec(event, 1..150);
    (events, prop_oneof![Just(0_u64), 0..1000_u64, Just(u64::from(u32::MAX))]).prop_map(|(events, first)| {
        let stored = |((size, fill, key, emitted, time), offset): ((usize, u8, Option<String>, bool, u32), u64)| {
            let mut event = Event { time_ms: time.into(), ..Event::new(vec![fill; size]) };
            if let Some(key) = key {
                event = event.with_header("h", key.clone()).with_key(key);
            }
            let producer = if emitted { Bytes::new() } else { vec![fill; 16].into() };
            Stored { offset, event, producer, sequence: if emitted { 0 } else { time.into() } }
        };
        events.into_iter().zip(first..).map(stored).collect()
    })
}

/// What a reading should give.
fn expected(events: &[Stored], from: u64, max: usize, max_bytes: usize) -> Vec<Stored> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    for stored in events.iter().filter(|stored| stored.offset >= from).take(max) {
        bytes += stored.event.encoded_len();
        if bytes > max_bytes && !found.is_empty() {
            break;
        }
        found.push(stored.clone());
    }
    found
}

#[test]
fn any_events_come_back_from_any_place_and_make_the_same_bytes() {
    let readings = proptest::collection::vec((any::<u16>(), 0_usize..300, 0_usize..300_000), 1..20);
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&(events(), readings), |(events, readings)| {
        let ((_one, files), (dir, other)) = (self::files(), self::files());
        let segment = write(&files, &events);
        assert_eq!(write(&other, &events), segment);
        assert_eq!((segment.first, segment.count), (events[0].offset, events.len() as u64));
        assert_eq!(segment.payload, events.iter().map(|stored| stored.event.payload.len() as u64).sum::<u64>());
        assert_eq!(segment.last_ms, events.iter().map(|stored| stored.event.time_ms).max().unwrap());
        let reopened = Files::open(&dir.path().join("files")).unwrap();
        for files in [&files, &reopened] {
            files.check(&ContentHash::from_slice(&segment.hash).unwrap()).unwrap();
            assert_eq!(files.events(&segment, segment.first, usize::MAX, usize::MAX).unwrap(), events);
            for (from, max, max_bytes) in &readings {
                let from = segment.first + u64::from(*from) % (segment.count + 2);
                let wanted = expected(&events, from, *max, *max_bytes);
                assert_eq!(files.events(&segment, from, *max, *max_bytes).unwrap(), wanted);
            }
        }
        Ok(())
    });
    ran.unwrap();
}

/// Whatever one byte or the end of a file becomes, no other events are read than those that were written.
#[test]
fn no_torn_or_flipped_byte_survives() {
    let (dir, files) = files();
    let events: Vec<_> = (3..9).map(|n| stored(n, vec![n as u8; if n == 5 { 40 << 10 } else { 20 }])).collect();
    let segment = write(&files, &events);
    let hash = ContentHash::from_slice(&segment.hash).unwrap();
    let path = dir.path().join("files").join(hash.to_string());
    let whole = fs::read(&path).unwrap();
    let reads = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        // no index is in memory, as after a restart
        let files = Files::open(&dir.path().join("files")).unwrap();
        let mut damaged = false;
        for from in segment.first..segment.end() {
            match files.events(&segment, from, 1, usize::MAX) {
                Ok(found) => assert_eq!(found, [events[usize::try_from(from - 3).unwrap()].clone()]),
                Err(Error::Damaged { .. }) => damaged = true,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(files.take_damaged().contains(&hash), damaged);
        damaged
    };
    assert!(!reads(&whole));
    // every place but most of the large payload
    let places: Vec<_> =
        (0..300).chain((300..whole.len() - 500).step_by(1999)).chain(whole.len() - 500..whole.len()).collect();
    for at in places {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        assert!(reads(&bytes), "bit {} of byte {at}", at % 8);
        if at % 7 == 0 {
            assert!(reads(&whole[..at]), "cut at {at}");
            let zeros = [&whole[..at], &vec![0; whole.len() - at]].concat();
            assert!(reads(&zeros), "zeros from {at}");
        }
    }
    let longer = [whole.as_slice(), b"\0"].concat();
    assert!(reads(&longer));
    // damage below an index that is in memory already
    fs::write(&path, &whole).unwrap();
    let files = Files::open(&dir.path().join("files")).unwrap();
    files.events(&segment, 3, 1, 1).unwrap();
    fs::write(&path, &whole[..HALF]).unwrap();
    assert!(matches!(files.events(&segment, 8, 1, 1), Err(Error::Damaged { .. })));
}

const HALF: usize = 20 << 10;

#[test]
fn a_row_that_names_other_events_is_refused() {
    let (_dir, files) = files();
    let segment = write(&files, &[stored(3, "a"), stored(4, "b")]);
    let others = [
        Segment { topic: 8, ..segment.clone() },
        Segment { first: 2, ..segment.clone() },
        Segment { count: 1, ..segment.clone() },
        Segment { size: 1, ..segment.clone() },
    ];
    for other in others {
        assert!(matches!(files.events(&other, 3, 1, 1), Err(Error::Damaged { .. })), "{other:?}");
    }
    let piece =
        files.put(b"not a segment, but long enough to be one if it had the right bytes in the right places").unwrap();
    let other = Segment { hash: piece.hash.clone(), size: piece.size, ..segment.clone() };
    assert!(matches!(files.events(&other, 3, 1, 1), Err(Error::Damaged { reason: "it is not a segment", .. })));
    files.remove(&hash_of(&piece)).unwrap();
    assert!(matches!(files.events(&other, 3, 1, 1), Err(Error::Missing(_))));
}

#[test]
fn a_segment_has_consecutive_events_and_leaves_nothing_unfinished() {
    let (dir, files) = files();
    let mut writer = files.segment(TOPIC, 5).unwrap();
    assert!(matches!(writer.push(&stored(4, "a")), Err(Error::Unfit(_))));
    writer.push(&stored(5, "a")).unwrap();
    assert!(matches!(writer.push(&stored(7, "a")), Err(Error::Unfit(_))));
    assert!(matches!(writer.push(&stored(6, vec![0; 3 << 20])), Err(Error::Unfit(_))));
    assert_eq!(writer.next(), 6);
    assert_eq!(names(&dir).len(), 1);
    drop(writer);
    assert!(names(&dir).is_empty());
    assert!(matches!(files.segment(TOPIC, 5).unwrap().finish(), Err(Error::Unfit(_))));
    assert!(names(&dir).is_empty());
    let events = [stored(5, "a")];
    assert_eq!(write(&files, &events), write(&files, &events));
    assert_eq!(names(&dir).len(), 1);
}

/// Blocks are as small as said, so that one event costs no more than one block.
#[test]
fn blocks_are_bounded() {
    let (_dir, files) = files();
    let events: Vec<_> = (0..5000).map(|n| stored(n, vec![1; 100])).collect();
    let segment = write(&files, &events);
    files.events(&segment, 0, 1, 1).unwrap();
    let hash = ContentHash::from_slice(&segment.hash).unwrap();
    let index = files.shared.indexes.lock().get(&hash).unwrap();
    let bytes = usize::try_from(segment.size).unwrap();
    assert!((bytes / segment::BLOCK..=bytes / segment::BLOCK + 1).contains(&index.blocks.len()), "{index:?}");
    let places = index.blocks.iter().map(|(_, place)| *place).chain([index.behind]).collect::<Vec<_>>();
    assert!(places.windows(2).all(|pair| pair[1] - pair[0] < 2 * segment::BLOCK as u64));
}
