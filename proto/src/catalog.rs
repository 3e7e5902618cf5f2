//! The catalog of a namespace: its topics, groups, functions and triggers, and the changes of it.

use bytes::Bytes;

use crate::log::FunctionLimits;
use crate::name::{Pattern, TopicName};
use crate::peer::Replica;

/// How long a topic's events are kept. Whatever is exceeded first lets go of the oldest; zero: no bound.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Retention {
    /// Events.
    #[prost(uint64, tag = "1")]
    pub events: u64,
    /// Bytes of payload.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// Milliseconds since an event was appended.
    #[prost(uint64, tag = "3")]
    pub age_ms: u64,
}

/// Where a group's replicas should be. What can't be had is done without: a group keeps its number of replicas before
/// it keeps to a tier or a label.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Placement {
    /// Peers of this tier first; see [`crate::peer::Tier`].
    #[prost(enumeration = "crate::peer::Tier", optional, tag = "1")]
    pub tier: Option<i32>,
    /// Peers with all these labels first.
    #[prost(message, repeated, tag = "2")]
    pub labels: Vec<crate::peer::Label>,
    /// These peers before any other, by public key: for people who know better.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub pinned: Vec<Bytes>,
}

/// A topic as the catalog has it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TopicInfo {
    /// Topic id: index of the entry that created it.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The group that hosts it.
    #[prost(uint64, tag = "3")]
    pub group: u64,
    /// Name of that group.
    #[prost(string, tag = "4")]
    pub group_name: String,
    /// When it was created, in milliseconds since 1970-01-01 UTC.
    #[prost(uint64, tag = "5")]
    pub created_ms: u64,
    /// How long events are kept; absent: for ever.
    #[prost(message, optional, tag = "6")]
    pub retention: Option<Retention>,
}

/// A group as the catalog has it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GroupInfo {
    /// Group id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Replicas wanted.
    #[prost(uint32, tag = "3")]
    pub replicas: u32,
    /// The voters that it began with.
    #[prost(message, repeated, tag = "4")]
    pub first: Vec<Replica>,
    /// All of these have been created; from now on nobody creates them again.
    #[prost(bool, tag = "5")]
    pub active: bool,
    /// Index of the last catalog entry that changed what the group hosts.
    #[prost(uint64, tag = "6")]
    pub spec_version: u64,
    /// Where its replicas should be.
    #[prost(message, optional, tag = "7")]
    pub placement: Option<Placement>,
}

/// A function as the catalog has it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FunctionInfo {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// BLAKE3 of the component, 32 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub component: Bytes,
    /// Size of the component in bytes.
    #[prost(uint64, tag = "3")]
    pub size: u64,
    /// Limits of a run.
    #[prost(message, required, tag = "4")]
    pub limits: FunctionLimits,
    /// When it was deployed, in milliseconds since 1970-01-01 UTC.
    #[prost(uint64, tag = "5")]
    pub deployed_ms: u64,
}

/// Where a trigger begins in a topic that is older than itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Start {
    /// With the next event.
    Latest = 0,
    /// With the first event there is.
    Earliest = 1,
}

/// A trigger as the catalog has it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TriggerInfo {
    /// Trigger id: index of the entry that created it.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Patterns of topics; it fires on a topic that any of them matches.
    #[prost(string, repeated, tag = "3")]
    pub patterns: Vec<String>,
    /// Name of the function.
    #[prost(string, tag = "4")]
    pub function: String,
    /// Where it begins.
    #[prost(enumeration = "Start", tag = "5")]
    pub start: i32,
    /// Fires nothing for now.
    #[prost(bool, tag = "6")]
    pub paused: bool,
    /// Runs of one event before it goes to the dead-letter topic. Zero: 5.
    #[prost(uint32, tag = "7")]
    pub max_attempts: u32,
    /// Wait before the second run, in milliseconds; doubled for each further one, up to a minute. Zero: 100.
    #[prost(uint32, tag = "8")]
    pub backoff_ms: u32,
    /// The rows that the function sees; the trigger's name unless said otherwise.
    #[prost(string, tag = "9")]
    pub bucket: String,
    /// When it was created, in milliseconds since 1970-01-01 UTC.
    #[prost(uint64, tag = "10")]
    pub created_ms: u64,
}

impl TriggerInfo {
    /// Runs of one event before it goes to the dead-letter topic.
    pub fn attempts(&self) -> u32 {
        if self.max_attempts == 0 { 5 } else { self.max_attempts }
    }

    /// Tells of a topic's name whether the trigger fires on it. A trigger never fires on its own dead letters:
    /// that would be a circle without an end. Patterns that can't be read match nothing.
    pub fn filter(&self) -> impl Fn(&str) -> bool + use<> {
        let own = TopicName::dead_letters(&self.name);
        let patterns: Vec<Pattern> = self.patterns.iter().filter_map(|pattern| pattern.parse().ok()).collect();
        move |topic| topic != own && patterns.iter().any(|pattern| pattern.matches(topic))
    }

    /// The rows that its function sees.
    pub fn state_bucket(&self) -> &str {
        if self.bucket.is_empty() { &self.name } else { &self.bucket }
    }

    /// Wait after `attempt` failed runs, in milliseconds: exponential, at most a minute.
    pub fn backoff(&self, attempt: u32) -> u64 {
        let first = if self.backoff_ms == 0 { 100 } else { u64::from(self.backoff_ms) };
        first.saturating_mul(1 << attempt.saturating_sub(1).min(20)).min(60_000)
    }
}

/// A change of the catalog.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CatalogCommand {
    /// What changes.
    #[prost(oneof = "Change", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub change: Option<Change>,
    /// Where a group that has to be created for it begins. Filled in by the catalog's leader.
    #[prost(message, repeated, tag = "15")]
    pub placement: Vec<Replica>,
}

/// What changes in the catalog.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Change {
    /// Creates a topic.
    #[prost(message, tag = "1")]
    CreateTopic(CreateTopic),
    /// Removes a topic and its events.
    #[prost(string, tag = "2")]
    RemoveTopic(String),
    /// Brings a piece of a component into the mesh.
    #[prost(message, tag = "3")]
    PutChunk(BlobChunk),
    /// Gives a component a name.
    #[prost(message, tag = "4")]
    Deploy(FunctionInfo),
    /// Removes a function.
    #[prost(string, tag = "5")]
    RemoveFunction(String),
    /// Creates a trigger; its id and creation time are set when it is applied.
    #[prost(message, tag = "6")]
    CreateTrigger(TriggerInfo),
    /// Removes a trigger.
    #[prost(string, tag = "7")]
    RemoveTrigger(String),
    /// Pauses or resumes a trigger.
    #[prost(message, tag = "8")]
    SetPaused(SetPaused),
    /// All first replicas of a group exist.
    #[prost(uint64, tag = "9")]
    GroupActive(u64),
    /// Changes a topic.
    #[prost(message, tag = "10")]
    SetTopic(SetTopic),
    /// Changes a group.
    #[prost(message, tag = "11")]
    SetGroup(SetGroup),
}

/// Changes a topic.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SetTopic {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// How long events are kept from now on; absent: as before.
    #[prost(message, optional, tag = "2")]
    pub retention: Option<Retention>,
}

/// Changes a group.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SetGroup {
    /// The group's id.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// Replicas wanted; 0: as before.
    #[prost(uint32, tag = "2")]
    pub replicas: u32,
    /// Where its replicas should be; absent: as before.
    #[prost(message, optional, tag = "3")]
    pub placement: Option<Placement>,
}

/// Creates a topic.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CreateTopic {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Name of the group; empty: `default`, or `default-rN` when a replica count is given.
    #[prost(string, tag = "2")]
    pub group: String,
    /// Replicas wanted. Zero: 3, or what the group has.
    #[prost(uint32, tag = "3")]
    pub replicas: u32,
    /// How long events are kept; absent: for ever.
    #[prost(message, optional, tag = "4")]
    pub retention: Option<Retention>,
    /// Where the replicas of a group that is created for it should be.
    #[prost(message, optional, tag = "5")]
    pub placement: Option<Placement>,
}

/// A piece of a component.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct BlobChunk {
    /// BLAKE3 of the whole, 32 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub hash: Bytes,
    /// Number of the piece, from 0; every piece but the last has [`crate::limits::BLOB_CHUNK`] bytes.
    #[prost(uint32, tag = "2")]
    pub number: u32,
    /// The piece.
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
}

/// Pauses or resumes a trigger.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SetPaused {
    /// Name of the trigger.
    #[prost(string, tag = "1")]
    pub trigger: String,
    /// Whether it is paused from now on.
    #[prost(bool, tag = "2")]
    pub paused: bool,
}

/// What a change of the catalog is answered with.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CatalogReply {
    /// The topic that was created, or stood there already with the same definition.
    #[prost(message, optional, tag = "1")]
    pub topic: Option<TopicInfo>,
    /// The trigger that was created or changed.
    #[prost(message, optional, tag = "2")]
    pub trigger: Option<TriggerInfo>,
    /// The function that was deployed.
    #[prost(message, optional, tag = "3")]
    pub function: Option<FunctionInfo>,
    /// Groups whose spec changed, as they stand after the change.
    #[prost(message, repeated, tag = "4")]
    pub groups: Vec<GroupInfo>,
    /// It stood there already; nothing changed.
    #[prost(bool, tag = "5")]
    pub existed: bool,
}
