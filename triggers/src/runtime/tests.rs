//! The runtime against real components.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use canal_proto::digest;
use canal_proto::limits::{MAX_ACTIVATION_LOG, MAX_COMPONENT};

mod demo;

use super::testing::{Broken, Out, Rows, component_of, function};
use super::*;

/// Memory for sixteen runs with default limits.
fn runtime(threads: usize) -> Runtime {
    Runtime::start(Options { threads, ..Options::default() }).unwrap()
}

fn load(runtime: &Runtime, bytes: &[u8]) -> ContentHash {
    let hash = ContentHash::of(bytes);
    runtime.load(hash, bytes).unwrap();
    hash
}

fn job(component: ContentHash) -> Job {
    let event = Event { time_ms: 1_700_000_000_123, trace: "00-trace".into(), ..Event::new("payload") };
    Job {
        component,
        event: Stored { offset: 5, event: event.with_key("key"), producer: vec![9; 16].into(), sequence: 3 },
        topic: "in/a".into(),
        topic_id: 11,
        limits: FunctionLimits::default(),
        attempt: 1,
        state: Arc::new(Rows::of(&[("count", "4"), ("p/1", "one"), ("p/2", "two")])),
        topics: Arc::new(Out),
    }
}

async fn run_one(component: &[u8]) -> Run {
    let runtime = runtime(1);
    let hash = load(&runtime, component);
    runtime.run(job(hash)).await
}

fn bad(bytes: &[u8]) -> String {
    match runtime(1).check(bytes) {
        Err(Error::BadComponent { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

const STRINGS: &str = r#"(data (i32.const 100) "count") (data (i32.const 110) "mine") (data (i32.const 120) "p/")
    (data (i32.const 130) "out/a") (data (i32.const 140) "in/none") (data (i32.const 150) "$sys")
    (data (i32.const 160) "out/+") (data (i32.const 170) "p/1")"#;

/// Reads `count`, writes the payload to `mine`, reads it back and emits it, scans, logs, deletes; then emits a random
/// number and the time as bytes.
fn busy() -> Vec<u8> {
    function(
        STRINGS,
        r#"(call $get (i32.const 100) (i32.const 5) (i32.const 1024))
        (call $put (i32.const 110) (i32.const 4) (local.get $payload) (local.get $payload_len) (i32.const 1024))
        (call $get (i32.const 110) (i32.const 4) (i32.const 1024))
        ;; result<option<list>>: tag at 0, some at 4, address at 8, length at 12
        (call $emit (i32.const 130) (i32.const 5) (local.get $key) (local.get $key_len) (i32.const 0) (i32.const 0)
            (i32.load (i32.const 1032)) (i32.load (i32.const 1036)) (i32.const 1024))
        (call $delete (i32.const 170) (i32.const 3) (i32.const 1024))
        (call $scan (i32.const 120) (i32.const 2) (i32.const 1) (i32.const 1024))
        ;; result<list<row>>: list at 4; a row's key at its 0
        (local.set $n (i32.load (i32.const 1028)))
        (call $log (i32.const 1) (i32.load (local.get $n)) (i32.load offset=4 (local.get $n)))
        (i64.store (i32.const 500) (call $random))
        (i64.store (i32.const 508) (call $random))
        (i64.store (i32.const 516) (call $now))
        (call $emit (i32.const 130) (i32.const 5) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
            (i32.const 500) (i32.const 24) (i32.const 1024))
        (global.get $ok)"#,
    )
}

/// Ends well if the host call before it was refused with this case of `host-error`, else traps.
fn refused(case: u32) -> String {
    format!(
        "(if (i32.ne (i32.load8_u (i32.const 1024)) (i32.const 1)) (then unreachable))
         (if (i32.ne (i32.load8_u (i32.const 1028)) (i32.const {case})) (then unreachable))"
    )
}

fn emit_to(address: u32, length: u32, payload: u32) -> String {
    format!(
        "(call $emit (i32.const {address}) (i32.const {length}) (i32.const 0) (i32.const 0) (i32.const 0)
            (i32.const 0) (i32.const 0) (i32.const {payload}) (i32.const 1024))"
    )
}

#[tokio::test]
async fn what_a_run_reads_and_does_is_in_its_outcome() {
    let run = run_one(&busy()).await;
    assert_eq!((run.status, run.error.as_str()), (Status::Ok, ""));
    assert_eq!(run.reads, [ReadCheck { key: "count".into(), digest: digest::value(Some(b"4")) }]);
    let seen = [("p/1", b"one".as_slice()), ("p/2", b"two")];
    assert_eq!(run.scans, [ScanCheck { prefix: "p/".into(), limit: 2, digest: digest::rows(seen) }]);
    let write = |key: &str, value: Option<&'static str>| StateOp { key: key.into(), value: value.map(Bytes::from) };
    assert_eq!(run.writes, [write("mine", Some("payload")), write("p/1", None)]);
    assert_eq!(run.log, ["info: p/2"]);
    let [(target, event), (_, numbers)] = run.emits.as_slice() else { panic!("{:?}", run.emits) };
    assert_eq!(*target, Out::target("out/a"));
    let cause = job(ContentHash::of(b"")).event.event;
    assert_eq!(*event, cause, "key, payload, time and trace are those of the cause");
    let (random, time) = numbers.payload.split_at(16);
    assert_ne!(random[..8], random[8..]);
    assert_eq!(time, cause.time_ms.to_le_bytes());
}

#[tokio::test]
async fn a_run_repeats_itself_to_the_bit() {
    let component = busy();
    let mut first = run_one(&component).await;
    for attempt in 2..5 {
        let runtime = runtime(2);
        let hash = load(&runtime, &component);
        let again = runtime.run(Job { attempt, ..job(hash) }).await;
        first.duration_us = again.duration_us;
        assert_eq!(again, first);
    }
    let runtime = runtime(1);
    let mut other = job(load(&runtime, &component));
    other.event.offset += 1;
    assert_ne!(runtime.run(other).await.emits, first.emits, "another event has other numbers");
}

#[tokio::test]
async fn an_error_leaves_no_effects() {
    let body = format!("{} (global.get $failed)", emit_to(130, 5, 1));
    let run = run_one(&function(STRINGS, &body)).await;
    assert_eq!((run.status, run.error.as_str(), run.host_fault), (Status::Error, "sorry", false));
    assert!(run.emits.is_empty() && run.writes.is_empty());
}

#[tokio::test]
async fn a_trap_says_what_it_was() {
    let run = run_one(&function("", "unreachable")).await;
    assert_eq!(run.status, Status::Trap);
    assert!(run.error.contains("unreachable"), "{}", run.error);

    let run = run_one(&function("(func $deep (call $deep))", "(call $deep) (global.get $ok)")).await;
    assert_eq!(run.status, Status::Trap);
    assert!(run.error.contains("stack"), "{}", run.error);
}

#[tokio::test]
async fn a_loop_runs_out_of_time_and_others_go_on() {
    let runtime = runtime(1);
    let forever = load(&runtime, &function("", "(loop $l (br $l)) unreachable"));
    let quick = load(&runtime, &function("", "(global.get $ok)"));
    let limits = FunctionLimits { time_ms: 1000, ..FunctionLimits::default() };
    let started = Instant::now();
    let mut loops = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (runtime, job) = (runtime.clone(), Job { limits, ..job(forever) });
        loops.spawn(async move { runtime.run(job).await });
    }
    // All of this on the one thread on which the loops spin: they are still at it when it is done.
    for _ in 0..20 {
        assert_eq!(runtime.run(job(quick)).await.status, Status::Ok);
    }
    assert!(loops.try_join_next().is_none(), "the loops ended too early to prove anything");
    while let Some(run) = loops.join_next().await {
        let run = run.unwrap();
        assert_eq!(run.status, Status::Timeout);
        assert!(run.error.contains("1000 ms"), "{}", run.error);
    }
    assert!(started.elapsed() >= Duration::from_secs(4), "each of the four had a second of the one thread");
}

#[tokio::test]
async fn a_loop_in_the_start_function_runs_out_of_time_too() {
    let runtime = runtime(1);
    let hash = load(&runtime, &function("(func $s (loop $l (br $l))) (start $s)", "(global.get $ok)"));
    let limits = FunctionLimits { time_ms: 50, ..FunctionLimits::default() };
    assert_eq!(runtime.run(Job { limits, ..job(hash) }).await.status, Status::Timeout);
}

#[tokio::test]
async fn a_memory_eater_meets_its_limit() {
    let eater = "(loop $l (drop (memory.grow (i32.const 16))) (br $l)) unreachable";
    let run = run_one(&function("", eater)).await;
    assert_eq!(run.status, Status::Limit);
    assert!(run.error.contains("67108864 bytes of memory"), "{}", run.error);

    // already the memory that it starts with is too much
    let runtime = runtime(1);
    let hash = load(&runtime, &function("", "(global.get $ok)"));
    let limits = FunctionLimits { memory: 65_536, ..FunctionLimits::default() };
    assert_eq!(runtime.run(Job { limits, ..job(hash) }).await.status, Status::Limit);
    assert_eq!(runtime.run(job(hash)).await.status, Status::Ok);
}

#[tokio::test]
async fn topics_that_cant_be_written_to_are_refused() {
    for (address, length) in [(140, 7), (150, 4), (160, 5), (0, 0)] {
        let body = format!("{} {} (global.get $ok)", emit_to(address, length, 1), refused(1));
        let run = run_one(&function(STRINGS, &body)).await;
        assert_eq!((run.status, run.emits.len()), (Status::Ok, 0), "{}", run.error);
    }
}

#[tokio::test]
async fn limits_of_effects_are_answered_and_named() {
    // 1 MiB in all: the second payload of 600,000 bytes finds no room
    let grow = "(drop (memory.grow (i32.const 20)))";
    let twice = format!("{grow} {0} {0} {1}", emit_to(130, 5, 600_000), refused(0));
    let run = run_one(&function(STRINGS, &format!("{twice} (global.get $ok)"))).await;
    assert_eq!((run.status, run.emits.len()), (Status::Ok, 1), "{}", run.error);
    let run = run_one(&function(STRINGS, &format!("{twice} (global.get $failed)"))).await;
    assert_eq!((run.status, run.emits.len()), (Status::Limit, 0), "{}", run.error);

    let big = format!("{grow} {} {} (global.get $failed)", emit_to(130, 5, 1_048_577), refused(0));
    assert_eq!(run_one(&function(STRINGS, &big)).await.status, Status::Limit);

    // more than a call may hand over
    let huge = format!("(drop (memory.grow (i32.const 160))) {} (global.get $ok)", emit_to(130, 5, 9 << 20));
    assert_eq!(run_one(&function(STRINGS, &huge)).await.status, Status::Trap);

    let rows = r#"(loop $l
        (i32.store (i32.const 600) (local.get $n))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (call $put (i32.const 600) (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 1024))
        (br_if $l (i32.eqz (i32.load8_u (i32.const 1024)))))
        (if (i32.ne (local.get $n) (i32.const 4)) (then unreachable))
        (global.get $failed)"#;
    let runtime = runtime(1);
    let hash = load(&runtime, &function("", rows));
    let limits = FunctionLimits { writes: 3, ..FunctionLimits::default() };
    let run = runtime.run(Job { limits, ..job(hash) }).await;
    assert_eq!((run.status, run.error.as_str()), (Status::Limit, "sorry"));
}

#[tokio::test]
async fn the_hosts_fault_is_not_the_functions() {
    let get = "(call $get (i32.const 100) (i32.const 5) (i32.const 1024))";
    let runtime = runtime(1);
    for call in [get.to_owned(), emit_to(130, 5, 1)] {
        // the guest swallows the error, which must not make the run count
        let hash = load(&runtime, &function(STRINGS, &format!("{call} {} (global.get $ok)", refused(2))));
        let job = Job { state: Arc::new(Broken), topics: Arc::new(Broken), ..job(hash) };
        let run = runtime.run(job).await;
        assert_eq!((run.status, run.host_fault), (Status::NotRun, true));
        assert!(run.error.contains("no quorum"), "{}", run.error);
        assert!(run.reads.is_empty() && run.emits.is_empty());
    }
}

#[tokio::test]
async fn a_flood_of_log_lines_is_cut() {
    let flood = "(local.set $n (i32.const 5000))
        (loop $l (call $log (i32.const 3) (i32.const 100) (i32.const 5))
            (local.set $n (i32.sub (local.get $n) (i32.const 1))) (br_if $l (local.get $n)))
        (global.get $ok)";
    let run = run_one(&function(STRINGS, flood)).await;
    assert_eq!(run.status, Status::Ok);
    assert!(run.log.iter().map(String::len).sum::<usize>() <= MAX_ACTIVATION_LOG);
    assert!(run.log.last().unwrap().contains("dropped"));
}

#[test]
fn foreign_components_are_refused_with_their_reason() {
    let wit = "package other:thing; interface files { open: func(); }
        world w { import files; export handle: func() -> u32; }";
    let module = r#"(module (import "other:thing/files" "open" (func)) (memory (export "memory") 1)
        (func (export "handle") (result i32) (i32.const 0)))"#;
    let reason = bad(&component_of(wit, module));
    assert!(reason.contains("it imports `other:thing/files`"), "{reason}");

    let wit = "package other:thing; world w { export handle: func() -> u32; }";
    let module = r#"(module (func (export "handle") (result i32) (i32.const 0)))"#;
    let reason = bad(&component_of(wit, module));
    assert!(reason.contains("not a `canal:function/function`"), "{reason}");

    assert!(bad(&wat::parse_str("(module)").unwrap()).contains("core module"));
    assert!(bad(b"garbage").contains("magic"), "{}", bad(b"garbage"));
    assert!(!bad(&[]).is_empty());
    assert!(bad(&vec![0; MAX_COMPONENT + 1]).contains("at most"));
    let mut torn = busy();
    torn.truncate(torn.len() / 2);
    assert!(!bad(&torn).is_empty());
}

#[tokio::test]
async fn only_what_the_hash_names_is_loaded() {
    let runtime = Runtime::start(Options { cached: 1, ..Options::default() }).unwrap();
    let (a, b) = (busy(), function("", "(global.get $ok)"));
    let (hash, other) = (ContentHash::of(&a), ContentHash::of(&b));
    assert_eq!(runtime.load(hash, &b), Err(Error::WrongHash { wanted: hash, found: other }));
    assert!(!runtime.is_loaded(&hash));
    let run = runtime.run(job(hash)).await;
    assert_eq!((run.status, run.host_fault), (Status::NotRun, true));
    runtime.load(hash, &a).unwrap();
    runtime.load(hash, &a).unwrap();
    assert!(runtime.is_loaded(&hash));
    runtime.load(other, &b).unwrap();
    assert!(runtime.is_loaded(&other) && !runtime.is_loaded(&hash), "one place in the cache");
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_threads() {
    let runtime = runtime(2);
    let hash = load(&runtime, &function("", "(loop $l (br $l)) unreachable"));
    let limits = FunctionLimits { time_ms: 60_000, ..FunctionLimits::default() };
    let (started, inner) = (Instant::now(), Arc::downgrade(&runtime.inner));
    let caller = tokio::spawn({
        let runtime = runtime.clone();
        async move { runtime.run(Job { limits, ..job(hash) }).await }
    });
    while runtime.inner.room.available_permits() == runtime.inner.units as usize {
        tokio::task::yield_now().await;
    }
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    drop(runtime);
    assert!(inner.upgrade().is_none(), "dropped, so the ticker was joined");
    assert!(started.elapsed() < Duration::from_secs(30), "the loop had a minute");
}
