//! The catalog's room: brings new groups to life and tells every group what it hosts.
//!
//! Both are towards a state, not from an event: a group that is not known to live gets its first replicas created,
//! and a group that has not confirmed the newest version of its spec gets it, until it has. A new leader of the catalog
//! knows of no confirmation and tells all groups once more, which changes nothing where nothing is missing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use canal_consensus::GroupHandle;
use canal_proto::GroupId;
use canal_proto::catalog::{CatalogCommand, CatalogReply, Change, GroupInfo};
use canal_proto::peer::Seed;
use canal_proto::request::{ApplySpec, Ask};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::membership;
use crate::node::{NAMESPACE, Node};
use crate::serve;

/// How often what failed is tried again.
const RETRY: Duration = Duration::from_millis(300);
/// How often all is looked at although nothing changed.
const LOOK: Duration = Duration::from_secs(5);
/// Groups served at a time.
const AT_ONCE: usize = 16;
/// How long a change is held back until the groups serve it; the change stands in any case.
const UNTIL_SERVED: Duration = Duration::from_secs(20);

/// Serves the groups for as long as the catalog is led here.
pub async fn run(node: Arc<Node>, catalog: GroupHandle) {
    node.confirmed.send_replace(Default::default());
    loop {
        let settled = match catalog.view().catalog_groups() {
            Ok(groups) => serve_all(&node, &catalog, groups).await,
            Err(error) => {
                tracing::error!(%error, "the catalog can't be read");
                false
            }
        };
        let wait = if settled { LOOK } else { RETRY };
        let _ = tokio::time::timeout(wait, node.catalog_changed.notified()).await;
    }
}

/// Serves groups, many at a time so that one that is down holds up no other; says whether all of them are served.
async fn serve_all(node: &Arc<Node>, catalog: &GroupHandle, groups: Vec<GroupInfo>) -> bool {
    let confirmed = node.confirmed.borrow().clone();
    let missing = |group: &GroupInfo| {
        !group.active || confirmed.get(&GroupId(group.id)).is_none_or(|version| *version < group.spec_version)
    };
    let mut waiting: Vec<GroupInfo> = groups.into_iter().filter(missing).collect();
    let mut running = FuturesUnordered::new();
    let mut settled = true;
    loop {
        while running.len() < AT_ONCE
            && let Some(group) = waiting.pop()
        {
            running.push(serve_one(node, catalog, group));
        }
        match running.next().await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::debug!(%error, "a group is not served yet");
                settled = false;
            }
            None => return settled,
        }
    }
}

async fn serve_one(node: &Node, catalog: &GroupHandle, group: GroupInfo) -> anyhow::Result<()> {
    let id = GroupId(group.id);
    if !group.active {
        create(node, &group).await;
    }
    let known = node.confirmed.borrow().get(&id).copied();
    if known.is_none_or(|known| known < group.spec_version) {
        let Some(spec) = catalog.view().group_spec(id)? else { return Ok(()) };
        let version = spec.version;
        // a group that lacks one first replica serves with the others
        node.ask_group(id, Ask::ApplySpec(ApplySpec { group: id.0, spec })).await?;
        node.confirmed.send_modify(|confirmed| {
            let known = confirmed.entry(id).or_default();
            *known = version.max(*known);
        });
    }
    if !group.active {
        // a majority has answered, so it lives; what it lacks is its leader's to see to. Were its first replicas created
        // until all of them have answered, one that has voted since could be created anew, empty
        let change = CatalogCommand { change: Some(Change::GroupActive(group.id)), placement: Vec::new() };
        serve::change_catalog(node, catalog, change).await?;
    }
    Ok(())
}

/// Creates a group's first replicas, as many as can be. The first of them comes last: it stands for election at once, and
/// then the others are there to vote.
async fn create(node: &Node, group: &GroupInfo) {
    let seed = Seed {
        group: group.id,
        name: group.name.clone(),
        namespace: NAMESPACE.into(),
        first: group.first.clone(),
        replica: 0,
        mesh: node.mesh.to_vec(),
    };
    for replica in group.first.iter().rev() {
        if let Err(error) = membership::create(node, &seed, replica).await {
            tracing::warn!(group = %group.name, replica = replica.id, %error, "a first replica can't be created yet");
        }
    }
}

/// Waits until the groups that a change touched serve it, so that what was created can be used at once.
pub async fn until_served(node: &Node, reply: &CatalogReply) {
    let mut wanted: BTreeSet<(GroupId, u64)> =
        reply.groups.iter().map(|group| (GroupId(group.id), group.spec_version)).collect();
    if reply.existed
        && let Some(topic) = &reply.topic
    {
        wanted.insert((GroupId(topic.group), topic.id));
    }
    let mut confirmed = node.confirmed.subscribe();
    let served = confirmed.wait_for(|confirmed| {
        wanted.iter().all(|(group, version)| confirmed.get(group).is_some_and(|known| known >= version))
    });
    if tokio::time::timeout(UNTIL_SERVED, served).await.is_err() {
        tracing::warn!("a group is slow to take up a change of the catalog; it is told again until it does");
    }
}
