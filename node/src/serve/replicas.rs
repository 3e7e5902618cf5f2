//! What other peers ask of the replicas here: to come, to go, and how they stand.

use canal_consensus::{GroupHandle, Status};
use canal_proto::peer::Seed;
use canal_proto::request::{Answer, Done, GroupStatus, RemoveReplica, ReplicaProgress};
use canal_proto::{Code, GroupId, PeerId, WireError};

use crate::node::{Node, internal};
use crate::rooms::{membership, tidy};

/// Creates a replica. One with a smaller id makes room if its group has let it go: it may not have noticed yet.
pub async fn create(node: &Node, peer: PeerId, seed: Seed) -> Result<Answer, WireError> {
    if seed.mesh != node.mesh.to_vec() {
        return Err(WireError::new(Code::Incompatible, "the group belongs to another mesh"));
    }
    if node.is_stopping() {
        return Err(WireError::new(Code::Stopping, "this peer is shutting down"));
    }
    if let Some(older) = node.groups.group(GroupId(seed.group))
        && older.seed().replica < seed.replica
        && !tidy::consider(node, &older, Some(peer)).await
    {
        return Err(still_here(&older));
    }
    node.groups.create(seed).await.map_err(internal)?;
    Ok(Answer::Done(Done::default()))
}

/// Removes a replica, if another one confirms that the group has let it go.
pub async fn remove(node: &Node, peer: PeerId, ask: RemoveReplica) -> Result<Answer, WireError> {
    let done = Ok(Answer::Done(Done::default()));
    match node.groups.group(GroupId(ask.group)) {
        Some(group) if group.seed().replica == ask.replica => {
            if tidy::consider(node, &group, Some(peer)).await {
                done
            } else {
                Err(still_here(&group))
            }
        }
        // an older one is gone, a newer one is not meant
        _ => done,
    }
}

fn still_here(group: &GroupHandle) -> WireError {
    let message = format!("replica {} is here until the group confirms that it let it go", group.seed().replica);
    WireError::new(Code::WouldBlock, message)
}

/// The part of a group's status that is about its replicas and its log.
pub fn standing(group: &GroupHandle, status: &Status) -> Result<GroupStatus, WireError> {
    let mut steps = group.view().steps().map_err(internal)?;
    steps.reverse();
    let mut out = GroupStatus {
        first: status.first,
        log_bytes: status.log_bytes,
        last_id: status.configuration.last_id,
        placement: status.spec.placement.clone(),
        steps,
        ..GroupStatus::default()
    };
    if status.leads {
        out.under_way = membership::under_way(status);
        let progress = status.progress.iter().map(|(id, progress)| ReplicaProgress {
            replica: *id,
            matched: progress.matched,
            silent_ms: group.silent_ms(*id),
            snapshot: progress.snapshot,
        });
        out.progress = progress.collect();
    }
    Ok(out)
}
