//! Outcomes of runs: the cursor, the writes, the emitted events and the record change together, or not at all.
//!
//! An outcome is applied if the trigger still stands, the event is still to be handled, the attempt is the next one,
//! and every row and range that the run read still has the bytes that it saw. Since a run is a function of the event
//! and what it read, an outcome that passes is what running now would give.

use std::collections::BTreeMap;

use canal_proto::cursor::Cursor;
use canal_proto::digest;
use canal_proto::limits::{MAX_ACTIVATIONS, MAX_CURSOR_GAP, MAX_OUTBOX};
use canal_proto::log::{Emit, GroupSpec, Outcome, Outcomes, StateOp};
use canal_proto::{TopicId, TriggerId};

use super::{Effect, OutcomeResult, Place, extend, outbox};
use crate::core::keys::{Keys, Table};
use crate::core::kv::KvError;
use crate::core::rows::{Counter, Topic};
use crate::core::txn::Txn;

pub(super) fn apply(
    txn: &mut Txn<'_>,
    place: Place<'_>,
    outcomes: &Outcomes,
    effects: &mut Vec<Effect>,
) -> Result<(Vec<OutcomeResult>, Vec<Cursor>), KvError> {
    let spec = super::spec(txn)?;
    let mut results = Vec::with_capacity(outcomes.outcomes.len());
    let mut cursors = BTreeMap::new();
    let mut refused = false;
    for (part, outcome) in outcomes.outcomes.iter().enumerate() {
        if refused {
            // later runs of an entry have seen what the refused one wrote, or come behind it in their key's order
            results.push(OutcomeResult::Conflict);
            continue;
        }
        let (result, cursor) = apply_one(txn, place, &spec, part, outcome, effects)?;
        refused = result != OutcomeResult::Applied;
        results.push(result);
        if let Some(cursor) = cursor {
            cursors.insert((outcome.trigger, outcome.topic), cursor);
        }
    }
    Ok((results, cursors.into_values().collect()))
}

fn apply_one(
    txn: &mut Txn<'_>,
    place: Place<'_>,
    spec: &GroupSpec,
    part: usize,
    outcome: &Outcome,
    effects: &mut Vec<Effect>,
) -> Result<(OutcomeResult, Option<Cursor>), KvError> {
    let key = txn.keys.cursor(TriggerId(outcome.trigger), TopicId(outcome.topic));
    let Some(mut cursor) = txn.get::<Cursor>(&key)? else { return Ok((OutcomeResult::Obsolete, None)) };
    let known = spec.triggers.iter().any(|trigger| trigger.info.id == outcome.trigger);
    if !known {
        return Ok((OutcomeResult::Obsolete, Some(cursor)));
    }
    if !cursor.accepts(outcome.offset, outcome.attempt) {
        let later = outcome.offset >= cursor.low.saturating_add(MAX_CURSOR_GAP);
        let result = if later { OutcomeResult::Blocked } else { OutcomeResult::Obsolete };
        return Ok((result, Some(cursor)));
    }
    let head = txn.get_or_default::<Topic>(&txn.keys.topic_only(Table::Topics, TopicId(outcome.topic)))?.next;
    if outcome.offset >= head {
        // no event stands there yet: the run saw something else, and would take the place of the one that comes
        return Ok((OutcomeResult::Obsolete, Some(cursor)));
    }
    if !reads_hold(txn, outcome)? {
        return Ok((OutcomeResult::Conflict, Some(cursor)));
    }
    let (local, remote): (Vec<&Emit>, Vec<&Emit>) =
        outcome.emits.iter().partition(|emit| outbox::is_local(emit, place.group));
    if !remote.is_empty() && outbox::len(txn)? + remote.len() as u64 > MAX_OUTBOX {
        return Ok((OutcomeResult::Blocked, Some(cursor)));
    }
    for emit in &local {
        let topic_key = txn.keys.topic_only(Table::Topics, TopicId(emit.target.topic));
        if txn.get::<Topic>(&topic_key)?.is_none() {
            // the topic went away between the run and now: run again, against the catalog as it is
            return Ok((OutcomeResult::Conflict, Some(cursor)));
        }
    }
    if !cursor.apply(outcome) {
        // of a disposition that is none: without the cursor's move, its effects could be applied again
        return Ok((OutcomeResult::Obsolete, Some(cursor)));
    }
    append_local(txn, place, part, &local, effects)?;
    outbox::put(txn, &remote, effects)?;
    write(txn, &outcome.bucket, &outcome.writes);
    txn.put(key, &cursor);
    record(txn, outcome)?;
    Ok((OutcomeResult::Applied, Some(cursor)))
}

fn reads_hold(txn: &Txn<'_>, outcome: &Outcome) -> Result<bool, KvError> {
    #[cfg(feature = "mutants")]
    if crate::mutants::is(crate::mutants::Mutant::ReadsUnchecked) {
        return Ok(true);
    }
    for read in &outcome.reads {
        let value = txn.get_bytes(&txn.keys.state(&outcome.bucket, &read.key))?;
        if digest::value(value.as_deref()) != read.digest {
            return Ok(false);
        }
    }
    for scan in &outcome.scans {
        let rows = state_rows(txn, &outcome.bucket, &scan.prefix, scan.limit as usize)?;
        let seen = digest::rows(rows.iter().map(|(key, value)| (key.as_str(), value.as_ref())));
        if seen != scan.digest {
            return Ok(false);
        }
    }
    Ok(true)
}

fn state_rows(txn: &Txn<'_>, bucket: &str, prefix: &str, limit: usize) -> Result<Vec<(String, bytes::Bytes)>, KvError> {
    let from = txn.keys.state(bucket, prefix);
    let skip = Keys::state_prefix_len(bucket);
    let rows = txn.scan_bytes(&from, limit)?;
    Ok(rows
        .into_iter()
        .map(|(key, value)| (String::from_utf8_lossy(key.get(skip..).unwrap_or_default()).into_owned(), value))
        .collect())
}

/// Writes rows of function state.
pub(super) fn write(txn: &mut Txn<'_>, bucket: &str, ops: &[StateOp]) {
    for op in ops {
        let key = txn.keys.state(bucket, &op.key);
        match &op.value {
            Some(value) => txn.put_bytes(key, value.clone()),
            None => txn.delete(key),
        }
    }
}

/// Appends the events for this group's own topics. All of one topic stand together: readers find them by taking the
/// outcome's emits for that topic, in order.
fn append_local(
    txn: &mut Txn<'_>,
    place: Place<'_>,
    part: usize,
    emits: &[&Emit],
    effects: &mut Vec<Effect>,
) -> Result<(), KvError> {
    let mut counts: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for emit in emits {
        let (count, bytes) = counts.entry(emit.target.topic).or_default();
        *count += 1;
        *bytes += emit.event.payload.len() as u64;
    }
    for (topic, (count, bytes)) in counts {
        extend(txn, place, TopicId(topic), part, count, bytes, effects)?;
    }
    Ok(())
}

fn record(txn: &mut Txn<'_>, outcome: &Outcome) -> Result<(), KvError> {
    let trigger = outcome.trigger.to_be_bytes();
    let count_key = txn.keys.make(Table::ActivationCount, &[&trigger]);
    let mut count = txn.get_or_default::<Counter>(&count_key)?;
    count.value += 1;
    txn.put(count_key, &count);
    let mut record = outcome.record.clone();
    record.number = count.value;
    record.disposition = outcome.disposition;
    txn.put(txn.keys.make(Table::Activations, &[&trigger, &count.value.to_be_bytes()]), &record);
    if let Some(old) = count.value.checked_sub(MAX_ACTIVATIONS).filter(|old| *old > 0) {
        txn.delete(txn.keys.make(Table::Activations, &[&trigger, &old.to_be_bytes()]));
    }
    Ok(())
}
