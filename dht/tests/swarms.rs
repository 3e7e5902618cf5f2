//! Real swarms over QUIC on loopback: records are found over others, and refused where they are stored.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use canal_dht::core::record::Error as Invalid;
use canal_dht::{Driver, Error, Handle, Published, Refused, Routes, sign};
use canal_proto::limits::MAX_ROUTE_RECORD;
use canal_proto::peer::Replica;
use canal_proto::request::protocol;
use canal_proto::route::{self, RouteRecord, SignedRoute};
use canal_proto::{MeshId, PeerId};
use futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::kad::store::{MemoryStore, RecordStore};
use libp2p::kad::{self, QueryResult, Quorum, Record, RecordKey};
use libp2p::swarm::{Swarm, SwarmEvent};
use libp2p::{Multiaddr, StreamProtocol};
use prost::Message;
use tokio::sync::watch;
use tokio::task::JoinSet;

const MESH: MeshId = MeshId([3; 16]);
/// Nothing here takes longer on a slow machine; a test that does has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

fn swarm<S: RecordStore + Send + 'static>(
    keys: Keypair,
    kad: impl FnOnce(libp2p::PeerId) -> kad::Behaviour<S>,
) -> Swarm<kad::Behaviour<S>> {
    let kad = kad(keys.public().to_peer_id());
    let builder = libp2p::SwarmBuilder::with_existing_identity(keys).with_tokio().with_quic();
    builder.with_behaviour(|_| kad).unwrap().build()
}

async fn listen<S: RecordStore + Send + 'static>(swarm: &mut Swarm<kad::Behaviour<S>>) -> Multiaddr {
    swarm.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return address.with_p2p(*swarm.local_peer_id()).unwrap();
        }
    }
}

/// A peer whose loop runs until it is dropped.
struct Peer {
    id: libp2p::PeerId,
    address: Multiaddr,
    handle: Handle,
    connected: watch::Receiver<Vec<libp2p::PeerId>>,
    _tasks: JoinSet<()>,
}

impl Peer {
    /// Starts a peer that dials `others`.
    async fn start(others: &[(libp2p::PeerId, Multiaddr)]) -> Self {
        let routes = Routes::new(Some(MESH), now_ms);
        let mut swarm =
            swarm(Keypair::generate_ed25519(), |id| canal_dht::behaviour(id, "test", routes.clone()).unwrap());
        let address = within("listen", listen(&mut swarm)).await;
        for (id, address) in others {
            swarm.behaviour_mut().add_address(id, address.clone());
            swarm.dial(address.clone()).unwrap();
        }
        let (mut driver, handle) = Driver::new(routes);
        let (tell, connected) = watch::channel(Vec::new());
        let id = *swarm.local_peer_id();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    command = driver.next_command() => {
                        driver.handle_command(swarm.behaviour_mut(), command, Instant::now());
                    }
                    event = swarm.select_next_some() => {
                        if let SwarmEvent::Behaviour(event) = event {
                            driver.handle_event(swarm.behaviour_mut(), event, Instant::now());
                        }
                        tell.send_replace(swarm.connected_peers().copied().collect());
                    }
                }
            }
        });
        Self { id, address, handle, connected, _tasks: tasks }
    }

    fn at(&self) -> (libp2p::PeerId, Multiaddr) {
        (self.id, self.address.clone())
    }

    async fn connected_to(&self, other: libp2p::PeerId) {
        let mut connected = self.connected.clone();
        within("connect", connected.wait_for(|peers| peers.contains(&other))).await.unwrap();
    }

    fn refused(&self) -> BTreeMap<Refused, u64> {
        self.handle.routes().refused()
    }
}

/// A peer that keeps to libp2p's protocol, but stores and sends what it likes.
struct Hostile {
    swarm: Swarm<kad::Behaviour<MemoryStore>>,
}

impl Hostile {
    fn new() -> Self {
        let swarm = swarm(Keypair::generate_ed25519(), |id| {
            let name = StreamProtocol::try_from_owned(protocol("test", "kad")).unwrap();
            let mut config = kad::Config::new(name);
            config.set_max_packet_size(1 << 20);
            let mut kad = kad::Behaviour::with_config(id, MemoryStore::new(id), config);
            kad.set_mode(Some(kad::Mode::Server));
            kad
        });
        Self { swarm }
    }

    /// Puts a record to one peer, and waits until that one has dealt with it.
    async fn put(&mut self, to: &Peer, key: [u8; 32], value: Vec<u8>) {
        self.swarm.behaviour_mut().add_address(&to.id, to.address.clone());
        let record = Record { key: RecordKey::new(&key), value, publisher: None, expires: None };
        let query = self.swarm.behaviour_mut().put_record_to(record, std::iter::once(to.id), Quorum::One);
        within("put", async {
            loop {
                let event = self.swarm.select_next_some().await;
                if let SwarmEvent::Behaviour(kad::Event::OutboundQueryProgressed { id, result, .. }) = event
                    && id == query
                    && let QueryResult::PutRecord(result) = result
                {
                    return assert!(result.is_ok(), "{result:?}");
                }
            }
        })
        .await
    }

    /// Serves a record until the tasks are dropped.
    async fn serve(mut self, key: [u8; 32], value: Vec<u8>, tasks: &mut JoinSet<()>) -> (libp2p::PeerId, Multiaddr) {
        let address = within("listen", listen(&mut self.swarm)).await;
        let id = *self.swarm.local_peer_id();
        let record = Record { key: RecordKey::new(&key), value, publisher: None, expires: None };
        self.swarm.behaviour_mut().store_mut().put(record).unwrap();
        tasks.spawn(async move {
            loop {
                self.swarm.select_next_some().await;
            }
        });
        (id, address)
    }
}

fn member(n: u8) -> PeerId {
    let keys = Keypair::ed25519_from_bytes([n; 32]).unwrap();
    canal_dht::peer_id::from_libp2p(&keys.public().to_peer_id()).unwrap()
}

/// The route of a topic at an epoch, as the peers with the seeds 1 and 2 hold it.
fn record(epoch: u64) -> RouteRecord {
    let replica = |n: u8| Replica { id: n.into(), peer: member(n).to_vec(), addresses: vec!["/ip4/10.0.0.1".into()] };
    RouteRecord {
        mesh: MESH.to_vec().into(),
        namespace: "default".into(),
        name: "a/b".into(),
        topic: 5,
        group: 9,
        epoch,
        replicas: vec![replica(1), replica(2)],
        leader: 1,
        issued_ms: now_ms(),
        life_ms: 300_000,
    }
}

fn signed(epoch: u64) -> SignedRoute {
    sign(&record(epoch), &[1; 32]).unwrap()
}

fn key() -> [u8; 32] {
    route::key(MESH, "default", "a/b")
}

#[tokio::test]
async fn a_route_is_found_over_a_third_peer_and_lies_are_refused_where_they_are_stored() {
    let b = Peer::start(&[]).await;
    let a = Peer::start(&[b.at()]).await;
    let c = Peer::start(&[b.at()]).await;
    a.connected_to(b.id).await;
    c.connected_to(b.id).await;

    let published = within("publish", a.handle.publish(&signed(4))).await;
    assert_eq!(published, Ok(Published { peers: 1 }));
    assert_eq!(b.handle.routes().records(), 1);
    assert_eq!(b.handle.lookup("default", "a/b", false).await.unwrap().source, "local");

    // c knows only b
    assert_eq!(*c.connected.borrow(), [b.id]);
    let found = within("lookup", c.handle.lookup("default", "a/b", false)).await.unwrap();
    assert_eq!((found.topic, found.group, found.epoch, found.leader), (5, 9, 4, 1));
    assert_eq!(found.replicas, record(4).replicas);
    assert_eq!(found.source, "dht");
    assert_eq!(c.handle.lookup("default", "a/b", false).await.unwrap().source, "cache");
    assert_eq!(within("lookup", c.handle.lookup("default", "a/c", false)).await, Err(Error::NotFound));

    let mut hostile = Hostile::new();
    let mut forged = signed(9);
    forged.signature = signed(8).signature;
    let mut unsigned = signed(9);
    unsigned.signature = bytes::Bytes::new();
    let stranger =
        RouteRecord { replicas: vec![Replica { id: 1, peer: member(3).to_vec(), ..Replica::default() }], ..record(9) };
    let taken = sign(&stranger, &[3; 32]).unwrap();
    for (value, reason) in [
        (forged.encode_to_vec(), Refused::Invalid(Invalid::Forged)),
        (unsigned.encode_to_vec(), Refused::Invalid(Invalid::Unsigned)),
        (vec![0xff; MAX_ROUTE_RECORD + 1], Refused::Invalid(Invalid::TooLarge)),
        (signed(3).encode_to_vec(), Refused::Stale),
        (taken.encode_to_vec(), Refused::NotSuccessor),
    ] {
        let before = b.refused().get(&reason).copied().unwrap_or(0);
        hostile.put(&b, key(), value).await;
        assert_eq!(b.refused().get(&reason).copied(), Some(before + 1), "{:?}", b.refused());
    }
    let other = route::key(MESH, "default", "a/c");
    hostile.put(&b, other, signed(9).encode_to_vec()).await;
    assert_eq!(b.refused().get(&Refused::Invalid(Invalid::WrongKey)), Some(&1));
    assert_eq!(b.refused().values().sum::<u64>(), 6);
    // more refusals than a connection has streams do not cut the sender off
    for _ in 0..40 {
        hostile.put(&b, key(), signed(3).encode_to_vec()).await;
    }
    assert_eq!(b.refused().get(&Refused::Stale), Some(&41));
    // nothing of it reached anybody
    let found = within("lookup", c.handle.find("default", "a/b")).await.unwrap();
    assert_eq!(found.bytes().as_ref(), b.handle.find("default", "a/b").await.unwrap().bytes().as_ref());
    assert_eq!(found.route().epoch, 4);
    // what a member signed is taken, whoever brings it
    hostile.put(&b, key(), signed(5).encode_to_vec()).await;
    let found = within("lookup", c.handle.lookup("default", "a/b", true)).await.unwrap();
    assert_eq!(found.epoch, 5);
}

#[tokio::test]
async fn the_newest_valid_answer_is_believed() {
    let mut tasks = JoinSet::new();
    let mut forged = signed(9);
    forged.signature = signed(8).signature;
    let mut others = Vec::new();
    for value in [forged, signed(2), signed(3)] {
        others.push(Hostile::new().serve(key(), value.encode_to_vec(), &mut tasks).await);
    }
    let peer = Peer::start(&others).await;
    for (id, _) in &others {
        peer.connected_to(*id).await;
    }
    let found = within("lookup", peer.handle.lookup("default", "a/b", false)).await.unwrap();
    assert_eq!(found.epoch, 3);
}

#[tokio::test]
async fn a_mesh_of_one_peer_works() {
    let peer = Peer::start(&[]).await;
    assert_eq!(within("lookup", peer.handle.lookup("default", "a/b", false)).await, Err(Error::NotFound));
    assert_eq!(within("publish", peer.handle.publish(&signed(4))).await, Ok(Published { peers: 0 }));
    assert_eq!(peer.handle.lookup("default", "a/b", false).await.unwrap().source, "local");
    let fresh = within("lookup", peer.handle.lookup("default", "a/b", true)).await.unwrap();
    assert_eq!((fresh.epoch, fresh.source.as_str()), (4, "dht"));
    assert_eq!(within("publish", peer.handle.publish(&signed(3))).await, Err(Error::Refused(Refused::Stale)));
}

#[tokio::test]
async fn a_dead_peer_keeps_nobody_from_publishing_or_finding() {
    // it takes what is sent, and never answers
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let dead = Keypair::generate_ed25519().public().to_peer_id();
    let address = format!("/ip4/127.0.0.1/udp/{}/quic-v1/p2p/{dead}", silent.local_addr().unwrap().port());
    let dead = (dead, address.parse::<Multiaddr>().unwrap());

    let b = Peer::start(&[]).await;
    let a = Peer::start(&[dead.clone(), b.at()]).await;
    let c = Peer::start(&[dead, b.at()]).await;
    a.connected_to(b.id).await;
    c.connected_to(b.id).await;
    // 5 s is what the dead one costs whoever waits for it
    let begun = Instant::now();
    assert_eq!(within("publish", a.handle.publish(&signed(4))).await, Ok(Published { peers: 1 }));
    assert_eq!(within("lookup", c.handle.lookup("default", "a/b", false)).await.unwrap().epoch, 4);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}
