//! No client is answered what it must never be, by what it knows itself: a receipt that covers nothing, a durable
//! subscription whose cursor went back or was moved by whoever had lost it, a row that nobody wrote, a route to another
//! group.
//!
//! Source: DESIGN, promise 3 ("a durable subscription keeps its cursor in the group"), 6 ("reads say what they are"), 8
//! ("bad input gets a clear, typed error"). Clients ([`actors`](crate::sim::actors)) tell of it in the words that are
//! repeated here.

use crate::sim::seen::{Invariant, Look, Seen};

/// It remembers nothing.
#[derive(Debug, Default)]
pub(super) struct ClientAnswers;

impl Invariant for ClientAnswers {
    fn name(&self) -> &'static str {
        "client_answers"
    }

    fn see(&mut self, seen: &Seen, _: &dyn Look) -> Result<(), String> {
        match seen {
            Seen::Broken { client, text } => Err(format!("client {client}: {text}")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{World, caught, holds};
    use super::*;

    #[test]
    fn what_clients_say_is_believed() {
        let world = World::three();
        holds(&mut ClientAnswers, &world, &[Seen::Note { text: "all is well".into() }]);
        caught(&mut ClientAnswers, &world, &[Seen::Broken { client: 9, text: "a receipt for nothing".into() }]);
    }
}
