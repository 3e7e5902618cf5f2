//! Reads and writes that claim linearizability are linearizable: rows of a bucket as registers, and the next offset of a
//! topic against what was acknowledged.
//!
//! Source: Herlihy and Wing, "Linearizability" (1990); Ongaro's thesis (2014), section 6.4, for reads by a leader that has
//! confirmed its leadership. The history is checked as a whole in the end, by [`crate::sim::linear`].

use super::ensure;
use crate::sim::linear::History;
use crate::sim::seen::{Invariant, Look, Seen};

/// The history of all registers.
#[derive(Debug, Default)]
pub(super) struct Linearizable {
    history: History,
}

impl Invariant for Linearizable {
    fn name(&self) -> &'static str {
        "linearizable"
    }

    fn see(&mut self, seen: &Seen, _: &dyn Look) -> Result<(), String> {
        if matches!(seen, Seen::Invoked { .. } | Seen::Returned { .. } | Seen::Lost { .. }) {
            self.history.see(seen);
        }
        Ok(())
    }

    fn end(&mut self, _: &dyn Look) -> Result<(), String> {
        let found = self.history.check();
        ensure(found.is_ok(), || found.err().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{World, caught, holds};
    use super::*;

    fn write(operation: u64, value: u8) -> [Seen; 2] {
        let write = Some(vec![value]);
        [
            Seen::Invoked { client: 9, operation, register: "r".into(), write },
            Seen::Returned { client: 9, operation, read: None },
        ]
    }

    fn read(operation: u64, value: u8) -> [Seen; 2] {
        [
            Seen::Invoked { client: 8, operation, register: "r".into(), write: None },
            Seen::Returned { client: 8, operation, read: Some(vec![value]) },
        ]
    }

    #[test]
    fn a_read_sees_the_write_before_it() {
        let world = World::three();
        holds(&mut Linearizable::default(), &world, &[write(1, 1), read(1, 1), write(2, 2), read(2, 2)].concat());
        caught(&mut Linearizable::default(), &world, &[write(1, 1), write(2, 2), read(1, 1)].concat());
    }
}
