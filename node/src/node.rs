//! What all parts of a running peer share.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use canal_consensus::{GroupHandle, Handle, Refused, Status};
use canal_proto::catalog::TopicInfo;
use canal_proto::limits::MAX_ADDRESSES;
use canal_proto::peer::{Label, PeerInfo, Replica};
use canal_proto::request::Route;
use canal_proto::{Code, GroupId, MeshId, PeerId, TopicId, WireError, route};
use canal_sdk::{Client, Target};
use canal_triggers::runtime::Runtime;
use libp2p::identity::Keypair;
use parking_lot::RwLock;
use tokio::sync::{Notify, Semaphore, watch};

use crate::config::Config;
use crate::data::Data;
use crate::net::Net;
use crate::net::links::Links;
use crate::peers::PeerTable;
use crate::starts::{Start, Starts};

/// The only namespace until tenants come.
pub const NAMESPACE: &str = "default";
/// Replicas of a catalog: what it holds must outlive a machine, and every further replica slows changes down.
pub const CATALOG_REPLICAS: u32 = 3;
/// A running peer.
pub struct Node {
    /// What is in force.
    pub config: Config,
    /// The peer's key.
    pub keys: Keypair,
    /// This peer.
    pub id: PeerId,
    /// The mesh.
    pub mesh: MeshId,
    /// The groups.
    pub groups: Handle,
    /// The network.
    pub net: Net,
    /// Raft messages on their way to other peers.
    pub links: Arc<Links>,
    /// The DHT.
    pub dht: canal_dht::Handle,
    /// Runs functions.
    pub runtime: Runtime,
    /// Asks other peers, and this one.
    pub client: Client,
    /// What this peer knows of the others, and of itself.
    pub peers: PeerTable,
    /// Starts of this peer and of those that it shares groups with.
    pub starts: Arc<Starts>,
    /// What this peer keeps of itself.
    pub data: Arc<Data>,
    /// Spec versions that groups have confirmed to this peer as the catalog's leader.
    pub confirmed: watch::Sender<BTreeMap<GroupId, u64>>,
    /// Wakes the catalog's room.
    pub catalog_changed: Notify,
    /// Topics without a replica here, for subscribers here.
    pub relays: std::sync::Arc<crate::serve::relay::Relays>,
    /// Topics that groups here host, by name; a shortcut, checked by whoever uses it.
    pub hosted: RwLock<HashMap<String, (GroupId, TopicId)>>,
    /// Whether another peer of the mesh has answered this one, or the mesh is this one.
    pub joined: AtomicBool,
    /// The peer is being emptied: it takes no new replicas, and what it has moves away.
    pub draining: AtomicBool,
    /// The process is on its way out: it leads nothing new.
    pub stopping: AtomicBool,
    /// Room for publishes that wait for a leader.
    pub waiting: Semaphore,
}

/// Milliseconds since 1970-01-01 UTC.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Node {
    /// The group of the catalog.
    pub fn catalog_id(&self) -> GroupId {
        GroupId::of_catalog(self.mesh, NAMESPACE)
    }

    /// The catalog, if it has a replica here.
    pub fn catalog(&self) -> Option<GroupHandle> {
        self.groups.group(self.catalog_id())
    }

    /// This peer's description of itself.
    pub fn describe(&self) -> PeerInfo {
        let groups = self.groups.groups();
        let leads = groups.iter().filter(|group| group.status().leads).count();
        let label = |(key, value): (&String, &String)| Label { key: key.clone(), value: value.clone() };
        PeerInfo {
            peer: self.id.to_vec(),
            addresses: self.net.addresses().into_iter().take(MAX_ADDRESSES).collect(),
            tier: self.config.tier.into(),
            site: self.config.site.clone(),
            labels: self.config.labels.iter().map(label).collect(),
            cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            memory: memory_of_machine(),
            replicas: u32::try_from(groups.len()).unwrap_or(u32::MAX),
            leads: u32::try_from(leads).unwrap_or(u32::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            load: load_of_machine(),
            draining: self.is_draining(),
            start: self.starts.own().boot,
            nonce: self.starts.own().nonce,
            ..PeerInfo::default()
        }
    }

    /// The group here that hosts a topic.
    pub fn hosting(&self, name: &str) -> Option<(GroupHandle, TopicId)> {
        let known = self.hosted.read().get(name).copied();
        if let Some((group, topic)) = known
            && let Some(handle) = self.groups.group(group)
        {
            // one that is being filled has nothing to answer with; others are named to whoever asks
            let status = handle.status();
            return status.serves().then_some((handle, topic));
        }
        self.groups.groups().into_iter().find_map(|group| {
            let status = group.status();
            let topic = status.spec.topics.iter().find(|topic| topic.name == name)?;
            if !status.serves() {
                return None;
            }
            Some((group, TopicId(topic.id)))
        })
    }

    /// Whether a replica here has rows to answer with. Asked behind what was read as well: one that begins to be filled
    /// meanwhile has parts of them.
    pub fn serving(&self, group: &GroupHandle) -> Result<(), WireError> {
        let status = group.status();
        if status.serves() {
            return Ok(());
        }
        let message = format!("the replica of group {} at this peer is being filled; ask another", status.group);
        Err(WireError { code: Code::NotHere.into(), message, ..self.not_leader(&status) })
    }

    /// What a request is answered with that only the leader can answer.
    pub fn not_leader(&self, status: &Status) -> WireError {
        let find = |id: u64| status.configuration.replicas.iter().find(|replica| replica.id == id).cloned();
        let leader = (status.leader != status.replica).then(|| find(status.leader)).flatten();
        let message = match &leader {
            Some(_) => format!("replica {} of group {} leads; ask there", status.leader, status.group),
            None => format!("group {} has no leader just now; try again", status.group),
        };
        WireError {
            leader: leader.map(|replica| self.freshened(replica)),
            replicas: status.configuration.replicas.iter().cloned().map(|replica| self.freshened(replica)).collect(),
            ..WireError::new(Code::NotLeader, message)
        }
    }

    /// A replica with the addresses at which its peer was last heard of.
    fn freshened(&self, mut replica: Replica) -> Replica {
        if let Ok(peer) = replica.peer_id() {
            if peer == self.id {
                replica.addresses = self.net.addresses();
            } else if let Some(addresses) = self.peers.addresses(peer) {
                replica.addresses = addresses;
            }
        }
        replica
    }

    /// What a request to one of this peer's groups came to.
    pub fn refusal(&self, group: &GroupHandle, error: canal_consensus::Error) -> WireError {
        match error {
            canal_consensus::Error::Refused(Refused::NotLeader | Refused::Uncertain) => {
                self.not_leader(&group.status())
            }
            canal_consensus::Error::Refused(Refused::Busy) => {
                WireError::new(Code::WouldBlock, "the group is busy; try again")
            }
            canal_consensus::Error::Refused(error @ Refused::TooLarge(_)) => {
                WireError::new(Code::TooLarge, error.to_string())
            }
            canal_consensus::Error::Refused(error) => WireError::new(Code::WouldBlock, error.to_string()),
            canal_consensus::Error::Answer(error) => error,
            canal_consensus::Error::Stopped => {
                WireError::new(Code::Stopping, "this peer is shutting down; ask another")
            }
            error => WireError::new(Code::Internal, error.to_string()),
        }
    }

    /// Where a group with a replica here lives.
    pub fn route_of(&self, group: &GroupHandle, topic: TopicId) -> Route {
        let status = group.status();
        Route {
            topic: topic.0,
            group: group.id().0,
            epoch: status.epoch,
            replicas: status.configuration.replicas.iter().cloned().map(|replica| self.freshened(replica)).collect(),
            leader: status.leader,
            source: "local".into(),
        }
    }

    /// Where a topic, a group or the catalog lives: here, by the DHT, or else by the catalog.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownGroup`; those of asking the catalog.
    pub async fn resolve(&self, name: &str, fresh: bool) -> Result<Route, WireError> {
        let here = self.resolve_here(name);
        if let Some(route) = &here
            && (route.leader != 0 || !fresh)
        {
            return Ok(route.clone());
        }
        // a replica without a leader may be one that its group has left behind
        let newer = |found: &Route| here.as_ref().is_none_or(|here| found.epoch > here.epoch);
        let dht = match (self.dht.lookup(NAMESPACE, name, fresh).await, &here) {
            (Ok(route), _) if newer(&route) => return Ok(route),
            (_, Some(here)) => return Ok(here.clone()),
            (Ok(route), None) => return Ok(route),
            (Err(error), None) => error,
        };
        if name == route::CATALOG {
            let message = format!("the catalog was not found: {dht}; is a majority of its peers up?");
            return Err(WireError::new(Code::NoQuorum, message));
        }
        if let Some(id) = name.strip_prefix("$group/") {
            let id = id.parse::<GroupId>().map_err(|e| WireError::new(Code::InvalidArgument, e.to_string()))?;
            return self.resolve_group(id).await;
        }
        let topic = self.catalog_topic(name).await?.ok_or_else(|| unknown_topic(name))?;
        let route = match self.dht.lookup(NAMESPACE, &route::group_name(GroupId(topic.group)), fresh).await {
            Ok(route) => route,
            Err(_) => self.resolve_group(GroupId(topic.group)).await?,
        };
        Ok(Route { topic: topic.id, source: "catalog".into(), ..route })
    }

    fn resolve_here(&self, name: &str) -> Option<Route> {
        if name == route::CATALOG {
            return self.catalog().map(|group| self.route_of(&group, TopicId(0)));
        }
        if let Some(id) = name.strip_prefix("$group/") {
            let group = self.groups.group(id.parse().ok()?)?;
            return Some(self.route_of(&group, TopicId(0)));
        }
        self.hosting(name).map(|(group, topic)| self.route_of(&group, topic))
    }

    async fn resolve_group(&self, id: GroupId) -> Result<Route, WireError> {
        let groups = match self.serving_catalog() {
            Some(catalog) => catalog.view().catalog_groups().map_err(internal)?,
            None => self.client.catalog("", &["groups"], false).await?.groups,
        };
        let group = groups.into_iter().find(|group| group.id == id.0);
        let group =
            group.ok_or_else(|| WireError::new(Code::UnknownGroup, format!("no group {id}; see `canal group ls`")))?;
        let replicas = group.first.into_iter().map(|replica| self.freshened(replica)).collect();
        Ok(Route { group: id.0, replicas, source: "catalog".into(), ..Route::default() })
    }

    /// The catalog, if there is a replica of it here that can be read.
    fn serving_catalog(&self) -> Option<GroupHandle> {
        self.catalog().filter(|catalog| catalog.status().serves())
    }

    /// A topic as the catalog has it.
    pub async fn catalog_topic(&self, name: &str) -> Result<Option<TopicInfo>, WireError> {
        // a replica that lags must not say that a topic does not exist: its absence is only taken from the leader
        if let Some(catalog) = self.serving_catalog()
            && let Some(topic) = catalog.view().catalog_topic(name).map_err(internal)?
        {
            return Ok(Some(topic));
        }
        let view = self.client.catalog(name, &["topics"], true).await?;
        Ok(view.topics.into_iter().find(|topic| topic.name == name))
    }

    /// Says that a topic is hosted elsewhere, or nowhere.
    pub async fn elsewhere(&self, name: &str) -> WireError {
        match self.resolve(name, false).await {
            Ok(route) if self.groups.group(GroupId(route.group)).is_some() => {
                match self.groups.group(GroupId(route.group)) {
                    // the group is here, the topic is not in it: it was removed, or this replica lags
                    Some(group) if group.status().leads => unknown_topic(name),
                    Some(group) => self.not_leader(&group.status()),
                    None => unknown_topic(name),
                }
            }
            Ok(route) => not_here(name, route),
            Err(error) => error,
        }
    }

    /// Says where a group is that has no replica here.
    pub async fn group_elsewhere(&self, id: GroupId) -> WireError {
        match self.resolve(&route::group_name(id), false).await {
            Ok(route) => not_here(&format!("group {id}"), route),
            Err(error) => error,
        }
    }

    /// Asks the group's leader something, from wherever this is.
    pub async fn ask_group(
        &self,
        group: GroupId,
        ask: canal_proto::request::Ask,
    ) -> Result<canal_proto::request::Answer, canal_sdk::Error> {
        self.client.call(Target::Group(group), ask).await
    }

    /// Whether the process is on its way out.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Whether the peer is being emptied.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The other peers that hold replicas of groups that have one here.
    pub fn sharers(&self) -> BTreeSet<PeerId> {
        let mut sharers = BTreeSet::new();
        for group in self.groups.groups() {
            sharers.extend(group.status().configuration.replicas.iter().filter_map(|replica| replica.peer_id().ok()));
        }
        sharers.remove(&self.id);
        sharers
    }

    /// Takes note of the starts that descriptions tell of: of peers that share groups with this one, so that an older disk is
    /// noticed by those too that had no Raft message of the newer start; and of this peer, if its own disk is the older one.
    pub async fn note_starts(&self, by: PeerId, told: &[PeerInfo]) {
        let sharers = self.sharers();
        for info in told.iter().filter(|info| info.start > 0) {
            let Ok(peer) = PeerId::from_slice(&info.peer) else { continue };
            let start = Start { boot: info.start, nonce: info.nonce };
            if peer == self.id {
                self.starts.heard_of(by, start);
            } else if sharers.contains(&peer) {
                // one that is older than what is known is an old description, or is told when it wants to talk
                let _ = self.starts.admit(peer, start).await;
            }
        }
    }
}

/// Tells a group that a replica could not be reached.
pub struct Told(pub Handle);

impl crate::net::links::Unreachable for Told {
    fn unreachable(&self, group: GroupId, replica: u64) {
        if let Some(group) = self.0.group(group) {
            group.unreachable(replica);
        }
    }
}

fn not_here(what: &str, route: Route) -> WireError {
    let leader = route.replicas.iter().find(|replica| replica.id == route.leader).cloned();
    WireError {
        leader,
        replicas: route.replicas,
        ..WireError::new(Code::NotHere, format!("`{what}` has no replica on this peer; ask one of its replicas"))
    }
}

/// There is no such topic.
pub fn unknown_topic(name: &str) -> WireError {
    WireError::new(Code::UnknownTopic, format!("no topic `{name}`; create it with `canal topic create {name}`"))
}

/// An error of this peer's own.
pub fn internal(error: impl std::fmt::Display) -> WireError {
    WireError::new(Code::Internal, error.to_string())
}

/// Processes that ran or waited for a processor in the last minute, in thousandths of all processors.
fn load_of_machine() -> u32 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load_of(&text, std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

fn load_of(text: &str, cpus: usize) -> u32 {
    let (whole, hundredths) = text.split(' ').next().and_then(|minute| minute.split_once('.')).unwrap_or_default();
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    let cpus = u32::try_from(cpus.max(1)).unwrap_or(u32::MAX);
    number(whole).saturating_mul(1000).saturating_add(number(hundredths).saturating_mul(10)) / cpus
}

fn memory_of_machine() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_in_thousandths_of_all_processors() {
        assert_eq!(load_of("1.50 0.16 0.18 1/200 12\n", 2), 750);
        assert_eq!(load_of("12.05 1 1 1/1 1", 1), 12_050);
        assert_eq!((load_of("", 4), load_of("x", 0)), (0, 0));
    }
}
