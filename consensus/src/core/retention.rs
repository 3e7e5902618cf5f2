//! Retention: which of a topic's oldest events may go.
//!
//! A leader decides and proposes a [`Trim`]; applying it lets go of no more than [`cut`] says, which is the same at all
//! replicas. No event goes that a trigger has yet to handle.
//!
//! Events, bytes and age are bounds: what exceeds one of them goes. An event's age begins when it is appended, by the clock
//! of the leader of that time: a device whose clock is wrong, or that was cut off for a week, loses nothing by it. What is in
//! segments goes by age a whole segment at a time, when its newest event is too old; and by bytes as if a segment's bytes were spread evenly over its events.

use bytes::Bytes;
use canal_proto::catalog::Retention;
use canal_proto::cursor::Cursor;
use canal_proto::log::{GroupSpec, Segment, Trim};
use canal_proto::{GroupId, TopicId, TriggerId};

use super::keys::{Table, tail_number};
use super::kv::{Kv, KvError, WriteBatch};
use super::rows::{Locator, Topic};
use super::sealing;
use super::txn::Txn;

/// Segments that one trim lets go at most: it is applied in one turn.
pub const MAX_CUT: usize = 1024;
/// Events in the log that one look asks the age of. Where more come between two looks, segments are soon made of them.
pub const MAX_AGED: u64 = 4096;

/// Finds out about events that are not in segments.
pub trait Unsealed {
    /// Why it can't.
    type Error;

    /// The first offset before which at least so many bytes of payload were appended to the topic.
    ///
    /// # Errors
    /// When the rows can't be read.
    fn behind(&mut self, bytes: u64) -> Result<u64, Self::Error>;

    /// When the event at an offset was appended; `None` when it can't be told now.
    ///
    /// # Errors
    /// When the event can't be read.
    fn time(&mut self, offset: u64) -> Result<Option<u64>, Self::Error>;
}

/// The offset before which a policy lets all events go. `segments` are the topic's oldest ones, by offset; when they are
/// not all, the answer does not go beyond them.
///
/// # Errors
/// Those of `unsealed`.
pub fn before<U: Unsealed>(
    policy: &Retention,
    topic: &Topic,
    segments: &[Segment],
    now_ms: u64,
    unsealed: &mut U,
) -> Result<u64, U::Error> {
    let known = segments.last().map_or(topic.sealed, Segment::end);
    let whole = known >= topic.sealed;
    let mut before = topic.oldest;
    if policy.events > 0 {
        before = before.max(topic.next.saturating_sub(policy.events));
    }
    if policy.bytes > 0
        && let Some(excess) = topic.bytes.checked_sub(policy.bytes).filter(|excess| *excess > topic.trimmed)
    {
        before =
            before.max(match segments.iter().find(|segment| segment.before.saturating_add(segment.payload) > excess) {
                Some(segment) => behind_in(segment, excess),
                None if whole => unsealed.behind(excess)?,
                None => known,
            });
    }
    if let Some(oldest_ms) = now_ms.checked_sub(policy.age_ms).filter(|_| policy.age_ms > 0) {
        // of what the other bounds leave
        let left = segments.iter().filter(|segment| segment.end() > before);
        let expired = left.take_while(|segment| segment.newest_ms() < oldest_ms).last();
        before = expired.map_or(before, Segment::end);
        if whole && before >= topic.sealed {
            let most = before.saturating_add(MAX_AGED).min(topic.next);
            while before < most && unsealed.time(before)?.is_some_and(|time| time < oldest_ms) {
                before += 1;
            }
        }
    }
    Ok(if whole { before.min(topic.next) } else { before.min(known) })
}

/// The first offset in a segment before which so many bytes were appended.
fn behind_in(segment: &Segment, bytes: u64) -> u64 {
    let inside = u128::from(bytes.saturating_sub(segment.before));
    let events = (inside * u128::from(segment.count)).div_ceil(u128::from(segment.payload.max(1)));
    segment.first.saturating_add(u64::try_from(events).unwrap_or(u64::MAX).min(segment.count))
}

/// Bytes appended before an offset that is in a segment, taken to be spread evenly.
fn bytes_before(segment: &Segment, offset: u64) -> u64 {
    let events = u128::from(offset.saturating_sub(segment.first).min(segment.count));
    let inside = u128::from(segment.payload) * events / u128::from(segment.count.max(1));
    segment.before.saturating_add(u64::try_from(inside).unwrap_or(u64::MAX))
}

/// What a trim comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Offset of the oldest event that is left.
    pub oldest: u64,
    /// Bytes of payload before it.
    pub trimmed: u64,
    /// Keys of the segments that go.
    pub segments: Vec<Bytes>,
}

/// The lowest cursor in a topic, and whose it is.
///
/// # Errors
/// When the store fails or is damaged.
pub fn floor(txn: &Txn<'_>, spec: &GroupSpec, topic: TopicId) -> Result<Option<(u64, TriggerId)>, KvError> {
    let mut lowest: Option<(u64, TriggerId)> = None;
    for trigger in &spec.triggers {
        let id = TriggerId(trigger.info.id);
        if let Some(cursor) = txn.get::<Cursor>(&txn.keys.cursor(id, topic))?
            && lowest.is_none_or(|(low, _)| cursor.low < low)
        {
            lowest = Some((cursor.low, id));
        }
    }
    Ok(lowest)
}

/// What letting go of all events before an offset comes to; `None` when it lets go of nothing. It stops at what a trigger
/// has yet to handle, at [`MAX_CUT`] segments, and in the log at events that were appended together.
///
/// # Errors
/// When the store fails or is damaged.
pub fn cut(txn: &Txn<'_>, spec: &GroupSpec, topic: TopicId, row: &Topic, before: u64) -> Result<Option<Cut>, KvError> {
    let floor = floor(txn, spec, topic)?.map_or(row.next, |(low, _)| low);
    let before = before.min(row.next).min(floor);
    if before <= row.oldest {
        return Ok(None);
    }
    let mut segments = Vec::new();
    let (mut oldest, mut trimmed) = (row.oldest, row.trimmed);
    for (key, segment) in txn.scan::<Segment>(&txn.keys.topic_only(Table::Segments, topic), MAX_CUT + 1)? {
        if segment.end() > before {
            oldest = before;
            trimmed = trimmed.max(bytes_before(&segment, before));
            return Ok(Some(Cut { oldest, trimmed, segments }));
        }
        if segments.len() == MAX_CUT {
            return Ok(Some(Cut { oldest, trimmed, segments }));
        }
        oldest = segment.end();
        trimmed = trimmed.max(segment.before.saturating_add(segment.payload));
        segments.push(key);
    }
    if before == row.next {
        (oldest, trimmed) = (before, row.bytes);
    } else if oldest < before {
        let at = txn.keys.topic(Table::Events, topic, before);
        let found = txn.last::<Locator>(&txn.keys.topic_only(Table::Events, topic), &at)?;
        let Some((key, locator)) = found.filter(|(key, _)| tail_number(key) >= row.sealed) else {
            return Err(KvError(format!("topic {topic} has no locator for offset {before}")));
        };
        (oldest, trimmed) = (tail_number(&key), locator.before);
    }
    Ok((oldest > row.oldest).then_some(Cut { oldest, trimmed, segments }))
}

/// What a look at a topic comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// To be proposed, if it lets go of anything.
    pub trim: Option<Trim>,
    /// The trigger that has yet to handle events which would go otherwise.
    pub held_by: Option<TriggerId>,
}

/// Looks at a topic as its rows stand: what its policy lets go of now. `time` says when an event was appended that is not in a
/// segment.
///
/// # Errors
/// When the store fails or is damaged, and those of `time`.
pub fn decide(
    kv: &dyn Kv,
    group: GroupId,
    topic: TopicId,
    now_ms: u64,
    time: impl FnMut(u64) -> Result<Option<u64>, KvError>,
) -> Result<Decision, KvError> {
    let mut none = WriteBatch::default();
    let txn = Txn::new(group, kv, &mut none);
    let spec = super::machine::spec(&txn)?;
    let policy = spec.topics.iter().find(|hosted| hosted.id == topic.0).and_then(|hosted| hosted.retention);
    let row = txn.get::<Topic>(&txn.keys.topic_only(Table::Topics, topic))?;
    let (Some(policy), Some(row)) = (policy, row) else { return Ok(Decision::default()) };
    let rows = txn.scan::<Segment>(&txn.keys.topic_only(Table::Segments, topic), MAX_CUT + 1)?;
    let segments: Vec<Segment> = rows.into_iter().map(|(_, segment)| segment).collect();
    let mut unsealed = InRows { kv, group, topic, row: &row, time };
    let before = before(&policy, &row, &segments, now_ms, &mut unsealed)?;
    let held_by = floor(&txn, &spec, topic)?.filter(|(low, _)| *low < before).map(|(_, trigger)| trigger);
    let trim = cut(&txn, &spec, topic, &row, before)?.map(|cut| Trim { topic: topic.0, before: cut.oldest });
    Ok(Decision { trim, held_by })
}

impl Decision {
    /// The same, but nothing goes that is not in segments.
    pub fn in_segments(mut self, row: &Topic) -> Self {
        if let Some(trim) = &mut self.trim {
            trim.before = trim.before.min(row.sealed);
        }
        self.trim.take_if(|trim| trim.before <= row.oldest);
        self
    }
}

struct InRows<'a, T> {
    kv: &'a dyn Kv,
    group: GroupId,
    topic: TopicId,
    row: &'a Topic,
    time: T,
}

impl<T: FnMut(u64) -> Result<Option<u64>, KvError>> Unsealed for InRows<'_, T> {
    type Error = KvError;

    fn behind(&mut self, bytes: u64) -> Result<u64, KvError> {
        sealing::search(self.kv, self.group, self.topic, self.row, |locator| locator.before >= bytes)
    }

    fn time(&mut self, offset: u64) -> Result<Option<u64>, KvError> {
        (self.time)(offset)
    }
}

#[cfg(test)]
mod tests;
