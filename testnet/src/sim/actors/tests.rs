#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};

use super::fake::{Lie, World};
use super::*;
use crate::sim::linear::History;
use crate::sim::seen::Seen;

const FAULTY_MS: u64 = 25_000;
const HEALED_MS: u64 = 40_000;

/// Runs all clients of a seed; what was seen, and who was not done.
fn run(seed: u64, lie: Lie) -> (World, Vec<String>) {
    let mut world = World::new(seed, lie);
    let mut rng = Rng::new(seed).fork(5);
    let mut clients = make(&world.setup, &mut rng);
    let mut rngs: Vec<Rng> = (0..clients.len()).map(|client| rng.fork(client as u64)).collect();
    world.run(&mut clients, &mut rngs, FAULTY_MS);
    world.faulty = false;
    clients.iter_mut().for_each(|client| client.heal());
    world.run(&mut clients, &mut rngs, FAULTY_MS + HEALED_MS);
    let late = clients.iter().filter(|client| !client.is_done()).map(|client| client.describe()).collect();
    (world, late)
}

fn broken(world: &World) -> Vec<&str> {
    let mut all = Vec::new();
    for seen in &world.seen {
        if let Seen::Broken { text, .. } = seen {
            all.push(text.as_str());
        }
    }
    all
}

fn history(world: &World) -> History {
    let mut history = History::default();
    world.seen.iter().for_each(|seen| history.see(seen));
    history
}

#[test]
fn all_clients_are_served_by_a_group_that_is_hard_to_reach() {
    let (mut lost, mut operations, mut cut_off) = (0, 0, 0);
    for seed in 0..40 {
        let (world, late) = run(seed, Lie::None);
        assert_eq!(late, Vec::<String>::new(), "seed {seed}");
        assert_eq!(broken(&world), Vec::<&str>::new(), "seed {seed}");
        let history = history(&world);
        assert_eq!(history.check(), Ok(()), "seed {seed}");
        operations += history.len();
        let mut published: BTreeMap<(u64, Vec<u8>), u64> = BTreeMap::new();
        let mut acknowledged = BTreeSet::new();
        let mut delivered: BTreeMap<(usize, u64), BTreeSet<u64>> = BTreeMap::new();
        let mut found = BTreeSet::new();
        for seen in &world.seen {
            match seen {
                Seen::Publishes { topic, producer, first, payloads, .. } => {
                    let last = published.entry((*topic, producer.clone())).or_default();
                    assert_eq!(*first, *last + 1, "each event is told once, in order");
                    *last += payloads.len() as u64;
                }
                Seen::Acknowledged { topic, producer, first, count, offset, .. } => {
                    for at in 0..*count {
                        let again = !acknowledged.insert((*topic, producer.clone(), first + at));
                        cut_off += u64::from(again);
                        let stored = &world.events(TopicId(*topic))[usize::try_from(offset.unwrap() + at).unwrap()];
                        assert_eq!((stored.producer.to_vec(), stored.sequence), (producer.clone(), first + at));
                    }
                }
                Seen::Delivered { client, topic, offset, payload, producer, sequence } => {
                    delivered.entry((*client, *topic)).or_default().insert(*offset);
                    let stored = &world.events(TopicId(*topic))[usize::try_from(*offset).unwrap()];
                    assert_eq!(stored.event.payload, payload);
                    let hex: String = producer.iter().map(|byte| format!("{byte:02x}")).collect();
                    assert_eq!(format!("{hex}:{sequence}").as_bytes(), payload);
                }
                Seen::Lost { .. } => lost += 1,
                Seen::LookedUp { name, .. } => {
                    found.insert(name.clone());
                }
                _ => {}
            }
        }
        for ((topic, producer), last) in &published {
            assert!(*last > 5, "seed {seed}: {last} events of {topic}");
            for sequence in 1..=*last {
                assert!(acknowledged.contains(&(*topic, producer.clone(), sequence)));
            }
            let stored = world.events(TopicId(*topic));
            let of = stored.iter().filter(|stored| stored.producer == *producer).map(|stored| stored.sequence);
            assert_eq!(of.collect::<Vec<_>>(), (1..=*last).collect::<Vec<_>>(), "once, in order");
        }
        for topic in published.keys().map(|(topic, _)| *topic) {
            let all = world.events(TopicId(topic)).len();
            let whole = delivered.iter().filter(|((_, of), offsets)| *of == topic && offsets.len() == all);
            assert!(whole.count() > 0, "seed {seed}: somebody read all of {topic}");
        }
        assert!(found.len() >= 3, "{found:?}");
    }
    assert!(operations > 5_000 && lost > 200 && cut_off > 100, "{operations} operations, {lost} lost, {cut_off} again");
}

#[test]
fn the_same_seed_is_the_same_story() {
    let story = |seed| format!("{:?}", run(seed, Lie::None).0.seen);
    assert_eq!(story(3), story(3));
    assert_ne!(story(3), story(4));
}

/// Seeds that most lies are told in.
const SEEDS: u64 = 12;

/// What is said by the seeds in which the clients, or the history that they make, show the lie.
fn shown(lie: Lie, seeds: u64) -> Vec<String> {
    let show = |seed| {
        let (world, _) = run(seed, lie);
        let told = broken(&world).first().map(|text| (*text).to_owned());
        told.or_else(|| history(&world).check().err())
    };
    (0..seeds).filter_map(show).collect()
}

#[test]
fn what_must_not_be_answered_is_noticed() {
    for (lie, words) in [
        (Lie::LongReceipt, "the receipt covers"),
        (Lie::ForeignRow, "which nobody wrote"),
        (Lie::OldCursor, "the cursor was"),
        (Lie::WrongGroup, "leads to group"),
    ] {
        let shown = shown(lie, SEEDS);
        assert!(shown.len() > 5 && shown.iter().all(|text| text.contains(words)), "{lie:?}: {shown:?}");
    }
}

#[test]
fn who_lost_a_subscription_and_moves_it_is_noticed() {
    let shown = shown(Lie::AnySession, SEEDS);
    assert!(shown.len() > 4 && shown.iter().all(|text| text.contains("moved the cursor after")), "{shown:?}");
}

#[test]
fn reads_of_the_past_and_writes_that_were_denied_are_noticed() {
    // a write that was taken and denied shows only when another one, and reads of both, come between it and its repetition
    for (lie, seeds, enough) in [(Lie::OldRead, SEEDS, 4), (Lie::TakenAndDenied, 100, 3)] {
        let shown = shown(lie, seeds);
        assert!(
            shown.len() >= enough && shown.iter().all(|text| text.contains("not linearizable")),
            "{lie:?}: {shown:?}"
        );
    }
}
