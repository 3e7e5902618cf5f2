//! Looks for seeds that bring a bug out.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;

use super::list::{ALL, Bug};
use crate::sim::invariants;

/// A bug that was noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caught {
    /// What the invariant said.
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

/// Runs the seeds 0, 1, 2 … with a bug, at most so many, until this invariant notices. No other is asked.
pub fn hunt(bug: &Bug, invariant: &'static str, seeds: u64) -> Hunt {
    let mut hunt = Hunt::default();
    for seed in 0..seeds {
        let setup = bug.setup(seed, invariant);
        let active = bug.activate();
        let found = crate::sim::run(&setup).failure;
        drop(active);
        let Some(failure) = found else { continue };
        let by_itself = failure.invariant == invariant && crate::sim::run(&setup).failure.is_none();
        if by_itself {
            hunt.caught = Some(Caught { text: failure.text, seed });
            return hunt;
        }
        let why = if failure.invariant == invariant { "fails without the bug too" } else { failure.invariant };
        *hunt.otherwise.entry(why).or_default() += 1;
    }
    hunt
}

/// Prints the table, or one row of it. `false` when a bug was not caught.
pub(super) fn table(seeds: u64, only: Option<&str>, by: Option<&str>) -> Result<bool> {
    let bugs: Vec<&Bug> = ALL.iter().filter(|bug| only.is_none_or(|only| only == bug.name)).collect();
    if bugs.is_empty() {
        let names: Vec<&str> = ALL.iter().map(|bug| bug.name).collect();
        anyhow::bail!("there is no such bug; those that there are: {}", names.join(", "));
    }
    let asked = invariants::all().into_iter().map(|invariant| invariant.name()).find(|name| Some(*name) == by);
    if let (Some(by), None) = (by, asked) {
        anyhow::bail!("there is no invariant `{by}`");
    }
    let mut all = true;
    println!("{:<26}{:<24}{:>6}  what it does", "bug", "caught by", "seeds");
    let pairs = bugs.iter().flat_map(|bug| {
        let by = asked.map_or(bug.by.to_vec(), |asked| vec![asked]);
        by.into_iter().map(move |by| (bug, by))
    });
    for (bug, by) in pairs {
        let began = Instant::now();
        let Hunt { caught, otherwise } = hunt(bug, by, seeds);
        all &= caught.is_some();
        let needed = match &caught {
            Some(caught) => (caught.seed + 1).to_string(),
            None => format!("NOT in {seeds}"),
        };
        println!("{:<26}{by:<24}{needed:>6}  {}", bug.name, bug.text);
        if only.is_some() || caught.is_none() {
            let seconds = began.elapsed().as_secs_f64();
            let text = caught.map(|caught| format!("seed {}: {}", caught.seed, caught.text)).unwrap_or_default();
            println!("{text}\nin {seconds:.1} s; seeds that ended otherwise: {otherwise:?}");
        }
    }
    Ok(all)
}
