//! The demo's functions as they are committed, chained: the guest library and the runtime fit each other.

use std::collections::VecDeque;

use super::*;

const FUNCTIONS: [(&str, &[&str], &[u8]); 4] = [
    ("smooth", &["demo/sensor/"], include_bytes!("../../../../examples/functions/built/smooth.wasm")),
    ("train", &["demo/smoothed/", "demo/target"], include_bytes!("../../../../examples/functions/built/train.wasm")),
    ("predict", &["demo/smoothed/", "demo/model"], include_bytes!("../../../../examples/functions/built/predict.wasm")),
    ("score", &["demo/prediction", "demo/target"], include_bytes!("../../../../examples/functions/built/score.wasm")),
];

/// Every topic exists.
struct Any;

impl Topics for Any {
    fn resolve(&self, name: &str) -> Result<Option<Target>, String> {
        Ok(Some(Out::target(name)))
    }
}

struct Function {
    hash: ContentHash,
    prefixes: &'static [&'static str],
    rows: Arc<Rows>,
}

/// Hands an event to all functions that take its topic, and what they emit to the next ones, until all is quiet.
/// Every published event is told to `seen`.
async fn publish(runtime: &Runtime, functions: &[Function], first: (String, Event), seen: &mut Vec<(String, Event)>) {
    let mut queue = VecDeque::from([first]);
    while let Some((topic, event)) = queue.pop_front() {
        for function in functions {
            if !function.prefixes.iter().any(|prefix| topic.starts_with(prefix)) {
                continue;
            }
            let mut job = job(function.hash);
            (job.topic, job.event.event) = (topic.clone(), event.clone());
            (job.state, job.topics) = (function.rows.clone(), Arc::new(Any));
            let run = runtime.run(job).await;
            assert_eq!((run.status, run.error.as_str()), (Status::Ok, ""), "{topic} {:?}", run.log);
            function.rows.apply(&run.writes);
            queue.extend(run.emits.into_iter().map(|(target, event)| (target.name, event)));
        }
        seen.push((topic, event));
    }
}

#[tokio::test]
async fn the_chain_makes_the_events_that_the_functions_promise() {
    let runtime = runtime(2);
    let load = |(_, prefixes, bytes): &(&str, &'static [&'static str], &'static [u8])| {
        let rows = Arc::new(Rows::default());
        Function { hash: load(&runtime, bytes), prefixes, rows }
    };
    let functions: Vec<Function> = FUNCTIONS.iter().map(load).collect();

    let mut seen = Vec::new();
    for round in 1..=20u32 {
        let reading = |topic: &str, value: f64| {
            let event = Event::new(value.to_string()).with_header("round", round.to_string());
            (topic.to_owned(), event)
        };
        let base = f64::from(round);
        for (topic, value) in [("a", base), ("b", base * 10.0), ("c", 7.0), ("d", f64::from(round % 3))] {
            publish(&runtime, &functions, reading(&format!("demo/sensor/{topic}"), value), &mut seen).await;
        }
        publish(&runtime, &functions, reading("demo/target", base * 2.0), &mut seen).await;
    }

    let rounds = |topic: &str| {
        let of_topic = seen.iter().filter(|(name, _)| name == topic);
        of_topic
            .map(|(_, event)| std::str::from_utf8(&event.headers[0].value).unwrap().parse().unwrap())
            .collect::<Vec<u32>>()
    };
    for topic in ["demo/smoothed/a", "demo/smoothed/d"] {
        assert_eq!(rounds(topic), (1..=20).collect::<Vec<_>>());
    }
    // a model from the eighth sample on; a prediction each; an error for every later reading
    assert_eq!(rounds("demo/model"), (8..=20).collect::<Vec<_>>());
    assert_eq!(rounds("demo/prediction"), (8..=20).collect::<Vec<_>>());
    assert_eq!(rounds("demo/error"), (9..=20).collect::<Vec<_>>());
    let (_, last) = seen.iter().rfind(|(topic, _)| topic == "demo/error").unwrap();
    let error: f64 = std::str::from_utf8(&last.payload).unwrap().parse().unwrap();
    assert!((1.0..3.0).contains(&error), "a prediction for round 19 and a reading of 20 differ by about 2: {error}");
}

#[tokio::test]
async fn a_guest_says_what_is_wrong_with_its_event() {
    let runtime = runtime(1);
    let mut job = job(load(&runtime, FUNCTIONS[0].2));
    job.topic = "demo/sensor/a".into();
    let run = runtime.run(job).await;
    assert_eq!(run.status, Status::Error);
    assert_eq!(run.error, "`payload` is not a reading; send a finite decimal number as text");
}
