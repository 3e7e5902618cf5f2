#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
use canal_sdk::ProducerId;

use super::*;
use crate::demo::traffic::Sent;

const PRODUCER: ProducerId = ProducerId([7; 16]);

fn stored(offset: u64, payload: String, key: &str, round: u64) -> Stored {
    let event = Event::new(payload).with_key(key.to_owned()).with_header("round", round.to_string());
    Stored { offset, event, producer: PRODUCER.to_vec().into(), sequence: offset + 1 }
}

/// A run of ten rounds in which all went well.
fn good() -> Evidence {
    let mut topics: BTreeMap<String, Vec<Stored>> = BTreeMap::new();
    let values: Vec<f64> = (1..=10u64).map(|round| round as f64 * 0.1).collect();
    let mut publish = |topic: &str, key: &str| {
        let events: Vec<Stored> =
            (1..=10).map(|round: u64| stored(round - 1, values[round as usize - 1].to_string(), key, round)).collect();
        let sent = events.iter().map(|event| Sent {
            round: event.offset + 1,
            payload: values[event.offset as usize].to_string(),
            offset: Some(event.offset),
            sequence: event.sequence,
        });
        let published = Published { topic: topic.into(), producer: PRODUCER, sent: sent.collect() };
        topics.insert(topic.into(), events);
        published
    };
    let published = vec![publish("demo/sensor/a", "a"), publish(TARGET, "target")];
    let mean = |at: usize| -> f64 {
        let window = &values[(at + 1).saturating_sub(5)..=at];
        window.iter().map(|value| value / window.len() as f64).sum()
    };
    let smoothed = (0..10).map(|at| stored(at as u64, mean(at).to_string(), "a", at as u64 + 1));
    topics.insert("demo/smoothed/a".into(), smoothed.collect());
    let follow = |first: u64, value: &dyn Fn(u64) -> String| -> Vec<Stored> {
        (first..=10).map(|round| stored(round - first, value(round), "target", round)).collect()
    };
    topics.insert(MODEL.into(), follow(8, &|_| "8 1 a=1".into()));
    topics.insert(PREDICTION.into(), follow(8, &|_| "0.25".into()));
    let mut errors = follow(9, &|round| (0.25 - values[round as usize - 1]).abs().to_string());
    for error in &mut errors {
        error.event = std::mem::take(&mut error.event).with_header("predicted", "8");
    }
    topics.insert(ERROR.into(), errors);
    let seen = topics.iter().map(|(topic, events)| (topic.clone(), events.iter().map(Seen::stored).collect()));
    let live = vec![("peer 0".to_owned(), Log { topics: seen.collect(), ended: None })];
    let replicas = topics
        .into_iter()
        .map(|(topic, events)| (topic, vec![("peer 1".to_owned(), events.clone()), ("peer 2".to_owned(), events)]));
    Evidence {
        inputs: vec!["a".into()],
        published,
        replicas: replicas.collect(),
        live,
        dead: vec![("$dead/smooth".into(), 0)],
    }
}

/// What is found when this is done to both replicas and the live subscriber.
fn after(topic: &str, spoil: impl Fn(&mut Vec<Stored>)) -> Vec<String> {
    let mut evidence = good();
    for (_, events) in evidence.replicas.get_mut(topic).unwrap() {
        spoil(events);
    }
    let seen = evidence.replicas[topic][0].1.iter().map(Seen::stored).collect();
    evidence.live[0].1.topics.insert(topic.into(), seen);
    problems(&evidence)
}

fn renumber(events: &mut [Stored]) {
    for (offset, event) in (0..).zip(events) {
        (event.offset, event.sequence) = (offset, offset + 1);
    }
}

#[test]
fn a_run_in_which_all_went_well_has_no_problems() {
    assert_eq!(problems(&good()), Vec::<String>::new());
    assert_eq!(good().effects(), 10 + 3 + 3 + 2);
}

#[test]
fn a_lost_a_doubled_and_a_swapped_event_are_found() {
    let lost = after("demo/sensor/a", |events| {
        events.remove(3);
        renumber(events);
    });
    assert!(lost.contains(&"`demo/sensor/a`: 10 events were acknowledged, 9 are there".to_owned()), "{lost:?}");
    let doubled = after("demo/smoothed/a", |events| {
        let again = events[4].clone();
        events.insert(5, again);
        renumber(events);
    });
    assert_eq!(doubled, ["smooth, a: at offset 5 stands round Some(5), not Some(6)"]);
    let swapped = after(TARGET, |events| {
        events.swap(1, 2);
        renumber(events);
    });
    assert!(swapped[0].contains("at offset 1 stands another event"), "{swapped:?}");
    let gap = after(MODEL, |events| {
        events.remove(0);
    });
    assert!(gap[0].contains("`demo/model` at peer 1: offset 1 where 0 belongs"), "{gap:?}");
    let twice = after(PREDICTION, |events| events[1].sequence = 1);
    assert!(twice[0].contains("a producer's number 1 stands behind 1"), "{twice:?}");
}

#[test]
fn a_wrong_effect_is_found() {
    let mean = after("demo/smoothed/a", |events| events[9].event.payload = "0.8000000000000002".into());
    assert!(mean[0].starts_with("smooth, a: at offset 9 stands 0.8000000000000002"), "{mean:?}");
    let missing = after(MODEL, |events| {
        events.pop();
    });
    assert_eq!(
        missing,
        [
            "train: 2 events follow from 3 that should have one each",
            "predict: 3 events follow from 2 that should have one each"
        ]
    );
    let error = after(ERROR, |events| events[0].event.payload = "1".into());
    assert!(error[0].starts_with("score: the error at offset 0 is 1"), "{error:?}");
    let of_none = after(ERROR, |events| events[0].event.headers[1].value = "3".into());
    assert!(of_none[0].contains("of no prediction"), "{of_none:?}");
}

#[test]
fn replicas_and_subscribers_that_differ_are_found() {
    let mut evidence = good();
    evidence.replicas.get_mut(TARGET).unwrap()[1].1[2].event.payload = "9".into();
    assert_eq!(problems(&evidence), ["`demo/target` differs at offset 2 between peer 1 and peer 2"]);
    let mut evidence = good();
    evidence.replicas.get_mut(TARGET).unwrap()[1].1.pop();
    assert_eq!(problems(&evidence), ["`demo/target` has 10 events at peer 1 and 9 at peer 2"]);
    let mut evidence = good();
    evidence.live[0].1.topics.get_mut(ERROR).unwrap().swap(0, 1);
    assert_eq!(problems(&evidence), ["subscriber at peer 0, `demo/error`: saw something else at offset 0"]);
    let mut evidence = good();
    evidence.live[0].1.ended = Some("gone".into());
    evidence.dead[0].1 = 2;
    evidence.replicas.insert(MODEL.into(), Vec::new());
    let found = problems(&evidence);
    assert!(found.contains(&"subscriber at peer 0 ended: gone".to_owned()), "{found:?}");
    assert!(found.contains(&"`$dead/smooth` holds 2 dead letters".to_owned()), "{found:?}");
    assert!(found.contains(&"`demo/model` was read from no replica".to_owned()), "{found:?}");
}
