#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use canal_proto::log::{Kind, StateOp, StateWrite, Trim};

use super::*;
use crate::core::keys::Locals;
use crate::state_store::Backend;
use crate::view::tests::{Bench, GROUP, TOPICS};

/// The rows that are the same at all replicas.
fn common(kv: &dyn StateStore) -> BTreeMap<Bytes, Bytes> {
    let locals = Locals::load(kv, GROUP).unwrap();
    let prefix = GROUP.0.to_be_bytes();
    let rows = kv.scan(&prefix, &end_of(&prefix), usize::MAX, false).unwrap();
    rows.into_iter().filter(|(key, _)| !locals.is_local(key)).collect()
}

/// Hands a snapshot to another replica, which has other rows already.
fn hand_over(from: &Bench, backend: Backend) -> (Bench, Manifest) {
    let frozen = from.kv.freeze(&GROUP.0.to_be_bytes()).unwrap();
    let manifest = write(GROUP, frozen.as_ref(), &from.log, &from.files).unwrap();
    let mut to = Bench::empty(backend);
    to.index = from.index;
    to.published = from.published.clone();
    let foreign = Keys(GroupId(GROUP.0 + 1)).one(Table::Applied);
    let before = Keys(GroupId(GROUP.0 - 1)).state("b", "k");
    let mut ops = BTreeMap::from([(foreign.clone(), Some(Bytes::new())), (before.clone(), Some(Bytes::new()))]);
    for n in 0..1000_u64 {
        ops.insert(Keys(GROUP).topic(Table::Inline, TOPICS[0], n), Some(Bytes::from_static(b"old")));
    }
    to.kv.write(&WriteBatch { ops }).unwrap();
    assert!(
        matches!(install(GROUP, &manifest, &to.files, to.kv.as_ref()), Err(Error::Files(_))),
        "nothing is here yet"
    );
    assert_eq!(to.kv.scan(&[], &[], usize::MAX, false).unwrap().len(), 1002, "and nothing was removed");
    for piece in manifest.rows.iter().chain(&manifest.segments) {
        let hash = ContentHash::from_slice(&piece.hash).unwrap();
        let mut partial = to.files.receive(piece).unwrap();
        partial.write(&from.files.read(&hash, 0, usize::MAX).unwrap().unwrap()).unwrap();
        partial.finish().unwrap();
    }
    // twice, as after a crash
    for _ in 0..2 {
        install(GROUP, &manifest, &to.files, to.kv.as_ref()).unwrap();
    }
    assert_eq!(common(to.kv.as_ref()), common(from.kv.as_ref()));
    for other in [foreign, before] {
        assert!(to.kv.get(&other).unwrap().is_some(), "another group's row");
    }
    (to, manifest)
}

fn a_snapshot_has_all_rows_and_events(backend: Backend, other: Backend) {
    let mut bench = Bench::new(backend);
    for n in 0..20 {
        bench.publish([&[n, 100], &[1000]]);
        let op = StateOp { key: format!("k{n}"), value: Some(vec![n as u8; 200 << 10].into()) };
        bench.command(Kind::StateWrite(StateWrite { bucket: "b".to_owned(), ops: vec![op] }));
    }
    bench.seal(20);
    bench.compact(10);
    bench.command(Kind::Trim(Trim { topic: TOPICS[0].0, before: 3 }));
    bench.publish([&[700_000, 5], &[]]);
    bench.publish([&[700_000, 5], &[900_000]]);
    bench.reads_all([3, 0]);

    let (mut to, manifest) = hand_over(&bench, other);
    // 4 MiB of state and 2 of events that are not in segments
    assert!((5..=9).contains(&manifest.rows.len()), "{manifest:?}");
    assert!(manifest.rows.iter().all(|piece| piece.size < 3 << 20));
    assert_eq!(manifest.segments.len(), 2);
    to.reads_all([3, 0]);

    // the same rows make the same pieces, here and there
    let again = |bench: &Bench| {
        let frozen = bench.kv.freeze(&GROUP.0.to_be_bytes()).unwrap();
        write(GROUP, frozen.as_ref(), &bench.log, &bench.files).unwrap()
    };
    assert_eq!(again(&bench), manifest);
    assert_eq!(again(&to), manifest, "the events that came as rows are handed on");

    // life goes on from there, and what came as rows is sealed like anything else
    let last = to.index;
    let compact = crate::core::log::Compacted { index: last, term: 1, ..crate::core::log::Compacted::default() };
    let cut =
        crate::log_store::GroupWrite { group: GROUP, compact: Some(compact), replace: true, ..Default::default() };
    to.log.write(&[cut], true).unwrap();
    for bench in [&mut bench, &mut to] {
        bench.publish([&[1, 2], &[3]]);
        bench.seal(last + 1);
        bench.compact(last + 1);
        bench.reads_all([3, 0]);
    }
    assert_eq!(to.view().all_segments().unwrap(), bench.view().all_segments().unwrap());
    assert_eq!(common(to.kv.as_ref()), common(bench.kv.as_ref()));
    let inline = Keys(GROUP).one(Table::Inline);
    assert!(to.kv.scan(&inline, &end_of(&inline), 1, false).unwrap().is_empty(), "no longer needed");
}

#[test]
fn a_snapshot_has_all_rows_and_events_in_fjall() {
    a_snapshot_has_all_rows_and_events(Backend::Fjall, Backend::Fjall);
}

#[test]
fn a_snapshot_has_all_rows_and_events_from_fjall_to_sled() {
    a_snapshot_has_all_rows_and_events(Backend::Fjall, Backend::Sled);
}

#[test]
fn a_snapshot_has_all_rows_and_events_from_sled_to_fjall() {
    a_snapshot_has_all_rows_and_events(Backend::Sled, Backend::Fjall);
}

#[test]
fn a_snapshot_is_of_when_the_rows_were_frozen() {
    let mut bench = Bench::new(Backend::Fjall);
    bench.publish([&[1, 2], &[3]]);
    let frozen = bench.kv.freeze(&GROUP.0.to_be_bytes()).unwrap();
    let before = common(bench.kv.as_ref());
    bench.publish([&[4], &[5]]);
    bench.seal(2);
    let manifest = write(GROUP, frozen.as_ref(), &bench.log, &bench.files).unwrap();
    assert_eq!(manifest.segments, []);
    let to = Bench::empty(Backend::Fjall);
    for piece in &manifest.rows {
        let hash = ContentHash::from_slice(&piece.hash).unwrap();
        to.files.put(&bench.files.whole(&hash).unwrap().unwrap()).unwrap();
    }
    install(GROUP, &manifest, &to.files, to.kv.as_ref()).unwrap();
    assert_eq!(common(to.kv.as_ref()), before);
    assert_eq!(to.view().events(TOPICS[0], 0, 10, 1000).unwrap(), [bench.stored(0, 0), bench.stored(0, 1)]);
}

#[test]
fn a_piece_that_is_damaged_or_no_piece_is_refused() {
    let mut bench = Bench::new(Backend::Fjall);
    bench.publish([&[1, 2], &[3]]);
    let (to, manifest) = hand_over(&bench, Backend::Fjall);
    let hash = ContentHash::from_slice(&manifest.rows[0].hash).unwrap();
    std::fs::write(to.dir.path().join("files").join(hash.to_string()), "x").unwrap();
    let refused = install(GROUP, &manifest, &to.files, to.kv.as_ref());
    assert!(matches!(refused, Err(Error::Files(files::Error::Damaged { .. }))), "{refused:?}");
    let rows = vec![to.files.put(b"no rows").unwrap()];
    let refused = install(GROUP, &Manifest { rows, ..Manifest::default() }, &to.files, to.kv.as_ref());
    assert!(matches!(refused, Err(Error::Unusable(..))), "{refused:?}");
}

#[test]
fn a_segment_that_is_not_here_is_said() {
    let mut bench = Bench::new(Backend::Fjall);
    bench.publish([&[1, 2], &[3]]);
    bench.seal(1);
    let segment = bench.view().segments(TOPICS[1]).unwrap().remove(0);
    let hash = ContentHash::from_slice(&segment.hash).unwrap();
    bench.files.remove(&hash).unwrap();
    let frozen = bench.kv.freeze(&GROUP.0.to_be_bytes()).unwrap();
    let refused = write(GROUP, frozen.as_ref(), &bench.log, &bench.files);
    assert!(matches!(refused, Err(Error::Files(files::Error::Missing(missing))) if missing == hash), "{refused:?}");
}

#[test]
fn a_piece_is_pinned_to_the_byte() {
    let bench = Bench::new(Backend::Fjall);
    let manifest = write(GROUP, bench.kv.as_ref(), &bench.log, &bench.files).unwrap();
    let hash = ContentHash::from_slice(&manifest.rows[0].hash).unwrap();
    let want = b"\x0a\x0b\x0a\x09t\0\0\0\0\0\0\0\x03\x0a\x0b\x0a\x09t\0\0\0\0\0\0\0\x04";
    assert_eq!(bench.files.whole(&hash).unwrap().unwrap(), want.as_slice());
    let piece = Piece { hash: hash.to_vec().into(), size: 26 };
    assert_eq!(manifest, Manifest { rows: vec![piece.clone()], ..Manifest::default() });
    let wanted = [b"\x0a\x24\x0a\x20".as_slice(), &hash.0, b"\x10\x1a"].concat();
    assert_eq!(manifest.encode_to_vec(), wanted);
}
