//! How a group's leader judges its replicas and the peers around it: what [`next_step`](crate::next_step) starts from.
//!
//! Two clocks decide about a replica that is silent. After [`Patience::replace_after`] it counts as gone for good. Before that its
//! peer is asked whether it holds the replica at all; what that came to is [`Signs::lost`].

use std::collections::BTreeSet;
use std::time::Duration;

use canal_proto::PeerId;
use canal_proto::peer::Tier;

use crate::{Candidate, Condition, Member, Objective, Role, choose};

/// A replica that lacks no more entries than this has caught up: the rest travels faster than the change.
pub const CAUGHT_UP: u64 = 128;
/// A replica that said nothing for this long does not count for a majority: twenty heartbeats.
pub const SILENT: Duration = Duration::from_secs(2);

/// How long replicas may be silent before they count as gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Any replica, at least.
    pub replace_after: Duration,
    /// A replica that is to be brought to life, at least; then it makes room for one on another peer.
    pub bring_up: Duration,
    /// A replica that is filled by a snapshot, at least: it writes all its rows anew.
    pub installing: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { replace_after: seconds(60), bring_up: seconds(30), installing: seconds(300) }
    }
}

/// What a leader knows of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signs {
    /// It is the leader itself.
    pub leads: bool,
    /// Whether it votes.
    pub role: Role,
    /// For how long it said nothing, while this leader knew it.
    pub silent: Duration,
    /// The last index that it is known to have; 0: nothing is known.
    pub matched: u64,
    /// It is being filled by a snapshot.
    pub snapshot: bool,
    /// Its peer does not hold it any more.
    pub lost: bool,
}

impl Signs {
    /// How the replica is, in a group that is committed up to an index.
    pub fn condition(&self, committed: u64, patience: &Patience) -> Condition {
        let Self { leads, role, silent, matched, snapshot, lost } = *self;
        if leads {
            return Condition::Well;
        }
        let Patience { replace_after, bring_up, installing } = *patience;
        let limit = match (role, snapshot) {
            (_, true) => replace_after.max(installing),
            // what it has is not missed, so it gets the time that it takes to come to life
            (Role::Learner, false) => replace_after.max(bring_up),
            (Role::Voter, false) => replace_after,
        };
        let unborn = role == Role::Learner && matched == 0 && !snapshot;
        if lost {
            Condition::Lost
        } else if silent >= (if unborn { bring_up } else { limit }) {
            // one that was just agreed on is silent until its peer has made it
            Condition::Gone
        } else if unborn {
            Condition::New
        } else if silent >= SILENT || (role == Role::Voter && matched == 0 && !snapshot) {
            // of a voter that has yet to answer a leader that has just begun, nobody knows whether it is there
            Condition::Silent
        } else if matched > 0 && matched + CAUGHT_UP >= committed && !snapshot {
            Condition::Well
        } else {
            Condition::Behind
        }
    }
}

/// What a group's leader knows of the peers around it.
#[derive(Debug, Clone, PartialEq)]
pub struct Surroundings<'a> {
    /// The leader's replica.
    pub leader: u64,
    /// The group's replicas.
    pub members: &'a [Member],
    /// Peers that were heard of lately, the leader's own among them.
    pub live: Vec<Candidate>,
    /// Peers on which a replica could not be brought to life a while ago.
    pub avoided: BTreeSet<PeerId>,
}

impl Surroundings<'_> {
    /// The peers that should hold the replicas of the group with this seed. `told` is the last that was heard of a peer
    /// that is not live.
    pub fn target(
        self,
        seed: u64,
        wanted: usize,
        objective: &Objective,
        told: impl Fn(PeerId) -> Option<Candidate>,
    ) -> Vec<PeerId> {
        let Self { leader, members, live: mut candidates, avoided } = self;
        let gone = |peer: PeerId| members.iter().any(|m| m.peer == peer && m.condition == Condition::Gone);
        candidates.retain(|candidate| !gone(candidate.peer));
        let others = candidates.iter().filter(|candidate| !avoided.contains(&candidate.peer)).count();
        if others >= wanted {
            // where there is nobody else, it is tried again
            candidates.retain(|candidate| !avoided.contains(&candidate.peer));
        }
        let mut held: Vec<&Member> = members.iter().filter(|member| member.condition != Condition::Gone).collect();
        // a replica that talks is there, whatever its peer's description is
        for member in &held {
            if !candidates.iter().any(|candidate| candidate.peer == member.peer) {
                candidates.push(told(member.peer).unwrap_or_else(|| unknown(member.peer, objective)));
            }
        }
        held.sort_by_key(|member| {
            (member.id != leader, member.condition == Condition::Lost, member.role == Role::Learner, member.id)
        });
        let held: Vec<PeerId> = held.into_iter().map(|member| member.peer).collect();
        choose(seed, wanted, &held, objective, &candidates)
    }
}

/// What is assumed of a peer whose description nobody has told: that it is as it should be.
fn unknown(peer: PeerId, objective: &Objective) -> Candidate {
    Candidate {
        peer,
        tier: objective.tier.unwrap_or(Tier::Edge),
        site: peer.to_string(),
        cpus: 0,
        memory: 0,
        replicas: 0,
        labels: objective.labels.clone(),
        draining: false,
        coordinate: None,
    }
}

#[cfg(test)]
mod tests;
