//! Effects for topics of other groups. Each destination topic has a queue of its own, numbered from 1; its leader
//! publishes it there under the group's own producer id with these numbers as sequences, so that the destination
//! appends each effect once, in order, whatever is repeated. A topic that is down holds up only its own queue.
//!
//! A queue's numbers must go on for as long as its destination exists, since that remembers them: so the row of an empty
//! queue stays. It goes when the destination is gone for good. Ids of topics are never used again, so an effect that
//! comes late begins a queue anew and is refused like the ones before it.

use canal_proto::log::{Emit, OutboxAck};
use canal_proto::{GroupId, TopicId};

use super::Effect;
use crate::core::keys::{Table, tail_number};
use crate::core::kv::KvError;
use crate::core::rows::{Counter, OutboxRow, OutboxTopic};
use crate::core::txn::Txn;

/// Effects in the outbox.
pub(super) fn len(txn: &Txn<'_>) -> Result<u64, KvError> {
    Ok(txn.get_or_default::<Counter>(&txn.keys.one(Table::OutboxCount))?.value)
}

fn set_len(txn: &mut Txn<'_>, value: u64, effects: &mut Vec<Effect>) {
    txn.put(txn.keys.one(Table::OutboxCount), &Counter { value });
    effects.push(Effect::Outbox(value));
}

/// Puts effects in, all of them.
pub(super) fn put(txn: &mut Txn<'_>, emits: &[&Emit], effects: &mut Vec<Effect>) -> Result<(), KvError> {
    if emits.is_empty() {
        return Ok(());
    }
    for emit in emits {
        let topic = TopicId(emit.target.topic);
        let key = txn.keys.topic_only(Table::OutboxTopics, topic);
        let mut queue = txn.get_or_default::<OutboxTopic>(&key)?;
        queue.last += 1;
        txn.put(key, &queue);
        let row = OutboxRow { emit: (*emit).clone() };
        txn.put(txn.keys.topic(Table::Outbox, topic, queue.last), &row);
    }
    let value = len(txn)? + emits.len() as u64;
    set_len(txn, value, effects);
    Ok(())
}

/// Takes out what was delivered; what was refused for good goes to its dead-letter topic.
pub(super) fn acknowledge(txn: &mut Txn<'_>, ack: &OutboxAck, effects: &mut Vec<Effect>) -> Result<(), KvError> {
    let topic = TopicId(ack.topic);
    let key = txn.keys.topic_only(Table::OutboxTopics, topic);
    let Some(mut queue) = txn.get::<OutboxTopic>(&key)? else { return Ok(()) };
    let through = ack.through.min(queue.last);
    #[cfg(feature = "mutants")]
    let through = if crate::mutants::is(crate::mutants::Mutant::OutboxRemovedEarly) { queue.last } else { through };
    let Some(count) = through.checked_sub(queue.acked).filter(|count| *count > 0) else { return Ok(()) };
    let prefix = txn.keys.topic_only(Table::Outbox, topic);
    let rows = txn.scan::<OutboxRow>(&prefix, usize::try_from(count).unwrap_or(usize::MAX))?;
    let mut removed = 0;
    let mut bounced = Vec::new();
    for (key, row) in rows {
        if tail_number(&key) > through {
            break;
        }
        txn.delete(key);
        removed += 1;
        // a dead letter whose topic is gone has nowhere left to go
        if ack.refused && row.emit.dead.topic != ack.topic {
            bounced.push(row.emit);
        }
    }
    queue.acked = through;
    if ack.refused && queue.acked == queue.last {
        txn.delete(key);
    } else {
        txn.put(key, &queue);
    }
    let value = len(txn)?.saturating_sub(removed);
    set_len(txn, value, effects);
    for emit in &mut bounced {
        let gone = std::mem::replace(&mut emit.target, emit.dead.clone());
        emit.event = std::mem::take(&mut emit.event).with_header("canal-undeliverable", gone.name.into_bytes());
    }
    // an event can only be read back from the entry that carries it, and this entry carries none: so even a
    // dead-letter topic of this group is reached through the outbox
    put(txn, &bounced.iter().collect::<Vec<_>>(), effects)
}

/// Whether an effect stays in this group.
pub(super) fn is_local(emit: &Emit, group: GroupId) -> bool {
    emit.target.group == group.0
}
