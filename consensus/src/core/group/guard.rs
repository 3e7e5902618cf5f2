//! Which messages reach raft-rs. It answers what its own replicas would never send by panicking, and a replica must not
//! fall to whatever a peer sends; so what it takes for granted is looked at here first, and what does not fit is dropped.
//!
//! Some of it is more than malformed. A heartbeat's commit index is never beyond what this replica has acknowledged in the
//! leader's term, so when it is beyond the end of the log, the disk has forgotten: entries, and who knows which votes. Such
//! a replica falls silent for good ([`Output::Forgotten`]). So that a leader does not fill it up unnoticed in the meantime,
//! a leader drops a rejection that points behind what the follower has acknowledged: from an honest one it is a late
//! duplicate.

use raft::eraftpb::{ConfState, Message, MessageType, Snapshot};
use raft::{Progress, StateRole};

use super::{Group, Output};
use crate::core::log::LogReader;

/// Terms and indexes above this are nonsense: at a million a second it is reached in 146,000 years. Below it, nothing
/// overflows.
const MAX_NUMBER: u64 = 1 << 62;

/// What is to be done with a message.
enum Verdict {
    Step,
    Drop,
    Forgotten,
    Contradicted(u64),
}

impl<L: LogReader> Group<L> {
    /// Takes a message of another replica.
    pub(super) fn hear(&mut self, mut message: Message) {
        // priorities are not used; a negative one would keep a vote from being answered
        message.priority = 0;
        message.deprecated_priority = 0;
        let from = message.from;
        if message.to != self.seed.replica || from == self.seed.replica || !is_sound(&message) {
            return;
        }
        self.heard(from);
        match self.verdict(&message) {
            Verdict::Step => {
                if self.hollow && message.msg_type == MessageType::MsgSnapshot {
                    // what the log has of it would do for raft-rs; the rows need all of it
                    let last = self.raw.raft.raft_log.last_index();
                    self.raw.raft.pending_request_snapshot = last;
                }
                if message.msg_type == MessageType::MsgHeartbeatResponse && message.term == self.raw.raft.term {
                    self.notice_filled(from, message.commit);
                }
                #[cfg(feature = "mutants")]
                self.truncate_matching(&message);
                let asks = message.msg_type == MessageType::MsgRequestPreVote;
                // an answer of a replica that was removed, say: raft-rs says so, nothing is lost
                let _ = self.raw.step(message);
                if asks {
                    self.make_way(from);
                }
            }
            Verdict::Drop => {}
            Verdict::Forgotten => {
                let last = self.raw.raft.raft_log.last_index();
                self.forget();
                self.outputs.push(Output::Forgotten { leader: from, acknowledged: message.commit, last });
            }
            Verdict::Contradicted(index) => self.outputs.push(Output::Contradicted { from, index }),
        }
    }

    /// A deliberate bug: entries that are there already are appended again, and what is behind them goes.
    #[cfg(feature = "mutants")]
    fn truncate_matching(&mut self, message: &Message) {
        let raft = &mut self.raw.raft;
        let known = message.entries.last().is_some_and(|last| raft.raft_log.match_term(last.index, last.term));
        let follows =
            message.term == raft.term && raft.state != StateRole::Leader && message.index >= raft.raft_log.committed;
        if known && follows && crate::mutants::is(crate::mutants::Mutant::TruncatesMatching) {
            raft.raft_log.append(&message.entries);
            raft.raft_log.persisted = raft.raft_log.persisted.min(message.index);
        }
    }

    fn verdict(&self, message: &Message) -> Verdict {
        let raft = &self.raw.raft;
        let log = &raft.raft_log;
        if self.raw.snap().is_some() {
            // it is installed alone, first
            return Verdict::Drop;
        }
        let current = message.term >= raft.term;
        let answered = message.term == raft.term && raft.state == StateRole::Leader;
        let differs = |index: u64, term: u64| index == log.committed && log.term(index).is_ok_and(|own| own != term);
        match message.msg_type {
            MessageType::MsgHeartbeat if current && message.commit > log.last_index() => Verdict::Forgotten,
            MessageType::MsgAppend if current && differs(message.index, message.log_term) => {
                Verdict::Contradicted(message.index)
            }
            MessageType::MsgSnapshot if current => {
                let metadata = message.get_snapshot().get_metadata();
                if differs(metadata.index, metadata.term) {
                    Verdict::Contradicted(metadata.index)
                } else if self.hollow && metadata.index < log.last_index() {
                    // it would take away entries that were acknowledged
                    Verdict::Drop
                } else {
                    Verdict::Step
                }
            }
            MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse if answered => {
                let beyond = message.index.max(message.request_snapshot) > log.last_index();
                let behind = |progress: &Progress| {
                    message.reject && message.request_snapshot == 0 && message.reject_hint < progress.matched
                };
                if beyond || raft.prs().get(message.from).is_some_and(behind) { Verdict::Drop } else { Verdict::Step }
            }
            MessageType::MsgTimeoutNow if !self.may_stand() => Verdict::Drop,
            MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse if !self.is_settled() => {
                Verdict::Drop
            }
            _ => Verdict::Step,
        }
    }

    /// Whether all of the log is on disk. raft-rs relies on it when it stands for election, and when it wins one.
    fn is_settled(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        self.raw.snap().is_none() && log.persisted == log.last_index()
    }

    fn may_stand(&self) -> bool {
        !self.hollow && self.raw.raft.promotable() && self.is_settled()
    }

    pub(super) fn tick(&mut self) {
        let patience = self.patience();
        let may_stand = self.may_stand();
        let raft = &mut self.raw.raft;
        #[cfg(feature = "mutants")]
        if raft.term > 0 && crate::mutants::is(crate::mutants::Mutant::GivesUpStanding) {
            raft.election_elapsed = 0;
        }
        let stands = raft.state != StateRole::Leader && raft.election_elapsed + 1 >= patience && raft.promotable();
        if stands && !may_stand {
            // time goes on all the same: it is what lets others stand
            raft.election_elapsed = raft.election_elapsed.saturating_add(1);
        } else {
            if stands {
                // this tick is the one that raft-rs waits for
                raft.election_elapsed = raft.randomized_election_timeout();
            }
            self.raw.tick();
        }
        if self.hollow {
            self.ask_to_be_filled();
        }
        self.tick_followers();
    }

    pub(super) fn campaign(&mut self) {
        if self.may_stand() {
            // it is refused while a change of the configuration waits to be applied
            let _ = self.raw.campaign();
        }
    }

    /// What this replica holds of its log can't be trusted, or not be read: it takes no part from now on, and its group
    /// replaces it.
    pub fn give_up(&mut self) {
        self.forget();
    }

    /// Whether the group can't go on without this replica: the voters beside it are no majority.
    pub fn is_needed(&self) -> bool {
        super::is_needed(&self.configuration, self.seed.replica)
    }

    fn forget(&mut self) {
        self.forgotten = true;
        self.after.clear();
        self.notice_role();
        // nothing of this turn may be said any more, but requests are answered
        self.outputs.retain(|output| matches!(output, Output::Reply(..)));
        let appends = std::mem::take(&mut self.appends);
        let refused = appends.into_iter().map(|(ticket, _)| ticket).collect();
        self.answer(refused, Err(super::Refused::NotLeader));
    }
}

/// Whether a message is of a kind that replicas send, and its numbers fit each other.
fn is_sound(message: &Message) -> bool {
    let numbers = [
        message.term,
        message.index,
        message.log_term,
        message.commit,
        message.commit_term,
        message.reject_hint,
        message.request_snapshot,
    ];
    if message.from == 0 || message.term == 0 || numbers.iter().any(|number| *number > MAX_NUMBER) {
        return false;
    }
    match message.msg_type {
        MessageType::MsgAppend => are_consecutive(message),
        MessageType::MsgSnapshot => is_whole(message.get_snapshot(), message.term),
        MessageType::MsgAppendResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgTimeoutNow
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse => message.entries.is_empty(),
        _ => false,
    }
}

/// Whether a message's entries follow on from each other and from the one before them.
fn are_consecutive(message: &Message) -> bool {
    if (message.index == 0) != (message.log_term == 0) || message.log_term > message.term {
        return false;
    }
    let (mut index, mut term) = (message.index, message.log_term.max(1));
    message.entries.iter().all(|entry| {
        let fits = entry.index == index + 1 && entry.term >= term && entry.term <= message.term;
        (index, term) = (entry.index, entry.term);
        fits && index <= MAX_NUMBER
    })
}

/// Whether a snapshot names an entry and a configuration that Raft can have.
fn is_whole(snapshot: &Snapshot, term: u64) -> bool {
    let metadata = snapshot.get_metadata();
    (1..=MAX_NUMBER).contains(&metadata.index)
        && (1..=term).contains(&metadata.term)
        && is_configuration(metadata.get_conf_state())
}

/// Whether Raft can come to a configuration: somebody votes, nobody is two things at once, and what waits for the end of
/// a joint configuration waits in one.
pub(super) fn is_configuration(state: &ConfState) -> bool {
    let set = |ids: &[u64]| -> Option<std::collections::BTreeSet<u64>> {
        let set: std::collections::BTreeSet<u64> = ids.iter().copied().collect();
        (set.len() == ids.len() && !set.contains(&0)).then_some(set)
    };
    let sets = (set(&state.voters), set(&state.learners), set(&state.voters_outgoing), set(&state.learners_next));
    let (Some(voters), Some(learners), Some(outgoing), Some(next)) = sets else { return false };
    !voters.is_empty()
        && learners.is_disjoint(&voters)
        && learners.is_disjoint(&outgoing)
        && next.is_subset(&outgoing)
        && next.is_disjoint(&voters)
        && (!outgoing.is_empty() || !state.auto_leave)
}
