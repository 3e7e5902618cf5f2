//! What a run consists of, before anything happens: peers, groups, how long, and what goes wrong.

use canal_proto::{GroupId, PeerId, TopicId};

use super::around::Machine;
use super::faults::Plan;
use super::rng::Rng;

/// Peers of a run at least: fewer make no majority that can lose one.
pub const MIN_PEERS: usize = 3;
/// Peers of a run at most: every link has a row in the network's table.
pub const MAX_PEERS: usize = 50;

/// The group that functions fire in.
pub const WORK: GroupId = GroupId(2);
/// The group that receives what they emit.
pub const OUT: GroupId = GroupId(3);
/// The first of the groups with many small events.
pub const LOGS: GroupId = GroupId(4);
/// `in/a`.
pub const IN_A: TopicId = TopicId(11);
/// `in/b`.
pub const IN_B: TopicId = TopicId(12);
/// `$dead/work`.
pub const DEAD: TopicId = TopicId(13);
/// `out/a`.
pub const OUT_A: TopicId = TopicId(21);

/// The topic of a group with many small events: `logs`, 31 in group 4, 41 in group 5, and so on.
pub fn logs_topic(group: GroupId) -> TopicId {
    TopicId(group.0.saturating_sub(LOGS.0) * 10 + 31)
}

/// The mesh of all runs.
pub const MESH: [u8; 16] = [9; 16];

/// A group that a run begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPlan {
    /// Its id.
    pub id: GroupId,
    /// Its name.
    pub name: String,
    /// The peers of its first replicas; their ids are 1, 2, ….
    pub first: Vec<Machine>,
    /// What its catalog asks for.
    pub wish: Wish,
}

/// What the catalog asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Replicas.
    pub replicas: usize,
    /// Peers that should hold them, as far as they are there; empty: any.
    pub pinned: Vec<Machine>,
}

/// When logs are cut: small numbers, so that everything is under way all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of a group's log that are not in segments, above which they are sealed.
    pub seal_entries: u64,
    /// Milliseconds between two flushes of the rows.
    pub flush_ms: u64,
    /// Entries of all logs of a peer above which followers that are behind are not spared a snapshot.
    pub log_entries: u64,
    /// Milliseconds that a file stays which nothing names.
    pub grace_ms: u64,
}

/// What a run consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// The seed of the run.
    pub seed: u64,
    /// Peers that are there at the beginning.
    pub peers: usize,
    /// Peers that there are at most: some join later. Machines with higher numbers are clients'.
    pub most_peers: usize,
    /// How long things go wrong, in simulated milliseconds.
    pub fault_ms: u64,
    /// How long it may take until everything is well after that.
    pub heal_ms: u64,
    /// The groups.
    pub groups: Vec<GroupPlan>,
    /// How many times as long clients wait between two things as the busiest do: the same faults meet full logs in one
    /// run, and a mesh at rest in another.
    pub leisure: u64,
    /// When logs are cut.
    pub limits: Limits,
    /// What goes wrong.
    pub faults: Plan,
    /// Whether a story is told.
    pub trace: bool,
    /// The only invariant that is asked, when it is not all of them.
    pub asked: Option<&'static str>,
}

/// Milliseconds within which everything has to be well once the faults are over.
const HEAL_MS: u64 = 60_000;

impl Setup {
    /// The run of a seed.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed).fork(1);
        // mostly small: what goes wrong with 50 goes wrong with five as well, and ten times as often a second
        let peers = match rng.below(20) {
            0..=2 => 3,
            3..=4 => 4,
            5..=15 => 5,
            16..=17 => 7,
            18 => rng.index(8) + 8,
            _ => rng.index(MAX_PEERS - 15) + 16,
        };
        Self::with_peers(seed, peers)
    }

    /// The run of a seed with so many peers, whatever the seed would have drawn.
    pub fn with_peers(seed: u64, peers: usize) -> Self {
        let peers = peers.clamp(MIN_PEERS, MAX_PEERS);
        let rng = Rng::new(seed);
        let mut groups_rng = rng.fork(2);
        let mut sizes = rng.fork(3);
        let more = (peers / 6) as u64;
        let faults = Plan::draw(&mut rng.fork(4), peers);
        let stay = peers - faults.leaves;
        let groups = (WORK.0..=LOGS.0 + more).map(|id| group(GroupId(id), peers, stay, &mut groups_rng)).collect();
        let joins = faults.joins.min(MAX_PEERS - peers);
        Self {
            seed,
            peers,
            most_peers: peers + joins,
            fault_ms: sizes.between(20, 60) * 1000,
            heal_ms: HEAL_MS,
            groups,
            leisure: rng.fork(5).pick(&[1, 3, 10, 30]).unwrap_or(1),
            limits: Limits {
                seal_entries: sizes.pick(&[20, 60, 250]).unwrap_or(60),
                flush_ms: sizes.pick(&[300, 1000, 5000]).unwrap_or(1000),
                log_entries: sizes.pick(&[100, 400, 100_000]).unwrap_or(400),
                grace_ms: sizes.pick(&[2000, 10_000]).unwrap_or(2000),
            },
            faults,
            trace: false,
            asked: None,
        }
    }

    /// The plan of a group.
    pub fn group(&self, id: GroupId) -> Option<&GroupPlan> {
        self.groups.iter().find(|plan| plan.id == id)
    }
}

/// `stay`: so many peers will be left, and nobody asks for more replicas than that.
fn group(id: GroupId, peers: usize, stay: usize, rng: &mut Rng) -> GroupPlan {
    let replicas = if stay >= 5 && rng.chance(300) { 5 } else { 3 };
    let began = if rng.chance(300) { 1 } else { 3 };
    let mut left: Vec<Machine> = (0..peers).collect();
    let mut first = Vec::new();
    while first.len() < began && !left.is_empty() {
        first.push(left.swap_remove(rng.index(left.len())));
    }
    let name = match id {
        WORK => "work".to_owned(),
        OUT => "out".to_owned(),
        LOGS => "logs".to_owned(),
        GroupId(id) => format!("logs-{id}"),
    };
    GroupPlan { id, name, first, wish: Wish { replicas, pinned: Vec::new() } }
}

/// The secret key of a peer: its ed25519 seed.
pub fn secret(peer: Machine) -> [u8; 32] {
    let mut seed = [0; 32];
    let mut rng = Rng::new(peer as u64).fork(0x5ec7);
    for (byte, at) in seed.iter_mut().zip(0..) {
        *byte = rng.below(256) as u8 ^ at;
    }
    seed
}

/// The id of a peer: its ed25519 public key.
pub fn peer_id(peer: Machine) -> PeerId {
    PeerId::from_public_key(ed25519_dalek::SigningKey::from_bytes(&secret(peer)).verifying_key().to_bytes())
}
