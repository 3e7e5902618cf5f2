//! What each request other than a publish is answered with.

use std::time::Duration;

use canal_consensus::{GroupHandle, Refused, Reply};
use canal_proto::catalog::{CatalogCommand, CatalogReply, Change, FunctionInfo, Retention};
use canal_proto::limits::MAX_SCAN;
use canal_proto::log::Kind;
use canal_proto::peer::{PeerInfo, Replica};
use canal_proto::request::{
    Activations, ActivationsAsk, Answer, ApplySpec, Ask, Blob, BlobAsk, CatalogAsk, CatalogView, Consistency, Done,
    EndProducer, GroupStatus, PeerStatus, PieceAsk, Producers, ProducersAsk, RefusedCount, StateGet, StateList,
    StatePut, StateRows, TopicStatus, TriggerLag,
};
use canal_proto::{Code, ContentHash, GroupId, Pattern, PeerId, TopicId, TriggerId, WireError};
use canal_topology::{Candidate, Objective};
use tokio::time::sleep;

use crate::node::{Node, internal};
use crate::rooms;

type Answered = Result<Answer, WireError>;

/// Records of activations listed unless said otherwise.
const ACTIVATIONS: u32 = 50;
/// Records of activations in one answer: with full logs, they still fit a frame.
const MAX_ACTIVATIONS: u32 = 200;
/// Producers in one answer: with as many runs as each may have, their rows are read in moments.
const MAX_PRODUCERS_PAGE: u32 = 500;
/// How long after its start a peer waits for others to become known, before it places a group on fewer than wanted.
const SETTLE: Duration = Duration::from_secs(4);
/// Replicas of a group that says nothing of them.
const DEFAULT_REPLICAS: u32 = 3;

/// Answers a request.
pub async fn answer(node: &Node, peer: PeerId, between_peers: bool, ask: Ask) -> Answered {
    match ask {
        Ask::Hello(_) => Err(WireError::new(Code::Malformed, "a second greeting")),
        Ask::Resolve(ask) => super::leaders::resolve(node, ask).await.map(Answer::Route),
        Ask::Publish(_) => Err(internal("a publish that came the wrong way; this is a bug")),
        Ask::EndProducer(ask) => end_producer(node, ask).await,
        Ask::TopicStatus(ask) => topic_status(node, &ask.topic).await,
        Ask::Change(command) => change(node, command).await,
        Ask::Catalog(ask) => catalog(node, ask).await,
        Ask::Blob(ask) => blob(node, ask).await,
        Ask::StateGet(ask) => state_get(node, ask).await,
        Ask::StateList(ask) => state_list(node, ask).await,
        Ask::StatePut(ask) => state_put(node, ask).await,
        Ask::Activations(ask) => activations(node, ask).await,
        Ask::GroupStatus(id) => group_status(node, GroupId(id)).await,
        Ask::Peers(_) => Ok(super::peers::all(node)),
        Ask::PeerStatus(_) => peer_status(node).await.map(Answer::PeerStatus),
        Ask::CreateReplica(_) | Ask::ApplySpec(_) | Ask::Gossip(_) | Ask::RemoveReplica(_) | Ask::Piece(_)
            if !between_peers =>
        {
            Err(WireError::new(Code::InvalidArgument, "only peers ask this of each other"))
        }
        Ask::Gossip(ask) => super::peers::gossip(node, peer, ask).await,
        Ask::Drain(ask) => super::peers::drain(node, ask).await,
        Ask::RemoveReplica(ask) => super::replicas::remove(node, peer, ask).await,
        Ask::Piece(ask) => piece(node, ask).await,
        Ask::Subscription(ask) => super::subscriptions::change(node, ask).await,
        Ask::Subscriptions(ask) => super::subscriptions::list(node, ask).await,
        Ask::Producers(ask) => producers(node, ask).await,
        Ask::CreateReplica(seed) => super::replicas::create(node, peer, seed).await,
        Ask::ApplySpec(ask) => apply_spec(node, ask).await,
    }
}

/// A group with a replica here that has rows to answer with.
async fn here(node: &Node, id: GroupId) -> Result<GroupHandle, WireError> {
    match node.groups.group(id) {
        Some(group) => node.serving(&group).map(|()| group),
        None => Err(node.group_elsewhere(id).await),
    }
}

/// The catalog, if this peer leads it.
async fn leading_catalog(node: &Node) -> Result<GroupHandle, WireError> {
    let Some(catalog) = node.catalog() else { return Err(node.group_elsewhere(node.catalog_id()).await) };
    let status = catalog.status();
    if status.leads { Ok(catalog) } else { Err(node.not_leader(&status)) }
}

async fn propose(node: &Node, group: &GroupHandle, kind: Kind) -> Result<Reply, WireError> {
    group.propose(kind).await.map_err(|error| {
        let uncertain = matches!(error, canal_consensus::Error::Refused(Refused::Uncertain));
        let refusal = node.refusal(group, error);
        // unlike a publish, these may not be done twice: whoever asks has to know that it may have been done
        if uncertain { WireError { code: Code::NoQuorum.into(), ..refusal } } else { refusal }
    })
}

async fn end_producer(node: &Node, ask: EndProducer) -> Answered {
    let Some((group, topic)) = node.hosting(&ask.topic) else { return Err(node.elsewhere(&ask.topic).await) };
    let end =
        canal_proto::log::EndProducer { topic: topic.0, producer: ask.producer, last_sequence: ask.last_sequence };
    propose(node, &group, Kind::EndProducer(end)).await?;
    Ok(Answer::Done(Done::default()))
}

async fn topic_status(node: &Node, name: &str) -> Answered {
    let Some((group, topic)) = node.hosting(name) else { return Err(node.elsewhere(name).await) };
    let about = group.clone();
    let status = tokio::task::spawn_blocking(move || whole_status_of(&about, topic)).await.map_err(internal)??;
    status.map(Answer::TopicStatus).ok_or_else(|| crate::node::unknown_topic(name))
}

/// How a topic stands, with what has to be counted and read: it may take a while.
fn whole_status_of(group: &GroupHandle, topic: TopicId) -> Result<Option<TopicStatus>, WireError> {
    let spec = group.status().spec;
    let retention = spec.topics.iter().find(|hosted| hosted.id == topic.0).and_then(|hosted| hosted.retention);
    let Some(status) = status_of(group, topic, retention)? else { return Ok(None) };
    let view = group.view();
    let segments = view.segments(topic).map_err(internal)?;
    let held_by = match retention {
        Some(_) => view.retention(topic, crate::node::now_ms()).map_err(internal)?.held_by,
        None => None,
    };
    let held_by = held_by.and_then(|id| spec.triggers.iter().find(|trigger| trigger.info.id == id.0));
    Ok(Some(TopicStatus {
        segments: segments.len() as u64,
        segment_bytes: segments.iter().map(|segment| segment.size).sum(),
        held_by: held_by.map(|trigger| trigger.info.name.clone()).unwrap_or_default(),
        subscriptions: view.subscriptions(topic).map_err(internal)?,
        ..status
    }))
}

/// What a topic's own row says of it.
fn status_of(
    group: &GroupHandle,
    topic: TopicId,
    retention: Option<Retention>,
) -> Result<Option<TopicStatus>, WireError> {
    let Some(row) = group.view().topic(topic).map_err(internal)? else { return Ok(None) };
    Ok(Some(TopicStatus {
        id: topic.0,
        group: group.id().0,
        oldest: row.oldest,
        next: row.next,
        kept_bytes: row.kept(),
        sealed: row.sealed,
        producers: row.producers,
        bytes: row.bytes,
        retention,
        ..TopicStatus::default()
    }))
}

async fn producers(node: &Node, ask: ProducersAsk) -> Answered {
    let Some((group, topic)) = node.hosting(&ask.topic) else { return Err(node.elsewhere(&ask.topic).await) };
    let limit = match ask.limit {
        0 => MAX_PRODUCERS_PAGE,
        limit => limit.min(MAX_PRODUCERS_PAGE),
    } as usize;
    let page = tokio::task::spawn_blocking(move || {
        let view = group.view();
        let row = view.topic(topic).map_err(internal)?.ok_or_else(|| crate::node::unknown_topic(&ask.topic))?;
        let (producers, next) = view.producers(topic, &ask.from, limit).map_err(internal)?;
        Ok(Answer::Producers(Producers { producers, next: next.unwrap_or_default(), all: row.producers }))
    });
    page.await.map_err(internal)?
}

async fn change(node: &Node, mut command: CatalogCommand) -> Answered {
    let catalog = leading_catalog(node).await?;
    command.placement.clear();
    match &command.change {
        Some(Change::CreateTopic(ask)) => {
            let wanted = if ask.replicas == 0 { DEFAULT_REPLICAS } else { ask.replicas };
            let objective = ask.placement.as_ref().map(Objective::from).unwrap_or_default();
            command.placement = place(node, &catalog, wanted, &objective).await;
        }
        Some(Change::CreateTrigger(_)) => {
            command.placement = place(node, &catalog, DEFAULT_REPLICAS, &Objective::default()).await;
        }
        Some(Change::Deploy(function)) => check_component(node, &catalog, function).await?,
        Some(Change::GroupActive(_)) => {
            return Err(WireError::new(Code::InvalidArgument, "only the catalog itself says this"));
        }
        _ => {}
    }
    let reply = change_catalog(node, &catalog, command).await?;
    rooms::catalog::until_served(node, &reply).await;
    Ok(Answer::Changed(reply))
}

/// Proposes a change to the catalog and wakes its room.
pub async fn change_catalog(
    node: &Node,
    catalog: &GroupHandle,
    command: CatalogCommand,
) -> Result<CatalogReply, WireError> {
    match propose(node, catalog, Kind::Catalog(command)).await? {
        Reply::Catalog(result) => {
            node.catalog_changed.notify_one();
            *result
        }
        _ => Err(internal("the catalog gave another answer; this is a bug")),
    }
}

/// Chooses the peers on which a new group begins, of those that this peer knows of.
async fn place(node: &Node, catalog: &GroupHandle, wanted: u32, objective: &Objective) -> Vec<Replica> {
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    loop {
        let peers = node.peers.live();
        let there = peers.iter().filter(|info| !info.draining).count();
        if there >= wanted || node.peers.age() >= SETTLE || !catalog.status().leads {
            return chosen(catalog.status().last, wanted, objective, &peers);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn chosen(seed: u64, wanted: usize, objective: &Objective, peers: &[PeerInfo]) -> Vec<Replica> {
    let candidates: Vec<Candidate> = peers.iter().filter_map(|info| Candidate::try_from(info).ok()).collect();
    let best = canal_topology::choose(seed, wanted, &[], objective, &candidates);
    let known = best.into_iter().filter_map(|peer| peers.iter().find(|info| info.peer == peer.to_vec()));
    known
        .zip(1..)
        .map(|(info, id)| Replica { id, peer: info.peer.clone(), addresses: info.addresses.clone() })
        .collect()
}

async fn check_component(node: &Node, catalog: &GroupHandle, function: &FunctionInfo) -> Result<(), WireError> {
    let view = catalog.view();
    let wanted = ContentHash::from_slice(&function.component)
        .map_err(|e| WireError::new(Code::InvalidArgument, e.to_string()))?;
    let runtime = node.runtime.clone();
    let checked = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        for number in 0.. {
            match view.blob(&wanted.0, number).map_err(internal)? {
                Some(piece) => bytes.extend_from_slice(&piece),
                None => break,
            }
        }
        if ContentHash::of(&bytes) != wanted {
            let message = "the component's pieces do not make its hash; send them all, then deploy";
            return Err(WireError::new(Code::BadComponent, message));
        }
        runtime.check(&bytes).map_err(|e| WireError::new(Code::BadComponent, e.to_string()))
    });
    checked.await.map_err(internal)?
}

async fn catalog(node: &Node, ask: CatalogAsk) -> Answered {
    let Some(catalog) = node.catalog() else { return Err(node.group_elsewhere(node.catalog_id()).await) };
    if ask.linearizable {
        catalog.read().await.map_err(|e| node.refusal(&catalog, e))?;
    }
    let pattern = match ask.pattern.as_str() {
        "" => None,
        text => Some(text.parse::<Pattern>().map_err(|e| WireError::new(Code::InvalidArgument, e.to_string()))?),
    };
    let wants = |part: &str| ask.parts.is_empty() || ask.parts.iter().any(|wanted| wanted == part);
    let view = catalog.view();
    let mut out = CatalogView { applied: view.applied().map_err(internal)?, ..CatalogView::default() };
    if wants("topics") {
        out.topics = view.catalog_topics().map_err(internal)?;
        out.topics.retain(|topic| match &pattern {
            Some(pattern) => pattern.matches(&topic.name),
            None => !topic.name.starts_with('$'),
        });
    }
    if wants("groups") {
        out.groups = view.catalog_groups().map_err(internal)?;
    }
    if wants("functions") {
        out.functions = view.catalog_functions().map_err(internal)?;
    }
    if wants("triggers") {
        out.triggers = view.catalog_triggers().map_err(internal)?;
    }
    node.serving(&catalog)?;
    Ok(Answer::Catalog(out))
}

async fn blob(node: &Node, ask: BlobAsk) -> Answered {
    let Some(catalog) = node.catalog() else { return Err(node.group_elsewhere(node.catalog_id()).await) };
    let data = catalog.view().blob(&ask.hash, ask.number).map_err(internal)?;
    node.serving(&catalog)?;
    Ok(Answer::Blob(Blob { data: data.unwrap_or_default() }))
}

async fn fresh_enough(node: &Node, group: &GroupHandle, consistency: i32) -> Result<(), WireError> {
    if consistency == Consistency::Linearizable as i32 {
        group.read().await.map_err(|e| node.refusal(group, e))?;
    }
    Ok(())
}

async fn state_get(node: &Node, ask: StateGet) -> Answered {
    let group = here(node, GroupId(ask.group)).await?;
    fresh_enough(node, &group, ask.consistency).await?;
    let view = group.view();
    let value = view.state(&ask.bucket, &ask.key).map_err(internal)?;
    node.serving(&group)?;
    let rows = value.map(|value| canal_proto::log::StateOp { key: ask.key, value: Some(value) }).into_iter().collect();
    Ok(Answer::Rows(StateRows { rows, applied: view.applied().map_err(internal)? }))
}

async fn state_list(node: &Node, ask: StateList) -> Answered {
    let group = here(node, GroupId(ask.group)).await?;
    fresh_enough(node, &group, ask.consistency).await?;
    let limit = match ask.limit as usize {
        0 => MAX_SCAN,
        limit => limit.min(MAX_SCAN),
    };
    let view = group.view();
    let rows = view.states(&ask.bucket, &ask.prefix, limit).map_err(internal)?;
    node.serving(&group)?;
    Ok(Answer::Rows(StateRows { rows, applied: view.applied().map_err(internal)? }))
}

async fn state_put(node: &Node, ask: StatePut) -> Answered {
    let group = here(node, GroupId(ask.group)).await?;
    canal_proto::name::check_plain(&ask.write.bucket)
        .map_err(|e| WireError::new(Code::InvalidArgument, e.to_string()))?;
    for op in &ask.write.ops {
        let size = op.value.as_ref().map_or(0, |value| value.len());
        let (max_key, max_value) = (canal_proto::limits::MAX_STATE_KEY, canal_proto::limits::MAX_STATE_VALUE);
        if op.key.len() > max_key || size > max_value {
            let message = format!("a row has a key of at most {max_key} bytes and a value of at most {max_value}");
            return Err(WireError::new(Code::TooLarge, message));
        }
    }
    propose(node, &group, Kind::StateWrite(ask.write)).await?;
    Ok(Answer::Done(Done { index: group.status().applied }))
}

async fn activations(node: &Node, ask: ActivationsAsk) -> Answered {
    let group = here(node, GroupId(ask.group)).await?;
    let status = group.status();
    if !status.leads {
        return Err(node.not_leader(&status));
    }
    let view = group.view();
    let limit = if ask.limit == 0 { ACTIVATIONS } else { ask.limit.min(MAX_ACTIVATIONS) } as usize;
    let mut records = Vec::new();
    for trigger in &status.spec.triggers {
        if !ask.trigger.is_empty() && trigger.info.name != ask.trigger {
            continue;
        }
        let id = TriggerId(trigger.info.id);
        if ask.number == 0 {
            records.extend(view.activations(id, limit).map_err(internal)?);
        } else {
            records.extend(view.activation(id, ask.number).map_err(internal)?);
        }
    }
    if ask.number != 0 && records.is_empty() {
        let message = format!("no activation {} of trigger `{}` in this group", ask.number, ask.trigger);
        return Err(WireError::new(Code::UnknownActivation, message));
    }
    records.sort_by_key(|record| std::cmp::Reverse((record.start_ms, record.number)));
    records.truncate(limit);
    Ok(Answer::Activations(Activations { records }))
}

async fn group_status(node: &Node, id: GroupId) -> Answered {
    let group = here(node, id).await?;
    if group.status().forgotten {
        // what it holds can't be trusted or read: it does not count as a replica, and its group replaces it
        return Err(WireError::new(
            Code::NotHere,
            format!("the replica of group {id} on this peer is damaged; ask another"),
        ));
    }
    tokio::task::spawn_blocking(move || full_status(&group).map(Answer::GroupStatus)).await.map_err(internal)?
}

/// How a group stands. Whoever looks at peers and groups asks for it all the time, so of each topic and cursor it reads one
/// row: what has to be counted is in a topic's own status.
fn full_status(group: &GroupHandle) -> Result<GroupStatus, WireError> {
    let status = group.status();
    let view = group.view();
    let mut topics = Vec::new();
    for topic in &status.spec.topics {
        topics.extend(status_of(group, TopicId(topic.id), topic.retention)?);
    }
    let mut triggers = Vec::new();
    for cursor in view.cursors().map_err(internal)? {
        let trigger = status.spec.triggers.iter().find(|trigger| trigger.info.id == cursor.trigger);
        let topic = status.spec.topics.iter().find(|topic| topic.id == cursor.topic);
        let next = topics.iter().find(|topic| topic.id == cursor.topic).map_or(0, |topic| topic.next);
        let done: u64 = cursor.done.iter().map(|span| span.end - span.first).sum();
        if let (Some(trigger), Some(topic)) = (trigger, topic) {
            triggers.push(TriggerLag {
                trigger: trigger.info.name.clone(),
                topic: topic.name.clone(),
                low: cursor.low,
                waiting: next.saturating_sub(cursor.low).saturating_sub(done),
                parked: cursor.parked.len() as u64,
            });
        }
    }
    Ok(GroupStatus {
        id: group.id().0,
        name: group.seed().name.clone(),
        replica: status.replica,
        leader: status.leader,
        term: status.term,
        committed: status.committed,
        applied: status.applied,
        last: status.last,
        epoch: status.epoch,
        replicas: status.configuration.replicas.clone(),
        voters: status.configuration.voters.clone(),
        wanted: rooms::membership::wanted(group),
        spec_version: status.spec.version,
        outbox: status.outbox,
        topics,
        triggers,
        ..super::replicas::standing(group, &status)?
    })
}

fn refused(node: &Node) -> Vec<RefusedCount> {
    let counts = node.net.refused().all().filter(|(_, count)| *count > 0);
    counts.map(|(reason, count)| RefusedCount { reason: reason.name().to_owned(), count }).collect()
}

async fn peer_status(node: &Node) -> Result<PeerStatus, WireError> {
    let here = node.groups.groups();
    let groups = tokio::task::spawn_blocking(move || here.iter().map(full_status).collect::<Result<Vec<_>, _>>());
    let groups = groups.await.map_err(internal)??;
    let routes = node.dht.routes();
    let totals = node.groups.totals();
    let traffic = node.links.traffic();
    Ok(PeerStatus {
        log_entries: totals.log_entries,
        log_bytes: totals.log_bytes,
        segments: totals.segments,
        segment_bytes: totals.segment_bytes,
        damage_found: totals.damage_found,
        damage_repaired: totals.damage_repaired,
        info: super::peers::own(node),
        groups,
        neighbours: u32::try_from(node.net.neighbours()).unwrap_or(u32::MAX),
        records: u32::try_from(routes.records()).unwrap_or(u32::MAX),
        records_refused: routes.refused().values().sum(),
        joined: node.joined.load(std::sync::atomic::Ordering::Relaxed),
        relayed_in: node.relays.came_in(),
        refused: refused(node),
        relayed_out: node.relays.went_out(),
        known: super::peers::known(node),
        raft_messages: traffic.messages,
        raft_frames: traffic.frames,
        raft_bytes: traffic.bytes,
    })
}

async fn piece(node: &Node, ask: PieceAsk) -> Answered {
    let groups = node.groups.clone();
    tokio::task::spawn_blocking(move || groups.read_piece(&ask)).await.map_err(internal)?.map(Answer::Piece)
}

async fn apply_spec(node: &Node, ask: ApplySpec) -> Answered {
    let group = here(node, GroupId(ask.group)).await?;
    let status = group.status();
    if !status.leads {
        return Err(node.not_leader(&status));
    }
    if status.spec.version < ask.spec.version {
        propose(node, &group, Kind::Spec(ask.spec)).await?;
    }
    Ok(Answer::Done(Done { index: group.status().applied }))
}
