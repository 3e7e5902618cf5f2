//! What the group hosts. A spec is whole, so one that is newer simply replaces what stands: topics that it no longer
//! names are gone, new pairs of trigger and topic get a cursor.
//!
//! A topic goes with its row; what else is kept of it may be a million rows, and no turn may take that long. From then on
//! these rows are each replica's own ([`crate::core::keys::Locals`]), which removes them a few at a time. Its id is never
//! used again.

use std::collections::BTreeSet;

use bytes::Bytes;
use canal_proto::cursor::Cursor;
use canal_proto::log::GroupSpec;
use canal_proto::{TopicId, TriggerId};

use super::Effect;
use crate::core::keys::{OF_TOPIC, Table};
use crate::core::kv::KvError;
use crate::core::rows::Topic;
use crate::core::txn::Txn;

pub(super) fn apply(txn: &mut Txn<'_>, new: &GroupSpec, effects: &mut Vec<Effect>) -> Result<(), KvError> {
    let old = super::spec(txn)?;
    if new.version <= old.version {
        return Ok(());
    }
    let keep: BTreeSet<u64> = new.topics.iter().map(|topic| topic.id).collect();
    for gone in old.topics.iter().filter(|topic| !keep.contains(&topic.id)) {
        let topic = TopicId(gone.id);
        txn.delete(txn.keys.topic_only(Table::Topics, topic));
        txn.put_bytes(txn.keys.topic_only(Table::Gone, topic), Bytes::new());
    }
    for topic in &new.topics {
        let key = txn.keys.topic_only(Table::Topics, TopicId(topic.id));
        if txn.get::<Topic>(&key)?.is_none() {
            // nothing is there, unless the same topic was gone before
            for table in OF_TOPIC {
                txn.delete_all(&txn.keys.topic_only(table, TopicId(topic.id)))?;
            }
            txn.delete(txn.keys.topic_only(Table::Gone, TopicId(topic.id)));
            txn.put(key, &Topic::default());
            effects.push(Effect::Head { topic: TopicId(topic.id), next: 0 });
        }
    }
    cursors(txn, new)?;
    let triggers: BTreeSet<u64> = new.triggers.iter().map(|trigger| trigger.info.id).collect();
    for gone in old.triggers.iter().filter(|trigger| !triggers.contains(&trigger.info.id)) {
        for table in [Table::Activations, Table::ActivationCount] {
            txn.delete_all(&txn.keys.make(table, &[&gone.info.id.to_be_bytes()]))?;
        }
    }
    txn.put(txn.keys.one(Table::Spec), new);
    effects.push(Effect::Spec);
    Ok(())
}

fn cursors(txn: &mut Txn<'_>, spec: &GroupSpec) -> Result<(), KvError> {
    let mut wanted = BTreeSet::new();
    for trigger in &spec.triggers {
        let matches = trigger.info.filter();
        for topic in spec.topics.iter().filter(|topic| matches(&topic.name)) {
            let (trigger_id, topic_id) = (TriggerId(trigger.info.id), TopicId(topic.id));
            let key = txn.keys.cursor(trigger_id, topic_id);
            wanted.insert(key.clone());
            if txn.get::<Cursor>(&key)?.is_some() {
                continue;
            }
            let row = txn.get_or_default::<Topic>(&txn.keys.topic_only(Table::Topics, topic_id))?;
            let mut cursor = Cursor::begin(&trigger.info, topic.id, row.next);
            cursor.low = cursor.low.max(row.oldest);
            txn.put(key, &cursor);
        }
    }
    for (key, _) in txn.scan_bytes(&txn.keys.one(Table::Cursors), usize::MAX / 2)? {
        if !wanted.contains(&key) {
            txn.delete(key);
        }
    }
    Ok(())
}
