//! Sealing: when the events of a group's log move to segments, and which segments that makes.
//!
//! A leader decides and proposes a [`Seal`](canal_proto::log::Seal); `machine/seal.rs` says when it stands. Everything
//! here is a function of the rows, so each replica that has applied the entries up to an index comes to the same
//! plan for it.

use bytes::Bytes;
use canal_proto::limits::MAX_SEAL;
use canal_proto::log::Segment;
use canal_proto::{GroupId, TopicId};

use super::keys::{Keys, OF_TOPIC, Table, end_of, tail_number};
use super::kv::{Kv, KvError};
use super::rows::{Counter, Locator, Topic};
use super::txn::decode;

/// Bytes of entries after which a group is sealed: large enough for files that are worth one, small enough that a
/// replica which begins anew reads them in a second.
pub const SEAL_BYTES: u64 = 16 << 20;
/// Entries after which a group is sealed: the log store holds an index of live entries in memory.
pub const SEAL_ENTRIES: u64 = 65_536;
/// Bytes of entries that one seal takes: a segment holds less than twice as much of one topic.
pub const REACH_BYTES: u64 = 1 << 30;
/// Bytes below which sealing frees too little to be worth its files, even when a peer's logs are too long.
pub const WORTH_BYTES: u64 = 256 << 10;
/// Entries below which it is not worth it.
pub const WORTH_ENTRIES: u64 = 1024;
/// A last segment below this size is made anew with the events that follow it, so that a slow topic does not leave a
/// file for each sealing.
pub const MERGE_BELOW: u64 = 256 << 10;

/// The part of a group's log whose events are not in segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unsealed {
    /// Entries.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Whether a leader should seal now. `pressed`: the logs of its peer, or of another replica's, are above their budget.
pub fn due(unsealed: Unsealed, pressed: bool) -> bool {
    let worth = unsealed.bytes >= WORTH_BYTES || unsealed.entries >= WORTH_ENTRIES;
    unsealed.bytes >= SEAL_BYTES || unsealed.entries >= SEAL_ENTRIES || (pressed && worth)
}

/// How far the next seal goes: everything applied, but no more than bounds the work of one.
pub fn reach(sealed: u64, applied: u64, unsealed: Unsealed) -> u64 {
    let mean = unsealed.bytes.div_ceil(unsealed.entries.max(1)).max(1);
    let entries = (REACH_BYTES / mean).clamp(1, SEAL_ENTRIES);
    applied.min(sealed.saturating_add(entries))
}

/// A segment that is to be made: the events of a topic from `first` to before `end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The topic.
    pub topic: TopicId,
    /// Offset of its first event.
    pub first: u64,
    /// Offset behind its last event.
    pub end: u64,
    /// The topic's last segment, if the new one begins with its events and takes its place.
    pub replaces: Option<Segment>,
}

/// What sealing up to an entry comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Index of the last entry whose events will be in segments.
    pub through: u64,
    /// The segments, by topic. May be empty: then the entries hold no events.
    pub parts: Vec<Part>,
}

/// Index of the last entry whose events are in segments.
///
/// # Errors
/// When the store fails or is damaged.
pub fn sealed(kv: &dyn Kv, group: GroupId) -> Result<u64, KvError> {
    let key = Keys(group).one(Table::Sealed);
    let row: Option<Counter> = kv.get(&key)?.map(|bytes| decode(&key, bytes)).transpose()?;
    Ok(row.unwrap_or_default().value)
}

/// The segments that sealing up to `through` takes, which must not be above the applied index; `None` when that is
/// sealed already.
///
/// # Errors
/// When the store fails or is damaged.
pub fn plan(kv: &dyn Kv, group: GroupId, through: u64) -> Result<Option<Plan>, KvError> {
    if through <= sealed(kv, group)? {
        return Ok(None);
    }
    let mut parts = Vec::new();
    for (topic, row) in topics(kv, group)? {
        if parts.len() >= MAX_SEAL {
            // a group hosts no more topics than one seal takes; to leave one out would lose its events
            return Err(KvError(format!("group {group} hosts more than {MAX_SEAL} topics")));
        }
        let end = search(kv, group, topic, &row, |locator| locator.index > through)?;
        if end <= row.sealed {
            continue;
        }
        let replaces =
            last_segment(kv, group, topic)?.filter(|last| last.size < MERGE_BELOW && last.end() == row.sealed);
        let first = replaces.as_ref().map_or(row.sealed, |last| last.first);
        parts.push(Part { topic, first, end, replaces });
    }
    Ok(Some(Plan { through, parts }))
}

fn topics(kv: &dyn Kv, group: GroupId) -> Result<Vec<(TopicId, Topic)>, KvError> {
    let prefix = Keys(group).one(Table::Topics);
    let rows = kv.scan(&prefix, &end_of(&prefix), usize::MAX / 2, false)?;
    rows.into_iter().map(|(key, value)| Ok((TopicId(tail_number(&key)), decode(&key, value)?))).collect()
}

fn last_segment(kv: &dyn Kv, group: GroupId, topic: TopicId) -> Result<Option<Segment>, KvError> {
    let prefix = Keys(group).topic_only(Table::Segments, topic);
    let rows = kv.scan(&prefix, &end_of(&prefix), 1, true)?;
    rows.into_iter().next().map(|(key, value)| decode(&key, value)).transpose()
}

/// The first offset above the sealed one at which a locator stands that `behind` holds for, or the topic's next offset.
/// `behind` must hold for all locators after the first that it holds for.
pub(crate) fn search(
    kv: &dyn Kv,
    group: GroupId,
    topic: TopicId,
    row: &Topic,
    behind: impl Fn(&Locator) -> bool,
) -> Result<u64, KvError> {
    let keys = Keys(group);
    let prefix = keys.topic_only(Table::Events, topic);
    let (mut low, mut high) = (row.sealed, row.next);
    // the newest first: mostly everything is asked for
    let mut middle = high.saturating_sub(1);
    while low < high {
        let bound = keys.topic(Table::Events, topic, middle.saturating_add(1));
        let found = kv.scan(&prefix, &bound, 1, true)?.into_iter().next();
        let missing = || KvError(format!("group {group}: topic {topic} has no locator for offset {middle}"));
        let (key, value) = found.ok_or_else(missing)?;
        let locator: Locator = decode(&key, value)?;
        let base = tail_number(&key);
        if base < low || base.saturating_add(u64::from(locator.count)) <= middle {
            return Err(missing());
        }
        if behind(&locator) {
            high = base;
        } else {
            low = base.saturating_add(u64::from(locator.count));
        }
        middle = low.saturating_add(high.saturating_sub(low) / 2);
    }
    Ok(high)
}

/// Keys of at most `limit` rows that this replica no longer needs, for its driver to remove: locators of events that are
/// in segments or gone, events that came with a snapshot and are in segments by now, and rows of topics that are gone.
/// All segments of seals up to entry `through` must be on its disk. Empty: there is nothing to remove.
///
/// # Errors
/// When the store fails or is damaged.
pub fn sealed_locators(kv: &dyn Kv, group: GroupId, through: u64, limit: usize) -> Result<Vec<Bytes>, KvError> {
    let keys = Keys(group);
    let mut gone = of_gone_topics(kv, group, limit)?;
    let all_on_disk = through >= sealed(kv, group)?;
    for (topic, row) in topics(kv, group)? {
        let left = limit.saturating_sub(gone.len());
        if left == 0 {
            break;
        }
        let until = keys.topic(Table::Events, topic, row.sealed);
        for (key, value) in kv.scan(&keys.topic_only(Table::Events, topic), &until, left, false)? {
            let locator: Locator = decode(&key, value)?;
            let end = tail_number(&key).saturating_add(u64::from(locator.count));
            if locator.index > through && end > row.oldest {
                break;
            }
            gone.push(key);
        }
        let inline = if all_on_disk { row.sealed } else { row.oldest };
        let until = keys.topic(Table::Inline, topic, inline);
        let left = limit.saturating_sub(gone.len());
        let rows = kv.scan(&keys.topic_only(Table::Inline, topic), &until, left, false)?;
        gone.extend(rows.into_iter().map(|(key, _)| key));
    }
    Ok(gone)
}

/// Rows of topics that are gone, and at last the rows that remember those.
fn of_gone_topics(kv: &dyn Kv, group: GroupId, limit: usize) -> Result<Vec<Bytes>, KvError> {
    let keys = Keys(group);
    let prefix = keys.one(Table::Gone);
    let mut gone = Vec::new();
    for (marker, _) in kv.scan(&prefix, &end_of(&prefix), limit, false)? {
        let topic = TopicId(tail_number(&marker));
        for table in OF_TOPIC {
            let left = limit.saturating_sub(gone.len());
            let prefix = keys.topic_only(table, topic);
            gone.extend(kv.scan(&prefix, &end_of(&prefix), left, false)?.into_iter().map(|(key, _)| key));
        }
        if gone.len() >= limit {
            break;
        }
        gone.push(marker);
    }
    Ok(gone)
}

#[cfg(test)]
mod tests;
