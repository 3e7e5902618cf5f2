//! Membership: the leader of a group brings its replicas to where they should be, one step at a time.
//!
//! What should be is [`Surroundings::target`] over the peers that this one knows; which step comes next is
//! [`canal_topology::next_step`]. Both are computed anew each time from what stands, so a leader that comes in the middle
//! goes on from the configuration that it finds, and every step here can be done twice or not at all.
//!
//! Two clocks decide about a replica that is silent. After `replace_after` it counts as gone for good. Before that its
//! peer is asked whether it holds the replica at all: one that came back with an empty disk says that it does not, and
//! then the replica is replaced at once, by one with a new id, since the old one has forgotten what it voted for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use canal_consensus::{ChangeSet, GroupHandle, Progress, Status};
use canal_proto::log::Step as Record;
use canal_proto::peer::{Replica, Seed};
use canal_proto::request::{Ask, RemoveReplica};
use canal_proto::{Code, PeerId};
use canal_topology::{
    Candidate, Condition, Member, Objective, Patience, Role, Signs, Standing, Step, Surroundings, next_step,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::ask::ask;
use super::probe;
use super::steps::Stalls;
use crate::node::{CATALOG_REPLICAS, Node, now_ms};

/// How often a group looks at itself.
const LOOK: Duration = Duration::from_millis(500);
/// The same while it is on its way somewhere.
const GO_ON: Duration = Duration::from_millis(100);
/// How often a group that stood as it should looks at the peers again; its own changes it sees at once.
const REST: Duration = Duration::from_secs(2);
/// How long a peer is no candidate on which a replica could not be brought to life.
const AVOID: Duration = Duration::from_secs(300);
/// For creating a replica on another peer.
const CREATE: Duration = Duration::from_secs(5);
/// For a change of the configuration; a leader that gets no majority in that time loses its office.
const CHANGE: Duration = Duration::from_secs(10);
/// For a hand-over; Raft gives it up earlier.
const HAND_OVER: Duration = Duration::from_secs(3);
/// How often, and how many times, a replica that was let go is told so. Later it finds out by itself.
const TELL: Duration = Duration::from_secs(1);
const TELLINGS: u32 = 60;
/// Replicas that are being told at a time.
const MAX_TOLD: usize = 16;

/// Replicas that a group should have.
pub fn wanted(group: &GroupHandle) -> u32 {
    match group.seed().name.as_str() {
        canal_proto::route::CATALOG => CATALOG_REPLICAS,
        _ => group.status().spec.replicas,
    }
}

/// What is under way in a group, for people; empty when nothing is. As its leader sees it.
pub fn under_way(status: &Status) -> String {
    let configuration = &status.configuration;
    if status.joint {
        let out: Vec<String> = configuration.voters_outgoing.iter().map(u64::to_string).collect();
        let new: Vec<String> = configuration.voters.iter().map(u64::to_string).collect();
        return format!("a change of the voters from {} to {}", out.join(", "), new.join(", "));
    }
    let Some(id) = configuration.learners.first() else { return String::new() };
    match status.progress.get(id) {
        Some(progress) if progress.snapshot => format!("replica {id} is filled by a snapshot"),
        Some(progress) if progress.matched > 0 => {
            format!("replica {id} catches up: it has {} of {}", progress.matched, status.committed)
        }
        _ => format!("replica {id} is brought to life"),
    }
}

/// Keeps the group's replicas for as long as it is led here. Steps that are done go to `records`.
pub async fn run(node: Arc<Node>, group: GroupHandle, stalls: Arc<Stalls>, records: mpsc::Sender<Record>) {
    let mut room = Room {
        node,
        group,
        stalls,
        records,
        met: BTreeMap::new(),
        began: BTreeMap::new(),
        avoided: BTreeMap::new(),
        probe: probe::Probe::default(),
        telling: JoinSet::new(),
    };
    let mut wait = LOOK;
    let mut rested = None;
    loop {
        sleep(wait).await;
        while room.telling.try_join_next().is_some() {}
        let status = room.group.status();
        let key = (status.configuration.index, status.spec.version);
        let rests = rested.is_some_and(|(known, since): (_, Instant)| known == key && since.elapsed() < REST);
        if !status.leads || rests {
            wait = LOOK;
            continue;
        }
        rested = None;
        wait = match room.look(&status).await {
            Ok(Step::Done) => {
                rested = Some((key, Instant::now()));
                LOOK
            }
            Ok(Step::Wait(_)) => LOOK,
            Ok(step) => {
                tracing::debug!(group = %room.group.seed().name, ?step, "a step is done");
                GO_ON
            }
            Err(error) => {
                tracing::debug!(group = %room.group.seed().name, %error, "a step could not be done just now");
                LOOK
            }
        };
    }
}

struct Room {
    node: Arc<Node>,
    group: GroupHandle,
    stalls: Arc<Stalls>,
    records: mpsc::Sender<Record>,
    /// When this leader first saw each replica in the configuration.
    met: BTreeMap<u64, Instant>,
    /// When this leader began to bring a replica to each peer, in milliseconds since 1970.
    began: BTreeMap<PeerId, u64>,
    /// Peers on which a replica could not be brought to life.
    avoided: BTreeMap<PeerId, Instant>,
    probe: probe::Probe,
    telling: JoinSet<()>,
}

impl Room {
    /// Takes the next step, and says which.
    async fn look(&mut self, status: &Status) -> anyhow::Result<Step> {
        let wanted = usize::try_from(wanted(&self.group)).unwrap_or(usize::MAX).min(canal_proto::limits::MAX_REPLICAS);
        if wanted == 0 {
            // the catalog has yet to say what the group hosts
            return Ok(Step::Done);
        }
        let standing = self.standing(status, wanted).await;
        let step = next_step(&standing);
        match &step {
            Step::AddLearner(peer) => self.add(*peer).await?,
            Step::Create(id) => {
                if let Some(replica) = replica(status, *id) {
                    create(&self.node, self.group.seed(), replica).await?;
                }
            }
            Step::Change { promote, remove } => self.change(status, &standing, promote, remove).await?,
            Step::RemoveLearner(id) => self.give_up(status, &standing, *id).await?,
            Step::Transfer(id) => self.hand_over(*id).await,
            Step::Wait(wait) => tracing::debug!(group = %self.group.seed().name, ?wait, "waits"),
            Step::Done => {}
        }
        Ok(step)
    }

    async fn standing(&mut self, status: &Status, wanted: usize) -> Standing {
        let replicas = &status.configuration.replicas;
        self.met.retain(|id, _| replicas.iter().any(|replica| replica.id == *id));
        self.avoided.retain(|_, since| since.elapsed() < AVOID);
        let silent: BTreeMap<u64, Duration> =
            replicas.iter().map(|replica| (replica.id, self.silent(replica.id))).collect();
        let lost = self.probe.lost(&self.node, &self.group, status, &silent).await;
        let patience = Patience { replace_after: self.node.config.replace_after, ..Patience::default() };
        let mut members = Vec::new();
        for replica in replicas {
            let Ok(peer) = replica.peer_id() else { continue };
            let role = match status.configuration.learners.contains(&replica.id) {
                true => Role::Learner,
                false => Role::Voter,
            };
            let silent = silent.get(&replica.id).copied().unwrap_or_default();
            let Progress { matched, snapshot, .. } = status.progress.get(&replica.id).copied().unwrap_or_default();
            let (leads, lost) = (replica.id == status.replica, lost.contains(&replica.id));
            let signs = Signs { leads, role, silent, matched, snapshot, lost };
            let condition = signs.condition(status.committed, &patience);
            members.push(Member { id: replica.id, peer, role, condition });
        }
        let target = self.target(status, wanted, &members);
        Standing { members, joint: status.joint, leader: status.replica, wanted, target }
    }

    /// How long a replica was silent while this leader knew it.
    fn silent(&mut self, id: u64) -> Duration {
        let met = self.met.entry(id).or_insert_with(Instant::now).elapsed();
        Duration::from_millis(self.group.silent_ms(id)).min(met)
    }

    /// The peers that should hold the replicas.
    fn target(&self, status: &Status, wanted: usize, members: &[Member]) -> Vec<PeerId> {
        let objective = status.spec.placement.as_ref().map(Objective::from).unwrap_or_default();
        let mut live: Vec<Candidate> =
            self.node.peers.live().iter().filter_map(|info| Candidate::try_from(info).ok()).collect();
        if !live.iter().any(|candidate| candidate.peer == self.node.id) {
            live.extend(Candidate::try_from(&self.node.describe()));
        }
        let told = |peer: PeerId| {
            let all = self.node.peers.all();
            all.iter().find(|info| info.peer == peer.to_vec()).and_then(|info| Candidate::try_from(info).ok())
        };
        let avoided = self.avoided.keys().copied().collect();
        let around = Surroundings { leader: status.replica, members, live, avoided };
        around.target(self.group.id().0, wanted, &objective, told)
    }

    async fn add(&mut self, peer: PeerId) -> anyhow::Result<()> {
        let addresses =
            if peer == self.node.id { Some(self.node.net.addresses()) } else { self.node.peers.addresses(peer) };
        self.stalls.of_step();
        self.began.insert(peer, now_ms());
        let replica = Replica { id: 0, peer: peer.to_vec(), addresses: addresses.unwrap_or_default() };
        timeout(CHANGE, self.group.add_learner(replica)).await??;
        Ok(())
    }

    async fn change(
        &mut self,
        status: &Status,
        standing: &Standing,
        promote: &[u64],
        remove: &[u64],
    ) -> anyhow::Result<()> {
        let began = now_ms();
        if promote.is_empty() {
            self.stalls.of_step();
        }
        let set = ChangeSet { promote: promote.to_vec(), remove: remove.to_vec() };
        timeout(CHANGE, self.group.change(set)).await??;
        timeout(CHANGE, self.settled()).await?;
        let came = promote.first().and_then(|id| replica(status, *id));
        let went = remove.first().and_then(|id| replica(status, *id));
        let is_gone = |id: &u64| {
            let member = standing.members.iter().find(|member| member.id == *id);
            member.is_some_and(|member| matches!(member.condition, Condition::Gone | Condition::Lost))
        };
        let what = match (came, went) {
            (Some(_), None) => "joined",
            (Some(_), Some(_)) if remove.iter().any(is_gone) => "replaced",
            (Some(_), Some(_)) => "moved",
            _ => "removed",
        };
        let since = came.and_then(|replica| replica.peer_id().ok()).and_then(|peer| self.began.remove(&peer));
        let record = Record {
            what: what.into(),
            replica: came.map_or(0, |replica| replica.id),
            peer: came.map(|replica| replica.peer.clone().into()).unwrap_or_default(),
            gone: went.map_or(0, |replica| replica.id),
            gone_peer: went.map(|replica| replica.peer.clone().into()).unwrap_or_default(),
            began_ms: since.unwrap_or(began),
            ended_ms: now_ms(),
            stood_still_ms: self.stalls.of_step(),
            ..Record::default()
        };
        tracing::info!(group = %self.group.seed().name, what, came = record.replica, went = ?remove, "replicas changed");
        if self.records.try_send(record).is_err() {
            tracing::warn!(group = %self.group.seed().name, "a step is not recorded: too many wait for it");
        }
        for id in remove {
            if let Some(replica) = replica(status, *id) {
                self.tell(replica.clone());
            }
        }
        Ok(())
    }

    /// Returns when no change is half done.
    async fn settled(&self) {
        let mut watch = self.group.watch();
        while watch.now().joint && watch.changed().await {}
    }

    /// Lets go of a learner that is not wanted, or never came to life.
    async fn give_up(&mut self, status: &Status, standing: &Standing, id: u64) -> anyhow::Result<()> {
        let member = standing.members.iter().find(|member| member.id == id);
        if let Some(member) = member.filter(|member| member.condition == Condition::Gone) {
            self.avoided.insert(member.peer, Instant::now());
        }
        timeout(CHANGE, self.group.change(ChangeSet { promote: Vec::new(), remove: vec![id] })).await??;
        tracing::info!(group = %self.group.seed().name, replica = id, "a replica that did not vote yet was given up");
        if let Some(replica) = replica(status, id) {
            self.began.retain(|peer, _| peer.to_vec() != replica.peer);
            self.tell(replica.clone());
        }
        Ok(())
    }

    async fn hand_over(&self, to: u64) {
        tracing::info!(group = %self.group.seed().name, to, "hands over, to leave");
        let mut watch = self.group.watch();
        let handed = async {
            while watch.now().leads {
                self.group.transfer(to);
                // Raft may give it up; it is asked for again
                if matches!(timeout(LOOK, watch.changed()).await, Ok(false)) {
                    return;
                }
            }
        };
        if timeout(HAND_OVER, handed).await.is_err() {
            tracing::debug!(group = %self.group.seed().name, to, "the hand-over did not come about");
        }
    }

    /// Tells a replica that it was let go, until its peer says that it is.
    fn tell(&mut self, replica: Replica) {
        if replica.peer == self.node.id.to_vec() || self.telling.len() >= MAX_TOLD {
            return;
        }
        let (node, group) = (self.node.clone(), self.group.id());
        self.telling.spawn(async move {
            let Ok(peer) = replica.peer_id() else { return };
            for _ in 0..TELLINGS {
                let remove = Ask::RemoveReplica(RemoveReplica { group: group.0, replica: replica.id });
                match ask(&node, peer, &replica.addresses, remove, CREATE).await {
                    Ok(_) => return,
                    Err(error) if error.code == Code::InvalidArgument => return,
                    Err(error) => tracing::debug!(%peer, %error, "a replica that was let go is still there"),
                }
                sleep(TELL).await;
            }
        });
    }
}

fn replica(status: &Status, id: u64) -> Option<&Replica> {
    status.configuration.replicas.iter().find(|replica| replica.id == id)
}

/// Creates a replica on its peer; nothing happens where it exists.
pub async fn create(node: &Node, seed: &Seed, replica: &Replica) -> anyhow::Result<()> {
    let seed = Seed { replica: replica.id, ..seed.clone() };
    if replica.peer == node.id.to_vec() {
        return Ok(node.groups.create(seed).await?);
    }
    ask(node, replica.peer_id()?, &replica.addresses, Ask::CreateReplica(seed), CREATE).await?;
    Ok(())
}
