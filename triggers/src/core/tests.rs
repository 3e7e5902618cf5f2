//! Exact outputs of the main flows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use canal_proto::PeerId;
use canal_proto::catalog::TriggerInfo;
use canal_proto::cursor::key_digest;
use canal_proto::event::{Event, Header};
use canal_proto::limits::{MAX_CURSOR_GAP, MAX_ENTRY, MAX_HEADERS, MAX_STATE_VALUE};
use canal_proto::log::{Disposition, ReadCheck, StateOp, Status, Target};
use prost::Message;

use super::lane::{BLOCKED_WAIT_MS, MAX_BATCH, PROPOSE_WAIT_MS, UNAVAILABLE_WAIT_MS};
use super::outcome::{MAX_ERROR, MAX_OUTCOME, Subject, build};
use super::*;

const TERM: u64 = 1 << 32;

fn spec(id: u64, name: &str, bucket: &str) -> TriggerSpec {
    TriggerSpec {
        info: TriggerInfo {
            id,
            name: name.into(),
            patterns: vec!["#".into()],
            function: "f".into(),
            bucket: bucket.into(),
            ..TriggerInfo::default()
        },
        component: Bytes::from_static(&[1; 32]),
        dead: Target { topic: 50, group: 5, name: format!("$dead/{name}") },
        ..TriggerSpec::default()
    }
}

fn topic(id: u64) -> TopicSpec {
    TopicSpec { id, name: format!("t{id}"), ..TopicSpec::default() }
}

fn event(offset: u64, key: &'static str) -> Stored {
    Stored { offset, event: Event::new("p").with_key(key), ..Stored::default() }
}

fn hosted(triggers: &[TriggerSpec], topics: &[(u64, u64)], cursors: &[Cursor]) -> Hosted {
    let begin = |t: &TriggerSpec| topics.iter().map(|(id, _)| Cursor::new(t.info.id, *id, 0)).collect::<Vec<_>>();
    let cursors = if cursors.is_empty() { triggers.iter().flat_map(begin).collect() } else { cursors.to_vec() };
    let topics = topics.iter().map(|(id, next)| (topic(*id), *next)).collect();
    Hosted { triggers: triggers.to_vec(), topics, cursors }
}

fn scheduler() -> Scheduler {
    Scheduler::new(PeerId::from_public_key([1; 32]), 1)
}

fn load(trigger: u64, topic: u64, from: u64, max: u64) -> Output {
    Output::Load { trigger, topic, from, max }
}

fn loaded(topic: u64, events: Vec<Stored>) -> Input {
    Input::Loaded { trigger: 7, topic, from: events[0].offset, events }
}

fn wrote(key: &str, value: &'static str) -> RunResult {
    let writes = vec![StateOp { key: key.into(), value: Some(Bytes::from_static(value.as_bytes())) }];
    RunResult { writes, ..RunResult::default() }
}

fn failed() -> RunResult {
    RunResult { status: Status::Error, error: "boom".into(), ..RunResult::default() }
}

/// `run TICKET OFFSET #ATTEMPT`, `propose BATCH [OFFSET DISPOSITION]…`, `load FROM +MAX`, `wake AT`: what most
/// tests look at.
fn brief(outputs: &[Output]) -> Vec<String> {
    let short = |output: &Output| match output {
        Output::Load { from, max, .. } => format!("load {from} +{max}"),
        Output::Run(run) => format!("run {} {} #{}", run.ticket - TERM, run.event.offset, run.attempt),
        Output::Propose { batch, outcomes } => {
            let of = |o: &Outcome| format!(" {} {:?}", o.offset, o.disposition());
            format!("propose {}{}", batch - TERM, outcomes.iter().map(of).collect::<String>())
        }
        Output::WakeAt(at) => format!("wake {at}"),
    };
    outputs.iter().map(short).collect()
}

/// A scheduler with one trigger on one topic of these events, and what it did when it had read them.
fn started(events: Vec<Stored>, cursor: Option<Cursor>) -> (Scheduler, Vec<Output>) {
    let mut core = scheduler();
    let (first, next) = (events[0].offset, events.len() as u64 + events[0].offset);
    let cursor = cursor.unwrap_or_else(|| Cursor::new(7, 1, first));
    let out = core.handle(Input::Start(hosted(&[spec(7, "one", "")], &[(1, next)], &[cursor])), 1000);
    assert!(matches!(out[..], [Output::Load { from, .. }] if from == first), "{out:?}");
    let out = core.handle(loaded(1, events), 1000);
    (core, out)
}

fn ran(core: &mut Scheduler, ticket: u64, run: RunResult, now: u64) -> Vec<String> {
    brief(&core.handle(Input::Ran { ticket: TERM + ticket, run }, now))
}

fn committed(core: &mut Scheduler, batch: u64, results: &[OutcomeResult], cursors: &[Cursor], now: u64) -> Vec<String> {
    let input = Input::Committed { batch: TERM + batch, results: results.to_vec(), cursors: cursors.to_vec() };
    brief(&core.handle(input, now))
}

#[test]
fn an_event_is_loaded_run_and_proposed() {
    let mut core = scheduler();
    let trigger = spec(7, "one", "");
    assert_eq!(core.handle(Input::Start(hosted(std::slice::from_ref(&trigger), &[(1, 0)], &[])), 1000), []);
    assert_eq!(core.handle(Input::Head { topic: 1, next: 1 }, 1000), [load(7, 1, 0, 1)]);
    let run = Run {
        ticket: TERM + 1,
        trigger: Arc::new(trigger),
        bucket: "one".into(),
        topic: topic(1),
        event: event(0, "k"),
        attempt: 1,
        overlay: Overlay::default(),
    };
    assert_eq!(core.handle(loaded(1, vec![event(0, "k")]), 1000), [Output::Run(Box::new(run))]);
    let result = RunResult {
        reads: vec![ReadCheck { key: "a".into(), digest: Bytes::new() }],
        emits: vec![(Target { topic: 9, group: 3, name: "out".into() }, Event::new("e"))],
        log: vec!["info: hello".into()],
        duration_us: 12,
        start_ms: 1001,
        ..wrote("a", "1")
    };
    let out = core.handle(Input::Ran { ticket: TERM + 1, run: result }, 1002);
    let want = Outcome {
        trigger: 7,
        topic: 1,
        offset: 0,
        attempt: 1,
        reads: vec![ReadCheck { key: "a".into(), digest: Bytes::new() }],
        writes: vec![StateOp { key: "a".into(), value: Some("1".into()) }],
        emits: vec![canal_proto::log::Emit {
            target: Target { topic: 9, group: 3, name: "out".into() },
            event: Event::new("e"),
            dead: Target { topic: 50, group: 5, name: "$dead/one".into() },
        }],
        record: canal_proto::log::ActivationRecord {
            trigger: "one".into(),
            function: "f".into(),
            component: Bytes::from_static(&[1; 32]),
            topic: "t1".into(),
            attempt: 1,
            start_ms: 1001,
            duration_us: 12,
            log: vec!["info: hello".into()],
            writes: 1,
            emits: 1,
            executor: Bytes::from_static(&[1; 32]),
            ..Default::default()
        },
        bucket: "one".into(),
        ..Outcome::default()
    };
    assert_eq!(out, [Output::Propose { batch: TERM + 2, outcomes: vec![want] }]);
    let cursor = Cursor { runs: 1, ..Cursor::new(7, 1, 1) };
    assert_eq!(committed(&mut core, 2, &[OutcomeResult::Applied], &[cursor], 1003), [""; 0]);
    // a second answer, and one to a run that nobody asked for, do nothing
    assert_eq!(committed(&mut core, 2, &[OutcomeResult::Conflict], &[], 1003), [""; 0]);
    assert_eq!(ran(&mut core, 1, failed(), 1003), [""; 0]);
}

#[test]
fn a_lane_runs_ahead_of_the_commit_and_batches_what_has_come() {
    let (mut core, out) = started((0..5).map(|at| event(at, "")).collect(), None);
    assert_eq!(brief(&out), ["run 1 0 #1"]);
    assert_eq!(ran(&mut core, 1, wrote("a", "0"), 1000), ["propose 2 0 Done", "run 3 1 #1"]);
    assert_eq!(ran(&mut core, 3, wrote("b", "1"), 1000), ["run 4 2 #1"]);
    let out = core.handle(Input::Ran { ticket: TERM + 4, run: wrote("a", "2") }, 1000);
    let [Output::Run(run)] = &out[..] else { panic!("{out:?}") };
    let want = BTreeMap::from([("a".to_owned(), Some(Bytes::from("2"))), ("b".to_owned(), Some(Bytes::from("1")))]);
    assert_eq!((*run.overlay).clone(), want);
    let cursor = Cursor { runs: 1, ..Cursor::new(7, 1, 1) };
    let out = committed(&mut core, 2, &[OutcomeResult::Applied], &[cursor], 1000);
    assert_eq!(out, ["propose 6 1 Done 2 Done"]);
    let cursor = Cursor { runs: 3, ..Cursor::new(7, 1, 3) };
    assert_eq!(committed(&mut core, 6, &[OutcomeResult::Applied; 2], &[cursor], 1000), [""; 0]);
    // what is committed is no longer in the overlay
    let out = core.handle(Input::Ran { ticket: TERM + 5, run: wrote("c", "3") }, 1000);
    assert_eq!(brief(&out), ["propose 7 3 Done", "run 8 4 #1"]);
    let Output::Run(run) = &out[1] else { panic!("{out:?}") };
    assert_eq!(run.overlay.keys().collect::<Vec<_>>(), ["c"]);
}

#[test]
fn a_full_batch_stops_the_lane() {
    let (mut core, out) = started((0..64).map(|at| event(at, "")).collect(), None);
    let mut ticket = match &out[..] {
        [Output::Run(run)] => run.ticket,
        _ => panic!("{out:?}"),
    };
    core.handle(Input::Head { topic: 1, next: 80 }, 1000);
    let mut runs = 0;
    loop {
        let out = core.handle(Input::Ran { ticket, run: RunResult::default() }, 1000);
        runs += 1;
        for output in &out {
            if let Output::Load { from, max, .. } = output {
                core.handle(loaded(1, (*from..from + max).map(|at| event(at, "")).collect()), 1000);
            }
        }
        match out.iter().find_map(|o| if let Output::Run(run) = o { Some(run.ticket) } else { None }) {
            Some(next) => ticket = next,
            None => break,
        }
    }
    assert_eq!(runs, 1 + MAX_BATCH, "one is proposed, a batch forms");
    let cursor = Cursor { runs: 1, ..Cursor::new(7, 1, 1) };
    let out = committed(&mut core, 2, &[OutcomeResult::Applied], &[cursor], 1000);
    assert!(out[0].starts_with("propose") && out[0].matches("Done").count() == MAX_BATCH, "{out:?}");
    assert!(out[1].ends_with(" 65 #1"), "{out:?}");
}

#[test]
fn a_conflict_throws_away_what_was_built_on_it() {
    let (mut core, _) = started((0..3).map(|at| event(at, "")).collect(), None);
    assert_eq!(ran(&mut core, 1, wrote("a", "0"), 1000), ["propose 2 0 Done", "run 3 1 #1"]);
    assert_eq!(ran(&mut core, 3, wrote("b", "1"), 1000), ["run 4 2 #1"]);
    // the run under way is waited for, and its result ignored; then all three run again
    assert_eq!(committed(&mut core, 2, &[OutcomeResult::Conflict], &[Cursor::new(7, 1, 0)], 1000), [""; 0]);
    assert_eq!(ran(&mut core, 4, wrote("c", "2"), 1000), ["load 0 +3"]);
    let out = core.handle(loaded(1, (0..3).map(|at| event(at, "")).collect()), 1000);
    assert_eq!(brief(&out), ["run 5 0 #1"]);
    let Output::Run(run) = &out[0] else { panic!("{out:?}") };
    assert!(run.overlay.is_empty());
}

#[test]
fn refusals_in_a_row_slow_down() {
    let (mut core, _) = started(vec![event(0, "")], None);
    let (mut now, mut ticket, mut waits) = (1000, 1, Vec::new());
    for _ in 0..12 {
        assert_eq!(ran(&mut core, ticket, RunResult::default(), now), [format!("propose {} 0 Done", ticket + 1)]);
        let mut out = core.handle(
            Input::Committed { batch: TERM + ticket + 1, results: vec![OutcomeResult::Conflict], cursors: Vec::new() },
            now,
        );
        if let [Output::WakeAt(at)] = out[..] {
            waits.push(at - now);
            now = at;
            out = core.handle(Input::Tick, now);
        }
        assert_eq!(brief(&out), ["load 0 +1"]);
        ticket += 2;
        assert_eq!(brief(&core.handle(loaded(1, vec![event(0, "")]), now)), [format!("run {ticket} 0 #1")]);
    }
    assert_eq!(waits, [4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024]);
}

#[test]
fn an_obsolete_outcome_shows_what_a_lost_batch_did() {
    let (mut core, _) = started((0..3).map(|at| event(at, "")).collect(), None);
    assert_eq!(ran(&mut core, 1, RunResult::default(), 1000), ["propose 2 0 Done", "run 3 1 #1"]);
    let out = brief(&core.handle(Input::ProposeFailed { batch: TERM + 2 }, 1000));
    assert_eq!(out, [format!("wake {}", 1000 + PROPOSE_WAIT_MS)]);
    assert_eq!(ran(&mut core, 3, RunResult::default(), 1000), [""; 0]);
    let out = brief(&core.handle(Input::Tick, 1200));
    assert_eq!(out, ["load 0 +3"]);
    let out = brief(&core.handle(loaded(1, (0..3).map(|at| event(at, "")).collect()), 1200));
    assert_eq!(out, ["run 4 0 #1"]);
    assert_eq!(ran(&mut core, 4, RunResult::default(), 1200), ["propose 5 0 Done", "run 6 1 #1"]);
    let cursor = Cursor { runs: 2, ..Cursor::new(7, 1, 2) };
    assert_eq!(committed(&mut core, 5, &[OutcomeResult::Obsolete], &[cursor], 1200), [""; 0]);
    assert_eq!(ran(&mut core, 6, RunResult::default(), 1200), ["run 7 2 #1"]);
}

#[test]
fn a_full_outbox_makes_the_lane_wait() {
    let (mut core, _) = started(vec![event(0, "")], None);
    assert_eq!(ran(&mut core, 1, RunResult::default(), 1000), ["propose 2 0 Done"]);
    let out = committed(&mut core, 2, &[OutcomeResult::Blocked], &[Cursor::new(7, 1, 0)], 1000);
    assert_eq!(out, [format!("wake {}", 1000 + BLOCKED_WAIT_MS)]);
    assert_eq!(brief(&core.handle(Input::Tick, 1000 + BLOCKED_WAIT_MS)), ["load 0 +1"]);
}

#[test]
fn a_parked_event_holds_its_key_and_no_other() {
    let (mut core, out) = started(vec![event(0, "k"), event(1, "k"), event(2, "j"), event(3, "")], None);
    assert_eq!(brief(&out), ["run 1 0 #1"]);
    let out = core.handle(Input::Ran { ticket: TERM + 1, run: failed() }, 1000);
    assert_eq!(brief(&out), ["propose 2 0 Retry", "run 3 2 #1"]);
    let Output::Propose { outcomes, .. } = &out[0] else { panic!("{out:?}") };
    assert_eq!((outcomes[0].not_before_ms, outcomes[0].key_digest.clone()), (1100, key_digest(b"k")));
    assert_eq!((outcomes[0].record.status(), outcomes[0].record.error.as_str()), (Status::Error, "boom"));
    assert_eq!(ran(&mut core, 3, RunResult::default(), 1000), ["run 4 3 #1"]);
    assert_eq!(ran(&mut core, 4, RunResult::default(), 1000), ["wake 1100"]);
    let mut cursor = Cursor::new(7, 1, 0);
    assert!(cursor.apply(&outcomes[0]));
    let out = committed(&mut core, 2, &[OutcomeResult::Applied], &[cursor], 1000);
    assert_eq!(out, ["propose 5 2 Done 3 Done"]);
    assert_eq!(brief(&core.handle(Input::Tick, 1100)), ["run 6 0 #2"]);
    assert_eq!(ran(&mut core, 6, RunResult::default(), 1100), ["run 7 1 #1"]);
}

#[test]
fn a_new_leader_goes_on_where_the_cursor_stands() {
    let mut cursor = Cursor::new(7, 1, 4);
    assert!(cursor.park(4, 2, 1200, key_digest(b"k")) && cursor.finish(6));
    let (mut core, out) = started(vec![event(5, "k"), event(6, ""), event(7, "j")], Some(Cursor::new(7, 1, 5)));
    assert_eq!(brief(&out), ["run 1 5 #1"]);
    let out = core.handle(Input::Start(hosted(&[spec(7, "one", "")], &[(1, 8)], &[cursor])), 1000);
    assert_eq!(brief(&out), ["load 5 +3", "wake 1200"]);
    let out = core.handle(loaded(1, vec![event(5, "k"), event(6, ""), event(7, "j")]), 1000);
    assert_eq!(brief(&out), ["run 2 7 #1"]);
    assert_eq!(ran(&mut core, 1, RunResult::default(), 1000), [""; 0], "a run of the time before");
    assert_eq!(ran(&mut core, 2, RunResult::default(), 1000), ["propose 3 7 Done"]);
    assert_eq!(brief(&core.handle(Input::Tick, 1200)), ["load 4 +1"]);
    assert_eq!(brief(&core.handle(loaded(1, vec![event(4, "k")]), 1200)), ["run 4 4 #3"]);
}

#[test]
fn a_wait_by_a_clock_that_was_ahead_is_not_waited_for() {
    let parked = |not_before_ms| {
        let mut cursor = Cursor::new(7, 1, 4);
        assert!(cursor.park(4, 2, not_before_ms, key_digest(b"k")));
        let mut core = scheduler();
        brief(&core.handle(Input::Start(hosted(&[spec(7, "one", "")], &[(1, 5)], &[cursor])), 1000))
    };
    // two failed runs of this trigger are followed by a wait of 200 ms
    assert_eq!(parked(1200), ["wake 1200"]);
    assert_eq!(parked(1201), ["load 4 +1"]);
    assert_eq!(parked(700_000), ["load 4 +1"]);
}

#[test]
fn the_gap_is_bounded_and_opens_again() {
    let (mut core, mut out) = started((0..64).map(|at| event(at, "")).collect(), None);
    out.extend(core.handle(Input::Head { topic: 1, next: 2000 }, 1000));
    let (mut cursor, mut ran) = (Cursor::new(7, 1, 0), Vec::new());
    while let Some(output) = out.pop() {
        let input = match output {
            Output::Load { from, max, .. } => loaded(1, (from..from + max).map(|at| event(at, "")).collect()),
            Output::Run(run) => {
                ran.push(run.event.offset);
                let run_result = if run.event.offset == 0 { failed() } else { RunResult::default() };
                Input::Ran { ticket: run.ticket, run: run_result }
            }
            Output::Propose { batch, outcomes } => {
                assert!(outcomes.iter().all(|outcome| cursor.apply(outcome)));
                let results = vec![OutcomeResult::Applied; outcomes.len()];
                Input::Committed { batch, results, cursors: vec![cursor.clone()] }
            }
            Output::WakeAt(_) => continue,
        };
        out.extend(core.handle(input, 1000));
    }
    assert_eq!((cursor.gap(), cursor.low), (MAX_CURSOR_GAP, 0));
    assert_eq!(ran, (0..MAX_CURSOR_GAP).collect::<Vec<_>>());
    let out = core.handle(Input::Tick, 1100);
    let Some(Output::Run(run)) = out.iter().find(|o| matches!(o, Output::Run(_))) else { panic!("{out:?}") };
    assert_eq!((run.event.offset, run.attempt), (0, 2));
    let out = core.handle(Input::Ran { ticket: run.ticket, run: RunResult::default() }, 1100);
    let on = |o: &Output| {
        matches!(o, Output::Load { from, .. } if *from >= MAX_CURSOR_GAP)
            || matches!(o, Output::Run(run) if run.event.offset >= MAX_CURSOR_GAP)
    };
    assert!(out.iter().any(on), "{out:?}");
}

#[test]
fn a_run_that_could_not_be_tried_is_not_counted() {
    let (mut core, _) = started(vec![event(0, "")], None);
    let away = RunResult { unavailable: true, ..failed() };
    assert_eq!(ran(&mut core, 1, away, 1000), [format!("wake {}", 1000 + UNAVAILABLE_WAIT_MS)]);
    assert_eq!(brief(&core.handle(Input::Tick, 1000 + UNAVAILABLE_WAIT_MS)), ["run 2 0 #1"]);
}

#[test]
fn topics_take_turns_and_buckets_make_lanes() {
    let mut core = scheduler();
    let triggers = [spec(7, "one", "shared"), spec(8, "two", "shared"), spec(9, "three", "")];
    core.handle(Input::Start(hosted(&triggers, &[(1, 2), (2, 2)], &[])), 1000);
    let mut out = Vec::new();
    for trigger in [7, 8, 9] {
        for topic in [1, 2] {
            let events = vec![event(0, ""), event(1, "")];
            out.extend(core.handle(Input::Loaded { trigger, topic, from: 0, events }, 1000));
        }
    }
    let mut order = Vec::new();
    let mut at_once = 0;
    while let Some(at) = out.iter().position(|output| matches!(output, Output::Run(_))) {
        at_once = at_once.max(out.iter().filter(|output| matches!(output, Output::Run(_))).count());
        let Output::Run(run) = out.remove(at) else { panic!() };
        order.push((run.trigger.info.id, run.topic.id, run.event.offset));
        out.extend(core.handle(Input::Ran { ticket: run.ticket, run: RunResult::default() }, 1000));
    }
    assert_eq!(at_once, 2);
    let shared: Vec<_> = order.iter().copied().filter(|(trigger, ..)| *trigger != 9).collect();
    let want = [(7, 1, 0), (7, 2, 0), (8, 1, 0), (8, 2, 0), (7, 1, 1), (7, 2, 1), (8, 1, 1), (8, 2, 1)];
    assert_eq!(shared, want);
}

#[test]
fn retries_and_new_events_take_turns() {
    let (mut core, _) = started((0..3).map(|at| event(at, "")).collect(), None);
    let mut cursor = Cursor::new(7, 1, 0);
    for (ticket, offset) in [(1, 0), (3, 1), (4, 2)] {
        ran(&mut core, ticket, failed(), 1000);
        assert!(cursor.park(offset, 1, 1100, Bytes::new()));
    }
    cursor.runs = 3;
    core.handle(Input::Start(hosted(&[spec(7, "one", "")], &[(1, 6)], &[cursor])), 2000);
    let mut out = core.handle(loaded(1, (3..6).map(|at| event(at, "")).collect()), 2000);
    let mut order = Vec::new();
    while !out.is_empty() {
        let input = match out.remove(0) {
            Output::Load { from, max, .. } => loaded(1, (from..from + max).map(|at| event(at, "")).collect()),
            Output::Run(run) => {
                order.push(run.event.offset);
                Input::Ran { ticket: run.ticket, run: RunResult::default() }
            }
            _ => continue,
        };
        out.extend(core.handle(input, 2000));
    }
    assert_eq!(order, [3, 4, 0, 5, 1, 2]);
}

#[test]
fn pause_redeploy_and_removal() {
    let (mut core, _) = started(vec![event(0, ""), event(1, "")], None);
    let mut trigger = spec(7, "one", "");
    trigger.info.paused = true;
    let with = |t: &TriggerSpec| Input::Spec(hosted(std::slice::from_ref(t), &[(1, 2)], &[]));
    assert_eq!(core.handle(with(&trigger), 1000), []);
    // what runs comes to its end, nothing new begins
    assert_eq!(ran(&mut core, 1, RunResult::default(), 1000), ["propose 2 0 Done"]);
    trigger.info.paused = false;
    trigger.component = Bytes::from_static(&[2; 32]);
    let out = core.handle(with(&trigger), 1000);
    let [Output::Run(run)] = &out[..] else { panic!("{out:?}") };
    assert_eq!((run.event.offset, &run.trigger.component), (1, &trigger.component));
    assert_eq!(core.handle(Input::Spec(hosted(&[], &[(1, 2)], &[])), 1000), []);
    assert_eq!(ran(&mut core, 3, RunResult::default(), 1000), [""; 0]);
    assert_eq!(committed(&mut core, 2, &[OutcomeResult::Obsolete], &[], 1000), [""; 0]);
}

#[test]
fn events_that_cannot_be_read_are_asked_for_again() {
    let mut core = scheduler();
    core.handle(Input::Start(hosted(&[spec(7, "one", "")], &[(1, 1)], &[])), 1000);
    let out = core.handle(Input::Loaded { trigger: 7, topic: 1, from: 0, events: Vec::new() }, 1000);
    assert_eq!(brief(&out), ["wake 1100"]);
    assert_eq!(brief(&core.handle(Input::Tick, 1100)), ["load 0 +1"]);
}

fn subject<'a>(trigger: &'a TriggerSpec, topic: &'a TopicSpec, event: &'a Stored, attempt: u32) -> Subject<'a> {
    Subject { trigger, topic, event, attempt, executor: PeerId::from_public_key([1; 32]) }
}

#[test]
fn the_last_failure_sends_the_event_to_the_dead_letters() {
    let (trigger, topic, mut event) = (spec(7, "one", ""), topic(1), event(3, "k"));
    event.event = event.event.with_header("mine", "x").with_header("canal-error", "of a life before");
    let outcome = build(&subject(&trigger, &topic, &event, 5), failed(), 1000);
    assert_eq!((outcome.disposition(), outcome.not_before_ms), (Disposition::Dead, 0));
    assert_eq!((outcome.record.emits, outcome.emits.len()), (1, 1));
    let emit = &outcome.emits[0];
    assert_eq!((&emit.target, &emit.dead), (&trigger.dead, &trigger.dead));
    let header = |name: &str, value: &str| Header { name: name.into(), value: value.to_owned().into() };
    let want = Event {
        headers: vec![
            header("mine", "x"),
            header("canal-trigger", "one"),
            header("canal-topic", "t1"),
            header("canal-offset", "3"),
            header("canal-attempts", "5"),
            header("canal-error", "boom"),
        ],
        ..event.event.clone()
    };
    assert_eq!(emit.event, want);
}

#[test]
fn a_dead_letter_always_keeps_to_the_header_budget() {
    let (trigger, topic) = (spec(7, "one", ""), topic(1));
    for own in [0, 4000, 7000, 8000, 8050, 8080, 8090, 8150, MAX_HEADERS - 4] {
        let mut event = event(3, "k");
        event.event = event.event.with_header("a", "1").with_header("big", vec![b'x'; own.saturating_sub(1)]);
        let error = "é".repeat(5000);
        let run = RunResult { error: error.clone(), ..failed() };
        let outcome = build(&subject(&trigger, &topic, &event, 5), run, 1000);
        let letter = &outcome.emits[0].event;
        assert_eq!(letter.check(), Ok(()), "{own}");
        let names: Vec<_> = letter.headers.iter().map(|header| header.name.as_str()).collect();
        assert!(names.starts_with(&["a"]) && names.contains(&"canal-offset"), "{own}: {names:?}");
        assert_eq!(names.contains(&"big"), own < 8100, "{own}");
        let told = letter.headers.iter().find(|header| header.name == "canal-error");
        assert!(told.is_none_or(|told| error.as_bytes().starts_with(&told.value) && told.value.len() <= MAX_ERROR));
        assert_eq!(outcome.record.error.len(), MAX_ERROR);
    }
}

#[test]
fn a_failure_stands_on_what_was_read_as_far_as_it_fits() {
    let (trigger, topic, event) = (spec(7, "one", ""), topic(1), event(0, ""));
    let reads = |n: usize| RunResult {
        reads: vec![ReadCheck { key: "k".repeat(500), digest: Bytes::from_static(&[0; 16]) }; n],
        ..failed()
    };
    for attempt in [1, 5] {
        let outcome = |n| build(&subject(&trigger, &topic, &event, attempt), reads(n), 1000);
        assert_eq!([outcome(3).reads.len(), outcome(10_000).reads.len()], [3, 0]);
    }
}

#[test]
fn effects_that_fit_no_entry_are_a_failure() {
    let (trigger, topic, event) = (spec(7, "one", ""), topic(1), event(0, ""));
    let rows = |n: usize| RunResult {
        writes: (0..n)
            .map(|at| StateOp { key: format!("{at:03}"), value: Some(vec![0; MAX_STATE_VALUE].into()) })
            .collect(),
        ..RunResult::default()
    };
    let fits = build(&subject(&trigger, &topic, &event, 1), rows(11), 1000);
    assert_eq!((fits.disposition(), fits.writes.len()), (Disposition::Done, 11));
    assert!(fits.encoded_len() <= MAX_OUTCOME && MAX_OUTCOME < MAX_ENTRY);
    let large = build(&subject(&trigger, &topic, &event, 1), rows(12), 1000);
    assert_eq!((large.disposition(), large.record.status()), (Disposition::Retry, Status::Limit));
    assert!(large.writes.is_empty() && large.record.error.contains("an entry has room for"), "{:?}", large.record);
    let emits = vec![(Target::default(), Event::new(vec![0; (1 << 20) + 1]))];
    let bad = build(&subject(&trigger, &topic, &event, 1), RunResult { emits, ..RunResult::default() }, 1000);
    assert_eq!(bad.record.status(), Status::Limit);
}

#[test]
fn of_two_writes_to_a_row_the_later_counts_and_logs_are_bounded() {
    let (trigger, topic, event) = (spec(7, "one", ""), topic(1), event(0, ""));
    let op = |key: &str, value: Option<&'static str>| StateOp { key: key.into(), value: value.map(Bytes::from) };
    let run = RunResult {
        writes: vec![op("b", Some("1")), op("a", Some("2")), op("b", None)],
        log: std::iter::repeat_n(String::new(), 100_000).collect(),
        ..RunResult::default()
    };
    let outcome = build(&subject(&trigger, &topic, &event, 1), run, 1000);
    assert_eq!(outcome.writes, [op("a", Some("2")), op("b", None)]);
    assert_eq!(outcome.record.log.len(), canal_proto::limits::MAX_ACTIVATION_LOG);
}
