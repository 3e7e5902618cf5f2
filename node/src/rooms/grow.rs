//! Growth: a group with fewer replicas than wanted takes in peers, one at a time.
//!
//! The order of the steps is what makes each crash harmless. First the group agrees on the new replica and its id
//! (a learner, which has no vote); only then is it created on its peer, as often as it takes; when it has the log it is
//! promoted. A leader that comes in between finds the learner in the configuration and goes on from there. An id is
//! never used twice, so a replica that was created late can't be taken for another.
//!
//! Replacing what is lost, shrinking and moving belong here as well, and are still to come.

use std::sync::Arc;
use std::time::Duration;

use canal_consensus::{GroupHandle, Status};
use canal_proto::peer::{PeerInfo, Replica, Seed};
use canal_proto::request::{Answer, Ask, CandidatesAsk};
use canal_sdk::{Connection, Opening, Target};
use tokio::time::sleep;

use crate::node::{CATALOG_REPLICAS, Node};
use crate::serve;

/// How often a group looks at itself.
const LOOK: Duration = Duration::from_millis(500);
/// A learner that lacks no more entries than this has caught up: the rest travels faster than the promotion.
const CAUGHT_UP: u64 = 128;
/// For creating a replica on another peer.
const CREATE: Duration = Duration::from_secs(5);

/// Replicas that a group should have.
pub fn wanted(group: &GroupHandle) -> u32 {
    match group.seed().name.as_str() {
        canal_proto::route::CATALOG => CATALOG_REPLICAS,
        _ => group.status().spec.replicas,
    }
}

/// Lets the group grow for as long as it is led here.
pub async fn run(node: Arc<Node>, group: GroupHandle) {
    loop {
        sleep(LOOK).await;
        let status = group.status();
        if !status.leads {
            continue;
        }
        let learner = status.configuration.learners.first().copied();
        let step = match learner {
            Some(id) => raise(&node, &group, &status, id).await,
            None if (status.configuration.replicas.len() as u32) < wanted(&group) => {
                take_in(&node, &group, &status).await
            }
            None => Ok(()),
        };
        if let Err(error) = step {
            tracing::debug!(group = %group.seed().name, %error, "the group could not grow just now");
        }
    }
}

/// Brings a learner to life and lets it vote when it has the log.
async fn raise(node: &Node, group: &GroupHandle, status: &Status, id: u64) -> anyhow::Result<()> {
    let matched = status.matched.get(&id).copied().unwrap_or(0);
    if matched + CAUGHT_UP >= status.committed && matched > 0 {
        group.promote(id).await?;
        tracing::info!(group = %group.seed().name, replica = id, "a replica votes now");
        return Ok(());
    }
    if matched == 0
        && let Some(replica) = status.configuration.replicas.iter().find(|replica| replica.id == id)
    {
        create(node, group.seed(), replica).await?;
    }
    Ok(())
}

async fn take_in(node: &Node, group: &GroupHandle, status: &Status) -> anyhow::Result<()> {
    let held = status.configuration.replicas.iter().map(|replica| replica.peer.clone().into()).collect();
    let ask = CandidatesAsk { held, wanted: wanted(group) };
    let best = match node.catalog() {
        Some(catalog) if catalog.status().leads => serve::grown(node, &catalog, &ask),
        _ => match node.client.call(Target::Catalog, Ask::Candidates(ask)).await? {
            Answer::Peers(peers) => peers.peers,
            _ => anyhow::bail!("the catalog gave another answer"),
        },
    };
    let Some(PeerInfo { peer, addresses, .. }) = best.into_iter().next() else { return Ok(()) };
    group.add_learner(Replica { id: 0, peer, addresses }).await?;
    Ok(())
}

/// Creates a replica on its peer; nothing happens where it exists.
pub async fn create(node: &Node, seed: &Seed, replica: &Replica) -> anyhow::Result<()> {
    let seed = Seed { replica: replica.id, ..seed.clone() };
    if replica.peer == node.id.to_vec() {
        return Ok(node.groups.create(seed).await?);
    }
    let peer = replica.peer_id()?;
    let addresses = node.peers.addresses(peer).unwrap_or_else(|| replica.addresses.clone());
    let opening = Opening::peer(node.net.mesh(), crate::node::NAMESPACE, Some(node.mesh), node.net.addresses());
    let connection = Connection::open(&node.net, Some(peer), &addresses, &opening, CREATE).await?;
    connection.request(Ask::CreateReplica(seed), CREATE).await?;
    Ok(())
}
