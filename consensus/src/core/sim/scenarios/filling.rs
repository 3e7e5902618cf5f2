//! Followers that are filled by snapshots, hollow replicas, and disks that have forgotten.

use raft::eraftpb::{Entry, MessageType};

use super::*;
use crate::core::group::Progress;

impl Bench {
    /// Publishes, and lets all but `without` have it.
    fn publish(&mut self, sequences: std::ops::RangeInclusive<u64>, without: usize) {
        for sequence in sequences {
            self.turn(0, vec![Input::Append(1000 + sequence, append(sequence))]);
            self.deliver(|from, to| from != without && to != without);
            assert!(matches!(self.answer(1000 + sequence), Ok(Reply::Appended(_))));
        }
        self.network.retain(|(from, message)| *from != without && message.to as usize - 1 != without);
    }

    /// Cuts a log where its rows are, as far as it may.
    fn cut(&mut self, at: usize) -> u64 {
        let node = &mut self.nodes[at];
        node.state.flush();
        let compact = node.group.as_mut().unwrap().compact(u64::MAX).unwrap();
        node.log.write(Write { compact, sync: true, ..Write::default() }, true);
        node.log.read(|log| log.before())
    }

    /// Whether a snapshot was asked for that is not made yet.
    fn wants(&self, at: usize) -> bool {
        self.frozen.iter().any(|(of, ..)| *of == at)
    }

    /// Makes the snapshot that a replica has asked for.
    fn make(&mut self, at: usize) -> u64 {
        let found = self.frozen.iter().position(|(of, ..)| *of == at).expect("no snapshot was asked for");
        let (_, point, data) = self.frozen.remove(found);
        let index = point.index;
        self.turn(at, vec![Input::SnapshotReady(point, data)]);
        index
    }

    fn begun(&self, at: usize) -> bool {
        self.nodes[at].installing.is_some()
    }

    /// Does what is left of an installation.
    fn install(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let (_, _, install) = node.installing.take().expect("nothing is being installed");
        for step in [Step::Remove, Step::Fill, Step::Finish] {
            node.install(step, &install, SETUP).unwrap();
        }
        let Node { group, state, .. } = node;
        group.as_mut().unwrap().installed(&state.kv).unwrap();
        self.turn(at, Vec::new());
    }

    fn ticks(&mut self, at: usize, ticks: u64) {
        for _ in 0..ticks {
            self.tick(at);
        }
    }

    /// Some heartbeats of the first replica, and what they lead to.
    fn beat(&mut self) {
        for _ in 0..4 {
            self.tick(0);
            self.settle();
        }
    }

    fn lose(&mut self, kind: MessageType) {
        self.network.retain(|(_, message)| message.msg_type != kind);
    }

    fn progress(&self, of: usize) -> Progress {
        self.status(0).progress[&(of as u64 + 1)]
    }

    /// Three replicas; the third lacks what the others have, and cut.
    fn behind() -> Self {
        let mut bench = Self::new(3);
        bench.publish(1..=20, 2);
        assert!(bench.cut(0) > 20);
        bench
    }

    /// As [`Self::behind`], and the third has begun to install the leader's snapshot.
    fn installing() -> Self {
        let mut bench = Self::behind();
        bench.beat();
        bench.make(0);
        bench.beat();
        assert!(bench.begun(2));
        bench
    }
}

#[test]
fn a_follower_that_lacks_what_was_cut_is_filled_and_goes_on_with_the_log() {
    let mut bench = Bench::behind();
    bench.beat();
    let index = bench.make(0);
    assert_eq!(index, bench.status(0).applied);
    assert_eq!(bench.group(0).prepared().map(|point| point.index), Some(index));
    bench.beat();
    assert!(bench.begun(2) && bench.progress(2).snapshot);
    // the log behind the snapshot stays while it is on its way
    bench.publish(21..=30, 2);
    assert_eq!(bench.cut(0), index);
    bench.install(2);
    bench.beat();
    let (one, other) = (bench.status(0), bench.status(2));
    assert_eq!((one.applied, one.configuration, one.spec), (other.applied, other.configuration, other.spec));
    assert_eq!((other.first, other.installing), (index + 1, false));
    assert!(!bench.progress(2).snapshot && bench.progress(2).matched == one.last);
    assert_eq!(super::super::node::common(&bench.nodes[0].state), super::super::node::common(&bench.nodes[2].state));
    // and what came by snapshot counts as much as what came by the log
    bench.lose_power(2);
    assert_eq!(bench.status(2).first, index + 1);
    bench.turn(2, vec![Input::Tick]);
    bench.beat();
    assert_eq!(bench.status(2).applied, one.applied);
}

#[test]
fn nothing_is_said_or_heard_until_a_snapshot_is_installed() {
    let mut bench = Bench::installing();
    let matched = bench.progress(2).matched;
    bench.network.clear();
    bench.beat();
    bench.turn(2, vec![Input::Campaign, Input::Append(1, append(1)), Input::Read(2)]);
    bench.ticks(2, 100);
    assert!(bench.network.iter().all(|(from, _)| *from != 2), "{:?}", bench.network);
    assert_eq!(bench.status(2).term, 1);
    for ticket in [1, 2] {
        let answer = bench.answers.iter().rev().find(|(at, known, _)| (*at, *known) == (2, ticket)).unwrap();
        assert_eq!(answer.2, Err(Refused::NotLeader));
    }
    assert_eq!(bench.progress(2).matched, matched);
    bench.install(2);
    let answers = |(from, m): &&(usize, Message)| *from == 2 && m.msg_type == MessageType::MsgAppendResponse;
    let answer = bench.network.iter().find(answers).map(|(_, m)| (m.index, m.reject));
    assert_eq!(answer, Some((bench.status(2).applied, false)));
}

#[test]
fn a_crash_before_the_end_of_an_installation_does_it_again() {
    let mut bench = Bench::installing();
    let (applied, seed) = (bench.status(0).applied, bench.nodes[2].seed.clone());
    bench.lose_power(2);
    assert_eq!((bench.status(2).applied, bench.status(2).first), (applied, applied + 1));
    assert_eq!(bench.nodes[2].log.read(|log| log.installing.clone()), None);
    assert_eq!(bench.nodes[2].seed, seed);
    // its commit index says that it has the snapshot, so it gets the entries behind it at once
    bench.beat();
    bench.publish(21..=22, 1);
    bench.beat();
    assert_eq!(bench.status(2).applied, bench.status(0).applied);
}

#[test]
fn rows_of_another_index_are_not_taken_for_a_snapshot() {
    let mut bench = Bench::installing();
    let node = &mut bench.nodes[2];
    let (_, _, install) = node.installing.clone().unwrap();
    assert!(node.install(Step::Finish, &install, SETUP).unwrap_err().contains("has rows as of entry 2 of term 1"));
    assert!(node.group.as_mut().unwrap().installed(&node.state.kv).is_err());
}

#[test]
fn a_snapshot_that_is_not_heard_of_is_sent_again() {
    let mut bench = Bench::behind();
    bench.beat();
    bench.make(0);
    let mut sent = 0;
    // it gets lost again and again; the follower answers heartbeats
    for _ in 0..900 {
        bench.tick(0);
        while !bench.network.is_empty() {
            let (from, message) = bench.network.remove(0);
            if message.msg_type == MessageType::MsgSnapshot {
                sent += 1;
            } else {
                bench.turn(message.to as usize - 1, vec![arrives(from, message)]);
            }
        }
    }
    assert!((4..=6).contains(&sent), "{sent} times in 900 ticks");
    // a loss that the sender notices is not waited for
    let index = bench.group(0).prepared().unwrap().index;
    bench.turn(0, vec![Input::SnapshotLost(3)]);
    bench.beat();
    assert!(bench.begun(2));
    bench.install(2);
    bench.beat();
    assert!(bench.status(2).first == index + 1 && bench.progress(2).matched == bench.status(0).last);
}

#[test]
fn a_snapshot_is_made_again_when_it_failed_and_forgotten_when_nobody_needs_it() {
    let mut bench = Bench::behind();
    bench.beat();
    assert!(bench.frozen.len() == 1 && bench.frozen.pop().is_some());
    // nothing is cut while it is made, since it is partly read from the log
    bench.publish(21..=22, 2);
    let before = bench.status(0).first;
    assert_eq!(bench.cut(0), before - 1);
    bench.turn(0, vec![Input::SnapshotFailed]);
    bench.beat();
    let index = bench.make(0);
    assert_eq!(index, bench.status(0).applied);
    // the follower goes silent: the log is held for it no longer than for a while
    bench.publish(23..=24, 2);
    assert_eq!(bench.cut(0), index);
    for _ in 0..1500 {
        bench.tick(0);
        bench.deliver(|from, to| from != 2 && to != 2);
        bench.network.clear();
    }
    assert_eq!(bench.group(0).prepared(), None);
    assert_eq!(bench.cut(0), bench.status(0).applied);
}

#[test]
fn a_learner_that_came_after_a_snapshot_was_made_gets_one_that_names_it() {
    let mut bench = Bench::behind();
    bench.beat();
    let old = bench.make(0);
    bench.turn(0, vec![Input::AddLearner(5, replica(4))]);
    bench.add(3, 4);
    bench.beat();
    assert!(!bench.begun(3), "it would be refused: it says that the learner does not belong to the group");
    assert!(bench.make(0) > old);
    bench.beat();
    assert!(bench.begun(3));
    bench.install(3);
    bench.beat();
    assert_eq!(bench.status(3).applied, bench.status(0).applied);
    assert_eq!(bench.status(3).configuration.learners, [4]);
}

#[test]
fn a_leader_that_can_commit_only_with_the_follower_fills_it() {
    let mut bench = Bench::new(3);
    bench.publish(1..=20, 2);
    bench.cut(0);
    // a new term, and the second is gone: nothing is committed in this term before the third has the log
    bench.lose_power(0);
    bench.ticks(2, 12);
    bench.turn(0, vec![Input::Campaign]);
    bench.deliver(|_, to| to != 1);
    assert_eq!(bench.status(2).leader, 1);
    for _ in 0..60 {
        if bench.begun(2) {
            break;
        }
        bench.tick(0);
        bench.deliver(|_, to| to != 1);
        assert!(!bench.leads(0));
        if bench.wants(0) {
            bench.make(0);
        }
    }
    bench.install(2);
    for _ in 0..4 {
        bench.tick(0);
        bench.deliver(|_, to| to != 1);
    }
    assert!(bench.leads(0) && bench.status(2).applied == bench.status(0).applied);
}

/// The third replica has cut its log, and then loses its rows.
fn hollow() -> Bench {
    let mut bench = Bench::new(3);
    bench.publish(1..=10, 1);
    bench.beat();
    bench.cut(2);
    bench.publish(11..=12, 1);
    bench.beat();
    bench.lose_power(2);
    bench.nodes[2].state.damage(&[]);
    bench.nodes[2].state.flush();
    bench.nodes[2].open(SETUP, 0, &logger()).unwrap();
    assert!(bench.status(2).hollow);
    bench.network.clear();
    bench
}

#[test]
fn a_hollow_replica_votes_and_keeps_entries_but_does_not_stand() {
    let mut bench = hollow();
    bench.ticks(2, 200);
    let timeout = Message { msg_type: MessageType::MsgTimeoutNow, from: 1, to: 3, term: 1, ..Message::default() };
    bench.turn(2, vec![Input::Campaign, arrives(0, timeout)]);
    assert!(bench.network.is_empty() && bench.status(2).term == 1);
    // its log is as good as any, so its vote counts
    bench.lose_power(1);
    bench.ticks(1, 30);
    bench.deliver(|from, to| from != 0 && to != 0);
    assert_eq!((bench.status(1).leader, bench.status(2).leader), (2, 2));
    // and so does its disk
    bench.turn(1, vec![Input::Append(7, append(13))]);
    for _ in 0..4 {
        bench.tick(1);
        bench.deliver(|from, to| from != 0 && to != 0);
    }
    assert!(matches!(bench.answer(7), Ok(Reply::Appended(_))));
    assert!(bench.nodes[2].state.kv.snapshot().is_empty(), "it applied an entry to no rows");
}

#[test]
fn a_hollow_replica_asks_until_it_is_filled() {
    let mut bench = hollow();
    let last = bench.status(2).last;
    for _ in 0..4 {
        bench.tick(2);
        bench.beat();
    }
    assert!(bench.others.iter().any(|(at, o)| *at == 2 && matches!(o, Output::Refill { leader: 1 })));
    // entries go on, and are not lost to it
    bench.publish(13..=14, 2);
    let index = bench.make(0);
    assert!(index >= last);
    for _ in 0..4 {
        bench.tick(2);
        bench.beat();
    }
    assert!(bench.begun(2));
    bench.install(2);
    bench.beat();
    assert!(!bench.status(2).hollow);
    assert_eq!(bench.status(2).applied, bench.status(0).applied);
    assert_eq!(super::super::node::common(&bench.nodes[0].state), super::super::node::common(&bench.nodes[2].state));
}

#[test]
fn a_hollow_replica_does_not_give_up_acknowledged_entries_for_an_older_snapshot() {
    let mut bench = hollow();
    let status = bench.status(2);
    let mut message = Message { msg_type: MessageType::MsgSnapshot, from: 1, to: 3, term: 1, ..Message::default() };
    let metadata = message.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (status.last - 1, 1);
    metadata.mut_conf_state().set_voters(vec![1, 2, 3]);
    bench.turn(2, vec![arrives(0, message)]);
    assert!(!bench.begun(2));
    assert_eq!(bench.status(2).last, status.last);
}

/// The third replica has acknowledged entries, and its disk goes back to a time before.
fn forgetful() -> Bench {
    let mut bench = Bench::new(3);
    bench.publish(1..=5, 1);
    let seed = bench.nodes[2].seed.clone();
    bench.nodes[2] = Node { seed, ..Node::default() };
    bench.nodes[2].open(SETUP, 0, &logger()).unwrap();
    bench.network.clear();
    bench
}

#[test]
fn a_replica_whose_disk_has_forgotten_falls_silent_for_good() {
    let mut bench = forgetful();
    bench.turn(2, vec![Input::Append(5, append(1))]);
    bench.beat();
    let told = bench.others.iter().find_map(|(at, output)| match output {
        Output::Forgotten { leader, acknowledged, last } => Some((*at, *leader, *acknowledged, *last)),
        _ => None,
    });
    assert_eq!(told, Some((2, 1, bench.status(0).committed, 0)));
    assert!(bench.status(2).forgotten);
    bench.network.clear();
    // it does not vote, it does not take entries, it does not stand
    let vote = Message { msg_type: MessageType::MsgRequestVote, from: 2, to: 3, term: 9, ..Message::default() };
    let vote = Message { index: 50, log_term: 9, ..vote };
    bench.turn(2, vec![arrives(1, vote), Input::Campaign]);
    bench.ticks(2, 100);
    bench.beat();
    assert!(bench.network.is_empty() && !bench.group(2).has_work());
    assert_eq!((bench.status(2).term, bench.status(2).last), (0, 0));
}

#[test]
fn a_leader_does_not_fill_up_a_replica_that_forgot_before_it_is_noticed() {
    let mut bench = forgetful();
    // the next publish reaches it before any heartbeat, and it says that it lacks what comes before
    bench.turn(0, vec![Input::Append(6, append(6))]);
    for _ in 0..10 {
        bench.lose(MessageType::MsgHeartbeat);
        bench.deliver(|_, to| to != 1);
    }
    assert_eq!(bench.status(2).last, 0, "nobody would ever know that it forgot");
    bench.beat();
    assert!(bench.status(2).forgotten);
}

#[test]
fn what_contradicts_committed_entries_is_dropped_and_told() {
    let mut bench = Bench::new(3);
    bench.publish(1..=3, 2);
    bench.beat();
    let status = bench.status(2);
    let mut append = Message { msg_type: MessageType::MsgAppend, from: 2, to: 3, term: 5, ..Message::default() };
    (append.index, append.log_term) = (status.committed, 4);
    append.set_entries(vec![Entry { index: status.committed + 1, term: 5, ..Entry::default() }].into());
    bench.turn(2, vec![arrives(1, append)]);
    assert!(bench.others.iter().any(|(at, o)| *at == 2 && matches!(o, Output::Contradicted { from: 2, .. })));
    assert_eq!(bench.status(2).last, status.last);
}
