//! The simulated DHT: each peer's real table of route records and its real cache, and lookups among them.
//!
//! Records are put by messages ([`Ask::Store`](super::around::Ask::Store), to the [`K`] peers that are nearest to the
//! record's key of those that the publisher has heard of lately), so they are lost, late and repeated like any other. A
//! lookup asks the nearest that the network reaches at the moment of the question, all at once: what takes time in it is
//! the way of the question to the peer that looks up, and back. Who knows whom is not simulated: a peer finds every peer
//! that it reaches.
//!
//! Everything here is memory, so a crash of a peer takes its part away.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use canal_consensus::Status;
use canal_dht::core::cache::{Cache, route_of};
use canal_dht::core::record::{self, Verified};
use canal_dht::core::table::Table;
use canal_proto::peer::Replica;
use canal_proto::request::Route;
use canal_proto::{Code, GroupId, MeshId, PeerId, WireError, route};
use ed25519_dalek::{Signer, SigningKey};

use super::around::{Answer, Failed, Machine};
use super::rooms::spec::Catalog;
use super::seen::Seen;
use super::setup;

/// Peers at which a record is stored: Kademlia's k, as libp2p has it.
pub const K: usize = 20;
/// The namespace of everything.
pub const NAMESPACE: &str = "default";
/// Answers from other peers that end a lookup, as in the driver.
const ENOUGH_ANSWERS: usize = 3;

/// Who the peers are: real keys.
pub struct Identities {
    mesh: MeshId,
    keys: Vec<SigningKey>,
    ids: Vec<PeerId>,
    machines: BTreeMap<PeerId, Machine>,
}

impl Identities {
    /// The keys of so many peers.
    pub fn new(peers: usize) -> Self {
        let keys: Vec<SigningKey> = (0..peers).map(|peer| SigningKey::from_bytes(&setup::secret(peer))).collect();
        let ids: Vec<PeerId> = keys.iter().map(|key| PeerId::from_public_key(key.verifying_key().to_bytes())).collect();
        let machines = ids.iter().copied().zip(0..).collect();
        Self { mesh: MeshId(setup::MESH), keys, ids, machines }
    }

    /// The mesh.
    pub fn mesh(&self) -> MeshId {
        self.mesh
    }

    /// How many peers there are, those included that have yet to come and that have left.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The id of a peer; of one that does not exist, one that nobody has.
    pub fn id(&self, peer: Machine) -> PeerId {
        self.ids.get(peer).copied().unwrap_or(PeerId::from_public_key([0; 32]))
    }

    /// The peer with an id.
    pub fn machine(&self, id: PeerId) -> Option<Machine> {
        self.machines.get(&id).copied()
    }

    /// The peer that holds a replica.
    pub fn holder(&self, replica: &Replica) -> Option<Machine> {
        self.machine(replica.peer_id().ok()?)
    }

    /// A replica on a peer.
    pub fn replica(&self, id: u64, peer: Machine) -> Replica {
        Replica { id, peer: self.id(peer).to_vec(), addresses: Vec::new() }
    }

    /// A peer's signature.
    pub fn sign(&self, peer: Machine, bytes: &[u8]) -> [u8; 64] {
        self.keys.get(peer).map_or([0; 64], |key| key.sign(bytes).to_bytes())
    }

    /// The first of `peers`, by the distance of the key; [`K`] at most.
    pub fn nearest(&self, key: &[u8; 32], peers: impl IntoIterator<Item = Machine>) -> Vec<Machine> {
        let distance = |peer: Machine| {
            let mut place = *blake3::hash(self.id(peer).public_key()).as_bytes();
            place.iter_mut().zip(key).for_each(|(to, from)| *to ^= from);
            place
        };
        let mut peers: Vec<_> = peers.into_iter().map(|peer| (distance(peer), peer)).collect();
        peers.sort_unstable();
        peers.into_iter().map(|(_, peer)| peer).take(K).collect()
    }
}

/// What a lookup needs of the network.
pub trait Net {
    /// Whether a question of one peer to another would be answered just now: both are up and go, and both ways are open.
    fn reaches(&self, from: Machine, to: Machine) -> bool;
    /// A peer's clock, in milliseconds since 1970.
    fn now_ms(&self, peer: Machine) -> u64;
}

/// What every peer knows of routes.
pub struct Dht {
    identities: Rc<Identities>,
    catalog: Rc<Catalog>,
    peers: Vec<Memory>,
    /// What came of checking these bytes: to do it again at each peer is what most of a simulation's time would go into.
    opened: RefCell<BTreeMap<Bytes, Result<Verified, record::Error>>>,
}

struct Memory {
    table: Table,
    cache: Cache,
}

impl Memory {
    fn new(mesh: MeshId) -> Self {
        Self { table: Table::new(Some(mesh)), cache: Cache::default() }
    }
}

impl Dht {
    /// A DHT that knows no route.
    pub fn new(identities: Rc<Identities>, catalog: Rc<Catalog>) -> Self {
        let mesh = identities.mesh();
        let peers = (0..identities.len()).map(|_| Memory::new(mesh)).collect();
        Self { identities, catalog, peers, opened: RefCell::default() }
    }

    /// A peer crashed: it knows nothing any more.
    pub fn restart(&mut self, peer: Machine) {
        if let Some(memory) = self.peers.get_mut(peer) {
            *memory = Memory::new(self.identities.mesh());
        }
    }

    /// Answers [`Ask::Store`](super::around::Ask::Store) on a peer whose clock says `now_ms`, and what the invariants have to be told of it;
    /// nothing when it has exactly this record.
    pub fn store(&mut self, peer: Machine, bytes: &[u8], now_ms: u64) -> (Answer, Option<Seen>) {
        let Ok((key, record)) = unchecked(bytes, self.identities.mesh()) else { return (Answer::No, None) };
        let opened = &self.opened;
        let Some(memory) = self.peers.get_mut(peer) else { return (Answer::No, None) };
        match memory.table.put_opened(&key, bytes, now_ms, &mut |mesh| open(opened, bytes, mesh, now_ms)) {
            Ok(canal_dht::Accepted::Known) => (Answer::Yes, None),
            Ok(_) => {
                let (group, topic) = (GroupId(record.group), record.topic);
                let (epoch, issued_ms) = (record.epoch, record.issued_ms);
                (Answer::Yes, Some(Seen::Routed { peer, name: record.name, group, topic, epoch, issued_ms }))
            }
            Err(_) => (Answer::No, Some(Seen::RouteRefused { peer, name: record.name, epoch: record.epoch })),
        }
    }

    /// Answers [`Ask::Route`](super::around::Ask::Route) and, with `fresh`, [`Ask::Afresh`](super::around::Ask::Afresh), as the node does: by a replica
    /// on this peer (see [`here`]), by what it remembers, by the DHT, or else by the catalog.
    ///
    /// # Errors
    /// `UnknownTopic`.
    pub fn route(
        &mut self,
        peer: Machine,
        name: &str,
        fresh: bool,
        here: Option<Route>,
        net: &dyn Net,
    ) -> Result<Answer, Failed> {
        if let Some(route) = here.as_ref().filter(|route| route.leader != 0 || !fresh) {
            return Ok(Answer::Route(route.clone()));
        }
        let known = if fresh { None } else { self.known(peer, name, net.now_ms(peer)) };
        let found = known.or_else(|| self.look_up(peer, name, net));
        match (found, here) {
            // a replica without a leader may be one that its group has left behind
            (Some(found), Some(here)) if found.epoch <= here.epoch => Ok(Answer::Route(here)),
            (Some(found), _) => Ok(Answer::Route(found)),
            (None, Some(here)) => Ok(Answer::Route(here)),
            (None, None) => self.catalog(name).map(Answer::Route).ok_or_else(|| {
                Failed::Error(WireError::new(Code::UnknownTopic, format!("no route of `{name}` is known")))
            }),
        }
    }

    /// A peer follows a redirect for a name, as [`canal_dht::Routes::redirect`] does.
    pub fn correct(&mut self, peer: Machine, name: &str, route: Route, now_ms: u64) {
        let ends = now_ms.saturating_add(canal_dht::core::cache::CORRECTED_LIFE_MS);
        if let Some(memory) = self.peers.get_mut(peer) {
            memory.cache.correct(NAMESPACE, name, route, now_ms, ends);
        }
    }

    /// As [`canal_dht::Routes::known`].
    fn known(&self, peer: Machine, name: &str, now_ms: u64) -> Option<Route> {
        let memory = self.peers.get(peer)?;
        let key = route::key(self.identities.mesh(), NAMESPACE, name);
        let stored = memory.table.get(&key, now_ms).map(|record| route_of(record, "local"));
        let cached = memory.cache.get(NAMESPACE, name, now_ms).cloned();
        match (stored, cached) {
            // a redirect is newer than the record of the same epoch that it corrects
            (Some(stored), Some(cached)) if (stored.topic, stored.epoch) > (cached.topic, cached.epoch) => Some(stored),
            (stored, cached) => cached.or(stored),
        }
    }

    /// The newest record among the first answers of the peers nearest to the key, and of this peer itself.
    fn look_up(&mut self, peer: Machine, name: &str, net: &dyn Net) -> Option<Route> {
        let mesh = self.identities.mesh();
        let key = route::key(mesh, NAMESPACE, name);
        let now_ms = net.now_ms(peer);
        let others = (0..self.peers.len()).filter(|other| *other != peer && net.reaches(peer, *other));
        let asked = self.identities.nearest(&key, others);
        let held = |at: Machine| self.peers.get(at)?.table.get(&key, net.now_ms(at)).map(|held| (at, held));
        let mut found: Vec<Verified> = held(peer).into_iter().map(|(_, held)| held.clone()).collect();
        for (at, held) in asked.into_iter().filter_map(held).take(ENOUGH_ANSWERS) {
            let left = held.expires_ms().saturating_sub(net.now_ms(at));
            // what came in is verified where it is used; the same record is verified once
            let same = found.iter().find(|known| known.bytes() == held.bytes()).cloned();
            let record =
                same.or_else(|| open(&self.opened, held.bytes(), mesh, now_ms).and_then(|new| new.under(&key)).ok());
            found.extend(record.map(|record| record.until(now_ms.saturating_add(left))));
        }
        let newest = record::newest(found)?;
        let memory = self.peers.get_mut(peer)?;
        memory.cache.learn(&newest, now_ms);
        Some(route_of(&newest, "dht"))
    }

    fn catalog(&self, name: &str) -> Option<Route> {
        let (group, topic) = match name.strip_prefix("$group/") {
            Some(group) => (group.parse().ok()?, 0),
            None => self.catalog.topic(name)?,
        };
        let first = self.catalog.first(group);
        let replicas = (1..).zip(first).map(|(id, peer)| self.identities.replica(id, peer)).collect();
        Some(Route { topic, group: group.0, replicas, source: "catalog".into(), ..Route::default() })
    }
}

/// The route of a name by a replica on the peer that is asked, as the node has it: give its status.
pub fn here(name: &str, status: &Status) -> Option<Route> {
    let topic = match name.strip_prefix("$group/") {
        Some(group) => (group.parse() == Ok(status.group)).then_some(0)?,
        // one that is being filled has nothing to answer with; others are named to whoever asks
        None if status.hollow || status.installing => return None,
        None => status.spec.topics.iter().find(|topic| topic.name == name)?.id,
    };
    Some(Route {
        topic,
        group: status.group.0,
        epoch: status.epoch,
        replicas: status.configuration.replicas.clone(),
        leader: status.leader,
        source: "local".into(),
    })
}

/// Checks bytes that came in at a time; the same bytes are verified once in a run.
fn open(
    opened: &RefCell<BTreeMap<Bytes, Result<Verified, record::Error>>>,
    bytes: &[u8],
    mesh: MeshId,
    now_ms: u64,
) -> Result<Verified, record::Error> {
    if let Some(known) = opened.borrow().get(bytes) {
        return known.clone().map(|verified| verified.received(now_ms));
    }
    let new = record::open(bytes, mesh, now_ms);
    opened.borrow_mut().insert(Bytes::copy_from_slice(bytes), new.clone());
    new
}

/// A record and its key, as they came; the table checks them.
fn unchecked(bytes: &[u8], mesh: MeshId) -> Result<([u8; 32], route::RouteRecord), prost::DecodeError> {
    use prost::Message as _;
    let signed = route::SignedRoute::decode(bytes)?;
    let record = route::RouteRecord::decode(signed.record)?;
    Ok((route::key(mesh, &record.namespace, &record.name), record))
}

/// Signs a record as a peer.
///
/// # Errors
/// As [`canal_dht::sign_by`].
pub fn signed(identities: &Identities, peer: Machine, record: &route::RouteRecord) -> Result<Bytes, record::Error> {
    use prost::Message as _;
    let signed = canal_dht::sign_by(record, identities.id(peer), &|bytes| identities.sign(peer, bytes))?;
    Ok(signed.encode_to_vec().into())
}

#[cfg(test)]
mod tests;
