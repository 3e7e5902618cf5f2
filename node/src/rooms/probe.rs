//! Asks the peers of silent replicas whether they hold them at all.
//!
//! A peer that lost its disk, or began anew because its disk was older than what others had seen of it, answers that it
//! does not. What it says is final: a replica is created once, by the catalog or after a learner was agreed on, and an id
//! never comes back. So only a replica that is known to have existed can be lost; a first replica that the catalog has
//! yet to create is not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use canal_consensus::{GroupHandle, Status};
use canal_proto::Code;
use canal_proto::peer::Replica;
use canal_proto::request::{Answer, Ask};
use canal_topology::judge::SILENT;
use futures::future::join_all;
use tokio::time::Instant;

use super::ask::ask;
use crate::node::Node;

/// How often the peer of a silent replica is asked.
const AGAIN: Duration = Duration::from_secs(2);
/// How long its answer is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was found out about silent replicas.
#[derive(Default)]
pub struct Probe {
    lost: BTreeSet<u64>,
    asked: BTreeMap<u64, Instant>,
    /// The group is known to live, so nobody creates its first replicas any more.
    active: bool,
}

impl Probe {
    /// The replicas that their peers do not hold any more. `silent` says for how long each said nothing.
    pub async fn lost(
        &mut self,
        node: &Node,
        group: &GroupHandle,
        status: &Status,
        silent: &BTreeMap<u64, Duration>,
    ) -> BTreeSet<u64> {
        let is_silent = |id: &u64| silent.get(id).is_some_and(|silent| *silent >= SILENT);
        self.lost.retain(is_silent);
        self.asked.retain(|id, _| is_silent(id));
        let live = node.peers.live();
        let mut suspects = Vec::new();
        for replica in &status.configuration.replicas {
            let id = replica.id;
            let known = self.lost.contains(&id) || self.asked.get(&id).is_some_and(|at| at.elapsed() < AGAIN);
            let there = live.iter().any(|info| info.peer == replica.peer);
            if id == status.replica || !is_silent(&id) || known || !there {
                continue;
            }
            self.asked.insert(id, Instant::now());
            if self.existed(node, group, status, id).await {
                suspects.push(replica);
            }
        }
        let answers = join_all(suspects.iter().map(|replica| holds(node, group, replica))).await;
        for (replica, held) in suspects.iter().zip(answers) {
            if held == Some(false) {
                tracing::warn!(group = %group.seed().name, replica = replica.id, "a replica is lost: its peer does not hold it");
                self.lost.insert(replica.id);
            }
        }
        self.lost.clone()
    }

    /// Whether a replica is known to have existed.
    async fn existed(&mut self, node: &Node, group: &GroupHandle, status: &Status, id: u64) -> bool {
        if status.progress.get(&id).is_some_and(|progress| progress.matched > 0) {
            return true;
        }
        if !group.seed().first.iter().any(|first| first.id == id) {
            // a learner that nobody has created is created; a voter was a learner that had the log
            return !status.configuration.learners.contains(&id);
        }
        if !self.active {
            // the catalog's own is founded by the peer that holds it
            self.active = group.id() == node.catalog_id()
                || match node.client.catalog("", &["groups"], true).await {
                    Ok(view) => view.groups.iter().any(|info| info.id == group.id().0 && info.active),
                    Err(_) => false,
                };
        }
        self.active
    }
}

/// Whether a peer holds a replica, if it says so.
async fn holds(node: &Node, group: &GroupHandle, replica: &Replica) -> Option<bool> {
    let peer = replica.peer_id().ok()?;
    match ask(node, peer, &replica.addresses, Ask::GroupStatus(group.id().0), PATIENCE).await {
        Ok(Answer::GroupStatus(status)) => Some(status.replica == replica.id),
        Ok(_) => None,
        Err(error) if matches!(error.code, Code::NotHere | Code::UnknownGroup) => Some(false),
        Err(_) => None,
    }
}
