#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;

use canal_proto::log::GroupSpec;

use super::*;
use crate::sim::rooms::{gossip, testing::World};

/// A group that is led by its replica 1 on peer 0, and of whose peers all were heard of.
fn begin(replicas: &[u64], wanted: u32) -> (World, Place, Room) {
    let mut world = World::new();
    let place = world.place(0);
    world.here.lead(1, 1, replicas);
    world.here.status.spec = Arc::new(GroupSpec { replicas: wanted, version: 1, ..GroupSpec::default() });
    let room = Room::new(&place);
    hear(&mut world, &place, &[0, 1, 2, 3, 4]);
    (world, place, room)
}

fn hear(world: &mut World, place: &Place, peers: &[Machine]) {
    for peer in peers {
        let info = gossip::describe(*peer, &world.identities, 1, false);
        place.known.borrow_mut().hear(*peer, info, world.mono);
    }
}

#[test]
fn a_group_grows_by_a_learner_that_is_created_and_then_votes() {
    let (mut world, place, mut room) = begin(&[1], 3);
    room.wake(&mut world);
    let (token, Input::AddLearner(_, learner)) = world.here.requested.remove(0) else { panic!("another request") };
    let peer = world.identities.holder(&learner).unwrap();
    assert!(peer != 0);
    room.wake(&mut world);
    assert!(world.here.requested.is_empty(), "one step at a time");
    world.here.learner(2, peer, 0);
    room.proposed(token, Ok(Reply::Done), &mut world);
    world.pass(GO_ON_MS);
    room.wake(&mut world);
    let (token, to, Ask::Create(seed)) = world.asks.remove(0) else { panic!("something else is asked") };
    assert_eq!((to, seed.replica), (peer, 2));
    room.answered(token, Ok(Answer::Yes), &mut world);
    world.here.learner(2, peer, world.here.status.committed);
    world.pass(GO_ON_MS);
    room.wake(&mut world);
    let (_, Input::Change(_, set)) = world.here.requested.remove(0) else { panic!("another request") };
    assert_eq!(set, ChangeSet { promote: vec![2], remove: Vec::new() });
    // nobody says what became of it
    world.pass(CHANGE_MS);
    hear(&mut world, &place, &[0, 1, 2, 3, 4]);
    room.wake(&mut world);
    world.pass(LOOK_MS);
    room.wake(&mut world);
    assert!(matches!(world.here.requested.as_slice(), [(_, Input::Change(..))]));
}

#[test]
fn a_replica_that_its_peer_does_not_hold_is_let_go_at_once_and_told_so() {
    let (mut world, place, mut room) = begin(&[1, 2, 3], 3);
    room.wake(&mut world);
    assert!(world.asks.is_empty() && world.here.requested.is_empty(), "it stands as it should");
    world.pass(3000);
    hear(&mut world, &place, &[0, 1, 2, 3, 4]);
    world.here.silent.insert(3, 3000);
    room.wake(&mut world);
    let (token, to, Ask::Holds(_, 3)) = world.asks.remove(0) else { panic!("something else is asked") };
    assert_eq!(to, 2);
    room.answered(token, Ok(Answer::No), &mut world);
    let (token, Input::Change(_, set)) = world.here.requested.remove(0) else { panic!("another request") };
    assert_eq!(set, ChangeSet { promote: Vec::new(), remove: vec![3] });
    room.proposed(token, Ok(Reply::Done), &mut world);
    let (token, to, Ask::Remove(_, 3)) = world.asks.remove(0) else { panic!("something else is asked") };
    assert_eq!(to, 2);
    room.answered(token, Err(Failed::Silence), &mut world);
    assert!(world.asks.is_empty());
    world.pass(TELL_MS);
    room.wake(&mut world);
    assert!(world.asks.iter().any(|(_, to, ask)| *to == 2 && matches!(ask, Ask::Remove(_, 3))), "it is told again");
}

#[test]
fn a_silent_replica_that_its_peer_holds_is_waited_for_and_then_replaced() {
    let (mut world, place, mut room) = begin(&[1, 2, 3], 3);
    room.wake(&mut world);
    world.pass(3000);
    hear(&mut world, &place, &[0, 1, 2, 3, 4]);
    world.here.silent.insert(3, 3000);
    room.wake(&mut world);
    let (token, ..) = world.asks.remove(0);
    room.answered(token, Ok(Answer::Yes), &mut world);
    assert!(world.here.requested.is_empty());
    world.pass(6000);
    hear(&mut world, &place, &[0, 1, 3, 4]);
    world.here.silent.insert(3, 9000);
    room.wake(&mut world);
    while let Some((token, ..)) = world.asks.pop() {
        room.answered(token, Err(Failed::Silence), &mut world);
    }
    let (_, Input::AddLearner(_, learner)) = world.here.requested.remove(0) else { panic!("another request") };
    assert!([3, 4].contains(&world.identities.holder(&learner).unwrap()));
}

#[test]
fn a_leader_that_should_go_hands_over_and_asks_again() {
    let (mut world, place, mut room) = begin(&[1, 2, 3], 2);
    let info = gossip::describe(0, &world.identities, 1, true);
    place.known.borrow_mut().hear(0, info, world.mono);
    room.wake(&mut world);
    let [Input::Transfer(to)] = world.here.inputs.as_slice() else { panic!("another input") };
    assert!([2, 3].contains(to));
    world.pass(LOOK_MS);
    room.wake(&mut world);
    assert_eq!(world.here.inputs.len(), 2, "Raft may give it up");
    world.pass(HAND_OVER_MS);
    room.wake(&mut world);
    assert_eq!(world.here.inputs.len(), 2);
}
