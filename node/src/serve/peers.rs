//! Requests about peers: who is known here, exchanges of descriptions, and draining.

use std::sync::atomic::Ordering;

use canal_proto::limits::{MAX_GOSSIP, MAX_KNOWN_PEERS};
use canal_proto::peer::PeerInfo;
use canal_proto::request::{Answer, Done, DrainAsk, Peers};
use canal_proto::{Code, PeerId, WireError};

use crate::node::{Node, internal};
use crate::rooms::gossip;

/// The peers that this peer knows of.
pub fn all(node: &Node) -> Answer {
    gossip::renew_soon(node);
    Answer::Peers(Peers { peers: node.peers.all(), known: Vec::new() })
}

/// This peer's description of itself.
pub fn own(node: &Node) -> PeerInfo {
    gossip::renew_soon(node);
    node.peers.get(node.id).unwrap_or_default()
}

/// Peers that were heard of lately, this one included.
pub fn known(node: &Node) -> u32 {
    u32::try_from(node.peers.live().len()).unwrap_or(u32::MAX)
}

/// An exchange that another peer began.
pub async fn gossip(node: &Node, peer: PeerId, ask: Peers) -> Result<Answer, WireError> {
    if ask.peers.len() > MAX_GOSSIP || ask.known.len() > MAX_KNOWN_PEERS {
        let message = format!("an exchange has at most {MAX_GOSSIP} descriptions and {MAX_KNOWN_PEERS} versions");
        return Err(WireError::new(Code::TooLarge, message));
    }
    let Some(first) = ask.peers.first().filter(|info| info.peer == peer.to_vec()) else {
        return Err(WireError::new(Code::InvalidArgument, "an exchange begins with the description of who asks"));
    };
    canal_topology::known::check(first).map_err(|e| WireError::new(Code::TooLarge, e.to_string()))?;
    node.net.know(peer, &first.addresses).await;
    node.note_starts(peer, &ask.peers).await;
    let merged = node.peers.heard(ask.peers);
    if !merged.new.is_empty() && !node.peers.is_full() {
        // who is new here is told on
        node.peers.tell();
    }
    gossip::renew_soon(node);
    Ok(Answer::Peers(node.peers.lacking(&ask.known)))
}

/// Begins to empty this peer, or gives that up. It stands on disk when this is answered.
pub async fn drain(node: &Node, ask: DrainAsk) -> Result<Answer, WireError> {
    let data = node.data.clone();
    let written = tokio::task::spawn_blocking(move || data.set_draining(ask.on)).await.map_err(internal)?;
    written.map_err(|error| internal(format!("{error:#}")))?;
    if node.draining.swap(ask.on, Ordering::Relaxed) != ask.on {
        tracing::info!(draining = ask.on, "what this peer holds moves away, or may stay");
    }
    gossip::renew(node);
    node.peers.tell();
    Ok(Answer::Done(Done::default()))
}
