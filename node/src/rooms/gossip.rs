//! Gossip: every peer exchanges descriptions with another, again and again, measures the way to it, and keeps a way into
//! the mesh.
//!
//! What is known by it is needed to place replicas, not to serve: nothing that is published or fired passes through here.
//! An exchange takes one request; what is told and kept is [`canal_topology::known`]'s to say. In the first seconds, and
//! whenever somebody new is heard of, exchanges come quickly, so that a mesh that has just begun knows itself at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use canal_proto::PeerId;
use canal_proto::request::{Answer, Ask};
use canal_sdk::{Connection, Opening, Transport};
use tokio::time::{Instant, sleep, timeout};

use crate::node::{NAMESPACE, Node};

/// How often a peer exchanges descriptions with another.
const ROUND: Duration = Duration::from_secs(2);
/// The same while there is news.
const QUICK: Duration = Duration::from_millis(100);
/// Quick rounds after the start, and after others have said something new at most: a second.
const MAX_QUICK: u32 = 10;
/// Quick rounds that somebody new is worth: enough to hear of those that it knows.
const QUICK_FOR_NEW: u32 = 4;
/// A peer that shares groups with this one and was not heard of for so long is asked itself, beside the others: a
/// description that is not renewed for 10 s is no candidate.
const PATIENCE: Duration = Duration::from_secs(5);
/// For an exchange, with the dial.
const EXCHANGE: Duration = Duration::from_secs(3);
/// Rounds after which an address from before is tried: two halves of a mesh that was cut for so long that they forgot each
/// other find together again.
const LOOK_BACK: u64 = 15;
/// For such a try.
const LOOK: Duration = Duration::from_secs(1);

/// Exchanges descriptions for as long as the peer runs. `known` are addresses from the last run.
pub async fn run(node: Arc<Node>, known: Vec<String>) {
    let mut quick = MAX_QUICK;
    for round in 1u64.. {
        renew(&node);
        if node.net.neighbours() == 0 {
            reconnect(&node, &known).await;
        }
        let new = turn(&node, round, &known).await;
        if node.catalog().is_some_and(|catalog| catalog.status().leads) {
            join(&node);
        }
        // where more peers are than can be known, there is always somebody new
        quick = match new {
            0 => quick.saturating_sub(1),
            _ if node.peers.is_full() => quick.saturating_sub(1),
            new => quick.saturating_add(QUICK_FOR_NEW.saturating_mul(new)).min(MAX_QUICK),
        };
        let wait = if quick > 0 || !node.joined.load(Ordering::Relaxed) { QUICK } else { ROUND };
        // a change of this peer's own is told without waiting
        let _ = timeout(wait, node.peers.news()).await;
    }
}

/// Takes note of how this peer stands, unless that was done a moment ago: whoever asks must not make it work.
pub fn renew_soon(node: &Node) {
    if !node.peers.looked_within(QUICK) {
        renew(node);
    }
}

/// Takes note of how this peer stands now, and with whom.
pub fn renew(node: &Node) {
    let sharers = node.sharers();
    node.starts.share(sharers.clone());
    node.peers.share(sharers);
    node.peers.expire();
    node.peers.describe(node.describe());
}

/// One round: an exchange with somebody, one with a peer that shares groups and is silent, and now and then a look at an
/// address from before. Says how many peers are new.
async fn turn(node: &Node, round: u64, known: &[String]) -> u32 {
    let mut new = 0;
    let partner = node.peers.partner(random());
    let stale = node.peers.stale_partner(PATIENCE).filter(|stale| partner.as_ref().is_none_or(|(p, _)| *p != stale.0));
    let nobody = partner.is_none();
    for (peer, addresses) in partner.into_iter().chain(stale) {
        match exchange(node, Some(peer), &addresses).await {
            Ok(count) => new += count,
            Err(error) => tracing::debug!(%peer, %error, "no exchange of descriptions"),
        }
    }
    if nobody || round.is_multiple_of(LOOK_BACK) {
        for address in before(node, known, nobody) {
            match timeout(LOOK, exchange(node, None, std::slice::from_ref(&address))).await {
                Ok(Ok(count)) => {
                    new += count;
                    break;
                }
                Ok(Err(error)) => tracing::debug!(%address, %error, "nobody there"),
                Err(_) => tracing::debug!(%address, "nobody answers there"),
            }
        }
    }
    new
}

/// Addresses from before, in any order: all of them, or one.
fn before(node: &Node, known: &[String], all: bool) -> Vec<String> {
    let mut addresses: Vec<String> = node.config.join.iter().chain(known).cloned().collect();
    addresses.extend(node.net.known());
    addresses.extend(node.net.discovered());
    let this = node.id.to_string();
    addresses.retain(|address| !address.ends_with(&this));
    if addresses.is_empty() {
        return addresses;
    }
    let at = usize::try_from(random() % addresses.len() as u64).unwrap_or(0);
    addresses.rotate_left(at);
    if !all {
        addresses.truncate(1);
    }
    addresses
}

/// Tells a peer of some that are known here, and is told of some; says how many of those are new.
async fn exchange(node: &Node, peer: Option<PeerId>, addresses: &[String]) -> anyhow::Result<u32> {
    let opening = Opening::peer(node.net.mesh(), NAMESPACE, Some(node.mesh), node.net.addresses());
    let connection = Connection::open(&node.net, peer, addresses, &opening, EXCHANGE).await?;
    let peer = connection.peer();
    if peer == node.id {
        return Ok(0);
    }
    let ask = Ask::Gossip(node.peers.sample(random()));
    // the stream stands: the time is that of the way and of an answer from memory
    let asked = Instant::now();
    let answer = connection.request(ask, EXCHANGE).await?;
    let round_trip = asked.elapsed();
    let Answer::Peers(told) = answer else { anyhow::bail!("the peer gave another answer") };
    let theirs = told.peers.first().filter(|info| info.peer == peer.to_vec());
    node.peers.measured(round_trip, theirs.and_then(|info| info.coordinate.as_ref()), random());
    if let Some(info) = theirs {
        node.net.know(peer, &info.addresses).await;
    }
    node.note_starts(peer, &told.peers).await;
    let merged = node.peers.heard(told.peers);
    join(node);
    Ok(u32::try_from(merged.new.len()).unwrap_or(u32::MAX))
}

/// The mesh is there.
fn join(node: &Node) {
    if !node.joined.swap(true, Ordering::Relaxed) {
        tracing::info!(mesh = %node.net.mesh(), "joined");
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // without random numbers it is always the same choice, which the others' choices make up for
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Looks for the mesh at every address that is known.
async fn reconnect(node: &Node, known: &[String]) {
    let mut places: Vec<(Option<PeerId>, Vec<String>)> = Vec::new();
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
        // the connection is what counts: the swarm learns the neighbour's addresses by it
        let protocol = canal_proto::request::protocol(node.net.mesh(), "peer");
        if node.net.open(peer, &addresses, &protocol).await.is_ok() {
            let found = async {
                while node.net.neighbours() == 0 {
                    sleep(QUICK).await;
                }
            };
            if timeout(LOOK, found).await.is_ok() {
                return;
            }
        }
    }
}
