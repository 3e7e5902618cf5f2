#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::*;

mod sim;

fn peer(n: u8) -> PeerId {
    PeerId::from_public_key([n; 32])
}

/// A voter per number, on the peer of that number; the first leads, and all have the log.
fn voters(ids: &[u64], target: &[u8]) -> Standing {
    let member = |id: &u64| Member {
        id: *id,
        peer: peer(u8::try_from(*id).unwrap()),
        role: Role::Voter,
        condition: Condition::Well,
    };
    Standing {
        members: ids.iter().map(member).collect(),
        joint: false,
        leader: ids[0],
        wanted: target.len(),
        target: target.iter().map(|n| peer(*n)).collect(),
    }
}

fn with(mut standing: Standing, id: u64, role: Role, condition: Condition) -> Standing {
    let member = Member { id, peer: peer(u8::try_from(id).unwrap()), role, condition };
    standing.members.retain(|member| member.id != id);
    standing.members.push(member);
    standing
}

fn change(promote: &[u64], remove: &[u64]) -> Step {
    Step::Change { promote: promote.to_vec(), remove: remove.to_vec() }
}

#[test]
fn a_group_grows() {
    let one = voters(&[1], &[1, 2, 3]);
    assert_eq!(next_step(&one), Step::AddLearner(peer(2)));
    let learns = |condition| with(one.clone(), 2, Role::Learner, condition);
    assert_eq!(next_step(&learns(Condition::New)), Step::Create(2));
    assert_eq!(next_step(&learns(Condition::Behind)), Step::Wait(Wait::CatchUp(2)));
    assert_eq!(next_step(&learns(Condition::Well)), change(&[2], &[]));
    assert_eq!(next_step(&learns(Condition::Gone)), Step::RemoveLearner(2));
    assert_eq!(next_step(&learns(Condition::Lost)), Step::RemoveLearner(2));
    assert_eq!(next_step(&voters(&[1, 2], &[1, 2, 3])), Step::AddLearner(peer(3)));
    assert_eq!(next_step(&voters(&[1, 2, 3], &[1, 2, 3])), Step::Done);
    let joint = Standing { joint: true, ..one };
    assert_eq!(next_step(&joint), Step::Wait(Wait::Joint));
}

#[test]
fn what_is_gone_is_replaced_in_one_change() {
    let gone = with(voters(&[1, 2, 3], &[1, 2, 4]), 3, Role::Voter, Condition::Gone);
    assert_eq!(next_step(&gone), Step::AddLearner(peer(4)));
    let filled = with(gone.clone(), 4, Role::Learner, Condition::Well);
    assert_eq!(next_step(&filled), change(&[4], &[3]));
    // without a place to go it is kept: it may come back, and the majority would be no smaller without it
    let nowhere = Standing { wanted: 3, target: vec![peer(1), peer(2)], ..gone.clone() };
    assert_eq!(next_step(&nowhere), Step::Done);
    // of four it would
    let four = with(voters(&[1, 2, 3, 4], &[1, 2, 3]), 4, Role::Voter, Condition::Gone);
    assert_eq!(next_step(&Standing { wanted: 4, ..four }), change(&[], &[4]));
    // and of five, both at once
    let five = with(voters(&[1, 2, 3, 4, 5], &[1, 2, 3]), 4, Role::Voter, Condition::Gone);
    let five = Standing { wanted: 5, ..with(five, 5, Role::Voter, Condition::Gone) };
    assert_eq!(next_step(&five), change(&[], &[4, 5]));
    // a majority that is gone can't be replaced by anybody
    let most = with(gone, 2, Role::Voter, Condition::Gone);
    assert_eq!(next_step(&most), Step::Wait(Wait::Majority));
}

#[test]
fn what_is_lost_goes_first_and_comes_back_under_a_new_id() {
    let lost = with(voters(&[1, 2, 3], &[1, 2, 3]), 3, Role::Voter, Condition::Lost);
    assert_eq!(next_step(&lost), change(&[], &[3]));
    assert_eq!(next_step(&voters(&[1, 2], &[1, 2, 3])), Step::AddLearner(peer(3)));
    // of two it can't go: the other alone is no majority
    let two = with(voters(&[1, 2], &[1, 2]), 2, Role::Voter, Condition::Lost);
    assert_eq!(next_step(&two), Step::Wait(Wait::Majority));
}

#[test]
fn a_group_shrinks_and_the_leader_goes_last() {
    assert_eq!(next_step(&voters(&[1, 2, 3], &[1])), change(&[], &[2]));
    assert_eq!(next_step(&voters(&[1, 3], &[1])), change(&[], &[3]));
    // one that is gone before one that is live
    let gone = with(voters(&[1, 2, 3], &[1]), 3, Role::Voter, Condition::Gone);
    assert_eq!(next_step(&gone), change(&[], &[3]));
    // a live one stays as long as it is needed for a majority, even a leader that should go
    let silent = with(voters(&[1, 2, 3], &[1, 3]), 3, Role::Voter, Condition::Silent);
    assert_eq!(next_step(&silent), Step::Wait(Wait::Majority));
    assert_eq!(next_step(&with(voters(&[1, 2, 3], &[1, 2]), 3, Role::Voter, Condition::Silent)), change(&[], &[3]));
    // a leader that should go hands over
    assert_eq!(next_step(&voters(&[1, 2, 3], &[2, 3])), Step::Transfer(2));
    assert_eq!(next_step(&voters(&[1, 2, 3], &[2])), change(&[], &[3]));
    let behind = with(voters(&[1, 2], &[2]), 2, Role::Voter, Condition::Behind);
    assert_eq!(next_step(&behind), Step::Wait(Wait::CatchUp(2)));
    assert_eq!(next_step(&voters(&[1], &[])), Step::Wait(Wait::Successor));
}

#[test]
fn a_group_moves() {
    // the only replica: the newcomer votes first, then leads, then the old one goes
    let one = with(voters(&[1], &[2]), 2, Role::Learner, Condition::Well);
    assert_eq!(next_step(&one), change(&[2], &[]));
    assert_eq!(next_step(&voters(&[1, 2], &[2])), Step::Transfer(2));
    assert_eq!(next_step(&voters(&[2, 1], &[2])), change(&[], &[1]));
    // three: the leader is the last to go, and hands over once
    let three = |ids: &[u64], learner| with(voters(ids, &[4, 5, 6]), learner, Role::Learner, Condition::Well);
    assert_eq!(next_step(&three(&[1, 2, 3], 4)), change(&[4], &[2]));
    assert_eq!(next_step(&three(&[1, 3, 4], 5)), change(&[5], &[3]));
    assert_eq!(next_step(&three(&[1, 4, 5], 6)), Step::Transfer(4));
    assert_eq!(next_step(&three(&[4, 1, 5], 6)), change(&[6], &[1]));
    // a learner that nobody wants any more goes before another comes
    let turned = with(voters(&[1], &[1, 3]), 2, Role::Learner, Condition::Behind);
    assert_eq!(next_step(&turned), Step::RemoveLearner(2));
}
