//! Presence: every peer tells the catalog's leader of itself, and keeps a way into the mesh.
//!
//! What the leader knows by it is needed to place replicas, not to serve: nothing that is published or fired passes
//! through here, and a new leader knows all again after one round.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use canal_proto::request::Ask;
use canal_sdk::{Target, Transport};
use tokio::time::sleep;

use crate::node::Node;

/// How often a peer tells of itself.
const ANNOUNCE: Duration = Duration::from_secs(2);
/// How often it tries when nobody has answered.
const RETRY: Duration = Duration::from_millis(250);

/// Announces this peer for as long as it runs.
pub async fn run(node: Arc<Node>, known: Vec<String>) {
    loop {
        if node.net.neighbours() == 0 {
            reconnect(&node, &known).await;
        }
        let told = node.client.call(Target::Catalog, Ask::Announce(node.describe())).await;
        let wait = match told {
            Ok(_) => {
                if !node.joined.swap(true, Ordering::Relaxed) {
                    tracing::info!(mesh = %node.net.mesh(), "joined");
                }
                ANNOUNCE
            }
            Err(error) => {
                tracing::debug!(%error, "the catalog's leader was not told of this peer");
                RETRY
            }
        };
        sleep(wait).await;
    }
}

/// Looks for the mesh at every address that is known.
async fn reconnect(node: &Node, known: &[String]) {
    let mut places: Vec<(Option<canal_proto::PeerId>, Vec<String>)> = Vec::new();
    for group in node.groups.groups() {
        for replica in &group.status().configuration.replicas {
            if let Ok(peer) = replica.peer_id()
                && peer != node.id
            {
                places.push((Some(peer), replica.addresses.clone()));
            }
        }
    }
    let named = node.config.join.iter().chain(known).cloned().chain(node.net.discovered());
    places.extend(named.map(|address| (None, vec![address])));
    for (peer, addresses) in places {
        if let Some(peer) = peer {
            node.net.know(peer, &addresses).await;
        }
        let protocol = canal_proto::request::protocol(node.net.mesh(), "peer");
        // the connection is what counts: the swarm learns the neighbour's addresses by it
        if node.net.open(peer, &addresses, &protocol).await.is_ok() && node.net.neighbours() > 0 {
            return;
        }
    }
}
