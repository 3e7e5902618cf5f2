//! Steps in which the group's replicas changed: the newest are kept, and each is reported once.

use canal_proto::limits::MAX_STEPS;
use canal_proto::log::Step;

use super::{Effect, outbox};
use crate::core::keys::Table;
use crate::core::kv::KvError;
use crate::core::rows::Counter;
use crate::core::txn::Txn;

pub(super) fn apply(txn: &mut Txn<'_>, step: &Step, effects: &mut Vec<Effect>) -> Result<(), KvError> {
    let count_key = txn.keys.one(Table::StepCount);
    let mut count = txn.get_or_default::<Counter>(&count_key)?;
    count.value += 1;
    let number = count.value;
    txn.put(count_key, &count);
    let key = |txn: &Txn<'_>, number: u64| txn.keys.make(Table::Steps, &[&number.to_be_bytes()]);
    txn.put(key(txn, number), &Step { number, report: None, ..step.clone() });
    if let Some(old) = number.checked_sub(MAX_STEPS).filter(|old| *old > 0) {
        txn.delete(key(txn, old));
    }
    // steps are few, so a full outbox takes their reports as well; and even a topic of this group is reached through it,
    // since an event can only be read back from an append or an outcome
    outbox::put(txn, &step.report.iter().collect::<Vec<_>>(), effects)?;
    effects.push(Effect::Step(number));
    Ok(())
}
