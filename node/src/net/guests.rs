//! How many connections others may open to this peer.
//!
//! What this peer dials itself is always let through: a crowd of clients never keeps it from its groups. Of what others
//! open, [`MAX_GUESTS`] stand at a time, and [`RESERVE`] more from peers of the mesh that were met before. What is above
//! that is refused before its handshake, which is the costly part, and counted.

use std::collections::HashSet;
use std::sync::Arc;
use std::task::{Context, Poll};

use canal_dht::peer_id::from_libp2p;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::behaviour::FromSwarm;
use libp2p::swarm::{ConnectionClosed, ConnectionDenied, ConnectionId, ListenFailure, NetworkBehaviour, THandler};
use libp2p::swarm::{THandlerInEvent, THandlerOutEvent, ToSwarm, dummy};
use libp2p::{Multiaddr, PeerId};

use super::Shared;
use super::refused::Reason;

/// Connections that others have opened. An idle one takes some 400 KiB (QUIC's state and buffers), so all of them take 400 MiB.
const MAX_GUESTS: usize = 1024;
/// Connections more that only known peers of the mesh may have, handshakes under way included.
const RESERVE: usize = 256;

/// Why a connection is refused.
#[derive(Debug, thiserror::Error)]
#[error("this peer has as many connections as it may; try again later, or another peer")]
struct Full;

/// The count. No clock and no IO.
#[derive(Debug, Default)]
struct Count {
    /// Handshakes under way.
    pending: HashSet<ConnectionId>,
    /// What stands.
    guests: HashSet<ConnectionId>,
}

impl Count {
    /// Whether a handshake may begin.
    fn begin(&mut self, id: ConnectionId) -> bool {
        let room = self.pending.len() + self.guests.len() < MAX_GUESTS + RESERVE;
        if room {
            self.pending.insert(id);
        }
        room
    }

    /// Whether a connection may stand now that it is known whose it is.
    fn admit(&mut self, id: ConnectionId, member: bool) -> bool {
        self.pending.remove(&id);
        let room = member || self.guests.len() < MAX_GUESTS;
        if room {
            self.guests.insert(id);
        }
        room
    }

    fn end(&mut self, id: ConnectionId) {
        self.pending.remove(&id);
        self.guests.remove(&id);
    }
}

/// Counts connections, and refuses those above the limit.
pub(super) struct Behaviour {
    count: Count,
    shared: Arc<Shared>,
}

impl Behaviour {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { count: Count::default(), shared }
    }

    fn refuse(&self) -> ConnectionDenied {
        self.shared.refused.count(Reason::Connections);
        ConnectionDenied::new(Full)
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = std::convert::Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        if self.count.begin(id) { Ok(()) } else { Err(self.refuse()) }
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let member = from_libp2p(&peer).is_ok_and(|peer| self.shared.known.lock().contains_key(&peer));
        if self.count.admit(id, member) { Ok(dummy::ConnectionHandler) } else { Err(self.refuse()) }
    }

    fn handle_established_outbound_connection(
        &mut self,
        _id: ConnectionId,
        _peer: PeerId,
        _address: &Multiaddr,
        _role: Endpoint,
        _port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. }) => self.count.end(connection_id),
            FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => self.count.end(connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_fills_its_own_places_and_members_have_theirs() {
        let mut count = Count::default();
        let id = ConnectionId::new_unchecked;
        for n in 0..MAX_GUESTS {
            assert!(count.begin(id(n)) && count.admit(id(n), false));
        }
        assert!(count.begin(id(MAX_GUESTS)) && !count.admit(id(MAX_GUESTS), false), "a guest too many");
        for n in MAX_GUESTS..MAX_GUESTS + RESERVE {
            assert!(count.begin(id(n)) && count.admit(id(n), true), "a member has its place");
        }
        assert!(!count.begin(id(9_999)), "nobody is even listened to");
        count.end(id(0));
        assert!(count.begin(id(9_999)));
        // a handshake that fails gives its place back
        count.end(id(9_999));
        assert!(count.begin(id(10_000)));
    }
}
