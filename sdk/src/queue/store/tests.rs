//! The store over files, and over a medium that loses what was not synced.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use prost::Message;

use super::*;
use crate::queue::QueueOptions;
use crate::queue::keeper::{Command, Keeper};
use crate::queue::rows::EVENT_OVERHEAD;

#[path = "disk.rs"]
pub(in crate::queue) mod disk;

use disk::{Dice, Disk};

fn insert(ledger: &mut Ledger, topic: &str, payload: &[u8]) -> Op {
    let event = Event::new(payload.to_vec()).encode_to_vec();
    let sizes = [event.len() as u64];
    let sequences = ledger.admit(topic, &sizes, &QueueOptions::default(), || Ok([3; 16])).unwrap();
    Op::Insert { topic: topic.into(), first: sequences.start, events: vec![event] }
}

#[test]
fn what_was_applied_is_there_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/queue");
    assert!(!Store::exists(&path));
    let store = Store::open(&path).unwrap();
    assert!(Store::exists(&path));
    let mut ledger = store.load().unwrap();
    let ops = [insert(&mut ledger, "a", b"1"), insert(&mut ledger, "a", b"2"), insert(&mut ledger, "b", b"3")];
    store.apply(&ops, &mut ledger).unwrap();
    let sequences = ledger.settle("a", 1);
    store.apply(&[Op::Remove { topic: "a".into(), sequences }], &mut ledger).unwrap();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.load().unwrap().topics, ledger.topics);
    assert_eq!(ledger.totals(), (2, 2 * (EVENT_OVERHEAD + 3)));
    assert_eq!(store.read("a", 2..3, 10, 100).unwrap(), [Event::new("2")]);
    let error = store.read("a", 1..3, 10, 100).unwrap_err();
    assert!(error.message.contains("event 1 of `a` is missing"), "{error}");
}

#[test]
fn reading_is_bounded_but_never_empty_where_there_is_something() {
    let store = Store::over(Disk::default()).unwrap();
    let mut ledger = store.load().unwrap();
    let ops: Vec<Op> = (0..10).map(|_| insert(&mut ledger, "t", &[0; 100])).collect();
    store.apply(&ops, &mut ledger).unwrap();
    assert_eq!(store.read("t", 1..11, 100, 1 << 20).unwrap().len(), 10);
    assert_eq!(store.read("t", 3..11, 4, 1 << 20).unwrap().len(), 4);
    assert_eq!(store.read("t", 3..11, 100, 250).unwrap().len(), 2);
    assert_eq!(store.read("t", 3..11, 100, 0).unwrap().len(), 1);
    assert!(store.read("t", 11..11, 100, 0).unwrap().is_empty());
}

#[test]
fn a_directory_has_one_queue_open_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).err().unwrap();
    assert_eq!(error.code, Code::InUse);
    assert!(error.message.contains("is open in this process already"), "{error}");
    assert_eq!(Store::owner(dir.path()), Some(std::process::id()));
    drop(store);
    assert_eq!(Store::owner(dir.path()), None);
    drop(Store::open(dir.path()).unwrap());
}

#[test]
fn what_is_no_queue_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), b"something else").unwrap();
    let error = Store::open(dir.path()).err().unwrap();
    assert_eq!(error.code, Code::Internal, "{error}");
    // a creation that a crash cut short
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(NEW_FILE), b"half").unwrap();
    drop(Store::open(dir.path()).unwrap());
    let later = {
        let store = Store::open(dir.path()).unwrap();
        let transaction = store.database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert(VERSION_KEY, VERSION + 1).unwrap();
        transaction.commit().unwrap();
        drop(store);
        Store::open(dir.path()).err().unwrap()
    };
    assert_eq!(later.code, Code::Incompatible);
}

#[test]
fn a_file_that_was_large_is_shrunk() {
    let dir = tempfile::tempdir().unwrap();
    let length = || std::fs::metadata(dir.path().join(FILE)).unwrap().len();
    let store = Store::open(dir.path()).unwrap();
    let mut ledger = store.load().unwrap();
    for _ in 0..40 {
        let op = insert(&mut ledger, "t", &[0; 1 << 19]);
        store.apply(&[op], &mut ledger).unwrap();
    }
    let sequences = ledger.settle("t", 39);
    store.apply(&[Op::Remove { topic: "t".into(), sequences }], &mut ledger).unwrap();
    drop(store);
    let before = length();
    let store = Store::open(dir.path()).unwrap();
    assert!(before > 20 << 20 && length() < SMALL_FILE, "{before} then {}", length());
    assert_eq!(store.read("t", 40..41, 1, 0).unwrap().len(), 1);
}

/// What a topic holds: sequences, by their bounds.
type State = BTreeMap<String, (u64, u64)>;

fn state(ledger: &Ledger) -> State {
    ledger.topics.iter().map(|(topic, row)| (topic.clone(), (row.first, row.next))).collect()
}

fn payload(topic: &str, sequence: u64) -> Vec<u8> {
    let size = if sequence.is_multiple_of(7) { 9_000 } else { 20 };
    format!("{topic}{sequence}|").bytes().cycle().take(size).collect()
}

/// At every write a crash may fall, and any part of what was not synced may be lost, or torn. What was answered is
/// there, what was not is there as a whole or not at all, and numbers go on where they ended.
#[test]
fn no_crash_loses_or_doubles_a_number() {
    let disk = Disk::default();
    let mut keeper = Keeper::new(Store::over(disk.clone()).unwrap(), QueueOptions::default()).unwrap();
    let mut dice = Dice(7);
    let mut model = State::new();
    // how much had been written when this was answered
    let mut answered = vec![(disk.written(), model.clone())];
    for _ in 0..24 {
        let mut turn = Vec::new();
        let mut replies = Vec::new();
        for _ in 0..=dice.roll(3) {
            let topic = ["a", "b"][dice.roll(2)].to_owned();
            let (first, next) = model.entry(topic.clone()).or_insert((1, 1));
            if dice.roll(3) == 0 {
                let through = *first + dice.roll(3) as u64;
                *first = (through + 1).min(*next);
                let (reply, _) = tokio::sync::oneshot::channel();
                turn.push(Command::Settle { topic, through, reply });
            } else {
                let count = 1 + dice.roll(3) as u64;
                let events = (*next..*next + count).map(|n| Event::new(payload(&topic, n)).encode_to_vec()).collect();
                let (reply, answer) = tokio::sync::oneshot::channel();
                replies.push((answer, *next..*next + count));
                *next += count;
                turn.push(Command::Put { topic, events, reply });
            }
        }
        keeper.take(turn);
        for (mut answer, sequences) in replies {
            assert_eq!(answer.try_recv().unwrap(), Ok(sequences));
        }
        model.retain(|_, bounds| *bounds != (1, 1));
        answered.push((disk.written(), model.clone()));
    }
    let mut images = 0;
    for at in answered[0].0..=disk.written() {
        let before = answered.iter().rposition(|(written, _)| *written <= at).unwrap();
        let possible: Vec<&State> = answered[before..].iter().take(2).map(|(_, state)| state).collect();
        for seed in 0..3 {
            let image = disk.crashed(at, &mut Dice(1 + seed + 1000 * at as u64));
            let store = Store::over(image).unwrap();
            let ledger = store.load().unwrap();
            let found = state(&ledger);
            assert!(possible.contains(&&found), "write {at}, seed {seed}: {found:?}, not one of {possible:?}");
            for (topic, row) in &ledger.topics {
                let events = store.read(topic, row.first..row.next, usize::MAX, usize::MAX).unwrap();
                assert_eq!(events.len() as u64, row.waiting(), "write {at}, seed {seed}");
                let mut bytes = 0;
                for (sequence, event) in (row.first..).zip(&events) {
                    assert_eq!(event.payload, payload(topic, sequence), "write {at}, seed {seed}");
                    bytes += event.encoded_len() as u64 + EVENT_OVERHEAD;
                }
                assert_eq!(bytes, row.bytes, "write {at}, seed {seed}");
            }
            images += 1;
        }
    }
    assert!(images > 500, "{images} images");
}
