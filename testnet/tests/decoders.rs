//! The decoders, over their corpora and over inputs that are nearly right.
//!
//! The corpora are those of the fuzz targets (`testnet/fuzz/corpus`). `CANAL_FUZZ_ROUNDS=N` gives each target N times as
//! many mutated inputs, `CANAL_FUZZ_SEED` other ones, `CANAL_FUZZ_TARGET` only one target. An input that breaks a law is
//! written beside the corpus, and its path is said.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use canal_testnet::decoders::mutate::{Rng, mutate};
use canal_testnet::decoders::{ALL, QUEUES, Target};

#[path = "decoders/heap.rs"]
mod heap;
#[path = "decoders/seeds.rs"]
mod seeds;

/// Bytes of a corpus that is committed.
const MAX_CORPUS: u64 = 64 << 10;

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(directory(target)).expect("the target has a corpus");
    let mut inputs: Vec<_> = files
        .map(|file| file.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    inputs.sort();
    inputs
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

/// Runs a target on an input, and gives what it says. What breaks it is kept.
fn run(target: Target, name: &str, input: &[u8]) -> bool {
    heap::begin();
    let ran = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let used = heap::peak();
    let fits = used <= target.memory + 16 * input.len();
    if let (Ok(taken), true) = (&ran, fits) {
        return *taken;
    }
    let path = std::env::temp_dir().join(format!("canal-{}-{}", target.name, blake3(input)));
    std::fs::write(&path, input).unwrap();
    panic!("{}: {name}: {} bytes of memory; the input is {}", target.name, used, path.display());
}

fn blake3(input: &[u8]) -> String {
    canal_proto::ContentHash::of(input).to_string()[..16].to_owned()
}

/// Every input of a corpus, then mutated ones. Gives how many of those were taken and refused.
fn work(target: Target) -> [u64; 2] {
    let corpus = corpus(target.name);
    for (name, input) in &corpus {
        let taken = run(target, name, input);
        assert!(!name.starts_with("ok-") || taken, "{}: {name} should be taken", target.name);
        assert!(!name.starts_with("bad-") || !taken, "{}: {name} should be refused", target.name);
    }
    assert!(corpus.iter().any(|(name, _)| name.starts_with("ok-")), "{} takes something", target.name);
    assert!(corpus.iter().any(|(name, _)| name.starts_with("bad-")), "{} refuses something", target.name);
    let inputs: Vec<Vec<u8>> = corpus.into_iter().map(|(_, input)| input).collect();
    let rounds = u64::from(target.rounds) * number("CANAL_FUZZ_ROUNDS", 1);
    let first = number("CANAL_FUZZ_SEED", 1) << 32;
    let mut seen = [0, 0];
    for round in 0..rounds {
        let input = mutate(&inputs, &mut Rng::new(first + round));
        seen[usize::from(run(target, &format!("seed {}, round {round}", first >> 32), &input))] += 1;
    }
    // a mutator that breaks everything, or nothing, tries nothing
    assert!(seen.iter().all(|seen| *seen > rounds / 200), "{}: {seen:?} refused and taken", target.name);
    seen
}

fn targets() -> impl Iterator<Item = Target> {
    let one = std::env::var("CANAL_FUZZ_TARGET").ok();
    ALL.into_iter().chain([QUEUES]).filter(move |target| one.as_ref().is_none_or(|one| one == target.name))
}

#[test]
fn every_decoder_keeps_its_laws() {
    for target in targets() {
        let begun = std::time::Instant::now();
        let [refused, taken] = work(target);
        println!("{}: {refused} refused, {taken} taken, {:?}", target.name, begun.elapsed());
    }
}

#[test]
fn the_corpora_are_small_and_have_a_target_each() {
    let mut names: Vec<String> = ALL.iter().chain([&QUEUES]).map(|target| target.name.to_owned()).collect();
    names.sort();
    let mut found: Vec<String> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    assert_eq!(found, names);
    let manifest = include_str!("../fuzz/Cargo.toml");
    for name in names {
        let size: u64 = corpus(&name).iter().map(|(_, input)| input.len() as u64).sum();
        assert!(size <= MAX_CORPUS, "the corpus of {name} has {size} bytes");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is no fuzz target");
        let body =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fuzz/fuzz_targets/{name}.rs")));
        assert!(body.unwrap().contains(&format!("decoders::{name}(")), "{name} fuzzes something else");
    }
}

/// A length of 4 GiB, wherever a length stands, takes no memory.
#[test]
fn a_length_of_four_gib_takes_no_memory() {
    let lengths: [&[u8]; 3] =
        [&[0xff; 4], &[0xff, 0xff, 0xff, 0xff, 0x0f], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]];
    for target in targets().filter(|target| target.name != QUEUES.name && target.name != "components") {
        for (name, input) in corpus(target.name).into_iter().filter(|(_, input)| input.len() < 2048) {
            for at in (0..=input.len()).step_by(1 + input.len() / 48) {
                for length in lengths {
                    let (before, after) = input.split_at(at);
                    let input = [before, length, after.get(length.len()..).unwrap_or_default()].concat();
                    heap::begin();
                    (target.run)(&input);
                    let used = heap::peak();
                    assert!(used < 4 << 20, "{}: {name}, length at {at}: {used} bytes", target.name);
                }
            }
            if matches!(target.name, "segments" | "snapshots" | "directories" | "configurations") {
                // each of these makes a directory: one input says it
                break;
            }
        }
    }
}

/// Writes the inputs that this program can make itself: `cargo test -p canal-testnet --test decoders -- --ignored`.
#[test]
#[ignore = "writes into the repository"]
fn write_the_corpora() {
    for (target, name, input) in seeds::all() {
        let dir = directory(target);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), input).unwrap();
    }
}
