//! Asking one peer, and no other, over a stream of its own.

use std::time::Duration;

use canal_proto::PeerId;
use canal_proto::request::{Answer, Ask};
use canal_sdk::{Connection, Error, Opening};

use crate::node::{NAMESPACE, Node};

/// Asks this peer; `addresses` are used when nothing newer is known.
///
/// # Errors
/// What it answers, or that it does not.
pub async fn ask(
    node: &Node,
    peer: PeerId,
    addresses: &[String],
    ask: Ask,
    deadline: Duration,
) -> Result<Answer, Error> {
    let known = node.peers.addresses(peer).filter(|known| !known.is_empty());
    let addresses = known.unwrap_or_else(|| addresses.to_vec());
    let opening = Opening::peer(node.net.mesh(), NAMESPACE, Some(node.mesh), node.net.addresses());
    let connection = Connection::open(&node.net, Some(peer), &addresses, &opening, deadline).await?;
    connection.request(ask, deadline).await
}
