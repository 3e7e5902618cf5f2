//! Events that move to segments, and events that go.
//!
//! A seal stands as a whole or not at all: every segment goes on exactly where its topic's sealed offset is (or takes the
//! place of the last segment and goes on from there), holds as many bytes of payload as were appended, and no event of
//! an entry up to `through` is left out. So entries up to there may leave the log once the segments are on disk.

use std::collections::BTreeMap;

use canal_proto::limits::MAX_SEAL;
use canal_proto::log::{Seal, Segment, Trim};
use canal_proto::{Code, ContentHash, TopicId, WireError};

use super::{Effect, Place};
use crate::core::keys::{Table, tail_number};
use crate::core::kv::KvError;
use crate::core::retention;
use crate::core::rows::{Counter, Locator, Topic};
use crate::core::txn::Txn;

type Checked<T> = Result<Result<T, WireError>, KvError>;

fn refuse<T>(message: impl Into<String>) -> Checked<T> {
    Ok(Err(WireError::new(Code::InvalidArgument, message)))
}

pub(super) fn apply(txn: &mut Txn<'_>, place: Place<'_>, seal: &Seal, effects: &mut Vec<Effect>) -> Checked<()> {
    let key = txn.keys.one(Table::Sealed);
    let sealed = txn.get_or_default::<Counter>(&key)?.value;
    if seal.through <= sealed || seal.through >= place.index {
        let index = place.index;
        return refuse(format!("entry {index} can't seal up to {}; it is sealed up to {sealed}", seal.through));
    }
    if seal.segments.len() > MAX_SEAL {
        return refuse(format!("{} segments; one seal takes at most {MAX_SEAL}", seal.segments.len()));
    }
    let mut topics: BTreeMap<TopicId, (Topic, Option<Segment>)> = BTreeMap::new();
    for (key, topic) in txn.scan::<Topic>(&txn.keys.one(Table::Topics), usize::MAX / 2)? {
        topics.insert(TopicId(tail_number(&key)), (topic, None));
    }
    for segment in &seal.segments {
        let id = TopicId(segment.topic);
        let Some((topic, made @ None)) = topics.get_mut(&id) else {
            return refuse(format!("topic {id} is not here, or named twice"));
        };
        let segment = match checked(txn, id, topic, segment)? {
            Ok(segment) => segment,
            Err(error) => return Ok(Err(error)),
        };
        topic.sealed = segment.end();
        *made = Some(segment);
    }
    for (id, (topic, _)) in &topics {
        if topic.sealed == topic.next {
            continue;
        }
        let first = txn.get::<Locator>(&txn.keys.topic(Table::Events, *id, topic.sealed))?;
        if first.is_none_or(|first| first.index <= seal.through) {
            let (offset, through) = (topic.sealed, seal.through);
            return refuse(format!("event {offset} of topic {id} is not behind entry {through}, and in no segment"));
        }
    }
    for (id, (topic, segment)) in topics {
        if let Some(segment) = segment {
            txn.put(txn.keys.topic_only(Table::Topics, id), &topic);
            txn.put(txn.keys.topic(Table::Segments, id, segment.first), &segment);
        }
    }
    txn.put(key, &Counter { value: seal.through });
    effects.push(Effect::Sealed { through: seal.through });
    Ok(Ok(()))
}

/// The segment as it is stored, if it goes on where the topic's segments end.
fn checked(txn: &Txn<'_>, id: TopicId, topic: &Topic, segment: &Segment) -> Checked<Segment> {
    let end = segment.end();
    if ContentHash::from_slice(&segment.hash).is_err() || end <= topic.sealed || end > topic.next {
        let (sealed, next) = (topic.sealed, topic.next);
        return refuse(format!("a segment of topic {id} to {end}; one between {sealed} and {next} was expected"));
    }
    let Some(appended) = appended_before(txn, id, topic, end)? else {
        return refuse(format!("a segment of topic {id} ends at {end}, inside of what was appended together"));
    };
    let before = if segment.first == topic.sealed {
        appended_before(txn, id, topic, segment.first)?
    } else {
        let replaced = txn.get::<Segment>(&txn.keys.topic(Table::Segments, id, segment.first))?;
        replaced.filter(|replaced| replaced.end() == topic.sealed).map(|replaced| replaced.before)
    };
    let Some(before) = before else {
        let (first, sealed) = (segment.first, topic.sealed);
        return refuse(format!("a segment of topic {id} from {first}; one that goes on at {sealed} was expected"));
    };
    let payload = appended.saturating_sub(before);
    if payload != segment.payload {
        let found = segment.payload;
        return refuse(format!("a segment of topic {id} holds {found} bytes of payload; {payload} were appended"));
    }
    Ok(Ok(Segment { before, ..segment.clone() }))
}

/// Bytes appended before an offset that is not sealed yet; `None` where events were appended together.
fn appended_before(txn: &Txn<'_>, id: TopicId, topic: &Topic, offset: u64) -> Result<Option<u64>, KvError> {
    if offset == topic.next {
        return Ok(Some(topic.bytes));
    }
    let locator = txn.get::<Locator>(&txn.keys.topic(Table::Events, id, offset))?;
    Ok(locator.map(|locator| locator.before))
}

/// Lets go of a topic's oldest events, as far as [`retention::cut`] says. Their locators, from now on below the sealed
/// offset, are each replica's to remove.
pub(super) fn trim(txn: &mut Txn<'_>, trim: &Trim, effects: &mut Vec<Effect>) -> Result<(), KvError> {
    let id = TopicId(trim.topic);
    let key = txn.keys.topic_only(Table::Topics, id);
    let Some(mut topic) = txn.get::<Topic>(&key)? else { return Ok(()) };
    let spec = super::spec(txn)?;
    let Some(cut) = retention::cut(txn, &spec, id, &topic, trim.before)? else { return Ok(()) };
    topic.oldest = cut.oldest;
    topic.sealed = topic.sealed.max(cut.oldest);
    topic.trimmed = cut.trimmed;
    txn.put(key, &topic);
    cut.segments.into_iter().for_each(|key| txn.delete(key));
    effects.push(Effect::Trimmed { topic: id, oldest: cut.oldest });
    Ok(())
}
