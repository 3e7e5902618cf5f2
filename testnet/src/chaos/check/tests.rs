#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
use canal_proto::Event;
use canal_sdk::ProducerId;

use super::super::load::Sent;
use super::*;
use crate::demo::watch::Log;
use crate::sim::linear::Action;

const TOPIC: &str = "chaos/orders";
const LINE: ProducerId = ProducerId([1; 16]);
const QUEUE: ProducerId = ProducerId([2; 16]);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn operation(client: usize, number: u64, action: Action, invoked: u64, returned: Option<u64>) -> (String, Operation) {
    ("r".into(), Operation { who: (client, number), action, invoked, returned })
}

fn write(value: &str) -> Action {
    Action::Write(value.into())
}

fn read(value: &str) -> Action {
    Action::Read(Some(value.into()))
}

/// A run in which a publisher and a queue took turns, ten events each, and all went well.
fn good() -> History {
    let mut line = Line { name: "p".into(), topic: TOPIC.into(), producer: LINE, sent: Vec::new() };
    let mut events = Vec::new();
    for sequence in 1..=10u64 {
        let offset = events.len() as u64;
        line.sent.push(Sent { sent: ms(sequence * 10), receipt: Some((ms(sequence * 10 + 5), Some(offset))) });
        for (producer, payload) in [(LINE, line.payload(sequence)), (QUEUE, Queued::payload(sequence))] {
            let offset = events.len() as u64;
            let producer = producer.to_vec().into();
            events.push(Stored { offset, event: Event::new(payload), producer, sequence });
        }
    }
    let seen: Vec<Seen> = events.iter().map(Seen::stored).collect();
    let queued = Queued { topic: TOPIC.into(), producer: QUEUE, put: 10, restarts: 1, left: 0 };
    // opened three times: once without a word at the end, and once for nothing
    let sessions = vec![
        Session { seen: seen[..8].to_vec(), handled: Some(8) },
        Session::default(),
        Session { seen: seen[8..12].to_vec(), handled: None },
        Session { seen: seen[10..].to_vec(), handled: Some(20) },
    ];
    let live = Log { topics: [(TOPIC.to_owned(), seen)].into(), ended: None };
    let replicas = vec![("peer 1".to_owned(), events.clone()), ("peer 2".to_owned(), events)];
    let application = Evidence {
        replicas: [(TOPIC.to_owned(), replicas)].into(),
        live: vec![("peer 0".into(), live)],
        ..Evidence::default()
    };
    let registers = vec![
        operation(1, 1, write("a"), 1, Some(4)),
        operation(2, 1, read("a"), 2, Some(3)),
        // nobody knows whether it was written
        operation(1, 2, write("b"), 5, None),
        operation(2, 2, read("a"), 6, Some(7)),
        operation(2, 3, read("b"), 8, Some(9)),
    ];
    History {
        application,
        lines: vec![line],
        queued: vec![queued],
        sessions: vec![(TOPIC.into(), sessions)],
        registers,
        counts: vec![("count".into(), 20, TOPIC.into())],
        silences: vec![Silence { topic: TOPIC.into(), from: ms(61), until: ms(70) }],
    }
}

/// What is found when this is done to every replica, and to what subscribers saw of it.
fn after(spoil: impl Fn(&mut Vec<Stored>)) -> Vec<String> {
    let mut history = good();
    for (_, events) in history.application.replicas.get_mut(TOPIC).unwrap() {
        spoil(events);
        for (offset, event) in (0..).zip(events) {
            event.offset = offset;
        }
    }
    let seen: Vec<Seen> = events(&history, TOPIC).iter().map(Seen::stored).collect();
    history.application.live[0].1.topics.insert(TOPIC.into(), seen.clone());
    history.sessions = vec![(TOPIC.into(), vec![Session { seen, handled: None }])];
    history.counts[0].1 = events(&history, TOPIC).len() as u64;
    problems(&history)
}

fn finds(problems: &[String], what: &str) {
    assert!(problems.iter().any(|problem| problem.contains(what)), "{what:?} is not in {problems:?}");
}

#[test]
fn a_run_in_which_all_went_well_has_no_problems() {
    // the application was not run: it has one rule that says so
    assert_eq!(problems(&good()), Vec::<String>::new());
    assert_eq!(after(|_| {}), Vec::<String>::new());
}

#[test]
fn a_lost_event_is_found_though_all_agree() {
    finds(&after(|events| drop(events.pop())), "9 events are there, 10 were put in");
    let lost = after(|events| events.truncate(18));
    finds(&lost, "p, to `chaos/orders`: event 10 was acknowledged and is not there");
    finds(&after(|events| drop(events.remove(4))), "event 4 stands at offset 5, where 3 belongs");
}

#[test]
fn a_doubled_event_is_found_though_all_agree() {
    let doubled = after(|events| {
        let again = events[4].clone();
        events.insert(7, again);
    });
    finds(&doubled, "event 3 is there again, at offset 7");
}

#[test]
fn another_order_is_found_though_all_agree() {
    finds(&after(|events| events.swap(2, 4)), "event 3 stands at offset 2, where 2 belongs");
    // of two publishers: what a receipt says
    finds(&after(|events| events.swap(2, 3)), "event 2 is at offset 3, its receipt says 2");
}

#[test]
fn other_content_and_strangers_are_found() {
    finds(&after(|events| events[6].event.payload = "x".into()), "event 4, at offset 6, has another payload");
    finds(&after(|events| events[19].producer = vec![9; 16].into()), "nobody has published what stands at offset 19");
}

#[test]
fn replicas_and_live_subscribers_are_compared() {
    let mut history = good();
    history.application.replicas.get_mut(TOPIC).unwrap()[1].1.pop();
    finds(&problems(&history), "has 20 events at peer 1 and 19 at peer 2");
    let mut history = good();
    history.application.live[0].1.topics.get_mut(TOPIC).unwrap().remove(3);
    finds(&problems(&history), "saw 19 of 20 events");
}

#[test]
fn a_durable_subscriber_may_see_again_only_what_it_had_not_handled() {
    let spoiled = |spoil: &dyn Fn(&mut Vec<Session>)| {
        let mut history = good();
        spoil(&mut history.sessions[0].1);
        problems(&history)
    };
    finds(
        &spoiled(&|all| {
            all[2].seen.remove(1);
        }),
        "in opening 3, 10 came behind 8",
    );
    finds(
        &spoiled(&|all| {
            all[2].seen.remove(0);
        }),
        "opening 3 began at 9, though 8 was not seen yet",
    );
    finds(&spoiled(&|all| all[0].handled = Some(9)), "opening 3 began at 8, though all before 9 was handled");
    finds(&spoiled(&|all| drop(all.pop())), "saw 12 of 20 events");
    finds(&spoiled(&|all| all[0].seen[5].hash ^= 1), "what came as 5 is not what is stored");
}

#[test]
fn what_was_not_acknowledged_is_said_and_may_be_there_or_not() {
    let mut history = good();
    history.lines[0].sent[9].receipt = None;
    history.queued[0].left = 1;
    let found = problems(&history);
    finds(&found, "1 of 10 events were never acknowledged");
    finds(&found, "1 of 10 events were never handed over");
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn an_acknowledgement_without_a_majority_is_found() {
    let mut history = good();
    // sent at 60 and acknowledged at 65: it was sent before
    history.silences[0].from = ms(60);
    finds(&problems(&history), "event 6 of p was acknowledged by `chaos/orders` while it had no majority");
}

#[test]
fn a_read_of_what_was_overwritten_is_found() {
    let mut history = good();
    history.registers.push(operation(3, 1, read("a"), 10, Some(11)));
    finds(&problems(&history), "register r is not linearizable");
}

#[test]
fn state_that_counts_twice_is_found() {
    let mut history = good();
    history.counts[0].1 = 21;
    assert_eq!(problems(&history), ["count is 21 after 20 events of `chaos/orders`"]);
}

#[test]
fn an_event_that_stands_before_what_was_there_when_it_was_sent_is_found() {
    let mut history = good();
    let line = &mut history.lines[0];
    // sent before the receipt of the one in front of it
    line.sent[5].sent = ms(50);
    assert_eq!(problems(&history), Vec::<String>::new());
    let mut other = Line { name: "q".into(), topic: TOPIC.into(), producer: QUEUE, sent: Vec::new() };
    other.sent.push(Sent { sent: ms(80), receipt: Some((ms(90), Some(1))) });
    history.lines.push(other);
    finds(&problems(&history), "event 1 of q is at 1, though event 7 of p, at 12, had its receipt when it was sent");
}
