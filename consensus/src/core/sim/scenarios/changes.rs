//! Replicas that come and go: what is refused, what is one change, and who ends it when a leader dies in between.

use super::*;
use crate::core::group::ChangeSet;

impl Bench {
    /// Three voters, and a fourth replica that learns and has everything.
    fn with_learner() -> Self {
        let mut bench = Self::new(3);
        bench.turn(0, vec![Input::AddLearner(2, replica(4))]);
        bench.add(3, 4);
        bench.heartbeats(0);
        assert_eq!(bench.answer(2), Ok(Reply::Done));
        assert_eq!(bench.status(3).applied, bench.status(0).applied);
        bench
    }

    fn heartbeats(&mut self, at: usize) {
        for _ in 0..6 {
            self.tick(at);
            self.settle();
        }
    }

    fn change(&mut self, ticket: Ticket, promote: &[u64], remove: &[u64]) {
        let change = ChangeSet { promote: promote.to_vec(), remove: remove.to_vec() };
        self.turn(0, vec![Input::Change(ticket, change)]);
    }

    fn members(&self, at: usize) -> (Vec<u64>, Vec<u64>, Vec<u64>) {
        let configuration = self.status(at).configuration;
        let held = configuration.replicas.iter().map(|replica| replica.id).collect();
        (configuration.voters.clone(), configuration.learners.clone(), held)
    }
}

#[test]
fn a_learner_takes_the_place_of_a_voter_in_one_change() {
    let mut bench = Bench::with_learner();
    bench.change(3, &[4], &[2]);
    // the second hears nothing of it: both majorities come without it
    bench.deliver(|from, to| from != 1 && to != 1);
    assert_eq!(bench.answer(3), Ok(Reply::Done));
    for _ in 0..3 {
        bench.tick(0);
        bench.deliver(|from, to| from != 1 && to != 1);
    }
    assert!(!bench.status(0).joint, "Raft leaves the joint configuration by itself");
    assert_eq!(bench.members(0), (vec![1, 3, 4], vec![], vec![1, 3, 4]));
    for at in [0, 2, 3] {
        bench.heartbeats(0);
        let (one, other) = (bench.status(at), bench.status(0));
        assert_eq!(one.configuration, other.configuration);
        assert_eq!(one.epoch, one.configuration.index.max(other.epoch));
    }
    // ids are not used again, also when the last one is gone
    bench.change(4, &[], &[4]);
    bench.settle();
    bench.turn(0, vec![Input::AddLearner(5, replica(9))]);
    bench.heartbeats(0);
    assert_eq!(bench.members(0).1, [5]);
}

#[test]
fn voters_and_learners_can_go_alone() {
    let mut bench = Bench::with_learner();
    bench.change(3, &[], &[4]);
    bench.settle();
    assert_eq!((bench.answer(3), bench.members(0).2), (Ok(Reply::Done), vec![1, 2, 3]));
    bench.change(4, &[], &[3]);
    bench.settle();
    assert_eq!((bench.answer(4), bench.members(0).0), (Ok(Reply::Done), vec![1, 2]));
    bench.change(5, &[], &[2]);
    bench.settle();
    assert_eq!((bench.answer(5), bench.members(0).0), (Ok(Reply::Done), vec![1]));
    assert!(bench.leads(0));
    bench.turn(0, vec![Input::Append(6, append(1))]);
    assert!(matches!(bench.answer(6), Ok(Reply::Appended(_))));
}

#[test]
fn changes_that_make_no_sense_are_refused() {
    let mut bench = Bench::with_learner();
    let cases: [(&[u64], &[u64], &str); 8] = [
        (&[], &[], "at least one"),
        (&[4], &[4], "once"),
        (&[], &[2, 2], "once"),
        (&[2], &[], "no such learner"),
        (&[9], &[], "no such learner"),
        (&[], &[9], "no such replica"),
        (&[], &[1], "hand leadership over first"),
        (&[4], &[1, 2, 3], "hand leadership over first"),
    ];
    for (ticket, (promote, remove, why)) in (10..).zip(cases) {
        bench.change(ticket, promote, remove);
        let answer = bench.answer(ticket);
        assert!(matches!(&answer, Err(Refused::Configuration(text)) if text.contains(why)), "{answer:?}");
    }
    // one at a time, also while the first is not applied or only half done
    bench.change(20, &[4], &[2]);
    bench.change(21, &[], &[3]);
    assert!(matches!(bench.answer(21), Err(Refused::Configuration(text)) if text.contains("under way")));
    bench.turn(1, vec![Input::Change(22, ChangeSet { promote: vec![4], remove: vec![] })]);
    assert_eq!(bench.answer(22), Err(Refused::NotLeader));
    bench.settle();
    assert_eq!(bench.members(0).0, [1, 3, 4]);
}

#[test]
fn a_group_holds_no_more_replicas_than_it_may() {
    let mut bench = Bench::new(1);
    for id in 2..=40 {
        bench.turn(0, vec![Input::AddLearner(id, replica(id))]);
        bench.network.clear();
    }
    assert_eq!(bench.members(0).2.len(), 18);
    assert!(matches!(bench.answer(40), Err(Refused::Configuration(text)) if text.contains("remove one first")));
    assert!(matches!(bench.answer(18), Ok(Reply::Done)));
}

#[test]
fn the_next_leader_leaves_the_joint_configuration_that_the_last_one_entered() {
    let mut bench = Bench::with_learner();
    bench.change(3, &[4], &[2]);
    // the entry gets everywhere, and is committed; that the joint configuration is left is said to nobody
    bench.deliver(|from, _| from == 0);
    bench.deliver(|_, to| to == 0);
    assert!(bench.status(0).joint);
    let entered = bench.status(0).last;
    bench.network.retain(|(from, message)| *from != 0 || message.entries.iter().all(|e| e.index < entered));
    bench.lose_power(0);
    bench.network.clear();
    // its peer stays dead; the others need both majorities
    for _ in 0..60 {
        (1..4).for_each(|at| bench.tick(at));
        bench.deliver(|from, to| from != 0 && to != 0);
    }
    let leader = (1..4).find(|at| bench.leads(*at)).expect("two of {1, 3, 4} and two of {1, 2, 3} are there");
    assert!(!bench.status(leader).joint);
    assert_eq!(bench.members(leader).0, [1, 3, 4]);
    for at in (2..4).filter(|at| *at != leader) {
        assert_eq!(bench.status(at).configuration, bench.status(leader).configuration);
    }
}

#[test]
fn a_leader_that_applies_its_own_removal_steps_down() {
    let mut bench = Bench::new(3);
    bench.change(3, &[], &[2]);
    // only the second has the entry: it is not committed
    bench.deliver(|from, to| from == 0 && to == 1);
    assert_eq!(bench.status(1).last, bench.status(0).last);
    bench.network.clear();
    bench.turn(1, vec![Input::Campaign]);
    bench.deliver(|from, to| from != 0 && to != 0);
    for _ in 0..40 {
        bench.tick(1);
        bench.tick(2);
        bench.deliver(|from, to| from != 0 && to != 0);
    }
    assert!(!bench.leads(1) && bench.members(1).0 == [1, 3]);
    let before = bench.status(1).term;
    for _ in 0..200 {
        bench.tick(1);
    }
    bench.turn(1, vec![Input::Campaign]);
    assert_eq!(bench.status(1).term, before, "it does not belong to the group any more");
    // the rest goes on
    for _ in 0..80 {
        bench.tick(0);
        bench.tick(2);
        bench.settle();
    }
    assert!(bench.leads(0) || bench.leads(2));
}

#[test]
fn leadership_is_handed_to_voters_only() {
    let mut bench = Bench::with_learner();
    bench.turn(0, vec![Input::Transfer(4), Input::Transfer(9), Input::Transfer(1)]);
    bench.turn(0, vec![Input::Append(5, append(1))]);
    bench.settle();
    assert!(matches!(bench.answer(5), Ok(Reply::Appended(_))), "it waits for nobody");
    bench.turn(0, vec![Input::Transfer(3)]);
    bench.settle();
    assert!(bench.leads(2) && !bench.leads(0));
}
