//! What a run sees of its rows, and what is noted of that.
//!
//! A run sees the group's rows under what earlier runs of its lane wrote and is not applied yet ([`row`], [`range`]). What
//! it saw is noted by digests ([`Reads`]), and its outcome is applied only if all of that still stands then.

use std::collections::BTreeMap;

use bytes::Bytes;
use canal_proto::digest;
use canal_proto::log::{ReadCheck, ScanCheck};

use super::Overlay;

/// The value of a row; `below` reads the group's.
///
/// # Errors
/// Those of `below`.
pub fn row<E>(
    overlay: &Overlay,
    key: &str,
    below: impl FnOnce() -> Result<Option<Bytes>, E>,
) -> Result<Option<Bytes>, E> {
    overlay.get(key).map_or_else(below, |value| Ok(value.clone()))
}

/// The first `limit` rows under a prefix, in the order of their keys; `below` reads so many of the group's.
///
/// # Errors
/// Those of `below`.
pub fn range<E>(
    overlay: &Overlay,
    prefix: &str,
    limit: usize,
    below: impl FnOnce(usize) -> Result<Vec<(String, Bytes)>, E>,
) -> Result<Vec<(String, Bytes)>, E> {
    let changed = overlay.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
    let changed: Vec<_> = changed.collect();
    // every row that was removed may hide one that is applied
    let mut rows: BTreeMap<String, Bytes> = below(limit.saturating_add(changed.len()))?.into_iter().collect();
    for (key, value) in changed {
        match value {
            Some(value) => rows.insert(key.clone(), value.clone()),
            None => rows.remove(key),
        };
    }
    Ok(rows.into_iter().take(limit).collect())
}

/// How what a run sees goes with what it saw before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It had not looked there.
    New,
    /// It is as it was.
    Same,
    /// It has changed while the function ran: the run is worth nothing.
    Changed,
}

/// What a run saw of the rows below its own writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reads {
    rows: BTreeMap<String, Bytes>,
    ranges: BTreeMap<(String, u32), Bytes>,
}

impl Reads {
    /// How the value of a row goes with what was noted of it.
    pub fn compare(&self, key: &str, value: Option<&[u8]>) -> Seen {
        compare(self.rows.get(key), &digest::value(value))
    }

    /// Notes the value of a row.
    pub fn note(&mut self, key: &str, value: Option<&[u8]>) {
        self.rows.insert(key.to_owned(), digest::value(value));
    }

    /// How a range, of which so many rows were asked for, goes with what was noted of it.
    pub fn compare_range(&self, prefix: &str, asked: u32, rows: &[(String, Bytes)]) -> Seen {
        compare(self.ranges.get(&(prefix.to_owned(), asked)), &of_range(rows))
    }

    /// Notes a range.
    pub fn note_range(&mut self, prefix: &str, asked: u32, rows: &[(String, Bytes)]) {
        self.ranges.insert((prefix.to_owned(), asked), of_range(rows));
    }

    /// What was seen, each in the order of its keys.
    pub fn finish(self) -> (Vec<ReadCheck>, Vec<ScanCheck>) {
        let rows = self.rows.into_iter().map(|(key, digest)| ReadCheck { key, digest });
        let ranges = self.ranges.into_iter().map(|((prefix, limit), digest)| ScanCheck { prefix, limit, digest });
        (rows.collect(), ranges.collect())
    }
}

fn of_range(rows: &[(String, Bytes)]) -> Bytes {
    digest::rows(rows.iter().map(|(key, value)| (key.as_str(), value.as_ref())))
}

fn compare(noted: Option<&Bytes>, now: &Bytes) -> Seen {
    match noted {
        None => Seen::New,
        Some(noted) if noted == now => Seen::Same,
        Some(_) => Seen::Changed,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use std::convert::Infallible;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_changes_is_noticed() {
        let mut reads = Reads::default();
        assert_eq!(reads.compare("a", Some(b"1")), Seen::New);
        reads.note("a", Some(b"1"));
        reads.note("none", None);
        assert_eq!(reads.compare("a", Some(b"1")), Seen::Same);
        assert_eq!([reads.compare("a", None), reads.compare("none", Some(b""))], [Seen::Changed; 2]);
        let rows = [("p/1".to_owned(), Bytes::from_static(b"x"))];
        assert_eq!(reads.compare_range("p/", 5, &rows), Seen::New);
        reads.note_range("p/", 5, &rows);
        assert_eq!(reads.compare_range("p/", 5, &rows), Seen::Same);
        assert_eq!(reads.compare_range("p/", 5, &[]), Seen::Changed);
        assert_eq!(reads.compare_range("p/", 6, &rows), Seen::New);
        let (checks, scans) = reads.finish();
        let check = |key: &str, digest| ReadCheck { key: key.into(), digest };
        assert_eq!(checks, [check("a", digest::value(Some(b"1"))), check("none", Bytes::new())]);
        let seen = digest::rows([("p/1", b"x".as_slice())]);
        assert_eq!(scans, [ScanCheck { prefix: "p/".into(), limit: 5, digest: seen }]);
    }

    proptest! {
        /// What is seen is what would be seen had the earlier writes been committed.
        #[test]
        fn earlier_writes_are_seen_as_if_committed(
            applied in proptest::collection::btree_map("[ab]{1,3}", "[xy]", 0..12),
            earlier in proptest::collection::btree_map("[ab]{1,3}", proptest::option::of("[xy]"), 0..12),
            prefix in "[ab]{0,2}",
            limit in 0usize..8,
        ) {
            let overlay: Overlay =
                Arc::new(earlier.iter().map(|(key, value)| (key.clone(), value.clone().map(Bytes::from))).collect());
            let mut want = applied.clone();
            for (key, value) in &earlier {
                match value {
                    Some(value) => want.insert(key.clone(), value.clone()),
                    None => want.remove(key),
                };
            }
            let below = |count: usize| {
                let rows = applied.iter().filter(|(key, _)| key.starts_with(&prefix)).take(count);
                Ok::<_, Infallible>(rows.map(|(key, value)| (key.clone(), Bytes::from(value.clone()))).collect())
            };
            let seen = range(&overlay, &prefix, limit, below).unwrap();
            let rows = want.iter().filter(|(key, _)| key.starts_with(&prefix)).take(limit);
            let rows: Vec<_> = rows.map(|(key, value)| (key.clone(), Bytes::from(value.clone()))).collect();
            prop_assert_eq!(seen, rows);
            for key in applied.keys().chain(earlier.keys()) {
                let below = || Ok::<_, Infallible>(applied.get(key).cloned().map(Bytes::from));
                prop_assert_eq!(row(&overlay, key, below).unwrap(), want.get(key).cloned().map(Bytes::from));
            }
        }
    }
}
