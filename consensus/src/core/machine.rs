//! The state machine of a group: what a committed entry does to the group's rows.
//!
//! Applying is a function of the rows and the entry alone, so every replica comes to the same rows and the same
//! answers. Bad commands are answered with an error and change nothing; only a failing or damaged store stops it.
//! Each kind of command has a file.

use canal_proto::catalog::CatalogReply;
use canal_proto::cursor::Cursor;
pub use canal_proto::log::OutcomeResult;
use canal_proto::log::{Command, GroupSpec, Kind, Subscription};
use canal_proto::{Code, GroupId, MeshId, Receipt, TopicId, WireError};

use super::keys::Table;
use super::kv::KvError;
use super::rows::Topic;
use super::txn::Txn;

mod append;
mod catalog;
mod outbox;
mod outcomes;
mod seals;
mod spec;
mod steps;
mod subscriptions;

pub use catalog::{group_spec, is_dead_letter_target_of};

/// Where an entry stands, and in which group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The mesh.
    pub mesh: MeshId,
    /// The group.
    pub group: GroupId,
    /// Its namespace.
    pub namespace: &'a str,
    /// Index of the entry.
    pub index: u64,
    /// Term of the entry.
    pub term: u64,
}

/// What the proposer is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// One result for each append item.
    Appended(Vec<Result<Receipt, WireError>>),
    /// One result for each outcome, and the cursors that changed.
    Outcomes(Vec<OutcomeResult>, Vec<Cursor>),
    /// To a change of the catalog.
    Catalog(Box<Result<CatalogReply, WireError>>),
    /// To a seal: whether it stands, or why nothing of it does.
    Sealed(Result<(), WireError>),
    /// To a change of a durable subscription: as it stands now, or as it was when it was removed.
    Subscription(Result<Subscription, WireError>),
    /// Applied, or without effect because something newer stands.
    Done,
}

/// What others may want to know of an applied entry. Everything can be read from the rows as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// A topic grew.
    Head {
        /// The topic.
        topic: TopicId,
        /// Offset of its next event.
        next: u64,
    },
    /// The spec changed.
    Spec,
    /// The outbox grew or shrank to this many effects.
    Outbox(u64),
    /// The catalog changed.
    Catalog,
    /// The events of all entries up to this index are in segments.
    Sealed {
        /// The index.
        through: u64,
    },
    /// A topic let go of its oldest events.
    Trimmed {
        /// The topic.
        topic: TopicId,
        /// Offset of the oldest event that is left.
        oldest: u64,
    },
    /// A durable subscription was opened, moved or removed.
    Subscription {
        /// The topic.
        topic: TopicId,
        /// Its name.
        name: String,
        /// Its session; 0 when it was removed.
        session: u64,
    },
    /// A step in which the replicas changed was recorded under this number.
    Step(u64),
}

/// Applies one entry.
pub fn apply(txn: &mut Txn<'_>, place: Place<'_>, command: &Command) -> Result<(Reply, Vec<Effect>), KvError> {
    let mut effects = Vec::new();
    let reply = match &command.kind {
        Some(Kind::Append(append)) => {
            let mut results = Vec::with_capacity(append.items.len());
            for (part, item) in append.items.iter().enumerate() {
                results.push(append::apply(txn, place, part, item, &mut effects)?);
            }
            Reply::Appended(results)
        }
        Some(Kind::Outcomes(outcomes)) => {
            let (results, cursors) = outcomes::apply(txn, place, outcomes, &mut effects)?;
            Reply::Outcomes(results, cursors)
        }
        Some(Kind::Spec(spec)) => {
            spec::apply(txn, spec, &mut effects)?;
            Reply::Done
        }
        Some(Kind::StateWrite(write)) => {
            outcomes::write(txn, &write.bucket, &write.ops);
            Reply::Done
        }
        Some(Kind::OutboxAck(ack)) => {
            outbox::acknowledge(txn, ack, &mut effects)?;
            Reply::Done
        }
        Some(Kind::Catalog(change)) => {
            let result = catalog::apply(txn, place, command.time_ms, change)?;
            effects.push(Effect::Catalog);
            Reply::Catalog(Box::new(result))
        }
        Some(Kind::Seal(seal)) => Reply::Sealed(seals::apply(txn, place, seal, &mut effects)?),
        Some(Kind::Trim(trim)) => {
            seals::trim(txn, trim, &mut effects)?;
            Reply::Done
        }
        Some(Kind::Subscription(change)) => {
            Reply::Subscription(subscriptions::apply(txn, place, command.time_ms, change, &mut effects)?)
        }
        Some(Kind::Step(step)) => {
            steps::apply(txn, step, &mut effects)?;
            Reply::Done
        }
        Some(Kind::EndProducer(end)) => {
            append::end_producer(txn, end)?;
            Reply::Done
        }
        None => {
            // to skip it would make this replica differ from those that know it
            let message = "an entry is of a kind that this version does not know; update this peer";
            return Err(KvError(format!("group {}, entry {}: {message}", place.group, place.index)));
        }
    };
    Ok((reply, effects))
}

/// The group's spec, or an empty one before the first.
pub fn spec(txn: &Txn<'_>) -> Result<GroupSpec, KvError> {
    txn.get_or_default(&txn.keys.one(Table::Spec))
}

fn unknown_topic(topic: TopicId) -> WireError {
    WireError::new(
        Code::UnknownTopic,
        format!("topic {topic} is not, or no longer, in this group; resolve its name again"),
    )
}

/// Gives the next `count` offsets of a topic to what stands at `part` of the entry.
fn extend(
    txn: &mut Txn<'_>,
    place: Place<'_>,
    id: TopicId,
    part: usize,
    count: u64,
    bytes: u64,
    effects: &mut Vec<Effect>,
) -> Result<Option<u64>, KvError> {
    let key = txn.keys.topic_only(Table::Topics, id);
    let Some(mut topic) = txn.get::<Topic>(&key)? else { return Ok(None) };
    let first = topic.next;
    let before = topic.bytes;
    topic.next += count;
    #[cfg(feature = "mutants")]
    if place.index.is_multiple_of(50) && crate::mutants::is(crate::mutants::Mutant::OffsetSkipped) {
        topic.next += 1;
    }
    topic.bytes += bytes;
    txn.put(key, &topic);
    let locator = super::rows::Locator {
        index: place.index,
        part: u32::try_from(part).unwrap_or(u32::MAX),
        count: u32::try_from(count).unwrap_or(u32::MAX),
        before,
    };
    txn.put(txn.keys.topic(Table::Events, id, first), &locator);
    effects.push(Effect::Head { topic: id, next: topic.next });
    Ok(Some(first))
}

#[cfg(test)]
mod tests;
