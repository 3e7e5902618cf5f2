//! The network: one libp2p swarm over QUIC that finds peers and carries every stream.
//!
//! The swarm has a task of its own. It answers Kademlia, and opens and accepts raw streams by the name of their
//! protocol; what flows in them does not pass through it. A stream to this peer itself is a pipe in memory, so that
//! whoever asks the mesh something need not care whether the answer lives here.
//!
//! libp2p-stream keeps one accepted stream waiting and drops the next in silence; so each protocol has a task that
//! does nothing but take streams, and every protocol begins with a greeting that is answered.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use canal_dht::peer_id::{from_libp2p, to_libp2p};
use canal_dht::{Driver, RouteStore, Routes};
use canal_proto::{Code, PeerId, request};
use canal_sdk::transport::libp2p::address;
use canal_sdk::transport::libp2p::dial::{self, Dial};
use canal_sdk::transport::libp2p::{IDLE_TIMEOUT, KEEP_ALIVE};
use canal_sdk::{BoxStream, Error, Transport};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use libp2p::identity::Keypair;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, StreamProtocol, Swarm, SwarmBuilder, identify, kad, mdns, ping};
use libp2p_stream::Control;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use crate::data::{Data, InUse};

mod guests;
pub mod links;
pub mod refused;

use refused::{Reason, Refused};

/// Address by which a peer reaches itself, in memory.
pub const SELF: &str = "self";
/// Connections without a stream are kept for this long: Kademlia's neighbours come back to each other often.
const UNUSED_TIMEOUT: Duration = Duration::from_secs(60);
/// For a dial with its handshake, and for an address to listen at.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that is older than this when the same peer opens another is a dead one: the peer was restarted, and
/// what is sent on the old one goes nowhere. Two that are younger were opened by both sides at once.
const REPLACED_AFTER: Duration = Duration::from_secs(1);
/// Commands that wait for the swarm.
const MAX_COMMANDS: usize = 256;
/// Streams that wait to be served.
const MAX_INCOMING: usize = 256;
/// Buffer of a pipe to this peer itself.
const PIPE: usize = 256 << 10;
/// Addresses found on the local network that are remembered.
const MAX_DISCOVERED: usize = 64;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Requests of clients.
    Client,
    /// Requests of peers.
    Peer,
    /// A subscription.
    Subscribe,
    /// Raft messages.
    Raft,
}

impl Protocol {
    const ALL: [Self; 4] = [Self::Client, Self::Peer, Self::Subscribe, Self::Raft];

    /// Its part of the protocol's name.
    pub fn what(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Peer => "peer",
            Self::Subscribe => "subscribe",
            Self::Raft => "raft",
        }
    }
}

/// A stream that somebody opened to this peer.
pub struct Incoming {
    /// What for.
    pub protocol: Protocol,
    /// By whom; the key was checked.
    pub peer: PeerId,
    /// The stream.
    pub stream: BoxStream,
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    kad: kad::Behaviour<RouteStore>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    streams: libp2p_stream::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    guests: guests::Behaviour,
}

enum Command {
    Dial { peer: Option<libp2p::PeerId>, addresses: Vec<Multiaddr>, reply: oneshot::Sender<Connected> },
    Know { peer: libp2p::PeerId, addresses: Vec<Multiaddr> },
}

type Connected = Result<libp2p::PeerId, String>;

/// A handle to the network. Clones share it.
#[derive(Clone)]
pub struct Net(Arc<Inner>);

struct Inner {
    local: PeerId,
    mesh: String,
    commands: mpsc::Sender<Command>,
    control: Control,
    incoming: mpsc::Sender<Incoming>,
    shared: Arc<Shared>,
}

struct Shared {
    addresses: watch::Sender<Vec<String>>,
    neighbours: AtomicUsize,
    discovered: Mutex<BTreeSet<String>>,
    known: Mutex<HashMap<PeerId, Vec<String>>>,
    refused: Refused,
}

/// What the network runs on.
pub struct Parts {
    /// The peer's key.
    pub keys: Keypair,
    /// Name of the mesh.
    pub mesh: String,
    /// Addresses to listen at, as the user wrote them.
    pub listen: Vec<String>,
    /// Whether to look for peers on the local network.
    pub mdns: bool,
}

/// Starts listening and the swarm's tasks, in `tasks`.
///
/// # Errors
/// When an address can't be read or is taken.
pub async fn start(
    parts: Parts,
    data: &Data,
    routes: Routes,
    tasks: &mut JoinSet<()>,
) -> Result<(Net, canal_dht::Handle, mpsc::Receiver<Incoming>)> {
    let Parts { keys, mesh, listen, mdns } = parts;
    let local = keys.public().to_peer_id();
    let kad = canal_dht::behaviour(local, &mesh, routes.clone())?;
    let shared = Arc::new(Shared {
        addresses: watch::Sender::new(Vec::new()),
        neighbours: AtomicUsize::new(0),
        discovered: Mutex::default(),
        known: Mutex::default(),
        refused: Refused::default(),
    });
    let mut swarm = build(keys, &mesh, kad, mdns, shared.clone())?;
    let addresses = listen_at(&mut swarm, &listen, data).await?;
    let (driver, dht) = Driver::new(routes);
    let (incoming, served) = mpsc::channel(MAX_INCOMING);
    let mut control = swarm.behaviour().streams.new_control();
    for protocol in Protocol::ALL {
        let name = StreamProtocol::try_from_owned(request::protocol(&mesh, protocol.what()))?;
        let mut streams = control.accept(name).context("a protocol is accepted twice")?;
        let (incoming, shared) = (incoming.clone(), shared.clone());
        tasks.spawn(async move {
            while let Some((peer, stream)) = streams.next().await {
                let Ok(peer) = from_libp2p(&peer) else { continue };
                let stream: BoxStream = Box::new(stream.compat());
                if incoming.try_send(Incoming { protocol, peer, stream }).is_err() {
                    shared.refused.count(Reason::Streams);
                    tracing::warn!(%peer, what = protocol.what(), "too many streams wait to be served; one is closed");
                }
            }
        });
    }
    shared.addresses.send_replace(addresses);
    let (commands, receiver) = mpsc::channel(MAX_COMMANDS);
    let actor = Actor {
        swarm,
        driver,
        commands: receiver,
        kad_protocol: request::protocol(&mesh, "kad"),
        shared: shared.clone(),
        waiting: HashMap::new(),
        connections: HashMap::new(),
        members: BTreeSet::new(),
    };
    tasks.spawn(actor.run());
    let local = from_libp2p(&local)?;
    Ok((Net(Arc::new(Inner { local, mesh, commands, control, incoming, shared })), dht, served))
}

fn build(
    keys: Keypair,
    mesh: &str,
    kad: kad::Behaviour<RouteStore>,
    mdns: bool,
    shared: Arc<Shared>,
) -> Result<Swarm<Behaviour>> {
    let identify = identify::Config::new(request::protocol(mesh, "identify"), keys.public())
        .with_agent_version(format!("canal/{}", env!("CARGO_PKG_VERSION")));
    let local = keys.public().to_peer_id();
    let mdns = match mdns {
        true => match mdns::tokio::Behaviour::new(mdns::Config::default(), local) {
            Ok(mdns) => Some(mdns),
            Err(error) => {
                tracing::warn!(%error, "the local network can't be searched for peers; name one with --join");
                None
            }
        },
        false => None,
    };
    let behaviour = Behaviour {
        kad,
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::default(),
        streams: libp2p_stream::Behaviour::new(),
        mdns: mdns.into(),
        guests: guests::Behaviour::new(shared),
    };
    Ok(SwarmBuilder::with_existing_identity(keys)
        .with_tokio()
        .with_quic_config(|mut config| {
            config.keep_alive_interval = KEEP_ALIVE;
            config.max_idle_timeout = u32::try_from(IDLE_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
            config.handshake_timeout = IDLE_TIMEOUT;
            // a client has a stream for each topic that it subscribes to
            config.max_concurrent_stream_limit = 4096;
            config
        })
        .with_behaviour(|_| behaviour)
        .context("the swarm can't be built")?
        .with_swarm_config(|config| config.with_idle_connection_timeout(UNUSED_TIMEOUT))
        .build())
}

async fn listen_at(swarm: &mut Swarm<Behaviour>, listen: &[String], data: &Data) -> Result<Vec<String>> {
    let mut waiting = HashMap::new();
    for text in listen {
        let endpoints = address::resolve(text).await.map_err(|e| anyhow::anyhow!("--listen {text}: {e}"))?;
        let Some(endpoint) = endpoints.into_iter().next() else { bail!("--listen {text}: no address") };
        let remembered = (port_of(&endpoint.address) == Some(0)).then(|| data.port(text)).flatten();
        let before = remembered.and_then(|port| swarm.listen_on(with_port(&endpoint.address, port)).ok());
        let id = match before {
            Some(id) => id,
            None => match swarm.listen_on(endpoint.address.clone()) {
                Ok(id) => id,
                Err(libp2p::TransportError::MultiaddrNotSupported(_)) => {
                    bail!("--listen {text}: only QUIC over UDP is spoken; write IP:PORT or /ip4/IP/udp/PORT/quic-v1")
                }
                Err(libp2p::TransportError::Other(error)) => {
                    return Err(InUse::Address(text.clone(), error.to_string()).into());
                }
            },
        };
        waiting.insert(id, text.clone());
    }
    let mut addresses = Vec::new();
    while !waiting.is_empty() {
        match timeout(DIAL_TIMEOUT, swarm.select_next_some()).await {
            Ok(SwarmEvent::NewListenAddr { listener_id, address }) => {
                if let (Some(text), Some(port)) = (waiting.remove(&listener_id), port_of(&address)) {
                    data.set_port(&text, port)?;
                }
                addresses.push(address.to_string());
            }
            Ok(SwarmEvent::ListenerClosed { listener_id, reason: Err(error), .. }) => {
                let text = waiting.remove(&listener_id).unwrap_or_default();
                bail!("can't listen at {text}: {error}");
            }
            Ok(_) => {}
            Err(_) => bail!("no address came up within {} s; check --listen", DIAL_TIMEOUT.as_secs()),
        }
    }
    Ok(addresses)
}

fn port_of(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| match part {
        libp2p::multiaddr::Protocol::Udp(port) => Some(port),
        _ => None,
    })
}

fn with_port(address: &Multiaddr, port: u16) -> Multiaddr {
    address
        .iter()
        .map(|part| match part {
            libp2p::multiaddr::Protocol::Udp(_) => libp2p::multiaddr::Protocol::Udp(port),
            other => other,
        })
        .collect()
}

fn is_loopback(address: &Multiaddr) -> bool {
    address.iter().any(|part| match part {
        libp2p::multiaddr::Protocol::Ip4(ip) => ip.is_loopback(),
        libp2p::multiaddr::Protocol::Ip6(ip) => ip.is_loopback(),
        _ => false,
    })
}

impl Net {
    /// This peer.
    pub fn local(&self) -> PeerId {
        self.0.local
    }

    /// Name of the mesh.
    pub fn mesh(&self) -> &str {
        &self.0.mesh
    }

    /// Multiaddresses at which this peer listens.
    pub fn addresses(&self) -> Vec<String> {
        self.0.shared.addresses.borrow().clone()
    }

    /// Peers of the mesh with a connection.
    pub fn neighbours(&self) -> usize {
        self.0.shared.neighbours.load(Ordering::Relaxed)
    }

    /// What was refused.
    pub fn refused(&self) -> &Refused {
        &self.0.shared.refused
    }

    /// Addresses of peers that answered on the local network.
    pub fn discovered(&self) -> Vec<String> {
        self.0.shared.discovered.lock().iter().cloned().collect()
    }

    /// Addresses of peers of this mesh, with their ids, for the next start.
    pub fn known(&self) -> Vec<String> {
        let known = self.0.shared.known.lock();
        let with_id = |(peer, addresses): (&PeerId, &Vec<String>)| {
            addresses.first().map(|address| format!("{address}/p2p/{peer}"))
        };
        known.iter().filter_map(with_id).collect()
    }

    /// Notes where a peer can be reached.
    pub async fn know(&self, peer: PeerId, addresses: &[String]) {
        let Ok(peer) = to_libp2p(peer) else { return };
        let addresses: Vec<Multiaddr> = addresses.iter().filter_map(|text| text.parse().ok()).collect();
        if !addresses.is_empty() {
            // a hint: nothing is lost when the swarm has stopped
            let _ = self.0.commands.send(Command::Know { peer, addresses }).await;
        }
    }

    fn pipe(&self, protocol: &str) -> Result<(PeerId, BoxStream), Error> {
        let what = Protocol::ALL.into_iter().find(|p| request::protocol(&self.0.mesh, p.what()) == protocol);
        let Some(protocol) = what else {
            return Err(Error::new(Code::Incompatible, format!("this peer does not speak {protocol}")));
        };
        let (near, far) = tokio::io::duplex(PIPE);
        let incoming = Incoming { protocol, peer: self.0.local, stream: Box::new(far) };
        self.0
            .incoming
            .try_send(incoming)
            .map_err(|_| Error::new(Code::WouldBlock, "too many streams wait to be served here; try again"))?;
        Ok((self.0.local, Box::new(near)))
    }
}

impl Dial for Net {
    async fn dial(&self, peer: Option<libp2p::PeerId>, addresses: Vec<Multiaddr>) -> Result<libp2p::PeerId, Error> {
        let stopped = || Error::new(Code::Stopping, "the network of this peer has stopped");
        let (reply, connected) = oneshot::channel();
        let command = Command::Dial { peer, addresses, reply };
        self.0.commands.send(command).await.map_err(|_| stopped())?;
        match timeout(DIAL_TIMEOUT, connected).await {
            Ok(Ok(Ok(peer))) => Ok(peer),
            Ok(Ok(Err(error))) => Err(Error::new(Code::Unreachable, error)),
            Ok(Err(_)) => Err(stopped()),
            Err(_) => Err(Error::new(Code::Unreachable, "nobody answers there")),
        }
    }
}

impl Transport for Net {
    fn open<'a>(
        &'a self,
        peer: Option<PeerId>,
        addresses: &'a [String],
        protocol: &'a str,
    ) -> BoxFuture<'a, Result<(PeerId, BoxStream), Error>> {
        async move {
            if peer == Some(self.0.local) || (peer.is_none() && addresses.iter().any(|text| text == SELF)) {
                return self.pipe(protocol);
            }
            dial::open(self, self.0.control.clone(), peer, addresses, protocol).await
        }
        .boxed()
    }
}

/// Drives the swarm.
struct Actor {
    swarm: Swarm<Behaviour>,
    driver: Driver,
    commands: mpsc::Receiver<Command>,
    kad_protocol: String,
    shared: Arc<Shared>,
    waiting: HashMap<ConnectionId, Vec<oneshot::Sender<Connected>>>,
    connections: HashMap<libp2p::PeerId, Vec<Link>>,
    /// Those with a connection that are peers of the mesh, and not clients.
    members: BTreeSet<libp2p::PeerId>,
}

struct Link {
    id: ConnectionId,
    since: Instant,
    loopback: bool,
}

impl Actor {
    async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                command = self.driver.next_command() => {
                    self.driver.handle_command(&mut self.swarm.behaviour_mut().kad, command, Instant::now());
                }
                event = self.swarm.select_next_some() => self.event(event),
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Know { peer, addresses } => {
                for address in addresses {
                    self.swarm.add_peer_address(peer, address.clone());
                    self.swarm.behaviour_mut().kad.add_address(&peer, address);
                }
            }
            Command::Dial { peer: Some(peer), reply, .. } if self.swarm.is_connected(&peer) => {
                let _ = reply.send(Ok(peer));
            }
            Command::Dial { peer, addresses, reply } => {
                let options = match peer {
                    Some(peer) => DialOpts::peer_id(peer)
                        .condition(PeerCondition::Always)
                        .addresses(addresses)
                        .extend_addresses_through_behaviour()
                        .build(),
                    None => match addresses.into_iter().next() {
                        Some(address) => DialOpts::unknown_peer_id().address(address).build(),
                        None => {
                            let _ = reply.send(Err("no address is known".into()));
                            return;
                        }
                    },
                };
                let id = options.connection_id();
                match self.swarm.dial(options) {
                    Ok(()) => self.waiting.entry(id).or_default().push(reply),
                    Err(error) => {
                        let _ = reply.send(Err(dial::reason(&error)));
                    }
                }
            }
        }
    }

    fn event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => {
                self.driver.handle_event(&mut self.swarm.behaviour_mut().kad, event, Instant::now());
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                connection_id,
                info,
                ..
            })) => self.identified(peer_id, connection_id, info),
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(mdns::Event::Discovered(found))) => {
                for (peer, address) in found {
                    self.swarm.behaviour_mut().kad.add_address(&peer, address.clone());
                    let mut discovered = self.shared.discovered.lock();
                    if discovered.len() < MAX_DISCOVERED {
                        discovered.insert(format!("{address}/p2p/{peer}"));
                    }
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                let address = address.to_string();
                self.shared.addresses.send_if_modified(|addresses| {
                    let new = !addresses.contains(&address);
                    if new {
                        addresses.push(address);
                    }
                    new
                });
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                let address = address.to_string();
                self.shared.addresses.send_modify(|addresses| addresses.retain(|known| *known != address));
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.answer(connection_id, Ok(peer_id));
                self.established(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => {
                if let Some(links) = self.connections.get_mut(&peer_id) {
                    links.retain(|link| link.id != connection_id);
                    if links.is_empty() {
                        self.connections.remove(&peer_id);
                        self.members.remove(&peer_id);
                    }
                }
                self.count();
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error, .. } => {
                // a dead neighbour makes lookups of unknown names wait for it; it comes back by itself when it lives
                if let Some(peer) = peer_id.filter(|peer| !self.swarm.is_connected(peer)) {
                    canal_dht::forget_peer(&mut self.swarm.behaviour_mut().kad, &peer);
                }
                self.answer(connection_id, Err(dial::reason(&error)));
            }
            _ => {}
        }
    }

    fn answer(&mut self, id: ConnectionId, result: Connected) {
        for reply in self.waiting.remove(&id).unwrap_or_default() {
            let _ = reply.send(result.clone());
        }
    }

    fn count(&self) {
        self.shared.neighbours.store(self.members.len(), Ordering::Relaxed);
    }

    fn established(&mut self, peer: libp2p::PeerId, id: ConnectionId, endpoint: &libp2p::core::ConnectedPoint) {
        let links = self.connections.entry(peer).or_default();
        let mut dead = Vec::new();
        if endpoint.is_listener() {
            links.retain(|link| {
                let replaced = link.since.elapsed() > REPLACED_AFTER;
                if replaced {
                    dead.push(link.id);
                }
                !replaced
            });
        }
        let loopback = is_loopback(endpoint.get_remote_address());
        links.push(Link { id, since: Instant::now(), loopback });
        for id in dead {
            self.swarm.close_connection(id);
        }
        self.count();
    }

    fn identified(&mut self, peer: libp2p::PeerId, connection: ConnectionId, info: identify::Info) {
        if !info.protocols.iter().any(|protocol| protocol.as_ref() == self.kad_protocol) {
            return;
        }
        if self.connections.contains_key(&peer) {
            self.members.insert(peer);
            self.count();
        }
        let links = self.connections.get(&peer);
        let near = links.is_some_and(|links| links.iter().any(|link| link.id == connection && link.loopback));
        let mut addresses = Vec::new();
        // a loopback address means somebody else on another machine
        for address in info.listen_addrs.into_iter().filter(|address| near || !is_loopback(address)) {
            self.swarm.behaviour_mut().kad.add_address(&peer, address.clone());
            addresses.push(address.to_string());
        }
        if let Ok(peer) = from_libp2p(&peer) {
            let mut known = self.shared.known.lock();
            if known.len() < MAX_DISCOVERED || known.contains_key(&peer) {
                known.insert(peer, addresses);
            }
        }
    }
}
