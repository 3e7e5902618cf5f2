//! The conversations that a client has, one a peer at most, and what it knows of who is where.
//!
//! Tries to reach one peer at the same time become one; its outcome is told to all of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use canal_proto::PeerId;
use canal_proto::peer::Replica;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::Error;
use crate::connection::{Connection, Opening};
use crate::transport::Transport;

/// Conversations kept: those with the leaders of the groups that a client uses, and a few more.
const MAX_CONNECTIONS: usize = 64;
/// For the dial, the handshake and the greeting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Where to ask: a peer with its addresses, or an address at which whoever answers will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) peer: Option<PeerId>,
    pub(crate) addresses: Vec<String>,
}

impl Place {
    pub(crate) fn address(address: &str) -> Self {
        Self { peer: None, addresses: vec![address.to_owned()] }
    }

    /// `None` when the replica names no peer that can exist.
    pub(crate) fn replica(replica: &Replica) -> Option<Self> {
        let peer = replica.peer_id().ok()?;
        Some(Self { peer: Some(peer), addresses: replica.addresses.clone() })
    }

    /// Whether asking at both would be asking twice.
    pub(crate) fn same(&self, other: &Self) -> bool {
        match (self.peer, other.peer) {
            (None, None) => self.addresses == other.addresses,
            (ours, theirs) => ours == theirs,
        }
    }
}

pub(crate) struct Pool {
    transport: Arc<dyn Transport>,
    opening: Opening,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    peers: HashMap<PeerId, Peer>,
    /// Who answered at an address that was given without a peer.
    addresses: HashMap<String, PeerId>,
    clock: u64,
}

struct Peer {
    slot: Arc<Slot>,
    used: u64,
}

#[derive(Default)]
struct Slot {
    connection: Mutex<Option<Connection>>,
    /// Held while one caller connects; with the last failure and when it was noticed.
    connecting: tokio::sync::Mutex<Option<(Instant, Error)>>,
}

impl Slot {
    fn live(&self) -> Option<Connection> {
        self.connection.lock().clone().filter(|connection| !connection.is_closed())
    }
}

impl Pool {
    pub(crate) fn new(transport: Arc<dyn Transport>, opening: Opening) -> Self {
        Self { transport, opening, known: Mutex::default() }
    }

    pub(crate) fn transport(&self) -> &dyn Transport {
        self.transport.as_ref()
    }

    pub(crate) fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Peers with which a conversation stands.
    pub(crate) fn connected(&self) -> Vec<Connection> {
        self.known.lock().peers.values().filter_map(|peer| peer.slot.live()).collect()
    }

    /// Whether a conversation with this peer stands.
    pub(crate) fn is_connected(&self, peer: PeerId) -> bool {
        self.known.lock().peers.get(&peer).is_some_and(|peer| peer.slot.live().is_some())
    }

    /// Who is at this place, if somebody has answered there.
    pub(crate) fn peer_at(&self, place: &Place) -> Option<PeerId> {
        let known = self.known.lock();
        place.peer.or_else(|| place.addresses.iter().find_map(|address| known.addresses.get(address)).copied())
    }

    /// The conversation with whoever is at this place; begins one where there is none.
    pub(crate) async fn connect(&self, place: &Place) -> Result<Connection, Error> {
        let Some(peer) = place.peer else {
            return self.connect_address(place).await;
        };
        let asked = Instant::now();
        let slot = self.slot(peer);
        if let Some(connection) = slot.live() {
            return Ok(connection);
        }
        let mut failed = slot.connecting.lock().await;
        if let Some(connection) = slot.live() {
            return Ok(connection);
        }
        if let Some((at, error)) = failed.as_ref()
            && *at >= asked
        {
            // somebody tried while we waited for our turn
            return Err(error.clone());
        }
        match self.open(place).await {
            Ok(connection) => {
                *slot.connection.lock() = Some(connection.clone());
                *failed = None;
                Ok(connection)
            }
            Err(error) => {
                *failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn connect_address(&self, place: &Place) -> Result<Connection, Error> {
        let known = {
            let known = self.known.lock();
            place.addresses.iter().find_map(|address| known.addresses.get(address)).copied()
        };
        if let Some(peer) = known
            && let Some(connection) = self.slot(peer).live()
        {
            return Ok(connection);
        }
        let connection = self.open(place).await?;
        let slot = self.slot(connection.peer());
        *slot.connection.lock() = Some(connection.clone());
        let mut known = self.known.lock();
        if known.addresses.len() >= MAX_CONNECTIONS {
            known.addresses.clear();
        }
        known.addresses.extend(place.addresses.iter().map(|address| (address.clone(), connection.peer())));
        Ok(connection)
    }

    async fn open(&self, place: &Place) -> Result<Connection, Error> {
        Connection::open(self.transport(), place.peer, &place.addresses, &self.opening, CONNECT_TIMEOUT).await
    }

    fn slot(&self, peer: PeerId) -> Arc<Slot> {
        let mut known = self.known.lock();
        known.clock += 1;
        let used = known.clock;
        if !known.peers.contains_key(&peer) && known.peers.len() >= MAX_CONNECTIONS {
            let oldest = known.peers.iter().min_by_key(|(_, peer)| peer.used).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                // whoever still uses that conversation keeps it; it is only not offered to others
                known.peers.remove(&oldest);
            }
        }
        let entry = known.peers.entry(peer).or_insert_with(|| Peer { slot: Arc::default(), used });
        entry.used = used;
        Arc::clone(&entry.slot)
    }
}
