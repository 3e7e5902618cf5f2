//! How what the plan says goes wrong. Each second, the faults of that second are drawn and put in the queue; each ends by
//! itself, or when everything is healed.

use std::collections::BTreeSet;

use canal_consensus::core::group::Input;
use canal_consensus::core::keys::Table;
use canal_proto::ContentHash;
use canal_proto::GroupId;
use raft::eraftpb::EntryType;

use super::{Event, SECOND, World};
use crate::sim::around::Machine;
use crate::sim::disk::Disk;
use crate::sim::faults::Kind;
use crate::sim::peer::{Inbound, Stage};
use crate::sim::queue::Micros;
use crate::sim::seen::{Look as _, Seen};
use crate::sim::setup::Wish;

/// Something that goes wrong, or is right again.
pub enum Trouble {
    /// The faults of the next second are drawn.
    Plan,
    /// This kind of fault happens to this peer.
    Strike(Kind, Machine),
    /// A cut ends.
    Mend(u64),
    /// A disk is quick again.
    Quick(Machine),
    /// A peer starts again.
    Restart(Machine, u64),
    /// All faults are over.
    Heal,
}

/// How long cuts last at most.
const CUT: Micros = 8 * SECOND;
/// How long a process stands still at most.
const PAUSE: Micros = 4 * SECOND;
/// How long a peer is down, mostly and at most.
const DOWN: (Micros, Micros) = (2 * SECOND, 15 * SECOND);
/// Milliseconds that a clock jumps at most.
const JUMP_MS: u64 = 600_000;

/// Kinds that happen to one peer, so many a thousand of its seconds.
const OF_A_PEER: [Kind; 4] = [Kind::Crash, Kind::Pause, Kind::Jump, Kind::FlippedFile];
/// Kinds that happen to the mesh.
const OF_THE_MESH: [Kind; 6] =
    [Kind::Partition, Kind::OneWay, Kind::Isolation, Kind::PowerCut, Kind::Move, Kind::Unrest];

impl World {
    pub(super) fn plan_trouble(&mut self) {
        self.queue.push(self.now, Event::Trouble(Trouble::Plan));
        let total = self.setup.fault_ms * 1000;
        let plan = &self.setup.faults;
        let joins = std::iter::repeat_n(Kind::Join, self.setup.most_peers - self.setup.peers);
        let leaves = std::iter::repeat_n(Kind::Leave, plan.leaves);
        for kind in joins.chain(leaves) {
            // before the end, so that what follows of it meets the other faults
            let at = self.trouble_rng.between(total / 10, total * 7 / 10);
            self.queue.push(at, Event::Trouble(Trouble::Strike(kind, 0)));
        }
    }

    pub(super) fn trouble(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Plan if self.faulty => self.draw(),
            Trouble::Plan => {}
            Trouble::Strike(kind, peer) if self.faulty => self.strike(kind, peer),
            Trouble::Strike(..) => {}
            Trouble::Mend(number) => {
                self.network.mend(number);
                self.trace.tell(self.now, || format!("cut {number} is mended"));
            }
            Trouble::Quick(peer) => {
                self.slow_disks.remove(&peer);
            }
            Trouble::Restart(peer, start) => {
                if self.peers[peer].stage == Stage::Down && self.peers[peer].start == start {
                    self.start(peer);
                }
            }
            Trouble::Heal => self.heal(),
        }
    }

    /// Draws the faults of the next second.
    fn draw(&mut self) {
        self.queue.push(self.now + SECOND, Event::Trouble(Trouble::Plan));
        for kind in OF_A_PEER {
            let strength = self.setup.faults.strength(kind);
            for peer in 0..self.joined {
                if strength > 0 && self.trouble_rng.chance(strength) {
                    self.put(kind, peer);
                }
            }
        }
        for kind in OF_THE_MESH {
            let strength = self.setup.faults.strength(kind);
            if strength > 0 && self.trouble_rng.chance(strength) {
                self.put(kind, 0);
            }
        }
        if self.setup.faults.has(Kind::SlowDisk) && self.trouble_rng.chance(100) {
            let peer = self.trouble_rng.index(self.joined);
            self.put(Kind::SlowDisk, peer);
        }
    }

    fn put(&mut self, kind: Kind, peer: Machine) {
        let at = self.now + self.trouble_rng.below(SECOND);
        self.queue.push(at, Event::Trouble(Trouble::Strike(kind, peer)));
    }

    fn told(&mut self, kind: Kind, peer: Option<Machine>, text: String) {
        self.tally.fault(kind);
        self.see(Seen::Fault { peer, text });
    }

    fn strike(&mut self, kind: Kind, peer: Machine) {
        match kind {
            Kind::Crash => self.crash(peer, Kind::Crash),
            Kind::Pause if self.peers[peer].live.is_some() => {
                let lasts = self.trouble_rng.between(SECOND / 10, PAUSE);
                self.peers[peer].paused_until = self.now + lasts;
                self.told(kind, Some(peer), format!("stands still for {} ms", lasts / 1000));
            }
            Kind::Jump if self.peers[peer].live.is_some() => {
                let by = self.trouble_rng.between(100, JUMP_MS).cast_signed();
                let by = if self.trouble_rng.chance(500) { by } else { -by };
                self.peers[peer].clock.ahead_ms += by;
                self.told(kind, Some(peer), format!("its clock jumps by {by} ms"));
            }
            Kind::FlippedFile => {
                let hash = self.peers[peer].disk.files.any(&mut self.trouble_rng);
                // what is damaged everywhere nobody can make good
                if let Some(hash) = hash.filter(|hash| self.is_kept_beside(peer, hash)) {
                    self.peers[peer].disk.files.flip(hash);
                    self.told(kind, Some(peer), format!("a bit flips in file {hash}"));
                }
            }
            Kind::SlowDisk if self.slow_disks.insert(peer) => {
                let lasts = self.trouble_rng.between(SECOND, CUT);
                self.queue.push(self.now + lasts, Event::Trouble(Trouble::Quick(peer)));
                self.told(kind, Some(peer), format!("its disk is slow for {} ms", lasts / 1000));
            }
            Kind::Partition | Kind::OneWay | Kind::Isolation => self.part(kind),
            Kind::PowerCut => {
                self.told(kind, None, "the power fails".to_owned());
                for peer in 0..self.joined {
                    if self.peers[peer].live.is_some() {
                        self.die(peer);
                        self.restart_later(peer);
                    }
                }
            }
            Kind::Move => self.move_replicas(),
            Kind::Unrest => self.unrest(),
            Kind::Join => self.join(),
            Kind::Leave => self.leave(),
            _ => {}
        }
    }

    fn part(&mut self, kind: Kind) {
        // clients have machines of their own, and are on one side or the other
        let machines = self.clocks.len();
        let mut one = Vec::new();
        let mut other = Vec::new();
        let alone = self.trouble_rng.index(self.joined);
        for machine in 0..machines {
            let inside = match kind {
                Kind::Isolation => machine == alone,
                Kind::OneWay => machine == alone,
                _ => self.trouble_rng.chance(500),
            };
            if inside {
                one.push(machine);
            } else if kind != Kind::OneWay || self.trouble_rng.chance(600) {
                other.push(machine);
            }
        }
        let shown: Vec<Machine> = one.iter().copied().filter(|machine| *machine < self.joined).collect();
        let rest: Vec<Machine> = other.iter().copied().filter(|machine| *machine < self.joined).collect();
        let backwards = kind == Kind::OneWay && self.trouble_rng.chance(500);
        let number = match (kind, backwards) {
            (Kind::OneWay, true) => self.cut(other, one, false),
            (Kind::OneWay, false) => self.cut(one, other, false),
            _ => self.cut(one, other, true),
        };
        let lasts = self.trouble_rng.between(SECOND / 2, CUT);
        self.queue.push(self.now + lasts, Event::Trouble(Trouble::Mend(number)));
        let way = match (kind, backwards) {
            (Kind::OneWay, false) => "does not get to",
            (Kind::OneWay, true) => "hears nothing of",
            _ => "and",
        };
        let apart = if kind == Kind::OneWay { "" } else { " are parted" };
        self.told(kind, None, format!("cut {number}: {shown:?} {way} {rest:?}{apart} for {} ms", lasts / 1000));
    }

    fn move_replicas(&mut self) {
        let groups = self.groups();
        let Some(group) = self.trouble_rng.pick(&groups) else { return };
        let staying = self.staying();
        let mut pinned = Vec::new();
        let mut replicas = self.catalog.wished(group).replicas;
        match self.trouble_rng.below(3) {
            0 => replicas = if replicas == 3 && self.setup.peers - self.setup.faults.leaves >= 5 { 5 } else { 3 },
            1 => {
                let mut left = staying;
                while pinned.len() < replicas && !left.is_empty() {
                    pinned.push(left.swap_remove(self.trouble_rng.index(left.len())));
                }
                pinned.sort_unstable();
            }
            _ => {}
        }
        let text = format!("group {group} should have {replicas} replicas, on {pinned:?}");
        self.catalog.wish(group, Wish { replicas, pinned });
        self.told(Kind::Move, None, text);
    }

    fn unrest(&mut self) {
        let groups = self.groups();
        let Some(group) = self.trouble_rng.pick(&groups) else { return };
        let held: Vec<Machine> = (0..self.joined).filter(|peer| self.member(*peer, group).is_some()).collect();
        let Some(peer) = self.trouble_rng.pick(&held) else { return };
        let Some(member) = self.member(peer, group) else { return };
        let ids: Vec<u64> = member.group.status().configuration.replicas.iter().map(|replica| replica.id).collect();
        let Some(to) = self.trouble_rng.pick(&ids) else { return };
        let (input, text) = match self.trouble_rng.below(5) {
            0 => (Input::Unreachable(to), "is told that another is unreachable"),
            1 => (Input::Campaign, "stands for election"),
            2 => (Input::SnapshotLost(to), "is told that a snapshot was lost"),
            _ => (Input::Transfer(to), "is told to hand over"),
        };
        self.told(Kind::Unrest, Some(peer), format!("its replica of group {group} {text} ({to})"));
        self.arrive(peer, Inbound::Input(group, Box::new(input)));
    }

    fn join(&mut self) {
        if self.joined < self.peers.len() {
            let peer = self.joined;
            self.joined += 1;
            self.told(Kind::Join, Some(peer), "joins".to_owned());
            self.start(peer);
        }
    }

    fn leave(&mut self) {
        let first = self.trouble_rng.index(self.joined);
        let order = (first..self.joined).chain(0..first);
        for peer in order {
            if self.peers[peer].stage == Stage::Up && self.may_lose(peer) {
                self.left += 1;
                self.told(Kind::Leave, Some(peer), "leaves for good".to_owned());
                self.rob(peer);
                self.die(peer);
                self.peers[peer].stage = Stage::Left;
                return;
            }
        }
        // nobody can be spared at the moment
        let at = self.now + SECOND;
        self.queue.push(at, Event::Trouble(Trouble::Strike(Kind::Leave, 0)));
    }

    /// A peer's process dies, and perhaps more than that.
    pub(in crate::sim) fn crash(&mut self, peer: Machine, kind: Kind) {
        if self.peers[peer].live.is_none() {
            return;
        }
        self.told(kind, Some(peer), kind.name().to_owned());
        // asked before: what it holds in memory says what its groups can do without
        let may_lose = self.may_lose(peer);
        self.die(peer);
        self.restart_later(peer);
        if !may_lose || !self.faulty {
            return;
        }
        let strikes = |world: &mut Self, kind: Kind| {
            let strength = world.setup.faults.strength(kind);
            strength > 0 && world.trouble_rng.chance(strength)
        };
        if strikes(self, Kind::EmptyDisk) {
            self.told(Kind::EmptyDisk, Some(peer), "its disk is emptied".to_owned());
            self.rob(peer);
            self.peers[peer].disk = Disk::default();
        } else if strikes(self, Kind::LostRows) {
            self.told(Kind::LostRows, Some(peer), "its rows are damaged".to_owned());
            self.peers[peer].disk.rows.lose();
        } else if strikes(self, Kind::FlippedLog) {
            let groups = self.peers[peer].disk.groups();
            if let Some(group) = self.trouble_rng.pick(&groups)
                && self.peers[peer].disk.log.flip(group, &mut self.trouble_rng)
            {
                self.told(Kind::FlippedLog, Some(peer), format!("a bit flips in the log of group {group}"));
                self.rob(peer);
            }
        }
    }

    /// A process is gone: its memory, and what was not synced.
    pub(in crate::sim) fn die(&mut self, peer: Machine) {
        let held = &mut self.peers[peer];
        held.stage = Stage::Down;
        held.paused_until = 0;
        let Some(live) = held.live.take() else { return };
        held.disk.crash(&mut self.disk_rng);
        let of_members = live.members.into_values().flat_map(|member| member.led.into_iter().chain(member.rooms));
        let actors: Vec<_> = live.rooms.into_iter().chain(of_members).collect();
        actors.into_iter().for_each(|actor| self.dismiss(actor));
    }

    pub(in crate::sim) fn restart_later(&mut self, peer: Machine) {
        let quick = self.trouble_rng.chance(700);
        let most = if quick { DOWN.0 } else { DOWN.1 };
        let after = self.trouble_rng.between(SECOND / 10, most);
        let start = self.peers[peer].start;
        self.queue.push(self.now + after, Event::Trouble(Trouble::Restart(peer, start)));
    }

    /// What a peer has synced is gone.
    fn rob(&mut self, peer: Machine) {
        for group in self.peers[peer].disk.groups() {
            let held = self.peers[peer].disk.log.read(group, |image| Some((image.seed.clone()?.replica, image.last())));
            if let Some((replica, last)) = held.flatten() {
                let through = self.robbed.entry(group).or_default().entry(replica).or_default();
                *through = last.max(*through);
            }
        }
    }

    /// Whether all groups can do without what is on a peer's disk: Raft bears a minority of voters that are gone.
    fn may_lose(&self, peer: Machine) -> bool {
        let groups = self.peers[peer].disk.groups();
        groups.into_iter().all(|group| self.may_lose_replica(peer, group) && self.may_lose_files(peer, group))
    }

    /// Whether every segment that a peer has of a group is whole somewhere else, if somebody else names it: nobody could
    /// make good what is damaged there and gone here.
    fn may_lose_files(&self, peer: Machine, group: GroupId) -> bool {
        let disk = &self.peers[peer].disk;
        let others = self.peers.iter().filter(|(other, held)| *other != peer && held.stage != Stage::Left);
        let mut hashes = others.flat_map(|(other, _)| self.named(other, group));
        hashes.all(|hash| !disk.files.is_whole(&hash) || self.is_kept_beside(peer, &hash))
    }

    /// Whether another peer than this one has a file, whole, and a reason to keep it.
    fn is_kept_beside(&self, peer: Machine, hash: &ContentHash) -> bool {
        let has = |(other, held): (Machine, &crate::sim::peer::Peer)| {
            other != peer
                && held.stage != Stage::Left
                && held.disk.files.is_whole(hash)
                && held.disk.groups().into_iter().any(|group| self.named(other, group).contains(hash))
        };
        self.peers.iter().any(has)
    }

    /// The segments that a peer's rows of a group name.
    fn named(&self, peer: Machine, group: GroupId) -> BTreeSet<ContentHash> {
        let segments = self.segments(peer, group, Table::Segments).unwrap_or_default();
        segments.iter().filter_map(|segment| ContentHash::from_slice(&segment.hash).ok()).collect()
    }

    fn may_lose_replica(&self, peer: Machine, group: GroupId) -> bool {
        let running: Vec<_> = self
            .peers
            .iter()
            .filter_map(|(at, held)| Some((at, held.live.as_ref()?.members.get(&group)?.group.status())))
            .collect();
        let newest = running.iter().map(|(_, status)| &status.configuration).max_by_key(|newest| newest.index);
        let Some(newest) = newest else { return false };
        let agreed = running.iter().all(|(_, status)| status.configuration == *newest);
        // a change may be committed that nobody has applied yet
        let changes = |(_, held): (Machine, &crate::sim::peer::Peer)| {
            let after = |image: &crate::sim::disk::log::Image| {
                let mut entries = (newest.index + 1..=image.last()).filter_map(|index| image.entry(index));
                entries.any(|entry| entry.get_entry_type() != EntryType::EntryNormal)
            };
            held.disk.log.read(group, after).unwrap_or_default()
        };
        let agreed = agreed && !self.peers.iter().any(changes);
        if !agreed || newest.voters.len() < 3 || !newest.voters_outgoing.is_empty() {
            return false;
        }
        let robbed = self.robbed.get(&group);
        let whole = |(at, status): &&(Machine, canal_consensus::Status)| {
            *at != peer
                // a learner may be about to vote, in the place of a voter that is whole
                && (newest.voters.contains(&status.replica) || newest.learners.contains(&status.replica))
                && status.serves()
                && !robbed.is_some_and(|robbed| robbed.contains_key(&status.replica))
        };
        let lost = newest.voters.len() + newest.learners.len() - running.iter().filter(whole).count();
        lost * 2 < newest.voters.len()
    }

    /// All faults are over, for good.
    fn heal(&mut self) {
        self.faulty = false;
        self.healed = true;
        self.healed_at = self.now;
        self.network.heal();
        self.slow_disks.clear();
        for peer in 0..self.peers.len() {
            self.peers[peer].paused_until = self.peers[peer].paused_until.min(self.now);
            // somebody reads them sooner or later; here, before everything has to be well
            self.peers[peer].disk.files.find_flipped();
            if self.peers[peer].stage == Stage::Down {
                self.start(peer);
            }
        }
        for slot in self.actors.values_mut() {
            if let Some(actor) = slot.actor.as_mut() {
                actor.heal();
            }
        }
        self.calls.extend(self.actors.keys().map(|id| super::Call::Wake(*id)));
        self.see(Seen::Healed);
    }
}
