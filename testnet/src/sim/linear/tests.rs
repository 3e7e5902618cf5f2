#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::super::rng::Rng;
use super::*;

fn value(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

/// A history in words: `1w=a` (client 1 begins to write a), `1r` (begins to read), `1.` (its write ends), `1.=a` (its read
/// ends with a), `1.=` (with nothing), `1!` (it is lost).
fn history(words: &str) -> History {
    let mut history = History::default();
    let mut numbers = [0; 10];
    for word in words.split_whitespace() {
        let client: usize = word[..1].parse().unwrap();
        let register = "r".to_owned();
        let (verb, rest) = (&word[1..2], word[2..].strip_prefix('='));
        if matches!(verb, "w" | "r") {
            numbers[client] += 1;
        }
        let operation = numbers[client];
        history.see(&match verb {
            "w" => Seen::Invoked { client, operation, register, write: Some(value(rest.unwrap())) },
            "r" => Seen::Invoked { client, operation, register, write: None },
            "." => Seen::Returned { client, operation, read: rest.filter(|rest| !rest.is_empty()).map(value) },
            "!" => Seen::Lost { client, operation },
            _ => panic!("{word}"),
        });
    }
    history
}

fn passes(words: &str) -> bool {
    history(words).check().is_ok()
}

#[test]
fn known_histories_are_judged_as_they_should_be() {
    assert!(passes("1r 1.="));
    assert!(passes("1w=a 1. 2r 2.=a"));
    assert!(!passes("1w=a 1. 2r 2.="));
    assert!(!passes("1r 1.=a"));
    // a read beside a write sees either
    assert!(passes("1w=a 2r 2.= 1."));
    assert!(passes("1w=a 2r 2.=a 1."));
    // but of two reads, the later never sees what is older
    assert!(!passes("1w=a 2r 2.=a 3r 3.= 1."));
    assert!(passes("1w=a 2r 3r 2.=a 3.= 1."));
    // Herlihy and Wing's figure of two writes: any order, but one
    assert!(passes("1w=a 2w=b 1. 2. 3r 3.=a 3r 3.=a"));
    assert!(!passes("1w=a 2w=b 1. 2. 3r 3.=a 3r 3.=b 3r 3.=a"));
    // the same value written twice
    assert!(passes("1w=a 1. 2w=b 2. 1w=a 1. 3r 3.=a"));
    assert!(!passes("1w=a 1. 2w=b 2. 3r 3.=a"));
}

#[test]
fn what_was_lost_takes_effect_late_or_never_but_not_both() {
    assert!(passes("1w=a 1! 2r 2.= 2r 2.="));
    assert!(passes("1w=a 1! 2r 2.= 3w=b 3. 2r 2.=b 2r 2.=a"));
    // it was read, and vanishes
    assert!(!passes("3w=b 3. 1w=a 1! 2r 2.=a 2r 2.=b"));
    assert!(!passes("1w=a 1! 2r 2.=a 3w=b 3. 2r 2.=b 2r 2.=a"));
    // two that were lost, with one value, may be read twice
    assert!(passes("1w=a 1! 1w=a 1! 2r 2.=a 3w=b 3. 2r 2.=b 2r 2.=a"));
    // it is read before it is invoked
    assert!(!passes("2r 2.=a 1w=a 1!"));
    // a read that was lost says nothing
    assert!(passes("1r 1! 2w=a 2. 2r 2.=a"));
}

#[test]
fn a_wrong_history_is_explained() {
    let why = history("1w=a 1. 2w=b 2. 3r 3.=a").check().unwrap_err();
    assert_eq!(
        why,
        "register r: not linearizable: 2 of 3 operations have an order, after which it holds b; none of these can be next: \
         client 3 operation 1 read a (moments 5 to 6)"
    );
}

#[test]
fn registers_are_looked_at_one_by_one_and_other_things_not_at_all() {
    let mut history = history("1w=a 1.");
    history.see(&Seen::Healed);
    history.see(&Seen::Invoked { client: 7, operation: 1, register: "other".into(), write: None });
    history.see(&Seen::Returned { client: 7, operation: 1, read: None });
    assert_eq!(history.check(), Ok(()));
    assert_eq!(history.len(), 2);
}

#[test]
fn it_says_so_when_it_does_not_know() {
    // ten writes at once, and a read that none of them explains: every subset has to be tried
    let begin: String = (0..10).map(|client| format!("{client}w=v{client} ")).collect();
    let end: String = (0..10).map(|client| format!("{client}. ")).collect();
    let operations = history(&format!("{begin}{end} 1r 1.=x")).registers.remove("r").unwrap();
    assert_eq!(search::run(&operations, 1000), Verdict::Undecided);
    assert!(matches!(check(&operations), Verdict::Wrong(_)));
}

/// A register that clients use at once, as a seed decides; each operation takes effect at one moment while it is under way,
/// or, if it is lost, at any later one, or never.
struct World {
    rng: Rng,
    register: Option<Vec<u8>>,
    operations: Vec<Operation>,
    /// Of each client: its operation, and whether it has taken effect.
    clients: Vec<Option<(usize, bool)>>,
    /// Lost, and not yet in effect.
    limbo: Vec<usize>,
    values: u64,
    moment: u64,
}

impl World {
    fn new(seed: u64, clients: usize, values: u64) -> Self {
        let rng = Rng::new(seed);
        let (clients, limbo) = (vec![None; clients], Vec::new());
        Self { rng, register: None, operations: Vec::new(), clients, limbo, values, moment: 0 }
    }

    fn effect(&mut self, at: usize) {
        match &mut self.operations[at].action {
            Action::Write(value) => self.register = Some(value.clone()),
            Action::Read(value) => value.clone_from(&self.register),
        }
    }

    fn turn(&mut self, lossy: u64) {
        self.moment += 1;
        if !self.limbo.is_empty() && self.rng.chance(100) {
            let at = self.limbo.swap_remove(self.rng.index(self.limbo.len()));
            return self.effect(at);
        }
        let client = self.rng.index(self.clients.len());
        match self.clients[client] {
            None => {
                let at = self.operations.len();
                let next = if self.values == 0 { at as u64 } else { self.rng.below(self.values) };
                let write = self.rng.chance(400);
                let action = if write { Action::Write(value(&next.to_string())) } else { Action::Read(None) };
                let (who, invoked) = ((client, at as u64), self.moment);
                self.operations.push(Operation { who, action, invoked, returned: None });
                self.clients[client] = Some((at, false));
            }
            Some((at, in_effect)) if self.rng.chance(lossy) => {
                if !in_effect {
                    self.limbo.push(at);
                }
                self.clients[client] = None;
            }
            Some((at, false)) => {
                self.effect(at);
                self.clients[client] = Some((at, true));
            }
            Some((at, true)) => {
                self.operations[at].returned = Some(self.moment);
                self.clients[client] = None;
            }
        }
    }

    /// `values` is how many different ones there are; 0: each write has its own.
    fn history(seed: u64, clients: usize, values: u64, turns: usize, lossy: u64) -> Vec<Operation> {
        let mut world = Self::new(seed, clients, values);
        for _ in 0..turns {
            world.turn(lossy);
        }
        world.operations
    }
}

#[test]
fn histories_of_a_real_register_pass() {
    for seed in 0..600 {
        let (clients, values) = (2 + seed as usize % 6, if seed % 3 == 0 { 4 } else { 0 });
        let operations = World::history(seed, clients, values, 1500, 60);
        assert_eq!(check(&operations), Verdict::Linearizable, "seed {seed}");
    }
}

/// Each write's place, value and return, if it was not lost.
fn writes(operations: &[Operation]) -> Vec<(usize, Vec<u8>, Option<u64>)> {
    let of = |(at, operation): (usize, &Operation)| match &operation.action {
        Action::Write(value) => Some((at, value.clone(), operation.returned)),
        Action::Read(_) => None,
    };
    operations.iter().enumerate().filter_map(of).collect()
}

#[test]
fn a_read_of_what_was_overwritten_is_refused() {
    let mut made = 0;
    for seed in 0..400 {
        let mut operations = World::history(seed, 4, 0, 400, 60);
        let mut rng = Rng::new(seed);
        let reads: Vec<usize> = (0..operations.len())
            .filter(|at| operations[*at].returned.is_some() && matches!(operations[*at].action, Action::Read(_)))
            .collect();
        let Some(read) = rng.pick(&reads) else { continue };
        // one write ended before another began, and that one before the read
        let begun = operations[read].invoked;
        let all = writes(&operations);
        let over = |first: u64| {
            all.iter().any(|(at, _, end)| operations[*at].invoked > first && end.is_some_and(|end| end < begun))
        };
        let old: Vec<&Vec<u8>> =
            all.iter().filter(|(_, _, end)| end.is_some_and(over)).map(|(_, value, _)| value).collect();
        let Some(old) = rng.pick(&old).cloned() else { continue };
        operations[read].action = Action::Read(Some(old));
        assert!(matches!(check(&operations), Verdict::Wrong(_)), "seed {seed}");
        made += 1;
    }
    assert!(made > 300, "{made}");
}

#[test]
fn a_lost_write_that_was_read_and_vanishes_is_refused() {
    let mut made = 0;
    for seed in 0..2000 {
        let mut operations = World::history(seed, 4, 0, 200, 200);
        let all = writes(&operations);
        let lost = all.iter().filter(|(_, _, end)| end.is_none());
        // a read saw it, another began after that; it is made to see what was written before the lost one began
        let found = lost.clone().find_map(|(at, value, _)| {
            let begun = operations[*at].invoked;
            let seen = operations.iter().filter(|one| one.action == Action::Read(Some(value.clone())));
            let seen = seen.filter_map(|one| one.returned).min()?;
            let later = operations.iter().position(|one| {
                one.invoked > seen && one.returned.is_some() && matches!(one.action, Action::Read(_))
            })?;
            let before = all.iter().find(|(_, _, end)| end.is_some_and(|end| end < begun));
            Some((later, before.map(|(_, value, _)| value.clone())))
        });
        let Some((later, before)) = found else { continue };
        operations[later].action = Action::Read(before);
        assert!(matches!(check(&operations), Verdict::Wrong(_)), "seed {seed}");
        made += 1;
    }
    assert!(made > 100, "{made}");
}

/// Tries every order of every choice of what was lost.
fn brute(operations: &[Operation]) -> bool {
    fn order(left: &mut Vec<&Operation>, register: Option<&Vec<u8>>) -> bool {
        if left.iter().all(|operation| operation.returned.is_none()) {
            return true;
        }
        for at in 0..left.len() {
            let next = left[at];
            if left.iter().any(|other| other.returned.is_some_and(|end| end < next.invoked)) {
                continue;
            }
            let after = match &next.action {
                Action::Write(value) => Some(value),
                Action::Read(value) if next.returned.is_none() || value.as_ref() == register => register,
                Action::Read(_) => continue,
            };
            left.remove(at);
            let found = order(left, after);
            left.insert(at, next);
            if found {
                return true;
            }
        }
        false
    }
    order(&mut operations.iter().collect(), None)
}

#[test]
fn it_agrees_with_trying_every_order() {
    let (mut right, mut wrong) = (0, 0);
    for seed in 0..6000 {
        let values = if seed % 2 == 0 { 0 } else { 2 };
        let mut operations = World::history(seed, 3, values, 30, 50);
        operations.truncate(7);
        // some reads are made to give another value, so that about half are wrong
        let mut rng = Rng::new(seed ^ 0xfeed);
        for _ in 0..rng.below(6) {
            let at = rng.index(operations.len());
            let other = rng.index(operations.len());
            let other = match &operations[other].action {
                Action::Write(value) => Some(value.clone()),
                Action::Read(value) => value.clone(),
            };
            if let Action::Read(value) = &mut operations[at].action {
                *value = other;
            }
        }
        let expected = brute(&operations);
        let found = check(&operations);
        assert_eq!(found == Verdict::Linearizable, expected, "seed {seed}: {found:?}\n{operations:#?}");
        assert_ne!(found, Verdict::Undecided);
        *(if expected { &mut right } else { &mut wrong }) += 1;
    }
    assert!(right > 1000 && wrong > 1000, "{right} right, {wrong} wrong");
}
