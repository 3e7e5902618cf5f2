//! The entries of a group's Raft log. What is written here is read again by every later version.
//!
//! An entry's data is one [`Command`]. Applying it is a function of the group's state and the command alone: every
//! clock reading and every random number that it needs stands in it.

use bytes::Bytes;

use crate::catalog::{CatalogCommand, Placement, Retention, TriggerInfo};
use crate::event::Event;

/// One entry.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Command {
    /// The leader's clock when it proposed the entry, in milliseconds since 1970-01-01 UTC.
    #[prost(uint64, tag = "1")]
    pub time_ms: u64,
    /// What to do.
    #[prost(oneof = "Kind", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub kind: Option<Kind>,
}

/// What an entry does.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Kind {
    /// Published events.
    #[prost(message, tag = "2")]
    Append(Append),
    /// What functions did.
    #[prost(message, tag = "3")]
    Outcomes(Outcomes),
    /// The topics and triggers that the group hosts, from its namespace's catalog.
    #[prost(message, tag = "4")]
    Spec(GroupSpec),
    /// A client's write to function state.
    #[prost(message, tag = "5")]
    StateWrite(StateWrite),
    /// Effects that another group has taken, or refused for good.
    #[prost(message, tag = "6")]
    OutboxAck(OutboxAck),
    /// A change of the catalog (only in a catalog's group).
    #[prost(message, tag = "7")]
    Catalog(CatalogCommand),
    /// Takes a producer's state away: it has all its receipts and will not come back.
    #[prost(message, tag = "8")]
    EndProducer(EndProducer),
    /// Names the segments to which events have moved from the log.
    #[prost(message, tag = "9")]
    Seal(Seal),
    /// Lets go of a topic's oldest events.
    #[prost(message, tag = "10")]
    Trim(Trim),
    /// Opens, moves or removes a durable subscription.
    #[prost(message, tag = "11")]
    Subscription(SubscriptionChange),
    /// Records a step in which the group's replicas changed.
    #[prost(message, tag = "12")]
    Step(Step),
}

/// The events of all entries up to one are in segments. Each replica makes the segments from its own log, and comes to
/// the same bytes.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Seal {
    /// Index of the last entry whose events are in segments.
    #[prost(uint64, tag = "1")]
    pub through: u64,
    /// The new segments, by topic: at most one each. One that begins before the topic's sealed offset takes the place
    /// of the last segment, whose events it begins with.
    #[prost(message, repeated, tag = "2")]
    pub segments: Vec<Segment>,
}

/// An immutable file with consecutive events of one topic.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Segment {
    /// The topic.
    #[prost(uint64, tag = "1")]
    pub topic: u64,
    /// Offset of its first event.
    #[prost(uint64, tag = "2")]
    pub first: u64,
    /// Events.
    #[prost(uint64, tag = "3")]
    pub count: u64,
    /// BLAKE3 of the file, 32 bytes.
    #[prost(bytes = "bytes", tag = "4")]
    pub hash: Bytes,
    /// Bytes of the file.
    #[prost(uint64, tag = "5")]
    pub size: u64,
    /// Bytes of payload.
    #[prost(uint64, tag = "6")]
    pub payload: u64,
    /// The latest time of its events, in milliseconds since 1970-01-01 UTC.
    #[prost(uint64, tag = "7")]
    pub last_ms: u64,
    /// Bytes of payload appended to the topic before its first event; set when a seal is applied.
    #[prost(uint64, tag = "8")]
    pub before: u64,
    /// When the last of its events was appended, by the clock of the leader of that time, in milliseconds since 1970-01-01
    /// UTC. 0: nobody knows, and [`Self::last_ms`] has to do.
    #[prost(uint64, tag = "9")]
    pub appended_ms: u64,
}

impl Segment {
    /// When the last of its events was appended, as far as that is known.
    pub fn newest_ms(&self) -> u64 {
        if self.appended_ms == 0 { self.last_ms } else { self.appended_ms }
    }

    /// Offset behind its last event.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }
}

/// Lets go of a topic's oldest events.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Trim {
    /// The topic.
    #[prost(uint64, tag = "1")]
    pub topic: u64,
    /// All events before this offset.
    #[prost(uint64, tag = "2")]
    pub before: u64,
}

/// A change of a durable subscription.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SubscriptionChange {
    /// The topic.
    #[prost(uint64, tag = "1")]
    pub topic: u64,
    /// The subscription's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// What changes.
    #[prost(oneof = "SubscriptionOp", tags = "3, 4, 5")]
    pub op: Option<SubscriptionOp>,
    /// Who asks: random bytes that stand for one subscriber, over all its connections and openings. May be empty: nobody
    /// who could come back.
    #[prost(bytes = "bytes", tag = "6")]
    pub holder: Bytes,
    /// Of an opening: by a subscriber that had it open and only lost its connection. Refused with `TakenOver` when another
    /// holder has opened it since, and with `UnknownSubscription` when it is gone: so of two live subscribers, the later
    /// keeps it.
    #[prost(bool, tag = "7")]
    pub again: bool,
}

/// What changes in a durable subscription.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum SubscriptionOp {
    /// Opens it; the one who had it open loses it. A new one begins at this offset, or at the nearest that there is:
    /// 0 is the oldest event, `u64::MAX` the next one.
    #[prost(uint64, tag = "3")]
    Open(u64),
    /// Everything before an offset is handled.
    #[prost(message, tag = "4")]
    Advance(Advance),
    /// Removes it.
    #[prost(bool, tag = "5")]
    Remove(bool),
}

/// Everything before an offset is handled.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Advance {
    /// The session that the opening was answered with; refused when the subscription was opened again since, unless by the
    /// same (not empty) holder, which may have asked twice.
    #[prost(uint64, tag = "1")]
    pub session: u64,
    /// The offset that comes next. A lower one than is known changes nothing.
    #[prost(uint64, tag = "2")]
    pub next: u64,
}

/// A durable subscription, as it is stored and answered.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Subscription {
    /// The topic.
    #[prost(uint64, tag = "1")]
    pub topic: u64,
    /// Name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The offset that comes next.
    #[prost(uint64, tag = "3")]
    pub next: u64,
    /// Index of the entry that opened it last.
    #[prost(uint64, tag = "4")]
    pub session: u64,
    /// When it was last opened or moved, in milliseconds since 1970-01-01 UTC.
    #[prost(uint64, tag = "5")]
    pub changed_ms: u64,
    /// The holder that opened it last.
    #[prost(bytes = "bytes", tag = "6")]
    pub holder: Bytes,
}

/// A step in which a group's replicas changed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Step {
    /// Number of the step in its group, from 1; set when it is applied.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// What was done: `joined`, `replaced`, `moved`, `removed`, `handed-over`.
    #[prost(string, tag = "2")]
    pub what: String,
    /// The replica that came or now leads; 0 when none did.
    #[prost(uint64, tag = "3")]
    pub replica: u64,
    /// Its peer.
    #[prost(bytes = "bytes", tag = "4")]
    pub peer: Bytes,
    /// The replica that went, or led before; 0 when none did.
    #[prost(uint64, tag = "5")]
    pub gone: u64,
    /// Its peer.
    #[prost(bytes = "bytes", tag = "6")]
    pub gone_peer: Bytes,
    /// When the step began, in milliseconds since 1970-01-01 UTC.
    #[prost(uint64, tag = "7")]
    pub began_ms: u64,
    /// When it was done.
    #[prost(uint64, tag = "8")]
    pub ended_ms: u64,
    /// How long publishing stood still for it, in milliseconds.
    #[prost(uint64, tag = "9")]
    pub stood_still_ms: u64,
    /// The event that tells of it, for the outbox.
    #[prost(message, optional, tag = "10")]
    pub report: Option<Emit>,
}

/// Published events, of any topics of the group, in the order in which they are appended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Append {
    /// One publish request each.
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<AppendItem>,
}

/// The events of one publish request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AppendItem {
    /// The topic.
    #[prost(uint64, tag = "1")]
    pub topic: u64,
    /// The producer, 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub producer: Bytes,
    /// Sequence of the first event; the others follow on. A producer's first is 1.
    #[prost(uint64, tag = "3")]
    pub first_sequence: u64,
    /// The events.
    #[prost(message, repeated, tag = "4")]
    pub events: Vec<Event>,
    /// The group whose outbox they come from; 0: a publisher. Outboxes are not counted against
    /// [`crate::limits::MAX_PRODUCERS`]: what a group owes must not be refused for good.
    #[prost(uint64, tag = "5")]
    pub origin: u64,
}

/// Outcomes of runs, applied one after the other.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Outcomes {
    /// The outcomes.
    #[prost(message, repeated, tag = "1")]
    pub outcomes: Vec<Outcome>,
}

/// What one run of a function comes to. It is applied whole if the offset is still to be handled and everything
/// that the run read still stands, else not at all.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Outcome {
    /// The trigger.
    #[prost(uint64, tag = "1")]
    pub trigger: u64,
    /// The event's topic.
    #[prost(uint64, tag = "2")]
    pub topic: u64,
    /// The event's offset.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    /// 1 for the first run of this event.
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
    /// Rows that were read.
    #[prost(message, repeated, tag = "5")]
    pub reads: Vec<ReadCheck>,
    /// Ranges that were read.
    #[prost(message, repeated, tag = "6")]
    pub scans: Vec<ScanCheck>,
    /// Writes, in the order of their keys. Empty unless `Done`.
    #[prost(message, repeated, tag = "7")]
    pub writes: Vec<StateOp>,
    /// Emitted events, in order: the function's when `Done`, the dead letter when `Dead`.
    #[prost(message, repeated, tag = "8")]
    pub emits: Vec<Emit>,
    /// What becomes of the event.
    #[prost(enumeration = "Disposition", tag = "9")]
    pub disposition: i32,
    /// With `Retry`: not before this time, in milliseconds since 1970-01-01 UTC.
    #[prost(uint64, tag = "10")]
    pub not_before_ms: u64,
    /// The record of the run.
    #[prost(message, required, tag = "11")]
    pub record: ActivationRecord,
    /// The namespace of rows that the trigger's function sees.
    #[prost(string, tag = "12")]
    pub bucket: String,
    /// With `Retry`: [`crate::cursor::key_digest`] of the event's key.
    #[prost(bytes = "bytes", tag = "13")]
    pub key_digest: Bytes,
}

/// What becomes of an event after a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Disposition {
    /// It is handled: the effects stand.
    Done = 0,
    /// The run failed; it is tried again later.
    Retry = 1,
    /// The run failed for the last time; the event went to the dead-letter topic.
    Dead = 2,
}

/// What became of an outcome when its entry was applied. Not written anywhere: every replica comes to the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeResult {
    /// All of it stands.
    Applied,
    /// Nothing of it: what the run read has changed, or an earlier outcome of the entry was refused. Run again.
    Conflict,
    /// Nothing of it: the event is handled, this attempt was counted already, or the trigger or topic is gone.
    Obsolete,
    /// Nothing of it: the outbox is full, or too many events wait above the cursor. Run again later.
    Blocked,
}

/// A row that a run read, by the digest of what it saw. Equal bytes make an equal run, so no version is needed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReadCheck {
    /// Key of the row.
    #[prost(string, tag = "1")]
    pub key: String,
    /// First 16 bytes of the value's BLAKE3; empty when there was no row.
    #[prost(bytes = "bytes", tag = "2")]
    pub digest: Bytes,
}

/// A range that a run read.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ScanCheck {
    /// The prefix.
    #[prost(string, tag = "1")]
    pub prefix: String,
    /// The limit.
    #[prost(uint32, tag = "2")]
    pub limit: u32,
    /// First 16 bytes of the BLAKE3 over every row's key and value, each behind its length (u32, little-endian).
    #[prost(bytes = "bytes", tag = "3")]
    pub digest: Bytes,
}

/// A write to one row.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StateOp {
    /// Key of the row.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The new value; absent removes the row.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub value: Option<Bytes>,
}

/// A topic as an effect names it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Target {
    /// Topic id.
    #[prost(uint64, tag = "1")]
    pub topic: u64,
    /// The group that hosts it.
    #[prost(uint64, tag = "2")]
    pub group: u64,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
}

/// An event that a function published.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Emit {
    /// Where it goes.
    #[prost(message, required, tag = "1")]
    pub target: Target,
    /// The event.
    #[prost(message, required, tag = "2")]
    pub event: Event,
    /// Where it goes when `target` is gone: the trigger's dead-letter topic.
    #[prost(message, required, tag = "3")]
    pub dead: Target,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Status {
    /// It returned.
    Ok = 0,
    /// It returned an error.
    Error = 1,
    /// It trapped.
    Trap = 2,
    /// It ran out of time.
    Timeout = 3,
    /// It met a limit: memory, emitted bytes, state writes.
    Limit = 4,
    /// It could not be started: the component is missing or does not fit this peer.
    NotRun = 5,
}

/// The record of one run.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActivationRecord {
    /// The trigger's name.
    #[prost(string, tag = "1")]
    pub trigger: String,
    /// The function's name.
    #[prost(string, tag = "2")]
    pub function: String,
    /// BLAKE3 of the component, 32 bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub component: Bytes,
    /// Name of the event's topic.
    #[prost(string, tag = "4")]
    pub topic: String,
    /// The event's offset.
    #[prost(uint64, tag = "5")]
    pub offset: u64,
    /// 1 for the first run of this event.
    #[prost(uint32, tag = "6")]
    pub attempt: u32,
    /// When it started, in milliseconds since 1970-01-01 UTC.
    #[prost(uint64, tag = "7")]
    pub start_ms: u64,
    /// How long it ran, in microseconds.
    #[prost(uint64, tag = "8")]
    pub duration_us: u64,
    /// How it ended.
    #[prost(enumeration = "Status", tag = "9")]
    pub status: i32,
    /// What went wrong, for people.
    #[prost(string, tag = "10")]
    pub error: String,
    /// Its log lines, `level: text` each.
    #[prost(string, repeated, tag = "11")]
    pub log: Vec<String>,
    /// Rows written.
    #[prost(uint32, tag = "12")]
    pub writes: u32,
    /// Events emitted.
    #[prost(uint32, tag = "13")]
    pub emits: u32,
    /// The peer that ran it, 32 bytes.
    #[prost(bytes = "bytes", tag = "14")]
    pub executor: Bytes,
    /// Number of the record in its trigger and group, counted from 1; set when it is applied.
    #[prost(uint64, tag = "15")]
    pub number: u64,
    /// What became of the event.
    #[prost(enumeration = "Disposition", tag = "16")]
    pub disposition: i32,
}

/// What a group hosts: all of it, so that applying it twice, or a later one without an earlier, does no harm.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GroupSpec {
    /// Index of the catalog entry that made it. A group ignores one that is not newer than what it has.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// The group's topics, by id.
    #[prost(message, repeated, tag = "2")]
    pub topics: Vec<TopicSpec>,
    /// The triggers that match at least one of them, by id.
    #[prost(message, repeated, tag = "3")]
    pub triggers: Vec<TriggerSpec>,
    /// Replicas wanted.
    #[prost(uint32, tag = "4")]
    pub replicas: u32,
    /// Where they should be.
    #[prost(message, optional, tag = "5")]
    pub placement: Option<Placement>,
}

/// A topic of a group.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TopicSpec {
    /// Topic id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// How long events are kept; absent: for ever.
    #[prost(message, optional, tag = "3")]
    pub retention: Option<Retention>,
}

/// A trigger as a group needs it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TriggerSpec {
    /// The trigger as the catalog has it.
    #[prost(message, required, tag = "1")]
    pub info: TriggerInfo,
    /// BLAKE3 of the function's component, 32 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub component: Bytes,
    /// The function's limits.
    #[prost(message, required, tag = "3")]
    pub limits: FunctionLimits,
    /// Its dead-letter topic.
    #[prost(message, required, tag = "4")]
    pub dead: Target,
}

/// What one run may use. Zero means the default, which the accessors give.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct FunctionLimits {
    /// Linear memory, in bytes.
    #[prost(uint64, tag = "1")]
    pub memory: u64,
    /// Time, in milliseconds.
    #[prost(uint32, tag = "2")]
    pub time_ms: u32,
    /// Bytes of all emitted events together.
    #[prost(uint64, tag = "3")]
    pub emit_bytes: u64,
    /// Rows written.
    #[prost(uint32, tag = "4")]
    pub writes: u32,
}

impl FunctionLimits {
    /// Linear memory in bytes; 64 MiB unless set.
    pub fn memory_bytes(&self) -> u64 {
        if self.memory == 0 { 64 << 20 } else { self.memory.min(256 << 20) }
    }

    /// Time in milliseconds; one second unless set.
    pub fn time(&self) -> u32 {
        if self.time_ms == 0 { 1000 } else { self.time_ms.min(60_000) }
    }

    /// Emitted bytes; 1 MiB unless set, and never more than fits an entry.
    pub fn emitted(&self) -> u64 {
        if self.emit_bytes == 0 { 1 << 20 } else { self.emit_bytes.min(2 << 20) }
    }

    /// Rows written; 256 unless set.
    pub fn rows(&self) -> u32 {
        if self.writes == 0 { 256 } else { self.writes.min(4096) }
    }
}

/// A client's write to function state.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StateWrite {
    /// The namespace of rows.
    #[prost(string, tag = "1")]
    pub bucket: String,
    /// The writes.
    #[prost(message, repeated, tag = "2")]
    pub ops: Vec<StateOp>,
}

/// Effects that left the outbox.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OutboxAck {
    /// The topic that they were meant for.
    #[prost(uint64, tag = "1")]
    pub topic: u64,
    /// All up to this sequence.
    #[prost(uint64, tag = "2")]
    pub through: u64,
    /// The topic is gone: they go to their dead-letter topics.
    #[prost(bool, tag = "3")]
    pub refused: bool,
}

/// A producer that ended in order.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EndProducer {
    /// The topic.
    #[prost(uint64, tag = "1")]
    pub topic: u64,
    /// The producer, 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub producer: Bytes,
    /// Its last sequence; ignored if the group knows a later one.
    #[prost(uint64, tag = "3")]
    pub last_sequence: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn an_append_is_pinned() {
        let item = AppendItem {
            topic: 3,
            producer: Bytes::from_static(&[0xaa; 16]),
            first_sequence: 1,
            events: vec![Event::new("x")],
            origin: 0,
        };
        let command = Command { time_ms: 5, kind: Some(Kind::Append(Append { items: vec![item] })) };
        let mut want = b"\x08\x05\x12\x1d\x0a\x1b\x08\x03\x12\x10".to_vec();
        want.extend_from_slice(&[0xaa; 16]);
        want.extend_from_slice(b"\x18\x01\x22\x03\x1a\x01x");
        assert_eq!(command.encode_to_vec(), want);
        assert_eq!(Command::decode(want.as_slice()), Ok(command));
    }
}
