//! The simulator itself: a seed makes a run, and the runs of some hundred seeds pass.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::faults::Kind;
use super::{Setup, Tally, run};

/// Seeds that the tests run.
const SEEDS: u64 = 300;

fn small(seed: u64) -> Setup {
    Setup { fault_ms: 8_000, ..Setup::with_peers(seed, 4) }
}

#[test]
fn a_seed_makes_the_same_run_again_and_another_seed_another_one() {
    let traces: Vec<u64> = (0..6).map(|seed| run(&small(seed)).trace).collect();
    let again: Vec<u64> = (0..6).map(|seed| run(&small(seed)).trace).collect();
    assert_eq!(traces, again);
    let mut different = traces.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), traces.len());
}

#[test]
fn a_seed_makes_the_same_run_in_another_process() {
    const CHILD: &str = "CANAL_SIM_TEST_CHILD";
    let trace = format!("trace {:016x};", run(&small(77)).trace);
    if std::env::var_os(CHILD).is_some() {
        println!("{trace}");
        return;
    }
    let name = "sim::tests::a_seed_makes_the_same_run_in_another_process";
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args([name, "--exact", "--nocapture"]).env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&trace), "{trace} is not in {text}");
}

/// Runs seeds on as many threads as there are processors; what happened in them.
fn sweep(seeds: std::ops::Range<u64>, setup: impl Fn(u64) -> Setup + Sync) -> Tally {
    let (next, tally, failed) = (AtomicU64::new(seeds.start), Mutex::new(Tally::default()), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || !failed.lock().unwrap().is_empty() {
                        return;
                    }
                    let outcome = run(&setup(seed));
                    if let Some(failure) = outcome.failure {
                        let (invariant, text) = (failure.invariant, failure.text);
                        let again = format!("canal-testnet sim --seed {seed} --trace");
                        failed
                            .lock()
                            .unwrap()
                            .push(format!("seed {seed}: {invariant}: {text}\nto see it again: {again}"));
                    }
                    tally.lock().unwrap().add(&outcome.tally);
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    tally.into_inner().unwrap()
}

#[test]
fn hundreds_of_seeds_pass_and_everything_goes_wrong_in_them() {
    let tally = sweep(0..SEEDS, Setup::draw);
    // what is a property of links and disks, and not an event of its own, is not counted
    let silent = [Kind::Loss, Kind::Delay, Kind::Skew];
    for kind in Kind::ALL.into_iter().filter(|kind| !silent.contains(kind)) {
        let counted = if kind == Kind::Duplicate { &tally.counts } else { &tally.faults };
        assert!(counted.contains_key(kind.name()), "no `{}` in {SEEDS} seeds: {tally:?}", kind.name());
    }
    for what in ["log cut", "segment made", "segments fetched", "snapshot written", "snapshot installed", "hollow"] {
        assert!(tally.counts.contains_key(what), "no `{what}` in {SEEDS} seeds: {tally:?}");
    }
    assert!(tally.acks > 0 && tally.delivered > 0 && tally.activations > 0 && tally.elections > 0, "{tally:?}");
}
