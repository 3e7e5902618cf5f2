//! The catalog of a namespace: what exists, and which group hosts it.
//!
//! Every change goes through the catalog's log, so of two changes that exclude each other one comes first and the
//! other is refused. A change that finds what it wants already there answers `existed` and changes nothing: it is
//! safe to send again. What a group hosts is derived from the catalog ([`group_spec`]); the catalog's leader brings
//! the newest version of it to the group, again and again until the group has it. Functions and triggers are here, topics
//! and groups in a file of their own.

use canal_proto::catalog::{
    BlobChunk, CatalogCommand, CatalogReply, Change, CreateTopic, FunctionInfo, GroupInfo, TopicInfo, TriggerInfo,
};
use canal_proto::limits::{BLOB_CHUNK, MAX_COMPONENT, MAX_PATTERNS, MAX_TRIGGERS};
use canal_proto::log::{GroupSpec, Target, TopicSpec, TriggerSpec};
use canal_proto::name::check_plain;
use canal_proto::peer::Replica;
use canal_proto::{Code, ContentHash, GroupId, Pattern, TopicName, WireError};

use super::Place;
use crate::core::keys::Table;
use crate::core::kv::KvError;
use crate::core::rows::BlobRow;
use crate::core::txn::Txn;

mod topics;

pub use topics::is_dead_letter_target_of;

/// All rows of a table: the catalog's tables are bounded by their own limits.
const ALL: usize = usize::MAX / 2;

type Answer = Result<Result<CatalogReply, WireError>, KvError>;

fn refuse(code: Code, message: impl Into<String>) -> Answer {
    Ok(Err(WireError::new(code, message)))
}

fn existed(reply: CatalogReply) -> Answer {
    Ok(Ok(CatalogReply { existed: true, ..reply }))
}

/// Answers with the reason where a check fails.
macro_rules! check {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return Ok(Err(error)),
        }
    };
}
use check;

fn invalid(error: impl std::fmt::Display) -> WireError {
    WireError::new(Code::InvalidArgument, error.to_string())
}

pub(super) fn apply(txn: &mut Txn<'_>, place: Place<'_>, now_ms: u64, command: &CatalogCommand) -> Answer {
    match &command.change {
        Some(Change::CreateTopic(ask)) => topics::create_topic(txn, place, now_ms, ask, &command.placement),
        Some(Change::RemoveTopic(name)) => topics::remove_topic(txn, place, name),
        Some(Change::PutChunk(chunk)) => put_chunk(txn, chunk),
        Some(Change::Deploy(function)) => deploy(txn, place, now_ms, function),
        Some(Change::RemoveFunction(name)) => remove_function(txn, name),
        Some(Change::CreateTrigger(trigger)) => create_trigger(txn, place, now_ms, trigger, &command.placement),
        Some(Change::RemoveTrigger(name)) => remove_trigger(txn, place, name),
        Some(Change::SetPaused(set)) => set_paused(txn, place, &set.trigger, set.paused),
        Some(Change::GroupActive(id)) => group_active(txn, GroupId(*id)),
        Some(Change::SetTopic(ask)) => topics::set_topic(txn, place, ask),
        Some(Change::SetGroup(ask)) => topics::set_group(txn, place, ask),
        None => refuse(Code::InvalidArgument, "a change that this version does not know; update the peer"),
    }
}

fn put_chunk(txn: &mut Txn<'_>, chunk: &BlobChunk) -> Answer {
    if ContentHash::from_slice(&chunk.hash).is_err() || chunk.data.is_empty() || chunk.data.len() > BLOB_CHUNK {
        let message = format!("a piece of a component has a hash of 32 bytes and 1 to {BLOB_CHUNK} bytes of data");
        return refuse(Code::InvalidArgument, message);
    }
    if chunk.number as usize >= MAX_COMPONENT / BLOB_CHUNK {
        let message = format!("a component has at most {MAX_COMPONENT} bytes");
        return refuse(Code::TooLarge, message);
    }
    let key = txn.keys.make(Table::CatalogBlobs, &[&chunk.hash, &chunk.number.to_be_bytes()]);
    txn.put(key, &BlobRow { data: chunk.data.clone() });
    Ok(Ok(CatalogReply::default()))
}

fn deploy(txn: &mut Txn<'_>, place: Place<'_>, now_ms: u64, ask: &FunctionInfo) -> Answer {
    check!(check_plain(&ask.name).map_err(invalid));
    let pieces = txn.scan::<BlobRow>(&txn.keys.make(Table::CatalogBlobs, &[&ask.component]), ALL)?;
    let mut hasher = blake3::Hasher::new();
    pieces.iter().for_each(|(_, piece)| {
        hasher.update(&piece.data);
    });
    // pieces are read back by their numbers
    let whole = pieces.iter().zip(0u32..).all(|((key, _), number)| key.ends_with(&number.to_be_bytes()));
    if pieces.is_empty() || !whole || hasher.finalize().as_bytes().as_slice() != ask.component.as_ref() {
        let message = "the component's pieces do not make its hash; send them all again, then deploy";
        return refuse(Code::BadComponent, message);
    }
    let key = txn.keys.make(Table::CatalogFunctions, &[ask.name.as_bytes()]);
    let old = txn.get::<FunctionInfo>(&key)?;
    if let Some(old) = &old
        && old.component == ask.component
        && old.limits == ask.limits
    {
        return existed(CatalogReply { function: Some(old.clone()), ..CatalogReply::default() });
    }
    let size = pieces.iter().map(|(_, piece)| piece.data.len() as u64).sum();
    let function = FunctionInfo { size, deployed_ms: now_ms, ..ask.clone() };
    txn.put(key, &function);
    if let Some(old) = old {
        drop_unused_component(txn, &old.component)?;
    }
    let mut groups = Vec::new();
    for trigger in triggers(txn)?.into_iter().filter(|trigger| trigger.function == ask.name) {
        touch_matching(txn, place, &trigger, &mut groups)?;
    }
    Ok(Ok(CatalogReply { function: Some(function), groups, ..CatalogReply::default() }))
}

fn remove_function(txn: &mut Txn<'_>, name: &str) -> Answer {
    let key = txn.keys.make(Table::CatalogFunctions, &[name.as_bytes()]);
    let Some(function) = txn.get::<FunctionInfo>(&key)? else { return Ok(Err(unknown_function(name))) };
    if let Some(trigger) = triggers(txn)?.into_iter().find(|trigger| trigger.function == name) {
        let message = format!("trigger `{}` runs function `{name}`; remove the trigger first", trigger.name);
        return refuse(Code::InUse, message);
    }
    txn.delete(key);
    drop_unused_component(txn, &function.component)?;
    Ok(Ok(CatalogReply { function: Some(function), ..CatalogReply::default() }))
}

fn drop_unused_component(txn: &mut Txn<'_>, component: &[u8]) -> Result<(), KvError> {
    let functions = txn.scan::<FunctionInfo>(&txn.keys.one(Table::CatalogFunctions), ALL)?;
    if functions.iter().any(|(_, function)| function.component == component) {
        return Ok(());
    }
    txn.delete_all(&txn.keys.make(Table::CatalogBlobs, &[component]))
}

fn unknown_function(name: &str) -> WireError {
    WireError::new(Code::UnknownFunction, format!("no function `{name}`; deploy it first with `canal fn deploy`"))
}

fn create_trigger(txn: &mut Txn<'_>, place: Place<'_>, now_ms: u64, ask: &TriggerInfo, first: &[Replica]) -> Answer {
    check!(check_plain(&ask.name).map_err(invalid));
    if ask.patterns.is_empty() || ask.patterns.len() > MAX_PATTERNS {
        return refuse(Code::InvalidArgument, format!("a trigger has 1 to {MAX_PATTERNS} patterns"));
    }
    for pattern in &ask.patterns {
        check!(pattern.parse::<Pattern>().map_err(invalid));
    }
    let function_key = txn.keys.make(Table::CatalogFunctions, &[ask.function.as_bytes()]);
    if txn.get::<FunctionInfo>(&function_key)?.is_none() {
        return Ok(Err(unknown_function(&ask.function)));
    }
    let bucket = if ask.bucket.is_empty() { ask.name.clone() } else { ask.bucket.clone() };
    check!(check_plain(&bucket).map_err(invalid));
    let key = txn.keys.make(Table::CatalogTriggers, &[ask.name.as_bytes()]);
    let wanted = TriggerInfo { id: 0, created_ms: 0, paused: false, bucket, ..ask.clone() };
    if let Some(old) = txn.get::<TriggerInfo>(&key)? {
        if (TriggerInfo { id: 0, created_ms: 0, paused: false, ..old.clone() }) == wanted {
            return existed(CatalogReply { trigger: Some(old), ..CatalogReply::default() });
        }
        let message = format!("trigger `{}` exists with another definition; remove it first", ask.name);
        return refuse(Code::AlreadyExists, message);
    }
    if triggers(txn)?.len() >= MAX_TRIGGERS {
        return refuse(Code::TooLarge, format!("a namespace has at most {MAX_TRIGGERS} triggers"));
    }
    let trigger = TriggerInfo { id: place.index, created_ms: now_ms, paused: ask.paused, ..wanted };
    // dead letters live beside the events where they can, so that they need no outbox
    let beside = matching(txn, &trigger)?.into_iter().next();
    let dead = CreateTopic {
        name: TopicName::dead_letters(&trigger.name),
        group: beside.map(|topic| topic.group_name).unwrap_or_default(),
        replicas: 0,
        ..CreateTopic::default()
    };
    let old_dead = txn.get::<TopicInfo>(&txn.keys.make(Table::CatalogTopics, &[dead.name.as_bytes()]))?;
    let mut groups = Vec::new();
    if old_dead.is_none() {
        let (_, group) = check!(topics::ensure_topic(txn, place, now_ms, &dead, first)?);
        groups.extend(group);
    }
    txn.put(key, &trigger);
    touch_matching(txn, place, &trigger, &mut groups)?;
    Ok(Ok(CatalogReply { trigger: Some(trigger), groups, ..CatalogReply::default() }))
}

fn remove_trigger(txn: &mut Txn<'_>, place: Place<'_>, name: &str) -> Answer {
    let key = txn.keys.make(Table::CatalogTriggers, &[name.as_bytes()]);
    let Some(trigger) = txn.get::<TriggerInfo>(&key)? else { return Ok(Err(unknown_trigger(name))) };
    txn.delete(key);
    let mut groups = Vec::new();
    touch_matching(txn, place, &trigger, &mut groups)?;
    Ok(Ok(CatalogReply { trigger: Some(trigger), groups, ..CatalogReply::default() }))
}

fn unknown_trigger(name: &str) -> WireError {
    WireError::new(Code::UnknownTrigger, format!("no trigger `{name}`; `canal trigger ls` lists what there is"))
}

fn set_paused(txn: &mut Txn<'_>, place: Place<'_>, name: &str, paused: bool) -> Answer {
    let key = txn.keys.make(Table::CatalogTriggers, &[name.as_bytes()]);
    let Some(mut trigger) = txn.get::<TriggerInfo>(&key)? else { return Ok(Err(unknown_trigger(name))) };
    if trigger.paused == paused {
        return existed(CatalogReply { trigger: Some(trigger), ..CatalogReply::default() });
    }
    trigger.paused = paused;
    txn.put(key, &trigger);
    let mut groups = Vec::new();
    touch_matching(txn, place, &trigger, &mut groups)?;
    Ok(Ok(CatalogReply { trigger: Some(trigger), groups, ..CatalogReply::default() }))
}

fn group_active(txn: &mut Txn<'_>, id: GroupId) -> Answer {
    let key = group_key(txn, id);
    let Some(mut group) = txn.get::<GroupInfo>(&key)? else {
        return refuse(Code::UnknownGroup, format!("no group {id}"));
    };
    group.active = true;
    txn.put(key, &group);
    Ok(Ok(CatalogReply { groups: vec![group], ..CatalogReply::default() }))
}

fn group_key(txn: &Txn<'_>, id: GroupId) -> bytes::Bytes {
    txn.keys.make(Table::CatalogGroups, &[&id.0.to_be_bytes()])
}

fn triggers(txn: &Txn<'_>) -> Result<Vec<TriggerInfo>, KvError> {
    let rows = txn.scan(&txn.keys.one(Table::CatalogTriggers), ALL)?;
    Ok(rows.into_iter().map(|(_, trigger)| trigger).collect())
}

fn topics(txn: &Txn<'_>) -> Result<Vec<TopicInfo>, KvError> {
    let rows = txn.scan(&txn.keys.one(Table::CatalogTopics), ALL)?;
    Ok(rows.into_iter().map(|(_, topic)| topic).collect())
}

fn topics_of(txn: &Txn<'_>, group: GroupId) -> Result<Vec<TopicInfo>, KvError> {
    let mut hosted = topics(txn)?;
    hosted.retain(|topic| topic.group == group.0);
    hosted.sort_by_key(|topic| topic.id);
    Ok(hosted)
}

fn matching(txn: &Txn<'_>, trigger: &TriggerInfo) -> Result<Vec<TopicInfo>, KvError> {
    let matches = trigger.filter();
    let mut topics = topics(txn)?;
    topics.retain(|topic| matches(&topic.name));
    topics.sort_by_key(|topic| topic.id);
    Ok(topics)
}

/// Notes that what a group hosts has changed with this entry.
fn touch(txn: &mut Txn<'_>, place: Place<'_>, mut group: GroupInfo) -> GroupInfo {
    group.spec_version = place.index;
    let key = group_key(txn, GroupId(group.id));
    txn.put(key, &group);
    group
}

fn touch_matching(
    txn: &mut Txn<'_>,
    place: Place<'_>,
    trigger: &TriggerInfo,
    touched: &mut Vec<GroupInfo>,
) -> Result<(), KvError> {
    for topic in matching(txn, trigger)? {
        if touched.iter().any(|group| group.id == topic.group) {
            continue;
        }
        if let Some(group) = txn.get::<GroupInfo>(&group_key(txn, GroupId(topic.group)))? {
            let group = touch(txn, place, group);
            touched.push(group);
        }
    }
    Ok(())
}

/// What a group hosts, by the catalog as it stands; `None` for a group that the catalog does not know.
pub fn group_spec(txn: &Txn<'_>, id: GroupId) -> Result<Option<GroupSpec>, KvError> {
    let Some(group) = txn.get::<GroupInfo>(&group_key(txn, id))? else { return Ok(None) };
    let hosted = topics_of(txn, id)?;
    let mut specs = Vec::new();
    for trigger in triggers(txn)? {
        let matches = trigger.filter();
        if !hosted.iter().any(|topic| matches(&topic.name)) {
            continue;
        }
        let function_key = txn.keys.make(Table::CatalogFunctions, &[trigger.function.as_bytes()]);
        let function: FunctionInfo = txn.get_or_default(&function_key)?;
        let dead_name = TopicName::dead_letters(&trigger.name);
        let dead: TopicInfo = txn.get_or_default(&txn.keys.make(Table::CatalogTopics, &[dead_name.as_bytes()]))?;
        specs.push(TriggerSpec {
            info: trigger,
            component: function.component,
            limits: function.limits,
            dead: Target { topic: dead.id, group: dead.group, name: dead_name },
        });
    }
    specs.sort_by_key(|spec| spec.info.id);
    Ok(Some(GroupSpec {
        version: group.spec_version,
        topics: hosted
            .into_iter()
            .map(|topic| TopicSpec { id: topic.id, name: topic.name, retention: topic.retention })
            .collect(),
        triggers: specs,
        replicas: group.replicas,
        placement: group.placement,
    }))
}
