//! When a replica stands for election.
//!
//! With check-quorum, a replica grants nothing until its leader has been silent for an election's time. The first of the
//! survivors stands a tick after that, so that it finds the others ready, and each further one gives those before it the
//! time for an election on a near network. Who comes first is said by the order of the ids, not by chance: nobody stands
//! in step with another, and a simulation replays.
//!
//! What is repeated early is only what does no harm. A pre-vote changes nothing with those who grant it, so one that came
//! to nothing (the others were not ready yet) is asked for again soon. So is one after an election that was lost. A
//! candidate waits for the votes as long as for a leader: on a slow network they take their time.
//!
//! Two may stand at a time all the same, when a machine is busy. So a replica that has just granted a pre-vote holds its
//! own back for a step. It does not take it back: the other may be in reach of too few.

use canal_proto::limits::MAX_REPLICAS;
use raft::eraftpb::MessageType;
use raft::{INVALID_ID, StateRole};

use super::Group;
use crate::core::log::LogReader;
use crate::core::rows::Configuration;

/// Ticks between the timeouts of two replicas of neighbouring rank: two rounds of votes, with their synced writes, on a
/// near network and a busy machine.
const STEP: usize = 3;
/// Ranks that are told apart.
const RANKS: usize = MAX_REPLICAS;

/// The longest patience for a leader. raft-rs is told to wait for so long, and then it is never the one that decides.
pub(super) fn longest(election: usize) -> usize {
    election + 1 + STEP * (RANKS - 1)
}

/// How many voters have the right to stand before this one, now that `leader` (0: unknown) is silent.
fn rank(configuration: &Configuration, own: u64, leader: u64) -> usize {
    let before = |id: &&u64| **id < own && **id != leader;
    let added = configuration.voters.iter().filter(|id| !configuration.voters_outgoing.contains(id));
    configuration.voters_outgoing.iter().chain(added).filter(before).count().min(RANKS - 1)
}

/// What a replica waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// A word of its leader, votes, or that somebody else stands.
    ForLeader,
    /// Pre-votes.
    ForPreVotes,
    /// Its next chance: its candidacy was turned down.
    Lost,
}

/// After how many ticks a replica stands.
fn patience(election: usize, waits: Waits, rank: usize) -> usize {
    match waits {
        Waits::ForLeader => election + 1 + STEP * rank,
        Waits::ForPreVotes => STEP + rank,
        Waits::Lost => STEP * (rank + 1),
    }
}

/// The ticks of silence that a replica counts at most when it has granted a pre-vote: a step less than lets it stand, but no
/// less than `lease`, for which it grants nothing because of the leader that it knows (0: it knows none). It would refuse the
/// vote that follows; and a learner that has yet to hear that it votes, which never stands itself, would do so for ever.
fn latest_while_making_way(patience: usize, lease: usize) -> usize {
    patience.saturating_sub(STEP).max(lease)
}

impl<L: LogReader> Group<L> {
    /// The ticks of silence after which this replica stands.
    pub(super) fn patience(&self) -> usize {
        let raft = &self.raw.raft;
        let waits = match raft.state {
            StateRole::PreCandidate => Waits::ForPreVotes,
            StateRole::Follower if raft.leader_id == INVALID_ID && raft.vote == self.seed.replica => Waits::Lost,
            _ => Waits::ForLeader,
        };
        let rank = rank(&self.configuration, self.seed.replica, raft.leader_id);
        patience(raft.election_timeout(), waits, rank)
    }

    /// Holds back a little when another replica was just granted a pre-vote.
    pub(super) fn make_way(&mut self, by: u64) {
        let patience = self.patience();
        let raft = &mut self.raw.raft;
        let lease = if raft.leader_id == INVALID_ID { 0 } else { raft.election_timeout() };
        let latest = latest_while_making_way(patience, lease);
        let granted = raft.msgs.last().is_some_and(|answer| {
            answer.msg_type == MessageType::MsgRequestPreVoteResponse && answer.to == by && !answer.reject
        });
        if granted && raft.state != StateRole::Leader {
            raft.election_elapsed = raft.election_elapsed.min(latest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(voters: &[u64], outgoing: &[u64]) -> Configuration {
        Configuration { voters: voters.to_vec(), voters_outgoing: outgoing.to_vec(), ..Configuration::default() }
    }

    fn ranks(configuration: &Configuration, leader: u64) -> Vec<usize> {
        configuration.voters.iter().map(|id| rank(configuration, *id, leader)).collect()
    }

    #[test]
    fn survivors_come_one_after_the_other_and_the_first_at_once() {
        let group = configuration(&[2, 5, 9], &[]);
        assert_eq!(ranks(&group, 0), [0, 1, 2]);
        assert_eq!(ranks(&group, 2), [0, 0, 1]);
        assert_eq!(ranks(&group, 5), [0, 1, 1]);
        assert_eq!(ranks(&group, 9), [0, 1, 2]);
    }

    #[test]
    fn who_granted_a_pre_vote_waits_but_still_grants_the_vote() {
        let election = 10;
        for rank in 0..RANKS {
            let silent = patience(election, Waits::ForLeader, rank);
            let latest = latest_while_making_way(silent, election);
            assert!((election..silent).contains(&latest), "rank {rank}: {latest} of {silent}");
            let stood = patience(election, Waits::ForPreVotes, rank);
            assert_eq!(latest_while_making_way(stood, 0), stood - STEP);
        }
    }

    #[test]
    fn a_joint_configuration_counts_each_voter_once() {
        assert_eq!(ranks(&configuration(&[2, 7, 8], &[2, 3, 4]), 3), [0, 2, 3]);
    }

    #[test]
    fn the_last_ranks_are_one() {
        let many: Vec<u64> = (1..=30).collect();
        assert_eq!(ranks(&configuration(&many, &[]), 0).into_iter().max(), Some(RANKS - 1));
    }

    #[test]
    fn nobody_stands_while_others_may_not_grant_or_in_step_with_the_next() {
        for rank in 0..RANKS {
            let first = patience(10, Waits::ForLeader, rank);
            assert!(first > 10 && first <= longest(10), "rank {rank}: {first}");
            assert_eq!(patience(10, Waits::ForLeader, rank + 1) - first, STEP);
            assert_eq!(patience(10, Waits::Lost, rank + 1) - patience(10, Waits::Lost, rank), STEP);
            assert_ne!(patience(10, Waits::ForPreVotes, rank), patience(10, Waits::ForPreVotes, rank + 1));
        }
        assert_eq!([patience(10, Waits::ForPreVotes, 0), patience(10, Waits::Lost, 0)], [STEP; 2]);
    }
}
