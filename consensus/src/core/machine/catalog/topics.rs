//! Topics and the groups that host them.

use canal_proto::catalog::{
    CatalogReply, CreateTopic, GroupInfo, Placement, Retention, SetGroup, SetTopic, TopicInfo, TriggerInfo,
};
use canal_proto::limits::{MAX_REPLICAS, MAX_TOPICS_PER_GROUP};
use canal_proto::name::check_plain;
use canal_proto::peer::{Replica, Tier};
use canal_proto::route::CATALOG;
use canal_proto::{Code, GroupId, PeerId, TopicName, WireError};

use super::{Answer, check, existed, group_key, invalid, refuse, topics_of, touch};
use crate::core::keys::Table;
use crate::core::kv::KvError;
use crate::core::machine::Place;
use crate::core::txn::Txn;

/// Replicas of a group unless said otherwise.
const DEFAULT_REPLICAS: u32 = 3;
/// Name of the group that hosts what asks for none.
const DEFAULT_GROUP: &str = "default";
/// Labels in one placement: more than that, nobody offers all.
const MAX_LABELS: usize = 16;
/// Bytes of a label's name, and of its value.
const MAX_LABEL: usize = 64;

pub(super) fn create_topic(
    txn: &mut Txn<'_>,
    place: Place<'_>,
    now_ms: u64,
    ask: &CreateTopic,
    first: &[Replica],
) -> Answer {
    let name: TopicName = check!(ask.name.parse().map_err(invalid));
    if name.is_system() && name.as_str() != TopicName::STEPS {
        return refuse(Code::InvalidArgument, "names that begin with `$` are the system's");
    }
    let (topic, group) = check!(ensure_topic(txn, place, now_ms, ask, first)?);
    match group {
        Some(group) => Ok(Ok(CatalogReply { topic: Some(topic), groups: vec![group], ..CatalogReply::default() })),
        None => existed(CatalogReply { topic: Some(topic), ..CatalogReply::default() }),
    }
}

type Ensured = Result<(TopicInfo, Option<GroupInfo>), WireError>;

/// The topic, created if it was not there; with the group if it was.
pub(super) fn ensure_topic(
    txn: &mut Txn<'_>,
    place: Place<'_>,
    now_ms: u64,
    ask: &CreateTopic,
    first: &[Replica],
) -> Result<Ensured, KvError> {
    let topic_key = txn.keys.make(Table::CatalogTopics, &[ask.name.as_bytes()]);
    if let Some(topic) = txn.get::<TopicInfo>(&topic_key)? {
        let group: GroupInfo = txn.get_or_default(&group_key(txn, GroupId(topic.group)))?;
        return Ok(same_topic(ask, &topic, &group).map(|()| (topic, None)));
    }
    let group = check!(ensure_group(txn, place, ask, first)?);
    let hosted = topics_of(txn, GroupId(group.id))?.len();
    if hosted >= MAX_TOPICS_PER_GROUP {
        let message = format!(
            "group `{}` hosts {hosted} topics; at most {MAX_TOPICS_PER_GROUP} are allowed: name another with --group",
            group.name
        );
        return Ok(Err(WireError::new(Code::TooLarge, message)));
    }
    let topic = TopicInfo {
        id: place.index,
        name: ask.name.clone(),
        group: group.id,
        group_name: group.name.clone(),
        created_ms: now_ms,
        retention: bounded(ask.retention),
    };
    txn.put(topic_key, &topic);
    let group = touch(txn, place, group);
    Ok(Ok((topic, Some(group))))
}

/// Whether the topic that stands there is what is asked for. What is left out is not asked for.
fn same_topic(ask: &CreateTopic, topic: &TopicInfo, group: &GroupInfo) -> Result<(), WireError> {
    let wanted = group.replicas;
    let message =
        if (!ask.group.is_empty() && ask.group != topic.group_name) || (ask.replicas != 0 && ask.replicas != wanted) {
            format!(
                "topic `{}` exists in group `{}` with {wanted} replicas; remove it first, or use it as it is",
                topic.name, topic.group_name
            )
        } else if ask.retention.is_some() && bounded(ask.retention) != topic.retention {
            format!("topic `{}` exists with another retention; `canal topic set` changes it", topic.name)
        } else if !stands_as_asked(ask, group) {
            format!("topic `{}` exists in group `{}`, which is placed otherwise", topic.name, topic.group_name)
        } else {
            return Ok(());
        };
    Err(WireError::new(Code::AlreadyExists, message))
}

/// Whether the group is placed as is asked for. Peers that were named since, to move it, are no other definition.
fn stands_as_asked(ask: &CreateTopic, group: &GroupInfo) -> bool {
    let Some(asked) = &ask.placement else { return true };
    let stands = group.placement.clone().unwrap_or_default();
    let pinned = asked.pinned.is_empty() || asked.pinned == stands.pinned;
    pinned && asked.tier == stands.tier && asked.labels == stands.labels
}

/// A retention that bounds anything.
fn bounded(retention: Option<Retention>) -> Option<Retention> {
    retention.filter(|retention| *retention != Retention::default())
}

/// A placement that wishes for anything.
fn wished(placement: Option<&Placement>) -> Option<Placement> {
    placement.filter(|placement| **placement != Placement::default()).cloned()
}

/// Name of the group for a topic that names none: topics that ask for the same share one.
fn group_name(ask: &CreateTopic) -> String {
    let mut name = DEFAULT_GROUP.to_owned();
    if !matches!(ask.replicas, 0 | DEFAULT_REPLICAS) {
        name.push_str(&format!("-r{}", ask.replicas));
    }
    if let Some(placement) = &ask.placement {
        if let Some(tier) = placement.tier.and_then(|tier| Tier::try_from(tier).ok()) {
            name.push_str(&format!("-{}", tier.name()));
        }
        for label in &placement.labels {
            name.push_str(&format!("-{}.{}", label.key, label.value));
        }
    }
    // labels may hold what names can't; should two come to one name, the second is told to name its group
    name.replace(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')), "_")
}

fn check_replicas(replicas: u32) -> Result<(), WireError> {
    if replicas as usize > MAX_REPLICAS {
        return Err(invalid(format!("{replicas} replicas; at most {MAX_REPLICAS} are allowed")));
    }
    Ok(())
}

fn check_placement(placement: &Placement) -> Result<(), WireError> {
    if placement.tier.is_some_and(|tier| Tier::try_from(tier).is_err()) {
        return Err(invalid("no such tier; use iot, edge or cloud"));
    }
    if placement.labels.len() > MAX_LABELS {
        return Err(invalid(format!("{} labels; at most {MAX_LABELS} are allowed", placement.labels.len())));
    }
    if let Some(label) = placement
        .labels
        .iter()
        .find(|label| label.key.is_empty() || label.key.len() > MAX_LABEL || label.value.len() > MAX_LABEL)
    {
        let message = format!("label `{}`: a name has 1 to {MAX_LABEL} bytes, a value at most as many", label.key);
        return Err(invalid(message));
    }
    if placement.pinned.len() > MAX_REPLICAS {
        let message = format!("{} pinned peers; a group has at most {MAX_REPLICAS} replicas", placement.pinned.len());
        return Err(invalid(message));
    }
    for (at, peer) in placement.pinned.iter().enumerate() {
        let peer_id = PeerId::from_slice(peer).map_err(invalid)?;
        if placement.pinned.iter().skip(at + 1).any(|other| other == peer) {
            return Err(invalid(format!("peer {peer_id} is pinned twice")));
        }
    }
    Ok(())
}

fn ensure_group(
    txn: &mut Txn<'_>,
    place: Place<'_>,
    ask: &CreateTopic,
    first: &[Replica],
) -> Result<Result<GroupInfo, WireError>, KvError> {
    let name = if ask.group.is_empty() { group_name(ask) } else { ask.group.clone() };
    check!(check_plain(&name).map_err(invalid));
    let replicas = ask.replicas;
    let placement = wished(ask.placement.as_ref());
    let name_key = txn.keys.make(Table::CatalogGroupNames, &[name.as_bytes()]);
    if let Some(id) = txn.get_bytes(&name_key)? {
        let group: GroupInfo = txn.get_or_default(&txn.keys.make(Table::CatalogGroups, &[&id]))?;
        let message = if replicas != 0 && replicas != group.replicas {
            format!(
                "group `{name}` has {} replicas, not {replicas}; leave --replicas out or name another group",
                group.replicas
            )
        } else if !stands_as_asked(ask, &group) {
            format!("group `{name}` is placed otherwise; leave --tier and --label out or name another group")
        } else {
            return Ok(Ok(group));
        };
        return Ok(Err(WireError::new(Code::AlreadyExists, message)));
    }
    let replicas = if replicas == 0 { DEFAULT_REPLICAS } else { replicas };
    check!(check_replicas(replicas));
    check!(placement.as_ref().map_or(Ok(()), check_placement));
    if first.is_empty() {
        let message = "no peer is known yet that could hold the group; try again in a moment";
        return Ok(Err(WireError::new(Code::WouldBlock, message)));
    }
    let id = GroupId::of_entry(place.mesh, place.namespace, place.index);
    let group = GroupInfo {
        id: id.0,
        name,
        replicas,
        first: first.iter().take(replicas as usize).cloned().collect(),
        active: false,
        spec_version: place.index,
        placement,
    };
    txn.put_bytes(name_key, id.0.to_be_bytes().to_vec().into());
    txn.put(group_key(txn, id), &group);
    Ok(Ok(group))
}

/// Changes what a topic is kept by.
pub(super) fn set_topic(txn: &mut Txn<'_>, place: Place<'_>, ask: &SetTopic) -> Answer {
    let key = txn.keys.make(Table::CatalogTopics, &[ask.name.as_bytes()]);
    let Some(mut topic) = txn.get::<TopicInfo>(&key)? else { return Ok(Err(unknown_topic(&ask.name))) };
    if ask.retention.is_none() || bounded(ask.retention) == topic.retention {
        return existed(CatalogReply { topic: Some(topic), ..CatalogReply::default() });
    }
    topic.retention = bounded(ask.retention);
    txn.put(key, &topic);
    let group = txn.get::<GroupInfo>(&group_key(txn, GroupId(topic.group)))?;
    let groups = group.into_iter().map(|group| touch(txn, place, group)).collect();
    Ok(Ok(CatalogReply { topic: Some(topic), groups, ..CatalogReply::default() }))
}

/// Changes how many replicas a group has, and where. The catalog's own group can be changed like any other; before the
/// first change the catalog has no row of it.
pub(super) fn set_group(txn: &mut Txn<'_>, place: Place<'_>, ask: &SetGroup) -> Answer {
    let id = GroupId(ask.group);
    let own = (id == place.group).then(|| GroupInfo {
        id: id.0,
        name: CATALOG.to_owned(),
        replicas: DEFAULT_REPLICAS,
        active: true,
        ..GroupInfo::default()
    });
    let Some(old) = txn.get::<GroupInfo>(&group_key(txn, id))?.or(own) else {
        return refuse(Code::UnknownGroup, format!("no group {id}; `canal group ls` lists what there is"));
    };
    check!(check_replicas(ask.replicas));
    check!(ask.placement.as_ref().map_or(Ok(()), check_placement));
    let replicas = if ask.replicas == 0 { old.replicas } else { ask.replicas };
    let placement = if ask.placement.is_some() { wished(ask.placement.as_ref()) } else { old.placement.clone() };
    if replicas == old.replicas && placement == old.placement {
        return existed(CatalogReply::default());
    }
    let group = touch(txn, place, GroupInfo { replicas, placement, ..old });
    Ok(Ok(CatalogReply { groups: vec![group], ..CatalogReply::default() }))
}

fn unknown_topic(name: &str) -> WireError {
    WireError::new(Code::UnknownTopic, format!("no topic `{name}`; `canal topic ls` lists what there is"))
}

pub(super) fn remove_topic(txn: &mut Txn<'_>, place: Place<'_>, name: &str) -> Answer {
    let key = txn.keys.make(Table::CatalogTopics, &[name.as_bytes()]);
    let Some(topic) = txn.get::<TopicInfo>(&key)? else {
        return Ok(Err(unknown_topic(name)));
    };
    if let Some(trigger) = is_dead_letter_target_of(txn, name)? {
        let message = format!("`{name}` takes the dead letters of trigger `{trigger}`; remove the trigger first");
        return refuse(Code::InUse, message);
    }
    txn.delete(key);
    let Some(group) = txn.get::<GroupInfo>(&group_key(txn, GroupId(topic.group)))? else {
        return Ok(Ok(CatalogReply::default()));
    };
    let group = touch(txn, place, group);
    Ok(Ok(CatalogReply { topic: Some(topic), groups: vec![group], ..CatalogReply::default() }))
}

/// The trigger whose dead letters go to this topic, if it exists.
pub fn is_dead_letter_target_of(txn: &Txn<'_>, topic: &str) -> Result<Option<String>, KvError> {
    let Some(trigger) = topic.strip_prefix("$dead/") else { return Ok(None) };
    let key = txn.keys.make(Table::CatalogTriggers, &[trigger.as_bytes()]);
    Ok(txn.get::<TriggerInfo>(&key)?.map(|trigger| trigger.name))
}
