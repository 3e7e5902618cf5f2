//! A mesh that joins, fails, forgets, drains and comes back while a group follows its targets. What a step does to the
//! configuration is modelled after Raft: a change is agreed on by the live voters, or is lost, or is left half done.

use std::collections::{BTreeMap, BTreeSet};

use canal_proto::peer::Tier;
use proptest::prelude::*;

use super::*;
use crate::{Candidate, Objective, choose};

/// Rounds of silence after which a replica counts as gone.
const GONE: u32 = 4;
/// Entries that a replica gets a round.
const FILL: u64 = 40;
/// A learner that lacks no more than this may vote.
const NEAR: u64 = 10;

/// What happens in a round, beside a step.
#[derive(Debug, Clone)]
enum Event {
    Join(u8),
    Kill(prop::sample::Index),
    Revive(prop::sample::Index),
    /// It comes back with an empty disk.
    Wipe(prop::sample::Index),
    Drain(prop::sample::Index, bool),
    Want(usize),
    Pin(u8),
    /// The leader dies for a moment: before its step is agreed on, or after, or with a change half done.
    Crash(prop::sample::Index, u8),
    Nothing,
}

fn any_event() -> impl Strategy<Value = Event> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (0u8..14).prop_map(Event::Join),
        index().prop_map(Event::Kill),
        index().prop_map(Event::Revive),
        index().prop_map(Event::Wipe),
        (index(), any::<bool>()).prop_map(|(which, on)| Event::Drain(which, on)),
        prop_oneof![Just(1usize), Just(2), Just(3), Just(5)].prop_map(Event::Want),
        (0u8..14).prop_map(Event::Pin),
        (index(), 0u8..3).prop_map(|(which, when)| Event::Crash(which, when)),
        Just(Event::Nothing),
        Just(Event::Nothing),
        Just(Event::Nothing),
    ]
}

#[derive(Debug, Clone)]
struct Peer {
    live: bool,
    draining: bool,
    silent: u32,
    /// Replicas on its disk, with how much of the log they have.
    disk: BTreeMap<u64, u64>,
}

impl Peer {
    fn new() -> Self {
        Self { live: true, draining: false, silent: 0, disk: BTreeMap::new() }
    }
}

#[derive(Debug, Clone)]
struct World {
    peers: BTreeMap<u8, Peer>,
    /// Replica to peer.
    places: BTreeMap<u64, u8>,
    voters: BTreeSet<u64>,
    outgoing: BTreeSet<u64>,
    learners: BTreeSet<u64>,
    last_id: u64,
    head: u64,
    leader: u64,
    wanted: usize,
    pinned: BTreeSet<PeerId>,
    changes: usize,
}

impl World {
    fn new() -> Self {
        let mut first = Peer::new();
        first.disk.insert(1, 100);
        Self {
            peers: BTreeMap::from([(0, first)]),
            places: BTreeMap::from([(1, 0)]),
            voters: BTreeSet::from([1]),
            outgoing: BTreeSet::new(),
            learners: BTreeSet::new(),
            last_id: 1,
            head: 100,
            leader: 1,
            wanted: 3,
            pinned: BTreeSet::new(),
            changes: 0,
        }
    }

    fn answers(&self, id: u64) -> bool {
        self.places.get(&id).and_then(|at| self.peers.get(at)).is_some_and(|p| p.live && p.disk.contains_key(&id))
    }

    fn has_majority(&self) -> bool {
        [&self.voters, &self.outgoing].iter().all(|half| {
            let live = half.iter().filter(|id| self.answers(**id)).count();
            half.is_empty() || live >= majority(half.len())
        })
    }

    /// What the voters have together is what was acknowledged: whoever leads has it.
    fn elect(&mut self, which: Option<prop::sample::Index>) {
        let may: Vec<u64> = self.voters.union(&self.outgoing).copied().filter(|id| self.answers(*id)).collect();
        let whole: Vec<u64> = may.into_iter().filter(|id| self.log_of(*id) + NEAR >= self.head).collect();
        self.leader = match which {
            Some(which) if !whole.is_empty() => whole[which.index(whole.len())],
            _ if whole.contains(&self.leader) => self.leader,
            _ => whole.first().copied().unwrap_or(0),
        };
    }

    fn log_of(&self, id: u64) -> u64 {
        self.places.get(&id).and_then(|at| self.peers[at].disk.get(&id)).copied().unwrap_or(0)
    }

    fn condition(&self, id: u64, seen: &BTreeSet<u64>) -> Condition {
        let peer = &self.peers[&self.places[&id]];
        if peer.silent >= GONE {
            Condition::Gone
        } else if !peer.live {
            Condition::Silent
        } else if !peer.disk.contains_key(&id) {
            if seen.contains(&id) { Condition::Lost } else { Condition::New }
        } else if self.log_of(id) + NEAR >= self.head {
            Condition::Well
        } else {
            Condition::Behind
        }
    }

    fn standing(&self, seen: &BTreeSet<u64>) -> Standing {
        let mut members: Vec<Member> = Vec::new();
        for (id, at) in &self.places {
            let role = if self.learners.contains(id) { Role::Learner } else { Role::Voter };
            members.push(Member { id: *id, peer: peer(*at), role, condition: self.condition(*id, seen) });
        }
        let there = |n: &u8, p: &Peer| {
            let holds = members.iter().find(|member| member.peer == peer(*n));
            match holds {
                Some(member) => member.condition != Condition::Gone,
                None => p.live,
            }
        };
        let candidates: Vec<Candidate> = self
            .peers
            .iter()
            .filter(|(n, p)| there(n, p))
            .map(|(n, p)| Candidate {
                peer: peer(*n),
                tier: if n % 5 == 4 { Tier::Iot } else { Tier::Edge },
                site: format!("s{}", n % 3),
                cpus: 4,
                memory: 8 << 30,
                replicas: u32::from(*n % 4),
                labels: BTreeMap::new(),
                draining: p.draining,
                coordinate: None,
            })
            .collect();
        let mut held: Vec<&Member> = members.iter().collect();
        held.sort_by_key(|member| (member.id != self.leader, member.role == Role::Learner, member.id));
        let held: Vec<PeerId> = held.iter().map(|member| member.peer).collect();
        let objective = Objective { pinned: self.pinned.clone(), ..Objective::default() };
        let target = choose(7, self.wanted, &held, &objective, &candidates);
        let joint = !self.outgoing.is_empty();
        Standing { members, joint, leader: self.leader, wanted: self.wanted, target }
    }

    fn leave_joint(&mut self) {
        self.outgoing.clear();
        let (voters, learners) = (self.voters.clone(), self.learners.clone());
        self.places.retain(|id, _| voters.contains(id) || learners.contains(id));
    }

    /// Carries a step out; `half` leaves a joint change for the next leader to end.
    fn carry_out(&mut self, step: &Step, half: bool) {
        match step {
            Step::AddLearner(at) => {
                let at = at.public_key()[0];
                assert!(self.places.values().all(|held| *held != at), "a second replica on peer {at}");
                assert!(self.learners.is_empty(), "two learners at a time");
                self.last_id += 1;
                self.places.insert(self.last_id, at);
                self.learners.insert(self.last_id);
            }
            Step::Create(id) => {
                let at = self.places[id];
                let peer = self.peers.get_mut(&at).unwrap();
                if peer.live {
                    peer.disk.entry(*id).or_insert(0);
                }
            }
            Step::Change { promote, remove } => self.change(promote, remove, half),
            Step::RemoveLearner(id) => {
                assert!(self.learners.remove(id), "{id} does not learn");
                self.leave_joint();
            }
            Step::Transfer(id) => {
                assert!(self.voters.contains(id), "only a voter leads");
                if self.answers(*id) && self.log_of(*id) + NEAR >= self.head {
                    self.leader = *id;
                }
            }
            Step::Wait(_) | Step::Done => {}
        }
    }

    fn change(&mut self, promote: &[u64], remove: &[u64], half: bool) {
        assert!(self.outgoing.is_empty(), "a change during another");
        assert!(self.has_majority(), "a change that nobody can agree on");
        let old = self.voters.clone();
        for id in promote {
            assert!(self.learners.remove(id), "{id} does not learn");
            assert!(self.log_of(*id) + NEAR >= self.head, "{id} votes without the log");
            self.voters.insert(*id);
        }
        for id in remove {
            assert_ne!(*id, self.leader, "the leader removes itself");
            assert!(self.voters.remove(id), "{id} does not vote");
        }
        self.changes += 1;
        let joint = promote.len() + remove.len() > 1;
        if joint {
            self.outgoing = old;
        }
        assert!(self.has_majority(), "too few live voters by its own step");
        if !(joint && half) {
            self.leave_joint();
        }
    }

    /// A fault is allowed only while a majority can go on without it.
    fn survives(&self, fault: impl Fn(&mut Self)) -> Option<Self> {
        let mut after = self.clone();
        fault(&mut after);
        let acknowledged = after.voters.iter().any(|id| after.answers(*id) && after.log_of(*id) + NEAR >= after.head);
        (after.has_majority() && acknowledged).then_some(after)
    }

    fn happen(&mut self, event: &Event) {
        let pick = |which: &prop::sample::Index| *which.get(&self.peers.keys().copied().collect::<Vec<_>>());
        let after = match event {
            Event::Join(n) => {
                self.peers.entry(*n).or_insert_with(Peer::new);
                None
            }
            Event::Kill(which) => {
                let n = pick(which);
                self.survives(|world| world.peers.get_mut(&n).unwrap().live = false)
            }
            Event::Wipe(which) => {
                let n = pick(which);
                self.survives(|world| {
                    let peer = world.peers.get_mut(&n).unwrap();
                    peer.disk.clear();
                    peer.live = true;
                })
            }
            Event::Revive(which) => {
                let n = pick(which);
                self.peers.get_mut(&n).unwrap().live = true;
                None
            }
            Event::Drain(which, on) => {
                let n = pick(which);
                self.peers.get_mut(&n).unwrap().draining = *on;
                None
            }
            Event::Want(wanted) => {
                self.wanted = *wanted;
                None
            }
            Event::Pin(n) => {
                self.pinned = BTreeSet::from([peer(*n)]);
                None
            }
            Event::Crash(..) | Event::Nothing => None,
        };
        if let Some(after) = after {
            *self = after;
        }
    }

    fn round(&mut self, event: &Event, seen: &mut BTreeSet<u64>) -> Step {
        self.happen(event);
        self.elect(None);
        self.head += 3;
        for peer in self.peers.values_mut() {
            peer.silent = if peer.live { 0 } else { peer.silent + 1 };
            let head = self.head;
            if peer.live {
                for (id, log) in &mut peer.disk {
                    if self.places.contains_key(id) {
                        *log = head.min(*log + FILL);
                    }
                    seen.insert(*id);
                }
            }
        }
        if self.leader == 0 || !self.has_majority() {
            return Step::Wait(Wait::Majority);
        }
        let step = next_step(&self.standing(seen));
        match event {
            Event::Crash(which, when) => {
                if *when > 0 {
                    self.carry_out(&step, *when == 2);
                }
                self.elect(Some(*which));
            }
            _ if !self.outgoing.is_empty() => {
                assert_eq!(step, Step::Wait(Wait::Joint));
                self.leave_joint();
            }
            _ => self.carry_out(&step, false),
        }
        step
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn a_group_always_comes_to_its_target_and_stays(
        events in prop::collection::vec(any_event(), 0..60),
        later in prop::collection::vec(any::<prop::sample::Index>(), 10),
    ) {
        let mut world = World::new();
        let mut seen = BTreeSet::new();
        for event in &events {
            world.round(event, &mut seen);
        }
        // from now on nothing happens but time
        let mut rounds = 0;
        let mut done = 0;
        while done < 3 {
            rounds += 1;
            prop_assert!(rounds < 400, "it never ends: {:#?}", world.standing(&seen));
            done = if world.round(&Event::Nothing, &mut seen) == Step::Done { done + 1 } else { 0 };
        }
        let standing = world.standing(&seen);
        let live: BTreeSet<PeerId> = standing.of(Role::Voter).filter(|v| !v.is_gone()).map(|v| v.peer).collect();
        prop_assert_eq!(&live, &standing.target.iter().copied().collect::<BTreeSet<_>>());
        // what is gone stays in the configuration only where nobody could take its place, and where it does no harm
        let gone = standing.of(Role::Voter).count() - live.len();
        prop_assert!(gone == 0 || (live.len() + gone <= world.wanted && live.len() >= majority(live.len() + gone)));
        prop_assert!(world.learners.is_empty() && world.outgoing.is_empty());
        // and whoever leads, nothing moves any more
        let changes = world.changes;
        for which in later {
            world.elect(Some(which));
            let step = world.round(&Event::Nothing, &mut seen);
            prop_assert_eq!(step, Step::Done);
        }
        prop_assert_eq!(world.changes, changes);
    }
}
