//! State machine safety: whoever applies an entry at an index applies the same as all others; and whoever has applied as
//! much has the same rows.
//!
//! Source: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm" (2014), figure 3; and DESIGN,
//! "apply is a function of rows and command". Rows that are a replica's own are left out
//! ([`Locals`]). During the run a few rows are compared at each look, all of them by
//! and by; in the end all at once.

use std::collections::BTreeMap;

use bytes::Bytes;
use canal_consensus::core::keys::{Keys, Locals, Table, end_of};
use canal_consensus::core::kv::Kv as _;
use canal_consensus::core::rows::Applied;
use canal_proto::GroupId;
use raft::eraftpb::Entry;

use super::ensure;
use super::read::{digest_of, row};
use crate::sim::seen::{Invariant, Look, Replica, Seen};

/// Rows of a group that are compared at one look: little beside what a simulated second does anyway.
const ROWS_A_LOOK: usize = 48;

/// What was applied so far.
#[derive(Debug, Default)]
pub(super) struct StateMachineSafety {
    /// By group, for each index from 1 on: term and what the entry does.
    entries: BTreeMap<GroupId, Vec<(u64, u64)>>,
    /// How far each replica has come.
    reached: BTreeMap<(GroupId, u64), u64>,
    /// The key at which the next look at a group's rows begins.
    next: BTreeMap<GroupId, Vec<u8>>,
}

fn at(index: u64) -> Option<usize> {
    usize::try_from(index.checked_sub(1)?).ok()
}

impl StateMachineSafety {
    fn applied(&mut self, group: GroupId, replica: u64, entry: &Entry) -> Result<(), String> {
        let reached = self.reached.entry((group, replica)).or_default();
        ensure(entry.index <= *reached + 1, || {
            format!("replica {replica} of group {group} applied entry {} after {reached}", entry.index)
        })?;
        *reached = (*reached).max(entry.index);
        let entries = self.entries.entry(group).or_default();
        let new = (entry.term, digest_of(entry));
        if at(entry.index) == Some(entries.len()) {
            entries.push(new);
        }
        let known = at(entry.index).and_then(|at| entries.get(at)).copied();
        ensure(known == Some(new), || {
            let index = entry.index;
            format!(
                "replica {replica} of group {group} applied entry {index} as {new:x?}, another as {known:x?} (term, digest)"
            )
        })
    }

    fn installed(&mut self, group: GroupId, replica: u64, index: u64, term: u64) -> Result<(), String> {
        let reached = self.reached.entry((group, replica)).or_default();
        *reached = (*reached).max(index);
        let known = self.entries.get(&group).zip(at(index)).and_then(|(entries, at)| entries.get(at));
        ensure(known.is_some_and(|(of, _)| *of == term), || {
            format!(
                "replica {replica} of group {group} installed a snapshot at entry {index} of term {term}; applied: {known:x?}"
            )
        })
    }

    fn some_rows(&mut self, group: GroupId, replicas: &[&dyn Replica]) -> Result<(), String> {
        let [one, others @ ..] = replicas else { return Ok(()) };
        if others.is_empty() {
            return Ok(());
        }
        let first = group.0.to_be_bytes().to_vec();
        let behind = end_of(&first);
        let from = self.next.entry(group).or_insert_with(|| first.clone());
        let sample = one.kv().scan(from, &behind, ROWS_A_LOOK, false).map_err(|e| e.0)?;
        let end = match sample.last() {
            Some((key, _)) if sample.len() == ROWS_A_LOOK => [key.as_ref(), &[0]].concat(),
            _ => behind.clone(),
        };
        let found = compare(group, *one, others, from, &end);
        *from = if end == behind { first } else { end };
        found
    }
}

/// The rows in a range that all replicas have in common.
fn common(group: GroupId, replica: &dyn Replica, from: &[u8], end: &[u8]) -> Result<Vec<(Bytes, Bytes)>, String> {
    let locals = Locals::load(replica.kv(), group).map_err(|e| e.0)?;
    let mut rows = replica.kv().scan(from, end, usize::MAX, false).map_err(|e| e.0)?;
    rows.retain(|(key, _)| !locals.is_local(key));
    Ok(rows)
}

fn compare(group: GroupId, one: &dyn Replica, others: &[&dyn Replica], from: &[u8], end: &[u8]) -> Result<(), String> {
    let rows = common(group, one, from, end)?;
    for other in others {
        let theirs = common(group, *other, from, end)?;
        ensure(rows == theirs, || {
            let ids = (one.seed().replica, other.seed().replica);
            let differ =
                rows.iter().find(|row| !theirs.contains(row)).or_else(|| theirs.iter().find(|row| !rows.contains(row)));
            let key = differ.map(|(key, _)| key.clone()).unwrap_or_default();
            let value = |rows: &[(Bytes, Bytes)]| rows.iter().find(|row| row.0 == key).map(|row| row.1.clone());
            let (here, there) = (value(&rows), value(&theirs));
            format!(
                "replicas {ids:?} of group {group} have applied as much, and have at key {key:?}: {here:?} and {there:?}"
            )
        })?;
    }
    Ok(())
}

/// How far a replica has applied, and the replica.
type Reached<'a> = (u64, Box<dyn Replica + 'a>);

/// The replicas of a group that are up and have rows, those first that have applied most.
fn by_progress<'a>(look: &'a dyn Look, group: GroupId) -> Result<Vec<Reached<'a>>, String> {
    let mut found = Vec::new();
    for replica in look.replicas(group) {
        // asked of the rows: what a replica says may be ahead of them
        let applied: Option<Applied> = row(replica.as_ref(), &Keys(group).one(Table::Applied))?;
        let whole = replica.status().is_some_and(|status| !status.hollow && !status.installing);
        if let Some(applied) = applied.filter(|_| whole) {
            found.push((applied.index, replica));
        }
    }
    found.sort_by_key(|(applied, _)| std::cmp::Reverse(*applied));
    Ok(found)
}

impl Invariant for StateMachineSafety {
    fn name(&self) -> &'static str {
        "state_machine_safety"
    }

    fn see(&mut self, seen: &Seen, _: &dyn Look) -> Result<(), String> {
        match seen {
            Seen::Applied { group, replica, entry, .. } => self.applied(*group, *replica, entry),
            Seen::Installed { group, replica, index, term, .. } => self.installed(*group, *replica, *index, *term),
            _ => Ok(()),
        }
    }

    fn look(&mut self, look: &dyn Look) -> Result<(), String> {
        for group in look.groups() {
            let found = by_progress(look, group)?;
            let most = found.first().map_or(0, |(index, _)| *index);
            let alike: Vec<&dyn Replica> =
                found.iter().filter(|(index, _)| *index == most).map(|(_, replica)| replica.as_ref()).collect();
            self.some_rows(group, &alike)?;
        }
        Ok(())
    }

    fn end(&mut self, look: &dyn Look) -> Result<(), String> {
        for group in look.groups() {
            let first = group.0.to_be_bytes();
            let found = by_progress(look, group)?;
            for pair in found.windows(2) {
                let [(at, one), (also, other)] = pair else { continue };
                if at == also {
                    compare(group, one.as_ref(), &[other.as_ref()], &first, &end_of(&first))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{GROUP, World, caught, entry, holds};
    use super::*;

    fn applied(replica: u64, index: u64, term: u64, data: &str) -> Seen {
        Seen::Applied { peer: replica as usize, group: GROUP, replica, entry: entry(index, term, data) }
    }

    fn installed(replica: u64, index: u64, term: u64) -> Seen {
        Seen::Installed { peer: replica as usize, group: GROUP, replica, index, term }
    }

    #[test]
    fn an_index_has_one_entry() {
        let world = World::three();
        let mut invariant = StateMachineSafety::default();
        let seen = [applied(1, 1, 1, "a"), applied(1, 2, 1, "b"), applied(2, 1, 1, "a"), applied(2, 1, 1, "a")];
        holds(&mut invariant, &world, &seen);
        holds(&mut invariant, &world, &[installed(3, 2, 1), applied(3, 3, 2, "c")]);
        caught(&mut invariant, &world, &[applied(2, 2, 1, "x")]);
        caught(&mut invariant, &world, &[applied(2, 2, 2, "b")]);
        caught(&mut invariant, &world, &[applied(4, 2, 1, "b")]);
        caught(&mut invariant, &world, &[installed(3, 1, 2)]);
        caught(&mut StateMachineSafety::default(), &world, &[installed(3, 1, 2)]);
    }

    fn with_rows(rows: usize) -> World {
        let mut world = World::three();
        world.each(GROUP, |fake| {
            fake.put(Keys(GROUP).one(Table::Applied), &Applied { index: 7, term: 1, began: 1 });
            for row in 0..rows {
                fake.put_bytes(Keys(GROUP).state("b", &format!("{row:04}")), vec![1]);
            }
        });
        world
    }

    #[test]
    fn as_much_applied_is_the_same_rows() {
        let mut world = with_rows(3 * ROWS_A_LOOK);
        holds(&mut StateMachineSafety::default(), &world, &[]);
        // a replica that is behind may have others
        world.one(3).put(Keys(GROUP).one(Table::Applied), &Applied { index: 6, term: 1, began: 1 });
        world.one(3).put_bytes(Keys(GROUP).state("b", "0000"), vec![9]);
        holds(&mut StateMachineSafety::default(), &world, &[]);
        world.one(2).put_bytes(Keys(GROUP).state("b", "0140"), vec![2]);
        assert!(StateMachineSafety::default().end(&world).is_err());
        let mut looks = StateMachineSafety::default();
        let passed = (0..8).take_while(|_| looks.look(&world).is_ok()).count();
        assert!((1..8).contains(&passed), "a row among many is found after a few looks, not {passed}");
    }

    #[test]
    fn what_is_a_replicas_own_is_not_compared() {
        let mut world = with_rows(1);
        world.one(2).put_bytes(Keys(GROUP).topic(Table::Inline, canal_proto::TopicId(1), 0), vec![1]);
        holds(&mut StateMachineSafety::default(), &world, &[]);
    }
}
