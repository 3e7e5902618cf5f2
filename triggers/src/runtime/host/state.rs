//! `get`, `put`, `delete`, `scan`: the function's rows.
//!
//! A run sees its own writes. What it saw of the rows below them is noted by its digest, and the outcome is applied
//! only if all of that still stands: so a run behaves as if it were alone.
//!
//! **The rule of scans.** Of the rows below, as many are fetched as were asked for, and one more for every row under
//! the prefix that the run itself has deleted: the deleted ones can hide no more than that many, and a put can only
//! add. So the first `limit` of the merged rows are right whatever lies beyond. The check names the number that was
//! fetched; it can be above `MAX_SCAN`, by the number of the run's writes at most.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use canal_proto::digest;
use canal_proto::limits::{MAX_SCAN, MAX_STATE_KEY, MAX_STATE_VALUE};
use canal_proto::log::{ReadCheck, ScanCheck, StateOp};

use super::{Budget, HostError, Row};
use crate::core::state::{Reads, Seen};
use crate::runtime::StateView;

/// What one scan may return: it is copied to the guest, whose memory is small.
const MAX_SCAN_BYTES: usize = 4 << 20;
/// What a noted read or a write needs in the entry besides key and value: tags, lengths, a digest.
const ENVELOPE: usize = 32;

/// The rows of one run.
pub struct State {
    view: Arc<dyn StateView>,
    reads: Reads,
    writes: BTreeMap<String, Option<Bytes>>,
    max_writes: u32,
}

impl State {
    /// Nothing read, nothing written.
    pub fn new(view: Arc<dyn StateView>, max_writes: u32) -> Self {
        Self { view, reads: Reads::default(), writes: BTreeMap::new(), max_writes }
    }

    /// The value of a row.
    pub fn get(&mut self, budget: &mut Budget, key: &str) -> Result<Option<Vec<u8>>, HostError> {
        check_key(key)?;
        if let Some(own) = self.writes.get(key) {
            return Ok(own.as_ref().map(|bytes| bytes.to_vec()));
        }
        let value = self.view.get(key).map_err(|reason| unreadable(budget, &reason))?;
        match self.reads.compare(key, value.as_deref()) {
            Seen::Same => {}
            Seen::Changed => return Err(changed(budget)),
            Seen::New => {
                budget.charge(key.len() + digest::LENGTH + ENVELOPE)?;
                self.reads.note(key, value.as_deref());
            }
        }
        Ok(value.map(|bytes| bytes.to_vec()))
    }

    /// Sets or removes a row.
    pub fn write(&mut self, budget: &mut Budget, key: String, value: Option<Bytes>) -> Result<(), HostError> {
        check_key(&key)?;
        let size = value.as_ref().map_or(0, Bytes::len);
        if size > MAX_STATE_VALUE {
            let text = format!("the value of `{key}` has {size} bytes; at most {MAX_STATE_VALUE} are allowed");
            return Err(budget.limit(text));
        }
        match self.writes.get_mut(&key) {
            Some(own) => {
                let before = own.as_ref().map_or(0, Bytes::len);
                budget.charge(size.saturating_sub(before))?;
                budget.refund(before.saturating_sub(size));
                *own = value;
            }
            None => {
                if self.writes.len() >= self.max_writes as usize {
                    return Err(budget.limit(format!("a run writes at most {} rows", self.max_writes)));
                }
                budget.charge(key.len() + size + ENVELOPE)?;
                self.writes.insert(key, value);
            }
        }
        Ok(())
    }

    /// The first rows under a prefix, in the order of their keys.
    pub fn scan(&mut self, budget: &mut Budget, prefix: String, limit: u32) -> Result<Vec<Row>, HostError> {
        if prefix.len() > MAX_STATE_KEY {
            return Err(HostError::Invalid(format!("a prefix has at most {MAX_STATE_KEY} bytes")));
        }
        let limit = limit.min(MAX_SCAN as u32);
        if limit == 0 {
            return Ok(Vec::new());
        }
        let fetch = limit.saturating_add(self.own(&prefix).filter(|(_, value)| value.is_none()).count() as u32);
        let below = self.view.scan(&prefix, fetch).map_err(|reason| unreadable(budget, &reason))?;
        self.note(budget, &prefix, fetch, &below)?;

        let mut rows: BTreeMap<&str, &Bytes> = below.iter().map(|(key, value)| (key.as_str(), value)).collect();
        for (key, value) in self.own(&prefix) {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(key.as_str()),
            };
        }
        let rows: Vec<_> = rows.into_iter().take(limit as usize).collect();
        let bytes: usize = rows.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > MAX_SCAN_BYTES {
            let text = format!("a scan returns at most {MAX_SCAN_BYTES} bytes, these rows have {bytes}; ask for fewer");
            return Err(budget.limit(text));
        }
        Ok(rows.into_iter().map(|(key, value)| Row { key: key.to_owned(), value: value.to_vec() }).collect())
    }

    fn own<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a Option<Bytes>)> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        self.writes.range::<str, _>(from).take_while(move |(key, _)| key.starts_with(prefix))
    }

    fn note(
        &mut self,
        budget: &mut Budget,
        prefix: &str,
        fetch: u32,
        below: &[(String, Bytes)],
    ) -> Result<(), HostError> {
        match self.reads.compare_range(prefix, fetch, below) {
            Seen::Same => {}
            Seen::Changed => return Err(changed(budget)),
            Seen::New => {
                budget.charge(prefix.len() + digest::LENGTH + ENVELOPE)?;
                self.reads.note_range(prefix, fetch, below);
            }
        }
        Ok(())
    }

    /// What was read and what is to be written, each in the order of its keys.
    pub fn finish(self) -> (Vec<ReadCheck>, Vec<ScanCheck>, Vec<StateOp>) {
        let (reads, scans) = self.reads.finish();
        let writes = self.writes.into_iter().map(|(key, value)| StateOp { key, value });
        (reads, scans, writes.collect())
    }
}

fn check_key(key: &str) -> Result<(), HostError> {
    match key.len() {
        0 => Err(HostError::Invalid("a state key can't be empty".into())),
        1..=MAX_STATE_KEY => Ok(()),
        size => Err(HostError::Invalid(format!("a state key has at most {MAX_STATE_KEY} bytes, this one has {size}"))),
    }
}

fn unreadable(budget: &mut Budget, reason: &str) -> HostError {
    budget.unavailable(format!("the state can't be read now: {reason}"))
}

fn changed(budget: &mut Budget) -> HostError {
    budget.unavailable("the state changed while the function ran".into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use super::super::MAX_EFFECTS;
    use super::*;
    use crate::runtime::testing::Rows;
    use proptest::prelude::*;

    fn budget() -> Budget {
        Budget { left: MAX_EFFECTS, limited: false, fault: None }
    }

    fn state(rows: &[(&str, &str)], max_writes: u32) -> State {
        State::new(Arc::new(Rows::of(rows)), max_writes)
    }

    fn keys(rows: &[Row]) -> Vec<&str> {
        rows.iter().map(|row| row.key.as_str()).collect()
    }

    #[test]
    fn a_read_of_an_own_write_is_not_checked() {
        let (mut state, mut budget) = (state(&[("a", "1")], 9), budget());
        assert_eq!(state.get(&mut budget, "a").unwrap(), Some(b"1".to_vec()));
        assert_eq!(state.get(&mut budget, "none").unwrap(), None);
        state.write(&mut budget, "b".into(), Some("2".into())).unwrap();
        state.write(&mut budget, "b".into(), Some("3".into())).unwrap();
        state.write(&mut budget, "a".into(), None).unwrap();
        assert_eq!(state.get(&mut budget, "b").unwrap(), Some(b"3".to_vec()));
        assert_eq!(state.get(&mut budget, "a").unwrap(), None);
        let (reads, scans, writes) = state.finish();
        let read = |key: &str, digest| ReadCheck { key: key.into(), digest };
        assert_eq!(reads, [read("a", digest::value(Some(b"1"))), read("none", Bytes::new())]);
        assert!(scans.is_empty());
        let write = |key: &str, value: Option<&'static str>| StateOp { key: key.into(), value: value.map(Bytes::from) };
        assert_eq!(writes, [write("a", None), write("b", Some("3"))]);
    }

    #[test]
    fn a_scan_fetches_a_row_more_for_each_own_delete() {
        let rows = [("p/1", "1"), ("p/2", "2"), ("p/3", "3"), ("p/4", "4"), ("q", "5")];
        let (mut state, mut budget) = (state(&rows, 9), budget());
        state.write(&mut budget, "p/1".into(), None).unwrap();
        state.write(&mut budget, "q".into(), None).unwrap();
        state.write(&mut budget, "p/25".into(), Some("x".into())).unwrap();
        let found = state.scan(&mut budget, "p/".into(), 2).unwrap();
        assert_eq!(keys(&found), ["p/2", "p/25"]);
        let (_, scans, _) = state.finish();
        let seen = rows.iter().take(3).map(|(key, value)| (*key, value.as_bytes()));
        assert_eq!(scans, [ScanCheck { prefix: "p/".into(), limit: 3, digest: digest::rows(seen) }]);
    }

    #[test]
    fn what_changes_under_a_run_is_a_fault() {
        let rows = Arc::new(Rows::of(&[("a", "1")]));
        let (mut state, mut budget) = (State::new(rows.clone(), 9), budget());
        state.get(&mut budget, "a").unwrap();
        state.scan(&mut budget, "".into(), 5).unwrap();
        rows.put("a", "2");
        assert!(matches!(state.get(&mut budget, "a"), Err(HostError::Unavailable(_))));
        assert!(matches!(state.scan(&mut budget, "".into(), 5), Err(HostError::Unavailable(_))));
        assert!(budget.fault.is_some());
    }

    #[test]
    fn limits_are_answered() {
        let (mut state, mut budget) = (state(&[], 2), budget());
        let big = Bytes::from(vec![0; MAX_STATE_VALUE + 1]);
        assert!(matches!(state.write(&mut budget, "a".into(), Some(big)), Err(HostError::Limit(_))));
        assert!(matches!(state.write(&mut budget, "".into(), None), Err(HostError::Invalid(_))));
        assert!(matches!(state.get(&mut budget, &"k".repeat(513)), Err(HostError::Invalid(_))));
        state.write(&mut budget, "a".into(), None).unwrap();
        state.write(&mut budget, "b".into(), None).unwrap();
        assert!(matches!(state.write(&mut budget, "c".into(), None), Err(HostError::Limit(_))));
        state.write(&mut budget, "a".into(), Some("again".into())).unwrap();
    }

    #[test]
    fn room_for_writes_is_bounded_and_comes_back() {
        let (mut state, mut budget) = (state(&[], 64), budget());
        let big = || Some(Bytes::from(vec![0; MAX_STATE_VALUE]));
        let fits = MAX_EFFECTS / (MAX_STATE_VALUE + 3 + ENVELOPE);
        for n in 0..fits {
            state.write(&mut budget, format!("{n:03}"), big()).unwrap();
        }
        assert!(matches!(state.write(&mut budget, "more".into(), big()), Err(HostError::Limit(_))));
        state.write(&mut budget, "000".into(), None).unwrap();
        state.write(&mut budget, "more".into(), big()).unwrap();
    }

    proptest! {
        /// A scan is what it would be had the run's writes been committed before it.
        #[test]
        fn a_scan_merges_as_a_commit_would(
            below in proptest::collection::btree_map("[ab]{1,3}", "[xy]", 0..12),
            own in proptest::collection::vec(("[ab]{1,3}", proptest::option::of("[xy]")), 0..12),
            prefix in "[ab]{0,2}",
            limit in 0u32..8,
        ) {
            let rows: Vec<_> = below.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            let (mut state, mut budget) = (state(&rows, 64), budget());
            let mut want = below.clone();
            for (key, value) in own {
                state.write(&mut budget, key.clone(), value.clone().map(Bytes::from)).unwrap();
                match value {
                    Some(value) => want.insert(key, value),
                    None => want.remove(&key),
                };
            }
            let found = state.scan(&mut budget, prefix.clone(), limit).unwrap();
            let found: Vec<_> = found.into_iter().map(|row| (row.key, row.value)).collect();
            let want = want.into_iter().filter(|(key, _)| key.starts_with(&prefix)).take(limit as usize);
            let want: Vec<_> = want.map(|(key, value)| (key, value.into_bytes())).collect();
            prop_assert_eq!(found, want);
        }
    }
}
