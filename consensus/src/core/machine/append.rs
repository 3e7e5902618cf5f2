//! Published events: one append per (producer, sequence), ever, and gapless offsets.
//!
//! A producer numbers its events in a topic 1, 2, 3 … A sequence that was appended before is answered with its first
//! receipt; one that skips is refused, so that a batch that overtook an earlier one on its way can neither be
//! reordered nor make the earlier one look like a duplicate.

use canal_proto::event::{Durability, Receipt};
use canal_proto::limits::MAX_PRODUCERS;
use canal_proto::log::{AppendItem, EndProducer};
use canal_proto::{Code, GroupId, ProducerId, TopicId, WireError};

use super::{Effect, Place, extend, unknown_topic};
use crate::core::keys::Table;
use crate::core::kv::KvError;
use crate::core::rows::{Producer, Topic};
use crate::core::txn::Txn;

pub(super) fn apply(
    txn: &mut Txn<'_>,
    place: Place<'_>,
    part: usize,
    item: &AppendItem,
    effects: &mut Vec<Effect>,
) -> Result<Result<Receipt, WireError>, KvError> {
    let topic = TopicId(item.topic);
    let topic_key = txn.keys.topic_only(Table::Topics, topic);
    let Some(mut row) = txn.get::<Topic>(&topic_key)? else { return Ok(Err(unknown_topic(topic))) };
    let key = txn.keys.make(Table::Producers, &[&topic.0.to_be_bytes(), &item.producer]);
    let known = txn.get::<Producer>(&key)?;
    let new = known.is_none();
    let mut producer = known.unwrap_or_default();
    let count = item.events.len() as u64;
    let receipt = Receipt {
        offset: None,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        term: place.term,
        index: place.index,
        duplicate: false,
        durability: Durability::Quorum.into(),
    };
    if item.first_sequence == 0 || count == 0 {
        let message = "a publish needs a sequence from 1 on, and at least one event";
        return Ok(Err(WireError::new(Code::InvalidArgument, message)));
    }
    #[cfg(feature = "mutants")]
    if crate::mutants::is(crate::mutants::Mutant::ShortMemory)
        && producer.runs.last().is_some_and(|run| run.offset + run.count < row.next)
    {
        producer.last = producer.last.min(item.first_sequence.saturating_sub(1));
    }
    if item.first_sequence <= producer.last {
        return Ok(Ok(duplicate(&producer, item.first_sequence, count, receipt)));
    }
    if item.first_sequence != producer.last + 1 {
        let expected = producer.last + 1;
        let message = format!("sequence {} skips; {expected} was expected: send again from there", item.first_sequence);
        return Ok(Err(WireError::new(Code::SequenceGap, message).with_detail(expected)));
    }
    if new {
        if row.producers >= MAX_PRODUCERS && !is_outbox(item) {
            let message = format!(
                "the topic remembers {} producers, as many as it may; end some that are done with \
                 `canal topic producers`, or use one of them",
                row.producers
            );
            return Ok(Err(WireError::new(Code::TooManyProducers, message).with_detail(MAX_PRODUCERS)));
        }
        row.producers += 1;
        txn.put(topic_key, &row);
    }
    let bytes = item.events.iter().map(|event| event.payload.len() as u64).sum();
    let Some(first) = extend(txn, place, topic, part, count, bytes, effects)? else {
        return Ok(Err(unknown_topic(topic)));
    };
    producer.note(first, count);
    txn.put(key, &producer);
    Ok(Ok(Receipt { offset: Some(first), ..receipt }))
}

/// Whether the producer is the outbox of the group that it says it comes from.
fn is_outbox(item: &AppendItem) -> bool {
    item.origin != 0 && ProducerId::of_outbox(GroupId(item.origin)).to_vec() == item.producer
}

/// The receipt of a retry. It covers what was appended before and stands at consecutive offsets, which may be less
/// than the request: the producer goes on behind it.
fn duplicate(producer: &Producer, sequence: u64, count: u64, receipt: Receipt) -> Receipt {
    let appended = count.min(producer.last + 1 - sequence);
    let (offset, covered) = match producer.find(sequence) {
        Some((offset, run)) => (Some(offset), appended.min(run)),
        None => {
            let known_from = producer.runs.first().map_or(producer.last + 1, |run| run.sequence);
            (None, appended.min(known_from.saturating_sub(sequence)).max(1))
        }
    };
    Receipt { offset, count: u32::try_from(covered).unwrap_or(u32::MAX), duplicate: true, ..receipt }
}

pub(super) fn end_producer(txn: &mut Txn<'_>, end: &EndProducer) -> Result<(), KvError> {
    let topic_key = txn.keys.topic_only(Table::Topics, TopicId(end.topic));
    let Some(mut topic) = txn.get::<Topic>(&topic_key)? else { return Ok(()) };
    let key = txn.keys.make(Table::Producers, &[&end.topic.to_be_bytes(), &end.producer]);
    if txn.get::<Producer>(&key)?.is_some_and(|producer| producer.last == end.last_sequence) {
        txn.delete(key);
        topic.producers = topic.producers.saturating_sub(1);
        txn.put(topic_key, &topic);
    }
    Ok(())
}
