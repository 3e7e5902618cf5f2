//! The search for an order: Wing and Gong's, with Lowe's memory.
//!
//! A configuration is which operations have been put in order, and what the register holds after them. What was ordered is
//! all operations before one in the order of their invocations, but for some that were skipped, of which there are never
//! more than were under way at a time: so a configuration is small, and two that are the same are met once.
//!
//! Two things keep the configurations few, and change no answer. A read that gives what the register holds, and may come
//! next, is taken at once: it changes nothing, so every order that has it later can have it here. And a write that was
//! lost, and whose value nobody else wrote, is left out when nobody read the value (an order that has it is one without it
//! as well), or must come before the first return of a read that did.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Operation, Verdict};

/// Number of a value in a history; 0 is none.
type Value = u32;

const NOTHING: Value = 0;

/// Later than all.
const NEVER: u64 = u64::MAX;

#[derive(Debug, Clone, Copy)]
struct Step<'a> {
    invoked: u64,
    returned: u64,
    write: bool,
    value: Value,
    operation: &'a Operation,
}

/// How far an order has come.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Configuration {
    /// All steps before this have been put in order, but those skipped.
    high: usize,
    /// Steps before `high` that wait, in order.
    skipped: Vec<usize>,
    /// What the register holds.
    value: Value,
}

struct Search<'a> {
    /// In the order of their invocations.
    steps: Vec<Step<'a>>,
    /// The first return among a step and those behind it; one more than there are steps.
    first_return: Vec<u64>,
}

pub(super) fn run(operations: &[Operation], max: usize) -> Verdict {
    let search = Search::new(operations);
    let mut waiting = vec![Configuration { high: 0, skipped: Vec::new(), value: NOTHING }];
    let mut met = BTreeSet::new();
    let mut farthest: Option<Configuration> = None;
    while let Some(configuration) = waiting.pop() {
        let configuration = search.with_reads(configuration);
        if search.end(&configuration) == NEVER {
            // what is left may never have happened
            return Verdict::Linearizable;
        }
        if !met.insert(configuration.clone()) {
            continue;
        }
        if met.len() > max {
            return Verdict::Undecided;
        }
        // the oldest is tried first: it is what is on top
        let next: Vec<usize> = search.candidates(&configuration).filter(|at| search.is_write(*at)).collect();
        waiting.extend(next.into_iter().rev().filter_map(|at| search.take(&configuration, at)));
        if farthest.as_ref().is_none_or(|farthest| ordered(farthest) < ordered(&configuration)) {
            farthest = Some(configuration);
        }
    }
    Verdict::Wrong(farthest.map_or_else(String::new, |configuration| search.explain(&configuration)))
}

/// How many steps were put in order.
fn ordered(configuration: &Configuration) -> usize {
    configuration.high - configuration.skipped.len()
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation]) -> Self {
        let mut numbers: BTreeMap<&[u8], Value> = BTreeMap::new();
        let mut number = |value: &'a [u8]| {
            let next = Value::try_from(numbers.len()).unwrap_or(Value::MAX - 1) + 1;
            *numbers.entry(value).or_insert(next)
        };
        let mut steps: Vec<Step<'a>> = Vec::with_capacity(operations.len());
        for operation in operations {
            let (invoked, returned) = (operation.invoked, operation.returned.unwrap_or(NEVER));
            let (write, value) = match &operation.action {
                Action::Write(value) => (true, number(value)),
                // it tells nothing
                Action::Read(_) if returned == NEVER => continue,
                Action::Read(value) => (false, value.as_deref().map_or(NOTHING, &mut number)),
            };
            steps.push(Step { invoked, returned, write, value, operation });
        }
        let mut writes: BTreeMap<Value, usize> = BTreeMap::new();
        let mut read_by: BTreeMap<Value, u64> = BTreeMap::new();
        for step in &steps {
            if step.write {
                *writes.entry(step.value).or_default() += 1;
            } else {
                let first = read_by.entry(step.value).or_insert(NEVER);
                *first = step.returned.min(*first);
            }
        }
        steps.retain_mut(|step| {
            if step.write && step.returned == NEVER && writes.get(&step.value) == Some(&1) {
                match read_by.get(&step.value) {
                    Some(first) => step.returned = *first,
                    None => return false,
                }
            }
            true
        });
        steps.sort_by_key(|step| step.invoked);
        let mut first_return = vec![NEVER];
        for step in steps.iter().rev() {
            let behind = first_return.last().copied().unwrap_or(NEVER);
            first_return.push(step.returned.min(behind));
        }
        first_return.reverse();
        Self { steps, first_return }
    }

    fn step(&self, at: usize) -> Option<&Step<'a>> {
        self.steps.get(at)
    }

    fn is_write(&self, at: usize) -> bool {
        self.step(at).is_some_and(|step| step.write)
    }

    /// The first return among what waits: what is invoked later can't come before it.
    fn end(&self, configuration: &Configuration) -> u64 {
        let skipped = configuration.skipped.iter().filter_map(|at| self.step(*at)).map(|step| step.returned).min();
        let behind = self.first_return.get(configuration.high).copied().unwrap_or(NEVER);
        skipped.unwrap_or(NEVER).min(behind)
    }

    /// Steps that may come next, but for what they read.
    fn candidates<'b>(&'b self, configuration: &'b Configuration) -> impl Iterator<Item = usize> + 'b {
        let end = self.end(configuration);
        let begun = move |at: &usize| self.step(*at).is_some_and(|step| step.invoked < end);
        let skipped = configuration.skipped.iter().copied().filter(begun);
        skipped.chain((configuration.high..self.steps.len()).take_while(begun))
    }

    /// The configuration after this step.
    fn take(&self, configuration: &Configuration, at: usize) -> Option<Configuration> {
        let step = self.step(at)?;
        let mut next = configuration.clone();
        if at < next.high {
            next.skipped.retain(|skipped| *skipped != at);
        } else {
            next.skipped.extend(next.high..at);
            next.high = at + 1;
        }
        if step.write {
            next.value = step.value;
        }
        Some(next)
    }

    /// The configuration after all reads that may come next and give what the register holds.
    fn with_reads(&self, mut configuration: Configuration) -> Configuration {
        loop {
            let fits = |at: &usize| self.step(*at).is_some_and(|step| !step.write && step.value == configuration.value);
            let found = self.candidates(&configuration).find(fits);
            match found.and_then(|at| self.take(&configuration, at)) {
                Some(next) => configuration = next,
                None => return configuration,
            }
        }
    }

    /// Why there is no way on from the configuration that came farthest, for people.
    fn explain(&self, configuration: &Configuration) -> String {
        let name = |step: &Step<'_>| {
            let (client, number) = step.operation.who;
            let (verb, value) = match &step.operation.action {
                Action::Write(value) => ("wrote", Some(value)),
                Action::Read(value) => ("read", value.as_ref()),
            };
            let value = value.map_or_else(|| "nothing".into(), |value| String::from_utf8_lossy(value));
            let until = step.operation.returned.map_or_else(|| "never".to_owned(), |at| at.to_string());
            format!("client {client} operation {number} {verb} {value} (moments {} to {until})", step.invoked)
        };
        let held = self.steps.iter().find(|step| step.value == configuration.value && step.write).map_or_else(
            || "nothing".to_owned(),
            |step| match &step.operation.action {
                Action::Write(value) => String::from_utf8_lossy(value).into_owned(),
                Action::Read(_) => String::new(),
            },
        );
        let stuck: Vec<String> =
            self.candidates(configuration).filter_map(|at| self.step(at)).map(name).take(MAX_NAMED).collect();
        format!(
            "not linearizable: {} of {} operations have an order, after which it holds {held}; none of these can be next: {}",
            ordered(configuration),
            self.steps.len(),
            stuck.join("; ")
        )
    }
}

/// Operations named in an explanation: as many as a person reads.
const MAX_NAMED: usize = 8;
