//! Durable subscriptions: a cursor in a topic that one subscriber at a time moves.
//!
//! The index of the entry that opened it is its session. A cursor is moved by its session, or by the holder that opened
//! it last, and never back; so of two subscribers of one name the later has it, and the earlier is told. It does not hold
//! back retention: a cursor below the topic's oldest event stays where it is, and tells how much its subscriber lost.

use canal_proto::limits::{MAX_SUBSCRIPTION_NAME, MAX_SUBSCRIPTIONS};
use canal_proto::log::{Subscription, SubscriptionChange, SubscriptionOp};
use canal_proto::name::check_plain;
use canal_proto::{Code, TopicId, WireError};

use super::{Effect, Place, unknown_topic};
use crate::core::keys::Table;
use crate::core::kv::KvError;
use crate::core::rows::Topic;
use crate::core::txn::Txn;

/// Bytes of a holder: random, so that two never meet.
const MAX_HOLDER: usize = 32;

type Answer = Result<Result<Subscription, WireError>, KvError>;

fn refuse(code: Code, message: impl Into<String>) -> Answer {
    Ok(Err(WireError::new(code, message)))
}

pub(super) fn apply(
    txn: &mut Txn<'_>,
    place: Place<'_>,
    now_ms: u64,
    change: &SubscriptionChange,
    effects: &mut Vec<Effect>,
) -> Answer {
    let id = TopicId(change.topic);
    let Some(topic) = txn.get::<Topic>(&txn.keys.topic_only(Table::Topics, id))? else {
        return Ok(Err(unknown_topic(id)));
    };
    let name = &change.name;
    let key = txn.keys.make(Table::Subscriptions, &[&change.topic.to_be_bytes(), name.as_bytes()]);
    let known = txn.get::<Subscription>(&key)?;
    let unknown = || {
        let message = format!("no durable subscription `{name}`; `canal subscription ls` lists what there is");
        WireError::new(Code::UnknownSubscription, message)
    };
    let taken = || {
        let message = format!("the durable subscription `{name}` was opened elsewhere since; this one ends");
        WireError::new(Code::TakenOver, message)
    };
    let changed = match (&change.op, known) {
        (Some(SubscriptionOp::Open(_)), None) if change.again => return Ok(Err(unknown())),
        (Some(SubscriptionOp::Open(_)), Some(known)) if change.again && known.holder != change.holder => {
            return Ok(Err(taken()));
        }
        (Some(SubscriptionOp::Open(_)), _) if change.holder.len() > MAX_HOLDER => {
            return refuse(Code::InvalidArgument, format!("a holder has at most {MAX_HOLDER} bytes"));
        }
        (Some(SubscriptionOp::Open(_)), Some(known)) => {
            Subscription { session: place.index, changed_ms: now_ms, holder: change.holder.clone(), ..known }
        }
        (Some(SubscriptionOp::Open(from)), None) => {
            if let Err(error) = may_begin(txn, id, name)? {
                return Ok(Err(error));
            }
            Subscription {
                topic: change.topic,
                name: name.clone(),
                next: (*from).clamp(topic.oldest, topic.next),
                session: place.index,
                changed_ms: now_ms,
                holder: change.holder.clone(),
            }
        }
        (Some(SubscriptionOp::Advance(_) | SubscriptionOp::Remove(_)), None) => return Ok(Err(unknown())),
        (Some(SubscriptionOp::Advance(advance)), Some(known)) => {
            let holds = !known.holder.is_empty() && known.holder == change.holder;
            if known.session != advance.session && !holds {
                return Ok(Err(taken()));
            }
            if advance.next > topic.next {
                let message = format!("offset {} is not there yet; the next event gets {}", advance.next, topic.next);
                return Ok(Err(WireError::new(Code::OutOfRange, message).with_detail(topic.next)));
            }
            if advance.next <= known.next {
                return Ok(Ok(known));
            }
            Subscription { next: advance.next, changed_ms: now_ms, ..known }
        }
        (Some(SubscriptionOp::Remove(_)), Some(known)) => {
            txn.delete(key);
            effects.push(Effect::Subscription { topic: id, name: name.clone(), session: 0 });
            return Ok(Ok(known));
        }
        (None, _) => return refuse(Code::InvalidArgument, "a change that this version does not know; update the peer"),
    };
    txn.put(key, &changed);
    effects.push(Effect::Subscription { topic: id, name: name.clone(), session: changed.session });
    Ok(Ok(changed))
}

/// Whether the topic takes one more durable subscription, of this name.
fn may_begin(txn: &Txn<'_>, topic: TopicId, name: &str) -> Result<Result<(), WireError>, KvError> {
    if let Err(error) = check_plain(name) {
        return Ok(Err(WireError::new(Code::InvalidArgument, error.to_string())));
    }
    if name.len() > MAX_SUBSCRIPTION_NAME {
        let message = format!("the name has {} bytes; at most {MAX_SUBSCRIPTION_NAME} are allowed", name.len());
        return Ok(Err(WireError::new(Code::TooLarge, message).with_detail(MAX_SUBSCRIPTION_NAME as u64)));
    }
    let others = txn.scan_bytes(&txn.keys.topic_only(Table::Subscriptions, topic), MAX_SUBSCRIPTIONS)?;
    if others.len() >= MAX_SUBSCRIPTIONS {
        let message = format!("a topic has at most {MAX_SUBSCRIPTIONS} durable subscriptions; remove one first");
        return Ok(Err(WireError::new(Code::TooLarge, message).with_detail(MAX_SUBSCRIPTIONS as u64)));
    }
    Ok(Ok(()))
}
