//! Tidying up: a replica that its group has let go destroys itself, and no other does.
//!
//! It is told so by its leader, or notices that it hears of no leader. Neither is believed: it asks the group's other
//! replicas, and goes only when one of them has a configuration in which larger ids than its own were used and its own is
//! not named. Ids are given in the order of the log and never twice, so such a configuration is newer than the one that
//! named it, whoever answers and however old the answer is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use canal_consensus::GroupHandle;
use canal_proto::peer::Replica;
use canal_proto::request::{Answer, Ask, GroupStatus};
use canal_proto::{PeerId, route};
use tokio::time::{Instant, sleep};

use super::ask::ask;
use crate::node::{NAMESPACE, Node};

/// How long a replica hears of no leader before it asks whether it still belongs to the group.
const ALONE: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK: Duration = Duration::from_secs(1);
/// How often it asks.
const AGAIN: Duration = Duration::from_secs(10);
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Peers that are asked in one go: a group's replicas, and as many that took their places.
const MAX_ASKED: usize = 2 * canal_proto::limits::MAX_REPLICAS;

/// Watches one replica for as long as it is there.
pub async fn run(node: Arc<Node>, group: GroupHandle) {
    let mut heard = Instant::now();
    let mut asked: Option<Instant> = None;
    loop {
        sleep(LOOK).await;
        let status = group.status();
        let named = status.configuration.replicas.iter().any(|replica| replica.id == status.replica);
        let hears = status.leader == status.replica
            || (status.leader != 0 && Duration::from_millis(group.silent_ms(status.leader)) < ALONE);
        // one that a snapshot is being written to does not listen meanwhile
        if (hears && named) || status.installing {
            heard = Instant::now();
        }
        let alone = !named || heard.elapsed() >= ALONE;
        if !alone || asked.is_some_and(|at| at.elapsed() < AGAIN) {
            continue;
        }
        asked = Some(Instant::now());
        if consider(&node, &group, None).await {
            return;
        }
    }
}

/// Asks whether this replica was let go, and destroys it if so; says whether it did. `told` is the peer that said so.
pub async fn consider(node: &Node, group: &GroupHandle, told: Option<PeerId>) -> bool {
    let id = group.status().replica;
    if !was_let_go(node, group, id, told).await {
        return false;
    }
    match node.groups.remove(group.id(), id).await {
        Ok(()) => {
            tracing::info!(group = %group.seed().name, replica = id, "a replica that its group let go is removed");
            true
        }
        Err(error) => {
            tracing::warn!(group = %group.seed().name, replica = id, %error, "a replica could not be removed");
            false
        }
    }
}

/// Whether an answer proves that this id is not in the group any more.
fn proves(status: &GroupStatus, group: u64, id: u64) -> bool {
    status.id == group && status.last_id >= id && !status.replicas.iter().any(|replica| replica.id == id)
}

async fn was_let_go(node: &Node, group: &GroupHandle, id: u64, told: Option<PeerId>) -> bool {
    let mut waiting: VecDeque<(PeerId, Vec<String>)> = told.map(|peer| (peer, Vec::new())).into_iter().collect();
    let known = |replicas: &[Replica]| -> Vec<(PeerId, Vec<String>)> {
        replicas.iter().filter_map(|r| Some((r.peer_id().ok()?, r.addresses.clone()))).collect()
    };
    waiting.extend(known(&group.status().configuration.replicas));
    let mut asked: BTreeMap<PeerId, ()> = BTreeMap::from([(node.id, ())]);
    let mut looked_up = false;
    loop {
        let Some((peer, addresses)) = waiting.pop_front() else {
            // whoever took over may be none of those that are known here
            if std::mem::replace(&mut looked_up, true) {
                return false;
            }
            let name = route::group_name(group.id());
            if let Ok(found) = node.dht.lookup(NAMESPACE, &name, true).await {
                waiting.extend(known(&found.replicas));
            }
            continue;
        };
        if asked.len() > MAX_ASKED || asked.insert(peer, ()).is_some() {
            continue;
        }
        match ask(node, peer, &addresses, Ask::GroupStatus(group.id().0), PATIENCE).await {
            Ok(Answer::GroupStatus(status)) if proves(&status, group.id().0, id) => return true,
            Ok(Answer::GroupStatus(status)) => waiting.extend(known(&status.replicas)),
            Ok(_) => {}
            Err(error) => waiting.extend(known(&error.replicas)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn status(last_id: u64, ids: &[u64]) -> GroupStatus {
        let replicas = ids.iter().map(|id| Replica { id: *id, ..Replica::default() }).collect();
        GroupStatus { id: 7, last_id, replicas, ..GroupStatus::default() }
    }

    #[test]
    fn only_a_later_configuration_without_the_id_proves_anything() {
        assert!(proves(&status(4, &[1, 2, 4]), 7, 3));
        assert!(proves(&status(3, &[1, 2]), 7, 3));
        assert!(!proves(&status(4, &[1, 2, 3]), 7, 3), "it is named");
        assert!(!proves(&status(2, &[1, 2]), 7, 3), "of before it came");
        assert!(!proves(&status(0, &[]), 7, 3), "knows nothing");
        assert!(!proves(&status(4, &[1, 2, 4]), 8, 3), "another group");
    }
}
