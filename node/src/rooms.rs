//! What a peer does where it leads: one room a duty, begun when leadership of a group comes and ended when it goes.
//!
//! Rooms keep nothing that matters. Each works from replicated state towards what that state asks for, and each step
//! can be done twice without harm, so that a leader which dies in the middle is simply followed by another that goes on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use canal_consensus::{GroupHandle, Status};
use canal_proto::{GroupId, TopicId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::node::Node;

mod ask;
pub mod catalog;
mod functions;
pub mod gossip;
pub mod membership;
mod outbox;
mod probe;
mod retention;
mod routes;
mod steps;
pub mod tidy;

/// Watches all groups of this peer, and keeps the rooms of those that it leads.
pub async fn run(node: Arc<Node>) {
    let mut membership = node.groups.membership();
    let reports = Arc::new(steps::Reports::default());
    // a group may come back here with a replica of another id
    let mut keepers: BTreeMap<(GroupId, u64), AbortOnDropHandle<()>> = BTreeMap::new();
    loop {
        let groups = node.groups.groups();
        let key = |group: &GroupHandle| (group.id(), group.seed().replica);
        keepers.retain(|kept, _| groups.iter().any(|group| key(group) == *kept));
        node.hosted.write().retain(|_, (id, _)| groups.iter().any(|group| group.id() == *id));
        for group in groups {
            let key = key(&group);
            let begin = || AbortOnDropHandle::new(tokio::spawn(keep(node.clone(), group, reports.clone())));
            keepers.entry(key).or_insert_with(begin);
        }
        membership.changed().await;
    }
}

/// Keeps the rooms of one group.
async fn keep(node: Arc<Node>, group: GroupHandle, reports: Arc<steps::Reports>) {
    let _tidy = AbortOnDropHandle::new(tokio::spawn(tidy::run(node.clone(), group.clone())));
    let mut watch = group.watch();
    let mut rooms: Option<(u64, JoinSet<()>)> = None;
    let mut before = None;
    let mut hosted = None;
    loop {
        let status = watch.now();
        if hosted != Some(status.spec.version) {
            hosted = Some(status.spec.version);
            note_hosted(&node, &group, &status);
        }
        let leads = status.leads && !node.is_stopping();
        match &rooms {
            Some((term, _)) if leads && *term == status.term => {}
            Some(_) => rooms = None,
            None => {}
        }
        steps::Before::follow(&mut before, &group, &status);
        if leads && rooms.is_none() {
            tracing::info!(group = %group.seed().name, term = status.term, "leads");
            let before = before.take();
            rooms = Some((status.term, open(&node, &group, status.term, &reports, before)));
        }
        if !watch.changed().await {
            return;
        }
    }
}

fn open(
    node: &Arc<Node>,
    group: &GroupHandle,
    term: u64,
    reports: &Arc<steps::Reports>,
    before: Option<steps::Before>,
) -> JoinSet<()> {
    let mut rooms = JoinSet::new();
    let (records, done) = mpsc::channel(steps::MAX_WAITING);
    rooms.spawn(routes::run(node.clone(), group.clone()));
    let stalls = Arc::new(steps::Stalls::new(group.clone()));
    rooms.spawn(steps::run(node.clone(), group.clone(), reports.clone(), before, stalls.clone(), done));
    rooms.spawn(membership::run(node.clone(), group.clone(), stalls, records));
    rooms.spawn(outbox::run(node.clone(), group.clone()));
    if group.id() == node.catalog_id() {
        rooms.spawn(catalog::run(node.clone(), group.clone()));
    } else {
        rooms.spawn(functions::run(node.clone(), group.clone(), term));
        rooms.spawn(retention::run(group.clone()));
    }
    rooms
}

fn note_hosted(node: &Node, group: &GroupHandle, status: &Status) {
    let mut hosted = node.hosted.write();
    hosted.retain(|_, (id, _)| *id != group.id());
    let topics = status.spec.topics.iter().map(|topic| (topic.name.clone(), (group.id(), TopicId(topic.id))));
    hosted.extend(topics.collect::<HashMap<_, _>>());
}

/// Hands leadership of every group to the voter that is furthest, and waits until none is led here.
pub async fn hand_over(node: &Node) {
    for group in node.groups.groups() {
        let mut watch = group.watch();
        loop {
            let status = watch.now();
            let others = status
                .matched
                .iter()
                .filter(|(id, _)| **id != status.replica && status.configuration.voters.contains(id));
            let Some((to, _)) = others.max_by_key(|(_, matched)| **matched) else { break };
            group.transfer(*to);
            // a transfer may be given up by Raft; ask again until it is done
            let changed = tokio::time::timeout(Duration::from_millis(300), watch.changed());
            if matches!(changed.await, Ok(false)) {
                break;
            }
        }
    }
}
