//! Turns commands into Kademlia queries, and their progress into answers.
//!
//! The swarm is somebody else's: its loop takes [`Driver::next_command`], hands it to [`Driver::handle_command`],
//! and gives every Kademlia event to [`Driver::handle_event`]. The driver keeps deadlines of its own, because kad
//! looks at its timeouts only when something else wakes it; `next_command` wakes the loop when one is due.

mod handle;
mod lookups;
mod publications;

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use canal_proto::{name, request};
use libp2p::StreamProtocol;
use libp2p::kad::{self, QueryResult};
use tokio::sync::mpsc;

pub use self::handle::Handle;
use self::handle::{LookupAsk, PublishAsk};
use self::lookups::Lookups;
use self::publications::Publications;
use crate::core::record::MAX_LIFE_MS;
use crate::core::table::Refused;
use crate::routes::Routes;
use crate::store::RouteStore;

/// How long a query may take: as long as a request may wait that names no deadline.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// One Kademlia message: a route record of 8 KiB, and 20 peers with 8 addresses of 100 bytes, and room.
const MAX_PACKET: usize = 64 << 10;
/// Commands that wait for the swarm's loop; above it, callers get [`Error::Busy`].
const MAX_COMMANDS: usize = 1024;

/// Why the DHT could not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// All peers near the key were asked, and none has a valid record.
    #[error("no route is known; create the topic, or wait until its group's leader publishes")]
    NotFound,
    /// Not all peers near the key answered in time, and none of those that did has a valid record.
    #[error("the peers that may know the route did not answer in time; try again")]
    Timeout,
    /// Too much is being asked at once.
    #[error("too many lookups and publications are under way; wait and try again")]
    Busy,
    /// The record was refused, here already.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There are other peers near the key, but none of them answered.
    #[error("no other peer took the route record; it is stored here, publish again soon")]
    Unreached,
    /// The peer has joined no mesh yet.
    #[error("this peer has joined no mesh yet; try again when it has")]
    NoMesh,
    /// The mesh's name can't be one.
    #[error("the mesh's name is not valid; use letters, digits, `-`, `_` and `.`")]
    BadMeshName,
    /// The swarm's loop has ended.
    #[error("this peer is shutting down; ask another one")]
    Stopped,
}

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// How many other peers had taken the record when this was answered; 0 only when this peer knows no other. Once
    /// a few have, the answer does not wait for the rest; they are still told. A peer that has a newer record takes
    /// this one and drops it.
    pub peers: usize,
}

/// The Kademlia behaviour of a peer: in server mode, in the mesh's own protocol, storing valid route records only.
///
/// kad neither replicates nor republishes by itself (a group's leader does), and caches nothing at others.
pub fn behaviour(local: libp2p::PeerId, mesh_name: &str, routes: Routes) -> Result<kad::Behaviour<RouteStore>, Error> {
    name::check_plain(mesh_name).map_err(|_| Error::BadMeshName)?;
    let protocol = request::protocol(mesh_name, "kad");
    let protocol = StreamProtocol::try_from_owned(protocol).map_err(|_| Error::BadMeshName)?;
    let mut config = kad::Config::new(protocol);
    config
        .set_query_timeout(QUERY_TIMEOUT)
        .set_substreams_timeout(QUERY_TIMEOUT)
        .set_max_packet_size(MAX_PACKET)
        .set_record_ttl(Some(Duration::from_millis(MAX_LIFE_MS)))
        .set_record_filtering(kad::StoreInserts::Unfiltered)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_caching(kad::Caching::Disabled);
    let mut kad = kad::Behaviour::with_config(local, RouteStore::new(local, routes), config);
    kad.set_mode(Some(kad::Mode::Server));
    Ok(kad)
}

/// Takes a peer out of the routing table that could not be dialled. Without this, kad keeps it with its last address,
/// and each query waits for it again; it comes back when a connection to it stands.
pub fn forget_peer(kad: &mut kad::Behaviour<RouteStore>, peer: &libp2p::PeerId) {
    kad.remove_peer(peer);
}

/// A command for [`Driver::handle_command`].
#[derive(Debug)]
pub struct Command(Kind);

#[derive(Debug)]
enum Kind {
    Lookup(LookupAsk),
    Publish(PublishAsk),
    /// A deadline has come.
    Due,
}

/// Drives the queries of one Kademlia behaviour.
#[derive(Debug)]
pub struct Driver {
    routes: Routes,
    commands: mpsc::Receiver<Kind>,
    lookups: Lookups,
    publications: Publications,
}

impl Driver {
    /// A driver for the behaviour that stores its records in `routes`, and the handle to it.
    pub fn new(routes: Routes) -> (Self, Handle) {
        let (sender, commands) = mpsc::channel(MAX_COMMANDS);
        let driver = Self {
            routes: routes.clone(),
            commands,
            lookups: Lookups::default(),
            publications: Publications::default(),
        };
        (driver, Handle::new(sender, routes))
    }

    /// Waits for something to do. It may be dropped at any time without losing anything.
    pub async fn next_command(&mut self) -> Command {
        let due = [self.lookups.next_due(), self.publications.next_due()].into_iter().flatten().min();
        let sleep = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        let kind = tokio::select! {
            biased;
            () = sleep => Kind::Due,
            Some(command) = self.commands.recv() => command,
        };
        Command(kind)
    }

    /// Does what a command says.
    pub fn handle_command(&mut self, kad: &mut kad::Behaviour<RouteStore>, command: Command, now: Instant) {
        match command.0 {
            Kind::Lookup(ask) => self.lookups.start(kad, ask, now),
            Kind::Publish(ask) => self.publications.start(kad, &self.routes, ask, now),
            Kind::Due => {
                self.lookups.due(kad, &self.routes, now);
                self.publications.due(kad, now);
            }
        }
    }

    /// Takes what kad has to say. Events that belong to no command are of no interest here.
    pub fn handle_event(&mut self, kad: &mut kad::Behaviour<RouteStore>, event: kad::Event, now: Instant) {
        let kad::Event::OutboundQueryProgressed { id, result, step, .. } = event else {
            return;
        };
        match result {
            QueryResult::GetRecord(result) => self.lookups.progress(kad, &self.routes, id, result, step.last, now),
            QueryResult::GetClosestPeers(result) => {
                let peers = match result {
                    Ok(found) => found.peers,
                    Err(kad::GetClosestPeersError::Timeout { peers, .. }) => peers,
                };
                let peers = peers.into_iter().map(|info| info.peer_id).collect();
                self.publications.closest(kad, id, peers, now);
            }
            QueryResult::PutRecord(result) => {
                self.publications.stored(kad, id, result.is_ok(), now);
            }
            _ => {}
        }
    }
}

/// How many peers a query for the closest ones asks for, and a record is stored at.
const REPLICATION: NonZeroUsize = kad::K_VALUE;

#[cfg(test)]
mod tests;
