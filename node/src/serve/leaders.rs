//! Waits for leaders, so that whoever lost one is told of the next as soon as there is one, and need not ask again and
//! again.
//!
//! Nobody is sent to a leader that has been silent here for [`SILENT`]: it may be dead, and its followers are about to
//! elect another.

use std::time::Duration;

use canal_consensus::{GroupHandle, Status};
use canal_proto::request::{Resolve, Route};
use canal_proto::{GroupId, TopicId, WireError};
use tokio::time::timeout;

use crate::node::Node;

/// Silence of a leader after which others are not sent to it: three of its heartbeats.
const SILENT: Duration = Duration::from_millis(300);
/// How long a request waits for a leader: an election, with time for another.
const ELECTION: Duration = Duration::from_secs(1);
/// Longest wait of somebody who asks for a leader.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// Publishes that wait for a leader on a peer. Each may be as large as an entry, so beyond them clients wait themselves.
pub const MAX_WAITING: usize = 64;

/// Says where something lives; if a replica of it is here, and the asker wants so, once another leader is known.
pub async fn resolve(node: &Node, ask: Resolve) -> Result<Route, WireError> {
    let route = node.resolve(&ask.name, ask.fresh).await?;
    let wait = Duration::from_millis(ask.wait_ms.into()).min(MAX_WAIT);
    let Some(group) = node.groups.group(GroupId(route.group)).filter(|_| !wait.is_zero()) else { return Ok(route) };
    led(&group, ask.other_than, wait).await;
    Ok(node.route_of(&group, TopicId(route.topic)))
}

/// Whether nobody is known to lead the group at the moment: the replica here does not, and knows none who lets it hear.
pub fn is_lost(group: &GroupHandle, status: &Status) -> bool {
    let silent = || u128::from(group.silent_ms(status.leader)) >= SILENT.as_millis();
    !status.leads && (status.leader == 0 || status.leader == status.replica || silent())
}

/// Waits until the group has a leader again, for as long as a request may wait.
pub async fn found(group: &GroupHandle) {
    let status = group.status();
    // one that was just elected here is only waited for
    let other_than = if status.leader == status.replica { 0 } else { status.leader };
    led(group, other_than, ELECTION).await;
}

/// Waits until the group is known here to have another leader than this one, but no longer than so.
async fn led(group: &GroupHandle, other_than: u64, wait: Duration) {
    let mut watch = group.watch();
    let known = async {
        while !is_led(&watch.now(), other_than) {
            if !watch.changed().await {
                return;
            }
        }
    };
    // without one, the asker gets what there is
    let _ = timeout(wait, known).await;
}

fn is_led(status: &Status, other_than: u64) -> bool {
    let elsewhere = ![0, other_than, status.replica].contains(&status.leader);
    status.leads || elsewhere
}
