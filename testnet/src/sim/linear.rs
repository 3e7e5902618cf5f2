//! Whether a history of reads and writes of registers is linearizable: whether each operation can be thought to have
//! happened at one moment between its invocation and its return, and each read then gives what was written last
//! (Herlihy and Wing, "Linearizability: a correctness condition for concurrent objects", TOPLAS 1990).
//!
//! A history of many registers is linearizable if the history of each register is (their theorem 1), so each is looked at
//! alone. The search is that of Wing and Gong ("Testing and verifying concurrent objects", JPDC 1993), with Lowe's memory of
//! the configurations that were met ("Testing for linearizability", Concurrency and Computation 2017).
//!
//! An operation that was lost may take effect at any moment after its invocation, or never. Promises: exact for any
//! history; answers [`Verdict::Undecided`] rather than take more than [`MAX_CONFIGURATIONS`] for a register. Refuses nothing
//! that a register could do, so what it refuses is an error of whoever recorded the history or whoever served it.

use std::collections::BTreeMap;

use super::around::Machine;
use super::seen::Seen;

mod search;

/// Configurations that are looked at for one register. A client has one operation under way at a time, so a healthy history
/// needs a few for each operation; a wrong one needs all that can be reached before the wrong one, which is seldom more.
pub const MAX_CONFIGURATIONS: usize = 1 << 20;

/// What an operation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Wrote this.
    Write(Vec<u8>),
    /// Read this; none where there was nothing.
    Read(Option<Vec<u8>>),
}

/// One operation on a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Who: client and number of its operation.
    pub who: (Machine, u64),
    /// What it did.
    pub action: Action,
    /// When it began. Moments are places in the history: no two are the same.
    pub invoked: u64,
    /// When it ended; none when nobody knows.
    pub returned: Option<u64>,
}

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is linearizable.
    Linearizable,
    /// It is not, for this reason.
    Wrong(String),
    /// The bound was met before it was known.
    Undecided,
}

/// Whether the operations of one register, which begins without a value, are linearizable.
pub fn check(operations: &[Operation]) -> Verdict {
    search::run(operations, MAX_CONFIGURATIONS)
}

/// A history as it is told: by [`Seen::Invoked`], [`Seen::Returned`] and [`Seen::Lost`].
#[derive(Debug, Default)]
pub struct History {
    registers: BTreeMap<String, Vec<Operation>>,
    /// Operations under way: register, and place in its history.
    open: BTreeMap<(Machine, u64), (String, usize)>,
    moment: u64,
}

impl History {
    /// Takes down what concerns it.
    pub fn see(&mut self, seen: &Seen) {
        self.moment += 1;
        match seen {
            Seen::Invoked { client, operation, register, write } => {
                let who = (*client, *operation);
                let action = write.clone().map_or(Action::Read(None), Action::Write);
                let operations = self.registers.entry(register.clone()).or_default();
                self.open.insert(who, (register.clone(), operations.len()));
                operations.push(Operation { who, action, invoked: self.moment, returned: None });
            }
            Seen::Returned { client, operation, read } => {
                let Some((register, at)) = self.open.remove(&(*client, *operation)) else { return };
                let known = self.registers.get_mut(&register).and_then(|operations| operations.get_mut(at));
                if let Some(operation) = known {
                    operation.returned = Some(self.moment);
                    if let Action::Read(value) = &mut operation.action {
                        value.clone_from(read);
                    }
                }
            }
            Seen::Lost { client, operation } => {
                self.open.remove(&(*client, *operation));
            }
            _ => {}
        }
    }

    /// Operations that were taken down.
    pub fn len(&self) -> usize {
        self.registers.values().map(Vec::len).sum()
    }

    /// Whether nothing was taken down.
    pub fn is_empty(&self) -> bool {
        self.registers.is_empty()
    }

    /// Whether each register's history is linearizable; the first verdict that says otherwise names its register.
    ///
    /// # Errors
    /// The register, and what is wrong with it: it is not linearizable, or too much would have to be tried.
    pub fn check(&self) -> Result<(), String> {
        for (register, operations) in &self.registers {
            match check(operations) {
                Verdict::Linearizable => {}
                Verdict::Wrong(why) => return Err(format!("register {register}: {why}")),
                Verdict::Undecided => {
                    let many = operations.len();
                    return Err(format!(
                        "register {register}: {many} operations, and no answer after {MAX_CONFIGURATIONS} configurations: \
                         have fewer clients, or more registers"
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
