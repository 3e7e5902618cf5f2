//! Looks for seeds that bring a bug out.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;

use super::list::{ALL, Bug};
use crate::sim::invariants;

/// A bug that was noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caught {
    /// By which invariant.
    pub invariant: &'static str,
    /// What it said.
    pub text: String,
    /// In which seed.
    pub seed: u64,
}

/// What became of looking for a bug.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hunt {
    /// How it was noticed.
    pub caught: Option<Caught>,
    /// Ends of runs that do not count, and how many had each: the cores gave up by themselves, the mesh did not get well, or
    /// the same run fails without the bug.
    pub otherwise: BTreeMap<&'static str, u64>,
}

/// Runs the seeds 0, 1, 2 … with a bug, at most so many, until an invariant notices.
pub fn hunt(bug: &Bug, seeds: u64) -> Hunt {
    let known: Vec<&str> = invariants::all().iter().map(|invariant| invariant.name()).collect();
    let mut hunt = Hunt::default();
    for seed in 0..seeds {
        let setup = bug.setup(seed);
        let active = bug.activate();
        let found = crate::sim::run(&setup).failure;
        drop(active);
        let Some(failure) = found else { continue };
        let by_itself = known.contains(&failure.invariant) && crate::sim::run(&setup).failure.is_none();
        if by_itself {
            hunt.caught = Some(Caught { invariant: failure.invariant, text: failure.text, seed });
            return hunt;
        }
        let why = if known.contains(&failure.invariant) { "fails without the bug too" } else { failure.invariant };
        *hunt.otherwise.entry(why).or_default() += 1;
    }
    hunt
}

/// Prints the table, or one row of it. `false` when a bug was not caught.
pub(super) fn table(seeds: u64, only: Option<&str>) -> Result<bool> {
    let bugs: Vec<&Bug> = ALL.iter().filter(|bug| only.is_none_or(|only| only == bug.name)).collect();
    if bugs.is_empty() {
        let names: Vec<&str> = ALL.iter().map(|bug| bug.name).collect();
        anyhow::bail!("there is no such bug; those that there are: {}", names.join(", "));
    }
    let mut all = true;
    println!("{:<24}{:<24}{:>6}  what it does", "bug", "caught by", "seeds");
    for bug in bugs {
        let began = Instant::now();
        let Hunt { caught, otherwise } = hunt(bug, seeds);
        all &= caught.is_some();
        let (by, needed) = match &caught {
            Some(caught) => (caught.invariant, (caught.seed + 1).to_string()),
            None => ("NOTHING", format!("> {seeds}")),
        };
        println!("{:<24}{by:<24}{needed:>6}  {}", bug.name, bug.text);
        if only.is_some() || caught.is_none() {
            let seconds = began.elapsed().as_secs_f64();
            let text = caught.map(|caught| format!("seed {}: {}", caught.seed, caught.text)).unwrap_or_default();
            println!("{text}\nin {seconds:.1} s; seeds that ended otherwise: {otherwise:?}");
        }
    }
    Ok(all)
}
