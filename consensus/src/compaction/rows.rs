//! What a driver notes of seals in rows, and reads back at a start.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use canal_proto::log::Segment;
use canal_proto::{ContentHash, GroupId, TopicId};
use prost::Message as _;

use super::History;
use crate::core::group::Status;
use crate::core::keys::{Keys, Table, end_of};
use crate::core::kv::{Kv, KvError, WriteBatch};
use crate::core::rows::Counter;
use crate::core::sealing::{self, Unsealed};
use crate::core::txn::decode;

/// What a group's log has that is not in segments.
pub fn unsealed(status: &Status, sealed: u64) -> Unsealed {
    let live = status.last.saturating_add(1).saturating_sub(status.first).max(1);
    let entries = status.applied.saturating_sub(sealed.max(status.first.saturating_sub(1)));
    // the log does not say where its bytes are
    let bytes = u128::from(status.log_bytes) * u128::from(entries.min(live)) / u128::from(live);
    Unsealed { entries, bytes: u64::try_from(bytes).unwrap_or(u64::MAX) }
}

/// What the rows say of a group's seals, and which of their files are here.
///
/// # Errors
/// When the store fails or is damaged.
pub fn load(id: GroupId, kv: &dyn Kv, has: impl Fn(&ContentHash) -> bool) -> Result<History, KvError> {
    let sealed = sealing::sealed(kv, id)?;
    let prefix = Keys(id).one(Table::Segments);
    let mut segments = Vec::new();
    for (key, value) in kv.scan(&prefix, &end_of(&prefix), usize::MAX / 2, false)? {
        let segment: Segment = decode(&key, value)?;
        if !is_here(&segment, &has) {
            segments.push(segment);
        }
    }
    let mut history = History { sealed, leftovers: true, ..History::default() };
    if segments.is_empty() {
        history.here = sealed;
    } else {
        history.sealed(sealed, segments);
    }
    Ok(history)
}

fn is_here(segment: &Segment, has: impl Fn(&ContentHash) -> bool) -> bool {
    ContentHash::from_slice(&segment.hash).is_ok_and(|hash| has(&hash))
}

/// The notes of replaced segments that are to be removed at a start, because the file of the new one is here: a crash came
/// between the two.
///
/// # Errors
/// When the store fails or is damaged.
pub fn old_notes(id: GroupId, kv: &dyn Kv, has: impl Fn(&ContentHash) -> bool) -> Result<WriteBatch, KvError> {
    let keys = Keys(id);
    let prefix = keys.one(Table::Replaced);
    let mut batch = WriteBatch::default();
    for (note, value) in kv.scan(&prefix, &end_of(&prefix), usize::MAX / 2, false)? {
        let old: Segment = decode(&note, value)?;
        let key = keys.topic(Table::Segments, TopicId(old.topic), old.first);
        let row: Option<Segment> = kv.get(&key)?.map(|row| decode(&key, row)).transpose()?;
        if row.is_none_or(|row| is_here(&row, &has)) {
            batch.ops.insert(note, None);
        }
    }
    Ok(batch)
}

/// Segments that a batch gives another one's place are noted beside it: until the new file is here, a replica may need
/// the old one to make it. The note is in the same batch, so it is there whenever it is needed.
///
/// # Errors
/// When the store fails or is damaged.
pub fn note_replaced(
    id: GroupId,
    kv: &dyn Kv,
    has: impl Fn(&ContentHash) -> bool,
    batch: &mut WriteBatch,
) -> Result<(), KvError> {
    let keys = Keys(id);
    let prefix = keys.one(Table::Segments);
    let mut notes = Vec::new();
    for (key, row) in range(batch, &prefix) {
        let note = [&keys.one(Table::Replaced)[..], key.get(prefix.len()..).unwrap_or_default()].concat();
        let Some(new) = row else { continue };
        let Some(old) = kv.get(key)?.filter(|old| old != new) else { continue };
        let segment: Segment = decode(key, old.clone())?;
        let here = ContentHash::from_slice(&segment.hash).is_ok_and(|hash| has(&hash));
        // an older note stands when what it names is here and this one's file is not yet
        if here || kv.get(&note)?.is_none() {
            notes.push((note.into(), Some(old)));
        }
    }
    batch.ops.extend(notes);
    Ok(())
}

/// The seals in a batch, by group: how far they seal, and the segments that they name.
///
/// # Errors
/// When a row is damaged.
pub fn segments_of(
    groups: &BTreeSet<GroupId>,
    batch: &WriteBatch,
) -> Result<Vec<(GroupId, u64, Vec<Segment>)>, KvError> {
    let mut seals = Vec::new();
    for id in groups {
        let keys = Keys(*id);
        let key = keys.one(Table::Sealed);
        let Some(Some(row)) = batch.ops.get(&key) else { continue };
        let through: Counter = decode(&key, row.clone())?;
        let mut segments = Vec::new();
        for (key, row) in range(batch, &keys.one(Table::Segments)) {
            if let Some(row) = row {
                segments.push(decode::<Segment>(key, row.clone())?);
            }
        }
        seals.push((*id, through.value, segments));
    }
    Ok(seals)
}

fn range<'a>(batch: &'a WriteBatch, prefix: &[u8]) -> impl Iterator<Item = (&'a Bytes, &'a Option<Bytes>)> {
    let (start, end) = (Bytes::copy_from_slice(prefix), Bytes::from(end_of(prefix)));
    batch.ops.range(start..end)
}

/// What becomes of the notes of replaced segments now that these are here: they are not needed any more, except where yet
/// another one has taken the place of one of these, which is then what that will be made from.
///
/// # Errors
/// When the store fails or is damaged.
pub fn notes(id: GroupId, kv: &dyn Kv, here: Vec<Segment>) -> Result<BTreeMap<Bytes, Option<Bytes>>, KvError> {
    let keys = Keys(id);
    let mut ops = BTreeMap::new();
    for segment in here {
        let topic = TopicId(segment.topic);
        let note = keys.topic(Table::Replaced, topic, segment.first);
        let key = keys.topic(Table::Segments, topic, segment.first);
        let row = kv.get(&key)?.map(|row| decode::<Segment>(&key, row)).transpose()?;
        if row.is_some_and(|row| row.hash != segment.hash) {
            ops.insert(note, Some(segment.encode_to_vec().into()));
        } else if kv.get(&note)?.is_some() {
            ops.insert(note, None);
        }
    }
    Ok(ops)
}
