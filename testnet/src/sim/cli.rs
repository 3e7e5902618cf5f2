//! `canal-testnet sim`: runs seeds, and says what failed and how to see it again.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use super::{Outcome, Setup, Tally, run};

/// Simulates meshes under faults, each from a seed
#[derive(Debug, Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// Runs this seed
    #[arg(long, value_name = "N", conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Runs these seeds, up to the first that fails [default: 0..1000]
    #[arg(long, value_name = "A..B", value_parser = range)]
    seeds: Option<std::ops::Range<u64>>,
    /// Peers of each run, 3 to 50 [default: drawn from the seed]
    #[arg(long, value_name = "N")]
    peers: Option<usize>,
    /// Tells the story of the run
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Goes on after a seed that failed, and says at the end which did
    #[arg(long)]
    keep_going: bool,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Breaks the cores on purpose, one bug after the other, and shows which invariant notices it after how many seeds
    Mutants {
        /// Seeds in which each bug has to be caught
        #[arg(long, value_name = "N", default_value_t = super::mutants::BOUND)]
        seeds: u64,
        /// Only the bug of this name
        #[arg(long, value_name = "BUG")]
        only: Option<String>,
        /// Only this invariant is asked, of any bug
        #[arg(long, value_name = "INVARIANT")]
        by: Option<String>,
    },
}

fn range(text: &str) -> Result<std::ops::Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("write it as A..B, B not included")?;
    let number = |text: &str| text.parse::<u64>().map_err(|e| format!("`{text}`: {e}"));
    let range = number(from)?..number(to)?;
    if range.is_empty() { Err("there is no seed in it".into()) } else { Ok(range) }
}

impl Options {
    fn setup(&self, seed: u64) -> Setup {
        let setup = match self.peers {
            Some(peers) => Setup::with_peers(seed, peers),
            None => Setup::draw(seed),
        };
        Setup { trace: self.trace, ..setup }
    }

    fn replay(&self, seed: u64) -> String {
        let peers = self.peers.map(|peers| format!(" --peers {peers}")).unwrap_or_default();
        format!("canal-testnet sim --seed {seed}{peers} --trace")
    }
}

/// Runs what the options say.
///
/// # Errors
/// When nothing can be printed.
pub fn main(options: &Options) -> std::io::Result<ExitCode> {
    if let Some(Command::Mutants { seeds, only, by }) = &options.command {
        let caught = super::mutants::run(*seeds, only.as_deref(), by.as_deref()).map_err(std::io::Error::other)?;
        return Ok(if caught { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut out = std::io::stdout();
    let seeds = match options.seed {
        Some(seed) => seed..seed + 1,
        None => options.seeds.clone().unwrap_or(0..1000),
    };
    let began = Instant::now();
    let (mut tally, mut simulated_ms, mut ran) = (Tally::default(), 0, 0);
    let mut failed = Vec::new();
    for seed in seeds {
        let outcome = run(&options.setup(seed));
        tally.add(&outcome.tally);
        simulated_ms += outcome.simulated_ms;
        ran += 1;
        if options.seed.is_some() {
            writeln!(out, "seed {seed}: trace {:016x}", outcome.trace)?;
        }
        if let Some(text) = failure(&outcome) {
            writeln!(out, "seed {seed} failed: {text}\nto see it again: {}", options.replay(seed))?;
            failed.push(seed);
            if !options.keep_going {
                break;
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    writeln!(out, "{}", summary(&tally, ran, simulated_ms, seconds))?;
    if failed.len() > 1 {
        writeln!(out, "failed: {failed:?}")?;
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn failure(outcome: &Outcome) -> Option<String> {
    let failure = outcome.failure.as_ref()?;
    let (invariant, text) = (failure.invariant, &failure.text);
    Some(format!("{invariant}, after {:.3} simulated seconds: {text}", failure.at_ms as f64 / 1000.0))
}

fn list(counts: &std::collections::BTreeMap<&'static str, u64>) -> String {
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

fn summary(tally: &Tally, ran: u64, simulated_ms: u64, seconds: f64) -> String {
    let simulated = simulated_ms as f64 / 1000.0;
    format!(
        "{ran} seeds, {simulated:.0} simulated seconds in {seconds:.1} s ({:.0} a second); {} events acknowledged, {} \
         delivered, {} outcomes applied, {} elections\nfaults: {}\nand: {}",
        simulated / seconds.max(0.001),
        tally.acks,
        tally.delivered,
        tally.activations,
        tally.elections,
        list(&tally.faults),
        list(&tally.counts),
    )
}
