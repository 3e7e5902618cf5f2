#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use canal_consensus::core::outgoing;
use canal_proto::event::Event;
use canal_proto::log::{Append, AppendItem};

use super::*;
use crate::sim::rooms::testing::World;
use crate::sim::rooms::{functions, spec};
use crate::sim::setup;

const EVENTS: u64 = 60;

fn begin() -> World {
    let mut world = World::new();
    let spec = world.catalog.spec(setup::WORK, &world.identities).unwrap();
    world.here.apply(Kind::Spec(spec));
    world
}

fn publish(world: &mut World, topic: u64, producer: u8) {
    let events = (0..EVENTS).map(|number| Event::new(number.to_string())).collect();
    let item = AppendItem { topic, producer: vec![producer; 16].into(), first_sequence: 1, events, origin: 0 };
    world.here.apply(Kind::Append(Append { items: vec![item] }));
}

/// Lets time pass until nothing is left to do. `fate` says of a proposal whether it is applied, and whether that is told.
fn settle(world: &mut World, room: &mut Room, fate: &mut dyn FnMut() -> (bool, bool)) {
    room.wake(world);
    for _ in 0..100_000 {
        if let Some((token, kind)) = (!world.here.proposed.is_empty()).then(|| world.here.proposed.remove(0)) {
            let (applied, told) = fate();
            let reply = if applied { Ok(world.here.apply(kind)) } else { Err(Refused::Busy) };
            room.proposed(token, if told { reply } else { Err(Refused::NotLeader) }, world);
            continue;
        }
        let next = world.wakes.iter().copied().filter(|at| *at > world.mono).min();
        let Some(next) = next else { return };
        let ms = next - world.mono;
        world.pass(ms);
        world.wakes.retain(|at| *at > next);
        room.wake(world);
    }
    panic!("it never settles: {}", room.describe());
}

fn check(world: &World) {
    let row = |bucket: &str, key: &str| {
        let value = world.here.kv.get(&Keys(setup::WORK).state(bucket, key)).unwrap();
        value.map(|value| String::from_utf8(value.to_vec()).unwrap())
    };
    for topic in [setup::IN_A.0, setup::IN_B.0] {
        assert_eq!(row(spec::COUNT_BUCKET, &work::count_key(topic)), Some(EVENTS.to_string()));
        for offset in 0..EVENTS {
            assert_eq!(row(spec::COUNT_BUCKET, &work::seen_key(topic, offset)), Some("1".into()), "{topic} {offset}");
        }
    }
    let sent = |topic| outgoing::batch(&world.here.kv, setup::WORK, TopicId(topic), 1000, 1 << 20).unwrap().unwrap();
    let payloads = |topic| {
        let events = sent(topic).events.into_iter();
        let mut payloads: Vec<_> = events.map(|event| String::from_utf8(event.payload.to_vec()).unwrap()).collect();
        payloads.sort();
        payloads
    };
    let mut counted: Vec<_> = [setup::IN_A.0, setup::IN_B.0]
        .into_iter()
        .flat_map(|topic| (0..EVENTS).map(move |offset| format!("count:{topic}:{offset}")))
        .collect();
    counted.sort();
    assert_eq!(payloads(setup::OUT_A.0), counted);
    let copied = (0..EVENTS).filter(|offset| offset % work::FAILING != 0);
    let mut copied: Vec<_> = copied.map(|offset| format!("copy:{}:{offset}", setup::IN_B.0)).collect();
    copied.sort();
    assert_eq!(payloads(setup::logs_topic(setup::LOGS).0), copied);
    let dead: Vec<_> = world.here.events[&setup::DEAD.0].iter().map(|dead| dead.event.payload.clone()).collect();
    assert_eq!(dead, ["0", "50"]);
}

#[test]
fn every_event_is_handled_once() {
    let mut world = begin();
    let mut room = functions::Room::new(&world.place(0), &world.here.status);
    publish(&mut world, setup::IN_A.0, 1);
    room.wake(&mut world);
    publish(&mut world, setup::IN_B.0, 1);
    settle(&mut world, &mut room, &mut || (true, true));
    check(&world);
}

#[test]
fn whatever_becomes_of_proposals_every_event_is_handled_once() {
    let mut world = begin();
    publish(&mut world, setup::IN_A.0, 1);
    publish(&mut world, setup::IN_B.0, 1);
    let mut fates = crate::sim::rng::Rng::new(5);
    for leader in 1..20 {
        world.here.status.term = leader;
        let mut room = functions::Room::new(&world.place(0), &world.here.status);
        // a leader that dies early, with runs under way
        room.wake(&mut world);
        for _ in 0..fates.below(30) {
            if let Some((token, kind)) = world.here.proposed.pop() {
                let reply = if fates.chance(500) { Ok(world.here.apply(kind)) } else { Err(Refused::Busy) };
                room.proposed(token, reply, &mut world);
            }
            world.pass(20);
            room.wake(&mut world);
        }
        // what it proposed may come to be applied later
        let late: Vec<Kind> = world.here.proposed.drain(..).map(|(_, kind)| kind).collect();
        for kind in late {
            if fates.chance(500) {
                world.here.apply(kind);
            }
        }
        world.wakes.clear();
    }
    world.here.status.term = 20;
    let mut room = functions::Room::new(&world.place(0), &world.here.status);
    let mut fate = || (fates.chance(700), fates.chance(700));
    settle(&mut world, &mut room, &mut fate);
    check(&world);
}
