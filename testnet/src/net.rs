//! A testnet: peers that found or join one mesh.

use std::path::{Path, PathBuf};
use std::time::Duration;

use canal_proto::request::GroupStatus;
use canal_sdk::{Client, GroupId, TopicOptions};
use futures::future::{join_all, try_join_all};
use tempfile::TempDir;

use crate::Error;
use crate::emulated::Network;
use crate::faults::Shim;
use crate::peer::{Launch, Peer};
use crate::scenario::Scenario;
use crate::wait::until;

/// Until the mesh stands: a debug build of several peers on a busy machine.
const READY_DEADLINE: Duration = Duration::from_secs(90);

/// How a testnet is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// A program that is the `canal` binary when its first argument is `canal`.
    pub executable: PathBuf,
    /// Where data and logs go; none: a temporary directory, removed at the end.
    pub dir: Option<PathBuf>,
    /// Keeps a temporary directory.
    pub keep: bool,
    /// What the peers log, as `CANAL_LOG` takes it.
    pub log: String,
    /// More arguments of `canal start`, for every peer.
    pub arguments: Vec<String>,
    /// The network that the peers live on; none: loopback.
    pub network: Option<Network>,
    /// Faults of disks and clocks can be made in the peers ([`Peer::faults`]). Where they can't, a warning says why, and
    /// the peers run without.
    pub faults: bool,
    /// So many of the last peers are not started with the others: [`Testnet::restart`] starts them when they are wanted.
    pub spare: usize,
}

impl Options {
    /// With this program, in a temporary directory.
    pub fn new(executable: impl Into<PathBuf>) -> Self {
        Self {
            executable: executable.into(),
            dir: None,
            keep: false,
            log: "info".into(),
            arguments: Vec::new(),
            network: None,
            faults: false,
            spare: 0,
        }
    }
}

/// Running peers. When it is dropped, they are killed and their temporary directory is removed.
pub struct Testnet {
    // before the directory, so that no process writes into it any more when it is removed
    peers: Vec<Peer>,
    mesh: String,
    dir: PathBuf,
    temporary: Option<TempDir>,
}

impl Testnet {
    /// Starts the peers of a scenario and waits until each has joined the mesh and the mesh knows each; then creates
    /// the scenario's topics.
    ///
    /// # Errors
    /// When a peer does not come up or the mesh does not stand in time. Nothing is left running then.
    pub async fn start(scenario: &Scenario, options: Options) -> Result<Self, Error> {
        let spare = options.spare;
        let net = Self::prepare(scenario, options)?;
        net.start_first(net.peers.len().saturating_sub(spare)).await?;
        net.wait_ready().await?;
        if !scenario.topics.is_empty() {
            let client = net.client(0).await?;
            for topic in &scenario.topics {
                let options =
                    TopicOptions { group: topic.group.clone(), replicas: topic.replicas, ..TopicOptions::default() };
                client.create_topic(&topic.name, options).await?;
            }
        }
        Ok(net)
    }

    /// The same, without starting anything.
    ///
    /// # Errors
    /// For a scenario or a directory that can't be used.
    pub fn prepare(scenario: &Scenario, options: Options) -> Result<Self, Error> {
        scenario.check()?;
        let (dir, temporary) = match options.dir {
            Some(dir) => (dir, None),
            None => {
                let made = tempfile::Builder::new().prefix("canal-testnet-").tempdir();
                let made = made.map_err(Error::io("making a temporary directory"))?;
                if options.keep { (made.keep(), None) } else { (made.path().to_owned(), Some(made)) }
            }
        };
        std::fs::create_dir_all(&dir).map_err(Error::io(format!("making {}", dir.display())))?;
        let Options { executable, log, arguments, network, faults, .. } = options;
        if let Some(network) = &network {
            for (from, to, quality) in scenario.linked() {
                network.set(from, to, quality).map_err(Error::io("setting a link"))?;
            }
        }
        // what is preloaded compares paths as the system says them
        let dir = if faults { dir.canonicalize().map_err(Error::io("finding the directory"))? } else { dir };
        let shim = if faults { Some(Shim::install(&dir)) } else { None };
        let shim = shim.transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "peers run without");
            None
        });
        let launch = Launch { executable, mesh: scenario.mesh.clone(), log, arguments, network, shim };
        let specs = scenario.expanded().into_iter().enumerate();
        let peers = specs.map(|(number, spec)| Peer::new(number, spec, launch.clone(), &dir)).collect();
        Ok(Self { peers, mesh: scenario.mesh.clone(), dir, temporary })
    }

    /// Starts all peers that do not run. The first founds the mesh if it has not been founded; the others enter it at
    /// whoever is known.
    ///
    /// # Errors
    /// [`Error::NotStarted`].
    pub async fn start_all(&self) -> Result<(), Error> {
        self.start_first(self.peers.len()).await
    }

    async fn start_first(&self, count: usize) -> Result<(), Error> {
        let Some((first, others)) = self.peers.get(..count).and_then(<[Peer]>::split_first) else {
            return Ok(());
        };
        if first.address().is_err() {
            first.start(&[]).await?;
        } else if !first.is_running() {
            self.restart(0).await?;
        }
        let absent = others.iter().filter(|peer| !peer.is_running());
        try_join_all(absent.map(|peer| self.restart(peer.number()))).await.map(|_| ())
    }

    /// Starts a peer that has ended, or that never ran, and waits until it is up. It keeps its data and its address.
    ///
    /// # Errors
    /// [`Error::NotStarted`].
    pub async fn restart(&self, number: usize) -> Result<(), Error> {
        let others = self.peers.iter().filter(|peer| peer.number() != number);
        let join: Vec<String> = others.filter_map(|peer| self.full_address(peer)).collect();
        self.peer(number)?.start(&join).await
    }

    /// Kills all peers at once (SIGKILL).
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill_all(&self) -> Result<(), Error> {
        // first all signals, so that none sees another die
        self.peers.iter().for_each(Peer::begin_kill);
        self.peers.iter().try_for_each(Peer::kill)
    }

    /// Waits until every peer that runs has joined and knows all of them, and the catalog stands on as many replicas as it
    /// wants and can have.
    ///
    /// # Errors
    /// [`Error::TooLate`].
    pub async fn wait_ready(&self) -> Result<(), Error> {
        let running: Vec<&Peer> = self.peers.iter().filter(|peer| peer.is_running()).collect();
        let wanted = u32::try_from(running.len()).unwrap_or(u32::MAX);
        try_join_all(running.iter().map(|peer| async move {
            until(&format!("peer {} joins the mesh and knows all", peer.number()), READY_DEADLINE, async || {
                let status = peer.status().await.map_err(|error| error.to_string())?;
                match (status.joined, status.known) {
                    (true, known) if known >= wanted => Ok(()),
                    (true, known) => Err(format!("it knows {known} of {wanted}")),
                    (false, _) => Err("it has not joined".into()),
                }
            })
            .await
        }))
        .await?;
        let Some(first) = running.first() else { return Ok(()) };
        let client = self.client(first.number()).await?;
        let catalog = client.resolve(canal_proto::route::CATALOG, false).await?.group;
        self.wait_group(GroupId(catalog)).await.map(|_| ())
    }

    /// Waits until a group has a leader and as many voters as it wants and the mesh can give, and returns how it
    /// stands.
    ///
    /// # Errors
    /// [`Error::TooLate`].
    pub async fn wait_group(&self, group: GroupId) -> Result<GroupStatus, Error> {
        until(&format!("group {group} is whole"), READY_DEADLINE, async || {
            let (_, status) = self.led(group).await?;
            let (voters, wanted) = (status.voters.len(), (status.wanted as usize).min(self.peers.len()));
            if voters < wanted { Err(format!("{voters} of {wanted} voters")) } else { Ok(status) }
        })
        .await
    }

    /// Creates a topic and waits until its group is whole.
    ///
    /// # Errors
    /// Those of [`Client::create_topic`]; [`Error::TooLate`].
    pub async fn create_topic(
        &self,
        client: &Client,
        name: &str,
        group: &str,
        replicas: u32,
    ) -> Result<GroupId, Error> {
        let options = TopicOptions { group: Some(group.into()), replicas: Some(replicas), ..TopicOptions::default() };
        let group = GroupId(client.create_topic(name, options).await?.info.group);
        self.wait_group(group).await?;
        Ok(group)
    }

    /// Waits until one of the peers leads a group, and returns its number.
    ///
    /// # Errors
    /// [`Error::TooLate`].
    pub async fn leader(&self, group: GroupId) -> Result<usize, Error> {
        until(&format!("a leader of group {group}"), READY_DEADLINE, async || self.led(group).await)
            .await
            .map(|(number, _)| number)
    }

    /// How a group stands at its leader, and which peer that is: of those that think that they lead it, the one with
    /// the latest term. Every peer is asked for itself.
    ///
    /// # Errors
    /// When none says that it leads.
    pub async fn led(&self, group: GroupId) -> Result<(usize, GroupStatus), String> {
        let running = self.peers.iter().filter(|peer| peer.is_running());
        let asked = running.map(|peer| async move { (peer.number(), peer.status().await) });
        let mut why = "no peer runs".to_owned();
        let mut best: Option<(usize, GroupStatus)> = None;
        for (number, answer) in join_all(asked).await {
            match answer.map(|status| status.groups.into_iter().find(|status| status.id == group.0)) {
                Ok(Some(status)) if status.leader == status.replica => {
                    if best.as_ref().is_none_or(|(_, best)| best.term < status.term) {
                        best = Some((number, status));
                    }
                }
                Ok(_) => why = "no leader".into(),
                Err(error) => why = error.to_string(),
            }
        }
        best.ok_or(why)
    }

    /// The peers.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// The peer with this number.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when there is none.
    pub fn peer(&self, number: usize) -> Result<&Peer, Error> {
        self.peers.get(number).ok_or(Error::NotRunning(number))
    }

    /// A client that enters the mesh at this peer, and elsewhere when that is gone.
    ///
    /// # Errors
    /// Those of [`Client::connect`].
    pub async fn client(&self, number: usize) -> Result<Client, Error> {
        let options = canal_sdk::Options { addresses: self.addresses(), ..canal_sdk::Options::default() };
        self.peer(number)?.client_with(options).await
    }

    /// The addresses of all peers that were ever up, with their ids.
    pub fn addresses(&self) -> Vec<String> {
        self.peers.iter().filter_map(|peer| self.full_address(peer)).collect()
    }

    /// Keeps the directory, also if it is a temporary one.
    pub fn keep(&mut self) {
        if let Some(dir) = self.temporary.take() {
            drop(dir.keep());
        }
    }

    /// Name of the mesh.
    pub fn mesh(&self) -> &str {
        &self.mesh
    }

    /// Where data and logs are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn full_address(&self, peer: &Peer) -> Option<String> {
        Some(format!("{}/p2p/{}", peer.address().ok()?, peer.id().ok()?))
    }
}

impl Drop for Testnet {
    fn drop(&mut self) {
        // all at once: the peers would otherwise begin to look for each other
        self.peers.iter().for_each(Peer::begin_kill);
        self.peers.clear();
        if let Some(dir) = self.temporary.take()
            && let Err(error) = dir.close()
        {
            tracing::warn!(%error, "the temporary directory could not be removed");
        }
    }
}
