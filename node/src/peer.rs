//! A peer from start to stop.
//!
//! The order in which a fresh peer comes to be matters at a crash. A founder first creates the catalog's replica, whose
//! record on disk carries the mesh's id, and then notes the mesh; a start that finds the replica without the note takes
//! the id from it. A joiner notes the mesh as soon as a peer has told it, and holds nothing of it before.
//!
//! A peer that learns that its disk is older than what others have seen of it ([`crate::starts`]) stops at once, without
//! a word to its groups. [`Ended::Forgotten`] says that it is to be started again: the new start moves what was held aside
//! and begins empty, with the same key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use canal_consensus::{Handle, Service, Ticks};
use canal_dht::Routes;
use canal_dht::peer_id::from_libp2p;
use canal_proto::peer::{Replica, Seed};
use canal_proto::{GroupId, MeshId, PeerId, route};
use canal_sdk::{BetweenPeers, Client, Connection, Opening, Options, Transport};
use canal_triggers::runtime::Runtime;
use parking_lot::RwLock;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::data::Data;
use crate::net::links::{Links, Unreachable};
use crate::net::{self, Net, Parts, SELF};
use crate::node::{NAMESPACE, Node, Told, now_ms};
use crate::peers::PeerTable;
use crate::starts::Starts;
use crate::transfer::Transfer;
use crate::{rooms, serve};

/// How long a fresh peer looks for a mesh on the local network before it founds one.
const LOOK_AROUND: Duration = Duration::from_secs(2);
/// Wait between two tries to join.
const JOIN_RETRY: Duration = Duration::from_millis(300);
/// For a greeting.
const GREETING: Duration = Duration::from_secs(3);
/// How long other peers are waited for to take over leadership.
const HAND_OVER: Duration = Duration::from_secs(3);
/// Tick counts that suit local and wide networks: leaders beat every 2 ticks; after 10 without a word of theirs, elections
/// begin.
const TICKS: Ticks = Ticks { election: 10, heartbeat: 2 };

/// A running peer.
pub struct Peer {
    node: Arc<Node>,
    links: Arc<Links>,
    tasks: JoinSet<()>,
    service: Option<Service>,
    data: Arc<Data>,
    /// It may let go of what groups need, if it has to.
    discard: bool,
}

/// Why a peer can't go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The stores have failed, with the reason.
    Failed(String),
    /// What it holds is older than what it has promised: it has to begin anew.
    Forgotten,
}

/// What a peer says once it is up.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Started {
    /// `started`.
    pub event: &'static str,
    /// Peer id.
    pub peer: String,
    /// Multiaddresses, with the ports that were chosen.
    pub addresses: Vec<String>,
    /// Data directory.
    pub data: String,
    /// Name of the mesh.
    pub mesh: String,
}

/// A peer whose network is up, and that may have yet to join.
pub struct Starting {
    config: Config,
    data: Arc<Data>,
    starts: Arc<Starts>,
    keys: libp2p::identity::Keypair,
    net: Net,
    dht: canal_dht::Handle,
    incoming: tokio::sync::mpsc::Receiver<net::Incoming>,
    tasks: JoinSet<()>,
    routes: Routes,
    discard: bool,
}

/// What the peer holds is damaged, and is moved aside by the next start: it has to be started again.
#[derive(Debug, thiserror::Error)]
#[error("what this peer holds is damaged; it is moved aside when the peer is started again")]
pub struct BeginsAnew;

impl Starting {
    /// Locks the data directory and brings the network up.
    ///
    /// # Errors
    /// When the directory is in use or damaged, or an address is taken.
    pub async fn new(config: Config) -> Result<Self> {
        let data = Arc::new(Data::open(&config.data)?);
        let keys = data.identity()?;
        // before anything that others could see
        let starts = Starts::count(data.clone())?;
        let mesh = data.mesh(&config.mesh)?;
        let routes = Routes::new(mesh, now_ms);
        let mut tasks = JoinSet::new();
        let local_only = config.listen.iter().all(|text| text.contains("127.0.0.1") || text.contains("::1"));
        let parts = Parts {
            keys: keys.clone(),
            mesh: config.mesh.clone(),
            listen: config.listen.clone(),
            mdns: config.mdns && !local_only,
        };
        let (net, dht, incoming) = net::start(parts, &data, routes.clone(), &mut tasks).await?;
        let id = from_libp2p(&keys.public().to_peer_id())?;
        data.set_contact(id, &config.mesh, &net.addresses())?;
        Ok(Self { config, data, starts, keys, net, dht, incoming, tasks, routes, discard: false })
    }

    /// Lets go of what the peer holds if that is damaged, although groups may need it.
    pub fn discard_damaged(&mut self) {
        self.discard = true;
    }

    /// What to tell the user.
    pub fn started(&self) -> Started {
        Started {
            event: "started",
            peer: self.net.local().to_string(),
            addresses: self.net.addresses(),
            data: self.config.data.display().to_string(),
            mesh: self.config.mesh.clone(),
        }
    }

    /// Finds or founds the mesh, and takes up work. Waits for as long as no peer of the mesh can be reached.
    ///
    /// # Errors
    /// When the stores can't be opened; [`BeginsAnew`] when the peer is to be started again.
    pub async fn join(self) -> Result<Peer> {
        let Self { discard, config, data, starts, keys, net, dht, incoming, mut tasks, routes } = self;
        let links = Links::new(starts.clone());
        let transfer = Transfer::new();
        let budget = config.log_budget_mb << 20;
        let defaults = canal_consensus::History::default();
        let options = canal_consensus::Options {
            peer: net.local(),
            dir: data.dir().to_owned(),
            backend: canal_consensus::state_store::DEFAULT_BACKEND,
            cache: config.state_cache_mb << 20,
            // what was cut goes a file at a time, so there is more on disk than is live
            log: canal_consensus::log_store::Options { purge_above: (budget * 2).max(64 << 20), ..Default::default() },
            tick: Duration::from_millis(config.tick_ms),
            ticks: TICKS,
            history: canal_consensus::History { log_bytes: budget, seal_bytes: config.seal_kb << 10, ..defaults },
        };
        let (service, groups) = match Service::open(options, links.clone(), transfer.clone()) {
            Ok(opened) => opened,
            Err(canal_consensus::Error::Damaged(damage)) if damage.heals() || discard => {
                tracing::error!(%damage, "what this peer holds is discarded");
                data.discard()?;
                return Err(BeginsAnew.into());
            }
            Err(error) => return Err(error.into()),
        };
        if data.discarded() {
            groups.begun_anew();
        }
        let transport: Arc<dyn Transport> = Arc::new(net.clone());
        let mesh = match data.mesh(&config.mesh)?.or(mesh_of(&groups)) {
            Some(mesh) => mesh,
            None => find_or_found(&config, &data, &net, transport.as_ref(), &groups).await?,
        };
        data.set_mesh(&config.mesh, mesh)?;
        routes.join(mesh);
        let us = BetweenPeers { mesh: Some(mesh), addresses: net.addresses() };
        let client_options = Options {
            mesh: config.mesh.clone(),
            namespace: NAMESPACE.into(),
            deadline: Duration::from_secs(5),
            between_peers: Some(us),
            ..Options::default()
        };
        let client = Client::with_transport(transport.clone(), vec![SELF.to_owned()], client_options);
        let threads = usize::try_from(config.function_threads).unwrap_or(0);
        let mut runtime = canal_triggers::runtime::Options::default();
        if threads > 0 {
            runtime.threads = threads;
        }
        let runtime = Runtime::start(runtime).map_err(|e| anyhow!("{e}"))?;
        let told: Arc<dyn Unreachable> = Arc::new(Told(groups.clone()));
        links.connect(&transport, &config.mesh, &told);
        let id = net.local();
        let node = Arc::new(Node {
            id,
            config,
            keys,
            mesh,
            groups,
            net,
            links: links.clone(),
            dht,
            runtime,
            client,
            peers: PeerTable::new(id, starts.own().boot),
            starts,
            data: data.clone(),
            confirmed: watch::Sender::new(Default::default()),
            catalog_changed: Notify::new(),
            relays: std::sync::Arc::default(),
            hosted: RwLock::default(),
            joined: AtomicBool::new(false),
            draining: AtomicBool::new(data.draining()),
            stopping: AtomicBool::new(false),
            waiting: Semaphore::new(serve::MAX_WAITING),
        });
        transfer.connect(&node);
        tasks.spawn(serve::run(node.clone(), incoming));
        tasks.spawn(rooms::run(node.clone()));
        // a leader has found what this replica's log should hold and does not
        let (starts, mut forgotten) = (node.starts.clone(), node.groups.forgotten());
        tasks.spawn(async move {
            while forgotten.now().is_empty() {
                forgotten.changed().await;
            }
            starts.give_up(starts.own());
        });
        let known = data.known_peers();
        tasks.spawn(rooms::gossip::run(node.clone(), known));
        // held for as long as the links use them
        tasks.spawn(async move {
            let _held = (transport, told);
            std::future::pending::<()>().await;
        });
        Ok(Peer { node, links, tasks, service: Some(service), data, discard })
    }
}

fn mesh_of(groups: &Handle) -> Option<MeshId> {
    let group = groups.groups().into_iter().next()?;
    group.mesh()
}

async fn find_or_found(
    config: &Config,
    data: &Data,
    net: &Net,
    transport: &dyn Transport,
    groups: &Handle,
) -> Result<MeshId> {
    let began = tokio::time::Instant::now();
    let mut said = false;
    loop {
        let mut addresses = config.join.clone();
        addresses.extend(data.known_peers());
        addresses.extend(net.discovered());
        for address in addresses {
            let opening = Opening::peer(&config.mesh, NAMESPACE, None, net.addresses());
            let asked = Connection::open(transport, None, std::slice::from_ref(&address), &opening, GREETING).await;
            match asked.map(|connection| MeshId::from_slice(&connection.welcome().mesh)) {
                Ok(Ok(mesh)) => return Ok(mesh),
                Ok(Err(_)) => tracing::debug!(%address, "that peer has yet to join itself"),
                Err(error) if !said => {
                    tracing::warn!(%address, %error, "no mesh there yet; trying on");
                    said = true;
                }
                Err(error) => tracing::debug!(%address, %error, "no mesh there yet"),
            }
        }
        let alone =
            config.join.is_empty() && (!config.mdns || began.elapsed() >= LOOK_AROUND || !may_look_around(config));
        if alone {
            return found(net, groups).await;
        }
        tokio::time::sleep(JOIN_RETRY).await;
    }
}

fn may_look_around(config: &Config) -> bool {
    !config.listen.iter().all(|text| text.contains("127.0.0.1") || text.contains("::1"))
}

/// Founds a mesh: draws its id, and creates the first replica of its catalog.
async fn found(net: &Net, groups: &Handle) -> Result<MeshId> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|e| anyhow!("the system gives no random numbers: {e}"))?;
    let mesh = MeshId(id);
    let first = Replica { id: 1, peer: net.local().to_vec(), addresses: net.addresses() };
    let seed = Seed {
        group: GroupId::of_catalog(mesh, NAMESPACE).0,
        name: route::CATALOG.into(),
        namespace: NAMESPACE.into(),
        first: vec![first],
        replica: 1,
        mesh: mesh.to_vec(),
    };
    groups.create(seed).await.context("the catalog can't be created")?;
    tracing::info!(mesh = %mesh, "founded a mesh");
    Ok(mesh)
}

impl Peer {
    /// The peer's id.
    pub fn id(&self) -> PeerId {
        self.node.id
    }

    /// Returns when the peer can't go on, and why. It must stop then.
    pub async fn ended(&self) -> Ended {
        tokio::select! {
            biased;
            _ = self.node.starts.forgotten() => Ended::Forgotten,
            reason = self.node.groups.failed() => Ended::Failed(reason),
        }
    }

    /// Notes what it is told that it has forgotten, and stops without a word to its groups. The next start begins anew.
    ///
    /// # Errors
    /// When that can't be noted, or groups need what is here although it is old: then nothing is touched, and the peer has
    /// nothing to say to others until somebody has decided what is to become of it.
    pub async fn forget(self) -> Result<()> {
        let seen = self.node.starts.forgotten().await;
        let needed = self.node.groups.needed();
        let noted = if needed.is_empty() || self.discard {
            self.data.forget(seen.boot)
        } else {
            let reason =
                "others have seen a newer state of this peer than its disk has: it was set back, or has lost writes";
            Err(canal_consensus::Damage { reason: reason.into(), needed, unknown: false }.into())
        };
        self.end().await;
        noted
    }

    /// Hands leadership over, then stops.
    pub async fn stop(self) {
        self.node.stopping.store(true, Ordering::Relaxed);
        let handed = tokio::time::timeout(HAND_OVER, rooms::hand_over(&self.node)).await;
        if handed.is_err() {
            tracing::warn!("not every group found another leader in time; the others will elect one");
        }
        self.end().await;
    }

    async fn end(mut self) {
        if let Err(error) = self.data.set_known_peers(&self.node.net.known()) {
            tracing::warn!(%error, "the addresses of other peers were not kept");
        }
        self.links.close();
        self.tasks.shutdown().await;
        let service = self.service.take();
        // joins the raft thread, which flushes the state
        let _ = tokio::task::spawn_blocking(move || drop(service)).await;
    }
}
