//! What a group's history is handed over in: segments, and the pieces of snapshots.

use canal_consensus::core::group::{Group, Install, Origin, Ticks};
use canal_consensus::core::keys::{Keys, Table, end_of};
use canal_consensus::core::kv::{Kv as _, MemoryKv};
use canal_consensus::core::log::Compacted;
use canal_consensus::core::rows::Applied;
use canal_consensus::dump;
use canal_consensus::files::Files;
use canal_proto::event::{Event, Stored};
use canal_proto::log::Segment;
use canal_proto::peer::{Manifest, Replica, Rows, Seed};
use canal_proto::{GroupId, TopicId};
use prost::Message as _;
use raft::eraftpb::HardState;

use super::bytes::Parts;
use super::replica::Log;
use super::wire::message;

/// The group of all snapshots of the corpus.
pub(super) const GROUP: GroupId = GroupId(3);
/// Events asked for at a time.
const MAX: usize = 256;
/// Bytes of them, about.
const MAX_BYTES: usize = 1 << 20;
/// Entries of a log that a replica begins with here, at most.
const MAX_LOG: u64 = 64;
/// Where a segment has its header's end, and how long its trailer and the sums in it are (`docs/format.md`).
const HEADER: usize = 28;
const TRAILER: usize = 44;
const SUM: usize = 8;

/// A segment. The first byte says how: 0, the bytes as they are; 1, with right checksums wherever they should be, as a
/// hostile peer would make it; else, a good one in which a bit is flipped.
pub fn segments(data: &[u8]) -> bool {
    let Ok(dir) = tempfile::tempdir() else { return false };
    let Ok(files) = Files::open(dir.path()) else { return false };
    let mut parts = Parts(data);
    match parts.byte() {
        0 => given(&files, parts.0),
        1 => given(&files, &summed(parts.0.to_vec())),
        _ => flipped(&files, parts),
    }
}

/// Reads a file as the segment that it says to be.
fn given(files: &Files, bytes: &[u8]) -> bool {
    let Ok(piece) = files.put(bytes) else { return false };
    let number = |at: usize| {
        let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.first_chunk::<8>());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    let trailer = bytes.len().saturating_sub(TRAILER);
    let segment = Segment {
        topic: number(12),
        first: number(20),
        count: number(trailer + 12),
        hash: piece.hash,
        size: piece.size,
        ..Segment::default()
    };
    let mut taken = false;
    for from in [segment.first, segment.first.saturating_add(1), segment.end().saturating_sub(1)] {
        let Ok(events) = files.events(&segment, from, MAX, MAX_BYTES) else { continue };
        assert!(events.len() <= MAX);
        let inside = |stored: &Stored| (segment.first..segment.end()).contains(&stored.offset);
        assert!(events.iter().all(inside), "an event outside of its segment");
        assert!(events.iter().zip(events.iter().skip(1)).all(|(a, b)| a.offset + 1 == b.offset), "a gap");
        taken |= !events.is_empty();
    }
    taken
}

/// Puts right checksums where an index says that blocks are, and into the trailer.
fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = |parts: &[&[u8]]| {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        let mut sum = [0; SUM];
        hasher.finalize_xof().fill(&mut sum);
        sum
    };
    let Some(trailer) = bytes.len().checked_sub(TRAILER) else { return bytes };
    let number = |bytes: &[u8], at: usize| {
        let found = bytes.get(at..at.saturating_add(8)).and_then(|bytes| bytes.first_chunk::<8>());
        usize::try_from(found.map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))).unwrap_or(usize::MAX)
    };
    let index = number(&bytes, trailer);
    if index > trailer {
        return bytes;
    }
    let mut places: Vec<usize> = (index..trailer).step_by(16).map(|at| number(&bytes, at + 8)).collect();
    places.push(index);
    for (place, end) in places.iter().zip(places.iter().skip(1)) {
        let Some(block) = bytes.get(*place..*end).filter(|block| block.len() >= 24) else { continue };
        let right = sum(&[block.get(..16).unwrap_or_default(), block.get(24..).unwrap_or_default()]);
        bytes.iter_mut().skip(place + 16).zip(right).for_each(|(to, from)| *to = from);
    }
    let part = |range: std::ops::Range<usize>| bytes.get(range).unwrap_or_default();
    let right = sum(&[part(0..HEADER.min(index)), part(index..trailer), part(trailer..bytes.len() - SUM)]);
    let at = bytes.len() - SUM;
    bytes.iter_mut().skip(at).zip(right).for_each(|(to, from)| *to = from);
    bytes
}

/// A segment with these events, and one in which a bit was flipped: nothing wrong is ever read.
fn flipped(files: &Files, mut parts: Parts<'_>) -> bool {
    let (topic, first, flip) = (TopicId(parts.number()), parts.number() >> 1, parts.number());
    let Ok(mut writer) = files.segment(topic, first) else { return false };
    let mut written = Vec::new();
    while let Some(part) = parts.part() {
        let event = Event::decode(part).unwrap_or_else(|_| Event::new(part.to_vec()));
        let stored = Stored { offset: first + written.len() as u64, event, ..Stored::default() };
        if writer.push(&stored).is_err() {
            return false;
        }
        written.push(stored);
    }
    let Ok(segment) = writer.finish() else { return false };
    assert_eq!((segment.first, segment.count), (first, written.len() as u64));
    let all = files.events(&segment, first, usize::MAX, usize::MAX);
    assert!(all.is_ok_and(|events| events == written), "a segment does not give back its events");
    let Ok(hash) = canal_proto::ContentHash::from_slice(&segment.hash) else { return false };
    let Ok(Some(whole)) = files.whole(&hash) else { return false };
    let mut damaged = whole.to_vec();
    let at = usize::try_from(flip).unwrap_or(0) % damaged.len();
    damaged.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (flip % 8));
    let Ok(piece) = files.put(&damaged) else { return false };
    let segment = Segment { hash: piece.hash, ..segment };
    for from in [first, segment.end() - 1] {
        if let Ok(events) = files.events(&segment, from, MAX, MAX_BYTES) {
            let right = events.iter().all(|stored| written.contains(stored));
            assert!(right && !events.is_empty(), "a flipped bit at {at} was not noticed");
        }
    }
    true
}

/// A piece of a snapshot's rows, and behind it a manifest: installed, and a replica begun with what it left. The input is
/// parts with their lengths: a manifest, an [`Install`], then any number of pieces.
pub fn snapshots(data: &[u8]) -> bool {
    let Ok(dir) = tempfile::tempdir() else { return false };
    let Ok(files) = Files::open(dir.path()) else { return false };
    let mut parts = Parts(data);
    let given = message::<Manifest>(parts.part().unwrap_or_default()).unwrap_or_default();
    let install = message::<Install>(parts.part().unwrap_or_default()).unwrap_or_default();
    let kv = MemoryKv::default();
    // one that names what is not here
    let lacking = given.rows.iter().any(|piece| piece.hash.len() != 32 || piece.size > 0);
    assert!(dump::install(GROUP, &given, &files, &kv).is_err() || !lacking);
    let mut manifest = Manifest::default();
    let mut expected = std::collections::BTreeMap::new();
    let mut sound = true;
    while let Some(part) = parts.part() {
        let Ok(piece) = files.put(part) else { return false };
        manifest.rows.push(piece);
        match message::<Rows>(part) {
            Some(rows) => expected.extend(rows.rows.into_iter().map(|row| (row.key, row.value))),
            None => sound = false,
        }
    }
    let installed = dump::install(GROUP, &manifest, &files, &kv).is_ok();
    assert!(sound || !installed, "a piece that holds no rows was taken");
    if !installed {
        return false;
    }
    let prefix = GROUP.0.to_be_bytes();
    let rows = kv.scan(&prefix, &end_of(&prefix), usize::MAX, false).unwrap_or_default();
    let without = rows.iter().map(|(key, value)| (key.slice(prefix.len()..), value.clone()));
    assert!(without.eq(expected), "rows differ from the snapshot's");
    begin(&install, &kv)
}

/// A replica begins with the rows that a snapshot left: it refuses them, or lives.
fn begin(install: &Install, kv: &MemoryKv) -> bool {
    let seed = seed();
    let Ok((compacted, hard_state)) = install.finish(&seed, kv) else {
        // a replica that finds them when it starts, with a log that goes as far
        let row = kv.get(&Keys(GROUP).one(Table::Applied)).ok().flatten().unwrap_or_default();
        let last = Applied::decode(row).unwrap_or_default().index;
        return last <= MAX_LOG && live(seed, HardState::default(), last, None, kv);
    };
    assert_eq!((compacted.index, compacted.term), (install.index, install.term));
    live(seed, hard_state, compacted.index, Some(compacted), kv)
}

fn live(seed: Seed, hard_state: HardState, last: u64, compacted: Option<Compacted>, kv: &MemoryKv) -> bool {
    let origin = Origin {
        seed,
        reader: if compacted.is_some() { Log::default() } else { Log::of(last) },
        hard_state,
        last,
        log_bytes: 0,
        compacted,
    };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let Ok(group) = Group::open(origin, TICKS, kv, &logger) else { return false };
    let status = group.status();
    assert!(status.applied <= status.last);
    true
}

/// Elections after ten ticks: a few of them make a leader of a replica that is alone.
pub(super) const TICKS: Ticks = Ticks { election: 10, heartbeat: 2 };

/// The replica of all inputs: the first of three.
pub(super) fn seed() -> Seed {
    let replica = |id: u8| Replica { id: id.into(), peer: vec![id; 32], addresses: Vec::new() };
    Seed {
        group: GROUP.0,
        name: "g".into(),
        namespace: "default".into(),
        first: [1, 2, 3].map(replica).to_vec(),
        replica: 1,
        mesh: vec![7; 16],
    }
}
